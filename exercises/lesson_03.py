"""Questions of lesson 03, stream processing."""

import contextlib
import json

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers.errors import LabError
from helpers.streams.topology import Streams, application_id


@contextlib.contextmanager
def _driver(lab, write_steps, *topics):
    """The test driver with the topology that the learner's function has written down."""
    from org.apache.kafka.streams import TopologyTestDriver

    driver = TopologyTestDriver(_topology(lab, write_steps, *topics))
    try:
        yield driver
    finally:
        driver.close()


def _topology(lab, write_steps, *topics):
    from org.apache.kafka.streams import StreamsBuilder

    builder = StreamsBuilder()
    lab.call(write_steps, builder, *topics)
    topology = builder.build()
    if not list(topology.describe().subtopologies()):
        raise Wrong("no steps were written down", "steps that begin with `builder.stream`", "The builder is unused.")
    return topology


def _text():
    from org.apache.kafka.common.serialization import Serdes

    return Serdes.String()


def _pipe(driver, topic, *records):
    """Records as (key, value, seconds); it is the learner's topology that may not read the topic."""
    from java.time import Instant

    source = driver.createInputTopic(topic, _text().serializer(), _text().serializer())
    for key, value, second in records:
        source.pipeInput(key, value, Instant.ofEpochSecond(second))


def _results(driver, topic, deserializer=None) -> list:
    target = driver.createOutputTopic(topic, _text().deserializer(), deserializer or _text().deserializer())
    return [(record.key, record.value) for record in target.readKeyValuesToList()]


# -- q1: good orders one way, the others another way

GOOD = [{"order": 1, "pieces": 2}, {"order": 4, "pieces": 1}]
DEAD = [{"order": 2, "pieces": 0}, {"order": 3, "pieces": -1}]


def _judge_sort_orders(lab, sort_orders):
    placed = sorted(GOOD + DEAD, key=lambda order: order["order"])
    with _driver(lab, sort_orders, "orders", "good", "dead") as driver:
        _pipe(driver, "orders", *(("ann", json.dumps(order), order["order"]) for order in placed))
        good, dead = ([json.loads(value) for _, value in _results(driver, topic)] for topic in ("good", "dead"))
    if both := [order["order"] for order in good if order in dead]:
        raise Wrong(
            f"orders {both} are in `good` and in `dead`",
            "each order in one of them",
            "Each `to` takes all of its stream: `split` or a second filter (`filterNot`) divides it.",
        )
    if wrong := [order for order in good if order not in GOOD]:
        raise Wrong(f"in `good`: {wrong}", f"only {GOOD}", "Look at the comparison: more than zero, not zero.")
    if missing := [order for order in GOOD if order not in good]:
        raise Wrong(f"not in `good`: {missing}", f"{GOOD}", "They took the wrong branch, or were lost on the way.")
    if missing := [order for order in DEAD if order not in dead]:
        raise Wrong(
            f"not in `dead`: {missing}", f"{DEAD}, unchanged", "`filter` alone drops them: a branch needs its own `to`."
        )
    return "two orders are good, two are kept in `dead`"


q1 = Question(
    "q1",
    wants=("sort_orders",),
    starter='''
def sort_orders(builder, source, good, dead):
    """Orders with more than zero pieces go to `good`, all others to `dead`."""
    orders = builder.stream(source, Consumed.with_(TEXT, JSON))
    orders.to(good, Produced.with_(TEXT, JSON))
''',
    solution='''
def sort_orders(builder, source, good, dead):
    """Orders with more than zero pieces go to `good`, all others to `dead`."""
    orders = builder.stream(source, Consumed.with_(TEXT, JSON))
    orders.filter(lambda key, order: order["pieces"] > 0).to(good, Produced.with_(TEXT, JSON))
    orders.filterNot(lambda key, order: order["pieces"] > 0).to(dead, Produced.with_(TEXT, JSON))
''',
    judge=_judge_sort_orders,
    hints=[
        "Two ways out need two `to`. Which step lets through only some of the records?",
        "`filter(lambda key, order: …)` keeps those for which the function says True, `filterNot` the others; "
        "`split` with a branch and a `defaultBranch` does both.",
    ],
    why="What a program cannot use is kept where somebody can look at it, instead of being dropped in silence.",
)


# -- q2: one final count by product and window


def _judge_count_sold(lab, count_sold):
    from org.apache.kafka.common.serialization import Serdes

    sold = [("ann", "tea", 0), ("bob", "tea", 3), ("eve", "milk", 8), ("ann", "cups", 12), ("bob", "tea", 6)]
    with _driver(lab, count_sold, "sold", "counts") as driver:
        _pipe(driver, "sold", *sold, ("eve", "end", 60))  # closes all windows before it
        try:
            found = [(str(key), int(count)) for key, count in _results(driver, "counts", Serdes.Long().deserializer())]
        except Exception as error:
            raise Wrong(
                f"the results cannot be read ({type(error).__name__})",
                "products as text, and counts as `Long`",
                "`map` the windowed key to `window.key()`, and write with `Produced.with_(TEXT, LONG)`.",
            ) from None
    counts = sorted(result for result in found if result[0] != "end")
    wanted = [("cups", 1), ("milk", 1), ("tea", 3)]
    if counts == wanted:
        return f"one result each: {counts}; the tea that came late is counted"
    if not found:
        cause = "Nothing came out: is there a `to`, and does `suppress` stand behind `count`?"
    elif {key for key, _ in counts} & {"ann", "bob", "eve"}:
        cause = "You counted by customer: `groupBy` the record's value, the product."
    elif counts == [("cups", 1), ("milk", 1), ("tea", 2)]:
        cause = "The tea of second 6 came when stream time was 12: the window needs a grace period of 5 seconds."
    elif len(counts) > len({key for key, _ in counts}) and ("tea", 3) in counts and ("tea", 2) in counts:
        cause = (
            "There are results for a window that was still open (or windows that overlap): "
            "`suppress(Suppressed.untilWindowCloses(…))` gives one when it closes."
        )
    else:
        cause = "Tumbling windows of ten seconds, grace of five, `count`, `suppress`; in this order."
    raise Wrong(f"results {counts}", f"{wanted} for tea at 0, 3 and, late, 6 s; milk at 8 s; cups at 12 s", cause)


q2 = Question(
    "q2",
    wants=("count_sold",),
    starter='''
def count_sold(builder, source, target):
    """One count for each product and window of ten seconds, when the window closes."""
    sold = builder.stream(source, Consumed.with_(TEXT, TEXT))
    counts = sold.groupByKey(Grouped.with_(TEXT, TEXT)).count()
    counts.toStream().to(target, Produced.with_(TEXT, LONG))
''',
    solution='''
def count_sold(builder, source, target):
    """One count for each product and window of ten seconds, when the window closes."""
    sold = builder.stream(source, Consumed.with_(TEXT, TEXT))
    by_product = sold.groupBy(lambda customer, product: product, Grouped.with_(TEXT, TEXT))
    windows = TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofSeconds(5))
    counts = by_product.windowedBy(windows).count()
    final = counts.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))
    results = final.toStream().map(lambda window, count: (window.key(), count))
    results.to(target, Produced.with_(TEXT, LONG))
''',
    judge=_judge_count_sold,
    hints=[
        "Whose count is it? `groupBy` chooses the key that is counted.",
        "`TimeWindows.ofSizeAndGrace(…)` goes into `windowedBy`, between grouping and counting.",
        "`suppress` stands between `count` and `toStream`; then `map(lambda window, count: (window.key(), count))`.",
    ],
    why="A result that is sent to somebody can be right once, when the window closes; grace says how long to wait.",
)


# -- q3: each order with its customer's city

PLACED = [{"order": number, "customer": name} for number, name in enumerate(["ann", "bob", "eve", "joe", "kim"] * 2, 1)]
CITIES = {"ann": "Aachen", "bob": "Bonn", "eve": "Essen", "joe": "Jena"}  # nobody knows kim


def _judge_add_city(lab, add_city):
    orders, users = lab.topic("orders", partitions=3), lab.topic("users", partitions=2)
    target = lab.topic("with-city")
    producer = lab.producer()
    for name, city in CITIES.items():
        producer.send(users, json.dumps({"city": city}).encode(), key=name.encode())
    producer.flush()
    for order in PLACED:
        producer.send(orders, json.dumps(order).encode(), key=str(order["order"]).encode())
    producer.flush()
    topology = _topology(lab, add_city, orders, users, target)
    application = application_id(lab.cluster, "q3")
    try:
        with Streams(lab.cluster, topology, application) as streams:
            streams.wait_until_caught_up(timeout=15)
    except LabError as error:
        raise Wrong(
            f"Kafka Streams says: {error}",
            "a topology that runs",
            "Each step that writes or remembers needs the serdes of its key and value: `Joined.with_(TEXT, JSON, JSON)`"
            ", `Produced.with_(TEXT, JSON)`.",
        ) from None
    found = [(record.key.decode(), json.loads(record.value)) for record in lab.records(target)]
    wanted = {order["order"]: {**order, "city": CITIES.get(order["customer"])} for order in PLACED}
    cities = {value.get("order"): value.get("city", "no city") for _, value in found}
    if missing := sorted(set(wanted) - set(cities)):
        unknown = [order["order"] for order in PLACED if order["customer"] == "kim"]
        cause = "`join` drops what has no partner: `leftJoin` keeps it, with None in the user's place."
        if missing != unknown:
            cause = "Orders have their number as key: `selectKey` makes it the customer, before the join."
        raise Wrong(f"orders {missing} are not on the log", f"orders {sorted(wanted)}", cause)
    if wrong := [number for number in wanted if cities[number] != wanted[number]["city"]]:
        raise Wrong(
            f"the cities of orders {wrong} are {[cities[number] for number in wrong]}",
            f"{[wanted[number]['city'] for number in wrong]}",
            "A join finds its partner by the key, and the order's key is its number: `selectKey` changes it before.",
        )
    if len(found) != len(wanted):
        raise Wrong(f"{len(found)} results", f"{len(wanted)}, one for each order", "Is there a second `to`?")
    if keys := [key for key, value in found if key != value.get("customer")]:
        raise Wrong(f"keys {keys}", "the customer as key", "`selectKey` once, before the join.")
    return "all ten orders have their city, kim's None; Kafka Streams made the repartition topic itself"


q3 = Question(
    "q3",
    wants=("add_city",),
    starter='''
def add_city(builder, orders, users, target):
    """Each order with its customer's city; None where the customer is unknown."""
    placed = builder.stream(orders, Consumed.with_(TEXT, JSON))
    known = builder.table(users, Consumed.with_(TEXT, JSON))
    joined = placed.join(known, lambda order, user: {**order, **user}, Joined.with_(TEXT, JSON, JSON))
    joined.to(target, Produced.with_(TEXT, JSON))
''',
    solution='''
def add_city(builder, orders, users, target):
    """Each order with its customer's city; None where the customer is unknown."""
    placed = builder.stream(orders, Consumed.with_(TEXT, JSON))
    known = builder.table(users, Consumed.with_(TEXT, JSON))

    def with_city(order, user):
        return {**order, "city": user["city"] if user else None}

    by_customer = placed.selectKey(lambda number, order: order["customer"])
    joined = by_customer.leftJoin(known, with_city, Joined.with_(TEXT, JSON, JSON))
    joined.to(target, Produced.with_(TEXT, JSON))
''',
    judge=_judge_add_city,
    hints=[
        "A stream–table join looks up the record's *key*. What is the key of an order?",
        "`selectKey(lambda number, order: order['customer'])`; Kafka Streams then repartitions by itself.",
        "`leftJoin(known, function, Joined.with_(TEXT, JSON, JSON))` calls `function(order, None)` for unknown ones.",
    ],
    why="Key and partition decide whom a record can meet; a join that misses is silent.",
    deadline=25,
)
