"""`python -m helpers bundle`: the course with all that it needs in one archive, for rooms without a network."""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import click
from packaging.requirements import Requirement
from tqdm import tqdm

from helpers import paths
from helpers.errors import LabError
from helpers.kafka import cache

KIT = "kafka-design-patterns-kit"
INSTALLER = Path(__file__).with_name("install_kit.py")
BUILD = "setuptools>=80"  # what pip needs to install the course itself


def _linux(machine: str) -> list[str]:
    """Wheels for glibc 2.28 (2018) and older."""
    return [f"manylinux_2_{minor}_{machine}" for minor in range(28, 4, -1)] + [
        f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")
    ]


#: The platform tags of wheels that run on a system. (Macs with Intel: argon2-cffi-bindings 26.2.0 has no wheel.)
SYSTEMS = {
    "linux-x86_64": _linux("x86_64"),
    "linux-arm64": _linux("aarch64"),
    "macos-arm64": ["macosx_15_0_arm64"],
}
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def this_system() -> str | None:
    """The name of this machine's system, if it is one of those."""
    machine = {"aarch64": "arm64", "amd64": "x86_64"}.get(os.uname().machine.lower(), os.uname().machine.lower())
    name = f"{'macos' if sys.platform == 'darwin' else sys.platform}-{machine}"
    return name if name in SYSTEMS else None


def make(target: Path, systems: list[str], versions: list[str], download=None) -> None:
    """Write the archive; it gets its name when it is whole.

    Args:
        target: the archive, a .tar (what is in it is compressed already).
        systems: names of `SYSTEMS`.
        versions: of Python.
        download: for tests, instead of `download_wheels`.

    Raises:
        LabError: no network, a package without a wheel for a system, a full disk.
    """
    from helpers.kafka.download import prepare_jars

    jars = [*prepare_jars("kafka_jars.txt"), *prepare_jars("streams_jars.txt")]
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
            kit = Path(scratch) / KIT
            wheels = kit / "wheels"
            wheels.mkdir(parents=True)
            (download or download_wheels)(wheels, systems, versions)
            for source in course_files():
                _copy(source, kit / "course" / source.relative_to(paths.COURSE))
            for jar in dict.fromkeys(jars):
                _copy(jar, kit / "jars" / jar.relative_to(cache.jars_folder()))
            shutil.copy(INSTALLER, kit / "install.py")
            (kit / "README.txt").write_text(README.format(systems=", ".join(systems), versions=", ".join(versions)))
            (kit / "NOTICES.txt").write_text(
                notices(sorted(wheels.glob("*.whl")), sorted((kit / "jars").rglob("*.jar")))
            )
            write_sums(kit)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(part, "w") as archive:
                files = sorted(path for path in kit.rglob("*") if path.is_file())
                for path in tqdm(files, desc="Writing the archive", unit="file", leave=False):
                    archive.add(path, path.relative_to(kit.parent), filter=_anonymous)
        part.rename(target)
    except OSError as error:
        raise LabError(f"The kit could not be written ({error.strerror or error}): free 1 GB and try again.") from error
    finally:
        part.unlink(missing_ok=True)


README = """\
Kafka Design Patterns, with all that it needs. No network is used.

    python3 install.py

checks all files against SHA256SUMS, which came with them: whether the archive is your teacher's, its own sha256 tells
(sha256sum, or shasum -a 256 on macOS). It makes a virtual environment in course/.venv, and fills the cache with Kafka.
Then

    cd course
    .venv/bin/python -m helpers lab

For {systems}, with Python {versions}. Licences of what is in here: NOTICES.txt
"""


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def course_files() -> list[Path]:
    """The course as it is here, without what running it has made: nobody's answers, no class, no environment."""
    made = {"work", "class", "executed", "build", "__pycache__"}
    marks = ("room.json", ".course", "pyvenv.cfg")  # of a class, learners' lessons, an environment by any other name

    def wanted(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.name in made or path.name.startswith(".") or path.suffix == ".egg-info" or path.is_symlink():
                continue
            if path.is_dir():
                if not any((path / mark).exists() for mark in marks):
                    yield from wanted(path)
            elif path.suffix not in (".tar", ".pyc"):
                yield path

    return list(wanted(paths.COURSE))


#: What tells systems apart in the markers of requirements.txt (`; sys_platform == "darwin"`).
MARKERS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "linux-arm64": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def pins(system: str, version: str) -> list[str]:
    """The packages of requirements.txt for a system and a Python ("3.11.2"), and what building the course takes.

    Without their markers: pip would judge these for the machine that packs, and leave out what only others need.
    """
    target = MARKERS[system] | {"python_version": version.rpartition(".")[0], "python_full_version": version}
    lines = [line.split("#")[0].strip() for line in (paths.COURSE / "requirements.txt").read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-")]
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate(target)]
    return [f"{each.name}{each.specifier}" for each in needed] + [BUILD]


def download_wheels(wheels: Path, systems: list[str], versions: list[str]) -> None:
    """Fetch the wheels with pip, which takes mirrors and proxies from its own settings.

    Raises:
        LabError: one could not be had; pip's own words are quoted.
    """
    rounds = []
    for system, version in itertools.product(systems, versions):
        first, last = pins(system, f"{version}.0"), pins(system, f"{version}.99")
        rounds.append((system, f"{version}.0", first))  # some packages want a certain patch release of Python
        rounds += [(system, f"{version}.99", newer)] if (newer := [pin for pin in last if pin not in first]) else []
    total = sum(len(wanted) for *_, wanted in rounds)
    with tqdm(total=total, desc="Fetching packages", unit="package", leave=False) as bar:
        for system, version, wanted in rounds:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
            command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(wheels)]
            command += ["--python-version", version, "--implementation", "cp"]
            command += [f"--platform={tag}" for tag in SYSTEMS[system]]
            said = []
            with subprocess.Popen(
                [*command, *wanted], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as pip:
                try:
                    for line in pip.stdout:
                        said.append(line.strip())
                        bar.update(line.startswith("Collecting "))
                except BaseException:  # Ctrl-C too: the block's end would wait for pip
                    pip.kill()
                    raise
            if pip.returncode:
                errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["pip said nothing"]
                python = version.rpartition(".")[0]
                raise LabError(f"The packages for {system} with Python {python} could not be fetched: {errors[-1]}")


def write_sums(kit: Path) -> None:
    """SHA256SUMS of all files, in the form of `sha256sum -c`."""
    files = sorted(path for path in kit.rglob("*") if path.is_file())
    lines = []
    for path in files:
        with open(path, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(kit).as_posix()}\n")
    (kit / "SHA256SUMS").write_text("".join(lines))


def fill_cache(jars: str) -> None:
    """Put a kit's jars where the course looks for them, and make what brokers start quickly from, without a network."""
    from helpers.kafka.embedded import prepare_cache

    for name in ("kafka_jars.txt", "streams_jars.txt"):
        for jar in cache.missing(cache.jar_list(name)):
            _copy(Path(jars) / jar.path, cache.jars_folder() / jar.path)
        if damaged := cache.missing(cache.jar_list(name)):
            raise LabError(f"{damaged[0].path} in the kit is damaged: copy the kit again.")
    prepare_cache()


# -- notices -----------------------------------------------------------------------------------------------------------

_LICENCE = re.compile(r"(^|/)(LICEN[CS]E|NOTICE|COPYING|AUTHORS|COPYRIGHT)[^/]*$", re.I)


def notices(wheels: list[Path], jars: list[Path]) -> str:
    """Whose work is in the kit and under which licences, from the packages' own metadata; each text once."""
    texts: dict[str, list[str]] = {}
    lines = ["What is in this kit, and under which licence. The texts that the packages bring along follow below.", ""]
    for path in [*wheels, *jars]:
        about, found = _of_wheel(path) if path.suffix == ".whl" else _of_jar(path)
        lines.append(about)
        for name, text in found:
            texts.setdefault(text, []).append(f"{path.name}: {name}")
    for text, places in texts.items():
        lines += ["", "=" * 100, *places, "=" * 100, text.strip()]
    return "\n".join(lines) + "\n"


def _of_wheel(path: Path) -> tuple[str, list[tuple[str, str]]]:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        head = HeaderParser().parsestr(wheel.read(metadata).decode(errors="replace"))
        kinds = [
            value.rpartition(" :: ")[2] for value in head.get_all("Classifier", []) if value.startswith("License ::")
        ]
        short = (head["License"] or "").strip().splitlines()
        licence = head["License-Expression"] or "; ".join(kinds) or (short[0][:80] if short else "see the text below")
        found = [
            (n, wheel.read(n).decode(errors="replace")) for n in names if _LICENCE.search(n) and not n.endswith(".py")
        ]
    return f"{path.name}: {licence}", found


def _of_jar(path: Path) -> tuple[str, list[tuple[str, str]]]:
    with zipfile.ZipFile(path) as jar:
        names = jar.namelist()
        licence = ""
        with contextlib.suppress(KeyError):
            manifest = jar.read("META-INF/MANIFEST.MF").decode(errors="replace").replace("\r\n ", "").replace("\n ", "")
            licence = "".join(re.findall(r"^Bundle-License: (.*)$", manifest, re.M)).strip()
        for name in names:
            if not licence and re.fullmatch(r"META-INF/maven/.*/pom.xml", name):
                pom = jar.read(name).decode(errors="replace")
                licence = "; ".join(re.findall(r"<license>\s*<name>(.*?)</name>", pom, re.S))
        found = [
            (name, jar.read(name).decode(errors="replace"))
            for name in names
            if _LICENCE.search(name) and not name.endswith((".class", "/"))
        ]
    where = "/".join(path.parts[path.parts.index("jars") + 1 : -1]) if "jars" in path.parts else path.name
    return f"{path.name}: {licence or ('see the text below' if found else f'as its project says, {where}')}", found


@click.command()
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Choice(list(SYSTEMS)),
    help="A system that learners have; may be repeated.  [default: this one]",
)
@click.option(
    "--python",
    "versions",
    multiple=True,
    type=click.Choice(VERSIONS),
    help="A version of Python that learners have; may be repeated.  [default: this one]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(f"{KIT}.tar"),
    show_default=True,
    help="The archive.",
)
def bundle(systems: tuple[str, ...], versions: tuple[str, ...], out: Path) -> None:
    """Make an offline kit: one archive for rooms without a network.

    In it: the course as it is here, all Python packages for the chosen systems and versions of Python, Kafka's jars,
    the licences of all of these, and a list of hashes. To use it: unpack (tar -xf), python3 install.py.
    """
    chosen = list(systems) or [this_system()]
    if chosen == [None]:
        raise LabError(f"There are no packages for this system: choose with --system, of {', '.join(SYSTEMS)}.")
    make(out, chosen, list(versions) or [f"{sys.version_info[0]}.{sys.version_info[1]}"])
    with open(out, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    click.echo(f"{out} ({out.stat().st_size / 1e6:.0f} MB), for {', '.join(chosen)}.")
    click.echo(f"Its sha256, to be told by another way than the kit: {digest}")
    click.echo(f"Learners: tar -xf {out.name}, cd {KIT}, python3 install.py")
