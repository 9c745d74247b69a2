"""`python -m helpers`: the commands of the course (see `helpers.commands.cli`)."""

from helpers.commands.cli import main

if __name__ == "__main__":
    main()
