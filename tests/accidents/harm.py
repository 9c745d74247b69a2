"""Accidents at a place in a history: what the modules of this folder share.

`ACCIDENTS_SEED` draws other places than the usual ones, and `ACCIDENTS_MORE` takes so many times as many:

    ACCIDENTS_SEED=7 ACCIDENTS_MORE=20 pytest -m full tests/accidents
"""

import os

SEED = int(os.environ.get("ACCIDENTS_SEED", "6"))
MORE = int(os.environ.get("ACCIDENTS_MORE", "1"))


class Died(BaseException):
    """The process is gone. The database undoes what was not committed, as it does for a process that is killed."""


class At:
    """An accident at the n-th place that a history comes to; counts all places."""

    def __init__(self, n, what):
        self.n, self.what, self.count = n, what, 0

    def __call__(self, *told):
        self.count += 1
        if self.count == self.n:
            self.what(*told)


def nothing(*told):
    """No accident."""
