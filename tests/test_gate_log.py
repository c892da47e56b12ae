"""The log of the gates in training: its file against the reference, what stops and goes on, TensorBoard, lines."""

import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_module
from fairseq.tasks.translation import TranslationTask
from lm_runs import train_lm
from tiny_runs import assert_identical, build, training_config

from fairseq_g2lstm import ops, record_gates
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.gates import training
from fairseq_g2lstm.gates.training import GateLog, read_gate_log

# 15 updates make an epoch of the tiny corpus.
OPTIONS = ["--encoder-bidirectional", "--disable-validation"]
PLACES = [("encoder.lstm", 0, False), ("encoder.lstm", 0, True), ("decoder", 0, False)]


def criterion_of(task: TranslationTask, folder: Path, *options: object):
    given = ["--arch", "g2lstm", "--criterion", "g2lstm_cross_entropy", "--save-dir", folder, *options]
    return task.build_criterion(training_config("data", *given).criterion)


def updates(folder: Path) -> list[int]:
    """The updates of the records, each once."""
    return list(dict.fromkeys(record["update"] for record in read_gate_log(folder / "gates.jsonl")))


def test_the_file_has_the_references_gates_of_each_layer_and_direction(task, sample, tmp_path):
    model = build(task, encoder_bidirectional=True, gate_noise_prob=0.7, gate_temperature=0.6).double().train()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 12  # gates of all values
    torch.manual_seed(4)
    criterion_of(task, tmp_path, "--gate-log-interval", 5)(model, sample)
    torch.manual_seed(4)
    with ops.use_reference(), record_gates(model) as recording:
        model(**sample["net_input"])
    records = iter(read_gate_log(tmp_path / "gates.jsonl"))
    for record, place in zip(recording, PLACES, strict=True):
        for gate in ("input", "forget"):
            gates = getattr(record, gate)
            gates = gates[~gates.isnan()].numpy()
            found = next(records)
            assert (found["module"], found["layer"], found["reverse"]) == place
            assert (found["update"], found["gate"], found["steps"]) == (0, gate, len(gates) / 9)
            assert found["histogram"] == np.histogram(gates, 50, (0, 1))[0].tolist()
            assert found["low"] == pytest.approx((gates < 0.1).mean())
            assert found["high"] == pytest.approx((gates > 0.9).mean())
            assert found["mean"] == pytest.approx(gates.mean())
            assert 0.05 < found["low"] < 0.95
    assert next(records, None) is None


@pytest.mark.parametrize("name", ["g2lstm_cross_entropy", "g2lstm_label_smoothed_cross_entropy"])
def test_every_nth_update_is_recorded_once_though_it_gathers_several_batches(train, name):
    options = [*OPTIONS, "--criterion", name, "--gate-log-interval", 3, "--max-update", 8, "--update-freq", 2]
    records = read_gate_log(train("run", *options) / "gates.jsonl")
    found = [(r["update"], r["module"], r["layer"], r["reverse"], r["gate"]) for r in records]
    assert found == [(u, *place, gate) for u in (0, 3, 6) for place in PLACES for gate in ("input", "forget")]
    for record in records:
        assert sum(record["histogram"]) == 16 * record["steps"] > 0


def test_training_ends_with_the_same_parameters_logged_or_not(train):
    logged = train("logged", *OPTIONS, "--gate-log-interval", 1) / "checkpoint_last.pt"
    silent = train("silent", *OPTIONS)
    assert not (silent / "gates.jsonl").exists()
    assert_identical(read_checkpoint(logged)["model"], read_checkpoint(silent / "checkpoint_last.pt")["model"])


def test_a_stopped_training_goes_on_in_the_same_file(train: Callable[..., Path]):
    options = [*OPTIONS, "--gate-log-interval", 2]
    whole = train("whole", *options, "--max-update", 22)
    for max_update in (7, 16, 22):
        stopped = train("stopped", *options, "--max-update", max_update)
    assert updates(whole) == list(range(0, 22, 2))
    assert (stopped / "gates.jsonl").read_text() == (whole / "gates.jsonl").read_text()


def test_what_was_recorded_after_the_last_checkpoint_is_not_doubled(train: Callable[..., Path], caplog):
    options = [*OPTIONS, "--gate-log-interval", 2]
    whole = train("whole", *options, "--max-update", 12)
    expected = (whole / "gates.jsonl").read_text()
    train("run", *options, "--max-update", 9, "--save-interval-updates", 5)
    (whole / "gates.jsonl").write_text(expected[:-40])  # cut off in its last line
    for folder, checkpoint in ((whole.parent / "run", "checkpoint_1_5.pt"), (whole, "../run/checkpoint_1_5.pt")):
        restored = ["--restore-file", folder / checkpoint]
        caplog.set_level(logging.INFO)
        train(folder.name, *options, *restored, "--max-update", 12)
        assert (folder / "gates.jsonl").read_text() == expected
    assert f"lines of {whole / 'gates.jsonl'} from there on are dropped" in caplog.text


def test_a_training_from_the_beginning_begins_the_file_anew(train: Callable[..., Path]):
    options = [*OPTIONS, "--gate-log-interval", 2, "--max-update"]
    folder = train("run", *options, 7)
    for checkpoint in folder.glob("*.pt"):
        checkpoint.unlink()
    train("run", *options, 3)
    assert updates(folder) == [0, 2]


def test_a_language_model_is_logged_layer_by_layer(tiny_text, tmp_path):
    folder = train_lm(tiny_text, tmp_path / "run", "--max-update", 5, "--gate-log-interval", 2, "--disable-validation")
    records = read_gate_log(folder / "gates.jsonl")
    assert updates(folder) == [0, 2, 4]
    # 4 rows of 10 tokens; the layers have 9 and 8 units
    assert [(r["module"], r["layer"], r["steps"], sum(r["histogram"])) for r in records[:4:2]] == [
        ("decoder", 0, 40, 360),
        ("decoder", 1, 40, 320),
    ]


def test_hydra_finds_the_option_and_the_folder(tiny_text, tmp_path):
    options = ["--config-dir", ROOT / "examples" / "ptb" / "config", "--config-name", "small"]
    options += [f"task.data={tiny_text}", f"checkpoint.save_dir={tmp_path / 'run'}", "common.cpu=true"]
    options += ["dataset.batch_size=4", "optimization.max_update=3", "model.decoder_layers=1", "dataset.num_workers=0"]
    options += [f"model.{size}=8" for size in ("decoder_embed_dim", "decoder_out_embed_dim")]
    done = run_module("fairseq_cli.hydra_train", *options, "+criterion.gate_log_interval=2")
    assert done.returncode == 0, done.stderr
    assert updates(tmp_path / "run") == [0, 2]


def test_fairseqs_log_tells_each_places_gates_in_words(task, sample, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    criterion_of(task, tmp_path, "--gate-log-interval", 1)(build(task, encoder_bidirectional=True).train(), sample)
    lines = [record.getMessage() for record in caplog.records if record.name == training.__name__]
    values = read_gate_log(tmp_path / "gates.jsonl")
    words = [
        f"{r['gate']} gates {r['low']:.1%} below 0.1, {r['high']:.1%} above 0.9, mean {r['mean']:.3f}" for r in values
    ]
    labels = ("encoder, layer 1", "encoder, layer 1, backward", "decoder, layer 1")
    expected = [
        f"update 0 | {label} | {one} | {two}" for label, one, two in zip(labels, words[::2], words[1::2], strict=True)
    ]
    assert lines == expected


@pytest.mark.usefixtures("own_writers")
def test_tensorboard_gets_histograms_and_scalars(train, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = [*OPTIONS, "--gate-log-interval", 4, "--tensorboard-logdir", tmp_path / "tb", "--max-update"]
    train("run", *options, 6)
    records = read_gate_log(train("run", *options, 10) / "gates.jsonl")
    everything = {"histograms": 0, "scalars": 0}  # where by default only one of each is kept
    events = accumulators.EventAccumulator(str(tmp_path / "tb" / "gates"), everything).Reload()
    names = {("encoder.lstm", False): "encoder_layer_1", ("decoder", False): "decoder_layer_1"}
    names["encoder.lstm", True] = "encoder_layer_1_backward"
    found = set()
    for record in records:
        gate, name = record["gate"], names[record["module"], record["reverse"]]
        histograms = {event.step: event.histogram_value for event in events.Histograms(f"{gate}_gates/{name}")}
        assert list(histograms) == [0, 4, 8]
        histogram = histograms[record["update"]]
        assert list(histogram.bucket) == record["histogram"]
        assert histogram.bucket_limit == pytest.approx(np.arange(1, 51) / 50)
        assert histogram.sum / histogram.num == pytest.approx(record["mean"])
        for what in ("low", "high", "mean"):
            tag = f"{gate}_gates_{what}/{name}"
            scalars = {event.step: event.value for event in events.Scalars(tag)}
            assert scalars[record["update"]] == pytest.approx(record[what], abs=1e-6)
            found.add(tag)
    assert found == set(events.Tags()["scalars"])


@pytest.mark.usefixtures("own_writers")
def test_without_tensorboard_a_sentence_says_so_and_the_file_is_written(train, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    folder = train("run", *OPTIONS, "--gate-log-interval", 4, "--tensorboard-logdir", tmp_path / "tb")
    assert caplog.text.count("tensorboard is not installed, so it gets no gates: pip install tensorboard") == 1
    assert updates(folder) == [0, 4, 8]


def test_evaluation_is_not_recorded(task, sample, tmp_path):
    criterion_of(task, tmp_path, "--gate-log-interval", 1)(build(task).eval(), sample)
    assert not list(tmp_path.iterdir())


def test_other_ranks_record_nothing_and_write_nothing(task, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank, expected in ((1, []), (0, ["gates.jsonl"])):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        criterion_of(task, tmp_path, "--gate-log-interval", 1)(build(task).train(), sample)
        assert [path.name for path in tmp_path.iterdir()] == expected


# GateLog


def test_an_update_that_is_tried_again_is_recorded_once(tmp_path):
    log = GateLog(2, tmp_path)
    due = []
    for n_updates in (0, 0, 1, 2, 2, 3):  # fairseq tries an update again after an overflow in half precision
        due.append(log.is_due(n_updates))
        if due[-1]:
            log.record(n_updates, {})
    assert due == [True, False, False, True, False, False]


def test_a_batch_that_failed_is_made_up_for_by_the_next(tmp_path):
    log = GateLog(2, tmp_path)
    assert log.is_due(0) and log.is_due(0)


def test_updates_that_go_back_drop_what_lies_ahead(tmp_path):
    path = tmp_path / "gates.jsonl"
    path.write_text("".join(json.dumps({"update": update, "gate": "input"}) + "\n" for update in (0, 2, 4)))
    log = GateLog(2, tmp_path)
    assert not log.is_due(5)
    assert updates(tmp_path) == [0, 2, 4]
    assert log.is_due(2)
    assert updates(tmp_path) == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["gates.jsonl"]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"loss": 2}'])
def test_a_file_of_something_else_is_left_alone(tmp_path, line):
    (tmp_path / "gates.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="line 1 of .*gates.jsonl is no record of gates: move the file away"):
        GateLog(1, tmp_path).is_due(0)
    assert (tmp_path / "gates.jsonl").read_text() == f"{line}\n"


def test_an_interval_below_0_gets_a_sentence(task, tmp_path):
    with pytest.raises(ValueError, match=r"--gate-log-interval must be >= 0 \(0 for never\), got -1"):
        criterion_of(task, tmp_path, "--gate-log-interval", -1)


# What the documentation says


def test_the_page_of_gates_names_what_a_record_holds_and_its_examples_run(task, sample, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "gates.md").read_text()
    model = build(task, encoder_bidirectional=True).train()
    criterion_of(task, tmp_path / "checkpoints", "--gate-log-interval", 1)(model, sample)
    monkeypatch.chdir(tmp_path)
    table = text[text.index("| in `gates.jsonl` |") :].split("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    [first, *_] = read_gate_log("checkpoints/gates.jsonl")
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)] == list(first)
    names: dict = {}
    for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        exec(textwrap.dedent(block), names)
    assert len(names["recording"]) == 4 and len(names["statistics"]) == 4
