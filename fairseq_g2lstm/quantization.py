"""Matrices in less: rows in integers with a scale each, and products of two smaller matrices."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantize_rows(weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Symmetric integers with a scale a row: w = scale q, scale = max |w| / (2^(bits - 1) - 1).

    Args:
        weights: (R, C), or (C,), which is taken as one row.
        bits: 2 to 8.

    Returns:
        q, int8, shaped as the weights; scales (R,) or (), float32, 1 for rows of zeros.
    """
    largest = 2 ** (bits - 1) - 1
    scales = weights.float().abs().amax(-1) / largest
    scales = torch.where(scales > 0, scales, 1.0)
    q = (weights.float() / scales.unsqueeze(-1)).round().clamp(-largest, largest)
    return q.to(torch.int8), scales


def dequantize_rows(q: Tensor, scales: Tensor) -> Tensor:
    """What `quantize_rows` gave as float32."""
    return q.float() * scales.unsqueeze(-1)


def low_rank_factors(weights: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two matrices whose product is the nearest of a rank to the weights (Eckart and Young 1936), by SVD.

    Args:
        weights: (R, C).
        rank: k, 1 to min(R, C).

    Returns:
        (R, k) and (k, C), float32, the square roots of the singular values in both.
    """
    u, s, v = torch.linalg.svd(weights.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def is_factored(shape: Sequence[int], rank: int) -> bool:
    """Whether a low rank makes weights of this shape smaller; if not they stay as they are."""
    return len(shape) == 2 and rank * sum(shape) < math.prod(shape)
