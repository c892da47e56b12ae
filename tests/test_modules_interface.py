"""What G2LSTM takes over from torch.nn.LSTM beside its arithmetic, its evaluation modes, and its complaints."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from lstm_peers import EQUAL, assert_same_outputs
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fairseq_g2lstm import G2LSTM, ops
from fairseq_g2lstm.philox import draw_seed
from fairseq_g2lstm.reference import gate_noise
from fairseq_g2lstm.settings import EVAL_MODES, GATE_TYPES

SHAPES = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True},
    {"num_layers": 2, "dropout": 0.5},
]


def test_importing_it_leaves_logging_as_it_was():
    script = """
import logging
logging.getLogger().setLevel(logging.ERROR)
from fairseq_g2lstm import G2LSTM
assert logging.root.level == logging.ERROR and logging.root.handlers == [], logging.root.handlers
logging.basicConfig(level=logging.INFO, force=False)
assert logging.root.level == logging.INFO and len(logging.root.handlers) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# State dicts and weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_initial_weights_and_state_dict_are_torchs(options, dtype):
    torch.manual_seed(4)
    theirs = nn.LSTM(5, 7, dtype=dtype, **options)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    ours = G2LSTM(5, 7, dtype=dtype, **options)
    assert torch.equal(torch.get_rng_state(), after)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for name, weight in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == dtype
        assert torch.equal(ours.state_dict()[name], weight)
    assert [[w.shape for w in layer] for layer in ours.all_weights] == [
        [w.shape for w in layer] for layer in theirs.all_weights
    ]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_state_dicts_load_both_ways(options):
    ours, theirs = G2LSTM(5, 7, gate_type="sigmoid", **options).eval(), nn.LSTM(5, 7, **options).eval()
    x = torch.randn(6, 2, 5)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    ours.reset_parameters()
    assert not torch.allclose(ours(x)[0], theirs(x)[0])
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_positional_arguments_are_torchs():
    ours = G2LSTM(5, 7, 2, False, True, 0.3, True, 0, "cpu", torch.float64)
    theirs = nn.LSTM(5, 7, 2, False, True, 0.3, True, 0, "cpu", torch.float64)
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.proj_size == theirs.proj_size == 0
    with pytest.raises(TypeError):
        G2LSTM(5, 7, 2, False, True, 0.3, True, 0, "cpu", torch.float64, "sigmoid")


def forward_from(lstm: G2LSTM, seed: int, x: Tensor) -> Tensor:
    torch.manual_seed(seed)
    return lstm(x)[0]


def pickled(lstm: G2LSTM) -> G2LSTM:
    file = io.BytesIO()
    torch.save(lstm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_compute_the_same_and_own_their_weights(duplicate):
    lstm = G2LSTM(5, 7, 2, gate_type="gumbel", temperature=0.7, noise_prob=0.6, noise_sharing="mask", eval_mode="hard")
    twin, x = duplicate(lstm), torch.randn(4, 3, 5)
    assert twin.gate_settings == lstm.gate_settings
    assert torch.equal(forward_from(twin, 2, x), forward_from(lstm, 2, x))
    assert torch.equal(twin.eval()(x)[0], lstm.eval()(x)[0])
    twin.reset_parameters()
    assert not torch.allclose(twin(x)[0], lstm(x)[0])


def test_to_converts_weights_outputs_and_states():
    lstm = G2LSTM(5, 7).to(torch.float64)
    output, states = lstm(torch.randn(4, 3, 5, dtype=torch.float64))
    assert {t.dtype for t in (output, *states)} == {torch.float64}


def test_parametrized_weights_take_effect():
    torch.manual_seed(0)
    lstm = G2LSTM(5, 7, gate_type="sigmoid")
    plain = copy.deepcopy(lstm)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2)  # the norms
        plain.weight_hh_l0.mul_(2)
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])
    lstm(x)[0].sum().backward()
    assert lstm.parametrizations.weight_hh_l0.original1.grad.any()


def test_weights_set_as_plain_tensors_take_effect():
    """As weight drop does: the parameter goes by another name, and each forward sets the one in use."""
    lstm = G2LSTM(5, 7, gate_type="sigmoid")
    plain, x = copy.deepcopy(lstm), torch.randn(4, 3, 5)
    raw = lstm.weight_hh_l0
    del lstm._parameters["weight_hh_l0"]
    lstm.weight_hh_l0 = raw * 0.5
    with torch.no_grad():
        plain.weight_hh_l0.mul_(0.5)
    torch.testing.assert_close(lstm(x)[0], plain(x)[0])


def test_repr_shows_what_differs_from_the_defaults():
    assert "5, 7, num_layers=2, bias=False, gate_type=sharpened, temperature=0.8" in repr(
        G2LSTM(5, 7, 2, False, gate_type="sharpened", temperature=0.8)
    )


# Seeds


def test_each_training_forward_draws_one_seed_whatever_the_gate_type():
    x = torch.randn(4, 3, 5)
    for gate_type in GATE_TYPES:
        lstm = G2LSTM(5, 7, 2, bidirectional=True, gate_type=gate_type, noise_prob=0.0)
        torch.manual_seed(6)
        lstm(x)
        after = torch.get_rng_state()
        torch.manual_seed(6)
        draw_seed()
        assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("eval_mode", EVAL_MODES)
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_evaluation_draws_nothing(gate_type, eval_mode):
    lstm = G2LSTM(5, 7, 2, dropout=0.5, gate_type=gate_type, eval_mode=eval_mode, noise_prob=1.0).eval()
    before = torch.get_rng_state()
    first, second = lstm(torch.ones(4, 3, 5))[0], lstm(torch.ones(4, 3, 5))[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


def test_training_forwards_repeat_from_the_same_generator_state_only():
    lstm, x = G2LSTM(5, 7, noise_prob=1.0), torch.randn(4, 3, 5)
    assert torch.equal(forward_from(lstm, 1, x), forward_from(lstm, 1, x))
    assert not torch.equal(forward_from(lstm, 1, x), forward_from(lstm, 2, x))
    torch.manual_seed(1)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])


def test_dropout_masks_stay_aligned_between_gate_types():
    x = torch.randn(4, 3, 5)
    arms = [
        G2LSTM(5, 7, 2, dropout=0.5, gate_type=gate_type, temperature=1.0, noise_prob=0.0)
        for gate_type in GATE_TYPES
    ]
    outputs = []
    for arm in arms:
        arm.load_state_dict(arms[0].state_dict())
        outputs.append(forward_from(arm, 3, x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


# Evaluation modes


def plain_lstm(lstm: G2LSTM, x: Tensor, gate) -> tuple[Tensor, Tensor]:
    """One layer written out: outputs (T, B, H) and pre-activations of the input and forget gates (T, B, 2H)."""
    h = c = torch.zeros(x.size(1), lstm.hidden_size, dtype=x.dtype)
    outputs, gates = [], []
    for x_t in x:
        a = x_t @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
        c = gate(a_f) * c + gate(a_i) * torch.tanh(a_g)
        h = torch.sigmoid(a_o) * torch.tanh(c)
        outputs.append(h)
        gates.append(torch.cat((a_i, a_f), dim=1))
    return torch.stack(outputs), torch.stack(gates)


GATES = {
    "soft": lambda a: 1 / (1 + torch.exp(-a)),
    "tempered": lambda a: 1 / (1 + torch.exp(-a / 0.6)),
    "hard": lambda a: torch.where(a >= 0, 1.0, 0.0).to(a.dtype),
}


@pytest.mark.parametrize("eval_mode", EVAL_MODES)
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_evaluation_modes(gate_type, eval_mode):
    torch.manual_seed(0)
    lstm = G2LSTM(
        5, 7, dtype=torch.float64, gate_type=gate_type, temperature=0.6, noise_prob=1.0, eval_mode=eval_mode
    ).eval()
    x = 3 * torch.randn(6, 2, 5, dtype=torch.float64)
    auto = "tempered" if gate_type == "sharpened" else "soft"
    mode = auto if eval_mode == "auto" else eval_mode
    torch.testing.assert_close(lstm(x)[0], plain_lstm(lstm, x, GATES[mode])[0], **EQUAL)
    for other in GATES.keys() - {mode}:
        assert not torch.allclose(lstm(x)[0], plain_lstm(lstm, x, GATES[other])[0], atol=1e-3)


def test_hard_gates_are_open_at_zero():
    lstm = G2LSTM(5, 7, dtype=torch.float64, eval_mode="hard").eval()
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.bias_ih_l0[14:21] = 0.5  # g = tanh(0.5); a of i and f is 0
    _, (_, c_n) = lstm(torch.zeros(3, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(c_n, 3 * torch.full_like(c_n, 0.5).tanh(), **EQUAL)


@pytest.mark.parametrize("eval_mode", EVAL_MODES)
def test_evaluation_mode_plays_no_part_in_training(eval_mode):
    lstm, x = G2LSTM(5, 7), torch.randn(4, 3, 5)
    other = G2LSTM(5, 7, eval_mode=eval_mode)
    other.load_state_dict(lstm.state_dict())
    assert torch.equal(forward_from(other, 1, x), forward_from(lstm, 1, x))


def test_settings_may_change_between_forwards():
    lstm = G2LSTM(5, 7, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    lstm.gate_settings = lstm.gate_settings.with_values(temperature=0.6, noise_prob=0.0)
    assert (lstm.temperature, lstm.noise_prob, lstm.gate_type) == (0.6, 0.0, "gumbel")
    torch.testing.assert_close(lstm(x)[0], plain_lstm(lstm, x, GATES["tempered"])[0], **EQUAL)


def test_settings_set_as_attributes_take_effect():
    lstm = G2LSTM(5, 7, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    lstm.gate_type, lstm.temperature = "sharpened", 0.6
    torch.testing.assert_close(lstm(x)[0], plain_lstm(lstm, x, GATES["tempered"])[0], **EQUAL)
    lstm.eval().eval_mode = "hard"
    torch.testing.assert_close(lstm(x)[0], plain_lstm(lstm, x, GATES["hard"])[0], **EQUAL)


# The observer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate_type", GATE_TYPES)
def test_observer_sees_noise_free_arguments_of_the_gates(gate_type, training):
    torch.manual_seed(0)
    lstm = G2LSTM(5, 7, dtype=torch.float64, gate_type=gate_type, temperature=0.6, noise_prob=0.0).train(training)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    seen = []
    lstm.gate_observer = lambda *arguments: seen.append(arguments)
    lstm(x)
    tempered = gate_type == "sharpened" or (gate_type == "gumbel" and training)
    _, a = plain_lstm(lstm, x, GATES["tempered" if tempered else "soft"])
    ((layer, reverse, z, valid),) = seen
    assert (layer, reverse, valid, z.requires_grad) == (0, False, None, False)
    torch.testing.assert_close(z, a / 0.6 if tempered else a, **EQUAL)


def test_observed_arguments_leave_the_noise_out():
    torch.manual_seed(0)
    lstm = G2LSTM(5, 7, dtype=torch.float64, temperature=0.6, noise_prob=1.0)
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    seen = []
    lstm.gate_observer = lambda *arguments: seen.append(arguments[2])
    lstm(x)
    # With a single step from zero states the noise cannot come back through h.
    torch.testing.assert_close(seen[0], plain_lstm(lstm, x, GATES["soft"])[1] / 0.6, **EQUAL)


def test_sigmoids_of_observed_arguments_are_the_gates_in_use_when_these_are_hard():
    torch.manual_seed(0)
    lstm = G2LSTM(5, 7, dtype=torch.float64, eval_mode="hard").eval()
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    seen = []
    lstm.gate_observer = lambda *arguments: seen.append(arguments[2])
    lstm(x)
    assert torch.equal(torch.sigmoid(seen[0]), GATES["hard"](plain_lstm(lstm, x, GATES["hard"])[1]))


def test_observer_is_called_for_each_layer_and_direction_and_told_the_padding():
    torch.manual_seed(0)
    lstm = G2LSTM(5, 7, 2, bidirectional=True, dtype=torch.float64, gate_type="sigmoid")
    x, lengths = torch.randn(6, 3, 5, dtype=torch.float64), (2, 6, 3)
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    seen = []
    lstm.gate_observer = lambda *arguments: seen.append(arguments)
    lstm(packed)
    assert [arguments[:2] for arguments in seen] == [(0, False), (0, True), (1, False), (1, True)]
    for _, _, z, valid in seen:
        assert z.shape == (6, 3, 14)
        assert valid.shape == (6, 3) and valid.dtype == torch.bool
        # Rows stand in the user's order, not in the packing's, longest first.
        assert tuple(valid.sum(0).tolist()) == lengths
        assert all(valid[: int(n), row].all() for row, n in enumerate(valid.sum(0)))
    single = G2LSTM(5, 7, dtype=torch.float64, gate_type="sigmoid")
    single.load_state_dict({k: v for k, v in lstm.state_dict().items() if k.endswith("_l0")})
    backward = G2LSTM(5, 7, dtype=torch.float64, gate_type="sigmoid")
    backward.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in lstm.state_dict().items() if k.endswith("_l0_reverse")}
    )
    for row, length in enumerate(lengths):
        own = x[:length, row : row + 1]
        for direction, module in enumerate((single, backward)):
            _, a = plain_lstm(module, own.flip(0) if direction else own, GATES["soft"])
            expected = (a.flip(0) if direction else a)[:, 0]
            torch.testing.assert_close(seen[direction][2][: len(own), row], expected, **EQUAL)


@pytest.mark.parametrize("training", [True, False])
def test_observer_changes_no_result(training):
    lstm = G2LSTM(5, 7, 2, bidirectional=True, noise_prob=0.5).train(training)
    packed = pack_padded_sequence(torch.randn(6, 3, 5), torch.tensor((2, 6, 3)), enforce_sorted=False)
    torch.manual_seed(1)
    without = lstm(packed)
    lstm.gate_observer = lambda *_: None
    torch.manual_seed(1)
    assert_same_outputs(lstm(packed), without, rtol=0, atol=0)


# Precision


@pytest.mark.parametrize("gate_type", ["gumbel", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_stay_close_to_float32_and_keep_torchs_dtypes(monkeypatch, dtype, gate_type):
    monkeypatch.setattr("fairseq_g2lstm.modules.draw_seed", lambda: torch.tensor(3))
    torch.manual_seed(0)
    half = G2LSTM(8, 16, 2, bidirectional=True, dtype=dtype, gate_type=gate_type, noise_prob=0.5)
    single = G2LSTM(8, 16, 2, bidirectional=True, gate_type=gate_type, noise_prob=0.5)
    single.load_state_dict(half.state_dict())
    theirs = nn.LSTM(8, 16, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(20, 4, 8, dtype=dtype)
    (output, states), (expected, expected_states) = half(x), single(x.float())
    their_output, their_states = theirs(x)
    assert [t.dtype for t in (output, *states)] == [t.dtype for t in (their_output, *their_states)] == [dtype] * 3
    # A pre-activation, below 4 here, is rounded three times to half an eps of itself, 6 eps at worst; a gate's slope
    # is at most 1 / (4 tau), which makes it 1.7 eps; rounding h and c adds half an eps of values below 1.
    bound = 2.2 * torch.finfo(dtype).eps
    for found, wanted in ((output, expected), *zip(states, expected_states, strict=True)):
        difference = (found.float() - wanted).abs().max()
        assert 0 < difference < bound


def test_cell_state_of_half_types_is_carried_in_float32():
    """Steps of a thousandth add up: in bfloat16 the sum would stall at 0.25, where its numbers lie 2^-9 apart."""
    n_steps = 1000
    lstm = G2LSTM(1, 1, dtype=torch.bfloat16, gate_type="sigmoid")
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.bias_ih_l0.copy_(torch.tensor([20.0, 20.0, 2.0**-10, 0.0]))  # i = f = 1, g = 2^-10
    _, (_, c_n) = lstm(torch.zeros(n_steps, 1, 1, dtype=torch.bfloat16))
    assert abs(c_n.item() - n_steps * 2.0**-10) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_states", [False, True])
def test_autocast_gives_torchs_dtypes_and_gradients_in_the_weights_dtype(with_states, x_dtype):
    torch.manual_seed(0)
    ours, theirs = G2LSTM(8, 16, 2, gate_type="sigmoid"), nn.LSTM(8, 16, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 4, 8, dtype=x_dtype)
    hx = (torch.randn(2, 4, 16), torch.randn(2, 4, 16)) if with_states else None
    exact, _ = theirs(x.float(), hx)
    with torch.autocast("cpu", torch.bfloat16):
        (output, states), (their_output, their_states) = ours(x, hx), theirs(x, hx)
    assert [t.dtype for t in (output, *states)] == [t.dtype for t in (their_output, *their_states)]
    # As above, with the weights and inputs rounded too.
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=4 * 2.0**-7)
    output.float().sum().backward()
    assert {w.grad.dtype for w in ours.parameters()} == {torch.float32}


def test_noise_of_a_layer_is_drawn_in_the_modules_precision(monkeypatch):
    seen = []

    def spy(*args, dtype, **options):
        seen.append(dtype)
        return gate_noise(*args, dtype=dtype, **options)

    monkeypatch.setattr("fairseq_g2lstm.reference.method.gate_noise", spy)
    with ops.use_reference():
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            G2LSTM(2, 3, dtype=dtype)(torch.zeros(2, 1, 2, dtype=dtype))
    assert seen == [torch.float64, torch.float32, torch.float32]


# Devices


@pytest.mark.parametrize("lengths", [None, (2, 6, 3)], ids=["plain", "unsorted"])
def test_default_device_changes_nothing_for_modules_elsewhere(lengths):
    """As under torch.set_default_device("cuda"), the meta device standing for whatever the default may be."""
    lstm = G2LSTM(5, 7, 2, bidirectional=True, noise_prob=0.5)
    x = torch.randn(6, 3, 5)
    if lengths is not None:
        x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    lstm.gate_observer = lambda *_: None
    torch.manual_seed(1)
    expected = lstm(x)
    torch.manual_seed(1)
    with torch.device("meta"):
        found = lstm(x)
    assert_same_outputs(found, expected, rtol=0, atol=0)
