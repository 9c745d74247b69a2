"""The errors of the lab: each is one sentence that says what is wrong and what to do about it."""

import contextlib


class LabError(RuntimeError):
    """Something the reader can act on: no network, a full disk, a broker that did not start."""


class BrokerDied(LabError):
    """A broker ended by itself; the message carries the last lines of its log."""


class NoMemory(LabError):
    """A broker ended because the machine, or its own heap, had too little memory."""


class PortTaken(BrokerDied):
    """A broker ended because another program listens on its port."""


@contextlib.contextmanager
def refused(what: str, cure: str):
    """Turn what the system refuses in this block into a LabError: `what` could not be done, why, and its `cure`."""
    try:
        yield
    except OSError as error:
        raise LabError(f"{what} ({error.strerror or error}): {cure}.") from error
