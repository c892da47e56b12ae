"""Sums of gates against numpy on the gates themselves, and against a loop over the sequences."""

import json

import numpy as np
import pytest
import torch
from gate_loops import gates_of_sequence
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from fairseq_g2lstm import G2LSTM
from fairseq_g2lstm.gates import BINS, GATES, GateStatistics, Place, collect_statistics

UNITS = 6
LENGTHS = [4, 9, 1, 5, 9]


def arguments(n_steps: int, n_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(n_steps)
    return 4 * torch.randn(n_steps, n_rows, 2 * UNITS, dtype=dtype, generator=generator)


def assert_is(statistics: GateStatistics, gates: np.ndarray) -> None:
    """Asserts that the statistics are those of gates (N, 2, H), counted by numpy."""
    assert statistics.steps == len(gates)
    assert np.array_equal(statistics.low, (gates < np.float32(0.1)).sum(0))
    assert np.array_equal(statistics.high, (gates > np.float32(0.9)).sum(0))
    np.testing.assert_allclose(statistics.sum, gates.sum(0, dtype=np.float64), rtol=1e-12)
    for number, gate in enumerate(GATES):
        kept = gates[:, number].astype(np.float64)
        assert statistics.histogram[number].tolist() == np.histogram(kept, BINS, (0, 1))[0].tolist()
        assert statistics.share_low(gate) == pytest.approx((kept < 0.1).mean())
        assert statistics.share_high(gate) == pytest.approx((kept > 0.9).mean())
        assert statistics.mean(gate) == pytest.approx(kept.mean())
        np.testing.assert_allclose(statistics.unit_low(gate), (kept < 0.1).mean(0))
        np.testing.assert_allclose(statistics.unit_high(gate), (kept > 0.9).mean(0))
        np.testing.assert_allclose(statistics.unit_mean(gate), kept.mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [False, True])
def test_counts_are_those_of_numpy(dtype, padded):
    statistics, kept = GateStatistics(UNITS), []
    for n_steps in (3, 40):
        z = arguments(n_steps, 5, dtype)
        valid = torch.rand(n_steps, 5, generator=torch.Generator().manual_seed(0)) < 0.7 if padded else None
        statistics.add(z, valid)
        kept.append(torch.sigmoid(z.flatten(0, 1) if valid is None else z[valid]))
    assert_is(statistics, torch.cat(kept).view(-1, 2, UNITS).numpy())


def test_gates_of_0_and_1_fall_into_the_outer_bins():
    z = torch.tensor([-torch.inf, torch.inf]).repeat_interleave(UNITS).expand(2, 3, -1)
    statistics = GateStatistics(UNITS)
    statistics.add(z)
    assert statistics.histogram[0, 0] == statistics.histogram[1, -1] == statistics.histogram.sum() / 2 == 6 * UNITS
    assert (statistics.mean("input"), statistics.mean("forget")) == (0, 1)
    assert statistics.share_low("input") == statistics.share_high("forget") == 1


def test_every_bin_begins_at_its_own_edge():
    edges = torch.arange(BINS, dtype=torch.float64) / BINS
    statistics = GateStatistics(1)
    # A little above the edge, where logit and sigmoid in float64 may lose a few last bits.
    statistics.add(torch.stack((torch.logit(edges + 1e-9), torch.logit(edges + 1 / BINS - 1e-9)), dim=-1)[:, None])
    assert statistics.histogram.tolist() == [[1] * BINS] * 2


def test_a_gate_that_is_no_number_is_counted_nowhere():
    z = torch.zeros(1, 1, 2 * UNITS)
    z[..., 0] = torch.nan
    statistics = GateStatistics(UNITS)
    statistics.add(z)
    assert statistics.histogram.sum(1).tolist() == [UNITS - 1, UNITS]
    written = json.dumps(statistics.as_json(), allow_nan=False)
    assert json.loads(written)["input"]["mean"] is None and json.loads(written)["forget"]["mean"] == 0.5


def test_all_padding_adds_nothing_and_shares_of_nothing_are_no_numbers():
    statistics = GateStatistics(UNITS)
    statistics.add(arguments(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert statistics.steps == statistics.histogram.sum() == 0
    assert np.isnan(statistics.share_low("input")) and np.isnan(statistics.mean("forget"))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_models_statistics_are_those_of_a_loop_over_its_sequences(backend, bidirectional):
    torch.manual_seed(1)
    lstm = G2LSTM(3, UNITS, 2, bidirectional=bidirectional, dtype=torch.float64).eval()
    with torch.no_grad():
        for weight in lstm.parameters():
            weight *= 5  # gates of all values, near 0 and 1 too
    rows = [torch.randn(length, 3, dtype=torch.float64) for length in LENGTHS]
    with collect_statistics(lstm) as statistics:
        for part in (rows[:2], rows[2:]):
            lstm(pack_sequence(part, enforce_sorted=False))
    expected = [gates_of_sequence(lstm, x) for x in rows]
    assert list(statistics) == [Place("", *key) for key in expected[0]]
    for place, found in statistics.items():
        gates = torch.cat([torch.stack(row[place.layer, place.reverse], dim=1) for row in expected])
        assert_is(found, gates.numpy())
        assert 0.05 < found.share_low("input") < 0.95 and 0.05 < found.share_high("input") < 0.95


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (Place("encoder.lstm", 0, True), "encoder, layer 1, backward"),
        (Place("encoder.lstm", 1, False), "encoder, layer 2"),
        (Place("decoder", 3, False), "decoder, layer 4"),
        (Place("", 0, True), "layer 1, backward"),
        (Place("lstm", 0, False), "layer 1"),
        (Place("reader.0", 0, False), "reader.0, layer 1"),
    ],
)
def test_labels_are_for_people(place, label):
    assert place.label == label


def test_a_model_that_did_nothing_has_no_statistics():
    with collect_statistics(G2LSTM(2, 2)) as statistics:
        pass
    assert statistics == {}
