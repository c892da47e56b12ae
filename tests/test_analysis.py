"""The gates' histograms against a loop in plain torch, one sentence at a time, and observers that leave no trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_in_process, train_options
from fairseq.data import LanguagePairDataset
from gate_models import DirectModel, spread
from lm_runs import train_lm
from tiny_runs import batch
from torch import Tensor

from fairseq_g2lstm import G2LSTM, convert, observe_gates
from fairseq_g2lstm.analysis import GateHistograms, gate_histograms
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.loading import load_model
from fairseq_g2lstm.models.g2lstm import G2LSTMModel

UNITS = 16
LAYERS = 2
TEMPERATURE = 0.6

SIZES = ["--encoder-bidirectional", "--encoder-layers", LAYERS, "--decoder-layers", LAYERS, "--max-update", 2]
SIZES += ["--disable-validation", "--no-epoch-checkpoints"]


@pytest.fixture(scope="module")
def sharpened(tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharpened")
    gates = ["--gate-type", "sharpened", "--gate-temperature", TEMPERATURE]
    train_in_process(train_options(tiny_data, folder, "g2lstm", *SIZES, *gates))
    return spread(folder / "checkpoint_last.pt", folder / "spread.pt")


@pytest.fixture(scope="module")
def stock(tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    train_in_process(train_options(tiny_data, folder, "lstm", *SIZES))
    return spread(folder / "checkpoint_last.pt", folder / "spread.pt")


def direct_gates(checkpoint: Path, dataset: LanguagePairDataset, temperature: float) -> list[Tensor]:
    """All input and all forget gates of a data set, in float64, sentence by sentence: no batches, no padding."""
    model = DirectModel(checkpoint, temperature)
    gates = []
    for item in (dataset[number] for number in range(len(dataset))):
        found = model.translate(item["source"], item["target"].roll(1))
        gates += [pair for place, pair in found.items() if place != "attention"]
    return [torch.cat([values.flatten() for values in part]) for part in zip(*gates, strict=True)]


def assert_counts_of(counts: np.ndarray, gates: Tensor, edges: np.ndarray) -> None:
    expected = np.histogram(gates.numpy(), edges)[0]
    # A gate this close to an edge may fall on either side of it in float32.
    near = (gates[:, None] - torch.from_numpy(edges[1:-1]).double()).abs().lt(1e-5).sum().item()
    assert np.abs(counts - expected).sum() <= 2 * near
    assert near < 0.01 * len(gates)


@pytest.mark.parametrize("kind", ["sharpened", "stock"])
def test_histograms_are_those_of_a_loop_over_the_sentences(kind, tiny_data, task, request):
    checkpoint = request.getfixturevalue(kind)
    temperature = TEMPERATURE if kind == "sharpened" else 1.0
    histograms = gate_histograms(checkpoint, tiny_data, "valid")
    expected = direct_gates(checkpoint, task.dataset("valid"), temperature)
    for name, gates in zip(("input", "forget"), expected, strict=True):
        counts = getattr(histograms, name)
        assert histograms.total == counts.sum() == len(gates)
        assert_counts_of(counts, gates, histograms.edges)
        below, above = (gates < 0.1).double().mean().item(), (gates > 0.9).double().mean().item()
        # One gate in the thousands may cross the line in float32; shares far from 0 and 1 show something.
        assert histograms.share_below(name) == pytest.approx(below, abs=1e-3)
        assert histograms.share_above(name) == pytest.approx(above, abs=1e-3)
        assert histograms.share_saturated(name) == pytest.approx(below + above, abs=2e-3)
        assert 0.05 < below < 0.95 and 0.05 < above < 0.95


@pytest.mark.parametrize("max_sentences", [1, 7, 50, 70, 400, 1000])
def test_the_first_sentences_are_counted_without_their_padding(tiny_data, task, sharpened, max_sentences):
    histograms = gate_histograms(sharpened, tiny_data, "train", max_sentences)
    task.load_dataset("train")
    dataset = task.dataset("train")
    n_source, n_target = (int(sum(side.sizes[:max_sentences])) for side in (dataset.src, dataset.tgt))
    assert histograms.total == UNITS * LAYERS * (2 * n_source + n_target)
    assert histograms.input.sum() == histograms.forget.sum() == histograms.total
    assert (histograms.edges[0], histograms.edges[-1], len(histograms.edges)) == (0.0, 1.0, 51)


def assert_same(a: GateHistograms, b: GateHistograms) -> None:
    for name in ("edges", "input", "forget", "low", "high", "total"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_a_stock_checkpoint_and_the_same_converted_have_the_same_histograms(tiny_data, stock, tmp_path):
    torch.save(convert.to_g2lstm(read_checkpoint(stock)), tmp_path / "g2lstm.pt")
    assert_same(gate_histograms(stock, tiny_data), gate_histograms(tmp_path / "g2lstm.pt", tiny_data))


def test_tempered_gates_folded_into_a_stock_checkpoint_have_the_same_histograms(tiny_data, sharpened, tmp_path):
    torch.save(convert.to_lstm(read_checkpoint(sharpened)), tmp_path / "lstm.pt")
    a, b = gate_histograms(sharpened, tiny_data), gate_histograms(tmp_path / "lstm.pt", tiny_data)
    assert a.total == b.total
    for name in ("input", "forget"):
        # Scaled weights give other last bits, which may carry a gate in a thousand over an edge.
        assert np.abs(getattr(a, name) - getattr(b, name)).sum() <= 1e-3 * a.total
        assert a.share_saturated(name) == pytest.approx(b.share_saturated(name), abs=1e-3)


def test_hard_gates_are_all_0_or_1(tiny_data, sharpened, tmp_path):
    state = read_checkpoint(sharpened)
    state["cfg"]["model"]["gate_eval_mode"] = "hard"
    torch.save(state, tmp_path / "hard.pt")
    histograms = gate_histograms(tmp_path / "hard.pt", tiny_data)
    for name in ("input", "forget"):
        counts = getattr(histograms, name)
        assert counts[0] + counts[-1] == histograms.total
        assert counts[0] == pytest.approx(histograms.share_below(name) * histograms.total)
        assert histograms.share_saturated(name) == 1.0


def test_a_language_models_gates_are_counted_too(tiny_text, tmp_path):
    folder = train_lm(tiny_text, tmp_path, "--max-update", 1, "--disable-validation")
    n_tokens = len((tiny_text.parent / "valid.txt").read_text().split()) + 50  # an end of line after each
    # two layers, of nine units and of eight
    assert gate_histograms(folder / "checkpoint_last.pt", tiny_text).total == (9 + 8) * n_tokens


# observe_gates


@pytest.fixture
def model(sharpened, tiny_data) -> G2LSTMModel:
    return load_model(sharpened, tiny_data)[0]


@pytest.fixture(scope="module")
def net_input(task) -> dict[str, Tensor]:
    return batch(task, range(6))["net_input"]


def test_observers_see_every_layer_and_direction_once_a_forward(model, net_input):
    seen = []
    with torch.no_grad(), observe_gates(model, lambda *gates: seen.append(gates)):
        model(**net_input)
    encoder = [("encoder.lstm", layer, reverse) for layer in range(LAYERS) for reverse in (False, True)]
    assert [gates[:3] for gates in seen] == encoder + [("decoder", layer, False) for layer in range(LAYERS)]
    for name, _, _, z, valid in seen:
        tokens = net_input["src_tokens" if name == "encoder.lstm" else "prev_output_tokens"]
        assert z.shape == (tokens.size(1), tokens.size(0), 2 * UNITS)
        assert valid.sum() == tokens.ne(1).sum()  # 1 is fairseq's padding


@pytest.mark.parametrize("training", [False, True])
def test_observing_changes_no_result(model, net_input, training):
    model.train(training)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        logits, _ = model(**net_input)
        logits.square().sum().backward()
        return logits, model.encoder.lstm.weight_hh_l0.grad, torch.get_rng_state()

    expected = run()
    with observe_gates(model, lambda *_: torch.zeros(1)):
        observed = run()
    assert all(torch.equal(a, b) for a, b in zip(expected, observed, strict=True))


def observers(model: G2LSTMModel) -> list[object]:
    return [module.gate_observer for module in (model.encoder.lstm, model.decoder)]


def test_observers_are_gone_after_the_block(model, net_input):
    seen = []
    with torch.no_grad(), observe_gates(model, lambda *gates: seen.append(gates)):
        model(**net_input)
    assert observers(model) == [None, None]
    n_seen = len(seen)
    with torch.no_grad():
        model(**net_input)
    assert len(seen) == n_seen > 0


def test_observers_are_gone_after_an_exception(model, net_input):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), observe_gates(model, fail):
        model(**net_input)
    assert observers(model) == [None, None]


def test_nested_observers_both_see_and_the_outer_one_stays(model, net_input):
    outer, inner = [], []
    with torch.no_grad(), observe_gates(model, lambda *gates: outer.append(gates)):
        with observe_gates(model, lambda *gates: inner.append(gates)):
            model(**net_input)
        assert len(outer) == len(inner) > 0
        with pytest.raises(ZeroDivisionError), observe_gates(model, lambda *_: 1 / 0):
            model(**net_input)
        n_inner = len(inner)
        outer.clear()
        model(**net_input)
        assert (len(outer), len(inner)) == (n_inner, n_inner)
    assert observers(model) == [None, None]


def test_a_module_may_be_observed_itself():
    lstm = G2LSTM(3, 4)
    seen = []
    with observe_gates(lstm, lambda *gates: seen.append(gates)):
        lstm(torch.zeros(5, 2, 3))
    assert [(name, layer, reverse, z.shape) for name, layer, reverse, z, _ in seen] == [("", 0, False, (5, 2, 8))]


def test_a_model_without_gates_gets_a_sentence():
    with (
        pytest.raises(ValueError, match="the gates of Linear cannot be observed: it holds no G2LSTM"),
        observe_gates(torch.nn.Linear(2, 2), print),
    ):
        pass
