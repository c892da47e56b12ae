"""What the gates of a trained model do on a data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .gates.statistics import BINS, GATES
from .gates.walk import Reader


@dataclass(frozen=True)
class GateHistograms:
    """Counts of gate values in evaluation, padding left out.

    Attributes:
        edges: (BINS + 1,) edges of the bins, from 0 to 1.
        input, forget: (BINS,) counts of the input and of the forget gates.
        low, high: (2,) counts of input and forget gates below 0.1 and above 0.9.
        total: number of gates of each kind.
    """

    edges: np.ndarray
    input: np.ndarray
    forget: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: int

    def share_below(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") below 0.1."""
        return float(self.low[GATES.index(gate)]) / self.total

    def share_above(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") above 0.9."""
        return float(self.high[GATES.index(gate)]) / self.total

    def share_saturated(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") below 0.1 or above 0.9."""
        return self.share_below(gate) + self.share_above(gate)


def gate_histograms(
    checkpoint: str | Path, data: str | Path, split: str = "valid", max_sentences: int = 500
) -> GateHistograms:
    """Histograms of the gates of a model, all its layers together; translations are decoded teacher-forced.

    Args:
        checkpoint: of `g2lstm` or `g2lstm_lm`, or of stock `lstm` or `lstm_lm`.
        data: the data-bin folder.
        split: which of its splits.
        max_sentences: how many of the split's first sentences to read at most.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: the checkpoint is of another model, cannot be read or does not fit the dictionaries; the split is
            empty or truncated; the model's gates are no numbers; max_sentences < 1.
    """
    if max_sentences < 1:
        raise ValueError(f"max_sentences must be >= 1, got {max_sentences}")
    statistics, _ = Reader(checkpoint, data, split).read(max_sentences)
    counted = statistics.values()
    input, forget = np.sum([place.histogram for place in counted], axis=0)
    return GateHistograms(
        np.linspace(0, 1, BINS + 1),
        input,
        forget,
        low=np.sum([place.low.sum(1) for place in counted], axis=0),
        high=np.sum([place.high.sum(1) for place in counted], axis=0),
        total=int(input.sum()),
    )
