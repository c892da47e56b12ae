"""What is done to a matrix of weights: rounding, clipping and low rank as the paper has them, and rows in integers.

Source: Li et al., *Towards Binary-Valued Gates for Robust LSTM Training*, ICML 2018, section 4.3; the integers are the
usual symmetric ones with a scale a row.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..quantization import dequantize_rows, is_factored, low_rank_factors, quantize_rows


@dataclass(frozen=True)
class Transform:
    """One way to make weights smaller.

    Attributes:
        name: as it is written: `float32`, `round:STEP`, `clip:STEP:LIMIT`, `rank:K`, `int:BITS` or `rank:K+int:BITS`.
        kind: the name without its numbers.
        bits: of int, else None.
        rank: of rank, else None.
    """

    name: str
    kind: str
    _apply: Callable[[Tensor], Tensor] = field(compare=False, repr=False)
    _bits: Callable[[Tensor], float] = field(compare=False, repr=False)
    bits: int | None = None
    rank: int | None = None

    def apply(self, weights: Tensor) -> Tensor:
        """The weights (R, C) or (R,) as the compressed ones would be read, in float32; low rank leaves biases."""
        return self._apply(weights.float())

    def check_packable(self) -> None:
        """Raises ValueError where a checkpoint cannot store it."""
        if (self.rank is None and self.bits is None) or self.bits not in (None, 4, 8):
            raise ValueError(f"a checkpoint is packed by int:8, int:4, rank:K or both as rank:K+int:8, got {self.name}")

    def bytes(self, weights: Tensor) -> int:
        """Bytes that they take stored, scales included."""
        return math.ceil(self._bits(weights.float()) / 8)


def parse(text: str) -> Transform:
    """A transform by its name; see `Transform`.

    Raises:
        ValueError: there is no such transform, or a number is outside its range.
    """
    factors, plus, integers = text.partition("+")
    if plus and factors.startswith("rank:") and integers.startswith("int:"):
        return _factors_in_integers(parse(factors), parse(integers))
    kind, *numbers = text.split(":")
    if text == "float32":
        return Transform(text, kind, lambda w: w, lambda w: 32 * w.numel())
    if kind == "round" and len(numbers) == 1:
        step = _positive(text, numbers[0])
        return Transform(text, kind, lambda w: _rounded(w, step), lambda w: _grid_bits(w, step))
    if kind == "clip" and len(numbers) == 2:
        step, limit = (_positive(text, number) for number in numbers)
        if limit < step:
            raise ValueError(f"the limit in clip:STEP:LIMIT must be at least the step, got {text!r}")
        return Transform(
            text,
            kind,
            lambda w: _clipped(w, step, limit),
            lambda w: _grid_bits(_clipped(w, step, limit), step),
        )
    if kind == "rank" and len(numbers) == 1:
        rank = _whole(text, numbers[0], 1, None)
        return Transform(text, kind, lambda w: _low_rank(w, rank), lambda w: _low_rank_bits(w, rank), rank=rank)
    if kind == "int" and len(numbers) == 1:
        bits = _whole(text, numbers[0], 2, 8)
        return Transform(
            text,
            kind,
            lambda w: dequantize_rows(*quantize_rows(w, bits)),
            lambda w: _integer_bits(w, bits),
            bits=bits,
        )
    raise ValueError(
        "a compression must be float32, round:STEP, clip:STEP:LIMIT, rank:K, int:BITS or rank:K+int:BITS, "
        f"got {text!r}"
    )


def _factors_in_integers(low_rank: Transform, integers: Transform) -> Transform:
    rank, bits = low_rank.rank or 0, integers.bits or 0

    def apply(weights: Tensor) -> Tensor:
        if not is_factored(weights.shape, rank):
            return integers.apply(weights)
        left, right = (integers.apply(factor) for factor in low_rank_factors(weights, rank))
        return left @ right

    def stored(weights: Tensor) -> float:
        if not is_factored(weights.shape, rank):
            return _integer_bits(weights, bits)
        rows, columns = weights.shape
        return bits * rank * (rows + columns) + 32 * (rows + rank)

    name = f"{low_rank.name}+{integers.name}"
    return Transform(name, f"{low_rank.kind}+{integers.kind}", apply, stored, bits=bits, rank=rank)


def _integer_bits(weights: Tensor, bits: int) -> float:
    return bits * weights.numel() + 32 * (weights.size(0) if weights.dim() == 2 else 1)


def _rounded(weights: Tensor, step: float) -> Tensor:
    return torch.round(weights / step) * step


def _clipped(weights: Tensor, step: float, limit: float) -> Tensor:
    # the grid's last point inside the limit, so that what is clipped lies on the grid
    edge = math.floor(limit / step + 1e-9) * step
    return _rounded(weights.clamp(-edge, edge), step)


def _grid_bits(weights: Tensor, step: float) -> float:
    """Whole bits for each of the grid's points between the smallest and the largest weight, and step and offset."""
    levels = torch.round(weights.max() / step) - torch.round(weights.min() / step) + 1
    return weights.numel() * max(math.ceil(math.log2(float(levels))), 1) + 64


def _low_rank(weights: Tensor, rank: int) -> Tensor:
    if not is_factored(weights.shape, rank):
        return weights
    left, right = low_rank_factors(weights, rank)
    return left @ right


def _low_rank_bits(weights: Tensor, rank: int) -> float:
    return 32 * (rank * sum(weights.shape) if is_factored(weights.shape, rank) else weights.numel())


def _positive(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"the numbers of {text!r} must be > 0")
    return value


def _whole(text: str, number: str, least: int, most: int | None) -> int:
    if not re.fullmatch(r"\d+", number) or int(number) < least or (most is not None and int(number) > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"the number of {text!r} must be an integer, {limits}")
    return int(number)
