"""What a mended form does not survive is said, word for word, in its lesson and in docs/guarantees.md."""

from tests.accidents.matrix import GUARANTEES, PAGE, entries, page, place, words


def test_each_weakness_is_said_in_its_lesson_and_among_the_guarantees():
    said = words(GUARANTEES.read_text())
    weak = [entry for entry in entries() if entry.sentence]
    lacking = [entry for entry in weak if not place(entry) or words(entry.sentence) not in said]
    assert weak and not lacking, lacking


def test_the_page_is_what_the_tests_record():
    assert PAGE.read_text() == page(), "run `python -m tests.accidents.matrix`"
