"""Learners' copies of the lessons: brought to a new version, reset, and never lost, whatever they have done to them."""

import copy
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course import cli
from course.lab import copies
from helpers.errors import LabError
from tools.lessons import LESSONS, read, tagged

NAME = "01_first.ipynb"


def cell(name, source, *tags, kind="code"):
    extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": name, "metadata": {"tags": list(tags)}, "source": source} | extra


def starter(question, version=1):
    return f"def answer_{question}():\n    ...  # version {version}"


def lesson(version=1, questions=("q1", "q2"), starters=1):
    """A lesson with some cells and questions; each version has other words."""
    cells = [cell("title", f"# Version {version}", kind="markdown"), cell("run", "print('a cell')")]
    for question in questions:
        cells.append(cell(f"ask-{question}", f"**Question** {question}", kind="markdown"))
        cells.append(cell(f"cell-{question}", starter(question, starters), f"question-{question}"))
        check = cell(f"check-{question}", f"{question}.check()", f"check-{question}")
        check["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "not started yet"}]
        cells.append(check)
    return {"cells": [*cells, cell("stop", "cluster.stop()")], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def write(path, notebook):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))


def load(path):
    return copies.parse(path.read_bytes())


def sources(path):
    return {each["id"]: each["source"] for each in load(path)["cells"]}


class Course:
    """A course with one lesson, and the learner's folder."""

    def __init__(self, folder):
        self.notebooks, self.work = folder / "notebooks", folder / "work"
        self.mine = self.work / NAME

    def publish(self, notebook):
        write(self.notebooks / NAME, notebook)
        return self

    def lab(self):
        return copies.copy_lessons(self.notebooks, self.work)

    def edit(self, **changed):
        """The learner gives cells (ids with _ for -) another text, and saves."""
        notebook = load(self.mine)
        for each in notebook["cells"]:
            if (name := each["id"].replace("-", "_")) in changed:
                each["source"] = changed[name]
        write(self.mine, notebook)

    def save(self, change):
        """The learner changes the list of cells, and saves."""
        notebook = load(self.mine)
        change(notebook["cells"])
        write(self.mine, notebook)

    def earlier(self):
        return sorted(path.name for path in (self.work / copies.EARLIER).glob("*"))


@pytest.fixture
def course(tmp_path):
    course = Course(tmp_path).publish(lesson())
    course.lab()
    return course


def today(name):
    return name.format(copies._today())


# -- a new version --


def test_without_a_new_version_nothing_is_touched(course):
    course.edit(cell_q1="def answer_q1(): return 1", run="print('mine')")
    before = course.mine.read_bytes()
    course.publish(lesson() | {"metadata": {"language_info": {}}})  # and other outputs, which say nothing new
    assert course.lab() == ([], [])
    assert course.mine.read_bytes() == before and not course.earlier()


def test_answers_are_carried_into_a_new_version_and_the_old_copy_is_kept(course):
    course.edit(cell_q1="def answer_q1(): return 1\n")
    before = course.mine.read_bytes()
    course.publish(lesson(2))
    made, (carried,) = course.lab()
    now = sources(course.mine)
    assert now["title"] == "# Version 2" and now["cell-q1"] == "def answer_q1(): return 1"
    assert now["cell-q2"] == starter("q2")
    outputs = {each["id"]: each.get("outputs") for each in load(course.mine)["cells"]}
    assert outputs["check-q1"] == [] and outputs["check-q2"], "the stored 'not started' beside an answer"
    assert course.earlier() == [today("01_first-until-{}.ipynb")]
    assert (course.work / copies.EARLIER / course.earlier()[0]).read_bytes() == before
    assert not made and str(carried) == (
        f"01_first has a new version, with your answers to q1 in it. Your old copy is earlier/{course.earlier()[0]}."
    )
    assert course.lab() == ([], [])
    assert course.earlier() == [today("01_first-until-{}.ipynb")]


def test_a_copy_that_was_never_used_is_replaced_and_nothing_is_kept(course):
    course.publish(lesson(2))
    _, (carried,) = course.lab()
    assert course.mine.read_bytes() == (course.notebooks / NAME).read_bytes() and not course.earlier()
    assert str(carried) == "01_first has a new version. You had not used it."


def test_a_copy_that_was_only_run_is_kept_too(course):
    notebook = load(course.mine)
    notebook["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "a cell\n"}]
    write(course.mine, notebook)
    course.publish(lesson(2))
    course.lab()
    assert course.earlier() == [today("01_first-until-{}.ipynb")]


def test_several_new_versions_on_one_day_keep_all_old_copies(course):
    for version in (2, 3, 4):
        course.edit(cell_q1=f"answer = {version}")
        course.publish(lesson(version))
        course.lab()
    names = ("01_first-until-{}-2.ipynb", "01_first-until-{}-3.ipynb", "01_first-until-{}.ipynb")
    assert course.earlier() == sorted(map(today, names))
    assert sources(course.mine)["cell-q1"] == "answer = 4"


@pytest.mark.parametrize("how", ["by lab", "by a reset", "from elsewhere"])
def test_answers_in_a_copy_that_is_not_opened_again_are_carried_on(course, how):
    course.edit(cell_q1="my answer")
    if how == "by lab":
        course.publish(lesson(2))
        course.lab()
    elif how == "by a reset":
        assert reset(course, "1", "--with-answers").exit_code == 0
    else:  # from another machine, or its record is damaged: it is taken in with the answers that are in it
        (course.work / copies.RECORDS / NAME).unlink()
        course.lab()
    for version in (3, 4):
        before = course.mine.read_bytes()
        course.publish(lesson(version))
        _, (carried,) = course.lab()
        assert sources(course.mine)["cell-q1"] == "my answer"
        assert carried.answers == ["q1"] and carried.kept.read_bytes() == before
    course.publish(lesson(5, questions=("q2",)))
    _, (carried,) = course.lab()
    assert carried.homeless == ["q1"] and "my answer" in carried.kept.read_text()


def test_a_copy_that_an_open_jupyterlab_has_put_back(course):
    """The learner had it open when the new version came, and chose to overwrite it."""
    course.edit(cell_q1="my answer")
    old = course.mine.read_bytes()
    course.publish(lesson(2, starters=2))
    course.lab()
    course.mine.write_bytes(old)
    assert course.lab() == ([], [])
    course.publish(lesson(3, starters=3))
    _, (carried,) = course.lab()
    assert carried.answers == ["q1"], "a starter of the first version is no answer to q2"
    assert sources(course.mine)["cell-q1"] == "my answer" and sources(course.mine)["cell-q2"] == starter("q2", 3)


def test_own_cells_are_carried_behind_their_neighbours(course):
    def change(cells):
        cells.insert(0, cell("top", "first of all"))
        cells.insert(5, cell("mine-1", "helper = 1"))  # behind the answer's cell
        cells.insert(6, cell("mine-2", "a note of mine", kind="markdown"))
        cells.append(cell("end", "after all"))
        cells.append(cell("empty", "  "))

    course.save(change)
    new = lesson(2)
    del new["cells"][1]  # a cell is gone in the new version
    new["cells"].insert(2, cell("more", "a new cell"))
    course.publish(new)
    course.lab()
    names = list(sources(course.mine))
    assert names[:2] == ["top", "title"] and names[-1] == "end" and "empty" not in names and "run" not in names
    assert names[names.index("cell-q1") :][:4] == ["cell-q1", "mine-1", "mine-2", "check-q1"]


def test_a_split_or_copied_answer_is_carried_whole(course):
    def change(cells):
        place = next(i for i, each in enumerate(cells) if each["id"] == "cell-q1")
        cells[place]["source"] = "def helper(): return 1"
        cells.insert(place + 1, cell("second-part", "def answer_q1(): return helper()", "question-q1"))
        cells.insert(place + 2, cell("third-part", "", "question-q1"))

    course.save(change)
    course.publish(lesson(2))
    course.lab()
    now = sources(course.mine)
    assert now["cell-q1"] == "def helper(): return 1\n\n\ndef answer_q1(): return helper()"
    assert "second-part" not in now


def test_an_answer_whose_cell_lost_its_tag_or_became_text_is_found(course):
    def change(cells):
        for each in cells:
            if each["id"].startswith("cell-"):
                each["source"] = "my answer"
            if each["id"] == "cell-q1":
                each["metadata"] = {}
            if each["id"] == "cell-q2":
                each["cell_type"] = "markdown"

    course.save(change)
    course.publish(lesson(2))
    course.lab()
    now = load(course.mine)["cells"]
    assert [(each["source"], each["cell_type"]) for each in now if each["id"].startswith("cell-")] == [
        ("my answer", "code")
    ] * 2


def test_deleted_cells_come_back_with_the_new_version(course):
    course.save(lambda cells: cells.clear())
    course.publish(lesson(2))
    course.lab()
    assert sources(course.mine) == {each["id"]: each["source"] for each in lesson(2)["cells"]}
    assert course.earlier() == [today("01_first-until-{}.ipynb")]


def test_a_question_that_has_changed_says_so_beside_the_answer(course):
    course.edit(cell_q1="def answer_q1(): return 1")
    course.publish(lesson(2, starters=2))
    course.lab()
    now = load(course.mine)["cells"]
    place = next(i for i, each in enumerate(now) if each["id"] == "cell-q1")
    assert now[place]["source"] == "def answer_q1(): return 1"
    assert "has changed" in now[place + 1]["source"] and starter("q1", 2) in now[place + 1]["source"]
    assert sources(course.mine)["cell-q2"] == starter("q2", 2), "a starter is no answer"
    assert sum("has changed" in each["source"] for each in now) == 1


def test_an_answer_without_a_question_is_told_and_kept(course):
    course.edit(cell_q1="one", cell_q2="two")
    course.publish(lesson(2, questions=("q1",)))
    _, (carried,) = course.lab()
    assert "it has no q2 any more" in str(carried) and "answers to q1 in it" in str(carried)
    assert "two" in (course.work / copies.EARLIER / course.earlier()[0]).read_text()


@pytest.mark.parametrize(
    ("rubbish", "why"),
    [
        (b"", "it is empty"),
        (b'{"cells": [', "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[1]", "it is no notebook"),
        (b'{"cells": 1}', "it is no notebook"),
        (b'{"cells": [1]}', "it is no notebook"),
        (b'{"cells": [{}]}', "it is no notebook"),
        (b'{"cells": [{"source": null}]}', "it is no notebook"),
        (b'{"cells": [{"source": "", "id": [1]}]}', "it is no notebook"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_is_no_notebook_stays_until_a_reset(course, rubbish, why, version):
    course.mine.write_bytes(rubbish)
    course.publish(lesson(version))
    _, (carried,) = course.lab()
    assert course.mine.read_bytes() == rubbish
    assert f"cannot be read ({why})" in str(carried) and "python -m helpers reset 01" in str(carried)
    kept, answers = copies.reset(course.notebooks / NAME, course.work)
    assert kept.read_bytes() == rubbish and answers is None
    assert course.mine.read_bytes() == (course.notebooks / NAME).read_bytes()


def test_odd_metadata_is_no_obstacle(course):
    def change(cells):
        cells[0]["metadata"] = None
        cells[1]["metadata"] = {"tags": "text"}
        cells[3]["source"] = ["def answer_q1():\n", "    return 1"]
        del cells[1]["id"]

    course.save(change)
    course.publish(lesson(2))
    course.lab()
    assert sources(course.mine)["cell-q1"] == "def answer_q1():\n    return 1"


def test_half_a_character_is_no_obstacle(course):
    """As an editor may leave it of an emoji; UTF-8 has no place for one."""
    course.edit(cell_q1="answer = '\ud83d'")
    course.publish(lesson(2))
    course.lab()
    assert sources(course.mine)["cell-q1"] == "answer = '\ud83d'"
    assert reset(course, "1").exit_code == 0 and len(course.earlier()) == 3


def test_a_copy_without_a_record(course):
    """One that an earlier version of the course has made, or that came from another machine."""
    record = course.work / copies.RECORDS / NAME
    course.edit(cell_q1="my answer")
    before = course.mine.read_bytes()
    for damage in (record.unlink, lambda: record.write_text("{")):
        damage()
        assert course.lab() == ([], []) and course.mine.read_bytes() == before and record.exists()
    record.unlink()
    course.publish(lesson(2))
    course.lab()
    assert sources(course.mine)["cell-q1"] == "my answer" and sources(course.mine)["title"] == "# Version 2"
    assert (course.work / copies.EARLIER / course.earlier()[0]).read_bytes() == before


def test_links_and_folders_in_the_place_of_a_copy_are_left_alone(course):
    elsewhere = course.work.parent / "elsewhere.ipynb"
    course.mine.rename(elsewhere)
    course.mine.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    course.publish(lesson(2))
    assert course.lab() == ([], []) and course.mine.is_symlink() and elsewhere.read_bytes() == before
    course.mine.unlink()
    course.mine.mkdir()
    assert course.lab() == ([], [])
    kept, _ = copies.reset(course.notebooks / NAME, course.work)
    assert kept.is_dir() and course.mine.is_file()


def test_a_copy_that_is_saved_in_this_moment_is_taken_as_it_was_saved(course, monkeypatch):
    course.edit(cell_q1="first")
    keep = copies._keep

    def saved_meanwhile(*arguments):
        monkeypatch.setattr(copies, "_keep", keep)
        kept = keep(*arguments)
        course.edit(cell_q1="second")
        return kept

    monkeypatch.setattr(copies, "_keep", saved_meanwhile)
    course.publish(lesson(2))
    course.lab()
    assert sources(course.mine)["cell-q1"] == "second"
    assert len(course.earlier()) == 2


def test_a_damaged_lesson_of_the_course_harms_no_copy(course):
    course.edit(cell_q1="mine")
    before = course.mine.read_bytes()
    (course.notebooks / NAME).write_text("<<<<<<< HEAD")
    assert course.lab() == ([], []) and course.mine.read_bytes() == before


# -- nothing is lost --


def everything(folder):
    """All texts in all files of a folder, of notebooks as their cells' sources."""
    texts = []
    for path in folder.rglob("*"):
        if path.suffix == ".ipynb" and path.is_file() and copies.RECORDS not in path.parts:
            texts += [each["source"] for each in load(path)["cells"]]
    return "\n".join(texts)


def interrupted(monkeypatch, step):
    """The n-th file that is put in its place from now on is not: the machine goes away."""
    count = iter(range(10**6))

    def failing(original):
        def step_or_fail(*arguments):
            if next(count) == step:
                raise KeyboardInterrupt
            return original(*arguments)

        return step_or_fail

    monkeypatch.setattr(Path, "replace", failing(Path.replace))


@pytest.mark.parametrize("step", range(4))
def test_broken_off_anywhere_and_begun_again(course, monkeypatch, step):
    course.edit(cell_q1="an answer", run="an experiment")
    course.save(lambda cells: cells.append(cell("own", "a cell of mine")))
    course.publish(lesson(2, starters=2))
    with monkeypatch.context() as patch:
        interrupted(patch, step)
        if step < 3:
            with pytest.raises(KeyboardInterrupt):
                course.lab()
        else:
            course.lab()
    for text in ("an answer", "an experiment", "a cell of mine"):
        assert text in everything(course.work)
    course.lab()
    now = sources(course.mine)
    assert now["title"] == "# Version 2" and now["cell-q1"] == "an answer" and now["own"] == "a cell of mine"
    assert sum("has changed" in source for source in now.values()) == 1
    assert course.lab() == ([], [])
    assert "an experiment" in everything(course.work / copies.EARLIER)
    assert not [path for path in course.work.rglob(".*") if path.name.startswith(f".{NAME}")], "half a file is left"


texts = st.text("abc \n'\"é\\", min_size=1, max_size=8)
changes = st.lists(
    st.tuples(st.sampled_from(["edit", "delete", "add", "move", "copy"]), st.integers(0, 20), texts), max_size=8
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=changes,
    version=st.builds(lesson, st.integers(1, 2), st.sampled_from([("q1", "q2"), ("q1",), ("q2", "q3")]), st.just(2)),
    step=st.integers(0, 6),
    more=st.integers(0, 2),
)
def test_whatever_the_learner_did_is_there_afterwards(tmp_path_factory, edits, version, step, more):
    course = Course(tmp_path_factory.mktemp("course")).publish(lesson())
    course.lab()
    written = set()

    def change(cells):
        for number, (what, place, text) in enumerate(edits):
            place = place % max(1, len(cells))
            if what == "add" or not cells:
                cells.insert(place, cell(f"own-{number}", text))
                continue
            if what == "edit":
                cells[place]["source"] = text
            elif what == "delete":
                del cells[place]
            elif what == "move":
                cells.append(cells.pop(place))
            elif what == "copy":
                cells.insert(place, copy.deepcopy(cells[place]) | {"id": f"copy-{number}"})
        written.update(each["source"] for each in cells)

    course.save(change)
    written -= {each["source"] for each in lesson()["cells"]}
    answers = copies.answers_in(load(course.mine), lesson())
    used = course.mine.read_bytes() != (course.notebooks / NAME).read_bytes()
    course.publish(version)
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, step)
        try:
            course.lab()
        except KeyboardInterrupt:
            assert all(source in everything(course.work) for source in written)
    course.lab()
    assert all(source in everything(course.work) for source in written)
    now = sources(course.mine)
    assert bool(course.earlier()) == used
    for question, answer in answers.items():
        assert now.get(f"cell-{question}", answer) == answer
    held = {f"cell-{question}" for question in ("q1", "q2") if question in answers} & now.keys()
    for number in range(3, 3 + more):  # versions that come before the learner looks into the copy again
        course.publish(lesson(number, ("q1", "q2"), 2))
        course.lab()
        assert all(source in everything(course.work) for source in written)
        assert all(sources(course.mine)[each] == now[each] for each in held)
    before = course.mine.read_bytes()
    assert course.lab() == ([], []) and course.mine.read_bytes() == before


# -- reset --


def reset(course, *arguments):
    result = CliRunner().invoke(
        cli.commands, ["reset", *arguments, "--notebooks", str(course.notebooks), "--dir", str(course.work)]
    )
    return result


def test_a_reset_gives_a_fresh_copy_and_keeps_the_answers_in_a_file(course):
    course.edit(cell_q1="def answer_q1():\n    return 'é'\n", run="an experiment")
    before = course.mine.read_bytes()
    result = reset(course, "1")
    assert result.exit_code == 0 and "01_first begins anew" in result.output
    assert course.mine.read_bytes() == (course.notebooks / NAME).read_bytes()
    answers, kept = (course.work / copies.EARLIER / name for name in course.earlier())
    assert kept.read_bytes() == before and kept.name == today("01_first-reset-{}.ipynb")
    assert f"earlier/{kept.name}" in result.output and f"earlier/{answers.name}" in result.output
    text = answers.read_text()
    assert "# %% q1\n\ndef answer_q1():\n    return 'é'\n" in text and "q2" not in text
    names = {}
    exec(compile(text, answers, "exec"), names)
    assert names["answer_q1"]() == "é"


def test_a_reset_with_answers_keeps_them_in_the_lesson_too(course):
    course.edit(cell_q2="two", run="an experiment")
    assert reset(course, "01_first.ipynb", "--with-answers").exit_code == 0
    now = sources(course.mine)
    assert now["cell-q2"] == "two" and now["run"] == "print('a cell')"
    assert course.lab() == ([], [])


def test_a_reset_of_what_is_not_there(course):
    course.mine.unlink()
    assert reset(course, "1").exit_code == 0 and course.mine.exists() and not course.earlier()
    result = reset(course, "7")
    assert result.exit_code == 2 and "There is no lesson '7'" in result.output
    assert reset(course).exit_code == 2


def test_a_reset_does_not_take_the_learners_file_for_the_lesson(course):
    course.edit(cell_q1="mine")
    assert reset(course, str(course.mine)).exit_code == 0
    assert course.mine.read_bytes() == (course.notebooks / NAME).read_bytes()


def test_a_second_reset_overwrites_nothing(course):
    for answer in ("one", "two", "two"):
        course.edit(cell_q1=answer)
        reset(course, "1")
    assert len(course.earlier()) == 4  # the third is the same as the second
    assert "one" in everything(course.work) and "two" in everything(course.work)


def test_a_folder_that_cannot_be_written_is_one_sentence(course):
    (course.work / copies.EARLIER).touch()  # a file in the folder's place
    course.edit(cell_q1="mine")
    before = course.mine.read_bytes()
    course.publish(lesson(2))
    with pytest.raises(LabError, match="could not be copied to .* choose another folder"):
        course.lab()
    assert course.mine.read_bytes() == before
    assert reset(course, "1").exit_code == 1 and course.mine.read_bytes() == before


# -- with the lessons themselves --


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_takes_the_answers_of_its_older_version(path, tmp_path):
    new = read(path)
    old = copy.deepcopy(new)
    del old.cells[3:6]
    old.cells[0].source += "\n\nAs it was."
    notebooks, work = tmp_path / "notebooks", tmp_path / "work"
    write(notebooks / path.name, old)
    copies.copy_lessons(notebooks, work)
    mine = load(work / path.name)
    answers = {}
    for each in mine["cells"]:
        for tag in each["metadata"].get("tags", []):
            if tag.startswith("question-"):
                answers[tag] = each["source"] = f"# my answer\n{each['source']}"
    write(work / path.name, mine)
    (notebooks / path.name).write_bytes(path.read_bytes())
    _, (carried,) = copies.copy_lessons(notebooks, work)
    assert len(carried.answers) == len(answers) >= 3
    now = read(work / path.name)
    assert {tag: tagged(now, tag)[0].source for tag in answers} == answers
    others = [each.source for each in now.cells if not set(each.metadata.get("tags", [])) & set(answers)]
    wanted = [each.source for each in new.cells if not set(each.metadata.get("tags", [])) & set(answers)]
    assert others == wanted
    assert os.listdir(work / copies.EARLIER)
