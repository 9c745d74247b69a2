"""Where the course lies on this machine: the one place that knows."""

from pathlib import Path

COURSE = Path(__file__).resolve().parents[1]
NOTEBOOKS = COURSE / "notebooks"
WORK = COURSE / "work"  # a learner's own copies, if COURSE_WORK_DIR names no other folder
CLASS = COURSE / "class"  # a class's records, learners and cards, if --dir names no other folder


def lessons(notebooks: Path = NOTEBOOKS) -> list[Path]:
    """Return the lessons' notebooks, in their order: files of a folder that begin with two digits and `_`."""
    return sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
