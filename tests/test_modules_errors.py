"""What G2LSTM and G2LSTMCell refuse: each sentence names the argument, the value given and what is accepted."""

import math
import re
import warnings

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from fairseq_g2lstm import G2LSTM, G2LSTMCell

BAD_SETTINGS = [
    ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
    ({"temperature": -0.5}, "temperature must be > 0 and finite, got -0.5"),
    ({"temperature": math.nan}, "temperature must be > 0 and finite, got nan"),
    ({"temperature": math.inf}, "temperature must be > 0 and finite, got inf"),
    ({"noise_prob": -0.1}, "noise_prob must be a probability between 0 and 1, got -0.1"),
    ({"noise_prob": 1.5}, "noise_prob must be a probability between 0 and 1, got 1.5"),
    ({"noise_prob": math.nan}, "noise_prob must be a probability between 0 and 1, got nan"),
    ({"noise_prob": True}, "noise_prob must be a probability between 0 and 1, got True"),
    ({"gate_type": "gumble"}, "gate_type must be one of gumbel, sharpened, sigmoid, got 'gumble'"),
    ({"noise_sharing": "batch"}, "noise_sharing must be one of step, mask, sequence, got 'batch'"),
    ({"eval_mode": "harsh"}, "eval_mode must be one of auto, soft, tempered, hard, got 'harsh'"),
]
BAD_SIZES = [
    ("input_size", 0, ValueError, "input_size must be > 0, got 0"),
    ("hidden_size", -4, ValueError, "hidden_size must be > 0, got -4"),
    ("hidden_size", 4.0, TypeError, "hidden_size must be an integer, got float"),
    ("input_size", "3", TypeError, "input_size must be an integer, got str"),
]


@pytest.mark.parametrize("module", [G2LSTM, G2LSTMCell])
@pytest.mark.parametrize(("settings", "sentence"), BAD_SETTINGS)
def test_settings_out_of_range(module, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        module(3, 4, **settings)


@pytest.mark.parametrize("module", [G2LSTM, G2LSTMCell])
@pytest.mark.parametrize(("name", "value", "error", "sentence"), BAD_SIZES)
def test_sizes_out_of_range(module, name, value, error, sentence):
    sizes = {"input_size": 3, "hidden_size": 4} | {name: value}
    with pytest.raises(error, match=re.escape(sentence)):
        module(**sizes)


@pytest.mark.parametrize("module", [G2LSTM, G2LSTMCell])
@pytest.mark.parametrize(("settings", "sentence"), BAD_SETTINGS)
def test_settings_out_of_range_set_later_are_refused_and_change_nothing(module, settings, sentence):
    made = module(3, 4)
    before = made.gate_settings
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        setattr(made, name, value)
    assert made.gate_settings == before


@pytest.mark.parametrize("values", [(0.0, 0.2), (0.9, 1.2)])
def test_settings_are_checked_when_changed(values):
    with pytest.raises(ValueError, match=r"must be .*, got"):
        G2LSTM(3, 4).gate_settings.with_values(*values)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be > 0, got 0"),
        ({"dropout": 1.1}, ValueError, "dropout must be a probability between 0 and 1, got 1.1"),
        ({"dropout": -0.1}, ValueError, "dropout must be a probability between 0 and 1, got -0.1"),
        ({"dropout": True}, ValueError, "dropout must be a probability between 0 and 1, got True"),
        ({"dropout": "0.3"}, ValueError, "dropout must be a probability between 0 and 1, got '0.3'"),
        ({"bias": 0.3}, TypeError, "bias must be True or False, got 0.3"),
        ({"batch_first": 0.3}, TypeError, "batch_first must be True or False, got 0.3"),
        ({"proj_size": 2}, NotImplementedError, "proj_size is not supported, got 2"),
    ],
)
def test_lstm_arguments_out_of_range(options, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        G2LSTM(3, 4, **options)


@pytest.mark.parametrize("sharing", ["mask", "sequence"])
def test_cell_shares_nothing_over_steps(sharing):
    with pytest.raises(ValueError, match=f"noise_sharing of a cell must be step, got '{sharing}'"):
        G2LSTMCell(3, 4, noise_sharing=sharing)


@pytest.mark.parametrize("sharing", ["mask", "sequence"])
def test_cell_shares_nothing_over_steps_later_either(sharing):
    cell = G2LSTMCell(3, 4)
    with pytest.raises(ValueError, match=f"noise_sharing of a cell must be step, got '{sharing}'"):
        cell.noise_sharing = sharing


def test_dropout_of_a_single_layer_warns_that_it_does_nothing():
    with pytest.warns(UserWarning, match=r"dropout=0.5 has no effect with num_layers=1"):
        G2LSTM(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        G2LSTM(3, 4, 2, dropout=0.5)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


BAD_INPUTS = [
    (zeros(5, 2, 7), None, "input must have input_size=3 features, got 7"),
    (zeros(5, 7), None, "input must have input_size=3 features, got 7"),
    (zeros(3), None, "input must be (T, B, I), (B, T, I) with batch_first, or (T, I), got 1 dimensions"),
    (zeros(1, 5, 2, 3), None, "or (T, I), got 4 dimensions"),
    (zeros(0, 2, 3), None, "at least one time step and one batch row, got 0 time steps and 2 batch rows"),
    (zeros(5, 0, 3), None, "at least one time step and one batch row, got 5 time steps and 0 batch rows"),
    (zeros(0, 3), None, "at least one time step and one batch row, got 0 time steps and 1 batch rows"),
    (zeros(5, 2, 3), (zeros(1, 3, 4), zeros(1, 2, 4)), "h_0 must have shape (1, 2, 4), got (1, 3, 4)"),
    (zeros(5, 2, 3), (zeros(1, 2, 4), zeros(2, 2, 4)), "c_0 must have shape (1, 2, 4), got (2, 2, 4)"),
    (zeros(5, 2, 3), (zeros(2, 4), zeros(2, 4)), "h_0 must have shape (1, 2, 4), got (2, 4)"),
    (zeros(5, 3), (zeros(1, 4), zeros(1, 1, 4)), "c_0 must have 2 dimensions with an unbatched input, got 3"),
    (zeros(5, 3), (zeros(2, 4), zeros(1, 4)), "h_0 must have shape (1, 1, 4), got (2, 1, 4)"),
    (zeros(5, 2, 3).half(), None, "input has dtype torch.float16 and the weights have torch.float32"),
    (zeros(5, 2, 3).long(), None, "input has dtype torch.int64 and the weights have torch.float32"),
    (zeros(5, 2, 3), (zeros(1, 2, 4).double(), zeros(1, 2, 4)), "h_0 has dtype torch.float64 and the weights have"),
    (zeros(5, 3), (zeros(1, 4), zeros(1, 4).half()), "c_0 has dtype torch.float16 and the weights have torch.float32"),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("x", "hx", "sentence"), BAD_INPUTS)
def test_inputs_and_states_that_do_not_fit(x, hx, sentence, training):
    lstm = G2LSTM(3, 4).train(training)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        lstm(x, hx)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((0, 5, 3), "got 5 time steps and 0 batch rows"), ((2, 0, 3), "got 0 time steps and 2 batch rows")],
)
def test_empty_inputs_are_described_in_the_users_terms_with_batch_first(shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        G2LSTM(3, 4, batch_first=True)(zeros(*shape))


def test_packed_input_and_states_that_do_not_fit():
    lstm, lengths = G2LSTM(3, 4, 2, bidirectional=True), torch.tensor([2, 5])
    with pytest.raises(ValueError, match="input must have input_size=3 features, got 7"):
        lstm(pack_padded_sequence(zeros(5, 2, 7), lengths, enforce_sorted=False))
    packed = pack_padded_sequence(zeros(5, 2, 3), lengths, enforce_sorted=False)
    for hx, sentence in (
        ((zeros(4, 3, 4), zeros(4, 2, 4)), "h_0 must have shape (4, 2, 4), got (4, 3, 4)"),
        ((zeros(4, 2, 4), zeros(2, 2, 4)), "c_0 must have shape (4, 2, 4), got (2, 2, 4)"),
        ((zeros(4, 2, 4), zeros(4, 2, 4).double()), "torch.float64 and the weights have torch.float32"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            lstm(packed, hx)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float_inputs_with_weights_of_another_type_outside_autocast(weight_dtype):
    sentence = f"input has dtype torch.float32 and the weights have {weight_dtype}: convert one to the other's"
    with pytest.raises(ValueError, match=sentence):
        G2LSTM(3, 4, dtype=weight_dtype)(zeros(5, 2, 3))
    with pytest.raises(ValueError, match=sentence):
        G2LSTMCell(3, 4, dtype=weight_dtype)(zeros(2, 3))
    with pytest.raises(ValueError, match="c has dtype torch.float32 and the weights have"):
        G2LSTMCell(3, 4, dtype=weight_dtype)(zeros(2, 3).to(weight_dtype), (zeros(2, 4).to(weight_dtype), zeros(2, 4)))


@pytest.mark.parametrize("n_states", [1, 3])
def test_states_that_are_not_a_pair(n_states):
    sentence = re.escape(f"hx must be a pair of states (h_0, c_0) or None, got {n_states}")
    packed = pack_padded_sequence(zeros(5, 2, 3), torch.tensor([2, 5]), enforce_sorted=False)
    for x, state in ((zeros(5, 2, 3), zeros(1, 2, 4)), (zeros(5, 3), zeros(1, 4)), (packed, zeros(1, 2, 4))):
        with pytest.raises(ValueError, match=sentence):
            G2LSTM(3, 4)(x, (state,) * n_states)
    with pytest.raises(ValueError, match=sentence):
        G2LSTMCell(3, 4)(zeros(2, 3), (zeros(2, 4),) * n_states)


@pytest.mark.parametrize(
    ("x", "hx", "sentence"),
    [
        (zeros(2, 7), None, "input must have input_size=3 features, got 7"),
        (zeros(7), None, "input must have input_size=3 features, got 7"),
        (zeros(5, 2, 3), None, "input must be (B, I) or (I,), got 3 dimensions"),
        (zeros(2, 3), (zeros(3, 4), zeros(2, 4)), "h must have shape (2, 4), got (3, 4)"),
        (zeros(2, 3), (zeros(2, 4), zeros(4)), "c must have shape (2, 4), got (4,)"),
        (zeros(3), (zeros(1, 4), zeros(4)), "h must have shape (4,), got (1, 4)"),
    ],
)
def test_cell_inputs_and_states_that_do_not_fit(x, hx, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        G2LSTMCell(3, 4)(x, hx)
