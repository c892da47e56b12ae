"""G2LSTMCell: torch.nn.LSTMCell with sigmoid gates, one step of G2LSTM with noise."""

import copy
import itertools

import pytest
import torch
from lstm_peers import EQUAL, weighted_sum
from noise_table import Place
from torch import Tensor, nn

from fairseq_g2lstm import G2LSTM, G2LSTMCell
from fairseq_g2lstm.philox import draw_seed
from fairseq_g2lstm.settings import EVAL_MODES, GATE_TYPES

F64 = torch.float64


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_initial_weights_and_state_dict_are_torchs_both_ways(dtype, bias):
    torch.manual_seed(4)
    theirs = nn.LSTMCell(3, 4, bias, "cpu", dtype)
    torch.manual_seed(4)
    ours = G2LSTMCell(3, 4, bias, "cpu", dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert (ours.bias_ih is None) == (theirs.bias_ih is None) == (not bias)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_rows", [5, 1, None], ids=["batch", "one_row", "unbatched"])
def test_sigmoid_gates_equal_torch_lstm_cell(n_rows, training):
    torch.manual_seed(0)
    rows = () if n_rows is None else (n_rows,)
    for bias, with_states in itertools.product((True, False), repeat=2):
        ours = G2LSTMCell(3, 4, bias, dtype=F64, gate_type="sigmoid").train(training)
        theirs = nn.LSTMCell(3, 4, bias, dtype=F64)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(*rows, 3, dtype=F64, requires_grad=True)
        hx = tuple(torch.randn(*rows, 4, dtype=F64, requires_grad=True) for _ in "hc") if with_states else None
        found, expected = ours(x, hx), theirs(x, hx)
        wanted = (x, *(hx or ()))
        gradients = torch.autograd.grad(weighted_sum(*found), (*wanted, *ours.parameters()))
        their_gradients = torch.autograd.grad(weighted_sum(*expected), (*wanted, *theirs.parameters()))
        for one, other in zip((*found, *gradients), (*expected, *their_gradients), strict=True):
            torch.testing.assert_close(one, other, **EQUAL)


def loop(cell: G2LSTMCell, x: Tensor, hx: tuple[Tensor, Tensor], **noise) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    outputs = []
    for t, x_t in enumerate(x):
        hx = cell(x_t, hx, step=t, **noise)
        outputs.append(hx[0])
    return torch.stack(outputs), hx


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("eval_mode", EVAL_MODES)
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_loop_over_cell_is_g2lstm_of_one_layer(gate_type, eval_mode, training):
    torch.manual_seed(0)
    options = {"gate_type": gate_type, "temperature": 0.6, "noise_prob": 0.7, "eval_mode": eval_mode, "dtype": F64}
    lstm = G2LSTM(3, 4, **options).train(training)
    cell = G2LSTMCell(3, 4, **options).train(training)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in lstm.state_dict().items()})
    x, h, c = torch.randn(6, 5, 3, dtype=F64), torch.randn(5, 4, dtype=F64), torch.randn(5, 4, dtype=F64)
    torch.manual_seed(12)
    seed = draw_seed()
    torch.manual_seed(12)
    expected, (h_n, c_n) = lstm(x, (h[None], c[None]))
    for given in (seed, int(seed)):
        output, states = loop(cell, x, (h, c), seed=given)
        torch.testing.assert_close(output, expected, **EQUAL)
        torch.testing.assert_close(torch.stack(states), torch.cat((h_n, c_n)), **EQUAL)


@pytest.mark.parametrize("n_rows", [3, None])
def test_noise_is_the_tables_at_the_given_seed_and_step(n_rows):
    torch.manual_seed(0)
    seed, step, tau, p = -9, 17, 0.6, 0.7
    cell = G2LSTMCell(3, 4, dtype=F64, temperature=tau, noise_prob=p)
    x, h, c = (torch.randn(n_rows or 1, n, dtype=F64) for n in (3, 4, 4))
    noise = torch.tensor(
        [[Place(seed, 0, 0, step, b, j, p, "step").noise() for j in range(4)] for b in range(len(x))], dtype=F64
    )
    a = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    i, f = torch.sigmoid((a_i + noise[..., 0]) / tau), torch.sigmoid((a_f + noise[..., 1]) / tau)
    c_new = f * c + i * torch.tanh(a_g)
    expected = torch.sigmoid(a_o) * torch.tanh(c_new), c_new
    if n_rows is None:
        x, h, c, expected = x[0], h[0], c[0], (expected[0][0], expected[1][0])
    found = cell(x, (h, c), seed, step)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)


@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_each_training_call_without_a_seed_draws_one(gate_type):
    cell, x = G2LSTMCell(3, 4, gate_type=gate_type, noise_prob=1.0), torch.randn(2, 3)
    torch.manual_seed(6)
    seeds = [draw_seed() for _ in range(3)]
    after = torch.get_rng_state()
    torch.manual_seed(6)
    found = [cell(x)[0] for _ in seeds]
    assert torch.equal(torch.get_rng_state(), after)
    for h, seed in zip(found, seeds, strict=True):
        assert torch.equal(h, cell(x, seed=seed)[0])
    assert torch.equal(torch.get_rng_state(), after)  # a given seed leaves the generator alone
    assert torch.equal(found[0], found[1]) == (gate_type != "gumbel")


@pytest.mark.parametrize("eval_mode", EVAL_MODES)
def test_evaluation_draws_nothing_and_ignores_a_given_seed(eval_mode):
    cell, x = G2LSTMCell(3, 4, noise_prob=1.0, eval_mode=eval_mode).eval(), torch.randn(2, 3)
    before = torch.get_rng_state()
    without = cell(x)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(without, cell(x, seed=5, step=3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_gradcheck(gate_type):
    torch.manual_seed(0)
    cell = G2LSTMCell(2, 3, dtype=F64, gate_type=gate_type, noise_prob=0.5)
    names = list(dict(cell.named_parameters()))
    x, h, c = (torch.randn(2, n, dtype=F64, requires_grad=True) for n in (2, 3, 3))

    def forward(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        values = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(cell, values, (x, (h, c), 7, 2))

    assert torch.autograd.gradcheck(forward, (x, h, c, *cell.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_close_to_float32_and_keep_torchs_dtypes(dtype):
    torch.manual_seed(0)
    half = G2LSTMCell(8, 16, dtype=dtype, noise_prob=0.5)
    single = G2LSTMCell(8, 16, noise_prob=0.5)
    single.load_state_dict(half.state_dict())
    x, h, c = (torch.randn(4, n, dtype=dtype) for n in (8, 16, 16))
    found, expected = half(x, (h, c), seed=1), single(x.float(), (h.float(), c.float()), seed=1)
    theirs = nn.LSTMCell(8, 16, dtype=dtype)(x, (h, c))
    for one, other, their in zip(found, expected, theirs, strict=True):
        assert one.dtype == their.dtype == dtype
        # A pre-activation below 4 is rounded three times to half an eps of itself, 6 eps, and a gate's slope is at
        # most 1 / (4 tau): 1.7 eps, times |c| of f, below 3; the result itself is rounded by 1.5 eps.
        assert (one.float() - other).abs().max() < 7 * torch.finfo(dtype).eps


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_autocast_gives_torchs_dtypes(state_dtype, x_dtype):
    torch.manual_seed(0)
    ours, theirs = G2LSTMCell(8, 16, gate_type="sigmoid"), nn.LSTMCell(8, 16)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 8).to(x_dtype)
    hx = None if state_dtype is None else (torch.zeros(4, 16, dtype=state_dtype),) * 2
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x, hx), theirs(x, hx)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=2.0**-7)


def test_copies_compute_the_same():
    cell, x = G2LSTMCell(3, 4, temperature=0.7, noise_prob=0.6), torch.randn(2, 3)
    twin = copy.deepcopy(cell)
    assert twin.gate_settings == cell.gate_settings
    assert torch.equal(twin(x, seed=2)[0], cell(x, seed=2)[0])
    twin.reset_parameters()
    assert not torch.allclose(twin(x, seed=2)[0], cell(x, seed=2)[0])


def test_parametrized_weights_take_effect():
    cell = G2LSTMCell(3, 4, gate_type="sigmoid")
    plain, x = copy.deepcopy(cell), torch.randn(2, 3)
    nn.utils.parametrizations.weight_norm(cell, "weight_ih")
    with torch.no_grad():
        cell.parametrizations.weight_ih.original0.mul_(2)  # the norms
        plain.weight_ih.mul_(2)
    torch.testing.assert_close(cell(x)[0], plain(x)[0])


def test_default_device_changes_nothing_for_cells_elsewhere():
    """As under torch.set_default_device("cuda"), the meta device standing for whatever the default may be."""
    cell, x = G2LSTMCell(3, 4, noise_prob=1.0), torch.randn(2, 3)
    torch.manual_seed(1)
    expected = cell(x, step=2)
    torch.manual_seed(1)
    with torch.device("meta"):
        found = cell(x, step=2)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
