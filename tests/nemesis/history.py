"""What happened, written down by those to whom it happened: a file of JSON lines a client, merged by time.

An event is a dict: `t` (seconds of the system's monotonic clock, the same in all processes), `who`, `what`, and facts:

    sender   sending (topic, partition, value) · acknowledged (+ offset) · unknown (+ error)
    mover    started (role, incarnation) · begins (txn, role, incarnation, values) · committing · committed · aborted
    reader   read (topic, partition, offset, value, txn, role, incarnation)
    watcher  committed offset (group, partition, offset)
    nemesis  fault (target, how, and of a broker: leads, partitions of the source) · healed (target)
"""

import json
import time
from pathlib import Path


class Notebook:
    """A client's file of events. Each line is with the operating system when `note` returns: SIGKILL loses none."""

    def __init__(self, folder: Path, who: str):
        self.who = who
        self._file = open(Path(folder) / f"{who}.jsonl", "a", buffering=1)  # noqa: SIM115 (open while the client lives)

    def note(self, what: str, **facts) -> None:
        """Write down one event."""
        self._file.write(json.dumps({"t": time.monotonic(), "who": self.who, "what": what, **facts}) + "\n")


def merged(folder: Path) -> list[dict]:
    """All events of a run, by time. A last line without its end belongs to a client that was killed while writing."""
    events = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        lines = path.read_text().splitlines(keepends=True)
        events += [json.loads(line) for line in lines if line.endswith("\n")]
    return sorted(events, key=lambda event: event["t"])
