"""The cells of a lesson, run outside of it: its forms as they stand there, for tests that attack them."""

from tests.lessons import NOTEBOOKS, code_cells, read, tags


def load(number: str, **parameters) -> dict:
    """The names of a lesson after its cells tagged `setup`, among them its running clusters.

    Args:
        number: the lesson's, e.g. "10".
        **parameters: values for its cell of parameters.
    """
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    names = {"__name__": "__main__"}  # so that a worker is given the functions themselves, not a module to import
    for cell in code_cells(read(path)):
        if "setup" in tags(cell):
            exec(compile(cell.source, f"<lesson {number}, cell {cell.id}>", "exec"), names)
        if "parameters" in tags(cell):
            names.update(parameters)
    return names
