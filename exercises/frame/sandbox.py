"""Where a learner's code runs while it is checked: without a word into the cell. And whether it was changed at all."""

import contextlib
import io
import logging
import re
import sys
import types

import cloudpickle
from IPython.utils.capture import capture_output


class _Printed(io.StringIO):
    """Keeps the beginning of what is printed; an endless loop prints more than the memory holds."""

    dropped = 0  #: lines that were not kept

    def write(self, text: str) -> int:
        if self.tell() < 100_000:
            return super().write(text)
        self.dropped += text.count("\n")
        return len(text)


@contextlib.contextmanager
def quiet():
    """Nothing gets into the cell: no print, no display, no log line of kafka-python. Gives what went to stdout."""
    printed, log = _Printed(), logging.getLogger("kafka")
    earlier = log.handlers, log.propagate, sys.unraisablehook
    log.handlers, log.propagate = [logging.NullHandler()], False
    sys.unraisablehook = sys.__unraisablehook__  # a deadline may fall into a `__del__`; this hook just writes to stderr
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(_Printed()),
            capture_output(stdout=False, stderr=False, display=True),
        ):
            yield printed
    finally:
        log.handlers, log.propagate, sys.unraisablehook = earlier


# -- was it changed? -------------------------------------------------------------------------------------------------


def run_starter(starter: str, namespace: dict) -> dict:
    """A namespace after the starter's cell. The notebook's imports may be missing: then as far as it came."""
    with contextlib.suppress(Exception):
        exec(compile(starter, "<starter>", "exec", dont_inherit=True), namespace)
    return namespace


def same(mine, theirs) -> bool:
    """Do two objects of two runs come from the same code? Comments, white space and line numbers do not count."""
    try:
        return _form(mine) == _form(theirs)
    except Exception:  # a `__repr__` of the learner's that fails
        return False


def _form(thing, seen: tuple = ()):
    """A value that is equal for objects made by the same code."""
    if id(thing) in seen:
        return "again"
    seen = (*seen, id(thing))
    if isinstance(thing, types.CodeType):
        constants = [_form(const, seen) for const in thing.co_consts]
        return thing.co_code, constants, thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_cellvars
    if isinstance(thing, types.FunctionType):
        cells = [_form(cell.cell_contents, seen) for cell in thing.__closure__ or ()]
        return [_form(part, seen) for part in (thing.__code__, thing.__defaults__, thing.__kwdefaults__)], cells
    if isinstance(thing, type) and thing.__module__ != "builtins":
        dull = ("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__")
        members = {name: _form(value, seen) for name, value in vars(thing).items() if name not in dull}
        return [base.__qualname__ for base in thing.__bases__], members
    if isinstance(thing, staticmethod | classmethod):
        return type(thing), _form(thing.__func__, seen)
    if isinstance(thing, property):
        return [_form(part, seen) for part in (thing.fget, thing.fset)]
    if isinstance(thing, dict):
        return [(_form(key, seen), _form(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return type(thing), [_form(part, seen) for part in thing]
    return type(thing).__qualname__, re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def as_it_is(answer):
    """Return a copy of an answer (a function, or several) that shares nothing with it.

    A `Worker` pickles a function with its globals. What the answer has put there by then would go along to a process
    that must not know it: so a judge takes a copy for other processes before it calls the answer.
    """
    return cloudpickle.loads(cloudpickle.dumps(answer))
