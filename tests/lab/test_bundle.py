"""The offline kit: what is in it, what its installer refuses, and that it needs no network."""

import os
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from course.kit import bundle
from helpers import paths
from helpers.errors import LabError
from helpers.kafka import cache
from tests.lab.test_cli import call
from tools.lessons import LESSONS


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("thing-1.0.dist-info/METADATA", "Name: thing\nLicense-Expression: MIT\n\nAbout it.\n")
        file.writestr("thing-1.0.dist-info/licenses/LICENSE.txt", "Do as you like.\n")
        file.writestr("thing/licence_check.py", "no licence\n")
    return path


def without_network(wheels: Path, *_) -> None:
    """What stands in for the download: one small wheel."""
    with zipfile.ZipFile(wheels / "thing-1.0-py3-none-any.whl", "w") as file:
        file.writestr("thing-1.0.dist-info/METADATA", "Name: thing\n\n")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """A kit, unpacked, whose one wheel is not what the course needs."""
    folder = tmp_path_factory.mktemp("kit")
    bundle.make(folder / "kit.tar", ["linux-x86_64"], ["3.12"], without_network)
    assert [path.name for path in folder.iterdir()] == ["kit.tar"]
    with tarfile.open(folder / "kit.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / bundle.KIT


def test_what_is_in_it(kit):
    for jar in cache.jar_list("kafka_jars.txt") + cache.jar_list("streams_jars.txt"):
        assert (kit / "jars" / jar.path).stat().st_size == jar.size
    assert len(list((kit / "course" / "notebooks").glob("*.ipynb"))) == len(LESSONS)
    assert (kit / "course" / "requirements.txt").read_bytes() == (paths.COURSE / "requirements.txt").read_bytes()
    for made in (".git", ".venv", "work", "class", "executed"):
        assert not (kit / "course" / made).exists()
    listed = [line.split("  ", 1)[1] for line in (kit / "SHA256SUMS").read_text().splitlines()]
    there = [path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()]
    assert sorted(listed) == sorted(path for path in there if path != "SHA256SUMS")


def test_nobodys_answers_and_passwords_are_in_it(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "COURSE", tmp_path)
    for name in (
        "work/01.ipynb",
        "class/room.json",
        "class-b/room.json",
        "class-b/cards/ann.txt",
        "mine/.course",
        "mine/01.ipynb",
        "env/pyvenv.cfg",
        "env/bin/python",
        ".venv/x",
        "helpers/a.py",
        "README.md",
        "helpers/__pycache__/a.pyc",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in bundle.course_files()] == ["README.md", "helpers/a.py"]


def test_notices_name_each_licence_and_give_each_text_once(wheel, kit):
    said = bundle.notices([wheel, wheel], sorted((kit / "jars").rglob("*.jar")))
    assert said.count("thing-1.0-py3-none-any.whl: MIT") == 2 and said.count("Do as you like.") == 1
    assert "no licence" not in said
    assert f"kafka-clients-{cache.KAFKA_VERSION}.jar:" in said and said.count("Apache License") >= 1


def test_what_pip_installs_is_told_by_hash(tmp_path, monkeypatch):
    from course.kit import install_kit

    monkeypatch.setattr(install_kit, "COURSE", tmp_path)
    (tmp_path / "requirements.txt").write_text("# all\nPy_Yaml==6.0\nappnope==1.0 ; sys_platform == 'darwin'\n-e .\n")
    hashes = {"wheels/pyyaml-6.0-cp311-x.whl": "a", "wheels/py_yaml-6.0-cp312-x.whl": "b", "course/x.py": "c"}
    hashes["wheels/setuptools-80.1-py3-none-any.whl"] = "d"
    assert install_kit.requirements(hashes).splitlines() == [
        "Py_Yaml==6.0 --hash=sha256:b",
        "appnope==1.0 ; sys_platform == 'darwin'",
        "setuptools==80.1 --hash=sha256:d",
    ]


PLANTED = ("wheels/setuptools-999-py3-none-any.whl", "course/sitecustomize.py", "course/helpers/extra.so", "hashlib.py")


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_file_is_refused(kit, tmp_path, planted):
    shutil.copy(kit / "install.py", tmp_path)
    shutil.copytree(kit / "course" / "docs", tmp_path / "course" / "docs")
    bundle.write_sums(tmp_path)
    (tmp_path / planted).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / planted).write_text("raise SystemExit('it ran')" if planted == "hashlib.py" else "")
    done = subprocess.run([sys.executable, tmp_path / "install.py"], capture_output=True, text=True)
    assert done.returncode == 1 and f"{planted} was not packed" in done.stderr
    assert not (tmp_path / "course" / ".venv").exists()


def test_what_using_the_course_makes_is_no_planted_file(kit, tmp_path):
    shutil.copy(kit / "install.py", tmp_path)
    shutil.copytree(kit / "course" / "docs", tmp_path / "course" / "docs")
    bundle.write_sums(tmp_path)
    for made in ("course/.venv/bin/x", "course/work/01.ipynb", "course/docs/__pycache__/x.pyc"):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).touch()
    check = "import sys; sys.path.insert(0, sys.argv[1]); import install; install.check()"
    done = subprocess.run([sys.executable, "-B", "-c", check, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "course/docs/__pycache__").exists(), "Python would run it"


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_kit_is_refused(kit, tmp_path, harm):
    shutil.copy(kit / "install.py", tmp_path)
    shutil.copytree(kit / "course" / "docs", tmp_path / "course" / "docs")
    bundle.write_sums(tmp_path)
    victim = tmp_path / "course" / "docs" / "docker.md"
    victim.write_text("other words") if harm == "changed" else victim.unlink()
    done = subprocess.run([sys.executable, tmp_path / "install.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "docker.md is" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "course" / ".venv").exists()


def test_a_package_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle, "pins", lambda *_: ["pip==0.0.0.dev999"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    out = tmp_path / "kit.tar"
    done = call("bundle", "--out", out, "--system", "linux-x86_64", "--python", "3.12")
    assert done.exit_code == 1 and "The packages for linux-x86_64 with Python 3.12 could not be fetched" in done.output
    assert not list(tmp_path.iterdir())
    with pytest.raises(LabError):
        bundle.download_wheels(tmp_path, ["macos-arm64"], ["3.13"])


def test_what_only_other_systems_and_pythons_need_is_fetched_for_them(monkeypatch):
    """Whatever machine packs: pip reads markers for the one that it runs on, so that it is given none."""
    only = {
        ("linux-x86_64", "3.11"): set(),
        ("linux-arm64", "3.12"): {"aiohttp"},
        ("macos-arm64", "3.12"): {"aiohttp", "appnope"},
        ("macos-arm64", "3.14"): {"appnope"},
    }
    asked = []

    def pip(command, **_):
        asked.append(command)
        return subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)

    monkeypatch.setattr(bundle, "subprocess", types.SimpleNamespace(Popen=pip, PIPE=None, STDOUT=None))
    for (system, version), some in only.items():
        asked.clear()
        bundle.download_wheels(Path("wheels"), [system], [version])
        parts = {part for command in asked for part in command}
        names = {part.partition("==")[0] for part in parts}
        assert names & {"aiohttp", "appnope"} == some
        assert {"numpy", "kafka-python", bundle.BUILD} <= names
        assert not any(";" in part for part in parts)


def test_a_kit_fits_the_first_patch_release_of_a_python_too():
    """Debian 12 has Python 3.11.2; soupsieve 4.1.3 takes 3.11.5 and later."""
    first, last = bundle.pins("linux-x86_64", "3.11.0"), bundle.pins("linux-x86_64", "3.11.99")
    assert [p for p in first if p.startswith("soupsieve")] != [p for p in last if p.startswith("soupsieve")]


def test_each_system_has_its_markers():
    assert sorted(bundle.MARKERS) == sorted(bundle.SYSTEMS)


def no_network() -> list[str] | None:
    """A command prefix that leaves a program the loopback device alone; None where the system does not allow it."""
    prefix = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if os.geteuid() == 0:
        prefix.remove("--map-root-user")
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    return prefix if works else None


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.skipif(no_network() is None, reason="this system lets nobody make a network namespace (unshare --net)")
@pytest.mark.skipif(bundle.this_system() is None, reason="there are no wheels for this system")
def test_all_lessons_run_from_a_kit_without_a_network(tmp_path):
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    bundle.make(tmp_path / "kit.tar", [bundle.this_system()], [version])
    offline = no_network()
    names = ("HOME", "PATH", "LANG", "TMPDIR")
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"COURSE_CACHE_DIR": str(tmp_path / "cache")}
    with tarfile.open(tmp_path / "kit.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    kit = tmp_path / bundle.KIT

    def run(*command):
        return subprocess.run([*offline, *command], cwd=kit / "course", env=env, capture_output=True, text=True)

    interfaces = run(sys.executable, "-c", "import socket; print(*[name for _, name in socket.if_nameindex()])")
    assert interfaces.stdout.split() == ["lo"], "the network is cut"
    done = run(sys.executable, kit / "install.py")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(".venv/bin/python", "-m", "helpers", "run", "--out", tmp_path / "executed", "--time-limit", "600")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(list((tmp_path / "executed").glob("*.ipynb"))) == len(LESSONS)
