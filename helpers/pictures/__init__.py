"""Pictures of what is on a real Kafka, each with a text that tells the same facts."""

from .capture import batch_sizes, capture_log
from .charts import bars, lines
from .log import Mark, log_view
from .ownership import OwnershipRecorder
from .picture import Film
from .swimlanes import Message, swimlanes
from .table import stacked, table_view
from .timeline import Step, timeline
from .topology import topology_view

__all__ = [
    "Film", "Mark", "Message", "OwnershipRecorder", "Step", "bars", "batch_sizes", "capture_log", "lines", "log_view",
    "stacked", "swimlanes", "table_view", "timeline", "topology_view",
]  # fmt: skip
