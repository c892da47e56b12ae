"""G2-LSTM for fairseq: LSTMs whose input and forget gates are trained towards 0 and 1.

Importing the package, which `--user-dir` does, registers its models, tasks, criterions and optimiser with fairseq
and lets fairseq's checkpoints load under torch's weights-only unpickler.
"""

from . import fairseq_import  # isort: skip  # before all that imports fairseq
from . import criterions, models, optim, readers, tasks
from .checkpoints import allow_fairseq_checkpoints
from .gate_stats import observe_gates
from .gates.recording import record_gates
from .modules import G2LSTM, G2LSTMCell
from .version import __version__

__all__ = [
    "G2LSTM",
    "G2LSTMCell",
    "__version__",
    "criterions",
    "models",
    "observe_gates",
    "optim",
    "record_gates",
    "tasks",
]

del fairseq_import, readers
allow_fairseq_checkpoints()
