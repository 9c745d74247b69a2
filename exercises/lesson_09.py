"""Questions of lesson 09, partitioning."""

import json

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.partitioner import Partitioner, murmur2
from kafka.serializer import JsonSerializer

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from exercises.frame.words import say_error
from helpers import Worker, wait_until
from helpers.pictures import capture_log, log_view

CUSTOMERS = ["ann", "bob", "eve", "mia", "zoë"]
ITEMS = ["tea", "cups"]


def _order(number: int) -> dict:
    customer, item = CUSTOMERS[number % len(CUSTOMERS)], ITEMS[number % len(ITEMS)]
    return {"order": number, "customer": customer, "item": item}


def _told(record) -> str:
    return f"order {json.loads(record.value)['order']}"


def _customer(record) -> str:
    return json.loads(record.value)["customer"]


# -- q1: the key


def _place_all(connection, topic, place, orders):
    """In a process of its own."""
    with KafkaProducer(**connection, value_serializer=JsonSerializer()) as producer:
        for order in orders:
            place(producer, topic, order)


def _judge_place(lab, place):
    topic, fewer = lab.topic(partitions=4), lab.topic("fewer", partitions=3)
    producer = lab.producer(value_serializer=JsonSerializer())
    orders = [_order(number) for number in range(1, 21)]
    # Another checkout, which meets the customers in another order; its hash() is another one, and so is its memory.
    worker = Worker(_place_all, lab.cluster.connection, topic, place, orders[::-1], environment={"PYTHONHASHSEED": "7"})
    lab.afterwards.callback(worker.kill)
    try:
        for order in orders:
            lab.call(place, producer, topic, dict(order))
    except TypeError as error:
        if "serialized key" not in str(error):
            raise
        raise Wrong(
            f"`send` raised TypeError: {error}",
            "a key that is bytes",
            "A key is bytes: `.encode()` makes them of text.",
        ) from error
    try:
        for order in orders:
            lab.call(place, producer, fewer, dict(order))
    except (ValueError, AssertionError) as error:
        raise Wrong(
            f"on a topic of three partitions: {say_error(error)}",
            "each order on that topic, too",
            "The number of partitions is the topic's matter. With a key, the partitioner looks it up.",
        ) from error
    if worker.wait() != "ended":
        raise Wrong("in another process it fails", "the same as in this one", worker.output.strip().splitlines()[-1])
    lab.close_clients()
    _compare_places(lab, fewer, orders)
    _compare_places(lab, topic, orders * 2, processes=2)
    return log_view(capture_log(lab.cluster, topic, label=_told, key=_customer), "One customer, one partition")


def _compare_places(lab, topic, orders, processes=1):
    records = lab.records(topic, value_deserializer=JsonSerializer())
    if sorted(map(str, (record.value for record in records))) != sorted(map(str, orders)):
        raise Wrong(f"{len(records)} records on the log", f"{len(orders)} orders", "Send each order once, as it is.")
    wanted = "one partition for each customer, from every process, and customers in more than one partition"
    log = capture_log(lab.cluster, topic, label=_told, key=_customer)
    places = {
        customer: sorted({record.partition for record in records if record.value["customer"] == customer})
        for customer in CUSTOMERS
    }
    if processes == 2 and len({record.partition for record in records}) == 1:
        raise Wrong(
            "all orders are in one partition",
            wanted,
            "The key (or the partition) is the same for all customers: so only one packer can work.",
            log_view(log, "One partition has everything"),
        )
    if scattered := [customer for customer in CUSTOMERS if len(places[customer]) > 1]:
        keys = [record.key for record in records]
        of_orders = {(record.value["order"], record.key) for record in records}
        if set(keys) == {None}:
            cause = (
                "Without a key, the partitioner takes a random partition for each record. A partition of your own "
                "choice has to be the same in every process; `hash()` of text is not."
            )
        elif all(keys.count(key) <= processes for key in keys):
            cause = "Each order has a key of its own: what has to stay together needs one and the same key."
        elif len(of_orders) > len({number for number, _ in of_orders}):
            cause = "Two processes gave one order two keys: `hash()` of text differs from process to process."
        else:
            cause = f"The keys on the log are {sorted(map(str, {*keys}))[:4]}: they do not stand for customers."
        raise Wrong(
            f"orders of {', '.join(scattered)} are in several partitions",
            wanted,
            cause,
            log_view(log, "A customer's orders in several partitions"),
        )


q1 = Question(
    "q1",
    wants=("place",),
    starter='''
def place(producer, topic, order):
    """Send an order, e.g. {"order": 1, "customer": "ann", "item": "tea"}; return its future, for a look at it."""
    return producer.send(topic, order, key=str(order["order"]).encode())
''',
    solution='''
def place(producer, topic, order):
    """Send an order, e.g. {"order": 1, "customer": "ann", "item": "tea"}; return its future, for a look at it."""
    return producer.send(topic, order, key=order["customer"].encode())
''',
    judge=_judge_place,
    hints=[
        "The key decides on the partition, and order is kept within a partition. What has to stay in order?",
        'The same customer, the same key: `order["customer"]`, as bytes.',
    ],
    why="The key is the one decision of this pattern that no code can make for you: what belongs together?",
    deadline=20,
)


# -- q2: which keys move

MOVERS = [
    "ann",
    "bob",
    "eve",
    "mia",
    "zoë",
    "joe",
    "kim",
    "sam",
    "Åsa",
    "李",
    "uma",
    "tim",
    "leo",
    "ida",
    "Jürgen",
    "Max",
]


def _partitions_on_the_log(lab, topic, partitions: int) -> dict[str, int]:
    """Where a producer of its own, that knows of so many partitions, puts each customer."""
    producer = lab.producer(metadata_max_age_ms=200)
    wait_until(lambda: len(producer.partitions_for(topic)) == partitions, f"{partitions} partitions")
    lab.cluster.wait_for_in_sync(topic)  # and the new partition's leader takes records
    futures = {customer: producer.send(topic, b"order", key=customer.encode()) for customer in MOVERS}
    producer.flush()
    return {customer: future.get(timeout=10).topic_partition.partition for customer, future in futures.items()}


def _judge_will_move(lab, will_move):
    counts = [3, 4, 6]
    topic = lab.topic(partitions=counts[0])
    before = _partitions_on_the_log(lab, topic, counts[0])
    for count, more in zip(counts, counts[1:], strict=False):
        said = lab.call(will_move, list(MOVERS), count, more, gives=(list, set, tuple))
        with KafkaAdminClient(**lab.cluster.connection) as admin:
            admin.create_partitions({topic: more})
        after = _partitions_on_the_log(lab, topic, more)
        moved = [customer for customer in MOVERS if before[customer] != after[customer]]
        if sorted(map(str, said)) != sorted(moved):
            raise Wrong(
                f"from {count} to {more} partitions, you said {sorted(map(str, said))}",
                f"{sorted(moved)}, whose next records were in another partition on the log",
                _why_not_these(set(said), set(moved), count, more),
            )
        before = after
    return f"the log agrees, from {counts[0]} to {counts[1]} partitions and on to {counts[2]}"


def _why_not_these(said: set, moved: set, count: int, more: int) -> str:
    def with_sign(customer):
        number = murmur2(customer.encode())
        return number % count != number % more

    if said == set(MOVERS) - moved:
        return "These are the customers that stay."
    if said == {customer for customer in MOVERS if with_sign(customer)}:
        return "The highest bit, the sign of Java's number, has to be cut off before the division: `& 0x7FFFFFFF`."
    if not said:
        return "Compare, for each customer, the partition of `before` with that of `after`."
    return "The rule is `(murmur2(key) & 0x7FFFFFFF) % partitions`, of the key's bytes; `hash()` is another one."


q2 = Question(
    "q2",
    wants=("will_move",),
    starter='''
def will_move(customers, before, after):
    """The customers whose partition changes when a topic of `before` partitions gets `after` of them."""
    return []
''',
    solution='''
def will_move(customers, before, after):
    """The customers whose partition changes when a topic of `before` partitions gets `after` of them."""
    moved = []
    for customer in customers:
        number = murmur2(customer.encode()) & 0x7FFFFFFF
        if number % before != number % after:
            moved.append(customer)
    return moved
''',
    judge=_judge_will_move,
    hints=[
        "A partition is what is left over from dividing the key's hash. Which hash do Kafka's clients take?",
        "`murmur2` is imported; it takes bytes, so `customer.encode()`.",
        "`murmur2(customer.encode()) & 0x7FFFFFFF`, and then `% before` against `% after`.",
    ],
    why="Before partitions are added, one should know whose order is at stake.",
    deadline=20,
)


# -- q3: partitions for large customers

LARGE = ["canteen", "hotel"]
SMALL = [*MOVERS[:12], None]


class _Cluster:
    """What a partitioner gets to know of a cluster: a topic of so many partitions, some of them without a leader."""

    def __init__(self, partitions: int, without_leader: int | None = None):
        self._all, self._away = set(range(partitions)), {without_leader}

    def topics(self):
        return {"orders"}

    def partitions_for_topic(self, topic):
        return set(self._all)

    def available_partitions_for_topic(self, topic):
        return self._all - self._away


def _send_all(connection, topic, kind, names):
    """Print the partition of each name, as JSON, in a process of its own, with a partitioner of its own."""
    with KafkaProducer(**connection, partitioner=kind(list(LARGE))) as producer:
        futures = {name: producer.send(topic, b"order", key=name.encode()) for name in names}
        print(json.dumps({name: future.get(timeout=10).topic_partition.partition for name, future in futures.items()}))


def _judge_large_customers(lab, large_customers_partitioner):
    partitioner = lab.call(large_customers_partitioner, list(LARGE), gives=large_customers_partitioner)
    if not isinstance(partitioner, Partitioner):
        raise Wrong(
            "a class without the base class `Partitioner`", "a `Partitioner`", "kafka-python calls it otherwise."
        )
    topic = lab.topic(partitions=5)
    producer = lab.producer(partitioner=partitioner)
    small = [name for name in SMALL if name]
    job = _send_all, lab.cluster.connection, topic, large_customers_partitioner, [*LARGE, *small][::-1]
    worker = Worker(*job, environment={"PYTHONHASHSEED": "7"})  # started now, so that it knows nothing of what follows
    lab.afterwards.callback(worker.kill)
    names = [*LARGE, *SMALL] * 3
    places: dict[str | None, set] = {name: set() for name in names}
    try:
        futures = [(name, producer.send(topic, b"order", key=name.encode() if name else None)) for name in names]
    except TypeError as error:
        if "positional argument" not in str(error):
            raise
        raise Wrong(
            f"`send` raised: {error}",
            "records on the log",
            "kafka-python 3 calls `partition` with `topic, key, serialized_key, value, serialized_value, cluster`.",
        ) from None
    producer.flush()
    for name, future in futures:
        places[name].add(future.get(timeout=10).topic_partition.partition)
    # The few records without a key may hit the shared partitions by luck: asked for 200 more, nobody is that lucky.
    places[None] |= {partitioner.partition("orders", None, None, b"", b"", _Cluster(5)) for _ in range(200)}
    _check_places(lab, topic, places)
    _check_other_process(worker, places, [*LARGE, *small])
    _check_other_clusters(partitioner, places, small)
    _check_other_keys(partitioner)
    _check_other_lists(large_customers_partitioner, partitioner)
    title = "A partition for the canteen, one for the hotel, three for the others"
    return log_view(capture_log(lab.cluster, topic, label=lambda record: ""), title, keys=LARGE)


def _check_places(lab, topic, places):
    picture = log_view(capture_log(lab.cluster, topic, label=lambda record: ""), "Who is where", keys=LARGE)
    for name, own in zip(LARGE, (4, 3), strict=True):
        if places[name] != {own}:
            cause = "`serialized_key` is bytes, the large customers' names are text: `b'hotel' == 'hotel'` is False."
            if places[name] <= {3, 4}:
                cause = "The first in the list has the last partition, the second the one before that."
            raise Wrong(
                f"of five partitions, the {name}'s orders are in {sorted(places[name])}",
                f"in partition {own} alone",
                cause,
                picture,
            )
    if guests := [name for name in SMALL if name and places[name] & {3, 4}]:
        raise Wrong(
            f"{', '.join(guests)} are in a partition of a large customer",
            "the others in partitions 0 to 2",
            "Divide by the number of shared partitions only.",
            picture,
        )
    if places[None] & {3, 4}:
        raise Wrong(
            f"orders without a key go to partitions {sorted(places[None])}",
            "in 0 to 2",
            "For a record without a key, too, choose among the shared partitions.",
            picture,
        )
    if scattered := [name for name in SMALL if name and len(places[name]) > 1]:
        raise Wrong(
            f"orders of {', '.join(scattered)} are in several partitions",
            "one key, one partition",
            "The choice must depend on the key alone, not on chance or on the order of the records.",
            picture,
        )
    if len(set().union(*(places[name] for name in SMALL if name))) == 1:
        raise Wrong(
            "all other customers are in one partition",
            "all three shared partitions in use",
            "Take a hash of the key, modulo the number of shared partitions.",
            picture,
        )


def _check_other_process(worker, places, names):
    if worker.wait() != "ended":
        raise Wrong("in another process it fails", "the same as in this one", worker.output.strip().splitlines()[-1])
    there = json.loads(worker.output.splitlines()[-1])
    if differ := [name for name in names if {there[name]} != places[name]]:
        raise Wrong(
            f"another process puts {', '.join(differ[:4])} into other partitions than this one",
            "the same partition in each process",
            "`hash()` differs from process to process, and so does what a partitioner remembers: take `murmur2`.",
        )


def _check_other_clusters(partitioner, places, small):
    def place(name, cluster):
        return partitioner.partition("orders", name.encode(), name.encode(), b"", b"", cluster)

    for away in (1, 4):
        if moved := [name for name in [*LARGE, *small] if {place(name, _Cluster(5, away))} != places[name]]:
            raise Wrong(
                f"while partition {away} has no leader, {', '.join(moved[:4])} go to another partition",
                "the same partition as always",
                "The *available* partitions change when a broker is down: use `cluster.partitions_for_topic`.",
            )
    fewer = {name: place(name, _Cluster(3)) for name in [*LARGE, *small]}
    if [fewer[name] for name in LARGE] != [2, 1] or any(fewer[name] != 0 for name in small):
        raise Wrong(
            f"on a topic of three partitions: {fewer}",
            "the canteen in 2, the hotel in 1, all others in 0",
            "Count from the number of partitions that the topic has.",
        )


def _put(partitioner, key: bytes | None, partitions: int = 5) -> int:
    """Where a partitioner puts a key, as the producer asks it."""
    return partitioner.partition("orders", key, key, b"", b"", _Cluster(partitions))


def _check_other_keys(partitioner) -> None:
    for key in (b"", b"\xff\xfe"):
        try:
            places = {_put(partitioner, key) for _ in range(50)}
        except Exception as error:
            raise Wrong(
                f"for the key {key!r} your partitioner raised {say_error(error)}",
                "a shared partition",
                "Keys are bytes, and need not be text: compare bytes with bytes, and decode nothing.",
            ) from error
        if len(places) > 1 or places & {3, 4}:
            raise Wrong(
                f"records with the key {key!r} go to partitions {sorted(places)}",
                "all to one of the partitions 0 to 2",
                "An empty key is a key, too: a record without one has `serialized_key is None`.",
            )


def _check_other_lists(kind, partitioner) -> None:
    """Other lists of large customers, none among them; and the first partitioner is as it was."""
    for large in ([], ["canteen", "hotel", "inn"], ["hotel"]):
        other, own = kind(list(large)), [4, 3, 2][: len(large)]
        try:
            places = [_put(other, name.encode()) for name in large], {_put(other, b"%d" % n) for n in range(200)}
        except Exception as error:
            raise Wrong(
                f"for the large customers {large} your partitioner raised {say_error(error)}",
                f"the large ones in {own}, the others in the rest",
                "`partitions[:-0]` is empty: without large customers, all partitions are shared."
                if not large
                else "Take the number of large customers from the list.",
            ) from error
        if places[0] != own or places[1] != {*range(5)} - {*own}:
            raise Wrong(
                f"for the large customers {large}, these go to {places[0]} and all others to {sorted(places[1])}",
                f"{own}, and all of the other partitions in use",
                "Take the number of large customers from the list.",
            )
    if [_put(partitioner, name.encode()) for name in LARGE] != [4, 3]:
        raise Wrong(
            "when a second partitioner is made, the first one has changed",
            "each has its own list",
            "What belongs to one object is kept in `self`, not in the class or the module.",
        )


q3 = Question(
    "q3",
    wants=("LargeCustomersPartitioner",),
    starter='''
class LargeCustomersPartitioner(Partitioner):
    """The last partitions for large customers, one each; the others are shared."""

    def __init__(self, large):
        self.large = large  # their names, e.g. ["canteen", "hotel"]

    def partition(self, topic, key, serialized_key, value, serialized_value, cluster):
        return 0
''',
    solution='''
class LargeCustomersPartitioner(Partitioner):
    """The last partitions for large customers, one each; the others are shared."""

    def __init__(self, large):
        self.large = [name.encode() for name in large]

    def partition(self, topic, key, serialized_key, value, serialized_value, cluster):
        partitions = sorted(cluster.partitions_for_topic(topic))
        shared = partitions[: len(partitions) - len(self.large)]
        if not shared:
            raise ValueError(f"{topic} has {len(partitions)} partitions: too few for {len(self.large)} large customers")
        if serialized_key is None:
            return random.choice(shared)
        if serialized_key in self.large:
            return partitions[-1 - self.large.index(serialized_key)]
        return shared[(murmur2(serialized_key) & 0x7FFFFFFF) % len(shared)]
''',
    judge=_judge_large_customers,
    hints=[
        "Three kinds of records: of a large customer, of another one, without a key. What does each need?",
        "`sorted(cluster.partitions_for_topic(topic))` are all partitions; the last `len(large)` of them are taken.",
        "`shared[(murmur2(serialized_key) & 0x7FFFFFFF) % len(shared)]` for the others, `random.choice(shared)` for "
        "records without a key; and `serialized_key` is bytes.",
    ],
    why="A partitioner is right when every process, on every day, gives the same answer for the same key.",
    deadline=25,
)


# -- q4: a move while orders keep coming

COUNT = 20


class _Checkout:
    """Places orders 1 to COUNT: some at once, one for each that is packed, and some around the switch."""

    def __init__(self, producer, old):
        self._producer, self._topic, self._placed = producer, old, 0
        self.switched, self.packed = False, []
        self._place(8)

    def _place(self, count: int) -> None:
        for _ in range(count):
            # Until the switch four are kept back: one that still goes to the old topic, three that open the new one.
            if self._placed < (COUNT if self.switched else COUNT - 4):
                self._placed += 1
                order = _order(self._placed)
                future = self._producer.send(self._topic, order, key=order["customer"].encode())
                future.get(timeout=10)

    def switch(self, topic) -> None:
        if not self.switched:
            self.switched = True
            self._place(1)
            self._topic = topic
            self._place(3)

    def pack(self, order) -> None:
        if not isinstance(order, dict):
            raise TypeError("`pack` takes an order, which is the record's value")
        self.packed.append(order["order"])
        self._place(1)


def _judge_move(lab, move):
    old, new = lab.topic("old", partitions=3), lab.topic("new", partitions=4)
    before = lab.producer()
    for topic, partitions in ((old, 3), (new, 4)):  # what was at the beginning is deleted: an offset is no count
        for partition in range(partitions):
            before.send(topic, b"{}", partition=partition)
        before.flush()
        with KafkaAdminClient(**lab.cluster.connection) as admin:
            admin.delete_records({TopicPartition(topic, partition): 1 for partition in range(partitions)})
    checkout = _Checkout(lab.producer(value_serializer=JsonSerializer()), old)
    stuck = ""
    try:
        lab.call(move, lab.cluster.connection, old, new, checkout.switch, checkout.pack, COUNT)
    except TimeoutError as error:
        stuck = f"; {error}"
    packed = checkout.packed
    wanted = f"orders 1 to {COUNT}, each once, each customer's in order"
    if not checkout.switched:
        raise Wrong(
            f"the checkout still writes to the old topic; packed: {packed}", wanted, "`switch(new)` is never called."
        )
    logs = [capture_log(lab.cluster, topic, label=_told) for topic in (old, new)]
    if again := sorted({number for number in packed if packed.count(number) > 1}):
        raise Wrong(f"packed twice: {again}", wanted, "Read each topic once, and go on from there.")
    late = [number for place, number in enumerate(packed) if any(_later(other, number) for other in packed[:place])]
    if late:
        raise Wrong(
            f"packed in this order: {packed}; after a later one of the same customer: {sorted(late)}",
            wanted,
            "The new topic was read before the old one was drained.",
            log_view(logs, "The old topic and the new one", keys=CUSTOMERS),
        )
    _compare_moved(
        lab, old, new, packed, wanted, stuck, log_view(logs, "The old topic and the new one", keys=CUSTOMERS)
    )
    _lets_errors_of_pack_out(lab, move)
    return log_view(logs, f"All {COUNT} orders are packed, each customer's in order", keys=CUSTOMERS)


class _NotPacked(Exception):
    """What `pack` raises."""


def _lets_errors_of_pack_out(lab, move) -> None:
    old, new = lab.topic("old-2"), lab.topic("new-2")
    lab.producer().send(old, json.dumps(_order(1)).encode()).get(timeout=10)

    def pack(order):
        raise _NotPacked

    try:
        lab.call(move, lab.cluster.connection, old, new, lambda topic: None, pack, 1)
    except _NotPacked:
        return
    raise Wrong(
        "`pack` raised an error for an order, and `move` came back as if it were packed",
        "the error: whoever calls `move` has to know that the order is not packed",
        "An `except` hides the error: let out what you cannot repair.",
    )


def _compare_moved(lab, old, new, packed, wanted, stuck, picture) -> None:
    """What was not packed, where it stands, and what has kept it from being packed."""
    missing = [number for number in range(1, COUNT + 1) if number not in packed]
    for topic, name in ((old, "old"), (new, "new")):
        records = lab.records(topic, value_deserializer=JsonSerializer())
        left = [record for record in records if record.value["order"] in missing]
        if not left:
            continue
        read = {record.partition for record in records if record.value["order"] in packed}
        if unread := sorted({record.partition for record in left} - read) if read else []:
            cause = f"Nothing was read from its partitions {unread}: a topic is read when all of its partitions are."
        elif not packed:
            cause = "An end offset is no number of records: what was at the beginning of the log may be deleted."
        elif name == "old":
            cause = "They were written there after you had read its end: it stands still only after the switch."
        else:
            cause = "After the old topic, go on with the new one, from its beginning, until `count` orders are packed."
        numbers = sorted(record.value["order"] for record in left)
        raise Wrong(f"never packed: {missing}; of these on the {name} topic: {numbers}{stuck}", wanted, cause, picture)


def _later(other: int, number: int) -> bool:
    return other > number and _order(other)["customer"] == _order(number)["customer"]


q4 = Question(
    "q4",
    wants=("move",),
    starter='''
def move(connection, old, new, switch, pack, count):
    """Pack `count` orders from two topics while the checkout is switched from the old one to the new one."""
    for topic in (old, new):
        for record in read_topic(connection, topic, value_deserializer=JsonSerializer()):
            pack(record.value)
''',
    solution='''
def move(connection, old, new, switch, pack, count):
    """Pack `count` orders from two topics while the checkout is switched from the old one to the new one."""
    switch(new)  # from now on nobody writes to the old topic: only now its end is the end
    rest = read_topic(connection, old, value_deserializer=JsonSerializer())
    for record in rest:
        pack(record.value)
    with KafkaConsumer(
        new, **connection, value_deserializer=JsonSerializer(), auto_offset_reset="earliest"
    ) as consumer:
        for _ in range(count - len(rest)):
            (record,) = take(consumer, 1)
            pack(record.value)
''',
    judge=_judge_move,
    hints=[
        "When does the old topic stop growing? Its end means nothing before that.",
        "Switch first, then `read_topic` of the old topic, which reads up to its end; only then the new one.",
        'For the new one, a consumer with `auto_offset_reset="earliest"` and `take(consumer, 1)`, until `count` '
        "orders are packed.",
    ],
    why="First nobody writes to the old log, then nobody has it left to read: only then may the new one begin.",
    deadline=40,
)
