"""A database that says 'not now': what an answer does with the error, asked for each of its statements."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

from sqlalchemy import Engine, event

from exercises.frame.outcome import Wrong

_REFUSAL = "DO $$ BEGIN RAISE lock_not_available USING MESSAGE = 'canceling statement due to lock timeout'; END $$"


@contextlib.contextmanager
def refusing(engine: Engine, number: int, and_all_others: bool = False) -> Iterator[list[str]]:
    """Have PostgreSQL refuse the n-th statement in this block, as it does when somebody holds the table's lock.

    With `and_all_others`, also each one that comes after it.

    Yields:
        A list that gets the refused statement, when it has come.
    """
    refused, count = [], itertools.count(1)

    def exchange(connection, cursor, statement, parameters, context, executemany):
        place = next(count)
        if place < number or (place > number and not and_all_others):
            return statement, parameters
        refused.append(" ".join(statement.split()))
        return _REFUSAL, [()] if executemany else ()

    event.listen(engine, "before_cursor_execute", exchange, retval=True)
    try:
        yield refused
    finally:
        event.remove(engine, "before_cursor_execute", exchange)


def lets_errors_out(
    engine: Engine, call: Callable[[int], Callable], done: Callable[[int], bool], most: int = 40
) -> None:
    """Call the answer once for each of its statements, which is refused, and once with all of them refused.

    `Wrong` if it hides that.

    Args:
        engine: what the answer works with.
        call: prepares something new for each number, and gives a function that calls the answer with it; only what
            that one asks the database is refused.
        done: tells whether that call's work is in the database; it is then no fault that no error came out.
        most: the greatest number of statements to refuse.
    """
    for number in range(1, most + 1):
        if not _refuse(engine, call, done, number):
            break
    _refuse(engine, call, done, 1, and_all_others=True)  # away for longer than anybody tries


def _refuse(engine: Engine, call, done, number: int, and_all_others: bool = False) -> bool:
    """Call the answer while a statement is refused; return whether it came to that statement."""
    run = call(number)
    with refusing(engine, number, and_all_others) as refused:
        try:
            run()
        except Wrong:
            raise
        except Exception:
            if not refused:
                raise
            return True
    if refused and not done(number):
        raise Wrong(
            f"PostgreSQL refused `{refused[0][:60]}…` (a lock timeout), and your function came back as if done",
            "the exception, so that the caller knows and the work comes again; or another try",
            "An `except` hides the error: let out what you cannot repair. An error undoes the whole transaction.",
        )
    return bool(refused)
