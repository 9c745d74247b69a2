"""Panels to play with at the end of a lesson: buttons over a living cluster, and pictures of it that follow.

`play.brokers()`, `play.group()`, `play.keys()` and `play.transaction()` are the last value of a cell. With a person
before the notebook a panel appears; its brokers start with its button Start, are its own, and end with Stop, with the
kernel, or when nobody has clicked for a quarter of an hour. Without one (nbval, papermill) the cell shows a text that
says what the panel is, starts nothing, and goes on.
"""

from helpers.play.panel import Play


def brokers() -> Play:
    """Lesson 01: send orders to three brokers, kill or pause the leader, bring it back."""
    from helpers.play.three_brokers import Brokers

    return Brokers()


def group() -> Play:
    """Lesson 02: send orders to a group of consumers; let members join and leave."""
    from helpers.play.consumer_group import Group

    return Group()


def keys() -> Play:
    """Lesson 09: send orders by customer, and add partitions under them."""
    from helpers.play.keyed_orders import Keys

    return Keys()


def transaction() -> Play:
    """Lesson 10: begin, send, commit and abort by hand, and see what both kinds of readers read."""
    from helpers.play.open_transaction import Transaction

    return Transaction()
