"""`python -m helpers`: the commands of the course (see `course.cli`)."""

from course.cli import main

if __name__ == "__main__":
    main()
