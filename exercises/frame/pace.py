"""How slow this machine is just now, so that a check's deadline is the same amount of work on each machine.

A check never blames a learner for a slow machine: its deadline is multiplied by what is measured here.
"""

import os
import time

USUAL = 0.016  # seconds that the loop below takes on the quiet 2-core machine on which the deadlines were set
MOST = 8.0  # times slower; beyond that somebody waits in vain
BUSY = 2.0  # times slower from which on an answer that is still running is not judged at all


def slowness() -> float:
    """Return how many times slower than usual this machine is now: 1 on a quiet one, 8 at the most.

    Two measurements, of which the worse one counts: how long a short computation takes by the clock, which shows a
    slow processor and one that is shared; and how many programs want a processor for each that there is (the load
    average of the last minute), which shows that the brokers have to wait.
    """
    began = time.perf_counter()
    total = 0
    for number in range(200_000):
        total += number
    computing = (time.perf_counter() - began) / USUAL
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 1.0
    return min(MOST, max(1.0, computing, waiting))
