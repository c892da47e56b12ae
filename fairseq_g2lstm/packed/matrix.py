"""Matrices that stay as they are stored, and the modules whose weights may be such."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import ops
from ..reference import Factor, PackedWeight


class PackedMatrix(nn.Module):
    """A matrix in integers or factored, in place of a parameter.

    Args:
        stored: its tensors by the names that `storage.py` gives them, integers of 4 bits unpacked to int8.

    Raises:
        ValueError: the tensors are not those of a matrix.
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        # of the dtype that the model has, which its own tensors do not follow
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self._names = frozenset(stored)
        if not {"q", "scales"} <= self._names and not {"left", "right"} <= self._names:
            raise ValueError(f"a packed matrix needs q and scales or left and right, got {', '.join(sorted(stored))}")

    def weight(self) -> PackedWeight:
        """What the operators take."""
        chain = (self._factor("q"),) if "q" in self._names else (self._factor("right"), self._factor("left"))
        rest = ((self._factor("rest"),),) if "rest" in self._names else ()
        return PackedWeight((chain, *rest))

    def rows(self, numbers: Tensor) -> Tensor:
        """Rows (..., K) of the matrix by their numbers (...), in the model's dtype."""
        dtype = self.get_buffer("_like").dtype
        if "rest" in self._names:
            return self.weight().unpacked(dtype)[numbers]
        (chain,) = self.weight().blocks
        last = chain[-1]
        taken = Factor(last.weights[numbers], None if last.scales is None else last.scales[numbers]).unpacked()
        return (taken if len(chain) == 1 else taken @ chain[0].unpacked()).to(dtype)

    def _factor(self, name: str) -> Factor:
        scales = "scales" if name == "q" else f"{name}_scales"
        return Factor(self.get_buffer(name), self.get_buffer(scales) if scales in self._names else None)

    def _apply(self, fn, recurse=True):
        # scales and factors keep their precision where the model turns to a half type
        exact = {name: self.get_buffer(name) for name in self._names}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            setattr(self, name, tensor.to(self.get_buffer(name).device))
        return self


def weight_of(module: nn.Module, name: str) -> Tensor | PackedWeight:
    """A module's matrix as the operators take it, packed or not."""
    weight = getattr(module, name)
    return weight.weight() if isinstance(weight, PackedMatrix) else weight


class Embedding(nn.Embedding):
    """torch.nn.Embedding whose weight may be packed."""

    def forward(self, input: Tensor) -> Tensor:
        weight: nn.Module | Tensor = self.weight
        return weight.rows(input) if isinstance(weight, PackedMatrix) else super().forward(input)


class Linear(nn.Linear):
    """torch.nn.Linear whose weight may be packed."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, weight_of(self, "weight"), self.bias)
