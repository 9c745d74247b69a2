"""The teacher's board: who has answered what, who is stuck, who asks for help.

It is three of the course's patterns at once. Every learner publishes to a topic of their own and the board subscribes
to all of them (02); what is shown is computed from the topics' records, and is the same after a restart (04); and it is
a read model, made for one question, beside those who write (05).
"""

import contextlib
import csv
import io
import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from classroom import server
from classroom.folder import Folder
from classroom.learners import BOARD
from exercises.frame.board_client import LONGEST
from helpers.errors import LabError
from helpers.files import write_whole
from helpers.waiting import wait_until

STUCK = 3  # tries without success
SLOW = 600  # seconds since the last try that was not right
PAGE = Path(__file__).with_name("board.html")
MARKS = {"": "·", "right": "✓", "not right": "✗"}


@dataclass
class Cell:
    """What is known of one learner and one question.

    Attributes:
        state: of the last check: "", "right" or "not right".
        tries: checks since the last one that was right.
        at: when that was, in seconds, by the broker's clock.
        words, code: of a call for help that is open.
    """

    state: str = ""
    tries: int = 0
    at: float = 0
    words: str = ""
    code: str = ""


@dataclass
class Model:
    """The read model.

    Attributes:
        questions: the names of each lesson's questions, by the name of the lesson ("lesson_01").
        learners: who is in the class.
        names: real names of learners, where they are known.
        dismissed: when what the teacher has dismissed was said; what is said later is shown again.
    """

    questions: dict[str, list[str]]
    learners: list[str] = field(default_factory=list)
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    dismissed: dict[str, float] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def apply(self, topic: str, key: bytes | None, value: bytes | None, at: float) -> None:
        """Take one record in. Who wrote it is told by the topic, where nobody else may write, not by its content.

        What is not of the form that `exercises.frame.board_client` writes is left out: a learner may write anything.
        """
        learner = topic.removesuffix(f".{BOARD}")
        found = re.fullmatch(r"(lesson_\d\d)/(q\d+)(/help)?", (key or b"").decode(errors="replace"))
        if learner not in self.learners or not found or found[2] not in self.questions.get(found[1], ()):
            return
        try:
            said = json.loads(value or b"{}")
            words, code, state = (_printable(str(said.get(name, ""))[:LONGEST]) for name in ("words", "code", "state"))
        except (ValueError, AttributeError, RecursionError):  # the last: [[[[… goes deeper than json can
            return
        cell = self.cells.setdefault((learner, found[1], found[2]), Cell())
        if found[3]:
            cell.words, cell.code, cell.at = words or "Help, please.", code, at
        elif state == "right":
            cell.state, cell.tries, cell.at, cell.words, cell.code = state, 0, at, "", ""
        elif state == "not right":
            cell.state, cell.tries, cell.at = state, cell.tries + 1, at

    def keep(self, learners: list[str]) -> None:
        """Take over who is in the class: of one who has left, nothing is kept for the next one of that name."""
        if learners != self.learners:
            self.learners = learners
            self.cells = {place: cell for place, cell in self.cells.items() if place[0] in learners}

    def shown(self, now: float) -> dict:
        """What the page and the text show."""
        columns = [(lesson, question) for lesson, names in sorted(self.questions.items()) for question in names]
        rows = []
        for learner in sorted(self.learners):
            cells = [self.cells.get((learner, *column), Cell()) for column in columns]
            rows.append(
                {
                    "learner": learner,
                    "name": self.names.get(learner, learner),
                    "right": sum(cell.state == "right" for cell in cells),
                    "cells": [
                        {"state": cell.state, "tries": cell.tries, "help": bool(cell.words or cell.code)}
                        for cell in cells
                    ],
                }
            )
        trouble = [
            {
                "learner": learner,
                "name": self.names.get(learner, learner),
                "where": f"{lesson.removeprefix('lesson_')} {question}",
                "what": cell.words or f"{cell.tries} tries",
                "help": bool(cell.words or cell.code),
                "code": cell.code,
                "minutes": max(0, int((now - cell.at) / 60)),
            }
            for (learner, lesson, question), cell in list(self.cells.items())  # another thread may be adding some
            if learner in self.learners
            and _in_trouble(cell, now)
            and cell.at > self.dismissed.get(f"{learner} {lesson} {question}", 0)
        ]
        trouble.sort(key=lambda entry: (not entry["help"], -entry["minutes"]))
        names = [f"{lesson.removeprefix('lesson_')} {question}" for lesson, question in columns]
        sums = [sum(row["cells"][i]["state"] == "right" for row in rows) for i in range(len(columns))]
        return {"columns": names, "rows": rows, "sums": sums, "trouble": trouble}


def _printable(text: str) -> str:
    """Without what a terminal would take for a command."""
    return "".join(sign for sign in text if sign.isprintable() or sign in "\n\t")


def _in_trouble(cell: Cell, now: float) -> bool:
    if cell.words or cell.code:
        return True
    return cell.state == "not right" and (cell.tries >= STUCK or now - cell.at > SLOW)


def as_csv(shown: dict) -> str:
    """The board as a table for a spreadsheet: a line a learner, of each question what a mark stands for, or nothing."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["learner", "name", *shown["columns"]])
    for row in shown["rows"]:
        name = "'" * row["name"].startswith(("=", "+", "-", "@")) + row["name"]  # no formula
        lines.writerow([row["learner"], name, *("help" if cell["help"] else cell["state"] for cell in row["cells"])])
    lines.writerow(["right", "", *shown["sums"]])
    return out.getvalue()


def as_text(shown: dict) -> str:
    """The board in plain text: a line a learner, a group of marks a lesson."""
    lessons: dict[str, list[int]] = {}
    for index, name in enumerate(shown["columns"]):
        lessons.setdefault(name.split()[0], []).append(index)
    wide = max([7, *(len(row["learner"]) for row in shown["rows"])])
    heads = {lesson: max(len(lesson), len(places)) for lesson, places in lessons.items()}
    lines = [f"{'Learner':<{wide}}  Right  " + "  ".join(f"{name:<{width}}" for name, width in heads.items())]
    for row in shown["rows"]:
        marks = ("".join(_mark(row["cells"][i]) for i in places).ljust(heads[name]) for name, places in lessons.items())
        lines.append(f"{row['learner']:<{wide}}  {row['right']:>5}  " + "  ".join(marks))
    lines.append("✓ right   ✗ not right yet   ? asks for help   · not tried")
    for entry in shown["trouble"]:
        what = " ".join(entry["what"].split())  # a line of theirs must not look like one of the board's
        lines.append(f"\n{entry['learner']}, {entry['where']}, for {entry['minutes']} min: {what}")
        lines += [f"    {line}" for line in entry["code"].splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def _mark(cell: dict) -> str:
    return "?" if cell["help"] else MARKS[cell["state"]]


class Reader:
    """Reads all learners' topics from the beginning and keeps a model up to date; `step` is called again and again."""

    def __init__(self, folder: Folder, questions: dict[str, list[str]]):
        self._folder = folder
        self._ports: list[int] | None = None
        self._consumer: KafkaConsumer | None = None
        self.model = Model(questions)
        self._dismissed = folder.path / "dismissed.json"
        with contextlib.suppress(OSError, ValueError):
            self.model.dismissed = json.loads(self._dismissed.read_text())
        self._connect()

    def dismiss(self, learner: str, lesson: str, question: str) -> None:
        """Show what a learner said so far of a question no longer as a trouble; another `board` does not, either."""
        if cell := self.model.cells.get((learner, lesson, question)):
            self.model.dismissed[f"{learner} {lesson} {question}"] = cell.at
            write_whole(self._dismissed, json.dumps(self.model.dismissed).encode(), 0o600)

    def _connect(self) -> None:
        """Be connected to the brokers that run now: a `serve` that starts again has other ports.

        Raises:
            LabError: the class is not being served.
        """
        ports = self._folder.running()["ports"]
        if ports == self._ports:
            return
        self.close()
        self._ports = None
        self._consumer = server.connect(
            self._folder, self._folder.room(), ports, KafkaConsumer, group_id=None, auto_offset_reset="earliest"
        )
        self._ports = ports
        self.model.cells = {}  # all is read again, and tries would count twice

    def step(self, milliseconds: int = 500) -> None:
        """Read what has come; learners who were added or taken out are noticed, and another start of `serve`.

        Raises:
            LabError: the class is not being served.
        """
        self._connect()
        room = self._folder.room()
        self.model.keep(list(room.learners))
        self.model.names = room.names
        wanted = {TopicPartition(f"{name}.{BOARD}", 0) for name in self.model.learners}
        before = self._consumer.assignment()
        if wanted - before:  # one whose topic is not there has nothing to read
            wanted &= before | self._there()
        if wanted != before:
            at = {part: self._position(part) for part in before & wanted}
            self._consumer.assign(sorted(wanted))
            for part in wanted:
                if at.get(part) is not None:
                    self._consumer.seek(part, at[part])
                else:
                    self._consumer.seek_to_beginning(part)
        if not wanted:
            time.sleep(milliseconds / 1000)
            return
        for records in self._consumer.poll(timeout_ms=milliseconds).values():
            for record in records:
                self.model.apply(record.topic, record.key, record.value, record.timestamp / 1000)

    def catch_up(self, seconds: float = 30) -> None:
        """Read all that is there now.

        Raises:
            TimeoutError: it takes longer.
        """
        self.step(0)
        parts = self._consumer.assignment() & self._there()  # the end of one that is not there would be waited for
        ends = self._consumer.end_offsets(list(parts)) if parts else {}

        def is_read():
            return all((self._position(part) or 0) >= end for part, end in ends.items()) or self.step(200)

        wait_until(is_read, "the board's topics to be read", seconds)

    def _there(self) -> set[TopicPartition]:
        return {TopicPartition(topic, 0) for topic in self._consumer.topics()}

    def _position(self, part: TopicPartition) -> int | None:
        """Where it is read; None if that is not known yet."""
        with contextlib.suppress(kafka_errors.KafkaTimeoutError):
            return self._consumer.position(part, timeout_ms=1000)
        return None

    def close(self) -> None:
        """End the consumer."""
        if self._consumer:
            self._consumer.close()


class Live:
    """A `Reader` in a thread of its own, and the last state for those who ask."""

    def __init__(self, reader: Reader):
        self._reader, self._ended = reader, threading.Event()
        self.failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def dismiss(self, learner: str, where: str) -> None:
        """The teacher has seen to what is shown of a learner at a place ("01 q1")."""
        lesson, _, question = where.partition(" ")
        self._reader.dismiss(learner, f"lesson_{lesson}", question)

    def state(self) -> dict:
        """What is shown now."""
        return self._reader.model.shown(time.time()) | {"failure": self.failure}

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._reader.step()
                self.failure = ""
            except Exception as error:  # any: the page would go on showing the last state as if it were today's
                if isinstance(error, LabError):
                    self.failure = str(error)
                elif isinstance(error, kafka_errors.KafkaError | OSError | RuntimeError):
                    self.failure = f"The class's brokers do not answer ({type(error).__name__})."
                else:
                    self.failure = f"This was not foreseen, and is tried again: {error!r}. Please report it."
                self._ended.wait(1)

    def close(self) -> None:
        """End the thread and the consumer."""
        self._ended.set()
        self._thread.join(10)
        self._reader.close()


def application(live, port: int, token: str):
    """The page and its state, for who knows the token and sits at this machine: it has other users, and other pages in
    the browser; another host name is refused, so that no page of elsewhere can have a name of its own point here."""
    import tornado.web

    class Local(tornado.web.RequestHandler):
        def prepare(self):
            if self.request.host not in (f"localhost:{port}", f"127.0.0.1:{port}"):
                raise tornado.web.HTTPError(403)
            if not secrets.compare_digest(self.path_args[0].encode(), token.encode()):
                raise tornado.web.HTTPError(403)
            self.set_header("Referrer-Policy", "no-referrer")
            self.set_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
            self.set_header("Cache-Control", "no-store")

    class Page(Local):
        def get(self, _token):
            self.finish(PAGE.read_text())

    class State(Local):
        def get(self, _token):
            self.finish(live.state())

    class Dismiss(Local):
        def check_xsrf_cookie(self):
            """The token is in the address, which no other page knows."""

        def post(self, _token):
            live.dismiss(*map(str, json.loads(self.request.body)))

    token_of = r"/([\w-]+)/"
    return tornado.web.Application(
        [(token_of, Page), (f"{token_of}state", State), (f"{token_of}dismiss", Dismiss), (r"/(.*)", Local)]
    )


def serve_page(live, port: int, token: str) -> None:
    """Serve the page on the loopback address until an interrupt."""
    import asyncio

    async def run():
        application(live, port, token).listen(port, address="127.0.0.1")
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())
