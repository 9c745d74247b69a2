"""`ExternalCluster`: the cluster that the environment names, with the lesson's names in a corner of its own.

Made by `Cluster()` when COURSE_BOOTSTRAP_SERVERS is set; `helpers.kafka.diagnosis` reads the settings and finds out
what is wrong with them. It needs no more rights than all operations on topics, groups and transactional ids that begin
with COURSE_TOPIC_PREFIX.
"""

import atexit
import contextlib
import os
import re
import secrets
import socket
import time
import warnings

from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove

from helpers import internals
from helpers.errors import LabError
from helpers.kafka import diagnosis
from helpers.kafka.cluster import PASSING, Cluster, _running
from helpers.settings import note
from helpers.waiting import wait_until

REACH = 6.0  # seconds for greeting the addresses of the environment, and again for greeting all brokers
LEFT = "cluster.made"  # in the folder of COURSE_KEEP_LOGS: the prefixes of this run
OLD = 12 * 3600  # seconds after which what an earlier run left behind is nobody's any more
LONGEST_TOPIC = 249  # characters that Kafka allows in a topic's name
STOP = 10.0  # seconds for deleting what a run made
STOP_AT_EXIT = 4.0  # the same at exit: Jupyter kills a kernel that takes more than five seconds to end


class ExternalCluster(Cluster, kind="external"):
    """A cluster that somebody else runs. Made by `Cluster`.

    Each real name is prefix, run id and the lesson's name: `ann.course-6565e3a01b2c.orders`. The run id holds the time
    of the start, so that a later start can tell what a killed kernel left there from what is in use.
    """

    embedded = False

    def __init__(self, brokers: None = None, *, visit: bool = False):
        self._owner = os.getpid()
        self._own = diagnosis.prefix()
        self._prefix = f"{self._own}course-{int(time.time()):08x}{secrets.token_hex(2)}."
        settings = diagnosis.security()
        self._user = diagnosis.user_of(settings)
        probe = self._real("rights")
        targets, greeting = diagnosis.greet_any(diagnosis.addresses(), settings, probe, REACH)
        if not greeting.may_see:
            raise LabError(self._refused(f"topic {probe}"))
        diagnosis.greet_all(greeting.brokers, settings, probe, REACH)
        self._begin(brokers)
        self._addresses = greeting.brokers
        self.brokers = sorted(greeting.brokers)
        self._connection = settings | {
            "bootstrap_servers": [str(address) for address in targets],
            "reconnect_backoff_max_ms": 200,
        }
        _running[self._key] = self
        if visit:  # to look for what others left: it makes nothing itself
            return
        atexit.register(self._stop_at_exit)
        note(LEFT, self._prefix)
        self._sweep()

    def topic(self, name: str, partitions: int = 1, replication: int | None = None, config: dict | None = None) -> str:  # noqa: D102
        with self._rights(f"topic {self._real(name)}"):
            return super().topic(name, partitions, replication, config)

    def group(self, name: str) -> str:  # noqa: D102
        with self._rights(f"group {self._real(name)}"):
            return super().group(name)

    def transactional_id(self, name: str) -> str:  # noqa: D102
        real = super().transactional_id(name)
        with self._rights(f"transactional id {real}"):

            def found():
                internals.find_coordinators(self._admin, [real], internals.TRANSACTION)
                return True

            wait_until(found, "the coordinator", timeout=30, retry=PASSING)
        return real

    def plain(self, real: str) -> str:  # noqa: D102
        found = self._pattern.fullmatch(real)
        return found["name"] if found else real

    def alive(self) -> bool:
        """False once the cluster is stopped, or none of its brokers takes a connection."""
        if _running.get(self._key) is not self:
            return False
        for address in self._addresses.values():
            with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
                return True
        return False

    def stop(self) -> None:
        """Delete the topics and groups of this run; members that are still in a group are removed from it.

        Transactional ids cannot be deleted: Kafka forgets them by itself (transactional.id.expiration.ms, by default
        after seven days). What cannot be deleted now, because the cluster is away or the rights are missing, is named
        in a warning, and swept by a later start.
        """
        self._stop(STOP)

    def _harm(self, broker: int | None = None) -> None:
        """An external cluster's brokers are not ours to kill."""
        raise LabError(
            "Brokers of an external cluster cannot be killed, paused or restarted from here: use Cluster(brokers=3), "
            "which starts brokers on this machine."
        )

    kill = pause = resume = restart = heal = _harm

    # -- names and rights ----------------------------------------------------------------------------------------------

    @property
    def _pattern(self) -> re.Pattern:
        """Names that some run of the course made under this prefix; nothing else is ever swept."""
        return re.compile(re.escape(self._own) + r"course-(?P<time>[0-9a-f]{8})[0-9a-f]{4}\.(?P<name>.+)")

    def _check_topic(self, name: str, partitions: int, replication: int | None) -> None:
        room = LONGEST_TOPIC - len(self._prefix)
        if len(name) > room:
            raise LabError(
                f"The topic name {name[:20]}… has {len(name)} characters, and Kafka leaves room for {room} behind "
                f"{self._prefix}: choose a shorter one, or a shorter COURSE_TOPIC_PREFIX."
            )
        super()._check_topic(name, partitions, replication)

    def _replication(self, replication: int | None) -> int:
        return replication or -1  # the cluster's default.replication.factor

    @contextlib.contextmanager
    def _rights(self, what: str):
        """Turn a refusal for missing rights, also one that is the cause of a LabError, into a sentence of its own."""
        try:
            yield
        except (LabError, kafka_errors.AuthorizationError) as error:
            refusal = error.__cause__ if isinstance(error, LabError) else error
            if not isinstance(refusal, kafka_errors.AuthorizationError):
                raise
            raise LabError(self._refused(what)) from error

    def _refused(self, what: str) -> str:
        user = f"User {self._user}" if self._user else "A client that does not log in"
        setting = f"is {self._own}" if self._own else "is not set"
        return (
            f"{user} lacks rights on {what}: set COURSE_TOPIC_PREFIX, which {setting}, to the prefix that this user "
            "may use (it takes all operations on topics, groups and transactional ids)"
            + ("; in a class your corner may be full: ask the teacher." if self._own else ".")
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    def _reachable(self) -> list[int]:
        """The brokers that are in the metadata, of those that were there at the start."""
        return [b.node_id for b in self._metadata([]).brokers if b.node_id in self._addresses]

    def _partitions(self, topic: str, node: int | None = None) -> list:
        with self._rights(f"topic {topic}"):
            return super()._partitions(topic, node)

    # -- cleaning up ---------------------------------------------------------------------------------------------------

    def _named(self, wanted) -> tuple[list[str], list[str]]:
        """The topics and the groups on the cluster whose names satisfy `wanted`, as far as this user may see them."""
        topics = [topic.name for topic in self._metadata(None).topics if topic.name and wanted(topic.name)]
        groups = [group["group_id"] for group in self._admin.list_groups() if wanted(group["group_id"])]
        return topics, groups

    def _sweep(self) -> None:
        """Delete what runs of more than twelve hours ago have left; groups that have members are left alone."""

        with contextlib.suppress(kafka_errors.KafkaError):  # the next start tries again
            topics, groups = self._named(lambda name: self.is_older(name, OLD))
            if groups:
                self._admin.delete_groups(groups)
            if topics:
                self._admin.delete_topics(topics, raise_errors=False)

    def is_older(self, name: str, seconds: float) -> bool:
        """Return whether some run of the course, which began so long ago, has made this name under this prefix."""
        found = self._pattern.fullmatch(name)
        return bool(found) and int(found["time"], 16) <= time.time() - seconds

    def left(self, wanted) -> list[str]:
        """Return the topics and groups on the cluster whose names satisfy `wanted`."""
        return sorted({name for names in self._named(wanted) for name in names})

    def remove(self, wanted, timeout: float = STOP) -> list[str]:
        """Delete the topics and groups whose names satisfy `wanted`; returns those that are still there in the end."""
        with contextlib.suppress(TimeoutError, kafka_errors.KafkaError):
            wait_until(lambda: not self._delete(wanted), "the deletion", timeout, pause=0.1, retry=PASSING)
        return self.left(wanted)

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner:  # a fork of the owner must not delete the owner's topics
            self._stop(STOP_AT_EXIT)

    def _stop(self, timeout: float) -> None:
        atexit.unregister(self._stop_at_exit)
        if _running.get(self._key) is not self:
            return
        left = self._topics | self._groups

        def gone():
            nonlocal left
            left = self._delete(lambda name: name.startswith(self._prefix))
            return not left

        try:
            if not self.alive():
                raise TimeoutError("none of its brokers takes a connection")
            wait_until(gone, "the deletion", timeout, pause=0.1, retry=PASSING)
        except (kafka_errors.KafkaError, TimeoutError, RuntimeError) as error:
            names = ", ".join(sorted(left))
            warnings.warn(
                f"The external cluster did not delete all that this run made ({names}): {str(error).rstrip('.')}. "
                f"A `Cluster()` in {OLD // 3600} hours or later deletes what begins with {self._prefix}",
                stacklevel=2,
            )
        finally:
            self._end()

    def _delete(self, wanted) -> set[str]:
        """Try to delete what is named so, whoever made it; returns what was still there before."""
        topics, groups = self._named(wanted)
        if groups:
            for group, found in self._admin.describe_groups(groups).items():
                if found["members"]:
                    members = [MemberToRemove(member["member_id"]) for member in found["members"]]
                    self._admin.remove_group_members(group, members)
            self._admin.delete_groups(groups)
        if topics:
            self._admin.delete_topics(topics, raise_errors=False)
        return {*topics, *groups}
