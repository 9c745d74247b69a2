"""The questions of lesson 03: starter, solution, and plausible wrong answers, each told apart."""

from exercises.frame.testing import hold
from exercises.lesson_03 import q1, q2, q3
from tools.lessons import LESSONS, code_cells, read

(LESSON,) = [path for path in LESSONS if path.name.startswith("03")]
SETUP = "\n".join(cell.source for cell in code_cells(read(LESSON))[:3])  # the imports, and those of Java's classes


def test_q1(cluster):
    hold(
        q1,
        {
            q1.changed("> 0).to(good", ">= 0).to(good"): "in `good` and in `dead`",
            q1.changed('    orders.filterNot(lambda key, order: order["pieces"] > 0).to(dead', "    str((dead").replace(
                "str((dead, Produced.with_(TEXT, JSON))", "str(dead)"
            ): "`filter` alone drops them",
            q1.changed('orders.filterNot(lambda key, order: order["pieces"] > 0).to(dead', "orders.to(dead"): (
                "`filterNot`"
            ),
            q1.answer.replace('order["pieces"] > 0', 'order["pieces"] >= 0'): "comparison",
        },
        cluster,
        SETUP,
    )


def test_q2(cluster):
    hold(
        q2,
        {
            q2.changed("groupBy(lambda customer, product: product, ", "groupByKey("): "counted by customer",
            q2.changed(
                "TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofSeconds(5))",
                "TimeWindows.ofSizeWithNoGrace(Duration.ofSeconds(10))",
            ): "grace period",
            q2.changed(
                "counts.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))", "counts"
            ): "still open",
        },
        cluster,
        SETUP,
    )


def test_q3(cluster):
    hold(
        q3,
        {
            q3.changed('placed.selectKey(lambda number, order: order["customer"])', "placed"): "`selectKey`",
            q3.changed("leftJoin", "join"): "`leftJoin` keeps it",
            q3.changed("joined.to(target, Produced.with_(TEXT, JSON))", "joined.to(target)"): "serdes",
        },
        cluster,
        SETUP,
    )
