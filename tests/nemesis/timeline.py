"""A picture of a run: what was done to whom, and what was seen meanwhile."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, MUTED, LANE = "#1f2933", "#6b7785", "#eef1f4"
ROWS = ["broker 1", "broker 2", "broker 3", "mover-0", "mover-1"]
LEGEND = """brokers: red while killed, orange while paused · movers: ✕ red killed, orange paused and replaced
transactions: green committed, orange aborted, red never ended by the mover"""


def draw(history: list[dict], path: Path, title: str) -> None:
    """Save the timeline of a run as a PNG: brokers and movers with their faults, transactions, acknowledgements."""
    start, end = history[0]["t"], history[-1]["t"]
    figure, (lanes, rates) = plt.subplots(
        2, 1, figsize=(12, 5.5), sharex=True, gridspec_kw={"height_ratios": [3, 1]}, layout="constrained"
    )
    for y, row in enumerate(ROWS):
        lanes.plot([0, end - start], [y, y], color=LANE, linewidth=14, solid_capstyle="round", zorder=0)
        lanes.text(-0.5, y, row, ha="right", va="center", color=INK)
    for event in history:
        if event["what"] == "fault":
            _draw_fault(lanes, history, event, start, end)
        elif event["what"] == "begins":
            _draw_transaction(lanes, history, event, start)
    lanes.set_ylim(len(ROWS) + 0.6, -0.6)
    lanes.axis("off")
    lanes.set_title(title, loc="left", fontweight="bold", fontsize=13.5, color=INK)
    lanes.text(0, len(ROWS) - 0.35, LEGEND, fontsize=10, color=MUTED, va="top")
    for what, colour in (("acknowledged", BLUE), ("read", GREEN)):
        times = [e["t"] - start for e in history if e["what"] == what and not e.get("final")]
        rates.hist(times, bins=120, range=(0, end - start), histtype="step", color=colour, label=what)
    rates.set_ylabel("records")
    rates.set_xlabel("seconds")
    rates.legend(frameon=False, loc="upper right")
    rates.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _draw_fault(lanes, history: list[dict], fault: dict, start: float, end: float) -> None:
    y, colour = ROWS.index(fault["target"]), RED if fault["how"] == "killed" else ORANGE
    if not fault["target"].startswith("broker"):
        lanes.plot([fault["t"] - start], [y], marker="X", color=colour, markersize=9, zorder=4)
        return
    healed = [
        event["t"]
        for event in history
        if event["what"] == "healed" and event["target"] == fault["target"] and event["t"] > fault["t"]
    ]
    until = healed[0] if healed else end
    lanes.plot([fault["t"] - start, until - start], [y, y], color=colour, linewidth=10, solid_capstyle="butt")


def _draw_transaction(lanes, history: list[dict], begins: dict, start: float) -> None:
    ends = [e for e in history if e["what"] in ("committed", "aborted") and e["txn"] == begins["txn"]]
    colour = {"committed": GREEN, "aborted": ORANGE}[ends[0]["what"]] if ends else RED
    until = max(ends[0]["t"] if ends else 0, begins["t"] + 0.05)
    y = ROWS.index(begins["role"])
    lanes.plot([begins["t"] - start, until - start], [y, y], color=colour, linewidth=5, zorder=3)
