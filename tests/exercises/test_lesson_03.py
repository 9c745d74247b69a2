"""The questions of lesson 03: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_03 import q1, q2, q3
from tests.answers import refused, right
from tools.lessons import LESSONS, code_cells, read

(LESSON,) = [path for path in LESSONS if path.name.startswith("03")]
SETUP = "\n".join(cell.source for cell in code_cells(read(LESSON))[:3])  # the imports, and those of Java's classes


SELECT = 'placed.selectKey(lambda number, order: order["customer"])'
FINAL = "counts.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))"
WINDOWS = "TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofSeconds(5))"
LAST_MAP = "results = final.toStream().map(lambda window, count: (window.key(), count))"


def test_q1(cluster):
    good = "    orders.filter(can_be_packed).to(good, Produced.with_(TEXT, JSON))\n"
    hold(
        q1,
        {
            q1.changed("orders.filter(can_be_packed)", "orders"): "in `good` and in `dead`",
            q1.changed("    orders.filterNot(can_be_packed).to(dead, Produced.with_(TEXT, JSON))", ""): (
                "`filter` alone drops them"
            ),
            q1.changed("orders.filterNot(can_be_packed)", "orders"): "`filterNot`",
            q1.changed("pieces > 0", "pieces >= 0"): "comparison",
            q1.changed("isinstance(pieces, int) and ", ""): "may be missing, or no number",
            q1.changed('order.get("pieces")', 'order["pieces"]'): "KeyError",
            q1.answer + "\n" + good: "in `good` too much",
            q1.changed("stream(source, Consumed.with_(TEXT, JSON))", "stream(source)"): "`Consumed.with_(TEXT, JSON)`",
            q1.changed("def can_be_packed(key, order)", "def can_be_packed(order)"): "`filter` does not take",
            q1.changed(
                "orders = builder.stream(source, Consumed.with_(TEXT, JSON))",
                "orders = builder.stream(source, Consumed.with_(TEXT, JSON)).selectKey(lambda key, o: str(o['order']))",
            ): "A step changed the key",
            q1.changed(
                "orders.filterNot(can_be_packed)",
                "orders.filterNot(can_be_packed).mapValues(lambda o: {**o, 'pieces': 0})",
            ): ("unchanged"),
        },
        cluster,
        SETUP,
    )


def test_q1_unusual(cluster):
    split = q1.answer[: q1.answer.index("    orders.filter(")]
    right(
        q1,
        [
            split
            + """    ways = orders.split(Named.as_("way-")).branch(can_be_packed, Branched.as_("good"))
    ways = ways.defaultBranch(Branched.as_("dead"))
    ways.get("way-good").to(good, Produced.with_(TEXT, JSON))
    ways.get("way-dead").to(dead, Produced.with_(TEXT, JSON))
""",
            split
            + """    bad = lambda key, order: not can_be_packed(key, order)
    orders.filterNot(bad).to(good, Produced.with_(TEXT, JSON))
    orders.filter(bad).to(dead, Produced.with_(TEXT, JSON))
""",
            q1.answer.replace("Produced.with_(TEXT, JSON)", "Produced.valueSerde(JSON)"),
        ],
        cluster,
        SETUP,
    )


def test_q2(cluster):
    hold(
        q2,
        {
            q2.changed("groupBy(lambda customer, product: product, ", "groupByKey("): "counted by customer",
            q2.changed(WINDOWS, "TimeWindows.ofSizeWithNoGrace(Duration.ofSeconds(10))"): "grace period",
            q2.changed(FINAL, "counts"): "still open",
            q2.changed(LAST_MAP, "results = final.toStream()"): "`.map(lambda window, count: (window.key(), count))`",
            q2.changed("(window.key(), count))", "(str(window.key()) + '!', count))"): "the product alone",
        },
        cluster,
        SETUP,
    )


def test_q2_more(cluster):
    grace = "TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofSeconds({}))"
    in_python = """
def count_sold(builder, source, target):
    counts = {}

    def count(customer, product):
        counts[product] = counts.get(product, 0) + 1
        return product, counts[product]

    builder.stream(source, Consumed.with_(TEXT, TEXT)).map(count).to(target, Produced.with_(TEXT, LONG))
"""
    refused(
        q2,
        {
            q2.changed(WINDOWS, WINDOWS.replace("(10)", "(30)")): "no result when stream time was 15",
            q2.changed(WINDOWS, WINDOWS.replace("(10)", "(20)")): "no result when stream time was 15",
            q2.changed(WINDOWS, WINDOWS.replace("(10)", "(5)")): "",
            q2.changed(WINDOWS, grace.format(10)): "waits for longer",
            q2.changed(WINDOWS, grace.format(4)): "",
            q2.changed(WINDOWS, WINDOWS + ".advanceBy(Duration.ofSeconds(5))"): "",
            q2.changed(
                WINDOWS, "SessionWindows.ofInactivityGapAndGrace(Duration.ofSeconds(10), Duration.ofSeconds(5))"
            ): "",
            q2.changed(f".windowedBy({'windows'})", ""): "",
            in_python: "gone with its process",
            q2.changed("Produced.with_(TEXT, LONG)", "Produced.with_(TEXT, TEXT)"): "or `LONG` for a count",
            q2.changed("Consumed.with_(TEXT, TEXT)", "Consumed.with_(TEXT, JSON)"): "TEXT for text",
            q2.changed(WINDOWS, "TimeWindows.ofSizeAndGrace(10, 5)"): "Times are a `Duration`",
            q2.answer.replace(
                "sold.groupBy(lambda customer, product: product, Grouped",
                "sold.groupBy(lambda product: product, Grouped",
            ): ("`lambda key, value: …`"),
        },
        cluster,
        SETUP,
    )


def test_q2_unusual(cluster):
    right(
        q2,
        [
            q2.changed(
                "sold.groupBy(lambda customer, product: product, ",
                "sold.selectKey(lambda customer, product: product).groupByKey(",
            ),
            q2.changed(".count()", ".reduce(lambda a, b: a)")
            .replace(
                "sold.groupBy(lambda customer, product: product, Grouped.with_(TEXT, TEXT))",
                "sold.map(lambda customer, product: (product, 1)).groupByKey(Grouped.with_(TEXT, LONG))",
            )
            .replace("lambda a, b: a", "lambda a, b: int(a) + int(b)"),
            q2.changed(
                ".count()", ".aggregate(lambda: 0, lambda key, value, n: n + 1, Materialized.with_(TEXT, LONG))"
            ),
        ],
        cluster,
        SETUP,
    )


def test_q3(cluster):
    hold(
        q3,
        {
            q3.changed(SELECT, "placed"): "`selectKey`",
            q3.changed("leftJoin", "join"): "`leftJoin` keeps it",
            q3.changed("joined.to(target, Produced.with_(TEXT, JSON))", "joined.to(target)"): "serdes",
            q3.changed("{**order, ", "{"): "All fields of the order",
        },
        cluster,
        SETUP,
    )


def test_q3_more(cluster):
    in_python = """
def add_city(builder, orders, users, target):
    cities = {}
    known = builder.stream(users, Consumed.with_(TEXT, JSON))
    known.foreach(lambda name, user: cities.update({name: user and user["city"]}))
    placed = builder.stream(orders, Consumed.with_(TEXT, JSON)).selectKey(lambda number, order: order["customer"])
    joined = placed.mapValues(lambda order: {**order, "city": cities.get(order["customer"])})
    joined.to(target, Produced.with_(TEXT, JSON))
"""
    twice = (
        q3.answer + "\n    joined.filter(lambda name, order: name == 'ann').to(target, Produced.with_(TEXT, JSON))\n"
    )
    refused(
        q3,
        {
            in_python: "gone with its process",
            twice: "second `to`",
            q3.changed('"city": user["city"] if user else None', "**(user or {'city': None})"): "the city alone",
            q3.changed(' if user else None', ""): "",
            q3.changed("def with_city(order, user)", "def with_city(order)"): "a join one of both values",
        },
        cluster,
        SETUP,
    )  # fmt: skip


def test_q3_unusual(cluster):
    everywhere = """
def add_city(builder, orders, users, target):
    known = builder.globalTable(users, Consumed.with_(TEXT, JSON))
    placed = builder.stream(orders, Consumed.with_(TEXT, JSON))
    with_city = placed.leftJoin(known, lambda number, order: order["customer"],
                                lambda order, user: {**order, "city": user["city"] if user else None})
    with_city.selectKey(lambda number, order: order["customer"]).to(target, Produced.with_(TEXT, JSON))
"""
    right(
        q3,
        [
            everywhere,
            q3.changed(SELECT, SELECT + ".repartition(Repartitioned.with_(TEXT, JSON).withNumberOfPartitions(2))"),
            q3.changed(
                SELECT,
                SELECT.replace(
                    'selectKey(lambda number, order: order["customer"])',
                    "map(lambda number, order: (order['customer'], order))",
                ),
            ),
        ],
        cluster,
        SETUP,
    )
