"""Gates to look at: recorded forward by forward, summed over a data set or over a training, and shown in a report."""

from .recording import Record, record_gates
from .statistics import BINS, GATES, GateStatistics, Place, collect_statistics

__all__ = ["BINS", "GATES", "GateStatistics", "Place", "Record", "collect_statistics", "record_gates"]
