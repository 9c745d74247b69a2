"""Mutants: a question's solution with one thing broken. A judge that calls one right has a hole.

    python -m tests.exercises.mutants                     # every question, every mutant; hours
    python -m tests.exercises.mutants 03 08.q2            # all of lesson 03, and one question
    python -m tests.exercises.mutants --sample 5 --seed 7 # five of each question, drawn by the seed
    python -m tests.exercises.mutants --changed HEAD~3    # the questions of lessons that changed since then

A mutant that is just as right as the solution stands in `just_as_right.toml`, with the reason. One that survives and
does not stand there is printed, and makes the exit status 1.
"""

import ast
import importlib
import random
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click

from exercises.frame.catalogue import questions
from exercises.frame.outcome import RIGHT
from exercises.frame.question import Question, observers
from helpers import Cluster, Database
from helpers.paths import COURSE

EXCUSES = Path(__file__).with_name("just_as_right.toml")
WITH_DATABASE = {"lesson_05", "lesson_06", "lesson_08"}
LOOSER = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",  # codespell:ignore
    ast.Is: "is not",
    ast.IsNot: "is",
}
SQL = [rf"\s+{clause}\b[^)\"]*" for clause in ("WHERE", "ON CONFLICT", "FOR UPDATE", "ORDER BY", "RETURNING")]
EFFECTS = {"send", "get", "flush", "commit", "commit_transaction", "abort_transaction", "begin_transaction", "take",
           "init_transactions", "send_offsets_to_transaction", "poll", "seek", "assign", "subscribe",
           "end_offsets", "execute", "result", "scalar", "mail", "work", "pack"}  # fmt: skip
SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Return, ast.Continue, ast.Break,
          ast.Delete, ast.Assert)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A solution with one passage exchanged.

    Args:
        kind: what was done, e.g. "left out".
        old, new: the passage, before and after.
        line: where it begins.
        source: the whole text.
    """

    kind: str
    old: str
    new: str
    line: int
    source: str

    @property
    def name(self) -> str:
        """What tells it apart from the others of its question: stays the same when other lines change."""
        return re.sub(r"\s+", " ", f"{self.kind}: {self.old}" + (f" -> {self.new}" if self.new else ""))


def mutants(source: str) -> list[Mutant]:
    """All mutants of a solution that Python can compile, each text once."""
    found: dict[str, Mutant] = {}
    lines = source.splitlines(keepends=True)
    offsets = [sum(len(line.encode()) for line in lines[:number]) for number in range(len(lines))]
    raw = source.encode()

    def at(node, end=False):
        return offsets[(node.end_lineno if end else node.lineno) - 1] + (
            node.end_col_offset if end else node.col_offset
        )

    def text(node):
        return raw[at(node) : at(node, end=True)].decode()

    def add(kind, begin, end, new):
        mutated = (raw[:begin] + new.encode() + raw[end:]).decode()
        try:
            ast.parse(mutated)
        except SyntaxError:
            return
        if mutated != source and mutated not in found:
            line = raw[:begin].count(b"\n") + 1
            found[mutated] = Mutant(kind, raw[begin:end].decode(), new, line, mutated)

    def replace(kind, node, new):
        add(kind, at(node), at(node, end=True), new)

    tree = ast.parse(source)
    patience = {id(part) for node in ast.walk(tree) if _is_patience(node) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in patience:
            continue
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(node, ast.Module | ast.ClassDef) or not isinstance(block, list):
                continue
            statements = [s for s in block if not _is_docstring(s)]
            for statement in statements:
                if isinstance(statement, SIMPLE) and not _names_something(statement) and id(statement) not in patience:
                    replace("left out", statement, "pass")
                if isinstance(statement, ast.Expr) and _has_an_effect(statement):  # an unset name would raise anyway
                    pad = " " * statement.col_offset
                    body = text(statement).replace("\n", "\n    ")
                    replace(
                        "its error swallowed",
                        statement,
                        f"try:\n{pad}    {body}\n{pad}except Exception:\n{pad}    pass",
                    )
                if isinstance(statement, ast.If):
                    replace("as if it were so", statement.test, "True")
                    replace("as if it were not so", statement.test, "False")
                if isinstance(statement, ast.Try):
                    for handler in statement.handlers:
                        if handler.type is not None:
                            replace("any error", handler.type, "Exception")
            for one, other in pairwise(statements):
                if _has_an_effect(one) and _has_an_effect(other) and not _given(one) & _used(other):
                    between = raw[at(one, end=True) : at(other)].decode()
                    add("swapped", at(one), at(other, end=True), text(other) + between + text(one))
        if isinstance(node, ast.Call):
            _call_mutants(node, raw, at, text, add, replace)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right, kind = text(node.left), text(node.comparators[0]), type(node.ops[0])
            replace("compared otherwise", node, f"{left} {LOOSER[kind]} {right}")
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                replace("one condition only", node, text(value))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            replace("not negated", node, text(node.operand))
        elif isinstance(node, ast.IfExp):
            replace("always", node, text(node.body))
            replace("never", node, text(node.orelse))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Mod):
            replace("one side only", node, text(node.left))
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, bool):
                replace("the other", node, str(not node.value))
            elif isinstance(node.value, int):
                replace("one more", node, str(node.value + 1))
            elif node.value in ("read_committed", "earliest", "all"):
                replace(
                    "another",
                    node,
                    {"read_committed": '"read_uncommitted"', "earliest": '"latest"', "all": "1"}[node.value],
                )
            elif isinstance(node.value, str):
                for clause in SQL:
                    replace("without a clause", node, re.sub(clause, "", text(node), count=1))
    return list(found.values())


def _has_an_effect(statement: ast.stmt) -> bool:
    """Whether a simple statement calls something outside: a client, a database, a file."""
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    called = {
        call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        for call in calls
        if not (call.args and isinstance(call.args[0], ast.Constant))  # a dict's `get("pieces")`
    }
    return isinstance(statement, SIMPLE) and bool(called & EFFECTS)


def _given(statement: ast.stmt) -> set[str]:
    """The names that a statement gives a value."""
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _used(statement: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _names_something(statement: ast.stmt) -> bool:
    """Whether it only gives a name its first value: without it the answer does not run at all."""
    return isinstance(statement, ast.Assign) and not (_given(statement) & _used(statement)) and bool(_given(statement))


def _is_patience(node: ast.AST) -> bool:
    """How long something waits: no answer gets wrong by another number there, only slower."""
    if isinstance(node, ast.keyword):
        return bool(re.search("timeout|pause|backoff", node.arg or ""))
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("time.sleep(")


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _call_mutants(node: ast.Call, raw, at, text, add, replace) -> None:
    arguments = [*node.args, *node.keywords]
    for number, argument in enumerate(arguments):
        if isinstance(argument, ast.keyword) and not _is_patience(
            argument
        ):  # an argument left out, with the comma before or behind it
            begin = at(arguments[number - 1], end=True) if number else at(argument)
            end = at(argument, end=True)
            if not number and len(arguments) > 1:
                end = at(arguments[1])
            add("left out", begin, end, "")
    if isinstance(node.func, ast.Attribute):
        inner = node.func.value
        if isinstance(inner, ast.Call) or node.func.attr in ("get", "result", "encode", "decode"):
            replace(f"without `{node.func.attr}`", node, text(inner))
    around = node.func.id if isinstance(node.func, ast.Name) and len(arguments) == len(node.args) == 1 else ""
    if around in ("sorted", "reversed", "set", "list", "dict", "str", "int", "min", "max"):
        replace(f"without `{around}`", node, text(node.args[0]))


def excuses(question: Question) -> dict[str, str]:
    """The mutants that are just as right as the solution, by name, with the reason."""
    return tomllib.loads(EXCUSES.read_text()).get(question.lesson, {}).get(question.name, {})


def setup_of(lesson: str) -> str:
    """What a question's cell finds in its notebook: as its tests have it."""
    return importlib.import_module(f"tests.exercises.test_{lesson}").SETUP


def survivors(question: Question, chosen: list[Mutant], cluster, database, told=print) -> list[Mutant]:
    """The chosen mutants that the judge calls right, and that stand in no list."""
    names = {"database": database} if question.lesson in WITH_DATABASE else {}
    excused, setup, found = excuses(question), setup_of(question.lesson), []
    for mutant in chosen:
        begin = time.monotonic()
        try:
            outcome = question.try_answer(mutant.source, cluster, setup, **names)
            state = outcome.state
        except Exception as error:  # the answer's own cell does not run
            state = f"no answer: {type(error).__name__}"
        survives = state == RIGHT
        if survives and mutant.name not in excused:
            found.append(mutant)
        mark = state if not survives else "excused" if mutant.name in excused else "SURVIVES"
        seconds, name = time.monotonic() - begin, f"{question.lesson[-2:]}.{question.name}"
        told(f"{name}  {seconds:5.1f} s  {mark:10}  line {mutant.line}: {mutant.name}")
    return found


def chosen_questions(names: tuple[str, ...], changed: str | None) -> list[Question]:
    """The questions of the lessons and questions that were named ("03", "08.q2"), or that changed since a revision."""
    everything = [question for notebook in questions() for question in _of(f"lesson_{notebook[:2]}")]
    if changed:
        diff = subprocess.run(
            ["git", "diff", "--name-only", changed, "--", "exercises"], cwd=COURSE, text=True, capture_output=True
        )
        names = tuple(re.findall(r"lesson_(\d\d)\.py", diff.stdout))
        if not names:
            return []
    return [q for q in everything if not names or {q.lesson[-2:], f"{q.lesson[-2:]}.{q.name}"} & {*names}]


def _of(lesson: str) -> list[Question]:
    module = importlib.import_module(f"exercises.{lesson}")
    return [thing for thing in vars(module).values() if isinstance(thing, Question)]


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--sample", type=click.IntRange(1), help="So many mutants of each question.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the sample.")
@click.option("--changed", help="Only questions of lessons that changed since this revision.")
@click.option("--list", "only_list", is_flag=True, help="Print the mutants, and judge none.")
def main(names, sample, seed, changed, only_list) -> None:
    observers.clear()  # what is tried here is nobody's progress
    table, left = [], []
    wanted = chosen_questions(names, changed)
    if names and not wanted:
        raise click.UsageError(f"There is no question {' or '.join(names)}: say e.g. 03, or 03.q1.")
    draw = random.Random(seed)
    if only_list:
        for question in wanted:
            for mutant in mutants(question.answer):
                print(f"{question.lesson[-2:]}.{question.name}  line {mutant.line}: {mutant.name}")
        return
    with Cluster() as cluster, Database() as database:
        for question in wanted:
            made = mutants(question.answer)
            judged = draw.sample(made, min(sample, len(made))) if sample else made
            found = survivors(question, judged, cluster, database)
            left += [(question, mutant) for mutant in found]
            table.append((f"{question.lesson[-2:]}.{question.name}", len(made), len(judged), len(found)))
    print("question  made  judged  survivors")
    for row in table:
        print("{:8}  {:4}  {:6}  {:9}".format(*row))
    for question, mutant in left:
        print(f"{question.lesson[-2:]}.{question.name} calls right: line {mutant.line}: {mutant.name}")
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
