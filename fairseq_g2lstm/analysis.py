"""What the gates of a trained model do on a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import loading
from .gate_stats import GateCounts, observe_gates
from .models.language_model import G2LSTMLanguageModel


@dataclass(frozen=True)
class GateHistograms:
    """Counts of gate values in evaluation, padding left out.

    Attributes:
        edges: (bins + 1,) edges of the bins, from 0 to 1.
        input, forget: (bins,) counts of the input and of the forget gates.
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
        return float(self.low[("input", "forget").index(gate)]) / self.total

    def share_above(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") above 0.9."""
        return float(self.high[("input", "forget").index(gate)]) / self.total

    def share_saturated(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") below 0.1 or above 0.9."""
        return self.share_below(gate) + self.share_above(gate)


def gate_histograms(
    checkpoint: str | Path,
    data: str | Path,
    split: str = "valid",
    max_sentences: int = 500,
    bins: int = 50,
) -> GateHistograms:
    """Histograms of the gates of a translation model, encoder and decoder together, decoding teacher-forced.

    Args:
        checkpoint: of a `g2lstm` or a stock `lstm`.
        data: the data-bin folder.
        split: which of its splits.
        max_sentences: how many sentences to walk at most, in the order of fairseq's batches of equal length.
        bins: number of bins between 0 and 1.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: the checkpoint is of another model, cannot be read or does not fit the dictionaries; the split is
            empty or truncated; bins or max_sentences < 1.
    """
    for name, number in (("bins", bins), ("max_sentences", max_sentences)):
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")
    model, task = load_model(checkpoint, data)
    load_split(task, data, split)
    batches = task.get_batch_iterator(
        task.dataset(split), max_sentences=min(50, max_sentences), ignore_invalid_inputs=True
    ).next_epoch_itr(shuffle=False)
    counts, histogram = GateCounts(), np.zeros((2, bins), dtype=np.int64)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)

    def observe(_name: str, _layer: int, _reverse: bool, z: Tensor, valid: Tensor | None) -> None:
        counts.add(z, valid)
        kept = z if valid is None else z[valid]
        for kind, gates in enumerate(torch.sigmoid(kept).chunk(2, dim=-1)):
            histogram[kind] += torch.histc(gates.float(), bins, 0, 1).long().numpy()

    with torch.no_grad(), observe_gates(model, observe):
        left = max_sentences
        while left > 0 and (batch := next(batches, None)) is not None:
            net_input = {name: rows[:left] for name, rows in batch["net_input"].items()}
            left -= len(net_input["src_tokens"])
            model(**net_input)
    if counts.total == 0:
        raise ValueError(f"split {split!r} of {data} holds no sentence")
    return GateHistograms(
        edges.numpy(),
        histogram[0],
        histogram[1],
        counts.low.numpy(),
        counts.high.numpy(),
        int(counts.total),
    )


def load_model(checkpoint: str | Path, data: str | Path) -> tuple[nn.Module, Any]:
    """`loading.load_model` of translation models alone.

    Raises:
        ValueError: the checkpoint is of a language model.
    """
    model, task = loading.load_model(checkpoint, data)
    if isinstance(model, G2LSTMLanguageModel):
        raise ValueError(f"{checkpoint} is a language model: these histograms are of translation models")
    return model, task


def load_split(task: Any, data: str | Path, split: str) -> None:
    """Loads a split of a translation task.

    Raises:
        FileNotFoundError: the split, or its target language, is missing.
        ValueError: it is empty or truncated.
    """
    try:
        task.load_dataset(split)
        dataset = task.dataset(split)
        if dataset.tgt is None:
            raise FileNotFoundError(f"{split}: no target language")
        dataset[len(dataset) - 1]  # a truncated file ends before its last sentence
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no split {split!r} in {data}: give one that fairseq-preprocess has made") from error
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split {split!r} of {data} holds no sentence or is truncated: {error}") from error
