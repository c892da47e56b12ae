"""Checkpoints of stock `lstm` as `g2lstm` and back, and what both compute then."""

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_module, train_in_process, train_options
from fairseq import options as fairseq_options
from omegaconf import OmegaConf
from tiny_runs import assert_identical, load

from fairseq_g2lstm.checkpoints import read_checkpoint, write_checkpoint
from fairseq_g2lstm.convert import main, to_g2lstm, to_lstm
from fairseq_g2lstm.loading import load_model

SIZES = ["--encoder-bidirectional", "--encoder-layers", 2, "--decoder-layers", 2, "--dropout", 0]


@pytest.fixture(scope="module")
def stock(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stock `lstm`, trained for 60 updates by a process that never sees the plugin."""
    folder = tmp_path_factory.mktemp("stock")
    options = train_options(tiny_data, folder, "lstm", *SIZES, "--max-update", 60)
    position = options.index("--user-dir")
    del options[position : position + 2]
    done = run_module("fairseq_cli.train", *options)
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def sharpened(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `g2lstm` with sharpened gates, whose temperature a schedule took from 1 to 0.5."""
    folder = tmp_path_factory.mktemp("sharpened")
    schedule = ["--gate-temperature-schedule", "linear", "--gate-temperature-start", 1]
    schedule += ["--gate-temperature-end", 0.5, "--gate-temperature-updates", 20]
    options = [*SIZES, *schedule, "--gate-type", "sharpened", "--lr", 0.03, "--max-update", 30]
    train_in_process(train_options(tiny_data, folder, "g2lstm", *options))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def older(stock: Path, tiny_data: Path) -> Path:
    """The stock checkpoint as fairseq wrote it before Hydra, its options a Namespace of arguments."""
    options = train_options(tiny_data, stock.parent, "lstm", *SIZES, "--max-update", 60)
    arguments = fairseq_options.parse_args_and_arch(fairseq_options.get_training_parser(), input_args=options)
    state = torch.load(stock, weights_only=False)
    del state["cfg"]
    path = stock.with_name("older.pt")
    torch.save({**state, "args": arguments}, path)
    return path


def test_an_older_checkpoint_is_converted_too(stock, older, tiny_data):
    for (found, valid), (expected, _) in zip(
        map(logits, (converted(older, "g2lstm"), older)), map(logits, (stock, stock)), strict=True
    ):
        torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-6)
    model, _ = load_model(older, tiny_data)
    assert type(model).__name__ == "G2LSTMModel"


def converted(checkpoint: Path, to: str, *options: str) -> Path:
    """The checkpoint that the command writes beside the given one."""
    target = checkpoint.with_name(f"{to}.pt")
    assert main([str(checkpoint), str(target), "--to", to, *options]) == 0
    return target


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copy(checkpoint, folder / "given.pt"))


@torch.no_grad()
def logits(checkpoint: Path, **overrides: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the test set's first 16 sentences in float64, and which of them are no padding."""
    model, task = load(checkpoint, **overrides)
    task.load_dataset("test")
    sample = task.dataset("test").collater([task.dataset("test")[i] for i in range(16)])
    return model.double()(**sample["net_input"])[0], sample["target"].ne(task.target_dictionary.pad())


def translations(checkpoint: Path) -> list[list[tuple[list[int], float]]]:
    """Tokens and scores of every hypothesis of a beam of 5 over the test set."""
    model, task = load(checkpoint)
    task.load_dataset("test")
    generator = task.build_generator([model], Namespace(beam=5, nbest=5))
    batches = task.get_batch_iterator(task.dataset("test"), max_sentences=20).next_epoch_itr(shuffle=False)
    found = [hypotheses for batch in batches for hypotheses in task.inference_step(generator, [model], batch)]
    return [[(h["tokens"].tolist(), float(h["score"])) for h in hypotheses] for hypotheses in found]


def assert_same_translations(found: Path, expected: Path) -> None:
    beams, expected_beams = translations(found), translations(expected)
    assert len(beams) == 40
    assert len({tuple(beam[0][0]) for beam in beams}) > 5  # a model that says always the same would show nothing
    for beam, expected_beam in zip(beams, expected_beams, strict=True):
        assert [tokens for tokens, _ in beam] == [tokens for tokens, _ in expected_beam]
        assert [score for _, score in beam] == pytest.approx([score for _, score in expected_beam], abs=1e-5)


@pytest.mark.parametrize("gate_type", ["sigmoid", "gumbel"])
def test_a_stock_checkpoint_becomes_a_g2lstm_that_computes_the_same(stock, tmp_path, gate_type):
    g2lstm = converted(copy_of(stock, tmp_path), "g2lstm", "--gate-type", gate_type)
    model, _ = load(g2lstm)
    assert type(model).__name__ == "G2LSTMModel"
    assert (model.gate_settings.gate_type, model.gate_settings.temperature) == (gate_type, 0.9)
    (found, valid), (expected, _) = logits(g2lstm), logits(stock)
    # the stock model rounds attention scores to float32
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-6)
    assert_same_translations(g2lstm, stock)


def test_there_and_back_gives_the_same_tensors(stock, tmp_path):
    back = converted(converted(copy_of(stock, tmp_path), "g2lstm"), "lstm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g2lstm.pt", "given.pt", "lstm.pt"]
    found, expected = read_checkpoint(back), read_checkpoint(stock)
    assert_identical(found["model"], expected["model"])
    for part in ("last_optimizer_state", "optimizer_history", "extra_state"):
        assert_identical(found[part], expected[part], part)
    model, _ = load(back)
    assert type(model).__name__ == "LSTMModel"
    options = vars(found["cfg"]["model"])
    expected_options = vars(expected["cfg"]["model"])
    assert {key: expected_options[key] for key in options} == options


def test_a_converted_checkpoint_is_validated_by_the_stock_criterion(sharpened, tmp_path):
    lstm = converted(copy_of(sharpened, tmp_path), "lstm")
    state = read_checkpoint(lstm)
    _, task = load(lstm)
    criterion = task.build_criterion(OmegaConf.create(state["cfg"]["criterion"]))  # as fairseq-validate does
    assert type(criterion).__name__ == "CrossEntropyCriterion"


IN_STOCK_FAIRSEQ = """
import argparse, sys, torch
torch.serialization.add_safe_globals([argparse.Namespace])
from fairseq import checkpoint_utils
models, _, task = checkpoint_utils.load_model_ensemble_and_task([sys.argv[1]])
task.load_dataset("test")
dataset = task.dataset("test")
sample = dataset.collater([dataset[i] for i in range(16)])
with torch.no_grad():
    logits = models[0].eval().double()(**sample["net_input"])[0]
assert not [name for name in sys.modules if name.startswith("fairseq_g2lstm")]
torch.save((type(models[0]).__name__, logits), sys.argv[2])
"""


@pytest.mark.slow
def test_a_converted_checkpoint_loads_where_the_plugin_is_not(sharpened, tmp_path):
    lstm = converted(copy_of(sharpened, tmp_path), "lstm")
    command = [sys.executable, "-c", IN_STOCK_FAIRSEQ, lstm, tmp_path / "logits.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    name, found = torch.load(tmp_path / "logits.pt")
    expected, valid = logits(sharpened)
    assert name == "LSTMModel"
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)


@pytest.mark.parametrize("overrides", [{}, {"gate_eval_mode": "soft"}], ids=["tempered", "soft"])
def test_where_gates_are_tempered_the_temperature_goes_into_the_weights(sharpened, tmp_path, overrides):
    state = read_checkpoint(sharpened)
    state["cfg"]["model"] |= overrides
    write_checkpoint(state, tmp_path / "given.pt")
    lstm = converted(tmp_path / "given.pt", "lstm")
    (found, valid), (expected, _) = logits(lstm), logits(sharpened, **overrides)
    # the folded weights are rounded to float32
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)
    weights = read_checkpoint(lstm)["model"]
    changed = {key for key in weights if not torch.equal(weights[key], state["model"][key])}
    gates = {key for key in weights if key.startswith(("encoder.lstm.", "decoder.layers."))}
    assert changed == (set() if overrides else gates)
    if not overrides:
        assert_same_translations(lstm, sharpened)


@pytest.mark.parametrize(
    ("gate_type", "eval_mode", "folded"),
    [("gumbel", "auto", False), ("gumbel", "tempered", True), ("sharpened", "auto", True), ("sigmoid", "auto", False)],
)
def test_weights_change_only_for_tempered_gates(sharpened, gate_type, eval_mode, folded):
    state = read_checkpoint(sharpened)
    state["cfg"]["model"] |= {"gate_type": gate_type, "gate_eval_mode": eval_mode}
    before = {key: weight.clone() for key, weight in state["model"].items()}
    weight = to_lstm(state)["model"]["decoder.layers.1.weight_hh"]
    expected = before["decoder.layers.1.weight_hh"].clone()
    if folded:
        expected[:32] *= 2  # 16 units of the input and 16 of the forget gates, divided by 0.5
    assert torch.equal(weight, expected)
    assert_identical(state["model"], before)


def test_finetuning_starts_at_the_stock_checkpoints_parameters(stock, train: Callable[..., Path]):
    options = ["--finetune-from-model", stock, "--optimizer", "sgd", "--lr", 0, "--max-update", 1]
    found = read_checkpoint(train("run", *SIZES, *options, "--gate-temperature", 0.8) / "checkpoint_last.pt")
    expected = read_checkpoint(stock)["model"]
    assert_identical({key: found["model"][key] for key in expected}, expected)
    assert found["model"]["gates.values"].tolist() == [0.8, 0.2, 0.8, 0.2]


def test_a_converted_checkpoint_trains_on_as_the_stock_one_does(stock, tmp_path, train: Callable[..., Path]):
    g2lstm = converted(copy_of(stock, tmp_path), "g2lstm")
    lstm = converted(g2lstm, "lstm")
    more = [*SIZES, "--criterion", "cross_entropy", "--max-update", 64]
    expected = read_checkpoint(train("stock", *more, "--restore-file", stock, arch="lstm") / "checkpoint_last.pt")
    back = read_checkpoint(train("back", *more, "--restore-file", lstm, arch="lstm") / "checkpoint_last.pt")
    assert_identical(back["model"], expected["model"])
    options = ["--gate-type", "sigmoid", "--restore-file", g2lstm]
    found = read_checkpoint(train("converted", *more, *options) / "checkpoint_last.pt")
    assert found["optimizer_history"][-1]["num_updates"] == 64
    before = read_checkpoint(stock)["model"]
    for key, weight in expected["model"].items():
        assert not torch.equal(weight, before[key]), key
        # four steps of Adam at 0.01 between other orders of summation
        torch.testing.assert_close(found["model"][key], weight, rtol=0, atol=1e-4)


def test_a_g2lstm_training_goes_on_as_a_stock_one(sharpened, tmp_path, train: Callable[..., Path]):
    lstm = converted(copy_of(sharpened, tmp_path), "lstm")
    state = read_checkpoint(lstm)
    assert (state["cfg"]["criterion"]["_name"], state["cfg"]["model"].criterion) == ("cross_entropy",) * 2
    assert not [key for key in (*state["cfg"]["criterion"], *vars(state["cfg"]["model"])) if key.startswith("gate_")]
    folder = train("run", *SIZES, "--restore-file", lstm, "--max-update", 31, arch="lstm")
    history = read_checkpoint(folder / "checkpoint_last.pt")["optimizer_history"]
    assert [entry["num_updates"] for entry in history] == [30, 31]
    assert {entry["criterion_name"] for entry in history} == {"CrossEntropyCriterion"}


def another_model(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "cfg": {**state["cfg"], "model": Namespace(_name="transformer", arch="transformer")}}


REFUSED = {
    "a g2lstm to g2lstm": (
        "sharpened",
        {},
        "g2lstm",
        "--to g2lstm takes a checkpoint of the stock lstm or lstm_lm, got one of g2",
    ),
    "a stock lstm to lstm": ("stock", {}, "lstm", "takes a checkpoint of g2lstm or g2lstm_lm, got one of lstm"),
    "a transformer to g2lstm": ("stock", None, "g2lstm", "stock lstm or lstm_lm, got one of transformer"),
    "a transformer to lstm": ("stock", None, "lstm", "of g2lstm or g2lstm_lm, got one of transformer"),
    "hard gates": ("sharpened", {"gate_eval_mode": "hard"}, "lstm", "the stock lstm has no hard gates: .* is hard; "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_gets_a_sentence_and_nothing_is_written(request, tmp_path, capsys, case):
    name, changes, to, sentence = REFUSED[case]
    state = read_checkpoint(request.getfixturevalue(name))
    state = another_model(state) if changes is None else state
    if changes:
        state["cfg"]["model"] |= changes
    write_checkpoint(state, tmp_path / "given.pt")
    with pytest.raises(ValueError, match=sentence):
        {"g2lstm": to_g2lstm, "lstm": to_lstm}[to](read_checkpoint(tmp_path / "given.pt"))
    assert main([str(tmp_path / "given.pt"), str(tmp_path / "out.pt"), "--to", to]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["given.pt"]
