"""Pictures of what is on a real Kafka, each with a text that tells the same facts."""

from .capture import capture_log
from .charts import bars, lines
from .log import Cell, Lane, Log, Mark, log_view
from .ownership import Moment, Ownership, OwnershipRecorder, Span
from .picture import Film, Picture
from .swimlanes import Message, swimlanes
from .topology import topology_view

__all__ = [
    "Cell",
    "Film",
    "Lane",
    "Log",
    "Mark",
    "Message",
    "Moment",
    "Ownership",
    "OwnershipRecorder",
    "Picture",
    "Span",
    "bars",
    "capture_log",
    "lines",
    "log_view",
    "swimlanes",
    "topology_view",
]
