"""The decoder in plain PyTorch, which the compiled ones are checked against: stacked cells with input feeding and
attention, over a whole target sequence and by the single step. Symbols as in `method.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import GateMode
from .method import cell_step, state_dtype, step_noise
from .packed import PackedWeight, linear, unpacked


class CellWeights(NamedTuple):
    """Weights of one LSTM cell: w_ih (4H, I), w_hh (4H, H), b_ih and b_hh (4H,), both or neither None.

    The matrices of a packed model are packed.
    """

    w_ih: Tensor | PackedWeight
    w_hh: Tensor | PackedWeight
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
    rows: Tensor | None = None,
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
        cells: L cells; the first reads I + H inputs, the others H. Packed matrices are unpacked.
        source: (S, B, E) encoder outputs, or None for no attention: the output is then the last cell's h.
        source_padding: (S, B) bool, true at padding, or None.
        w_query: (E, H). w_out: (H, E + H).
        dropout_mask: (T, L, B, H) factors (0 or 1 / (1 - dropout)): the first L - 1 multiply the cells' h on the way
            to the next cell, the last the output; None for no dropout.
        mode: how the gates are computed.
        seed: 0-dim int64 CPU tensor, needed where mode.noise_prob > 0.
        rows: (B,) int64 CPU numbers of the batch rows for the noise, or None for 0 to B - 1.
        need_attention: whether to return the attention.
        need_gates: whether to return the gates.

    Returns:
        What a DecoderOutput holds.

    Raises:
        ValueError: mode.noise_prob > 0 without a seed.
    """
    n_steps, n_rows, n_inputs = x.shape
    n_layers, h_size = len(cells), h_0.size(2)
    # What the steps share is computed once: the embeddings' part of the first cell, in one product for all
    # steps, and the weights of what is known only step by step, side by side so that a step is one product.
    matrices = [(unpacked(cell.w_ih, x.dtype), unpacked(cell.w_hh, x.dtype)) for cell in cells]
    a_x = F.linear(x, matrices[0][0][:, :n_inputs], cells[0].bias)
    recurrent = [torch.cat((matrices[0][0][:, n_inputs:], matrices[0][1]), dim=1)]
    recurrent += [torch.cat(pair, dim=1) for pair in matrices[1:]]
    biases = [cell.bias for cell in cells]
    if source is not None:
        source = source.transpose(0, 1).contiguous()
    if source_padding is not None:
        source_padding = source_padding.t()

    hs = [h.to(a_x.dtype) for h in h_0]
    cs = [c.to(state_dtype(a_x)) for c in c_0]
    feed = feed_0.to(a_x.dtype)
    if dropout_mask is not None:
        dropout_mask = dropout_mask.to(a_x.dtype)
    steps = torch.arange(n_steps, device="cpu")
    noises = [
        step_noise(mode, seed, steps, rows, n_rows, h_size, layer, False, cs[0]) for layer in range(n_layers)
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
        a = linear(inputs, cell.w_ih, cell.bias, mode.hard) + linear(h_before, cell.w_hh, fine=mode.hard)
        inputs, c_after, _ = cell_step(a, c_before.to(state_dtype(a)), None, mode)
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
