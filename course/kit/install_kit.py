"""Install the course from this kit. No network is used: python3 install.py

Checks the hash of each file, makes a virtual environment in course/.venv from wheels/, and fills the cache from jars/.
Uses the standard library only.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

KIT = Path(__file__).resolve().parent
COURSE = KIT / "course"


def check() -> None:
    """Compare all files with SHA256SUMS."""
    lines = (KIT / "SHA256SUMS").read_text().splitlines()
    for number, line in enumerate(lines, 1):
        wanted, name = line.split("  ", 1)
        try:
            with open(KIT / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            sys.exit(f"{name} is missing or cannot be read ({error.strerror}): unpack the kit again.")
        if found != wanted:
            sys.exit(f"{name} is not what was packed: copy the kit again.")
        show(f"Checking {number} of {len(lines)} files")
    show("")


def show(text: str) -> None:
    """One line that changes, where somebody watches."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def main() -> None:
    """Check, then install."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs this may have any)
        sys.exit(f"The course needs Python 3.11 or newer, and this is {sys.version.split()[0]}: use another python3.")
    check()
    print("All files are as they were packed. Installing (a minute or two) ...", flush=True)
    environment = COURSE / ".venv"
    try:
        venv.create(environment, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        sys.exit("This Python cannot make virtual environments: install its venv package (Debian: python3-venv).")
    python = environment / "bin" / "python"
    # pip's own settings, so that they hold for the environment in which it builds the course, too
    offline = dict(os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS=(KIT / "wheels").as_uri(), PIP_CONFIG_FILE=os.devnull)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]
    if subprocess.run(command, cwd=COURSE, env=offline).returncode:
        sys.exit("pip could not install the course: is this kit for this system and this version of Python? README.txt")
    fill = "import sys; from course.kit.bundle import fill_cache; fill_cache(sys.argv[1])"
    if subprocess.run([python, "-c", fill, KIT / "jars"], cwd=COURSE).returncode:
        sys.exit("The cache could not be filled: see above.")
    print(f"\nReady. Next:\n    cd {COURSE}\n    .venv/bin/python -m helpers lab")


if __name__ == "__main__":
    main()
