"""G2LSTM with sigmoid gates is torch.nn.LSTM; with noise it is the noise identity run through torch.nn.LSTM."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lstm_peers import EQUAL, IdentityPeer, Noise, assert_same_outputs, padded, torch_twin, weighted_sum
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from fairseq_g2lstm import G2LSTM, ops
from fairseq_g2lstm.ops import GateMode, lstm_layer

I_SIZE, H_SIZE = 3, 4
UNSORTED, SORTED = (2, 5, 1, 5), (5, 5, 3, 1)


def given_input(form: str, batch_first: bool) -> Tensor | PackedSequence:
    """An input of one of the forms that torch.nn.LSTM takes, float64, 3 features."""
    lengths = {"sorted": SORTED, "unsorted": UNSORTED, "presorted": SORTED}.get(form)
    if lengths is not None:
        x = torch.randn(len(lengths), max(lengths), I_SIZE, dtype=torch.float64)
        x = x if batch_first else x.transpose(0, 1)
        return pack_padded_sequence(
            x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=form == "presorted"
        )
    n_steps, n_rows = {"plain": (5, 4), "one step": (1, 4), "one row": (5, 1), "unbatched": (5, None)}[form]
    if n_rows is None:
        return torch.randn(n_steps, I_SIZE, dtype=torch.float64)
    shape = (n_rows, n_steps) if batch_first else (n_steps, n_rows)
    return torch.randn(*shape, I_SIZE, dtype=torch.float64)


FORMS = ("plain", "one step", "one row", "unbatched", "presorted", "sorted", "unsorted")


def given_states(lstm: G2LSTM, x: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
    n_states = lstm.num_layers * (2 if lstm.bidirectional else 1)
    if isinstance(x, PackedSequence):
        shape = (n_states, int(x.batch_sizes[0]), lstm.hidden_size)
    elif x.dim() == 2:
        shape = (n_states, lstm.hidden_size)
    else:
        shape = (n_states, x.size(0 if lstm.batch_first else 1), lstm.hidden_size)
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in "hc")


def data_of(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def assert_same_as_torch(lstm: G2LSTM, x: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None) -> None:
    """Outputs, states and every gradient equal torch.nn.LSTM's."""
    twin = torch_twin(lstm)
    data_of(x).requires_grad_(True)
    found, expected = lstm(x, hx), twin(x, hx)
    assert_same_outputs(found, expected)

    def gradients(result, module: nn.Module) -> list[Tensor]:
        wanted = [data_of(x), *(hx or ()), *module.parameters()]
        # Dropout of 1 leaves all layers but the last without gradient.
        return torch.autograd.grad(weighted_sum(data_of(result[0]), *result[1]), wanted, allow_unused=True)

    for one, other in zip(gradients(found, lstm), gradients(expected, twin), strict=True):
        if one is None or other is None:
            one, other = (torch.zeros(()) if gradient is None else gradient for gradient in (one, other))
            assert not one.any() and not other.any()
        else:
            torch.testing.assert_close(one, other, **EQUAL)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both_directions"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_sigmoid_gates_equal_torch_lstm(num_layers, bidirectional, batch_first, form):
    torch.manual_seed(0)
    for bias, with_states, training in itertools.product((True, False), repeat=3):
        lstm = G2LSTM(
            I_SIZE,
            H_SIZE,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dtype=torch.float64,
            gate_type="sigmoid",
        ).train(training)
        x = given_input(form, batch_first)
        assert_same_as_torch(lstm, x, given_states(lstm, x) if with_states else None)


@pytest.mark.parametrize(("dropout", "training"), [(0.4, False), (1.0, False), (1.0, True), (0.0, True)])
@pytest.mark.parametrize("form", ["plain", "unsorted"])
def test_dropout_between_layers_equals_torch_where_no_chance_is_involved(form, dropout, training):
    torch.manual_seed(0)
    lstm = G2LSTM(
        I_SIZE, H_SIZE, 3, dropout=dropout, bidirectional=True, dtype=torch.float64, gate_type="sigmoid"
    ).train(training)
    x = given_input(form, False)
    assert_same_as_torch(lstm, x, given_states(lstm, x))


def test_dropout_falls_on_outputs_of_all_layers_but_the_last():
    torch.manual_seed(0)
    lstm = G2LSTM(I_SIZE, 64, 2, dropout=0.3, dtype=torch.float64, gate_type="sigmoid")
    x = given_input("plain", False)
    torch.manual_seed(9)
    found, _ = lstm(x)
    singles = [nn.LSTM(n_inputs, 64, dtype=torch.float64) for n_inputs in (I_SIZE, 64)]
    for layer, single in enumerate(singles):
        own = {k: v for k, v in lstm.state_dict().items() if k.endswith(f"_l{layer}")}
        single.load_state_dict({k.replace(f"_l{layer}", "_l0"): v for k, v in own.items()})
    torch.manual_seed(9)
    torch.empty((), dtype=torch.int64).random_()  # the seed of the noise is drawn first
    between = ops.dropout(singles[0](x)[0], 0.3)
    expected, _ = singles[1](between)
    torch.testing.assert_close(found, expected, **EQUAL)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_sigmoid_gates_equal_torch_lstm_whatever_the_lengths(lengths, sizes, flags):
    bias, bidirectional, with_states = flags
    lstm = G2LSTM(*sizes, bias=bias, bidirectional=bidirectional, dtype=torch.float64, gate_type="sigmoid")
    x = pack_sequence([torch.randn(n, sizes[0], dtype=torch.float64) for n in lengths], enforce_sorted=False)
    assert_same_as_torch(lstm, x, given_states(lstm, x) if with_states else None)


# With noise

NOISE_CASES = [
    ("gumbel", sharing, p) for sharing in ("step", "mask", "sequence") for p in (0.0, 0.2, 1.0)
] + [("sharpened", "step", 0.7)]


def fixed_seed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr("fairseq_g2lstm.modules.draw_seed", lambda: torch.tensor(seed))


def assert_same_as_identity(lstm: G2LSTM, peer: IdentityPeer, lengths: tuple[int, ...] | None, with_states: bool):
    """Outputs, states and every gradient equal the identity's."""
    n_steps, n_rows = (5, 3) if lengths is None else (max(lengths), len(lengths))
    x = torch.randn(n_steps, n_rows, lstm.input_size, dtype=torch.float64)
    hx = None
    if with_states:
        n_states = lstm.num_layers * (2 if lstm.bidirectional else 1)
        hx = tuple(torch.randn(n_states, n_rows, lstm.hidden_size, dtype=torch.float64) for _ in "hc")
    leaves = [[t.clone().requires_grad_(True) for t in (x, *(hx or ()))] for _ in range(2)]
    results = []
    for run, (own_x, *own_hx) in enumerate(leaves):
        states = tuple(own_hx) or None
        if run == 1:
            result = peer(own_x, states, None if lengths is None else torch.tensor(lengths))
        else:
            if lengths is not None:
                own_x = pack_padded_sequence(own_x, torch.tensor(lengths), enforce_sorted=False)
            output, state = lstm(own_x, states)
            result = padded(output), state
        weighted_sum(result[0], *result[1]).backward()
        results.append(result)
    assert_same_outputs(*results)
    for one, other in zip(*leaves, strict=True):
        torch.testing.assert_close(one.grad, other.grad, **EQUAL)
    expected = peer.weight_gradients()
    assert expected.keys() == dict(lstm.named_parameters()).keys()
    for name, weight in lstm.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], **EQUAL, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("lengths", [None, SORTED, UNSORTED], ids=["plain", "sorted", "unsorted"])
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias"), [(1, False, True), (2, True, True), (3, False, False)]
)
@pytest.mark.parametrize(("gate_type", "sharing", "p"), NOISE_CASES)
def test_training_forward_equals_the_noise_identity(
    monkeypatch, gate_type, sharing, p, num_layers, bidirectional, bias, lengths
):
    seed, temperature = -77, 0.6
    torch.manual_seed(1)
    lstm = G2LSTM(
        I_SIZE,
        H_SIZE,
        num_layers,
        bias=bias,
        bidirectional=bidirectional,
        dtype=torch.float64,
        gate_type=gate_type,
        temperature=temperature,
        noise_prob=p,
        noise_sharing=sharing,
    )
    fixed_seed(monkeypatch, seed)
    noise = Noise(seed, p, sharing) if gate_type == "gumbel" else None
    peer = IdentityPeer(lstm, temperature, noise)
    assert_same_as_identity(lstm, peer, lengths, with_states=num_layers > 1)


@pytest.mark.parametrize("lengths", [None, UNSORTED], ids=["plain", "unsorted"])
def test_sharpened_gates_equal_the_identity_in_evaluation(lengths):
    torch.manual_seed(1)
    lstm = G2LSTM(
        I_SIZE, H_SIZE, 2, bidirectional=True, dtype=torch.float64, gate_type="sharpened", temperature=0.6
    ).eval()
    assert_same_as_identity(lstm, IdentityPeer(lstm, 0.6, None), lengths, with_states=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_noise_is_the_same_for_every_form_of_one_input(monkeypatch, batched, batch_first):
    fixed_seed(monkeypatch, 8)
    torch.manual_seed(1)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, "noise_prob": 1.0}
    lstm = G2LSTM(I_SIZE, H_SIZE, batch_first=batch_first, **options)
    x = torch.randn(5, 3 if batched else 1, I_SIZE, dtype=torch.float64)
    expected, expected_states = IdentityPeer(lstm, 0.9, Noise(8, 1.0))(x)
    if not batched:
        found, states = lstm(x.squeeze(1))
        found, states = found.unsqueeze(1), tuple(s.unsqueeze(1) for s in states)
    else:
        found, states = lstm(x.transpose(0, 1) if batch_first else x)
        found = found.transpose(0, 1) if batch_first else found
    assert_same_outputs((found, states), (expected, expected_states))


def test_each_row_of_an_unsorted_pack_keeps_its_own_number(monkeypatch):
    """Row b's output is what it is in a padded batch, wherever sorting by length puts it."""
    fixed_seed(monkeypatch, 8)
    torch.manual_seed(1)
    lstm = G2LSTM(I_SIZE, H_SIZE, 2, dtype=torch.float64, noise_prob=1.0)
    x = torch.randn(5, 4, I_SIZE, dtype=torch.float64)
    plain, _ = lstm(x)
    for lengths in itertools.permutations((1, 3, 4, 5)):
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        output = padded(lstm(packed)[0])
        for row, length in enumerate(lengths):
            torch.testing.assert_close(output[:length, row], plain[:length, row], **EQUAL)
            assert not output[length:, row].any()


def test_noise_reaches_every_layer_direction_row_and_step(monkeypatch):
    torch.manual_seed(1)
    lstm = G2LSTM(I_SIZE, H_SIZE, 2, bidirectional=True, dtype=torch.float64, noise_prob=1.0)
    x = torch.randn(5, 3, I_SIZE, dtype=torch.float64)
    results = []
    for seed in (1, 2):
        fixed_seed(monkeypatch, seed)
        results.append(lstm(x))
    (one, one_states), (other, other_states) = results
    for a, b in ((one, other), *zip(one_states, other_states, strict=True)):
        assert (a != b).all()


@pytest.mark.parametrize("lengths", [None, (2, 3, 1)], ids=["plain", "unsorted"])
@pytest.mark.parametrize("gate_type", ["gumbel", "sharpened", "sigmoid"])
@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
def test_gradcheck(monkeypatch, sharing, gate_type, lengths):
    fixed_seed(monkeypatch, 5)
    torch.manual_seed(1)
    lstm = G2LSTM(
        2, 2, 2, bidirectional=True, dtype=torch.float64, gate_type=gate_type, noise_prob=0.5, noise_sharing=sharing
    )
    names = list(dict(lstm.named_parameters()))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    hx = [torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in "hc"]

    def forward(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        if lengths is not None:
            x = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        values = dict(zip(names, weights, strict=True))
        output, states = torch.func.functional_call(lstm, values, (x, (h, c)))
        return (padded(output), *states)

    assert torch.autograd.gradcheck(forward, (x, *hx, *lstm.parameters()), fast_mode=True)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_layer_operator_takes_lengths_in_any_order_and_leaves_zeros_in_the_padding(reverse):
    torch.manual_seed(1)
    twin = nn.LSTM(I_SIZE, H_SIZE, dtype=torch.float64)
    x = torch.randn(5, 4, I_SIZE, dtype=torch.float64)
    h_0, c_0 = torch.randn(2, 4, H_SIZE, dtype=torch.float64)
    outputs, h_n, c_n, z = lstm_layer(
        x, h_0, c_0, *twin.parameters(), torch.tensor(UNSORTED), mode=GateMode(), reverse=reverse
    )
    assert z is None
    for row, length in enumerate(UNSORTED):
        own = x[:length, row : row + 1]
        states = (h_0[None, row : row + 1], c_0[None, row : row + 1])
        expected, (h, c) = twin(own.flip(0) if reverse else own, states)
        expected = expected.flip(0) if reverse else expected
        torch.testing.assert_close(outputs[:length, row], expected[:, 0], **EQUAL)
        torch.testing.assert_close((h_n[row], c_n[row]), (h[0, 0], c[0, 0]), **EQUAL)
        assert not outputs[length:, row].any()


def test_without_kernels_one_warning_says_why(monkeypatch):
    for name, value in (("_compiled", None), ("_error", "no such file"), ("_warned", False)):
        monkeypatch.setattr(ops, name, value)
    lstm, x = G2LSTM(3, 4), torch.randn(2, 1, 3)
    with pytest.warns(RuntimeWarning, match=r"compiled kernels are not there \(no such file\)") as warnings:
        lstm(x)
        lstm(x)
    assert len(warnings) == 1
