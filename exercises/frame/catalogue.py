"""Which lessons there are, and what each one asks."""

import importlib
import importlib.util
from pathlib import Path

from helpers import paths


def questions(notebooks: Path = paths.NOTEBOOKS) -> dict[str, list[str]]:
    """Return the names of each lesson's questions, by the name of the lesson's notebook ("01_producer_consumer").

    Args:
        notebooks: the folder of the lessons. One without a module of questions is left out.
    """
    from exercises.frame.question import Question

    found = {}
    for lesson in paths.lessons(notebooks):
        module = f"exercises.lesson_{lesson.name[:2]}"
        if importlib.util.find_spec(module):
            asked = [thing for thing in vars(importlib.import_module(module)).values() if isinstance(thing, Question)]
            found[lesson.stem] = [question.name for question in asked]
    return found
