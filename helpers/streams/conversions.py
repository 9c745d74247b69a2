"""Python's values and functions in Java: what the bridge teaches JPype.

Values: a `dict` or `list` goes through Java as the Python object that it is, a pair is a `KeyValue`. Functions: where
Kafka Streams takes a lambda it takes a Python function. An exception of one travels through Java as a RuntimeException
with its name and message, for Kafka Streams' handlers and dead letters (KIP-1034), and is found again by `explained`.
"""

import contextlib
import ctypes
import inspect
import json
import reprlib
import threading
from collections import deque

import jpype

from helpers.errors import LabError
from helpers.streams.jvm import kafka_class


class _Tombstone:
    def __repr__(self):
        return "TOMBSTONE"


#: What a function returns for Java's `null`, a deletion. (None is refused: it is what a forgotten `return` gives.)
TOMBSTONE = _Tombstone()

_thread = threading.local()  # `last`: the Python function that ran last in this thread, and what it returned
_raised: deque = deque(maxlen=100)  # (Java exception, the Python exception that it stands for)


# -- values -----------------------------------------------------------------------------------------------------------


class _Copying(dict):
    """The methods of a Java collection, by name, for a Python one: each works on a copy in Java."""

    def __init__(self, kind: str):
        self.kind = kind

    def __missing__(self, name):
        return lambda value, *args: getattr(jpype.JClass(self.kind)(value), name)(*args)


_of_list, _of_dict = _Copying("java.util.ArrayList"), _Copying("java.util.HashMap")


@jpype.JConversion("java.lang.Object", instanceof=list)
def _carry_list(_, value):
    """A list goes through Java as it is and comes out as the same list; Java code sees a java.util.List."""
    return jpype.JProxy("java.util.List", dict=_of_list, inst=value, convert=True)


@jpype.JConversion("java.lang.Object", instanceof=dict)
def _carry_dict(_, value):
    """A dict likewise; Java code sees a java.util.Map."""
    return jpype.JProxy("java.util.Map", dict=_of_dict, inst=value, convert=True)


@jpype.JConversion("java.lang.Object", instanceof=tuple)
def _pair(_, value):
    """A pair is a KeyValue, for `map` and `flatMap`."""
    key, value = (None if part is TOMBSTONE else part for part in value)
    return kafka_class("streams.KeyValue")(key, value)


_BOXES = {
    "java.lang.Boolean": bool,
    "java.lang.Double": float,
    "java.lang.Float": float,
    "java.lang.Integer": int,
    "java.lang.Long": int,
    "java.lang.Short": int,
}


def _unboxed(value):
    """Java's Boolean, Long, Double … as Python's bool, int, float; all else as it is."""
    kind = _BOXES.get(type(value).__name__)
    return kind(value) if kind else value


def json_serde():
    """A serde for JSON: a topology sees Python's own dict, list, str, int, float and bool (see `json`)."""
    serdes = kafka_class("common.serialization.Serdes")
    to_bytes, from_bytes = serdes.String().serializer(), serdes.String().deserializer()

    def serialize(topic, *rest):  # (topic, data) or (topic, headers, data)
        if rest[-1] is None:
            return None
        try:
            return to_bytes.serialize(topic, json.dumps(_unboxed(rest[-1])))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}, for topic {topic}{_after()}") from None

    def deserialize(topic, *rest):
        if rest[-1] is None:
            return None
        text = from_bytes.deserialize(topic, *rest)
        try:
            return json.loads(text)
        except ValueError as error:
            error.add_note(f"The record of topic {topic} holds {text[:60]!r}.")
            raise

    package = "org.apache.kafka.common.serialization."
    return serdes.serdeFrom(
        jpype.JProxy(package + "Serializer", dict={"serialize": _shielded(serialize)}),
        jpype.JProxy(package + "Deserializer", dict={"deserialize": _shielded(deserialize)}),
    )


# -- functions --------------------------------------------------------------------------------------------------------


def _shielded(function):
    """`function`, with an exception of it thrown in Java under its name and message (JPype's stand-in has neither)."""

    def call(*args):
        _keep_thread_state()
        try:
            return function(*args)
        except BaseException as error:
            thrown = jpype.java.lang.RuntimeException(f"{type(error).__name__}: {error}")
            _raised.append((thrown, error.with_traceback(error.__traceback__.tb_next)))
            raise thrown from None

    return call


def _keep_thread_state() -> None:
    """Let Python keep what it knows of this Java thread from one call to the next.

    Without, each call begins with a new thread state, and JPype 1.7.1 leaks a type of 1.5 kB for each thread state in
    which Python makes a Java object (`PyJPValue_alloc`), which also makes the calls slower and slower.
    """
    if not hasattr(_thread, "kept"):
        _thread.kept = ctypes.pythonapi.PyGILState_Ensure()  # never released: it lives as long as the thread


def _checked(function, interface: str):
    """`function`, with results refused that Kafka Streams would misunderstand or stumble over somewhere else."""

    def call(*args):
        result = function(*map(_unboxed, args))
        _thread.last = function, result
        if interface == "ForeachAction" or result is TOMBSTONE:
            return None
        if interface == "Predicate" and not isinstance(result, bool):
            raise TypeError(f"The {_name(function)} returned {_kind(result)}; a predicate returns True or False.")
        if isinstance(result, bool):
            return result
        if result is None:
            raise TypeError(f"The {_name(function)} returned None: is a `return` missing? (A deletion is TOMBSTONE.)")
        try:
            return jpype.JObject(result, jpype.JObject)
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"The {_name(function)} returned {_kind(result)}, which Java cannot take ({error}): "
                "return a str, int, float, bool, dict, list, a pair (key, value) or a Java object."
            ) from None

    return call


class _Takes(type):
    """A type whose instances are whatever can be called with `count` arguments."""

    def __instancecheck__(cls, candidate):
        if not callable(candidate):
            return False
        try:
            return _binds(candidate, cls.count)  # type: ignore[attr-defined]
        except ValueError:  # a builtin that does not tell: `dict`, as an initializer
            return True


def _binds(function, count: int) -> bool:
    try:
        inspect.signature(function, follow_wrapped=False).bind(*range(count))
    except TypeError:
        return False
    return True


def _register(package: str, **interfaces: tuple[str, int]) -> None:
    """Let Java take Python functions for these interfaces: name=(its method, number of arguments)."""
    for name, (method, count) in interfaces.items():

        def convert(cls, function, name=name, method=method):
            return jpype.JProxy(cls, dict={method: _shielded(_checked(function, name))})

        # Among overloads JPype then takes the one whose number of arguments fits, as it does without.
        jpype.JConversion(f"org.apache.kafka.streams.{package}.{name}", instanceof=_Takes(name, (), {"count": count}))(
            convert
        )


_register(
    "kstream",
    Aggregator=("apply", 3),
    ForeachAction=("apply", 2),
    Initializer=("apply", 0),
    KeyValueMapper=("apply", 2),
    Merger=("apply", 3),
    Predicate=("test", 2),
    Reducer=("apply", 2),
    ValueJoiner=("apply", 2),
    ValueJoinerWithKey=("apply", 3),
    ValueMapper=("apply", 1),
    ValueMapperWithKey=("apply", 2),
)
_register("processor", TimestampExtractor=("extract", 2), TopicNameExtractor=("extract", 3))


def _plain(function, counts: tuple[int, ...]):
    """A callable that JPype cannot count the arguments of, or that has defaults, as a plain function of so many.

    Where overloads differ in nothing but that number (a mapper of values, or of keys and values) JPype calls
    `str.upper` or `lambda value, n=n: …` ambiguous. The smallest of the numbers that the callable takes is meant.
    """
    code = getattr(function, "__code__", None)
    if code and not function.__defaults__ and not code.co_flags & inspect.CO_VARARGS:
        return function
    if not callable(function) or isinstance(function, (jpype.JObject, jpype.JClass)):
        return function
    try:
        count = next((count for count in counts if _binds(function, count)), None)
    except ValueError:
        count = counts[0]
    plain = {1: lambda a: function(a), 2: lambda a, b: function(a, b), 3: lambda a, b, c: function(a, b, c)}.get(count)
    if plain:
        plain.__name__, plain.__wrapped__ = getattr(function, "__name__", repr(function)), function  # type: ignore[attr-defined]
    return plain or function


def _plainly(name: str, counts: tuple[int, ...]):
    def method(self, *args):
        return getattr(self, "_" + name)(*(_plain(arg, counts) for arg in args))

    return jpype.JOverride(method)


_TAKE = {"mapValues": (1, 2), "flatMapValues": (1, 2), "join": (2, 3), "leftJoin": (2, 3), "outerJoin": (2, 3)}
for _class, _names in (("KStreamImpl", _TAKE), ("KTableImpl", ["mapValues"])):
    jpype.JImplementationFor(f"org.apache.kafka.streams.kstream.internals.{_class}")(
        type(f"_{_class}", (), {name: _plainly(name, _TAKE[name]) for name in _names})
    )


# -- errors -----------------------------------------------------------------------------------------------------------


def explained(thrown) -> BaseException:
    """The Python exception behind a Java one; where there is none, a LabError with Java's reason."""
    chain = [thrown]
    while (cause := chain[-1].getCause()) is not None:
        chain.append(cause)
    for java_error, python_error in reversed(_raised):
        if any(java_error.equals(link) for link in chain):
            return python_error
    for link in chain:
        if link.getClass().getName() == "org.jpype.PyExceptionProxy":  # of a Python object that JPype took as it is
            value = jpype.JClass("org.jpype.JPypeContext").getInstance().getExcValue(link)
            return ctypes.cast(value, ctypes.py_object).value
    for link in chain:
        if "ClassCastException" in (message := str(link.getMessage())):
            reason = f"{message.split('. ')[0]}{_after()}"
            return LabError(f"{reason}: a value is not of the type that its serde or the next step takes.")
    return LabError(f"{chain[-1].getClass().getSimpleName()}: {chain[-1].getMessage()}")


@contextlib.contextmanager
def java_errors():
    """Turn Java exceptions of the block into what `explained` makes of them."""
    try:
        yield
    except jpype.JException as error:
        raise explained(error) from None


def _name(function) -> str:
    """What to call a function in a message: its name; for a lambda the line that it stands in."""
    name = getattr(function, "__name__", repr(function))
    if name == "<lambda>":
        with contextlib.suppress(OSError, TypeError):
            return f"function in `{inspect.getsource(function).strip().splitlines()[0]}`"
    return f"function {name}"


def _kind(value) -> str:
    return "None" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def _after() -> str:
    """For a message about a value that does not fit: the Python function that it most likely came from."""
    if not hasattr(_thread, "last"):
        return ""
    function, result = _thread.last
    return f", after the {_name(function)} returned {_kind(result)}"


def _raising_python(name: str):
    def method(self, *args):
        with java_errors():
            return getattr(self, "_" + name)(*args)

    return jpype.JOverride(method)


# TopologyTestDriver runs a topology in the caller's thread: there the exception is raised at once.
_PIPES = ("pipeInput", "pipeKeyValueList", "pipeRecordList", "pipeValueList")
jpype.JImplementationFor("org.apache.kafka.streams.TestInputTopic")(
    type("_TestInputTopic", (), {name: _raising_python(name) for name in _PIPES})
)
