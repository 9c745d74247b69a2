"""Waiting for a condition with a deadline; nothing in the course sleeps and hopes."""

import time


class Seen:
    """A falsy result that says what was seen; `wait_until` quotes it in its TimeoutError.

    Args:
        what: what was seen, or the error that was met.
    """

    def __init__(self, what):
        self.what = what

    def __bool__(self):
        return False

    def __repr__(self):
        return str(self.what)


def wait_until(probe, what: str, timeout: float = 10, pause: float = 0.005, retry=()):
    """Call `probe` until it returns something true, and return that.

    Args:
        probe: a function without arguments. What it returns while it is not yet true is shown at the deadline.
        what: what is waited for, for the message, e.g. "a new leader of orders-0".
        timeout: seconds until the deadline.
        pause: seconds between two calls.
        retry: exception types that count as 'not yet'.

    Raises:
        TimeoutError: the deadline has passed; the message says what was waited for and what was seen last.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            seen = probe()
        except retry as error:
            seen = error
        else:
            if seen:
                return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {timeout:g} s for {what}; last seen: {seen!r}.")
        time.sleep(pause)
