"""The invariants, each a function from a history to its violations, told in words.

They follow what trusted tests of Kafka check: Jepsen's Kafka workload (lost writes, aborted reads, inconsistent
offsets) and Kafka's own system tests of transactions and replication (input equals output, acknowledged is read). A
timeout is no failure: such a send is *unknown*, and its record may be there or not.

A record is blamed once: one of a transaction that surely failed counts as `failed is not read` and nowhere else.
"""

from collections import Counter, defaultdict

MOST = 10  # violations that are told of one kind


def _of(history: list[dict], what: str) -> list[dict]:
    return [event for event in history if event["what"] == what]


def _place(event: dict) -> tuple:
    return event["topic"], event["partition"], event["offset"]


def _final(history: list[dict], topic: str | None = None) -> list[dict]:
    """What was read in the end, when everything had healed; by topic, partition and offset."""
    reads = {_place(e): e for e in _of(history, "read") if e["final"] and topic in (None, e["topic"])}
    return [reads[place] for place in sorted(reads)]


def _failed(history: list[dict]) -> set[str]:
    """Transactions that surely failed: aborted, or begun by a mover that never came to ask for the commit.

    It notes `committing` before it asks, so one that is killed, fenced or expelled earlier has not committed anything.
    """
    asked = {event["txn"] for event in _of(history, "committing") + _of(history, "committed")}
    begun = {event["txn"] for event in _of(history, "begins")}
    return {event["txn"] for event in _of(history, "aborted")} | begun - asked


def acknowledged_is_read(history: list[dict]) -> list[str]:
    """Every record that was acknowledged is read at its offset in the end (KIP-98, acks=all)."""
    read = {(_place(event), event["value"]) for event in _final(history)}
    acked = [e for e in _of(history, "acknowledged") if (_place(e), e["value"]) not in read]
    return [f"{e['value']} was acknowledged at {e['partition']}@{e['offset']} and is not there" for e in acked]


def failed_is_not_read(history: list[dict]) -> list[str]:
    """No reader of committed records, at any time, is given a record of a transaction that surely failed."""
    failed = _failed(history)
    seen = [event for event in _of(history, "read") if event.get("txn") in failed]
    return [f"{e['value']} of the failed {e['txn']} was read by the {e['who']}" for e in seen]


def one_value_an_offset(history: list[dict]) -> list[str]:
    """All who saw an offset, by reading or by an acknowledgement, saw the same value there."""
    values = defaultdict(set)
    for event in _of(history, "read") + _of(history, "acknowledged"):
        values[_place(event)].add(event["value"])
    return [f"{place}: {sorted(seen)}" for place, seen in sorted(values.items()) if len(seen) > 1]


def idempotent_once_and_in_order(history: list[dict]) -> list[str]:
    """What one living producer sent to a partition is there at most once, and in the order of its sends."""
    found = []
    sends = defaultdict(dict)
    for number, event in enumerate(_of(history, "sending")):
        sends[event["topic"], event["partition"]][event["value"]] = number
    for (topic, partition), order in sends.items():
        values = [e["value"] for e in _final(history, topic) if e["partition"] == partition]
        doubled = [value for value, count in Counter(values).items() if count > 1]
        found += [f"{value} is on partition {partition} more than once" for value in doubled]
        numbers = [order[value] for value in dict.fromkeys(values) if value in order]
        late = [value for value, (a, b) in zip(values, zip(numbers, numbers[1:], strict=False), strict=False) if a > b]
        found += [f"after {value}, partition {partition} has an earlier one" for value in late]
    return found


def _output(history: list[dict]) -> tuple[Counter, Counter] | None:
    pipeline = _of(history, "pipeline")
    if not pipeline:
        return None
    failed = _failed(history)
    source = Counter(event["value"] for event in _final(history, pipeline[0]["source"]))
    target = [e for e in _final(history, pipeline[0]["target"]) if e.get("txn") not in failed]
    return source, Counter(event["value"] for event in target)


def output_has_all_input(history: list[dict]) -> list[str]:
    """Each record of the source is on the target (as multisets)."""
    both = _output(history)
    return [f"{value} is missing on the target" for value in sorted((both[0] - both[1]).elements())] if both else []


def output_has_nothing_twice(history: list[dict]) -> list[str]:
    """No record is on the target more often than on the source (as multisets)."""
    both = _output(history)
    return [f"{value} is too often on the target" for value in sorted((both[1] - both[0]).elements())] if both else []


def committed_offsets_grow(history: list[dict]) -> list[str]:
    """A group's committed offset of a partition never goes back."""
    found, last = [], {}
    for event in _of(history, "committed offset"):
        place = event["group"], event["partition"]
        if event["offset"] < last.get(place, 0):
            found.append(f"partition {event['partition']} went back from {last[place]} to {event['offset']}")
        last[place] = event["offset"]
    return found


def fenced_writes_nothing(history: list[dict]) -> list[str]:
    """Once a role has a new incarnation, nothing that an earlier one writes or begins after that can be read."""
    found, newest = [], {}
    failed = _failed(history)
    for event in _final(history):
        if not event.get("role") or event["txn"] in failed:
            continue
        lane = event["topic"], event["partition"], event["role"]
        if event["incarnation"] < newest.get(lane, 0):
            found.append(f"{event['value']} of {event['txn']} stands behind what its successor wrote")
        newest[lane] = max(newest.get(lane, 0), event["incarnation"])
    started = {(e["role"], e["incarnation"]): e["t"] for e in _of(history, "started")}
    readable = {event["txn"] for event in _final(history) if event.get("txn")}
    for event in _of(history, "begins"):
        later = [t for (role, number), t in started.items() if role == event["role"] and number > event["incarnation"]]
        if event["txn"] in readable - failed and later and event["t"] > min(later):
            found.append(f"{event['txn']} began after its successor had started, and can be read")
    return found


INVARIANTS = {
    "acknowledged is read": acknowledged_is_read,
    "failed is not read": failed_is_not_read,
    "one value an offset": one_value_an_offset,
    "idempotent: once, in order": idempotent_once_and_in_order,
    "output has all input": output_has_all_input,
    "output has nothing twice": output_has_nothing_twice,
    "committed offsets grow": committed_offsets_grow,
    "fenced writes nothing": fenced_writes_nothing,
}


def check(history: list[dict]) -> dict[str, list[str]]:
    """The violations of each invariant that has any, the first few of each."""
    found = {name: invariant(history) for name, invariant in INVARIANTS.items()}
    return {name: violations[:MOST] for name, violations in found.items() if violations}


def _successor(history: list[dict], begins: dict) -> float:
    """When a transaction that its mover never ended was ended by the start of the mover's next incarnation."""
    starts = [e["t"] for e in _of(history, "started") if e["role"] == begins["role"] and e["t"] > begins["t"]]
    return min(starts, default=begins["t"])


def _in_a_transaction(history: list[dict]) -> list[dict]:
    """Faults that fell into an open transaction: of the mover that was harmed, or of any if it was a broker."""
    ends = {event["txn"]: event["t"] for event in history if event["what"] in ("committed", "aborted")}
    spans = [(e["role"], e["t"], ends.get(e["txn"]) or _successor(history, e)) for e in _of(history, "begins")]

    def is_in_one(fault):
        broker = fault["target"].startswith("broker")
        return any(begin <= fault["t"] < end for role, begin, end in spans if broker or role == fault["target"])

    return [fault for fault in _of(history, "fault") if is_in_one(fault)]


def _before_an_acknowledgement(history: list[dict]) -> list[dict]:
    """Faults of a broker that led a partition for which a send was not acknowledged yet."""
    acks = {e["value"]: e["t"] for e in history if e["what"] in ("acknowledged", "unknown")}
    sends = [(e["partition"], e["t"], acks.get(e["value"], float("inf"))) for e in _of(history, "sending")]

    def is_before_one(fault):
        return any(begin <= fault["t"] < end for place, begin, end in sends if place in fault.get("leads", ()))

    return [fault for fault in _of(history, "fault") if is_before_one(fault)]


def tried(history: list[dict]) -> dict[str, int]:
    """How much a run has tried: records, transactions, and faults that fell into something that was open."""

    return {
        "records sent": len(_of(history, "sending")),
        "acknowledged": len(_of(history, "acknowledged")),
        "unknown": len(_of(history, "unknown")),
        "transactions": len(_of(history, "begins")),
        "committed": len(_of(history, "committed")),
        "surely failed": len(_failed(history)),
        "faults": len(_of(history, "fault")),
        "faults in an open transaction": len(_in_a_transaction(history)),
        "faults with a send unacknowledged": len(_before_an_acknowledgement(history)),
        "movers stuck and killed": len(_of(history, "stuck")),
        "movers started": len(_of(history, "started")),
    }
