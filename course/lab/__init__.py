"""The learner's lab: own copies of the lessons, and JupyterLab on them."""
