"""Recorded gates against a loop over the sequences and against the reference, and recordings that leave no trace."""


import pytest
import torch
from gate_loops import gates_of_sequence
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from fairseq_g2lstm import G2LSTM, ops, record_gates, reference
from fairseq_g2lstm.gates import Record

LENGTHS = [4, 7, 1, 5]
# Sums in another order stray by some 1e-16 in float64.
EQUAL = {"rtol": 0, "atol": 1e-12}


def build(**options: object) -> G2LSTM:
    torch.manual_seed(1)
    lstm = G2LSTM(3, 6, **{"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **options})
    with torch.no_grad():
        for weight in lstm.parameters():
            weight *= 5  # gates of all values, near 0 and 1 too
    return lstm


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, 3, dtype=torch.float64, generator=generator) for length in LENGTHS]


def assert_rows_are(recording: list[Record], lstm: G2LSTM, rows: list[Tensor], temperature: float = 1.0) -> None:
    """Asserts that each row has the gates of its sequence, and NaN where that has ended."""
    expected = [gates_of_sequence(lstm, x, temperature) for x in rows]
    assert [(record.layer, record.reverse) for record in recording] == list(expected[0])
    for record in recording:
        for row, x in enumerate(rows):
            for found, gate in zip(
                (record.input, record.forget), expected[row][record.layer, record.reverse], strict=True
            ):
                torch.testing.assert_close(found[: len(x), row], gate, **EQUAL)
                assert found[len(x) :, row].isnan().all()
            if record.valid is not None:
                assert record.valid[:, row].tolist() == [t < len(x) for t in range(len(record.valid))]


@pytest.mark.parametrize("mode", [("gumbel", "soft", 1.0), ("sharpened", "auto", 0.6), ("gumbel", "tempered", 0.6)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_gates_are_those_of_a_loop(backend, mode, bidirectional):
    gate_type, eval_mode, temperature = mode
    options = {"gate_type": gate_type, "eval_mode": eval_mode, "temperature": 0.6, "bidirectional": bidirectional}
    lstm = build(**options).eval()
    x = torch.stack([sequences()[1]] * 2, dim=1)
    x[:, 1] *= -1
    with record_gates(lstm) as recording:
        lstm(x)
    assert_rows_are(recording, lstm, list(x.unbind(1)), temperature)
    assert all(record.valid is None for record in recording)
    assert any((record.input < 0.1).any() and (record.input > 0.9).any() for record in recording)


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_rows_of_a_packed_sequence_stand_in_the_users_order(backend, enforce_sorted):
    lstm = build().eval()
    rows = sorted(sequences(), key=len, reverse=True) if enforce_sorted else sequences()
    with record_gates(lstm) as recording:
        lstm(pack_sequence(rows, enforce_sorted))
    assert_rows_are(recording, lstm, rows)


def test_a_padded_batch_with_lengths_has_the_gates_of_its_sequences(backend):
    lstm = build().eval()
    padded = nn.utils.rnn.pad_sequence(sequences())
    with record_gates(lstm) as recording:
        lstm.run_padded(padded, torch.tensor(LENGTHS))
    assert_rows_are(recording, lstm, sequences())


@pytest.mark.parametrize("shape", ["batch_first", "unbatched"])
def test_records_are_time_major_whatever_the_input(backend, shape):
    lstm = build(batch_first=shape == "batch_first").eval()
    x = sequences()[1]
    with record_gates(lstm) as recording:
        lstm(x if shape == "unbatched" else x[None])
    assert_rows_are(recording, lstm, [x])


@pytest.mark.parametrize("reverse", [False, True])
def test_in_training_the_gates_are_the_references_without_their_noise(backend, reverse):
    lstm = build(num_layers=1, noise_prob=1.0, temperature=0.6)
    lengths = torch.tensor(LENGTHS)
    x = nn.utils.rnn.pad_sequence(sequences())
    torch.manual_seed(5)
    with record_gates(lstm) as recording:
        lstm.run_padded(x, lengths)
    torch.manual_seed(5)
    seed = ops.draw_seed()
    zeros = x.new_zeros(4, 6)
    mode = lstm.gate_settings.mode(True)
    *_, z = reference.lstm_layer(
        x, zeros, zeros, *lstm.weights(0, reverse), lengths, mode=mode, seed=seed, reverse=reverse, need_gates=True
    )
    record = recording[reverse]
    assert record.reverse is reverse
    for found, expected in zip((record.input, record.forget), torch.sigmoid(z).chunk(2, -1), strict=True):
        torch.testing.assert_close(found[record.valid], expected[record.valid], **EQUAL)
    quiet = gates_of_sequence(lstm, x[:7, 1], 0.6)[0, reverse][0]
    first = -1 if reverse else 0  # the first step has seen no noise yet, the later ones remember it
    torch.testing.assert_close(record.input[first, 1], quiet[first], **EQUAL)
    assert not torch.allclose(record.input[:7, 1], quiet)


def test_hard_gates_are_recorded_as_0_and_1(backend):
    lstm = build(eval_mode="hard").eval()
    with record_gates(lstm) as recording:
        lstm(sequences()[1])
    assert set(torch.cat([record.forget for record in recording]).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("training", [False, True])
def test_results_are_the_same_bits_recorded_or_not(backend, training):
    lstm = build(dropout=0.3).train(training)

    def run() -> list[Tensor]:
        lstm.zero_grad()
        torch.manual_seed(3)
        packed, (h_n, c_n) = lstm(
            pack_padded_sequence(nn.utils.rnn.pad_sequence(sequences()), LENGTHS, enforce_sorted=False)
        )
        (packed.data.square().sum() + c_n.sum()).backward()
        return [packed.data, h_n, c_n, torch.get_rng_state(), *(weight.grad.clone() for weight in lstm.parameters())]

    expected = run()
    with record_gates(lstm):
        recorded = run()
    assert all(torch.equal(*pair) for pair in zip(recorded, expected, strict=True))


def test_records_carry_the_names_of_the_modules_and_no_gradients():
    model = nn.ModuleDict({"one": build(num_layers=1), "two": nn.Sequential(build(num_layers=1, bidirectional=False))})
    with record_gates(model) as recording:
        model["two"](sequences()[0])
        model["one"](sequences()[0])
    assert [record[:3] for record in recording] == [("two.0", 0, False), ("one", 0, False), ("one", 0, True)]
    assert not any(record.input.requires_grad or record.forget.requires_grad for record in recording)


def test_every_forward_is_appended():
    lstm = build(num_layers=1, bidirectional=False)
    with record_gates(lstm) as recording:
        for x in sequences():
            lstm(x)
    assert [len(record.input) for record in recording] == LENGTHS


def test_nested_recordings_both_record_and_end_by_themselves():
    lstm = build(num_layers=1, bidirectional=False)
    with record_gates(lstm) as outer:
        with record_gates(lstm) as inner:
            lstm(sequences()[0])
        lstm(sequences()[1])
    lstm(sequences()[2])
    assert (len(outer), len(inner)) == (2, 1)
    assert torch.equal(outer[0].input, inner[0].input)


def test_after_the_block_nothing_is_computed_for_it(monkeypatch):
    lstm = build(num_layers=1)
    wanted = []
    layer = ops.lstm_layer
    monkeypatch.setattr(
        ops,
        "lstm_layer",
        lambda *a, need_gates, **o: wanted.append(need_gates) or layer(*a, need_gates=need_gates, **o),
    )
    with record_gates(lstm):
        lstm(sequences()[0])
    lstm(sequences()[0])
    assert wanted == [True, True, False, False]
    assert lstm.gate_observer is None


def test_an_exception_ends_the_recording_and_leaves_what_was_recorded():
    lstm = build(num_layers=1, bidirectional=False)
    with pytest.raises(KeyboardInterrupt), record_gates(lstm) as recording:
        lstm(sequences()[0])
        raise KeyboardInterrupt
    assert lstm.gate_observer is None and len(recording) == 1


@pytest.mark.parametrize("first_left", [0, 1], ids=["first come, first left", "last come, first left"])
def test_recordings_that_overlap_are_left_in_any_order(first_left):
    lstm, x = build(num_layers=1, bidirectional=False), sequences()[0]
    blocks = [record_gates(lstm), record_gates(lstm)]
    recordings = [block.__enter__() for block in blocks]
    lstm(x)
    blocks[first_left].__exit__(None, None, None)
    lstm(x)
    blocks[1 - first_left].__exit__(None, None, None)
    lstm(x)
    assert lstm.gate_observer is None
    assert [len(recordings[first_left]), len(recordings[1 - first_left])] == [1, 2]


def test_a_module_without_gates_gets_a_sentence():
    with (
        pytest.raises(ValueError, match="the gates of LSTM cannot be observed: it holds no G2LSTM"),
        record_gates(nn.LSTM(2, 2)),
    ):
        pass
