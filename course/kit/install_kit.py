"""Install the course from this kit. No network is used: python3 install.py

Checks the hash of each file, and that there are no others; makes a virtual environment in course/.venv from wheels/,
and fills the cache from jars/. Uses the standard library only.
"""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: nothing of it is run before it is checked

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

KIT = Path(__file__).resolve().parent
COURSE = KIT / "course"
#: What using the course makes; nothing of it is run by this program.
MADE = {COURSE / name for name in (".venv", "work", "class", "executed")}


def check() -> dict[str, str]:
    """Compare all files with SHA256SUMS; returns their hashes by name."""
    lines = (KIT / "SHA256SUMS").read_text().splitlines()
    listed = {line.split("  ", 1)[1]: line.split("  ", 1)[0] for line in lines}
    for folder, folders, files in os.walk(KIT):
        here = Path(folder)
        for name in [name for name in folders if name == "__pycache__" or name.endswith(".egg-info")]:
            shutil.rmtree(here / name)  # Python would take what is in it for what it made itself
        folders[:] = [name for name in folders if (here / name).is_dir() and here / name not in MADE]
        for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
            found = (here / name).relative_to(KIT).as_posix()
            if found not in listed and found != "SHA256SUMS":
                sys.exit(f"{found} was not packed: delete it, or unpack the kit again into an empty folder.")
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
    return listed


def requirements(hashes: dict[str, str]) -> str:
    """What pip shall install: the course's pins, and what it takes to build the course, with the wheels' hashes."""
    wheels: dict[str, list[str]] = {}
    version = ""
    for path, digest in hashes.items():
        if path.startswith("wheels/"):
            name, number = path.removeprefix("wheels/").split("-")[:2]
            wheels.setdefault(_plain(name), []).append(f" --hash=sha256:{digest}")
            version = number if name == "setuptools" else version
    pins = [line.split("#")[0].strip() for line in (COURSE / "requirements.txt").read_text().splitlines()]
    pins = [pin for pin in pins if pin and not pin.startswith("-")]
    if version and not any(pin.startswith("setuptools==") for pin in pins):
        pins.append(f"setuptools=={version}")
    return "".join(pin + "".join(wheels.get(_plain(pin.split("==")[0]), [])) + "\n" for pin in pins)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def show(text: str) -> None:
    """One line that changes, where somebody watches."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def main() -> None:
    """Check, then install."""
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs this may have any)
        sys.exit(f"The course needs Python 3.11 or newer, and this is {sys.version.split()[0]}: use another python3.")
    hashes = check()
    print("All files are as they were packed. Installing (a minute or two) ...", flush=True)
    environment = COURSE / ".venv"
    try:
        venv.create(environment, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        sys.exit("This Python cannot make virtual environments: install its venv package (Debian: python3-venv).")
    python = environment / "bin" / "python"
    offline = dict(os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS=(KIT / "wheels").as_uri(), PIP_CONFIG_FILE=os.devnull)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(requirements(hashes))
        for what in (["--require-hashes", "-r", wanted], ["--no-build-isolation", "-e", "."]):
            if subprocess.run([*pip, *what], cwd=COURSE, env=offline).returncode:
                sys.exit("pip could not install the course: is this kit for this system and this Python? README.txt")
    fill = "import sys; from course.kit.bundle import fill_cache; fill_cache(sys.argv[1])"
    if subprocess.run([python, "-c", fill, KIT / "jars"], cwd=COURSE).returncode:
        sys.exit("The cache could not be filled: see above.")
    print(f"\nReady. Next:\n    cd {COURSE}\n    .venv/bin/python -m helpers lab")


if __name__ == "__main__":
    main()
