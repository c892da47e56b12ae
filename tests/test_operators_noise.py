"""The compiled operators' random bits are the noise table's: as words, and as they arrive in the gates."""

import pytest
import torch
from noise_table import Place, read_golden
from operator_cases import DTYPES, F32, F64, SHUT, dtype_name, gate_bits, layer_gates, needs_kernels
from torch import Tensor

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.ops import GateMode
from fairseq_g2lstm.philox import random_words
from fairseq_g2lstm.reference import bernoulli
from fairseq_g2lstm.settings import SHARINGS

pytestmark = needs_kernels

GOLDEN = read_golden()
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF]


def noise_words(
    seed: int, n_steps: int, n_rows: int, h_size: int, layer: int = 0, reverse: bool = False, rows=None, dtype=F32
) -> Tensor:
    stream = 2 * layer + int(reverse)
    return torch.ops.g2lstm.noise_words(torch.tensor(seed), n_steps, n_rows, h_size, stream, rows, dtype)


# Words


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("layer", "reverse"), [(0, False), (0, True), (3, False), (2**31 - 1, True)])
def test_words_are_the_references(layer, reverse, seed, dtype):
    # 37 units: whole vectors and a rest at every width.
    found = noise_words(seed, 4, 5, 37, layer, reverse, dtype=dtype)
    expected = random_words(seed, torch.arange(4), torch.arange(5), 37, layer, reverse)
    assert found.dtype == torch.int64 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("h_size", [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 256, 1150])
def test_words_are_the_references_at_every_size(h_size, dtype):
    expected = random_words(5, torch.arange(3), torch.arange(2), h_size, 1, False)
    assert torch.equal(noise_words(5, 3, 2, h_size, 1, dtype=dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_words_of_numbered_rows_are_those_of_the_numbers(dtype):
    rows = torch.tensor([2**32 - 1, 0, 7, 7, 2**31, 123_456])
    expected = random_words(-9, torch.arange(2), rows, 20, 0, True)
    assert torch.equal(noise_words(-9, 2, 6, 20, 0, True, rows, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("row", [row for place, row in GOLDEN if place.t < 2**20], ids=lambda row: str(row["seed"]))
def test_words_are_the_golden_ones(row, dtype):
    place = next(p for p, golden in GOLDEN if golden is row)
    words = noise_words(
        place.seed, place.t + 1, 1, place.j + 1, place.layer, bool(place.direction), torch.tensor([place.b]), dtype
    )[:, :, 0, place.j]
    t_of_u = 0 if place.sharing == "sequence" else place.t
    t_of_m = place.t if place.sharing == "step" else 0
    found = [*words[:2, t_of_u].tolist(), *words[2:, t_of_m].tolist()]
    assert [f"{word:08x}" for word in found] == row["words"]


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_no_words_of_no_places(sizes):
    assert noise_words(1, *sizes).shape == (4, *sizes)


# Bits as they arrive in the gates. With g = 1 and o = 1, c' = f c + i: a state of 0 shows i, a state of 1 and an
# input gate that is shut show f. Without pre-activations of their own, the gates are sigmoid(m n / tau).

def assert_bits_are(gate: Tensor, u_words: Tensor, m_words: Tensor, p: float) -> None:
    u24, m = gate_bits(gate)
    expected_m = bernoulli(m_words, p)
    assert torch.equal(m, expected_m)
    assert torch.equal(u24[m], (u_words >> 8)[m])


@pytest.mark.parametrize("gate", ["i", "f"])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("layer", "reverse", "numbered"), [(0, False, False), (2, True, False), (1, False, True)])
def test_bits_in_a_layers_gates_are_the_references(layer, reverse, numbered, p, sharing, gate):
    n_steps, n_rows, h_size, seed = 6, 5, 21, -77
    rows = torch.tensor([40, 3, 2**32 - 1, 3, 0]) if numbered else torch.arange(n_rows)
    gates = layer_gates(
        gate, F64, n_steps, n_rows, h_size,
        mode=GateMode(1.0, p, sharing), seed=torch.tensor(seed), rows=rows if numbered else None,
        layer=layer, reverse=reverse,
    )  # fmt: skip
    words = random_words(seed, torch.arange(n_steps), rows, h_size, layer, reverse)
    first = words[:, :1].expand_as(words)
    u_words = first if sharing == "sequence" else words
    m_words = words if sharing == "step" else first
    word = 0 if gate == "i" else 1
    assert_bits_are(gates, u_words[word], m_words[2 + word], p)
    if p == 0.0:
        assert not gate_bits(gates)[1].any()
    if p == 1.0:
        assert gate_bits(gates)[1].all()


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_masks_in_a_float32_layer_are_the_references(p, sharing):
    options = {"seed": torch.tensor(11), "mode": GateMode(1.0, p, sharing)}
    found, expected = (layer_gates("i", dtype, 6, 5, 37, **options) for dtype in (F32, F64))
    m, expected_m = ((gates - 0.5).abs() > 1e-5 for gates in (found, expected))
    # |n| below 4e-5 hides in float32: one draw in a hundred thousand, and none here.
    assert torch.equal(m, expected_m)
    # Solving for u amplifies float32's errors of some 2e-7 by at most 1 / (1 - tanh(1)^2) = 2.4.
    assert (found.double() - expected).abs().max() < 1e-6


def step_gate(place: Place, gate: str, dtype: torch.dtype) -> Tensor:
    """The gate of unit place.j in the step operator."""
    a = torch.zeros(1, 4, place.j + 1, dtype=dtype)
    a[:, 1 if gate == "i" else 0] = SHUT
    a[:, 2:] = 100.0
    c = torch.full((1, place.j + 1), 0.0 if gate == "i" else 1.0, dtype=dtype)
    _, c_next = ops.lstm_step(
        a.flatten(1), c, torch.tensor(place.seed),
        mode=GateMode(1.0, place.noise_prob, place.sharing), step=place.t, rows=torch.tensor([place.b]),
        layer=place.layer, reverse=bool(place.direction),
    )  # fmt: skip
    return c_next[0, place.j]


@pytest.mark.parametrize(("place", "row"), GOLDEN)
def test_bits_in_a_steps_gates_are_the_golden_ones(place: Place, row):
    for word, gate in enumerate("if"):
        u24, m = gate_bits(step_gate(place, gate, F64))
        assert m == bool(row["m"][word])
        assert not m or u24 == row["u24"][word]
        single = step_gate(place, gate, F32)
        n = torch.tensor(row["m"][word] * row["n_float32"][word], dtype=F64)
        # Logistic noise and sigmoid, each to a few units in the last place of numbers below 7 and 1.
        assert abs(single.double() - torch.sigmoid(n)) < 1e-6


def test_step_at_the_ends_of_its_range_equals_the_reference():
    a, c = torch.randn(3, 40, dtype=F64), torch.randn(3, 10, dtype=F64)
    for step in (2**31 - 1, 2**31, 2**32 - 1):
        for rows in (torch.tensor([2**32 - 1, 2**31, 0]), None):
            place = {"mode": GateMode(0.9, 0.5), "step": step, "rows": rows, "layer": 2**31 - 1, "reverse": True}
            found = ops.lstm_step(a, c, torch.tensor(-1), **place)
            expected = reference.lstm_step(a, c, torch.tensor(-1), **place)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("p", [1e-10, 2.0**-32, 1 - 2.0**-32])
def test_probabilities_beside_zero_and_one_keep_their_32_bits(p):
    found, expected = (
        torch.stack(function(torch.zeros(50, 400), torch.ones(50, 100), torch.tensor(3), mode=GateMode(1.0, p)))
        for function in (ops.lstm_step, reference.lstm_step)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_decoder_draws_each_cells_noise_from_its_own_layer():
    # All weights 0 but the biases: every cell shows its own input gates, whatever the others do.
    n_steps, n_rows, h_size, n_layers, seed, p = 3, 4, 9, 3, -5, 0.5
    zeros = torch.zeros(4 * h_size, h_size, dtype=F64)
    bias = torch.tensor([0.0, SHUT, 100.0, 100.0], dtype=F64).repeat_interleave(h_size)
    cells = [
        ops.CellWeights(torch.zeros(4 * h_size, h_size + int(k == 0), dtype=F64), zeros, bias, torch.zeros_like(bias))
        for k in range(n_layers)
    ]
    state = torch.zeros(n_layers, n_rows, h_size, dtype=F64)
    for t in range(1, n_steps + 1):
        x = torch.zeros(t, n_rows, 1, dtype=F64)
        out = ops.decoder(x, state, state, state[0], cells, mode=GateMode(1.0, p), seed=torch.tensor(seed))
        for layer in range(n_layers):
            words = random_words(seed, torch.tensor([t - 1]), torch.arange(n_rows), h_size, layer, False)[:, 0]
            assert_bits_are(out.c[layer], words[0], words[2], p)
