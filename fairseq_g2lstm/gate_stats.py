"""How decided the gates are: shares of the noise-free gates near 0 and near 1, padding left out."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOW, HIGH = 0.1, 0.9

# sigmoid(z) < 0.1 where z < log(0.1 / 0.9), and sigmoid(z) > 0.9 where z > log(0.9 / 0.1)
_HIGH_ARGUMENT = math.log(HIGH / (1 - HIGH))


class GateCounts:
    """Counts of gates below 0.1 and above 0.9, summed over everything that is added.

    They stay tensors on the gates' device and nothing waits for them, which lets a training count every few updates;
    `gates.GateStatistics` counts more, each place and unit, and brings it to the CPU.

    Attributes:
        low, high: (2,) float64 counts of the input and the forget gates.
        total: () int64 number of gates of each kind.
    """

    def __init__(self) -> None:
        self.low = torch.zeros(2, dtype=torch.float64)
        self.high = torch.zeros(2, dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.int64)

    def add(self, z: Tensor, valid: Tensor | None) -> None:
        """Adds the gates of one layer.

        Args:
            z: (T, B, 2H) noise-free arguments of the sigmoids, input gates first.
            valid: (T, B), false in the padding, or None for a plain input without lengths.
        """
        by_kind = z.unflatten(-1, (2, -1))
        low, high = by_kind < -_HIGH_ARGUMENT, by_kind > _HIGH_ARGUMENT
        # a tensor even without padding: fairseq sums what all ranks log, tensors and numbers apart
        total = torch.full((), z.numel() // 2, dtype=torch.int64, device=z.device)
        if valid is not None:
            valid = valid.to(z.device, non_blocking=True)
            total = valid.sum() * by_kind.size(-1)
            low, high = (side & valid[..., None, None] for side in (low, high))
        self.low = self.low.to(z.device, non_blocking=True) + low.sum(dim=(0, 1, 3))
        self.high = self.high.to(z.device, non_blocking=True) + high.sum(dim=(0, 1, 3))
        self.total = self.total.to(z.device, non_blocking=True) + total


Observe = Callable[[str, int, bool, Tensor, Tensor | None], None]


@contextmanager
def observe_gates(model: nn.Module, observe: Observe) -> Iterator[None]:
    """Hands the gates of every forward inside the block to a function, without changing any result.

    Args:
        model: a `G2LSTM`, or a module that holds any at any depth.
        observe: called once for each layer and direction of each forward with the name of the module inside the
            model ("" for the model itself), the layer's number, whether it runs backward, the noise-free
            arguments z (T, B, 2H) of the input and forget gates' sigmoids, input gates first, and valid (T, B),
            false in the padding, or None for a plain input without lengths.

    Raises:
        ValueError: the model holds no module whose gates can be observed.
    """
    found = {name: module for name, module in model.named_modules() if hasattr(module, "gate_observer")}
    if not found:
        raise ValueError(f"the gates of {type(model).__name__} cannot be observed: it holds no G2LSTM")
    ours = [(module, _Observer(name, observe, module.gate_observer)) for name, module in found.items()]
    for module, observer in ours:
        module.gate_observer = observer
    try:
        yield
    finally:
        for module, observer in ours:
            observer.leave(module)


class _Observer:
    """A module's observer, and the one that was there before it."""

    def __init__(self, name: str, observe: Observe, outer: Callable[..., None] | None) -> None:
        self.name, self.observe = name, observe
        self.outer: Any = outer

    def __call__(self, layer: int, reverse: bool, z: Tensor, valid: Tensor | None) -> None:
        with torch.no_grad():
            self.observe(self.name, layer, reverse, z, valid)
        if self.outer is not None:
            self.outer(layer, reverse, z, valid)

    def leave(self, module: Any) -> None:
        """Removes this one; those that came after it stay."""
        if module.gate_observer is self:
            module.gate_observer = self.outer
            return
        later = module.gate_observer
        while isinstance(later, _Observer):
            if later.outer is self:
                later.outer = self.outer
                return
            later = later.outer
