"""Small packed matrices of every kind."""

from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_g2lstm.quantization import low_rank_factors, quantize_rows
from fairseq_g2lstm.reference import Factor, PackedWeight


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5


def integers(weights: Tensor) -> tuple[Factor, ...]:
    return (Factor(*quantize_rows(weights, 8)),)


def factors(weights: Tensor, rank: int = 2) -> tuple[Factor, ...]:
    left, right = low_rank_factors(weights, rank)
    return Factor(right), Factor(left)


def factors_in_integers(weights: Tensor) -> tuple[Factor, ...]:
    return tuple(Factor(*quantize_rows(factor.weights, 8)) for factor in factors(weights))


def half(weights: Tensor, pack: Callable[[Tensor], tuple[Factor, ...]] = integers) -> PackedWeight:
    rows = len(weights) // 2
    return PackedWeight((pack(weights[:rows]), (Factor(weights[rows:]),)))


KINDS: dict[str, Callable[[Tensor], PackedWeight]] = {
    "integers": lambda w: PackedWeight((integers(w),)),
    "factors": lambda w: PackedWeight((factors(w),)),
    "factors in integers": lambda w: PackedWeight((factors_in_integers(w),)),
    "integers above plain rows": half,
    "factors above plain rows": lambda w: half(w, factors),
}
