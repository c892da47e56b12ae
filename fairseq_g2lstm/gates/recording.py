"""The gates of single forwards, for reading them in Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..gate_stats import observe_gates


class Record(NamedTuple):
    """The gates of one layer and direction in one forward.

    module: the name inside the model of the module that the layer is of, "" for the model itself.
    layer: its number, from 0. reverse: whether it runs backward.
    input, forget: (T, B, H) float32 or float64, the noise-free gates; NaN in the padding.
    valid: (T, B) bool, false in the padding; None for a plain input without lengths.
    """

    module: str
    layer: int
    reverse: bool
    input: Tensor
    forget: Tensor
    valid: Tensor | None


@contextmanager
def record_gates(module: nn.Module) -> Iterator[list[Record]]:
    """Records the gates of every forward inside the block, without changing any result.

    In training these are the gates without their noise. Everything stays in memory, on the gates' device, until the
    list is dropped: for a whole data set, `collect_statistics` sums as it goes.

    Args:
        module: a `G2LSTM`, or a module that holds any at any depth, such as a `g2lstm` or a `g2lstm_lm`.

    Yields:
        A list to which each forward appends one record for each layer and direction, in the order of computation. Time
        steps and batch rows are those of the forward's input, also for the backward direction and a PackedSequence.

    Raises:
        ValueError: the module holds none whose gates can be recorded.
    """
    recording: list[Record] = []

    def observe(name: str, layer: int, reverse: bool, z: Tensor, valid: Tensor | None) -> None:
        if valid is not None:
            valid = valid.to(z.device)
            z = z.masked_fill(~valid[..., None], torch.nan)
        input, forget = torch.sigmoid(z).chunk(2, dim=-1)
        recording.append(Record(name, layer, reverse, input, forget, valid))

    with observe_gates(module, observe):
        yield recording
