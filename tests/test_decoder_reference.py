"""The decoder over a whole target sequence, against a step-by-step loop over torch.nn.LSTMCell."""

import itertools

import pytest
import torch
from lstm_peers import EQUAL, Noise, weighted_sum
from torch import Tensor, nn

from fairseq_g2lstm.ops import CellWeights, DecoderOutput, GateMode, decoder
from fairseq_g2lstm.reference import attend

F64 = torch.float64
T, B, I_SIZE, H_SIZE, S, E = 5, 3, 4, 6, 7, 2
SEED, P, TAU = -12, 0.6, 0.7


class Inputs:
    """Random arguments of `decoder`, every floating one a leaf that takes gradients."""

    def __init__(self, n_layers: int, attention: bool, dropout: bool, padding: bool = True) -> None:
        torch.manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            return (0.7 * torch.randn(*shape, dtype=F64)).requires_grad_(True)

        self.x, self.feed_0 = leaf(T, B, I_SIZE), leaf(B, H_SIZE)
        self.h_0, self.c_0 = leaf(n_layers, B, H_SIZE), leaf(n_layers, B, H_SIZE)
        n_inputs = [I_SIZE + H_SIZE] + [H_SIZE] * (n_layers - 1)
        g4 = 4 * H_SIZE
        self.cells = [CellWeights(leaf(g4, n), leaf(g4, H_SIZE), leaf(g4), leaf(g4)) for n in n_inputs]
        self.source = self.w_query = self.w_out = self.source_padding = self.dropout_mask = None
        if attention:
            self.source, self.w_query, self.w_out = leaf(S, B, E), leaf(E, H_SIZE), leaf(H_SIZE, E + H_SIZE)
            if padding:
                self.source_padding = torch.arange(S)[:, None] >= torch.tensor([S, 1, 4])
        if dropout:
            # No two factors alike, so that none can stand in for another.
            self.dropout_mask = torch.rand(T, n_layers, B, H_SIZE, dtype=F64) * 2

    def leaves(self) -> list[Tensor]:
        tensors = [self.x, self.h_0, self.c_0, self.feed_0, *itertools.chain(*self.cells)]
        return tensors + [t for t in (self.source, self.w_query, self.w_out) if t is not None]

    def arguments(self) -> tuple:
        return (
            self.x,
            self.h_0,
            self.c_0,
            self.feed_0,
            self.cells,
            self.source,
            self.source_padding,
            self.w_query,
            self.w_out,
            self.dropout_mask,
        )

    def run(self, **options) -> DecoderOutput:
        return decoder(*self.arguments(), **options)


def plain_attention(h: Tensor, source: Tensor, padding: Tensor | None, w_query: Tensor, w_out: Tensor):
    """Row by row, position by position; padding is left out of the sums altogether. source (S, B, E)."""
    outputs, all_weights = [], []
    for b in range(h.size(0)):
        kept = [s for s in range(source.size(0)) if padding is None or not padding[s, b]]
        exponentials = {s: torch.exp(torch.dot(source[s, b], w_query @ h[b])) for s in kept}
        total = sum(exponentials.values())
        weights = [exponentials[s] / total if s in kept else torch.zeros((), dtype=F64) for s in range(source.size(0))]
        context = sum(w * source[s, b] for s, w in enumerate(weights))
        outputs.append(torch.tanh(w_out @ torch.cat((context, h[b]))))
        all_weights.append(torch.stack(weights))
    return torch.stack(outputs), torch.stack(all_weights)


def loop(inputs: Inputs, temperature: float = 1.0, noise: Noise | None = None) -> DecoderOutput:
    """The decoder by torch.nn.LSTMCell, temperature and noise by the identity: the input and forget gates' rows
    divided by tau, and noise / tau added through a block of the input's weights."""
    n_layers = len(inputs.cells)
    scale = torch.ones(4 * H_SIZE, 1, dtype=F64)
    scale[: 2 * H_SIZE] = 1 / temperature
    block = torch.zeros(4 * H_SIZE, 2 * H_SIZE, dtype=F64)
    block[: 2 * H_SIZE] = torch.eye(2 * H_SIZE, dtype=F64) / temperature
    zero = torch.zeros(T, B, 2 * H_SIZE, dtype=F64)
    noises = [zero if noise is None else noise(T, B, H_SIZE, layer, 0) for layer in range(n_layers)]

    def step(layer: int, x: Tensor, hx: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, Tensor]:
        w = inputs.cells[layer]
        cell = nn.LSTMCell(x.size(1) + 2 * H_SIZE, H_SIZE, dtype=F64)
        weights = {
            "weight_ih": torch.cat((w.w_ih * scale, block), dim=1),
            "weight_hh": w.w_hh * scale,
            "bias_ih": w.b_ih * scale[:, 0],
            "bias_hh": w.b_hh * scale[:, 0],
        }
        return torch.func.functional_call(cell, weights, (torch.cat((x, noises[layer][t]), dim=1), hx))

    hs, cs, feed = list(inputs.h_0), list(inputs.c_0), inputs.feed_0
    outputs, attention = [], []
    gates: list[list[Tensor]] = [[] for _ in inputs.cells]
    for t in range(T):
        x = torch.cat((inputs.x[t], feed), dim=1)
        for layer in range(n_layers):
            w = inputs.cells[layer]
            a = x @ w.w_ih.T + w.b_ih + hs[layer] @ w.w_hh.T + w.b_hh
            gates[layer].append(a[:, : 2 * H_SIZE] / temperature)
            hs[layer], cs[layer] = step(layer, x, (hs[layer], cs[layer]), t)
            x = hs[layer]
            if inputs.dropout_mask is not None and layer < n_layers - 1:
                x = x * inputs.dropout_mask[t, layer]
        if inputs.source is not None:
            x, weights = plain_attention(x, inputs.source, inputs.source_padding, inputs.w_query, inputs.w_out)
            attention.append(weights)
        if inputs.dropout_mask is not None:
            x = x * inputs.dropout_mask[t, -1]
        feed = x
        outputs.append(x)
    return DecoderOutput(
        torch.stack(outputs),
        torch.stack(hs),
        torch.stack(cs),
        feed,
        torch.stack(attention) if attention else None,
        torch.stack([torch.stack(z) for z in gates]),
    )


def assert_same(found: DecoderOutput, expected: DecoderOutput, inputs: Inputs) -> None:
    """Everything returned, and the gradient of everything given."""
    for name, one, other in zip(DecoderOutput._fields, found, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, **EQUAL, msg=lambda m, name=name: f"{name}: {m}")

    def gradients(output: DecoderOutput) -> tuple[Tensor, ...]:
        parts = [output.outputs, output.h, output.c, output.feed]
        parts += [] if output.attention is None else [output.attention]
        return torch.autograd.grad(weighted_sum(*parts), inputs.leaves())

    for one, other in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(one, other, **EQUAL)


@pytest.mark.parametrize("dropout", [False, True], ids=["all_units", "dropout"])
@pytest.mark.parametrize("attention", [False, True], ids=["no_attention", "attention"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_without_noise_equals_a_loop_over_lstm_cells(n_layers, attention, dropout):
    inputs = Inputs(n_layers, attention, dropout)
    found = inputs.run(mode=GateMode(), need_attention=True, need_gates=True)
    assert_same(found, loop(inputs), inputs)


@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
@pytest.mark.parametrize("attention", [False, True], ids=["no_attention", "attention"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_with_noise_equals_the_identity_by_lstm_cells(n_layers, attention, sharing):
    inputs = Inputs(n_layers, attention, dropout=n_layers > 1)
    found = inputs.run(
        mode=GateMode(TAU, P, sharing), seed=torch.tensor(SEED), need_attention=True, need_gates=True
    )
    expected = loop(inputs, TAU, Noise(SEED, P, sharing))
    assert_same(found, expected, inputs)


def test_temperature_without_noise_equals_the_identity_by_lstm_cells():
    inputs = Inputs(2, True, False)
    found = inputs.run(mode=GateMode(TAU), need_attention=True, need_gates=True)
    assert_same(found, loop(inputs, TAU), inputs)


def test_hard_gates_are_zero_or_one():
    inputs = Inputs(1, False, False)
    found = inputs.run(mode=GateMode(hard=True), need_gates=True)
    w, h, c, feed = inputs.cells[0], inputs.h_0[0], inputs.c_0[0], inputs.feed_0
    for t in range(T):
        a = torch.cat((inputs.x[t], feed), dim=1) @ w.w_ih.T + w.b_ih + h @ w.w_hh.T + w.b_hh
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
        c = (a_f >= 0) * c + (a_i >= 0) * torch.tanh(a_g)
        h = feed = torch.sigmoid(a_o) * torch.tanh(c)
        torch.testing.assert_close(found.outputs[t], h, **EQUAL)
        assert torch.equal(torch.sigmoid(found.gates[0, t]), (torch.cat((a_i, a_f), dim=1) >= 0).to(F64))
    torch.testing.assert_close(found.c[0], c, **EQUAL)


@pytest.mark.parametrize("padding", [False, True])
def test_attention_equals_a_plain_computation_and_leaves_padding_out(padding):
    inputs = Inputs(1, True, False, padding)
    h = inputs.h_0[0]
    found, weights = attend(
        h,
        inputs.source.transpose(0, 1),
        inputs.source_padding.t() if padding else None,
        inputs.w_query,
        inputs.w_out,
    )
    expected, expected_weights = plain_attention(
        h, inputs.source, inputs.source_padding, inputs.w_query, inputs.w_out
    )
    torch.testing.assert_close(found, expected, **EQUAL)
    torch.testing.assert_close(weights, expected_weights, **EQUAL)
    torch.testing.assert_close(weights.sum(1), torch.ones(B, dtype=F64), **EQUAL)
    if padding:
        assert not weights[inputs.source_padding.t()].any()


def test_what_stands_in_the_padding_does_not_matter():
    inputs = Inputs(2, True, False)
    before = inputs.run(mode=GateMode()).outputs
    with torch.no_grad():
        inputs.source[inputs.source_padding] = 1e6
    assert torch.equal(inputs.run(mode=GateMode()).outputs, before)


def test_states_and_feed_continue_a_sequence():
    inputs = Inputs(2, True, False)
    whole = inputs.run(mode=GateMode(TAU), need_attention=True)
    rest = inputs.arguments()[4:]
    first = decoder(inputs.x[:2], inputs.h_0, inputs.c_0, inputs.feed_0, *rest, mode=GateMode(TAU), need_attention=True)
    second = decoder(inputs.x[2:], first.h, first.c, first.feed, *rest, mode=GateMode(TAU), need_attention=True)
    for name in ("outputs", "attention"):
        torch.testing.assert_close(
            torch.cat((getattr(first, name), getattr(second, name))), getattr(whole, name), **EQUAL
        )
    for name in ("h", "c", "feed"):
        torch.testing.assert_close(getattr(second, name), getattr(whole, name), **EQUAL)


def test_attention_and_gates_are_returned_only_when_asked_for():
    inputs = Inputs(2, True, True)
    bare = inputs.run(mode=GateMode(TAU))
    full = inputs.run(mode=GateMode(TAU), need_attention=True, need_gates=True)
    assert bare.attention is None and bare.gates is None
    assert full.attention.shape == (T, B, S)
    assert full.gates.shape == (2, T, B, 2 * H_SIZE) and not full.gates.requires_grad
    assert torch.equal(bare.outputs, full.outputs)


def test_noise_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="a noise probability above 0 needs a seed, got None"):
        Inputs(1, False, False).run(mode=GateMode(TAU, P))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("mode", [GateMode(), GateMode(TAU, P), GateMode(TAU, P, "mask")], ids=str)
def test_gradcheck(mode, attention):
    inputs = Inputs(2, attention, dropout=True)
    leaves = inputs.leaves()

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, h_0, c_0, feed_0, *rest = tensors
        cells = [CellWeights(*rest[:4]), CellWeights(*rest[4:8])]
        source, w_query, w_out = rest[8:] or (None, None, None)
        output = decoder(
            x, h_0, c_0, feed_0, cells, source, inputs.source_padding, w_query, w_out, inputs.dropout_mask,
            mode=mode, seed=torch.tensor(SEED), need_attention=attention,
        )  # fmt: skip
        returned = (output.outputs, output.h, output.c, output.feed)
        return (*returned, output.attention) if attention else returned

    assert torch.autograd.gradcheck(forward, leaves, fast_mode=True)


def converted(inputs: Inputs, dtype: torch.dtype) -> tuple:
    def convert(value):
        if isinstance(value, CellWeights):
            return CellWeights(*map(convert, value))
        if isinstance(value, list):
            return [convert(v) for v in value]
        return value.detach().to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(convert, inputs.arguments()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_close_to_float32(dtype):
    options = {"mode": GateMode(TAU, P), "seed": torch.tensor(SEED), "need_attention": True}
    inputs = Inputs(2, True, False)
    for name in ("x", "h_0", "c_0", "feed_0", "cells", "source", "w_query", "w_out"):
        # The same rounded values in both precisions.
        value = getattr(inputs, name)
        rounded = (
            [CellWeights(*(w.to(dtype) for w in cell)) for cell in value] if name == "cells" else value.to(dtype)
        )
        setattr(inputs, name, rounded)
    half = decoder(*converted(inputs, dtype), **options)
    single = decoder(*converted(inputs, torch.float32), **options)
    for name in ("outputs", "h", "c", "feed", "attention"):
        one, other = getattr(half, name), getattr(single, name)
        assert one.dtype == dtype, name
        # Sums of some twenty products of numbers near 0.5 are rounded to half an eps of values below 8 at most three
        # times a step, and feed the next of five steps: a pre-activation's 12 eps times a slope of 1 / (4 tau).
        assert (one.float() - other).abs().max() < 5 * torch.finfo(dtype).eps, name
