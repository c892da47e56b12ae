"""The method in plain PyTorch: LSTMs whose input and forget gates are trained towards 0 and 1.

Source: Li, He, Tian, Chen, Qin, Wang, Liu, *Towards Binary-Valued Gates for Robust LSTM Training*,
ICML 2018. With torch.nn.LSTM's gate order (i, f, g, o), pre-activations a = x W_ih^T + b_ih + h W_hh^T + b_hh,
temperature tau and noise probability p, in training:

    n  = log(u + eps) - log(1 - u + eps),  u ~ Uniform(0, 1),  eps = 1e-3      logistic noise
    m  ~ Bernoulli(p)                                                          noise dropout
    i  = sigmoid((a_i + m_i n_i) / tau)         f = sigmoid((a_f + m_f n_f) / tau)
    g  = tanh(a_g)     o = sigmoid(a_o)         c' = f c + i g      h' = o tanh(c')

Every faster backend is checked against this file. Symbols: T time steps, B batch, I inputs, H units,
L layers, S source positions, E source units. Half types are computed in float32 but for the products,
and the cell state stays in float32 from step to step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .philox import philox4x32, random_words

GATE_TYPES = ("gumbel", "sharpened", "sigmoid")
EVAL_MODES = ("auto", "soft", "tempered", "hard")
SHARINGS = ("step", "mask", "sequence")
EPS = 1e-3


class GateMode(NamedTuple):
    """How the input and forget gates are computed in one forward pass.

    temperature: tau > 0.
    noise_prob: p in [0, 1]; 0 means no noise.
    noise_sharing: "step", "mask" or "sequence".
    hard: gates are 1 where a >= 0, else 0; temperature and noise play no part.
    """

    temperature: float = 1.0
    noise_prob: float = 0.0
    noise_sharing: str = "step"
    hard: bool = False


@dataclass(frozen=True)
class GateSettings:
    """What a user chooses of the method.

    Args:
        gate_type: "gumbel" (noise and temperature in training), "sharpened" (temperature alone) or
            "sigmoid" (the ordinary LSTM).
        temperature: tau > 0.
        noise_prob: p, 0 <= p <= 1.
        noise_sharing: how often noise is drawn: "step" u and m anew at each time step, "mask" m held over the
            sequence, "sequence" both held.
        eval_mode: gates in evaluation: "soft" sigmoid(a), "tempered" sigmoid(a / tau), "hard" 1 where a >= 0 and
            else 0, "auto" tempered for gate type sharpened and soft for the others.

    Raises:
        ValueError: a value is outside its range; the message names it and what is accepted.
    """

    gate_type: str = "gumbel"
    temperature: float = 0.9
    noise_prob: float = 0.2
    noise_sharing: str = "step"
    eval_mode: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (
            ("gate_type", GATE_TYPES),
            ("noise_sharing", SHARINGS),
            ("eval_mode", EVAL_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        check_temperature("temperature", self.temperature)
        check_probability("noise_prob", self.noise_prob)

    def mode(self, training: bool) -> GateMode:
        """The gates in use in training or in evaluation."""
        if not training:
            eval_mode = self.eval_mode
            if eval_mode == "auto":
                eval_mode = "tempered" if self.gate_type == "sharpened" else "soft"
            temperature = self.temperature if eval_mode == "tempered" else 1.0
            return GateMode(temperature, hard=eval_mode == "hard")
        if self.gate_type == "gumbel":
            return GateMode(self.temperature, self.noise_prob, self.noise_sharing)
        return GateMode(self.temperature if self.gate_type == "sharpened" else 1.0)

    def with_values(self, temperature: float, noise_prob: float) -> "GateSettings":
        """The same settings with another temperature and noise probability."""
        return replace(self, temperature=temperature, noise_prob=noise_prob)


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError unless value is a number and 0 < value < infinity."""
    if not isinstance(value, Real) or not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be > 0 and finite, got {value!r}")


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless value is a number and 0 <= value <= 1."""
    if not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}")


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
    """
    n_rows, h_size = c.shape
    noise = _noise(mode, seed, torch.tensor([step], device="cpu"), rows, n_rows, h_size, layer, reverse, c)
    return cell_step(a, c, None if noise is None else noise[0], mode)[:2]


def lstm_layer(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
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
        w_ih: (4H, I). w_hh: (4H, H). b_ih, b_hh: (4H,) or None.
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
    """
    n_steps, n_rows = x.shape[:2]
    h_size = w_hh.size(1)
    a_x = F.linear(x, w_ih, b_ih)
    if b_hh is not None:
        a_x = a_x + b_hh.to(a_x.dtype)
    h = h_0.to(a_x.dtype)
    c = c_0.to(_state_dtype(a_x))
    noise = _noise(mode, seed, torch.arange(n_steps, device="cpu"), rows, n_rows, h_size, layer, reverse, c)
    valid = None
    if lengths is not None and int(lengths.min()) < n_steps:
        valid = (torch.arange(n_steps, device="cpu")[:, None] < lengths).unsqueeze(-1).to(x.device)

    outputs: list[Tensor] = []
    gates: list[Tensor] = []
    for t in range(n_steps - 1, -1, -1) if reverse else range(n_steps):
        a = torch.addmm(a_x[t], h, w_hh.t())
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


class CellWeights(NamedTuple):
    """Weights of one LSTM cell: w_ih (4H, I), w_hh (4H, H), b_ih and b_hh (4H,), both or neither None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        """b_ih + b_hh, or None."""
        return None if self.b_ih is None or self.b_hh is None else self.b_ih + self.b_hh


class DecoderOutput(NamedTuple):
    """What a decoder returns: outputs (T, B, H); h and c (L, B, H); feed (B, H), the next step's input feed;
    attention (T, B, S) or None; z (L, T, B, 2H) or None, as in `lstm_layer`."""

    outputs: Tensor
    h: Tensor
    c: Tensor
    feed: Tensor
    attention: Tensor | None
    gates: Tensor | None


def decoder(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    feed_0: Tensor,
    cells: Sequence[CellWeights],
    source: Tensor | None = None,
    source_padding: Tensor | None = None,
    w_query: Tensor | None = None,
    w_out: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    *,
    mode: GateMode,
    seed: Tensor | None = None,
    need_attention: bool = False,
    need_gates: bool = False,
) -> DecoderOutput:
    """Stacked cells with input feeding and attention over a whole target sequence.

    At each step the first cell reads the embedding and the previous step's output (input feeding: Luong, Pham,
    Manning, *Effective Approaches to Attention-based Neural Machine Translation*, EMNLP 2015), the last cell's
    h attends over the source by the general score of the same paper, and the output is tanh(W_out [context; h]).

    Args:
        x: (T, B, I) target embeddings.
        h_0, c_0: (L, B, H) initial states.
        feed_0: (B, H) first input feed.
        cells: L cells; the first reads I + H inputs, the others H.
        source: (S, B, E) encoder outputs, or None for no attention: the output is then the last cell's h.
        source_padding: (S, B) bool, true at padding, or None.
        w_query: (E, H). w_out: (H, E + H).
        dropout_mask: (T, L, B, H) factors (0 or 1 / (1 - dropout)): the first L - 1 multiply the cells' h on the way
            to the next cell, the last the output; None for no dropout.
        mode: how the gates are computed.
        seed: 0-dim int64 CPU tensor, needed where mode.noise_prob > 0.
        need_attention: whether to return the attention.
        need_gates: whether to return the gates.
    """
    n_steps, n_rows, n_inputs = x.shape
    n_layers, h_size = len(cells), h_0.size(2)
    # What the steps share is computed once: the embeddings' part of the first cell, in one product for all
    # steps, and the weights of what is known only step by step, side by side so that a step is one product.
    a_x = F.linear(x, cells[0].w_ih[:, :n_inputs], cells[0].bias)
    recurrent = [torch.cat((cells[0].w_ih[:, n_inputs:], cells[0].w_hh), dim=1)]
    recurrent += [torch.cat((cell.w_ih, cell.w_hh), dim=1) for cell in cells[1:]]
    biases = [cell.bias for cell in cells]
    if source is not None:
        source = source.transpose(0, 1).contiguous()
    if source_padding is not None:
        source_padding = source_padding.t()

    hs = [h.to(a_x.dtype) for h in h_0]
    cs = [c.to(_state_dtype(a_x)) for c in c_0]
    feed = feed_0.to(a_x.dtype)
    if dropout_mask is not None:
        dropout_mask = dropout_mask.to(a_x.dtype)
    steps = torch.arange(n_steps, device="cpu")
    noises = [
        _noise(mode, seed, steps, None, n_rows, h_size, layer, False, cs[0]) for layer in range(n_layers)
    ]
    outputs, attention = [], []
    gates: list[list[Tensor]] = [[] for _ in cells]
    for t in range(n_steps):
        inputs = feed
        for layer in range(n_layers):
            a = F.linear(torch.cat((inputs, hs[layer]), dim=1), recurrent[layer], None if layer == 0 else biases[layer])
            if layer == 0:
                a = a_x[t] + a
            noise = noises[layer]
            hs[layer], cs[layer], z = cell_step(a, cs[layer], None if noise is None else noise[t], mode)
            inputs = hs[layer]
            if dropout_mask is not None and layer < n_layers - 1:
                inputs = inputs * dropout_mask[t, layer]
            if need_gates:
                gates[layer].append(z.detach())
        out = hs[-1]
        if source is not None:
            assert w_query is not None and w_out is not None
            out, weights = attend(out, source, source_padding, w_query, w_out)
            if need_attention:
                attention.append(weights)
        if dropout_mask is not None:
            out = out * dropout_mask[t, -1]
        feed = out
        outputs.append(out)
    return DecoderOutput(
        torch.stack(outputs),
        torch.stack(hs),
        torch.stack(cs).to(feed.dtype),
        feed,
        torch.stack(attention) if attention else None,
        torch.stack([torch.stack(z) for z in gates]) if need_gates else None,
    )


class AttentionMemory(NamedTuple):
    """What the attention reads of a source, computed once and kept while a translation is searched.

    keys (B', S, H), the source times W_query; values (B', S, H), the source times the context's part of W_out;
    padding (B', S) bool, true at padding, or None.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor | None


def attention_memory(
    source: Tensor, source_padding: Tensor | None, w_query: Tensor, w_out: Tensor
) -> AttentionMemory:
    """The memory of a source (S, B', E) with padding (S, B') bool or None, w_query (E, H) and w_out (H, E + H)."""
    rows = source.transpose(0, 1).contiguous()
    padding = None if source_padding is None else source_padding.t().contiguous()
    return AttentionMemory(rows @ w_query, rows @ w_out[:, : source.size(2)].t(), padding)


def decoder_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    feed: Tensor,
    cells: Sequence[CellWeights],
    memory: AttentionMemory | None = None,
    source_rows: Tensor | None = None,
    w_out: Tensor | None = None,
    *,
    mode: GateMode,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of `decoder` without noise and dropout, as beam search takes it.

    Args:
        x: (B, I) target embeddings. h, c: (L, B, H). feed: (B, H). cells, w_out: as in `decoder`.
        memory: of the sources, or None for no attention.
        source_rows: (B,) int64, the memory's row that each batch row attends to; None for the same.
        mode: how the gates are computed; its noise probability must be 0.

    Returns:
        output (B, H), which is the next step's feed; h and c (L, B, H); attention (B, S) or None.

    Raises:
        ValueError: mode asks for noise.
    """
    if mode.noise_prob > 0:
        raise ValueError(f"a decoder step has no noise, got noise_prob={mode.noise_prob}: use decoder")
    inputs = torch.cat((x, feed), dim=1)
    hs, cs = [], []
    for cell, h_before, c_before in zip(cells, h, c, strict=True):
        a = F.linear(inputs, cell.w_ih, cell.bias) + F.linear(h_before, cell.w_hh)
        inputs, c_after, _ = cell_step(a, c_before.to(_state_dtype(a)), None, mode)
        hs.append(inputs)
        cs.append(c_after.to(c.dtype))
    states = torch.stack(hs), torch.stack(cs)
    if memory is None:
        return inputs, *states, None
    assert w_out is not None
    keys, values, padding = memory
    if source_rows is not None:
        keys, values = keys[source_rows], values[source_rows]
        padding = None if padding is None else padding[source_rows]
    scores = torch.bmm(keys, inputs.unsqueeze(2)).squeeze(2)
    if padding is not None:
        scores = scores.masked_fill(padding, float("-inf"))
    weights = F.softmax(scores, dim=1)
    context = torch.bmm(weights.unsqueeze(1), values).squeeze(1)
    return torch.tanh(context + F.linear(inputs, w_out[:, -inputs.size(1) :])), *states, weights


def attend(
    h: Tensor, source: Tensor, source_padding: Tensor | None, w_query: Tensor, w_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention by the general score.

    Args:
        h: (B, H). source: (B, S, E). source_padding: (B, S) bool or None. w_query: (E, H). w_out: (H, E + H).

    Returns:
        output (B, H) and attention weights (B, S).
    """
    query = F.linear(h, w_query).to(source.dtype)
    scores = torch.bmm(source, query.unsqueeze(2)).squeeze(2)
    if source_padding is not None:
        scores = scores.masked_fill(source_padding, float("-inf"))
    weights = F.softmax(scores, dim=1)
    context = torch.bmm(weights.to(source.dtype).unsqueeze(1), source).squeeze(1)
    return torch.tanh(F.linear(torch.cat((context.to(h.dtype), h), dim=1), w_out)), weights


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
    log_probs = F.log_softmax(logits, dim=1, dtype=_state_dtype(logits))
    nll = F.nll_loss(log_probs, targets, ignore_index=ignore_index, reduction="sum")
    ignored = targets.eq(ignore_index)
    return nll, -log_probs.sum(dim=1).masked_fill(ignored, 0.0).sum()


def _state_dtype(a: Tensor) -> torch.dtype:
    return torch.float64 if a.dtype == torch.float64 else torch.float32


def _noise(
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
