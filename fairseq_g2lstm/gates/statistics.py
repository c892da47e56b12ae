"""What many gates do, summed layer by layer and unit by unit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..gate_stats import HIGH, LOW, observe_gates

GATES = ("input", "forget")
BINS = 50  # of equal width between 0 and 1


class Place(NamedTuple):
    """A layer and direction of a model.

    module: the name inside the model of the module that the layer is of, "" for the model itself.
    layer: its number, from 0. reverse: whether it runs backward.
    """

    module: str
    layer: int
    reverse: bool

    @property
    def label(self) -> str:
        """A name for people, who count from 1: "encoder, layer 1, backward"."""
        module = self.module.removesuffix(".lstm")
        parts = [module] if module not in ("", "lstm") else []
        parts.append(f"layer {self.layer + 1}")
        return ", ".join([*parts, "backward"] if self.reverse else parts)


class GateStatistics:
    """Counts and sums of the noise-free gates of one place, padding left out; index 0 is the input gates', 1 the forget
    gates'.

    Args:
        n_units: H, > 0.

    Attributes:
        histogram: (2, BINS) int64 counts in bins of equal width over [0, 1], the last with its upper edge.
        low, high: (2, H) int64, how often each unit's gate was below 0.1 and above 0.9.
        sum: (2, H) float64, the sum of each unit's gates.
        steps: how many gates of each unit were counted: the tokens that the layer read.
    """

    def __init__(self, n_units: int) -> None:
        self.histogram = np.zeros((2, BINS), dtype=np.int64)
        self.low = np.zeros((2, n_units), dtype=np.int64)
        self.high = np.zeros((2, n_units), dtype=np.int64)
        self.sum = np.zeros((2, n_units), dtype=np.float64)
        self.steps = 0

    def add(self, z: Tensor, valid: Tensor | None = None) -> None:
        """Adds the gates of one forward.

        Args:
            z: (T, B, 2H) noise-free arguments of the sigmoids, input gates first.
            valid: (T, B), false in the padding, or None for a plain input without lengths.
        """
        kept = z.flatten(0, 1) if valid is None else z[valid.to(z.device)]
        gates = torch.sigmoid(kept.detach()).unflatten(1, (2, -1))
        self.low += (gates < LOW).sum(0, dtype=torch.int32).cpu().numpy()
        self.high += (gates > HIGH).sum(0, dtype=torch.int32).cpu().numpy()
        self.sum += gates.sum(0, dtype=torch.float64).cpu().numpy()
        for number, histogram in enumerate(self.histogram):
            # in float64, where 50 g is exact for any g in float32; what is no number falls into a bin of its own
            bins = (gates[:, number].double() * BINS).clamp_(max=BINS - 1).nan_to_num_(nan=BINS)
            histogram += torch.bincount(bins.int().flatten(), minlength=BINS + 1)[:BINS].cpu().numpy()
        self.steps += len(kept)

    def share_low(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") below 0.1."""
        return float(self.unit_low(gate).mean())

    def share_high(self, gate: str) -> float:
        """Share of the gates ("input" or "forget") above 0.9."""
        return float(self.unit_high(gate).mean())

    def mean(self, gate: str) -> float:
        """Mean of the gates ("input" or "forget")."""
        return float(self.unit_mean(gate).mean())

    def unit_low(self, gate: str) -> np.ndarray:
        """(H,) each unit's share of gates below 0.1; NaN where nothing was counted."""
        return self._per_step(self.low, gate)

    def unit_high(self, gate: str) -> np.ndarray:
        """(H,) each unit's share of gates above 0.9; NaN where nothing was counted."""
        return self._per_step(self.high, gate)

    def unit_mean(self, gate: str) -> np.ndarray:
        """(H,) each unit's mean gate; NaN where nothing was counted."""
        return self._per_step(self.sum, gate)

    def _per_step(self, sums: np.ndarray, gate: str) -> np.ndarray:
        return sums[GATES.index(gate)] / (self.steps or np.nan)

    def as_json(self) -> dict[str, Any]:
        """The two gates' shares, means and histograms, for a file; None for what is no number."""
        gates: dict[str, Any] = {}
        for number, gate in enumerate(GATES):
            values = {"low": self.share_low(gate), "high": self.share_high(gate), "mean": self.mean(gate)}
            gates[gate] = {name: value if np.isfinite(value) else None for name, value in values.items()}
            gates[gate]["histogram"] = self.histogram[number].tolist()
        return gates


@contextmanager
def collect_statistics(model: nn.Module) -> Iterator[dict[Place, GateStatistics]]:
    """Sums the gates of every forward inside the block, without changing any result.

    Args:
        model: a `G2LSTM`, or a module that holds any at any depth.

    Yields:
        The statistics by place, in the order in which the model computes; empty until the first forward.

    Raises:
        ValueError: the model holds no module whose gates can be observed.
    """
    statistics: dict[Place, GateStatistics] = {}

    def observe(name: str, layer: int, reverse: bool, z: Tensor, valid: Tensor | None) -> None:
        place = Place(name, layer, reverse)
        if place not in statistics:
            statistics[place] = GateStatistics(z.size(-1) // 2)
        statistics[place].add(z, valid)

    with observe_gates(model, observe):
        yield statistics
