"""The errors of the lab: each is one sentence that says what is wrong and what to do about it."""


class LabError(RuntimeError):
    """Something the reader can act on: no network, a full disk, a broker that did not start."""


class BrokerDied(LabError):
    """A broker ended by itself; the message carries the last lines of its log."""


class NoMemory(LabError):
    """A broker ended because the machine, or its own heap, had too little memory."""


class PortTaken(BrokerDied):
    """A broker ended because another program listens on its port."""
