"""`python -m helpers`: the commands of the course (see `helpers.cli`)."""

from helpers.cli import main

if __name__ == "__main__":
    main()
