"""The errors of the lab: each is one sentence that says what is wrong and what to do about it."""

import contextlib
import errno


class LabError(RuntimeError):
    """Something the reader can act on: no network, a full disk, a broker that did not start."""


class BrokerDied(LabError):
    """A broker ended by itself; the message carries the last lines of its log."""


class NoMemory(LabError):
    """A broker ended because the machine, or its own heap, had too little memory."""


class PortTaken(BrokerDied):
    """A broker ended because another program listens on its port."""


def cure(error: OSError, variable: str, room: str = "some space") -> str:
    """Return what helps against an error of a file system, as far as the error says it.

    Args:
        error: what the system said.
        variable: the one that names the folder.
        room: how much space is needed there.
    """
    if error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE):
        return "end other programs, and try again."
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (f"free {room} there, or " if full else "") + f"set {variable} to another folder, which you can write to."


@contextlib.contextmanager
def refused(what: str, advice: str = "", variable: str = "", room: str = "some space"):
    """Turn what the system refuses in this block into a LabError: `what` could not be done, why, and what helps.

    Args:
        what: what could not be done, as the beginning of the sentence.
        advice: what helps; without it, what `cure` says of `variable` and `room`.
    """
    try:
        yield
    except OSError as error:
        helps = f"{advice}." if advice else cure(error, variable, room)
        raise LabError(f"{what} ({error.strerror or error}): {helps}") from error
