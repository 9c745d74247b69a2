"""Maintainer's command: write what the documentation says of lessons and helpers from themselves.

python -m tools.docs

writes docs/reference.md, the table of parameters in docs/headless.md, the table of variables in README.md, and the
words of the links to cells in docs/guarantees.md. `tests/quick/test_docs.py` holds all four to what this would write.
"""

import inspect
import re
from pathlib import Path

import click
import papermill

import helpers
from exercises.frame import question
from helpers import pictures, play, settings, streams
from helpers.paths import COURSE
from helpers.pictures import log
from tools.lessons import LESSONS, NOTEBOOKS, read

DOCS = COURSE / "docs"
BEGIN, END = "<!-- made by `python -m tools.docs` -->", "<!-- end -->"

REFERENCE = """\
# The helpers

What the lessons import beside kafka-python: a cluster, things to break, pictures, bounded reading. This page is made
from their docstrings (`python -m tools.docs`).

"""


# -- parameters -------------------------------------------------------------------------------------------------


def parameters() -> str:
    """A table of every lesson's parameters, as papermill finds them."""
    lines = ["| lesson | parameter | default | meaning |", "|---|---|---|---|"]
    for path in LESSONS:
        for name, facts in papermill.inspect_notebook(str(path)).items():
            cells = [f"[{path.stem}](../notebooks/{path.name})", f"`{name}`", f"`{facts['default']}`", facts["help"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variables() -> str:
    """A table of the course's own variables, from `helpers.settings`."""
    rows = [f"| {', '.join(f'`{name}`' for name in names)} | {meaning} |" for names, meaning in settings.VARIABLES]
    return "\n".join(["| variable | meaning |", "|---|---|", *rows])


def with_table(page: str, table: str) -> str:
    """A page with its one made table as it should be."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


# -- links to cells ---------------------------------------------------------------------------------------------

CELL_LINK = re.compile(r"\[([^\]]*)\]\(\.\./notebooks/([\w.]+)#cell-id=([\w-]+)\)")


def place(lesson: str, cell_id: str) -> str:
    """Where a cell stands, in words: its lesson's number, and the last headings before it.

    Raises:
        KeyError: no such cell.
    """
    headings = {}
    for cell in read(NOTEBOOKS / lesson).cells:
        if cell.cell_type == "markdown":
            for marks, heading in re.findall(r"^(##+) (.+)$", cell.source, re.M):
                headings = {depth: text for depth, text in headings.items() if depth < len(marks)}
                headings[len(marks)] = heading
        elif cell.id == cell_id:
            return f"{lesson[:2]}, {', '.join(heading.replace('`', '') for heading in headings.values())}"
    raise KeyError(f"{lesson} has no code cell {cell_id}")


def with_places(page: str) -> str:
    """A page with the words of its links to cells as they should be."""
    return CELL_LINK.sub(lambda link: f"[{place(link[2], link[3])}](../notebooks/{link[2]}#cell-id={link[3]})", page)


# -- reference --------------------------------------------------------------------------------------------------


def reference() -> str:
    """The page of all public helpers."""
    parts = [REFERENCE]
    for module, names in (
        (helpers, helpers.__all__),
        (pictures, pictures.__all__),
        (log, ["Log", "Lane", "Cell"]),  # what `capture_log` gives back: lessons look their fields up
        (streams, streams.__all__),
        (play, [name for name, thing in vars(play).items() if _is_own_function(play, name, thing)]),
    ):
        parts.append(f"## From `{module.__name__}`\n\n{inspect.getdoc(module)}\n\n")
        prefix = "play." if module is play else ""  # the one that lessons import as a module
        parts += [described(getattr(module, name), prefix + name) for name in names if name != "LabError"]
    parts.append("## The questions: `q1`, `q2`, …\n\n")
    asked = "check", "hint", "solution", "progress", "ask"
    parts += [described(getattr(question.Question, name), f"q1.{name}") for name in asked]
    return "".join(parts).rstrip() + "\n"


def described(thing, name: str, level: str = "###") -> str:
    """A heading with the signature, and the docstring; of a class its public members too."""
    text = f"{level} `{name}{_signature(thing)}`\n\n{_markdown(inspect.getdoc(thing) or '')}\n\n"
    if inspect.isclass(thing):
        text += "".join(described(member, f"{name}.{own}", "####") for own, member in _public(thing))
    return text


def _is_own_function(module, name: str, thing) -> bool:
    return inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")


def _public(of: type) -> list:
    members = [(name, member) for name, member in vars(of).items() if not name.startswith("_")]
    return [(name, member) for name, member in members if inspect.isfunction(member) or isinstance(member, property)]


def _signature(thing) -> str:
    """As in the source, without `self`; annotations by their last name."""
    if not callable(thing):
        return ""
    signature = inspect.signature(thing)
    parts, marked = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            marked = True
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            parts.append("*")
            marked = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        part, equals = stars + parameter.name, "="
        if parameter.annotation is not parameter.empty:
            part, equals = f"{part}: {_annotation(parameter.annotation)}", " = "
        if parameter.default is not parameter.empty:
            part += equals + getattr(parameter.default, "__name__", repr(parameter.default))
        parts.append(part)
    returns = signature.return_annotation
    gives = "" if returns in (signature.empty, None, "None") else f" -> {_annotation(returns)}"
    return f"({', '.join(parts)}){gives}"


def _annotation(annotation) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b[a-z_]+(\.[a-z_]+)*\.(?=[A-Z])", "", text)


def _markdown(docstring: str) -> str:
    """A docstring of Google's style as Markdown: its arguments and errors become lists."""
    blocks = []
    for block in filter(None, docstring.split("\n\n")):
        head, *lines = block.splitlines()
        if head in ("Args:", "Raises:"):
            items = re.split(r"^ {4}(?=[*\w][*\w, ]*: )", "\n".join(lines), flags=re.M)[1:]
            named = [" ".join(item.split()).split(": ", 1) for item in items]
            title = "Arguments:" if head == "Args:" else head
            blocks.append("\n".join([title, "", *(f"- `{name}`: {meaning}" for name, meaning in named)]))
        elif head == "Returns:":
            blocks.append(f"Returns: {' '.join(' '.join(lines).split())}")
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def pages() -> dict[Path, str]:
    """What each page should say."""
    headless, guarantees, readme = DOCS / "headless.md", DOCS / "guarantees.md", COURSE / "README.md"
    return {
        DOCS / "reference.md": reference(),
        headless: with_table(headless.read_text(), parameters()),
        readme: with_table(readme.read_text(), variables()),
        guarantees: with_places(guarantees.read_text()),
    }


@click.command()
def main() -> None:
    """Write what is made: reference, parameters of lessons, the course's variables, places of guarantees."""
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
