"""What is attacked: mended forms by the accidents of the catalogue, recorded by the tests that make them.

    @accident(form="10 exactly_once", kinds=[1, 2])
    def test_killed_at_each_point(...): ...

    @weak(form="10 exactly_once", kind=8, sentence="An order that retention deletes …")
    def test_retention(...): ...

`accident`: the form survives. `weak`: it does not; the test shows what happens, and the sentence says so, word for
word, in the form's lesson and in docs/guarantees.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: The catalogue, by number.
ACCIDENTS = {
    1: "death between any two effects",
    2: "death twice: the recovery dies too",
    3: "standstill, then going on: the zombie",
    4: "unknown outcome",
    5: "records expire",
    6: "a refused record, and the client used again",
    7: "poison of each kind",
    8: "the log's beginning moves",
    9: "the topic is made anew, restored, or gets more partitions",
    10: "the database comes back older, or says 'not now'",
    11: "twice, late, in another order",
    12: "a rebalance at any point",
    13: "attempts run out",
    14: "more than a page",
    15: "two of everything, the older one finishing last",
    16: "aborted records in every topic that is read",
    17: "a second time",
    18: "another process",
    19: "something comes between two questions",
}


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix: a form under an accident, the test that makes it, and for a weak one the sentence."""

    form: str
    kind: int
    test: str
    sentence: str = ""


#: What the tests that are imported so far have recorded.
ENTRIES: list[Entry] = []


def accident(form: str, kinds: list[int]) -> Callable:
    """Record that a form survives these accidents, as the decorated test shows."""
    return _recording(form, kinds, "")


def weak(form: str, kind: int, sentence: str) -> Callable:
    """Record that a form does not survive an accident: the decorated test shows what happens, the sentence says it."""
    return _recording(form, [kind], sentence)


def _recording(form: str, kinds: list[int], sentence: str) -> Callable:
    assert set(kinds) <= set(ACCIDENTS), kinds

    def record(test: Callable) -> Callable:
        where = f"{test.__module__}.{test.__name__}"
        ENTRIES.extend(Entry(form, kind, where, sentence) for kind in kinds)
        return test

    return record
