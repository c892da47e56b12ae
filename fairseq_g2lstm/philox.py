"""Counter-based noise: the same bits in every backend, nothing to store for the backward pass.

Philox4x32-10 maps a 128-bit counter and a 64-bit key to 128 random bits without any state (Salmon,
Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, SC'11). Here the key is the seed of
one forward pass, and the counter names one gate of one cell:

    counter words 0 to 3   unit j; batch row b; time step t; 2 * layer + direction (0 forward, 1 backward)
    output words 0 to 3    uniform of i; uniform of f; Bernoulli mask of i; Bernoulli mask of f

so that the noise of a gate depends on neither the batch split, nor the thread count, nor the backend.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RANK_STRIDE = 0x9E3779B97F4A7C15

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW32 = 0xFFFFFFFF
_CHUNK = 1 << 14  # counters whose eight uint64 work arrays stay in a core's second-level cache


def philox4x32(counter: Sequence[np.ndarray | np.uint64] | np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 of many counters under one key.

    Args:
        counter: (4, ...) integers in [0, 2^32), the counter's words, broadcastable among each other.
        key: the 64-bit key; its low word is the first key word, its high word the second.

    Returns:
        (4, ...) uint32, the four output words.

    Source: Salmon et al., SC'11.
    """
    shape = np.broadcast_shapes(*(np.shape(word) for word in counter))
    words = [np.broadcast_to(np.asarray(word, dtype=np.uint64), shape).reshape(-1) for word in counter]
    out = np.empty((4, words[0].size), dtype=np.uint32)
    for start in range(0, out.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        out[:, chunk] = _philox_rounds([word[chunk] for word in words], key)
    return out.reshape(4, *shape)


def _philox_rounds(counter: list[np.ndarray], key: int) -> list[np.ndarray]:
    c0, c1, c2, c3 = counter
    low = np.uint64(_LOW32)
    half = np.uint64(32)
    k0, k1 = key & _LOW32, (key >> 32) & _LOW32
    for _ in range(_ROUNDS):
        p0 = c0 * np.uint64(_MULTIPLIERS[0])
        p1 = c2 * np.uint64(_MULTIPLIERS[1])
        c0 = (p1 >> half) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> half) ^ c3 ^ np.uint64(k1)
        c1 = p1 & low
        c3 = p0 & low
        k0 = (k0 + _WEYL[0]) & _LOW32
        k1 = (k1 + _WEYL[1]) & _LOW32
    return [c0, c1, c2, c3]


# torch.compile fails over numpy's part of it. torch.compiler.disable would import all of dynamo with this module.
@torch._disable_dynamo
def random_words(
    seed: Tensor | int, steps: Tensor, rows: Tensor, hidden_size: int, layer: int, reverse: bool
) -> Tensor:
    """The random words of every gate of one layer and direction.

    Args:
        seed: 64 bits, as a 0-dim int64 CPU tensor or an integer.
        steps: (T,) int64, time steps as the user numbers them.
        rows: (B,) int64, batch rows as the user numbers them.
        hidden_size: H.
        layer: index of the layer in its stack.
        reverse: whether this is the backward direction.

    Returns:
        (4, T, B, H) int64 on the CPU, values in [0, 2^32).

    Raises:
        ValueError: a step, a row or a layer is no 32-bit number.
    """
    for name, numbers in (("steps", steps), ("rows", rows), ("layer", torch.tensor([2 * layer], device="cpu"))):
        if numbers.numel() > 0 and (int(numbers.min()) < 0 or int(numbers.max()) > _LOW32):
            raise ValueError(
                f"{name} must be >= 0 and fit the noise's 32 bits, got {int(numbers.min())} to {int(numbers.max())}"
            )
    counter = (
        np.arange(hidden_size, dtype=np.uint64),
        _as_numpy(rows)[:, None],
        _as_numpy(steps)[:, None, None],
        np.uint64(2 * layer + int(reverse)),
    )
    words = philox4x32(counter, int(seed) % 2**64)
    return torch.from_numpy(words.astype(np.int64))


def _as_numpy(numbers: Tensor) -> np.ndarray:
    """(N,) uint64; one by one within torch.func's transforms, where tensors have no memory to read."""
    try:
        return numbers.cpu().numpy().astype(np.uint64)
    except RuntimeError:
        return np.array([int(number) for number in numbers], dtype=np.uint64)


def draw_seed() -> Tensor:
    """Draws the seed of one training forward pass from torch's default CPU generator.

    Where torch.distributed is initialised, rank * 0x9E3779B97F4A7C15 is added modulo 2^64, so that ranks
    that share a generator state still have noise of their own.

    Returns:
        0-dim int64 CPU tensor.
    """
    # Tensor.random_ out of place, which torch.compile can trace
    seed = torch.ops.aten.random.default(torch.empty((), dtype=torch.int64, device="cpu"))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seed = rank_seed(seed, torch.distributed.get_rank())
    return seed


def rank_seed(seed: Tensor, rank: int) -> Tensor:
    """The seed of one rank: (seed + rank * 0x9E3779B97F4A7C15) modulo 2^64, as a 0-dim int64 tensor."""
    share = rank * RANK_STRIDE % 2**64
    return seed + (share - 2**64 if share >= 2**63 else share)
