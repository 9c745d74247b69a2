"""Questions of lesson 03, stream processing."""

import contextlib
import json
import re
import traceback

from exercises.frame.outcome import Wrong
from exercises.frame.question import Question
from helpers.errors import LabError
from helpers.streams.topology import Streams, application_id

_OWN_WORDS = [  # a pattern in what Java or the bridge says; what was observed, what was wanted, the likely cause
    (
        r"No matching overloads found for .*?(\w+)\(",
        "`{0}` does not take what it was given",
        "a function with as many parameters as the step hands over, and serdes behind it",
        "`filter`, `selectKey`, `groupBy` and `map` want a function of key *and* value: `lambda key, value: …`; "
        "`mapValues` one of the value; a join one of both values. Times are a `Duration`.",
    ),
    (
        r"Failed to initialize (key|value) serdes for (\w+)",
        "a step does not know how bytes become its {0}s (the {1} of a step has no serde)",
        "serdes wherever a topic is read or written, or a store remembers",
        "In the test driver nothing has a default: `Consumed.with_(TEXT, JSON)` in `stream`, "
        "`Grouped.with_(TEXT, TEXT)` in `groupBy`, `Produced.with_(TEXT, LONG)` in `to`. A step that changes key or "
        "value forgets its serde.",
    ),
    (
        r"ClassCastException while producing",
        "a step writes a key or a value that its serde cannot write",
        "keys and values of the kinds that `Produced.with_(…)` names",
        "Each `to` takes the serdes of what it writes: `Produced.with_(TEXT, JSON)`, or `LONG` for a count. Behind "
        "`windowedBy` the key is a window: `.map(lambda window, count: (window.key(), count))`.",
    ),
    (
        r"ClassCastException",
        "a step gets a key or a value of another kind than its serde takes",
        "serdes that fit: TEXT for text, JSON for what is made of JSON, LONG for counts",
        "Each step that writes or remembers takes the serdes of its own key and value, e.g. `Joined.with_(TEXT, JSON, "
        "JSON)`: key, the stream's value, the table's value.",
    ),
    (
        r"JSONDecodeError",
        "a value that is no JSON was read as JSON",
        "TEXT for text, JSON for JSON",
        "Look at `Consumed.with_(key, value)`.",
    ),
]


@contextlib.contextmanager
def _in_the_lessons_words():
    """Say what Java and the bridge say about a topology in the words of the lesson."""
    try:
        yield
    except Wrong:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        for pattern, observed, wanted, cause in _OWN_WORDS:
            if found := re.search(pattern, said, re.S):
                wrong = Wrong(observed.format(*found.groups()), wanted, cause)
                wrong.trace = "".join(traceback.format_exception(error))
                raise wrong from None
        raise


@contextlib.contextmanager
def _driver(lab, write_steps, *topics, remembers=""):
    """The test driver with the topology that the learner's function has written down."""
    from org.apache.kafka.streams import TopologyTestDriver

    with _in_the_lessons_words():
        driver = TopologyTestDriver(_topology(lab, write_steps, *topics, remembers=remembers))
        try:
            yield driver
        finally:
            driver.close()


def _topology(lab, write_steps, *topics, remembers=""):
    """The learner's topology; `remembers` names what it has to keep in a store, where it has to."""
    from org.apache.kafka.streams import StreamsBuilder

    builder = StreamsBuilder()
    lab.call(write_steps, builder, *topics)
    topology = builder.build()
    described = topology.describe()
    if not list(described.subtopologies()):
        raise Wrong("no steps were written down", "steps that begin with `builder.stream`", "The builder is unused.")
    if remembers and not re.search(r"stores: \[[^\]]", str(described.toString())):
        raise Wrong(
            f"no step has a store, yet {remembers} must be remembered",
            "a state store, which Kafka brings back in another process",
            "What a Python variable remembers is gone with its process, and another instance never has it.",
        )
    return topology


def _text():
    from org.apache.kafka.common.serialization import Serdes

    return Serdes.String()


def _pipe(driver, topic, *records):
    """Records as (key, value, seconds); it is the learner's topology that may not read the topic."""
    from java.time import Instant

    source = driver.createInputTopic(topic, _text().serializer(), _text().serializer())
    for key, value, second in records:
        source.pipeInput(key, value, Instant.ofEpochMilli(int(second * 1000)))


def _results(driver, topic, deserializer=None) -> list:
    target = driver.createOutputTopic(topic, _text().deserializer(), deserializer or _text().deserializer())
    return [(record.key, record.value) for record in target.readKeyValuesToList()]


# -- q1: good orders one way, the others another way

PLACED_BY = ["ann", "bob", "eve"]
GOOD = [{"order": 1, "pieces": 2}, {"order": 4, "pieces": 1}, {"order": 8, "pieces": 30, "wish": "tea, not milk"}]
DEAD = [
    {"order": 2, "pieces": 0},
    {"order": 3, "pieces": -1},
    {"order": 5},
    {"order": 6, "pieces": "two"},
    {"order": 7, "pieces": None},
    {"order": 9, "pieces": "3"},
]


def _judge_sort_orders(lab, sort_orders):
    placed = sorted(GOOD + DEAD, key=lambda order: order["order"])
    records = [(PLACED_BY[order["order"] % 3], order) for order in placed]
    came_in = {order["order"]: customer for customer, order in records}
    with _driver(lab, sort_orders, "orders", "good", "dead") as driver:
        for customer, order in records:
            try:
                _pipe(driver, "orders", (customer, json.dumps(order), order["order"]))
            except (KeyError, TypeError, AttributeError) as error:
                raise Wrong(
                    f"{order} stopped the topology: {type(error).__name__}: {error}",
                    "that order in `dead`, and the next ones processed",
                    "`order['pieces']` may be missing, or no number. Ask for that before you compare: "
                    "`isinstance(order.get('pieces'), int)`.",
                ) from None
        results = {topic: _results(driver, topic) for topic in ("good", "dead")}
    good, dead = ([json.loads(value) for _, value in results[topic]] for topic in ("good", "dead"))
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
    for topic, found, wanted in (("good", good, GOOD), ("dead", dead, DEAD)):
        if len(found) > len(wanted):
            more = [order for number, order in enumerate(found) if order in found[:number] or order not in wanted]
            raise Wrong(f"in `{topic}` too much: {more}", "each order once", f"Is there a second `to({topic})`?")
    for key, value in [*results["good"], *results["dead"]]:
        order = json.loads(value)["order"]
        if key != came_in[order]:
            raise Wrong(
                f"order {order} has the key {key!r}",
                f"{came_in[order]!r}, as it came: the key says whose order it is, and where it stands",
                "A step changed the key: `map` and `selectKey` do, `filter` and `split` do not.",
            )
    return f"{len(GOOD)} orders are good, {len(DEAD)} are kept in `dead`"


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

    def can_be_packed(key, order):
        pieces = order.get("pieces")
        return isinstance(pieces, int) and pieces > 0  # missing, `null` or text: an error here would stop all orders

    orders.filter(can_be_packed).to(good, Produced.with_(TEXT, JSON))
    orders.filterNot(can_be_packed).to(dead, Produced.with_(TEXT, JSON))
''',
    judge=_judge_sort_orders,
    hints=[
        "Two ways out need two `to`. Which step lets through only some of the records?",
        "`filter(lambda key, order: …)` keeps those for which the function says True, `filterNot` the others; "
        "`split` with a branch and a `defaultBranch` does both.",
        "A function that raises stops the topology. `order.get('pieces')` is None where the field is missing.",
    ],
    why="What a program cannot use is kept where somebody can look at it, instead of being dropped in silence.",
)


# -- q2: one final count by product and window


# Products by second, and what each stands for. Stream time is that of the last one; the windows end at 10 and 20.
SOLD = [
    ("ann", "tea", 0),
    ("bob", "tea", 3),
    ("eve", "milk", 9.999),
    ("ann", "cups", 10),  # the first moment of the next window
    ("eve", "tea", 12),
    ("bob", "tea", 6),  # late, within grace
]
BEFORE_GRACE_ENDS = [("ann", "cups", 14.999)]
GRACE_ENDS = [("bob", "milk", 15)]
TOO_LATE = [("bob", "tea", 9)]
AT_THE_END = [("eve", "end", 60)]  # closes all windows before it
FIRST_WINDOW, SECOND_WINDOW = [("milk", 1), ("tea", 3)], [("cups", 2), ("milk", 1), ("tea", 1)]


def _judge_count_sold(lab, count_sold):
    from org.apache.kafka.common.serialization import Serdes

    def results():
        try:
            found = _results(driver, "counts", Serdes.Long().deserializer())
            return sorted((str(key), int(count)) for key, count in found if str(key) != "end")
        except Exception as error:
            raise Wrong(
                f"the results cannot be read ({type(error).__name__})",
                "products as text, and counts as `Long`",
                "`map` the windowed key to `window.key()`, and write with `Produced.with_(TEXT, LONG)`.",
            ) from None

    with _driver(lab, count_sold, "sold", "counts", remembers="counts") as driver:
        _pipe(driver, "sold", *SOLD, *BEFORE_GRACE_ENDS)
        early = results()
        _pipe(driver, "sold", *GRACE_ENDS)
        first = results()
        _pipe(driver, "sold", *TOO_LATE)
        afterwards = results()
        _pipe(driver, "sold", *AT_THE_END)
        last = results()
    if (early, first, afterwards, last) == ([], FIRST_WINDOW, [], SECOND_WINDOW):
        return f"one result each: {first}, then {last}; the tea of second 6 came late and is counted"
    counts = early + first + afterwards + last
    observed, wanted = f"results {counts}", f"{FIRST_WINDOW} when stream time is 15, then {SECOND_WINDOW}"
    keys = {key for key, _ in counts}
    products = {product for _, product, _ in SOLD}
    if not counts:
        cause = "Nothing came out: is there a `to`, and does `suppress` stand behind `count`?"
    elif keys & {"ann", "bob", "eve"}:
        cause = "You counted by customer: `groupBy` the record's value, the product."
    elif not keys <= products:
        cause = "The key is to be the product alone: `window.key()`."
    elif early and {key for key, _ in early} == {"tea", "milk"} and len(early) == 2:
        cause = "The window closed too early: it needs a grace period of 5 seconds for what comes late."
    elif early:
        observed = f"results before the first window was closed: {early}"
        cause = (
            "There are results for a window that was still open (or windows that overlap): "
            "`suppress(Suppressed.untilWindowCloses(…))` gives one when it closes."
        )
    elif not first:
        observed = f"no result when stream time was 15; later {counts}"
        cause = "The window 0–10 closes at 15: size 10, grace 5. Yours is longer, or waits for longer."
    elif ("tea", 4) in counts and ("tea", 3) not in first:
        cause = "The tea of second 9 came after the window had closed, and is counted all the same."
    else:
        cause = "Tumbling windows of ten seconds, grace of five, `count`, `suppress`; in this order."
    raise Wrong(observed, wanted, cause)


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

CITIES = {"ann": "Aachen", "bob": "Bonn", "eve": "Essen", "joe": "Jena"}  # nobody knows kim
NEW_CITIES = {"ann": "Ahlen", "bob": None}  # ann moves, bob's user is deleted
BUYERS = [*CITIES, "kim"]


def _judge_add_city(lab, add_city):
    orders, users = lab.topic("orders", partitions=3), lab.topic("users", partitions=2)
    target = lab.topic("with-city", partitions=2)
    producer, application = lab.producer(), application_id(lab.cluster, "q3")
    wanted = {}

    def place(cities, numbers):
        for name, city in cities.items():
            user = json.dumps({"name": name.title(), "city": city}).encode() if city else None
            producer.send(users, user, key=name.encode())
        producer.flush()  # the users first: an order finds what is known at its moment
        for number in numbers:
            name = BUYERS[number % 5]
            order = {"order": number, "customer": name, "pieces": number}
            producer.send(orders, json.dumps(order).encode(), key=str(number).encode())
            wanted[number] = {**order, "city": ({**CITIES, **cities}).get(name)}
        producer.flush()

    def run():
        try:
            with _in_the_lessons_words():
                topology = _topology(lab, add_city, orders, users, target, remembers="where each user lives")
                with Streams(lab.cluster, topology, application) as streams:
                    streams.wait_until_caught_up(timeout=30)
        except LabError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            raise Wrong(
                f"Kafka Streams says: {error}",
                "a topology that runs",
                "Each step that writes or remembers needs the serdes of its key and value: `Joined.with_(TEXT, JSON, "
                "JSON)`, `Produced.with_(TEXT, JSON)`.",
            ) from None

    place(CITIES, range(1, 11))
    run()
    _look_at_cities(lab, target, wanted, CITIES)
    place(NEW_CITIES, range(11, 16))
    run()  # started again, as after a crash: it goes on with what the store remembers
    _look_at_cities(lab, target, wanted, {**CITIES, **NEW_CITIES}, "after ann moved, bob was deleted and a restart, ")
    return f"all {len(wanted)} orders have their city, kim's None; Kafka Streams made the repartition topic itself"


def _look_at_cities(lab, target, wanted, known, when="") -> None:
    found = []
    for record in lab.records(target):
        key, value = record.key and record.key.decode(), record.value and json.loads(record.value)
        if not isinstance(value, dict) or "order" not in value:
            cause = "All fields of the order, and of the user the city alone: `{**order, 'city': …}`."
            raise Wrong(f"{when}a record of {key} has the value {value!r}", "an order with its city", cause)
        found.append((key, value))
    cities = {value.get("order"): value.get("city", "no city") for _, value in found}
    if missing := sorted(set(wanted) - set(cities)):
        unknown = [number for number in wanted if not known.get(wanted[number]["customer"])]
        cause = "`join` drops what has no partner: `leftJoin` keeps it, with None in the user's place."
        if not set(missing) <= set(unknown):
            cause = "Orders have their number as key: `selectKey` makes it the customer, before the join."
        raise Wrong(f"{when}orders {missing} are not on the log", f"orders {sorted(wanted)}", cause)
    if wrong := [number for number in wanted if cities[number] != wanted[number]["city"]]:
        cause = "A join finds its partner by the key, and the order's key is its number: `selectKey` changes it before."
        if when:
            cause = (
                "A table holds the last value of each key; a user without a value is deleted. Ask it for each order."
            )
        raise Wrong(
            f"{when}the cities of orders {wrong} are {[cities[number] for number in wrong]}",
            f"{[wanted[number]['city'] for number in wrong]}",
            cause,
        )
    if len(found) != len(wanted):
        raise Wrong(f"{when}{len(found)} results", f"{len(wanted)}, one for each order", "Is there a second `to`?")
    if keys := [key for key, value in found if key != value.get("customer")]:
        raise Wrong(f"{when}keys {keys}", "the customer as key", "`selectKey` once, before the join.")
    for _, value in found:
        if value != wanted[value["order"]]:
            raise Wrong(
                f"{when}{value}",
                f"{wanted[value['order']]}",
                "All fields of the order, and of the user the city alone: `{**order, 'city': …}`.",
            )


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
    deadline=40,
)
