"""Is a person before this notebook, or a program?"""


def somebody_is_watching() -> bool:
    """Whether this cell was sent by JupyterLab or VS Code, not by nbval, papermill or nbconvert.

    Front ends name the cell in the metadata of their request; the executors send none.
    """
    try:
        from IPython import get_ipython

        metadata = get_ipython().kernel.get_parent()["metadata"]
    except (ImportError, AttributeError, KeyError, TypeError):  # no kernel, or one without a request
        return False
    return "cellId" in metadata or "deletedCells" in metadata
