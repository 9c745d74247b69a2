"""Words for what a learner's code gave, printed or raised."""

import inspect

#: The likely cause of an exception that comes out of a learner's code.
CAUSES = {
    NameError: "A name that has no value: a typing mistake, or a cell above that was not run.",
    NotImplementedError: "The starter's placeholder is still there.",
    RecursionError: "A function that calls itself, without an end.",
    SystemExit: "`exit` and `sys.exit` end a whole program; a function comes back with `return`.",
}


def say_error(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    try:
        message = shorten(str(error))
    except Exception:
        message = ""
    message = message.removeprefix(f"{type(error).__name__}: ")  # kafka-python's errors say their names themselves
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def shorten(text: str, length: int = 200) -> str:
    """Return the first line of a text, cut after `length` characters."""
    first = text.strip().split("\n")[0]
    return first if len(first) <= length else first[:length] + " …"


def first_lines(text: str, most: int = 5, dropped: int = 0) -> str:
    """Return the first lines of what was printed, and how many more there are, with those that were not kept."""
    lines = text.strip("\n").split("\n")
    rest = [f"… and {len(lines) - most + dropped} more lines"] if len(lines) > most else []
    return "\n".join([shorten(line, 100) for line in lines[:most]] + rest)


def name_type(kind: type) -> str:
    """Return a type's name with its article: "an int"."""
    return ("an " if kind.__name__[0] in "aeiouAEIOU" else "a ") + kind.__name__


def describe(value) -> str:
    """Return a value's type, and for a plain value the value itself."""
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | str | bytes):
        return f"{name_type(type(value))}, {shorten(repr(value), 60)}"
    return name_type(type(value))


def explain_type(value) -> str:
    """Return the likely cause of a result of the wrong type."""
    if value is None:
        return "The `return` is missing; printing a value does not give it back."
    if inspect.isgenerator(value):
        return "With `yield` in it a function is a generator: calling it runs nothing yet."
    if inspect.iscoroutine(value):
        return "`async def` makes a coroutine: calling it runs nothing, and nobody awaits it here."
    return "The function gives back another thing than it should."
