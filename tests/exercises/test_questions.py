"""The exercise frame: what a learner's code may do to a check, and one question on a real broker."""

import logging
import os
import signal
import sys
import textwrap
import threading
import time

import pytest
from jupyter_client.manager import start_new_kernel
from kafka import KafkaProducer

from exercises.frame import deadline
from exercises.frame.outcome import Wrong
from exercises.frame.question import Question, observers
from exercises.frame.sandbox import same
from exercises.frame.testing import hold
from helpers.errors import LabError
from helpers.waiting import wait_until

STARTER = """
def double(number):
    ...  # your code
"""
SOLUTION = """
def double(number):
    return 2 * number
"""


@pytest.fixture(autouse=True)
def usual_pace(monkeypatch):
    """A machine that is as fast as usual, whatever else the tests make it do."""
    monkeypatch.setattr(deadline, "slowness", lambda: 1.0)


def judge_double(lab, double):
    result = lab.call(double, 21, gives=int)
    if result != 42:
        raise Wrong(f"`double(21)` is {result}", "42", "Is it multiplied by two?")


def question(judge=judge_double, **changes):
    settings = {
        "wants": ("double",), "starter": STARTER, "solution": SOLUTION, "judge": judge, "why": "Twice is not once.",
        "hints": ["Multiply.", "By `2`."], "deadline": 5,
    }  # fmt: skip
    return Question("q1", **{**settings, **changes})


def answer(body, **changes):
    """The outcome for a `double` with this body."""
    source = "import asyncio, sys, time\n\ndef double(number):\n" + textwrap.indent(body, "    ")
    return question(**changes).try_answer(source)


# -- the three outcomes ----------------------------------------------------------------------------------------------


def test_a_question_keeps_its_promises():
    hold(question(), {"def double(number): return number": "multiplied", question().changed("return ", ""): "`return`"})


def test_hold_notices_a_question_that_does_not():
    wrong = {"def double(number): return 1": "multiplied", "def double(number): return 2": "multiplied"}
    for broken, complaint in [
        (question(solution=STARTER + "    number"), "Not 'right'"),
        (question(starter=SOLUTION), "Not 'right'"),  # the solution then counts as not started
        (question(hints=["only one"]), "more than one hint"),
        (question(lambda lab, double: None), "Not 'not right'"),
    ]:
        with pytest.raises(AssertionError, match=complaint):
            hold(broken, wrong)
    with pytest.raises(AssertionError, match="No 'another cause'"):
        hold(question(), dict.fromkeys(wrong, "another cause"))


def test_the_facts_of_the_three_outcomes():
    assert str(question().try_answer(STARTER)) == (
        "q1: not started yet\n"
        "  To do: Write `double` in the cell above, run it, then run this one again. `q1.hint()` helps."
    )
    assert str(answer("return 21")) == (
        "q1: not yet right\n  Observed: `double(21)` is 21\n  Wanted: 42\n  Likely cause: Is it multiplied by two?"
    )
    assert str(question().try_answer(SOLUTION)) == "q1: right\n  Why it matters: Twice is not once."
    judge_with_words = question(lambda lab, double: "42, as it should be.")
    assert "42, as it should be." in str(judge_with_words.try_answer(SOLUTION))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "double = ...",
        "double = None",
        "# my ideas:\n\ndef double( number ):\n\n    # some more\n    ...",
        "def twice(number): return 2 * number",
    ],
)
def test_comments_white_space_and_missing_names_are_not_started(source):
    assert question().try_answer(source).state == "not started"


def test_a_starter_whose_imports_are_missing_is_not_started():
    needs_imports = question(starter="from nowhere import nothing\n\ndef double(number): ...")
    assert needs_imports.judge({}).state == "not started"


@pytest.mark.parametrize(
    ("starter", "started"),
    [
        ("settings = {'acks': 1}", "settings = {'acks': 'all'}"),
        ("class A:\n    def f(self): return 1", "class A:\n    def f(self): return 2"),
        ("class A:\n    size = 1", "class A:\n    size = 2"),
        ("class A:\n    def f(self): return super().f()", "class A:\n    def f(self): return super().g()"),
        ("class A:\n    @property\n    def f(self): return 1", "class A:\n    @property\n    def f(self): return 2"),
        ("class A:\n    @staticmethod\n    def f(): return 1", "class A:\n    @staticmethod\n    def f(): return 2"),
        ("def f(x=1): return x", "def f(x=2): return x"),
        ("def f():\n    def g(): return 1\n    return g", "def f():\n    def g(): return 2\n    return g"),
        ("handlers = {'a': lambda: 1}", "handlers = {'a': lambda: 2}"),
        ("def d(g):\n    return lambda: g()\nf = d(lambda: 1)", "def d(g):\n    return lambda: g()\nf = d(lambda: 2)"),
    ],
)
def test_what_was_changed_is_told_by_the_code_that_runs(starter, started):
    def made(source):
        namespace = {"__name__": "__main__"}
        exec(source, namespace)
        return next(namespace[name] for name in ("settings", "A", "f", "handlers") if name in namespace)

    assert same(made("# a comment\n\n\n" + starter.replace("\n", "  # and more\n\n")), made(starter))
    assert not same(made(started), made(starter))


def test_a_setting_that_was_not_changed_is_not_started():
    setting = question(lambda lab, acks: None, wants=("acks",), starter="acks = 1")
    assert [setting.try_answer(f"acks = {value}").state for value in (1, "'all'")] == ["not started", "right"]


def test_some_of_several_names_is_not_right():
    both = question(lambda lab, double, triple: None, wants=("double", "triple"))
    assert "there is no `triple` yet" in str(both.try_answer(SOLUTION))


# -- what the learner's code may do ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ("return 1 / 0", ["ZeroDivisionError: division by zero", "line 4, `return 1 / 0`"]),
        ("return numbr", ["NameError", "typing mistake"]),
        ("return double(number)", ["RecursionError", "without an end"]),
        ("sys.exit(3)", ["SystemExit: 3", "comes back with `return`"]),
        ("raise NotImplementedError", ["NotImplementedError", "placeholder"]),
        ("raise asyncio.CancelledError", ["CancelledError in line 4"]),
        ("class Mean(Exception):\n    def __str__(self): 1 / 0\nraise Mean", ["stopped with Mean in line 6"]),
        ("yield 42", ["`double` gave a generator", "Wanted: an int", "`yield`"]),
        ("print(42)", ["gave None", "printing a value does not give it back", "Your code printed: 42"]),
        ("return '42'", ["`double` gave a str, '42'"]),
    ],
)
def test_each_misbehaviour_is_an_answer(body, facts):
    outcome = answer(body)
    assert outcome.state == "not right"
    assert all(fact in str(outcome) for fact in facts), outcome


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        ("async def double(number): return 42", ["gave a coroutine", "nobody awaits it"]),
        ("double = 42", ["`double` is an int, 42", "Wanted: a function"]),
        ("def double(): return 42", ["`double()` cannot be called", "too many positional arguments"]),
        ("class double:\n    def __init__(self, number): pass", ["gave a double"]),
    ],
)
def test_an_answer_of_another_kind(source, facts):
    outcome = question().try_answer(source)
    assert outcome.state == "not right"
    assert all(fact in str(outcome) for fact in facts), outcome


def test_a_result_that_the_judge_did_not_expect():
    careless = question(lambda lab, double: double(21)["result"])
    outcome = careless.try_answer(SOLUTION)
    assert "the check could not work with your answer: TypeError: 'int' object is not subscriptable" in str(outcome)
    assert 'double(21)["result"]' in outcome.trace  # for the author


LOOPS = {
    "plain": "while True: pass",
    "sleep": "while True: time.sleep(0.01)",
    "one long sleep": "time.sleep(60)",
    "bare except": "while True:\n    try: time.sleep(0.01)\n    except: pass",
    "bare except, nothing in it": "while True:\n    try: pass\n    except: pass",
    "BaseException": "while True:\n    try: time.sleep(0.01)\n    except BaseException as error: last = error",
    "all are kept": "kept = []\nwhile True:\n    try: time.sleep(0.01)\n    except BaseException as e: kept.append(e)",
    "finally": "while True:\n    try: time.sleep(0.01)\n    finally: continue",
    "swallowed, then wrong": "try: time.sleep(60)\nexcept: return 1",
    "another exception": "try: time.sleep(60)\nexcept BaseException as error: raise ValueError('mine') from error",
    "prints": "while True: print('again')",
}
LOOPS["nested"] = "while True:\n    try:\n" + textwrap.indent(LOOPS["bare except"], " " * 8) + "\n    except: pass"


@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_an_endless_loop_is_an_answer(body):
    began, tracer = time.monotonic(), sys.gettrace()
    outcome = answer(body, deadline=0.2)
    assert "after 0.2 s your code was still running, in line" in str(outcome)
    assert sys.gettrace() is tracer
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("body", [LOOPS["plain"], LOOPS["sleep"], LOOPS["bare except, nothing in it"], "return 42"])
def test_where_there_is_no_signal_a_thread_does_it(body, monkeypatch):
    monkeypatch.delattr(signal, "SIGALRM")
    outcome = answer(body, deadline=0.2)
    assert outcome.state == ("right" if "42" in body else "not right")
    assert "42" in body or "after 0.2 s your code was still running, in line" in str(outcome)
    assert not any(thread.name == "check" for thread in threading.enumerate())


def test_a_thread_that_cannot_be_stopped_is_told():
    outcomes, thread = [], threading.Thread(target=lambda: outcomes.append(answer("time.sleep(3)", deadline=0.1)))
    thread.start()  # not on the main thread there is no signal either
    thread.join()
    assert "It could not be stopped and still runs: restart the kernel." in str(outcomes[0])


@pytest.mark.parametrize("body", ["return 42", "while True: pass", "1 / 0", LOOPS["bare except"]])
def test_the_earlier_timer_and_handler_are_back(body):
    rings = []
    earlier = signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    earlier_timer = signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        answer(body, deadline=0.2)
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] < 60
        assert not rings
        signal.raise_signal(signal.SIGALRM)
        assert rings
    finally:
        signal.signal(signal.SIGALRM, earlier)
        signal.setitimer(signal.ITIMER_REAL, *earlier_timer)


def test_an_interrupt_passes_and_leaves_all_as_it_was():
    before = (signal.getsignal(signal.SIGALRM), KafkaProducer.__init__, sys.stdout, sys.stderr)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        answer("while True: time.sleep(0.01)")
    assert before == (signal.getsignal(signal.SIGALRM), KafkaProducer.__init__, sys.stdout, sys.stderr)
    assert logging.getLogger("kafka").propagate


@pytest.mark.filterwarnings("ignore:w:UserWarning")
def test_nothing_of_the_learners_gets_out(capfd):
    talk = "import logging, warnings\nprint(*range(30), sep='\\n')\nprint('x', file=sys.stderr)\nwarnings.warn('w')\n"
    talk += "logging.getLogger('kafka.cluster').error('kafka')\nlogging.error('root')\n"
    talk += "from IPython.display import display\ndisplay(1)\nreturn 1"
    logging.getLogger().handlers, handlers = [], logging.getLogger().handlers
    try:
        outcome = answer(talk)
    finally:
        logging.getLogger().handlers = handlers
    assert "Your code printed:\n    0\n    1\n    2\n    3\n    4\n    … and 26 more lines" in str(outcome)
    assert capfd.readouterr() == ("", "")


def test_what_is_printed_without_an_end_does_not_fill_the_memory():
    outcome = answer(LOOPS["prints"], deadline=0.5)
    assert "again" in str(outcome) and len(str(outcome)) < 1000


# -- the cluster -----------------------------------------------------------------------------------------------------


class FakeCluster:
    def __init__(self, alive=True, error=None):
        self.is_alive, self.error = alive, error

    def alive(self):
        return self.is_alive

    def topic(self, name):
        if self.error:
            raise self.error
        return name


def judge_topic(lab, double):
    assert lab.topic("orders") == "q1-orders"
    double(1)


@pytest.mark.parametrize(
    ("cluster", "fact"),
    [
        (None, "there is no `cluster` in this notebook yet"),
        (FakeCluster(alive=False), "`cluster` is stopped, or its brokers are dead"),
        (42, "`cluster` is stopped"),
        (FakeCluster(error=LabError("The disk is full.")), "The disk is full."),
    ],
)
def test_what_is_in_the_way_of_the_check_is_no_wrong_answer(cluster, fact):
    outcome = question(judge_topic).try_answer(SOLUTION, cluster)
    assert (outcome.state, outcome.judged) == ("not judged", False)
    assert str(outcome).startswith("q1: not judged") and fact in str(outcome)


def test_brokers_that_die_meanwhile_are_the_reason_for_the_exception():
    cluster = FakeCluster()
    outcome = question(judge_topic).try_answer(
        "def double(number):\n    cluster.is_alive = False\n    raise TimeoutError", cluster
    )
    assert "its brokers are dead" in str(outcome) and not outcome.judged


def test_a_judge_that_waits_in_vain_does_not_blame_the_learner():
    outcome = question(lambda lab, double: time.sleep(60), deadline=0.2).try_answer(SOLUTION, FakeCluster())
    assert "the check itself had not ended after 0.2 s" in str(outcome) and not outcome.judged


# -- how it looks, and who is told -----------------------------------------------------------------------------------


def test_hints_come_one_by_one():
    asked = question()
    assert [str(asked.hint()) for _ in range(3)] == [
        "q1 (hint 1 of 2)\n  Multiply.",
        "q1 (hint 2 of 2)\n  By `2`.",
        "q1 (hint 2 of 2)\n  By `2`.",
    ]
    assert "<code>2</code>" in asked.hint()._repr_mimebundle_()["text/html"]


def test_the_solution_is_shown_as_code():
    shown = question().solution()
    assert shown._repr_mimebundle_()["text/markdown"] == f"q1, one solution:\n\n```python\n{SOLUTION.strip()}\n```"
    assert SOLUTION.strip() in str(shown)


def test_the_card_has_the_facts_of_the_text_escaped_and_the_picture():
    def judge(lab, double):
        raise Wrong("1 < 2 & `<b>`", "more", picture=FakePicture())

    outcome = question(judge).try_answer(SOLUTION)
    bundle = outcome._repr_mimebundle_()
    assert "1 &lt; 2 &amp; <code>&lt;b&gt;</code>" in bundle["text/html"] and "Likely cause" not in bundle["text/html"]
    assert 'alt="the log &lt;0&gt;"' in bundle["text/html"] and "base64,UE5H" in bundle["text/html"]
    assert bundle["text/plain"] == str(outcome) and str(outcome).endswith("the log <0>")


class FakePicture:
    def __repr__(self):
        return "the log <0>"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), "image/png": "UE5H"}, {"image/png": {"width": 100}}


def test_observers_are_told_and_cannot_harm_the_check():
    told = []

    def broken(*_):
        raise RuntimeError("the teacher's board is away")

    observers.extend([broken, lambda *news: told.append(news)])
    try:
        for source in (STARTER, "def double(number): return 1", SOLUTION):
            question().try_answer(source)
        question(judge_topic).try_answer(SOLUTION)  # could not be judged: no news
    finally:
        del observers[-2:]
    assert told == [("test_questions", "q1", state) for state in ("not started", "not right", "right")]


# -- in a kernel -----------------------------------------------------------------------------------------------------


def test_in_a_notebook(tmp_path):
    """The names come from the notebook; an endless loop ends on the kernel's main thread; nothing goes to stderr."""
    manager, client = start_new_kernel(cwd=os.path.dirname(__file__))

    def run(code):
        outputs = []
        client.execute_interactive(code, timeout=60, output_hook=outputs.append)
        return {message["msg_type"]: message["content"] for message in outputs}

    def interrupt_when_it_runs():
        wait_until((tmp_path / "runs").exists, "the answer to run", timeout=30)
        manager.interrupt_kernel()

    try:
        run("import sys\nfrom pathlib import Path\nfrom test_questions import deadline, question")
        run("q1 = question(deadline=1)")
        run("deadline.slowness = lambda: 1.0")
        assert "not started" in run("q1.check()")["execute_result"]["data"]["text/plain"]
        run("def double(number):\n    while True:\n        try: sys.stderr.write('x')\n        except: pass")
        shown = run("q1.check()")
        assert "after 1 s your code was still running, in line" in shown["execute_result"]["data"]["text/plain"]
        assert "stream" not in shown and "error" not in shown
        run(f"q1.deadline, runs = 50, Path({str(tmp_path / 'runs')!r})")
        run("def double(number):\n    runs.touch()\n    while True: pass")
        threading.Thread(target=interrupt_when_it_runs).start()
        assert run("q1.check()")["error"]["ename"] == "Interrupted"
        run("def double(number):\n    return 2 * number")
        assert "right" in run("q1.check()")["execute_result"]["data"]["text/html"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# -- on a real broker ------------------------------------------------------------------------------------------------

ORDERS = [{"order": n, "user": user} for n, user in enumerate(["ann", "bob", "ann", "cem", "bob", "ann"])]
IMPORTS = "import json\nfrom kafka import KafkaConsumer, KafkaProducer"


def judge_send_orders(lab, send_orders):
    topic = lab.topic("orders", partitions=3)
    producer = lab.producer(linger_ms=3000)  # long enough to see that a record was only buffered
    lab.call(send_orders, producer, topic, ORDERS)
    records = lab.records(topic)
    if len(records) < len(ORDERS):
        raise Wrong(
            f"when `send_orders` came back, {len(records)} of {len(ORDERS)} orders were on the log",
            "all of them",
            "`send` only puts a record into the producer's buffer; who waits until the buffer is empty?",
        )
    keys = {record.key for record in records}
    users = {order["user"].encode() for order in ORDERS}
    if keys != users:
        cause = "`send` got no `key`." if keys == {None} else "The key says what stays in order: here a user's orders."
        raise Wrong(f"the keys on the log are {sorted(map(str, keys))}", "each order's user as its key", cause)
    return "Each user's orders are in one partition, in the order in which they were sent."


SEND_ORDERS = Question(
    "q2",
    wants=("send_orders",),
    starter="""
        def send_orders(producer, topic, orders):
            for order in orders:
                ...
    """,
    solution="""
        def send_orders(producer, topic, orders):
            for order in orders:
                producer.send(topic, json.dumps(order).encode(), key=order["user"].encode())
            producer.flush()
    """,
    judge=judge_send_orders,
    hints=["What decides the partition?", "`send` takes a `key`."],
    why="Kafka keeps the order of records within one partition only.",
)


def kafka_threads():
    return {t for t in threading.enumerate() if "kafka" in t.name or "Sender" in type(t).__name__}


def test_a_real_question(cluster):
    wrong = {
        SEND_ORDERS.changed(', key=order["user"].encode()', ""): "got no `key`",
        SEND_ORDERS.changed('order["user"]', 'str(order["order"])'): "a user's orders",
        SEND_ORDERS.changed("    producer.flush()", ""): "0 of 6 orders were on the log",
        SEND_ORDERS.changed(".encode(), key", ", key"): "TypeError",
        SEND_ORDERS.changed(
            "    producer.flush()", "    for record in KafkaConsumer(topic, **cluster.connection): print(record)"
        ): "still running, in line 4, `for record in KafkaConsumer",
    }
    before = kafka_threads()
    hold(SEND_ORDERS, wrong, cluster, IMPORTS)
    assert kafka_threads() <= before


def test_clients_left_open_are_closed_after_the_judge_has_seen_the_log(cluster):
    """The learner's own producer, dropped without flush: not on the log for the judge, and no thread of it lives on."""
    seen, before = [], kafka_threads()

    def judge(lab, double):
        topic = lab.topic()
        double(topic)
        seen.append(len(lab.records(topic)))
        lab.close_clients()
        seen.append(len(lab.records(topic)))

    source = (
        IMPORTS
        + """
class MyProducer(KafkaProducer): pass

def double(topic):
    MyProducer(**cluster.connection, linger_ms=60_000).send(topic, b"1")
    consumer = KafkaConsumer(topic, group_id=cluster.group("g"), **cluster.connection)
    consumer.poll(timeout_ms=100)
    consumer.cycle = consumer
"""
    )
    outcome = question(judge).try_answer(source, cluster)
    assert outcome.state == "right", outcome.trace
    assert seen == [0, 1]
    assert kafka_threads() <= before


def test_a_client_that_the_notebook_has_a_name_for_stays_open(cluster):
    source = (
        IMPORTS
        + """
def double(number):
    global kept
    kept = KafkaProducer(**cluster.connection)
    keep.append(kept)
    return 42
"""
    )
    keep = []
    assert question().try_answer(source, cluster, keep=keep).state == "right"
    try:
        keep[0].send(cluster.topic("kept"), b"1").get(10)
    finally:
        keep[0].close()


def test_the_check_may_have_brokers_of_its_own(cluster):
    def judge(lab, double):
        assert lab.cluster.embedded and lab.cluster is not cluster
        return str(lab.cluster.brokers)

    assert "[1]" in str(question(judge, brokers=1).try_answer(SOLUTION, cluster))
    assert cluster.alive()


def test_a_broker_that_dies_while_the_answer_runs(cluster):
    """And the producer with a record that can never be delivered does not hold up the check, nor live on."""
    before = kafka_threads()
    source = (
        IMPORTS
        + """
def double(number):
    producer = KafkaProducer(**own.connection)
    producer.send("t", b"1").get(5)
    own.kill(1)
    producer.send("t", b"2").get(5)
"""
    )

    def judge(lab, double):
        double.__globals__["own"] = lab.cluster
        lab.cluster.topic("t")
        double(1)

    began = time.monotonic()
    outcome = question(judge, brokers=1, deadline=15).try_answer(source)
    assert "the cluster of this check is stopped, or its brokers are dead" in str(outcome)
    assert time.monotonic() - began < 20
    assert kafka_threads() <= before


def test_clients_of_a_cluster_that_the_notebook_keeps_are_left_alone(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_admin_client", None)  # as after a change of coordinators: made anew when needed
    assert question(lambda lab, double: lab.topic() and None).try_answer(SOLUTION, cluster).state == "right"
    assert cluster.topic("after-the-check")


@pytest.mark.parametrize("kind", ["KafkaProducer", "KafkaConsumer", "KafkaAdminClient"])
@pytest.mark.parametrize("settings", ["", ", bootstrap_timeout_ms=200"])
def test_a_client_that_finds_no_broker_leaves_no_thread(kind, settings):
    before = kafka_threads()
    source = f"import kafka\ndef double(number):\n    kafka.{kind}(bootstrap_servers='127.0.0.1:1'{settings})"
    outcome = question(deadline=0.5).try_answer(source)
    said = "stopped with KafkaTimeoutError: Unable to bootstrap" if settings else "after 0.5 s"
    assert said in str(outcome) and f"line 3, `kafka.{kind}" in str(outcome)
    assert kafka_threads() <= before
