"""The commands of `python -m helpers`, a module each; `cli` lists them."""
