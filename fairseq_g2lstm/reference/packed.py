"""Weights as packed checkpoints have them, in plain PyTorch: rows in integers, products of factors, or both.

In a product with integer weights the left side is turned to integers as well, with a scale a row, and the sums are
those of integers: x = s_x q, y = s_x s_w sum q q_w, with q of 16 bits. In layers whose gates are hard, where the sign
of a sum decides, a number has two integers, x = s_x (q + r / 65534), y = s_x s_w (sum q q_w + sum r q_w / 65534), which
is all of a float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST, REST = 32767, 65534


class Factor(NamedTuple):
    """One matrix of a chain of products: weights (N, K), floating-point, or int8 with scales (N,) float32."""

    weights: Tensor
    scales: Tensor | None = None

    def unpacked(self) -> Tensor:
        """(N, K), the numbers that it stands for."""
        return self.weights if self.scales is None else self.weights.float() * self.scales.unsqueeze(-1)


class PackedWeight(NamedTuple):
    """A matrix (N, K) as blocks of rows one below the other, each a chain of factors, the first multiplied first."""

    blocks: tuple[tuple[Factor, ...], ...]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.blocks[0][0].weights.device

    def unpacked(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (N, K)."""
        rows = []
        for first, *others in self.blocks:
            product = first.unpacked()
            for factor in others:
                product = factor.unpacked() @ product
            rows.append(product)
        return torch.cat(rows).to(dtype)

    def tensors(self) -> list[Tensor]:
        """The tensors of all factors in order, integers followed by their scales."""
        return [t for chain in self.blocks for factor in chain for t in factor if t is not None]

    def layout(self) -> list[int]:
        """The number of blocks, and each block's number of factors."""
        return [len(self.blocks), *(len(chain) for chain in self.blocks)]


def unpacked(weight: Tensor | PackedWeight, dtype: torch.dtype) -> Tensor:
    """A matrix (N, K) that may be packed as a plain one."""
    return weight if isinstance(weight, Tensor) else weight.unpacked(dtype)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, fine: bool = False) -> Tensor:
    """torch.nn.functional.linear of weights that may be packed.

    Args:
        x: (..., K). weight: (N, K). bias: (N,) or None.
        fine: for weights in integers, whether x is turned to two integers a number.

    Returns:
        (..., N), x's dtype.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = []
    for chain in weight.blocks:
        left = x.to(state)
        for factor in chain:
            left = _multiply(left, factor, fine)
        rows.append(left)
    out = torch.cat(rows, dim=-1)
    return (out if bias is None else out + bias.to(state)).to(x.dtype)


def _multiply(x: Tensor, factor: Factor, fine: bool) -> Tensor:
    if factor.scales is None:
        return F.linear(x, factor.weights.to(x.dtype))
    most = x.abs().amax(-1, keepdim=True)
    inverse = LARGEST / most
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)  # all 0, or too small to be told from it
    row_scales = torch.where(most > 0, most / LARGEST, 1.0)
    # a row with infinities or NaN gives NaN
    row_scales = row_scales + (x * 0).sum(-1, keepdim=True)
    scaled = (x * inverse).nan_to_num().clamp(-LARGEST, LARGEST)
    q = torch.round(scaled)
    rest = torch.round((scaled - q) * REST) if fine else torch.zeros_like(q)
    q_sums, rest_sums = (F.linear(part.double(), factor.weights.double()) for part in (q, rest))  # exact
    return (q_sums + rest_sums / REST).to(x.dtype) * row_scales * factor.scales.to(x.dtype)
