"""What a learner's kernel tells the teacher's board: the outcome of each check, and a question with code when asked.

It goes to the topic of COURSE_BOARD_TOPIC, which the learner's card sets; only that learner, by rights on their prefix,
can write there. The topic is compacted: the last word on each question stays. Nothing here may delay a check, print, or
fail: a thread of its own sends, and what cannot be sent is dropped.
"""

import atexit
import contextlib
import json
import queue
import threading

from helpers import settings
from helpers.notebook import somebody_is_watching

LONGEST = 20_000  # characters of code, and of words, that go with a call for help

_waiting: queue.Queue = queue.Queue(maxsize=1000)
_thread: threading.Thread | None = None


def topic() -> str:
    """The learner's topic for the board; empty for one who has not joined a class."""
    return settings.value("COURSE_BOARD_TOPIC")


def observe(lesson: str, question: str, state: str) -> None:
    """Tell the outcome of a check that a person asked for. An observer of questions; code does not go with it."""
    if topic() and state != "not started" and somebody_is_watching():
        tell(f"{lesson}/{question}", {"state": state})


def ask(lesson: str, question: str, words: str, code: str) -> threading.Event:
    """Ask the teacher for help; the event is set as soon as the call has arrived."""
    return tell(f"{lesson}/{question}/help", {"words": words[:LONGEST], "code": code[:LONGEST]})


def tell(key: str, value: dict) -> threading.Event:
    """Have a record sent; returns at once. The event is set when the broker has acknowledged it, if it ever does."""
    global _thread
    arrived = threading.Event()
    with contextlib.suppress(queue.Full):
        _waiting.put_nowait((key, value, arrived))
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_send, args=(_waiting,), daemon=True, name="board")
        _thread.start()
        atexit.register(wait, 1.0)
    return arrived


def wait(seconds: float) -> bool:
    """Wait until all that was told is acknowledged or dropped; False if that takes longer."""
    done = threading.Event()
    with contextlib.suppress(queue.Full):
        _waiting.put_nowait((None, None, done))
    return done.wait(seconds)


def _send(waiting: queue.Queue) -> None:
    from kafka import KafkaProducer

    from helpers.kafka import diagnosis

    producer = None
    while True:
        key, value, done = waiting.get()
        if key is None:
            done.set()
            continue
        with contextlib.suppress(Exception):  # the class must not suffer from the board
            if producer is None:
                producer = KafkaProducer(
                    **diagnosis.security(),
                    bootstrap_servers=[str(address) for address in diagnosis.addresses()],
                    max_block_ms=5000,
                    delivery_timeout_ms=10_000,
                    request_timeout_ms=5000,
                )
            producer.send(topic(), json.dumps(value).encode(), key=key.encode()).get(10)
            done.set()
