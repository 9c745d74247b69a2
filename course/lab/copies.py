"""The learner's own copies of the lessons: made, brought to a new version, reset. Nothing that a learner wrote is lost.

What a learner wrote is told from what came with the course by a record of each copy as it was made, without outputs, in
the hidden folder `.course` of the learner's folder. A file of the learner's is replaced only after the old one stands
under another name in the folder `earlier`, and only in one step: whoever breaks off in between finds either the old one
or the new one, never half of one, and the next start goes on.
"""

import contextlib
import copy
import datetime
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from helpers.errors import LabError
from helpers.files import write_whole

RECORDS, EARLIER = ".course", "earlier"


@dataclass
class Carried:
    """What became of a learner's copy when its lesson had a new version."""

    lesson: str
    answers: list[str] = field(default_factory=list)  #: questions whose answers are in the new copy
    homeless: list[str] = field(default_factory=list)  #: questions that the new version has no more
    kept: Path | None = None  #: the old copy; None where the learner had not even run it
    broken: str = ""  #: why the copy could not be read; it stays as it is

    def __str__(self):
        if self.broken:
            return (
                f"{self.lesson} cannot be read ({self.broken}) and stays as it is: `python -m helpers reset "
                f"{self.lesson[:2]}` keeps it under another name and gives you a fresh copy."
            )
        said = f"{self.lesson} has a new version"
        if self.answers:
            said += f", with your answers to {', '.join(self.answers)} in it"
        if self.homeless:
            said += f"; it has no {', '.join(self.homeless)} any more"
        return f"{said}. " + (f"Your old copy is {EARLIER}/{self.kept.name}." if self.kept else "You had not used it.")


def copy_lessons(notebooks: Path, folder: Path) -> tuple[list[Path], list[Carried]]:
    """Copy the lessons that a folder lacks into it, and bring copies of older versions to the new one.

    Returns:
        The copies that were made now, and what became of those whose lesson has a new version or cannot be read.

    Raises:
        LabError: there are no lessons, or the folder cannot be written.
    """
    lessons = sorted(notebooks.glob("*.ipynb"))
    if not lessons:
        raise LabError(
            f"There are no lessons in {notebooks}: install the course in a clone, pip install -r requirements.txt."
        )
    made, carried = [], []
    with _writing(folder):
        for lesson in lessons:
            mine = folder / lesson.name
            if not os.path.lexists(mine):
                write_whole(mine, lesson.read_bytes())
                _record(folder, lesson.name, lesson.read_bytes(), lesson.read_bytes())
                made.append(mine)
            elif mine.is_file() and not mine.is_symlink():  # what else it may be, it is not ours
                carried += [each for each in [_carry_over(lesson, mine)] if each]
    return made, carried


def reset(lesson: Path, folder: Path, with_answers: bool = False) -> tuple[Path | None, Path | None]:
    """Give the learner a fresh copy of a lesson; the old one and a file of their answers go to the folder `earlier`.

    Args:
        lesson: the course's notebook.
        folder: the learner's folder.
        with_answers: put the answers into the fresh copy as well.

    Returns:
        The old copy and the file of answers, where there were any.

    Raises:
        LabError: the folder cannot be written.
    """
    mine, fresh = folder / lesson.name, lesson.read_bytes()
    kept = listed = None
    with _writing(folder):
        base = _recorded(folder, lesson.name)
        if os.path.lexists(mine):
            old = mine.read_bytes() if mine.is_file() else b""
            with contextlib.suppress(Unreadable):
                notebook, new = parse(old), parse(fresh)
                answers = answers_in(notebook, base or new, new)
                if answers:
                    text = f'"""{lesson.stem}: my answers until {_today()}."""\n'
                    text += "".join(f"\n\n# %% {name}\n\n{answer}\n" for name, answer in answers.items())
                    listed = _keep(folder, f"{lesson.stem}-answers", ".py", text.encode(errors="backslashreplace"))
                if answers and with_answers:
                    merged, _ = merge(notebook, base or new, new, own_cells=False)
                    fresh = _written(merged)
            if mine.is_file():
                kept = _keep(folder, f"{lesson.stem}-reset", ".ipynb", old)
            else:  # a dangling link, a folder: moved as it is
                kept = _free_name(folder, f"{lesson.stem}-reset", "")
                mine.rename(kept)
        write_whole(mine, fresh)
        _record(folder, lesson.name, lesson.read_bytes(), fresh)
    return kept, listed


# -- a new version ---------------------------------------------------------------------------------------------------


class Unreadable(Exception):
    """A file is no notebook; the message says why."""


def parse(data: bytes) -> dict:
    """A notebook from its file's bytes; each cell's source is one text.

    Raises:
        Unreadable: it is none.
    """
    try:
        notebook = json.loads(data)
    except ValueError as error:
        raise Unreadable("it is no JSON" if data.strip() else "it is empty") from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and "source" in cell for cell in cells):
        raise Unreadable("it is no notebook")
    for cell in cells:
        source = cell["source"]
        if not isinstance(source, (str, list)) or not isinstance(cell.get("id"), (str, type(None))):
            raise Unreadable("it is no notebook")
        cell["source"] = source if isinstance(source, str) else "".join(map(str, source))
    return notebook


def answers_in(notebook: dict, *versions: dict) -> dict[str, str]:
    """The learner's answers by question: the cells with a question's tag, where they are no starter of any version.

    A cell that was split or copied keeps its tag: then all its parts are the answer. One that lost its tag is found by
    its id.
    """
    mine = _by_question(notebook)
    by_id = {cell.get("id"): cell for cell in notebook["cells"] if cell.get("id")}
    starters: dict[str, set[str]] = {}
    for version in versions:
        for question, cells in _by_question(version).items():
            starters.setdefault(question, {""}).update(cell["source"].strip() for cell in cells)
            if question not in mine and by_id.get(cells[0].get("id")):
                mine[question] = [by_id[cells[0]["id"]]]
        for question, earlier in _starters(version).items():
            starters.setdefault(question, {""}).update(earlier)
    answers = {}
    for question, cells in mine.items():
        known = starters.get(question, {""})
        if parts := [cell["source"].strip("\n") for cell in cells if cell["source"].strip() not in known]:
            answers[question] = "\n\n\n".join(parts)
    return answers


def merge(mine: dict, base: dict, new: dict, own_cells: bool = True) -> tuple[dict, list[str]]:
    """The new version of a lesson with the learner's answers and own cells in it.

    Args:
        mine: the learner's copy.
        base: the lesson as it was when the copy was made.
        new: the lesson as it is now.
        own_cells: carry over the cells that the learner has added, each behind the cell that it stood behind.

    Returns:
        The notebook, and the questions whose answers have no place in it.
    """
    merged = copy.deepcopy(new)
    answers, starters, places = answers_in(mine, base, new), _by_question(base), _by_question(merged)
    for question, answer in answers.items():
        if question not in places:
            continue
        cell = places[question][0]
        starter = cell["source"]
        cell.update(cell_type="code", source=answer, outputs=[], execution_count=None)
        for check in _tagged(merged, f"check-{question}"):  # its stored output says 'not started'
            check.update(outputs=[], execution_count=None)
        if starter.strip() not in {each["source"].strip() for each in starters.get(question, [])}:
            note = _note(question, starter)
            if note["id"] not in {each.get("id") for each in mine["cells"]}:
                merged["cells"].insert(merged["cells"].index(cell) + 1, note)
    if own_cells:
        _add_own_cells(mine, base, merged)
    return merged, [question for question in answers if question not in places]


def _add_own_cells(mine: dict, base: dict, merged: dict) -> None:
    """Put the learner's own cells into the new version, each behind the nearest cell before it that is still there."""
    known = {cell.get("id") for cell in base["cells"]} | {cell.get("id") for cell in merged["cells"]}
    questions = {id(cell) for cells in _by_question(mine).values() for cell in cells}
    before = None  # the cell of `merged` that the next own one goes behind
    by_id = {cell["id"]: cell for cell in merged["cells"] if cell.get("id")}
    for cell in mine["cells"]:
        if cell.get("id") in known:
            before = by_id.get(cell["id"], before)
        elif cell.get("id") and id(cell) not in questions and cell["source"].strip():
            own = copy.deepcopy(cell)
            place = next((i + 1 for i, each in enumerate(merged["cells"]) if each is before), 0)
            merged["cells"].insert(place, own)
            before = own


def _note(question: str, starter: str) -> dict:
    """A cell that says that a question has changed under its answer."""
    text = (
        f"*Question {question.removeprefix('q')} has changed with the new version of this lesson. The cell above holds "
        f"your answer to the old one; the new one begins with:*\n\n```python\n{starter}\n```"
    )
    name = hashlib.sha256(starter.encode()).hexdigest()[:8]
    return {"cell_type": "markdown", "id": f"changed-{question}-{name}", "metadata": {}, "source": text}


def _carry_over(lesson: Path, mine: Path) -> Carried | None:
    """Bring a copy to the lesson's version; None where there is nothing to do."""
    folder = mine.parent
    try:
        new = parse(lesson.read_bytes())
    except Unreadable:  # the course's own file is damaged: no reason to touch the learner's
        return None
    base = _recorded(folder, lesson.name)
    while True:
        old = mine.read_bytes()
        try:
            notebook = parse(old)
        except Unreadable as error:
            return Carried(lesson.stem, broken=str(error))
        if base and _same(base, new):
            return None
        # As it was made, and made without answers in it: those of an earlier copy are the learner's all the same.
        as_made = bool(base) and base["metadata"].get("sha256") == hashlib.sha256(old).hexdigest()
        untouched = as_made and _same(notebook, base)
        if not base and _same(notebook, new, but_answers=True):  # a copy without a record, of this version
            _record(folder, lesson.name, lesson.read_bytes(), old)
            return None
        # Without a record own cells cannot be told from those of the old version.
        merged, homeless = merge(notebook, base or new, new, own_cells=bool(base))
        if _same(notebook, merged):  # it was done before, and broken off before it was recorded
            _record(folder, lesson.name, lesson.read_bytes(), old)
            return None
        if untouched:
            kept, data = None, lesson.read_bytes()
        else:
            kept, data = _keep(folder, f"{lesson.stem}-until", ".ipynb", old), _written(merged)
        if mine.read_bytes() == old:  # JupyterLab may have saved it in this moment: then once more
            write_whole(mine, data)
            _record(folder, lesson.name, lesson.read_bytes(), data)
            answers = answers_in(notebook, base or new, new)
            placed = [question for question in answers if question not in homeless]
            return Carried(lesson.stem, placed, homeless, kept)


def _by_question(notebook: dict) -> dict[str, list[dict]]:
    """The cells of each question, by its name."""
    found: dict[str, list[dict]] = {}
    for cell in notebook["cells"]:
        for tag in _tags(cell):
            if match := re.fullmatch(r"question-(\w+)", str(tag)):
                found.setdefault(match[1], []).append(cell)
    return found


def _tagged(notebook: dict, tag: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if tag in _tags(cell)]


def _tags(cell: dict) -> list:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tags if isinstance(tags, list) else []


def _same(one: dict, other: dict, but_answers: bool = False) -> bool:
    """Do two notebooks say the same? Outputs do not count, nor do the answers if `but_answers`."""

    def told(notebook):
        answers = [id(cell) for cells in _by_question(notebook).values() for cell in cells] if but_answers else []
        return [
            (cell.get("cell_type"), "" if id(cell) in answers else cell["source"].strip(), _tags(cell))
            for cell in notebook["cells"]
        ]

    return told(one) == told(other)


# -- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(folder: Path):
    """One command at a time writes there; what the system refuses becomes a sentence."""
    try:
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / RECORDS / "lock", timeout=60):
            yield
    except OSError as error:  # filelock's Timeout is one too
        reason = error.strerror or "another `python -m helpers` is at work there"
        raise LabError(
            f"Your lessons could not be copied to {folder} ({reason}): choose another folder with --dir."
        ) from error


def _written(notebook: dict) -> bytes:
    """A notebook's bytes, laid out as Jupyter does."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:  # half a character, as a broken paste leaves it: only JSON's own escapes can hold it
        return (json.dumps(notebook, indent=1) + "\n").encode()


def _keep(folder: Path, name: str, suffix: str, data: bytes) -> Path:
    """Write data to a file in `earlier` that is named after today; one that holds the same already will do."""
    for path in sorted((folder / EARLIER).glob(f"{name}-*{suffix}")):
        if path.is_file() and path.read_bytes() == data:
            return path
    path = _free_name(folder, name, suffix)  # and it stays free: the lock keeps others away
    write_whole(path, data)
    return path


def _free_name(folder: Path, name: str, suffix: str) -> Path:
    """A name in `earlier` that nobody has."""
    (folder / EARLIER).mkdir(exist_ok=True)
    number, path = 1, folder / EARLIER / f"{name}-{_today()}{suffix}"
    while os.path.lexists(path):
        number += 1
        path = path.with_name(f"{name}-{_today()}-{number}{suffix}")
    return path


def _today() -> str:
    return datetime.date.today().isoformat()


def _starters(record: dict) -> dict[str, list[str]]:
    """The questions' starters in this and earlier versions, as a record keeps them."""
    kept = record["metadata"].get("starters") if isinstance(record.get("metadata"), dict) else None
    kept = kept if isinstance(kept, dict) else {}
    return {question: [*map(str, texts)] for question, texts in kept.items() if isinstance(texts, list)}


def _record(folder: Path, name: str, lesson: bytes, copied: bytes) -> None:
    """Remember the version of a copy, without its outputs, and what the copy's bytes were.

    Starters of earlier versions are remembered too: a JupyterLab that was open meanwhile may put an older copy back.
    """
    try:
        notebook = parse(lesson)
    except Unreadable:
        return
    cells = [{k: cell[k] for k in ("cell_type", "id", "metadata", "source") if k in cell} for cell in notebook["cells"]]
    starters = {question: set(texts) for question, texts in _starters(_recorded(folder, name) or {}).items()}
    for question, found in _by_question(notebook).items():
        starters.setdefault(question, set()).update(cell["source"].strip() for cell in found)
    metadata = {
        "sha256": hashlib.sha256(copied).hexdigest(),
        "starters": {question: sorted(texts) for question, texts in starters.items()},
    }
    record = {"metadata": metadata, "cells": cells}
    write_whole(folder / RECORDS / name, _written(record))


def _recorded(folder: Path, name: str) -> dict | None:
    """The lesson as it was when the copy was made; None where no record can be read."""
    try:
        record = parse((folder / RECORDS / name).read_bytes())
    except (OSError, Unreadable):
        return None
    return record if isinstance(record.get("metadata"), dict) else None
