"""Pictures of what is on a real Kafka, each with a text that tells the same facts."""

from .capture import batch_sizes, capture_log
from .charts import bars, lines
from .log import Cell, Lane, Log, Mark, log_view
from .ownership import Moment, Ownership, OwnershipRecorder, Span
from .picture import Film, Picture
from .swimlanes import Message, swimlanes
from .table import Table, stacked, table_view
from .timeline import Step, timeline
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
    "Step",
    "Table",
    "bars",
    "batch_sizes",
    "capture_log",
    "lines",
    "log_view",
    "stacked",
    "swimlanes",
    "table_view",
    "timeline",
    "topology_view",
]
