"""What maintainers run, each by `python -m tools.…`; CONTRIBUTING.md says when."""
