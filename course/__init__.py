"""The commands of `python -m helpers`; `cli` lists them."""
