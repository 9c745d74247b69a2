"""Which questions a learner has answered, kept on disk: `.progress.jsonl` in the folder of their own lessons.

It lies with the answers, not in the user's data folder, so that it is copied and mounted with them, and two folders of
lessons are two learners. It is itself a log: a line of JSON is appended for each answer that was judged, and nothing is
ever changed in it. So two kernels at once do not overwrite each other, a kernel that is killed leaves half a line at
most, and of a damaged file all other lines still count. What is the case is computed by reading it (lesson 04).

Nothing is kept where nobody sits before the notebook: nbval, papermill and tests leave no trace.
"""

import contextlib
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import settings
from helpers.notebook import somebody_is_watching

FILE = ".progress.jsonl"

#: Why the last answer could not be kept, or "".
failure = ""


@dataclass(frozen=True)
class Tally:
    """What is known of one question: how often an answer was judged, and whether one of them was right."""

    tries: int = 0
    right: bool = False


def observe(lesson: str, question: str, state: str) -> None:
    """Keep the outcome of a check, if a person asked for it and an answer was judged. An observer of questions."""
    global failure
    if state == "not started" or not somebody_is_watching():
        return
    try:
        append(
            settings.work_folder() / FILE,
            {"time": int(time.time()), "lesson": lesson, "question": question, "state": state},
        )
        failure = ""
    except OSError as error:
        failure = f"{settings.work_folder() / FILE} could not be written ({error.strerror})"


def append(path: Path, event: dict) -> None:
    """Append one line, in one write; half a line that somebody left is ended first, so that it harms no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(event).encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: an appended line is hardly ever torn
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(file).st_size
        torn = size and os.pread(file, 1, size - 1) != b"\n"
        written = os.write(file, b"\n" * bool(torn) + line)
        if written < len(line):
            raise OSError(28, "the disk is full")
    finally:
        os.close(file)


def read(path: Path) -> tuple[dict[tuple[str, str], Tally], int]:
    """The tally of each (lesson, question) that the file tells of, and how many of its lines cannot be read.

    Raises:
        OSError: there is a file, and it cannot be opened.
    """
    tallies: dict[tuple[str, str], Tally] = {}
    damaged = 0
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, 0
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            place, state = (str(event["lesson"]), str(event["question"])), event["state"]
        except (ValueError, KeyError, TypeError):
            damaged += 1
            continue
        before = tallies.get(place, Tally())
        tallies[place] = Tally(before.tries + 1, before.right or state == "right")
    return tallies, damaged


def of_lesson(lesson: str, questions: list[str]) -> tuple[str, str]:
    """How far the learner is with a lesson: a sentence, and what is in the way of keeping it ("" if nothing is).

    Without a person before the notebook nothing is looked up: the same sentence in each headless run.
    """
    tallies, trouble = {}, failure
    if somebody_is_watching():
        try:
            tallies, _ = read(settings.work_folder() / FILE)
        except OSError as error:
            trouble = f"{settings.work_folder() / FILE} could not be read ({error.strerror})"
    found = {name: tallies.get((lesson, name), Tally()) for name in questions}
    right = [name for name, tally in found.items() if tally.right]
    tried = [name for name, tally in found.items() if tally.tries and not tally.right]
    said = f"Lesson {lesson.removeprefix('lesson_')}: {len(right)} of {len(questions)} questions right"
    said += f" ({', '.join(right)})" if right else ""
    return said + (f", {', '.join(tried)} tried" if tried else ""), trouble


def table(lessons: dict[str, list[str]], tallies: dict[tuple[str, str], Tally]) -> str:
    """All lessons and their questions as plain text.

    Args:
        lessons: the names of each lesson's questions, by the name of the lesson's notebook ("01_producer_consumer").
        tallies: as `read` gives them.
    """
    rows: list[tuple] = []
    for name, questions in lessons.items():
        found = [tallies.get((f"lesson_{name[:2]}", question), Tally()) for question in questions]
        marks = "  ".join(f"{q} {_word(tally)}" for q, tally in zip(questions, found, strict=True))
        rows.append((name, len(found), sum(bool(t.tries) for t in found), sum(t.right for t in found), marks))
    rows.append(("all lessons", *(sum(row[column] for row in rows) for column in (1, 2, 3)), ""))
    wide = max(len(row[0]) for row in rows)
    lines = [f"{'Lesson':<{wide}}  Asked  Tried  Right"]
    lines += [f"{row[0]:<{wide}}  {row[1]:>5}  {row[2]:>5}  {row[3]:>5}  {row[4]}".rstrip() for row in rows]
    return "\n".join(lines)


def _word(tally: Tally) -> str:
    if tally.right:
        return "right"
    return f"tried {tally.tries}x" if tally.tries else "-"
