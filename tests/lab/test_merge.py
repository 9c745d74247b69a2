"""Notebooks that can be reviewed and merged: a small change is a small difference, and branches merge as text."""

import shutil
import subprocess

import pytest

from helpers.paths import COURSE
from tools import execute, new_question
from tools.lessons import LESSONS, read

pytestmark = pytest.mark.full

LESSON = LESSONS[1]  # lesson 02, whose pictures are the largest


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of the course with the notebooks as they are here, and the tools working in it."""
    target = tmp_path / "course"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{COURSE}", target], check=True)
    for name in ("notebooks", "exercises", "tests", "tools", ".gitattributes"):
        source = COURSE / name
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    git(target, "config", "user.name", "A learner")
    git(target, "config", "user.email", "learner@course.example")
    git(target, "add", "-A")
    git(target, "commit", "-q", "--allow-empty", "-m", "as it is here")
    for name, value in (
        ("COURSE", target),
        ("NOTEBOOKS", target / "notebooks"),
        ("lessons", lambda: sorted((target / "notebooks").glob("*.ipynb"))),
    ):
        monkeypatch.setattr(new_question, name, value)
    return target


def git(folder, *words) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_two_words_are_a_small_difference_and_merge_with_a_new_question(clone):
    path = clone / "notebooks" / LESSON.name
    before = git(clone, "rev-parse", "HEAD").strip()

    git(clone, "switch", "-q", "-c", "words")
    text = path.read_text()
    assert text.count("consumer group") > 0
    path.write_text(text.replace("**Question 1.** ", "**Question 1.** Two words. ", 1))
    execute.execute(path)
    git(clone, "commit", "-qam", "two words")
    difference = git(clone, "diff", "--no-ext-diff", before, "HEAD")
    assert len(difference.encode()) < 2000, difference[:3000]

    git(clone, "switch", "-q", "-c", "question", before)
    new_question.write_code("02", "q4")
    new_question.write_cells(path, "q4", "def answer(connection, topic):\n    ...\n")
    git(clone, "commit", "-qam", "a question")

    git(clone, "merge", "-q", "--no-edit", "words")
    assert "Two words." in path.read_text() and "q4.check()" in [cell.source for cell in read(path).cells]
