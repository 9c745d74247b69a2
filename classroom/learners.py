"""Learners of a class: users, rights, quotas, cards.

A learner's corner is what begins with their name and a dot. There they may do everything, elsewhere nothing, but read
what begins with `shared.`, where the teacher may put records for all.
"""

import contextlib
import html
import re
import secrets
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ConfigResource,
    ConfigResourceType,
    MemberToRemove,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from classroom import server
from classroom.folder import Folder, Room
from helpers import internals, settings
from helpers.errors import LabError
from helpers.files import write_whole
from helpers.internals import AlterClientQuotasRequest
from helpers.kafka.cluster import PASSING
from helpers.waiting import wait_until

SHARED = "shared"  # nobody's name: what begins with it is the teacher's, for all to read
RESERVED = {SHARED, "admin", "course"}
KINDS = (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
#: What learners may do in their corner: not all, which would hold e.g. transactions without a timeout.
OPERATIONS = {
    ResourceType.TOPIC: "READ WRITE CREATE DELETE ALTER DESCRIBE DESCRIBE_CONFIGS ALTER_CONFIGS",
    ResourceType.GROUP: "READ DELETE DESCRIBE DESCRIBE_CONFIGS ALTER_CONFIGS",
    ResourceType.TRANSACTIONAL_ID: "WRITE DESCRIBE",
}
BOARD = "progress"  # the topic in a learner's corner that the board reads
TRANSACTIONS = "__transaction_state"
EMPTYING = 75  # seconds at most for a reset: members that cannot be removed are out after their session, 45 s

#: What one learner may take of the brokers (Kafka's client quotas), per second; a request that goes beyond has to wait.
QUOTAS = {
    "producer_byte_rate": 2_000_000,
    "consumer_byte_rate": 8_000_000,
    "request_percentage": 100,  # per cent of one thread's time; a broker has eleven threads
    "controller_mutation_rate": 10,  # partitions made or deleted
}
NEW_CONNECTIONS = 40  # a second from one address: each costs the broker a TLS handshake


def check_names(names: list[str]) -> None:
    """Refuse names that cannot be a learner's.

    Raises:
        LabError: the first of them.
    """
    for name in names:
        if name in RESERVED or not re.fullmatch(r"[a-z][a-z0-9-]{0,29}", name):
            raise LabError(
                f"{name!r} cannot be a learner's name: use small letters, digits and '-', a letter first, thirty at "
                f"most, and none of {', '.join(sorted(RESERVED))}."
            )


def numbered(count: int, room: Room) -> list[str]:
    """The names of `count` learners of whom nothing is known, learner01 and so on, without those who are there."""
    wanted = [f"learner{number:02}" for number in range(1, count + 1)]
    return [name for name in wanted if name not in room.learners]


def named(real: list[str], taken: Iterable[str]) -> dict[str, str]:
    """Learners' names for real ones ("Zoë Lee" is zoe-lee, another one zoe-lee-2), with the real ones."""
    found: dict[str, str] = {}
    for name in real:
        letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
        plain = re.sub(r"[^a-z0-9]+", "-", letters).strip("-0123456789")[:26] or "learner"
        number = 1
        while (short := plain if number == 1 else f"{plain}-{number}") in found or short in taken or short in RESERVED:
            number += 1
        found[short] = name
    return found


def add(folder: Folder, admin: KafkaAdminClient, names: list[str], real: dict[str, str] | None = None) -> None:
    """Make users with new passwords, their rights and their cards. One who is half made by an earlier try is made
    whole. `real` has real names, for the board.

    Raises:
        LabError: a name is taken, or none.
    """
    check_names(names)
    with folder.change() as room:
        for name in names:
            if name in room.learners:
                raise LabError(f"{name} is in the class already: the card is {card_file(folder, name)}.")
        passwords = {name: secrets.token_urlsafe(12) for name in names}
        enrol(admin, passwords)
        replicas = min(3, room.brokers)
        with contextlib.suppress(kafka_errors.TopicAlreadyExistsError):
            admin.create_topics({f"{name}.{BOARD}": _board_topic(replicas) for name in names})
        room.learners |= passwords
        room.names |= real or {}
        write_cards(folder, room, names)


def _board_topic(replicas: int) -> dict:
    """The last word on each question is kept for good, and all of a day's words for a day (compaction's lag).

    The learner may write what they like, and delete nothing: who writes far more than a class takes loses their own
    oldest words, instead of being held for good, and the board has no more than that to read.
    """
    configs = {
        "cleanup.policy": "compact,delete",
        "retention.ms": "-1",
        "retention.bytes": "5000000",
        "segment.bytes": "1048576",  # what is deleted is a whole one
        "max.message.bytes": "262144",  # a call for help in any script
        "compression.type": "uncompressed",  # so that the limit is of what the board unpacks
        "min.compaction.lag.ms": str(24 * 3600 * 1000),
        "message.timestamp.type": "LogAppendTime",  # by the broker's clock, whatever the learner's says
    }
    return {"num_partitions": 1, "replication_factor": replicas, "configs": configs}


def enrol(admin: KafkaAdminClient, passwords: dict[str, str], kinds: tuple = KINDS) -> None:
    """Make users, or give them other passwords, and their rights on the corners named after them.

    A password stays in this process: what goes to the broker is salted and hashed.
    """
    users = [UserScramCredentialUpsertion(name, "SCRAM-SHA-512", word) for name, word in passwords.items()]
    refused = {name: why for name, why in admin.alter_user_scram_credentials(users).items() if why}
    failed = admin.create_acls([right for name in passwords for right in rights(name, kinds)])["failed"]
    if refused or failed:
        raise LabError(f"The cluster did not take these users: {refused or failed}.")


def rights(name: str, kinds: tuple = KINDS) -> list[ACL]:
    """What a learner may do. Of the board's topic in their corner they may only write and read the records: the board
    relies on it, and the watchdog never deletes it, so that its partitions must not grow."""
    shared = [_acl(name, op, ResourceType.TOPIC, f"{SHARED}.") for op in (ACLOperation.READ, ACLOperation.DESCRIBE)]
    topic = ResourcePattern(ResourceType.TOPIC, f"{name}.{BOARD}", ACLResourcePatternType.LITERAL)
    harm = (ACLOperation.DELETE, ACLOperation.ALTER, ACLOperation.ALTER_CONFIGS)
    denied = [ACL(f"User:{name}", "*", operation, ACLPermissionType.DENY, topic) for operation in harm]
    own = [
        _acl(name, ACLOperation[operation], kind, f"{name}.")
        for kind in kinds
        for operation in OPERATIONS[kind].split()
    ]
    return [*own, *shared, *denied]


def _acl(name, operation, kind, prefix, permission=ACLPermissionType.ALLOW) -> ACL:
    pattern = ResourcePattern(kind, prefix, ACLResourcePatternType.PREFIXED)
    return ACL(f"User:{name}", "*", operation, permission, pattern)


def hold(admin: KafkaAdminClient, name: str) -> None:
    """Let a learner make no topics, add no partitions, write no records and commit no offsets, until `release`.

    Deleting goes on, and so does reading, but for that of groups.

    Raises:
        KafkaError: the cluster did not take it.
    """
    _check(admin.create_acls(_holds(name))["failed"])


def release(admin: KafkaAdminClient, name: str) -> None:
    """Take `hold` back.

    Raises:
        KafkaError: the cluster did not take it.
    """
    _delete_rights(admin, [_filter(acl) for acl in _holds(name)])


def suspend(admin: KafkaAdminClient, name: str) -> None:
    """Take a learner's log-in and what `hold` takes, until `admit`. What is connected ends when it has to log in again.

    Raises:
        KafkaError: the cluster did not take it.
    """
    hold(admin, name)
    admin.alter_user_scram_credentials([UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512)])


def suspended(admin: KafkaAdminClient, names: Iterable[str]) -> set[str]:
    """Who of these has no log-in."""
    return set(names) - set(admin.describe_user_scram_credentials())


def admit(folder: Folder, admin: KafkaAdminClient, name: str) -> None:
    """Take `suspend` back: the password on the card is good again."""
    enrol(admin, {name: folder.room().learners[name]})
    release(admin, name)


def _delete_rights(admin: KafkaAdminClient, filters: list[ACLFilter]) -> None:
    _check([error for _filter, _found, error in admin.delete_acls(filters)])


def _check(errors: list[type[kafka_errors.KafkaError]]) -> None:
    """Raise the first error: kafka-python returns what the cluster says of each right."""
    for error in errors:
        if error is not kafka_errors.NoError:
            raise error


def _holds(name: str) -> list[ACL]:
    denied = [
        *((ACLOperation[word], ResourceType.TOPIC) for word in ("CREATE", "WRITE", "ALTER", "ALTER_CONFIGS")),
        *((ACLOperation[word], ResourceType.GROUP) for word in ("READ", "ALTER_CONFIGS")),  # READ: to join, to commit
        (ACLOperation.WRITE, ResourceType.TRANSACTIONAL_ID),
    ]
    return [_acl(name, operation, kind, f"{name}.", ACLPermissionType.DENY) for operation, kind in denied]


def held(admin: KafkaAdminClient) -> set[str]:
    """Who is held now. (What everybody is denied, on the board's topic, is not by prefix.)"""
    any_denial = ACLFilter(
        None,
        "*",
        ACLOperation.ANY,
        ACLPermissionType.DENY,
        ResourcePatternFilter(ResourceType.TOPIC, None, ACLResourcePatternType.PREFIXED),
    )
    found, _ = admin.describe_acls(any_denial)
    return {acl.principal.removeprefix("User:") for acl in found}


def _filter(acl: ACL) -> ACLFilter:
    where = acl.resource_pattern
    pattern = ResourcePatternFilter(where.resource_type, where.resource_name, where.pattern_type)
    return ACLFilter(acl.principal, acl.host, acl.operation, acl.permission_type, pattern)


def set_quotas(admin: KafkaAdminClient) -> None:
    """Limit what any one learner, and any one address, may take; not the administrator and the brokers themselves."""
    entry = AlterClientQuotasRequest.EntryData
    limits = [  # without a name: each that has no quota of its own
        ("user", None, QUOTAS),
        ("user", "admin", dict.fromkeys(QUOTAS, 1e9)),
        ("ip", None, {"connection_creation_rate": NEW_CONNECTIONS}),
        ("ip", "127.0.0.1", {"connection_creation_rate": 1e5}),
    ]
    request = AlterClientQuotasRequest(
        entries=[
            entry(
                entity=[entry.EntityData(entity_type=kind, entity_name=name)],
                ops=[entry.OpData(key=key, value=float(value), remove=False) for key, value in quotas.items()],
            )
            for kind, name, quotas in limits
        ],
        validate_only=False,
    )
    answer = internals.send(admin, request)  # the admin client has no call for it
    for entry in answer.entries:
        if entry.error_code:
            raise LabError(f"The cluster did not take the quotas: {entry.error_message}.")


# -- leaving -----------------------------------------------------------------------------------------------------------


def reset(admin: KafkaAdminClient, name: str, keep: tuple[str, ...] = (BOARD,)) -> int:
    """Empty a learner's corner: topics, members of groups, groups; returns how many topics there were.

    What the board knows of them is kept; answers are in their notebooks, on their machine. Meanwhile they may not use
    groups: or the members that still run would join again, and those of the newer protocols, which kafka-python 3.0.12
    cannot remove, would stay.

    Raises:
        KafkaError: the cluster did not take a right, or not back.
        TimeoutError: it takes too long.
    """
    mine, kept = f"{name}.", {f"{name}.{topic}" for topic in keep}
    count = 0

    def empty():
        nonlocal count
        groups = [group["group_id"] for group in admin.list_groups() if group["group_id"].startswith(mine)]
        for group in groups:
            with contextlib.suppress(kafka_errors.GroupIdNotFoundError):  # one of a newer protocol, or gone
                if members := admin.describe_groups([group])[group]["members"]:
                    admin.remove_group_members(group, [MemberToRemove(member["member_id"]) for member in members])
        if groups:
            admin.delete_groups(groups)
        topics = [topic for topic in admin.list_topics() if topic.startswith(mine) and topic not in kept]
        if topics:
            admin.delete_topics(topics, raise_errors=False)
        count = max(count, len(topics))
        return not topics and not groups

    shut = _acl(name, ACLOperation.ALL, ResourceType.GROUP, mine, ACLPermissionType.DENY)
    _check(admin.create_acls([shut])["failed"])
    try:
        wait_until(empty, f"the corner of {name} to be empty", timeout=EMPTYING, pause=0.2, retry=PASSING)
    finally:
        _delete_rights(admin, [_filter(shut)])
    return count


def forget(folder: Folder, admin: KafkaAdminClient, name: str) -> None:
    """Leave nothing of a learner among the settings of groups, and in Kafka's topic of transactional ids.

    Kafka's admin clients have no request for the latter; what it takes for the ids' last word is a record without a
    value. A broker keeps them in memory until they expire, or until it is started again.

    Raises:
        KafkaError: the cluster did not take it.
    """
    mine = f"{name}."
    named = [group for group in admin.list_config_resources(["GROUP"]).get("group", ()) if group.startswith(mine)]
    for group in named:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.GROUP, group)])["group"][group]
        admin.reset_configs([ConfigResource(ConfigResourceType.GROUP, group, list(found))], raise_on_unknown=False)
    listed = [entry for found in admin.list_transactions().values() for entry in found]
    ids = {entry.transactional_id: entry.state for entry in listed if entry.transactional_id.startswith(mine)}
    if not ids:
        return
    room, ports = folder.room(), folder.running()["ports"]
    for transactional_id, state in ids.items():
        if state not in ("Empty", "CompleteCommit", "CompleteAbort"):  # abort it: its end would be written otherwise
            with server.connect(folder, room, ports, KafkaProducer, transactional_id=transactional_id) as producer:
                producer.init_transactions()
    # Brokers let nobody write to their own topics but who calls itself so.
    with server.connect(folder, room, ports, KafkaProducer, client_id="__admin_client") as producer:
        parts = internals.partitions_of_internal(producer, TRANSACTIONS)
        sent = []
        for transactional_id in ids:
            letters = transactional_id.encode()
            key = struct.pack(">hh", 0, len(letters)) + letters
            sent.append(producer.send(TRANSACTIONS, key=key, partition=_place_of(transactional_id, parts)))
        for each in sent:
            each.get(30)


def _place_of(transactional_id: str, parts: int) -> int:
    """The partition of Kafka's topic that keeps an id, by Java's hash of its letters."""
    number = 0
    for letter in transactional_id:
        number = (31 * number + ord(letter)) & 0xFFFFFFFF
    return min(number, 2**32 - number) % 2**31 % parts  # of the number's amount, as a signed one


def remove(folder: Folder, admin: KafkaAdminClient, name: str) -> None:
    """Take a learner out: rights first, so that what is connected can do nothing more, then the log-in, the corner and
    the card. What is connected ends when it has to log in again (`room.LOG_IN_AGAIN`).

    Raises:
        LabError: there is no such learner, or the cluster keeps the log-in.
        KafkaError: the cluster did not do the rest. The learner is still in the class: it can be tried again.
    """
    with folder.change() as room:
        check_known(room, name)
        mine = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        _delete_rights(admin, [ACLFilter(f"User:{name}", "*", ACLOperation.ANY, ACLPermissionType.ANY, mine)])
        log_in = UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512)
        refused = admin.alter_user_scram_credentials([log_in]).get(name)
        # An earlier try may have deleted it; the answer has only words for that, so ask what is there.
        if refused and admin.describe_user_scram_credentials([name])[name]["credential_infos"]:
            raise LabError(f"The cluster did not delete the log-in of {name} ({refused}): try again.")
        reset(admin, name, keep=())
        forget(folder, admin, name)
        room.learners.pop(name)
        room.names.pop(name, None)
        card_file(folder, name).unlink(missing_ok=True)


def renew(folder: Folder, admin: KafkaAdminClient, name: str) -> None:
    """Give a learner another password and a new card. What is connected with the old one ends when it has to log in
    again (`room.LOG_IN_AGAIN`)."""
    with folder.change() as room:
        check_known(room, name)
        room.learners[name] = secrets.token_urlsafe(12)
        enrol(admin, {name: room.learners[name]})
        write_cards(folder, room, [name])


def check_known(room: Room, name: str) -> None:
    """Refuse a name that is nobody's in this class."""
    if name not in room.learners:
        known = ", ".join(sorted(room.learners)) or "nobody"
        raise LabError(f"There is no learner {name} in this class, but {known}.")


# -- cards -------------------------------------------------------------------------------------------------------------


def card_file(folder: Folder, name: str):
    """Where a learner's card is."""
    return folder.path / "cards" / f"{name}.txt"


def environment(room: Room, name: str, ca_file: str) -> dict[str, str]:
    """The course's variables for a learner."""
    return {
        "COURSE_BOOTSTRAP_SERVERS": room.servers,
        "COURSE_SECURITY_PROTOCOL": "SASL_SSL",
        "COURSE_SASL_MECHANISM": "SCRAM-SHA-512",
        "COURSE_SASL_USERNAME": name,
        "COURSE_SASL_PASSWORD": room.learners[name],
        "COURSE_SSL_CA_FILE": ca_file,
        "COURSE_TOPIC_PREFIX": f"{name}.",
        "COURSE_BOARD_TOPIC": f"{name}.{BOARD}",
    }


#: To be printed: who gets which card. It holds no password.
LIST = """\
<!doctype html><meta charset="utf-8"><title>Cards of the class</title>
<style>body {{ font: 10pt sans-serif }} table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #999; text-align: left; padding: 2px 6px }}</style>
<table><tr><th>Name<th>Learner<th>Card<th>has it<th>doctor is ready{lines}</table>
"""
CA_FILE = ".kafka-class.pem"  # in a learner's home: who has it was in class from this machine
CARD = """\
# Kafka Design Patterns: the card of {name}. It holds your password: keep it to yourself.
#
# In class the lessons use the class's Kafka at {servers}. All that you make there begins with {name}. and nobody
# else in the class can see it. Save this file as it is, in the course's folder. In a terminal, in that folder:
#
#     source {name}.txt
#     .venv/bin/python -m helpers doctor        (is everything ready? do this before the class)
#     .venv/bin/python -m helpers lab
#
# Each new terminal has to `source` it again. It is for bash and zsh: Linux, macOS, WSL 2.
#
# Once joined, whether an answer is right or not yet goes to the teacher's board with each q1.check(); your code does
# not, unless you ask for help with q1.ask("what is the matter"). Without COURSE_BOARD_TOPIC below nothing goes there.

cat > "$HOME/{ca_file}" <<'END'
{ca}END
{lines}
echo "This terminal is in class, as {name}."
"""


def is_out_of_class() -> bool:
    """True in a terminal that has lost the variables of a card that was used on this machine."""
    with contextlib.suppress(RuntimeError):  # a user without a home
        return not settings.bootstrap_servers() and (Path.home() / CA_FILE).exists()
    return False


OUT_OF_CLASS = "This terminal is not in class: for that, `source` your card in it first."


def write_cards(folder: Folder, room: Room, names: list[str]) -> None:
    """Write the cards of learners, and a list of them to print; nobody but the teacher can read them."""
    (folder.path / "cards").mkdir(mode=0o700, exist_ok=True)
    for name in names:
        write_whole(card_file(folder, name), card(folder, room, name).encode(), 0o600)
    lines = "".join(
        f"<tr><td>{html.escape(room.names.get(name, ''))}<td>{name}<td>{name}.txt<td>\u2610<td>\u2610"
        for name in sorted(room.learners)
    )
    write_whole(folder.path / "cards" / "list.html", LIST.format(lines=lines).encode(), 0o600)


def card(folder: Folder, room: Room, name: str) -> str:
    """A learner's card. The values need no quoting but quotes: they hold letters, digits and -_.:, only."""
    values = environment(room, name, f"$HOME/{CA_FILE}")
    lines = (
        f'export {key}="{value}"' if value.startswith("$") else f"export {key}='{value}'"
        for key, value in values.items()
    )
    return CARD.format(
        name=name, servers=room.servers, ca_file=CA_FILE, ca=folder.ca_file.read_text(), lines="\n".join(lines)
    )


def read_card(text: str) -> tuple[dict[str, str], str]:
    """The course's variables of a card, and the authority's certificate, for which they name a file.

    Raises:
        LabError: it is no card.
    """
    values = dict(re.findall(r"^export (COURSE_\w+)=['\"](.*)['\"]$", text, re.M))
    certificate = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", text, re.S)
    if not certificate or "COURSE_BOOTSTRAP_SERVERS" not in values:
        raise LabError("This file is not a card of a class: take the file that the teacher sent, unchanged.")
    return values, certificate[0]
