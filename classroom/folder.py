"""The class's folder: all that is kept from one `serve` to the next, readable by the teacher alone.

room.json       the cluster's id, its address, the administrator's and the learners' passwords
authority.pem   the authority that signs the brokers' certificates, with its key;  ca.pem: without
cards/          a card a learner
broker-1/ …     the records;  broker-1.log …: what the broker says
running.json    only while `serve` runs: where the administrator's commands find it
"""

import contextlib
import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from helpers import paths
from helpers.errors import LabError, refused
from helpers.files import write_whole
from helpers.waiting import wait_until

PATIENCE = 60  # seconds to wait for another command that changes the class


@dataclass
class Room:
    """What is kept of a class.

    Attributes:
        cluster_id: of its cluster.
        brokers: how many, from the first start on.
        address: host name or IPv4 address that learners connect to; it is advertised and in the certificate.
        port: of the first broker; the others have the next ones.
        megabytes: how much disk each learner may take.
        connections: that a broker takes from one address.
        names: real names of learners, where they are known.
        admin_password: of the administrator, who logs in on the loopback address only.
        learners: their passwords.
    """

    cluster_id: str
    brokers: int
    address: str
    port: int
    megabytes: int
    admin_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    learners: dict[str, str] = field(default_factory=dict, repr=False)
    connections: int = 80
    names: dict[str, str] = field(default_factory=dict)

    @property
    def servers(self) -> str:
        """What learners set COURSE_BOOTSTRAP_SERVERS to."""
        return ",".join(f"{self.address}:{self.port + i}" for i in range(self.brokers))


class Folder:
    """A class's folder; made when the class is."""

    def __init__(self, path: Path):
        self.path = path.absolute()

    @property
    def option(self) -> str:
        """What commands need in addition to find this class; nothing when it is where they look by themselves."""
        return "" if self.path == paths.CLASS else f" --dir {shlex.quote(str(self.path))}"

    @property
    def ca_file(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.pem"

    def exists(self) -> bool:
        """True when there is a class in it."""
        return (self.path / "room.json").exists()

    def make(self, room: Room) -> None:
        """Begin a class: the folder, its authority, and what `room` holds.

        Raises:
            LabError: the folder has something else in it, which others may have to read.
        """
        from classroom.certificates import make_authority

        with _one_sentence(self.path):
            # what an interrupted begin may have left, under these names or their parts'
            own = ("ca.pem", "authority.pem", "room.json")
            there = os.listdir(self.path) if self.path.is_dir() else []
            if any(not name.removeprefix(".").startswith(own) for name in there):
                raise LabError(
                    f"The folder {self.path} holds other files and no class: choose an empty or a new one with --dir."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            if not (self.path / "authority.pem").exists():
                authority = make_authority()
                write_whole(self.ca_file, authority.cert_pem.bytes(), 0o600)
                write_whole(
                    self.path / "authority.pem", authority.private_key_pem.bytes() + authority.cert_pem.bytes(), 0o600
                )
        self._write("room.json", asdict(room))

    def authority(self):
        """The class's authority."""
        import trustme

        with _one_sentence(self.path):
            return trustme.CA.from_pem(self.ca_file.read_bytes(), (self.path / "authority.pem").read_bytes())

    def room(self) -> Room:
        """What is kept of the class.

        Raises:
            LabError: there is none.
        """
        if not self.exists():
            raise LabError(
                f"There is no class in {self.path}: begin one with python -m helpers serve{self.option} --learners 30."
            )
        with _one_sentence(self.path):
            return Room(**json.loads((self.path / "room.json").read_text()))

    @contextlib.contextmanager
    def change(self) -> Iterator[Room]:
        """Change what is kept; kept only if the block ends without an error. One process at a time.

        Raises:
            LabError: another process takes too long.
        """
        try:
            lock = FileLock(self.path / "room.lock").acquire(timeout=PATIENCE)
        except Timeout:
            raise LabError("Another command changes this class: try again.") from None
        with lock:
            room = self.room()
            yield room
            self._write("room.json", asdict(room))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one process that serves this class.

        Raises:
            LabError: another one is.
        """
        with _one_sentence(self.path):  # not what the block below meets
            lock = open(self.path / "serving", "w")  # noqa: SIM115
        with lock:
            try:  # for a moment: a board that runs looks again and again, and each look takes the lock
                wait_until(
                    lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None,
                    "the lock",
                    timeout=0.3,
                    pause=0.02,
                    retry=(BlockingIOError,),
                )
            except TimeoutError:
                raise LabError(
                    f"This class is being served already: end it with python -m helpers serve stop{self.option}."
                ) from None
            # A killed `serve` leaves it, and its process id may be a stranger's by now.
            (self.path / "running.json").unlink(missing_ok=True)
            try:
                yield
            finally:
                (self.path / "running.json").unlink(missing_ok=True)

    def is_served(self) -> bool:
        """True while some process serves this class."""
        try:
            with open(self.path / "serving") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    def announce(self, ports: list[int]) -> None:
        """Say to the other commands that the class is up, and at which ports the administrator logs in."""
        self._write("running.json", {"pid": os.getpid(), "ports": ports})

    def running(self) -> dict:
        """What `announce` said.

        Raises:
            LabError: the class is not being served, or is just starting.
        """
        with contextlib.suppress(OSError, ValueError):
            if self.is_served():
                return json.loads((self.path / "running.json").read_text())
        self.room()
        raise LabError(
            "The class's cluster does not run (yet): start it in another terminal, "
            f"python -m helpers serve{self.option}"
        )

    def _write(self, name: str, value: dict) -> None:
        with _one_sentence(self.path):
            write_whole(self.path / name, json.dumps(value, indent=1).encode(), 0o600)


@contextlib.contextmanager
def _one_sentence(path: Path):
    with refused(f"The class's folder {path} cannot be used", "free space there, or choose another with --dir"):
        try:
            yield
        except (ValueError, TypeError) as error:
            raise LabError(
                f"What is in {path} is not a class of this version of the course ({error}): choose another folder with "
                "--dir."
            ) from error
