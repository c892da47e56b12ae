"""The method in plain PyTorch: LSTMs whose input and forget gates are trained towards 0 and 1.

Source: Li, He, Tian, Chen, Qin, Wang, Liu, *Towards Binary-Valued Gates for Robust LSTM Training*,
ICML 2018. With torch.nn.LSTM's gate order (i, f, g, o), pre-activations a = x W_ih^T + b_ih + h W_hh^T + b_hh,
temperature tau and noise probability p, in training:

    n  = log(u + eps) - log(1 - u + eps),  u ~ Uniform(0, 1),  eps = 1e-3      logistic noise
    m  ~ Bernoulli(p)                                                          noise dropout
    i  = sigmoid((a_i + m_i n_i) / tau)         f = sigmoid((a_f + m_f n_f) / tau)
    g  = tanh(a_g)     o = sigmoid(a_o)         c' = f c + i g      h' = o tanh(c')

Every faster backend is checked against this file, and for the decoder against `decoding.py` beside it. Symbols: T time
steps, B batch, I inputs, H units, L layers, S source positions, E source units. Half types are computed in float32 but
for the products, and the cell state stays in float32 from step to step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import philox4x32, random_words
from ..settings import GateMode
from .packed import PackedWeight, linear

EPS = 1e-3


def uniform(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms on [0, 1) with 24 bits, u = (w >> 8) 2^-24, exact in float32 and float64."""
    return (words >> 8).to(dtype) * 2.0**-24


def bernoulli(words: Tensor, noise_prob: float) -> Tensor:
    """Bernoulli(p) masks: true where w < floor(p 2^32)."""
    return words < int(noise_prob * 2**32)


def logistic(u: Tensor) -> Tensor:
    """Logistic noise from uniforms, n = log(u + eps) - log(1 - u + eps)."""
    return torch.log(u + EPS) - torch.log(1 - u + EPS)


def gate_noise(
    seed: Tensor | int,
    steps: Tensor,
    rows: Tensor,
    hidden_size: int,
    *,
    noise_prob: float,
    noise_sharing: str = "step",
    layer: int = 0,
    reverse: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The noise m n of the input and forget gates of one layer and direction.

    Args:
        seed: 64 bits, as a 0-dim int64 CPU tensor or an integer.
        steps: (T,) int64, time steps as the user numbers them.
        rows: (B,) int64, batch rows as the user numbers them.
        hidden_size: H.
        noise_prob: p.
        noise_sharing: "step", "mask" or "sequence".
        layer: index of the layer in its stack.
        reverse: whether this is the backward direction.
        dtype: torch.float64 computes in float64, every other dtype in float32.

    Returns:
        (T, B, 2H) float32 or float64 on the CPU, the input gates' noise first.
    """
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    first = torch.zeros(1, dtype=torch.int64, device="cpu")

    def words_at(steps: Tensor) -> Tensor:
        return random_words(seed, steps, rows, hidden_size, layer, reverse)

    u_words = words_at(first if noise_sharing == "sequence" else steps)
    m_words = words_at(first) if noise_sharing == "mask" else u_words
    n = logistic(uniform(torch.cat((u_words[0], u_words[1]), dim=-1), dtype))
    m = bernoulli(torch.cat((m_words[2], m_words[3]), dim=-1), noise_prob)
    return (m * n).expand(len(steps), -1, -1)


def gate_argument(a: Tensor, mode: GateMode) -> Tensor:
    """The argument of the gates' sigmoid: a / tau, or where gates are hard infinity with the sign of a, + at 0."""
    if mode.hard:
        return torch.where(a >= 0, float("inf"), float("-inf")).to(a.dtype)
    return a if mode.temperature == 1.0 else a / mode.temperature


def cell_step(
    a: Tensor, c: Tensor, noise: Tensor | None, mode: GateMode
) -> tuple[Tensor, Tensor, Tensor]:
    """One time step from pre-activations.

    Args:
        a: (B, 4H) pre-activations of i, f, g, o.
        c: (B, H) cell state, float32 or float64.
        noise: (B, 2H) noise m n of i and f, or None for none.
        mode: how the gates are computed.

    Returns:
        h' (B, H) in the dtype of a; c' (B, H) in the dtype of c; z (B, 2H), the noise-free arguments
        of the input and forget gates' sigmoids.
    """
    h_size = c.size(1)
    a_if, a_g, a_o = a.to(c.dtype).split((2 * h_size, h_size, h_size), dim=1)
    z = gate_argument(a_if, mode)
    i, f = torch.sigmoid(z if noise is None else gate_argument(a_if + noise, mode)).chunk(2, dim=1)
    g, o = torch.tanh(a_g), torch.sigmoid(a_o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h.to(a.dtype), c, z


def lstm_step(
    a: Tensor,
    c: Tensor,
    seed: Tensor | None = None,
    *,
    mode: GateMode,
    step: int = 0,
    rows: Tensor | None = None,
    layer: int = 0,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One time step from pre-activations, with the noise of that step.

    Args:
        a: (B, 4H) pre-activations of i, f, g, o.
        c: (B, H) cell state, in float32 or float64.
        mode: how the gates are computed.
        seed: 0-dim int64 CPU tensor, needed where mode.noise_prob > 0.
        step: the time step's number for the noise.
        rows: (B,) int64, the batch rows' numbers for the noise; None for 0 to B - 1.
        layer: the layer's number for the noise.
        reverse: whether the noise is that of the backward direction.

    Returns:
        h' (B, H) in the dtype of a; c' (B, H) in the dtype of c.

    Raises:
        ValueError: mode.noise_prob > 0 without a seed.
    """
    n_rows, h_size = c.shape
    noise = step_noise(mode, seed, torch.tensor([step], device="cpu"), rows, n_rows, h_size, layer, reverse, c)
    return cell_step(a, c, None if noise is None else noise[0], mode)[:2]


def lstm_layer(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w_ih: Tensor | PackedWeight,
    w_hh: Tensor | PackedWeight,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    mode: GateMode,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
    layer: int = 0,
    reverse: bool = False,
    need_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One layer and direction over whole sequences.

    Args:
        x: (T, B, I) inputs, padded at the end.
        h_0, c_0: (B, H) initial states.
        w_ih: (4H, I). w_hh: (4H, H), either may be packed. b_ih, b_hh: (4H,) or None.
        lengths: (B,) int64 on the CPU, 1 <= length <= T, in any order; None where all are T.
        mode: how the gates are computed.
        seed: 0-dim int64 CPU tensor, needed where mode.noise_prob > 0.
        rows: (B,) int64, the batch rows' numbers for the noise; None for 0 to B - 1.
        layer: the layer's number for the noise.
        reverse: run from the sequences' ends to their beginnings.
        need_gates: whether to return the gates.

    Returns:
        outputs (T, B, H), zero in the padding; h_n (B, H); c_n (B, H); z (T, B, 2H) in float32 or float64, the
        noise-free arguments of the input and forget gates' sigmoids, or None.

    Raises:
        ValueError: mode.noise_prob > 0 without a seed.
    """
    n_steps, n_rows = x.shape[:2]
    h_size = h_0.size(1)
    a_x = linear(x, w_ih, b_ih, fine=mode.hard)
    if b_hh is not None:
        a_x = a_x + b_hh.to(a_x.dtype)
    h = h_0.to(a_x.dtype)
    c = c_0.to(state_dtype(a_x))
    noise = step_noise(mode, seed, torch.arange(n_steps, device="cpu"), rows, n_rows, h_size, layer, reverse, c)
    valid = None
    if lengths is not None and int(lengths.min()) < n_steps:
        valid = (torch.arange(n_steps, device="cpu")[:, None] < lengths).unsqueeze(-1).to(x.device)

    outputs: list[Tensor] = []
    gates: list[Tensor] = []
    for t in range(n_steps - 1, -1, -1) if reverse else range(n_steps):
        a = a_x[t] + linear(h, w_hh, fine=mode.hard)
        h_new, c_new, z = cell_step(a, c, None if noise is None else noise[t], mode)
        if valid is None:
            h, c = h_new, c_new
            outputs.append(h)
        else:
            h = torch.where(valid[t], h_new, h)
            c = torch.where(valid[t], c_new, c)
            outputs.append(torch.where(valid[t], h_new, 0.0))
        if need_gates:
            gates.append(z.detach())
    if reverse:
        outputs.reverse()
        gates.reverse()
    return torch.stack(outputs), h, c.to(h.dtype), torch.stack(gates) if need_gates else None


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Dropout whose mask is a function of the seed and an element's place: nothing to store for the backward pass.

    Args:
        x: any shape, taken in row-major order.
        p: the probability of dropping, 0 to 1.
        seed: 0-dim int64 CPU tensor.

    Returns:
        x's shape and dtype: 0 where dropped, x / (1 - p) elsewhere.

    Element e is dropped where word e % 64 // 16 of the counter c = e // 64 * 16 + e % 16 is below floor(p 2^32): words
    (c modulo 2^32, c // 2^32, 0, 2^32 - 1), of which the last is no stream of any layer.
    """
    element = np.arange(x.numel(), dtype=np.uint64)
    number = element // 64 * 16 + element % 16
    counter = (number & np.uint64(0xFFFFFFFF), number >> np.uint64(32), np.uint64(0), np.uint64(0xFFFFFFFF))
    words = torch.from_numpy(philox4x32(counter, int(seed) % 2**64).astype(np.int64))
    word = words.gather(0, torch.from_numpy((element % 64 // 16).astype(np.int64))[None])[0]
    kept = ~bernoulli(word, p).view(x.shape).to(x.device)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """What label smoothing needs, summed over the rows whose target is not ignore_index.

    Args:
        logits: (N, V); half types are computed in float32.
        targets: (N,) int64, classes or ignore_index.
        ignore_index: the target of rows that do not count.

    Returns:
        -log p of the targets; -log p of all classes. Both 0-dim, float32 or float64.
    """
    log_probs = F.log_softmax(logits, dim=1, dtype=state_dtype(logits))
    nll = F.nll_loss(log_probs, targets, ignore_index=ignore_index, reduction="sum")
    ignored = targets.eq(ignore_index)
    return nll, -log_probs.sum(dim=1).masked_fill(ignored, 0.0).sum()


def state_dtype(a: Tensor) -> torch.dtype:
    """The dtype of cell states where pre-activations are a: float64 for float64, float32 for all others."""
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def step_noise(
    mode: GateMode,
    seed: Tensor | None,
    steps: Tensor,
    rows: Tensor | None,
    n_rows: int,
    h_size: int,
    layer: int,
    reverse: bool,
    like: Tensor,
) -> Tensor | None:
    """The noise of some steps, as `gate_noise`, in dtype and device of `like`; None where the mode has none.

    Raises:
        ValueError: there is to be noise and no seed.
    """
    if mode.noise_prob == 0.0 or mode.hard:
        return None
    if seed is None:
        raise ValueError("a noise probability above 0 needs a seed, got None")
    noise = gate_noise(
        seed,
        steps,
        torch.arange(n_rows, device="cpu") if rows is None else rows,
        h_size,
        noise_prob=mode.noise_prob,
        noise_sharing=mode.noise_sharing,
        layer=layer,
        reverse=reverse,
        dtype=like.dtype,
    )
    return noise.to(like.device)
