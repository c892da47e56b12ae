"""Checkpoints: what they carry to generation, what is refused, and that nothing half-written stays."""

import builtins
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import fairseq_cli.generate
import numpy as np
import pytest
import torch
from conftest import PLUGIN, train_in_process, train_options
from fairseq import checkpoint_utils
from tiny_runs import assert_identical, generation_config, load

from fairseq_g2lstm import ops
from fairseq_g2lstm.checkpoints import read_checkpoint, write_checkpoint
from fairseq_g2lstm.convert import main as convert

# update n runs at temperature 1 - n / 20, from update 10 on at 0.5
SCHEDULE = ["--gate-temperature-schedule", "linear", "--gate-temperature-start", 1.0]
SCHEDULE += ["--gate-temperature-end", 0.5, "--gate-temperature-updates", 10]
BLEU = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2}', "--eval-bleu-remove-bpe"]
BLEU += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]


@pytest.fixture(autouse=True)
def no_environment_variable() -> None:
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ, "these tests are about loading without it: unset it"


@pytest.fixture(scope="module")
def checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 12 updates, the last two at temperature 0.5."""
    folder = tmp_path_factory.mktemp("checkpoint")
    train_in_process(train_options(tiny_data, folder, "g2lstm", *SCHEDULE, "--max-update", 12))
    return folder / "checkpoint_last.pt"


def generate(data: Path, checkpoint: Path, *options: object) -> None:
    """fairseq-generate in this process."""
    fairseq_cli.generate.main(generation_config(data, "--path", checkpoint, "--beam", 2, *options))


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> set[ops.GateMode]:
    """How gates are computed from here on, in encoders and decoders."""
    seen: set[ops.GateMode] = set()

    def watch(operator):
        def watched(*inputs, mode, **more):
            seen.add(mode)
            return operator(*inputs, mode=mode, **more)

        return watched

    monkeypatch.setattr(ops, "lstm_layer", watch(ops.lstm_layer))
    monkeypatch.setattr(ops, "decoder", watch(ops.decoder))
    return seen


def test_a_checkpoint_carries_the_last_updates_temperature(train: Callable[..., Path], checkpoint: Path):
    model, _ = load(checkpoint)
    assert model.gate_settings.temperature == 0.5
    assert model.encoder.lstm.temperature == model.decoder.layers[0].temperature == 0.5
    # six updates are done, numbered from 0
    model, _ = load(train("run", *SCHEDULE, "--max-update", 6) / "checkpoint_last.pt")
    assert model.gate_settings.temperature == pytest.approx(0.75)
    assert model.gate_settings.noise_prob == 0.2


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ({}, ops.GateMode(1.0)),
        ({"gate_eval_mode": "soft"}, ops.GateMode(1.0)),
        ({"gate_eval_mode": "tempered"}, ops.GateMode(0.5)),
        ({"gate_eval_mode": "hard"}, ops.GateMode(1.0, hard=True)),
        ({"gate_type": "sharpened"}, ops.GateMode(0.5)),
        ({"gate_eval_mode": "tempered", "gate_temperature": 0.3}, ops.GateMode(0.3)),
    ],
)
def test_generation_uses_the_mode_asked_for_at_the_temperature_carried(tiny_data, checkpoint, modes, overrides, mode):
    generate(tiny_data, checkpoint, "--model-overrides", str(overrides))
    assert modes == {mode}


@pytest.mark.parametrize(
    "average",
    [lambda values: sum([values] * 8) / 8, lambda values: values.float().double() * (1 + 1e-4)],
    ids=["average_checkpoints.py", "--ema-fp32"],
)
def test_an_average_of_checkpoints_carries_the_temperature_that_they_carry(checkpoint: Path, tmp_path: Path, average):
    state = read_checkpoint(checkpoint)
    values = state["model"]["gates.values"]
    average = average(values)
    assert average.ne(values).any()  # or this shows nothing
    state["model"]["gates.values"] = average
    write_checkpoint(state, tmp_path / "average.pt")
    settings = load(tmp_path / "average.pt")[0].gate_settings
    assert [settings.temperature, settings.noise_prob] == pytest.approx(average[:2].tolist())
    assert average.tolist() == pytest.approx(values.tolist(), rel=2e-4)


def test_a_checkpoint_of_a_plain_criterion_carries_the_option(train: Callable[..., Path]):
    folder = train("run", "--criterion", "cross_entropy", "--gate-temperature", 0.7, "--max-update", 2)
    model, _ = load(folder / "checkpoint_last.pt")
    assert (model.gate_settings.temperature, model.gate_settings.noise_prob) == (0.7, 0.2)


def types_in(state: Any) -> set[type]:
    """The types of everything in a nest of containers."""
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return {type(state)}.union(*map(types_in, parts))


@pytest.mark.parametrize("arch", ["g2lstm", "lstm"])
def test_checkpoints_of_runs_with_eval_bleu_load(train: Callable[..., Path], tiny_data, arch):
    checkpoint = train("run", *BLEU, "--max-update", 15, arch=arch) / "checkpoint_last.pt"
    types = types_in(torch.load(checkpoint, weights_only=False)["extra_state"])
    assert np.ndarray in types  # or this shows nothing
    model, _ = load(checkpoint)
    assert type(model).__name__ == {"g2lstm": "G2LSTMModel", "lstm": "LSTMModel"}[arch]
    generate(tiny_data, checkpoint)
    train("run", *BLEU, "--max-update", 16, arch=arch)


@pytest.mark.slow
def test_fairseq_generate_loads_a_run_with_eval_bleu_in_a_fresh_process(train, tiny_data, command):
    checkpoint = train("run", *BLEU, "--max-update", 15, arch="lstm") / "checkpoint_last.pt"
    done = command(
        "fairseq_cli.generate", tiny_data, "--user-dir", PLUGIN, "--cpu", "--path", checkpoint, "--num-workers", 0
    )
    assert done.returncode == 0, done.stderr
    assert "Generate test with beam=5: BLEU4" in done.stdout


class Foreign:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def with_foreign(state: Any, place: str, foreign: Foreign) -> Any:
    if place == "alone":
        return foreign
    folder = dict(state)
    parts = place.split("/")
    folder[parts[0]] = {**folder[parts[0]], parts[1]: foreign}
    return folder


CALLS = {
    "os.system": lambda target: Foreign(os.system, f"touch {target}"),
    "open": lambda target: Foreign(open, str(target), "w"),
    "exec": lambda target: Foreign(builtins.exec, f"open({str(target)!r}, 'w')"),
    "pathlib": lambda target: Foreign(Path.touch, Path(target)),
    "numpy": lambda target: Foreign(np.save, str(target), 0),
}
PLACES = ["extra_state/metrics", "model/decoder.fc_out.bias", "cfg/model", "last_optimizer_state/state", "alone"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("call", "place"), [*((c, PLACES[0]) for c in CALLS), *(("os.system", p) for p in PLACES[1:])])
def test_a_foreign_pickle_is_refused_before_it_runs(checkpoint, tmp_path, call, place, zipped):
    target = tmp_path / "created.npy"
    foreign = tmp_path / "foreign.pt"
    state = with_foreign(torch.load(checkpoint, weights_only=False), place, CALLS[call](target))
    torch.save(state, foreign, _use_new_zipfile_serialization=zipped)
    # An unsafe loader is caught here, so the rest shows something.
    torch.load(foreign, weights_only=False)
    assert target.exists()
    target.unlink()

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(foreign)
    with pytest.raises(ValueError, match=f"{foreign} holds Python objects that no fairseq checkpoint needs") as refusal:
        read_checkpoint(foreign)
    assert "\n" not in str(refusal.value)
    assert convert([str(foreign), str(tmp_path / "out.pt"), "--to", "lstm"]) == 1
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.pt"]


def test_generation_and_training_refuse_a_foreign_pickle_before_it_runs(checkpoint, tmp_path, tiny_data, train):
    state = with_foreign(
        torch.load(checkpoint, weights_only=False), PLACES[0], CALLS["os.system"](tmp_path / "created")
    )
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(pickle.UnpicklingError):
        generate(tiny_data, tmp_path / "foreign.pt")
    for option in ("--restore-file", "--finetune-from-model"):
        with pytest.raises(pickle.UnpicklingError):
            train("run", option, tmp_path / "foreign.pt")
    assert not (tmp_path / "created").exists()


def truncated(share: float) -> Callable[[Path, Path], None]:
    def write(path: Path, checkpoint: Path) -> None:
        whole = checkpoint.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return write


def saved(state: Any) -> Callable[[Path, Path], None]:
    return lambda path, _: torch.save(state, path)


NO_CHECKPOINT = "is (truncated|no torch file|no fairseq checkpoint)|truncated or no (torch file|fairseq checkpoint)"
BAD_FILES: dict[str, tuple[Callable[[Path, Path], Any], type[Exception], str]] = {
    "missing": (lambda path, _: None, FileNotFoundError, "no checkpoint at .*: give the path of a fairseq checkpoint"),
    "a folder": (lambda path, _: path.mkdir(), FileNotFoundError, "no checkpoint at "),
    "empty": (lambda path, _: path.touch(), ValueError, NO_CHECKPOINT),
    "first tenth": (truncated(0.1), ValueError, NO_CHECKPOINT),
    "first half": (truncated(0.5), ValueError, NO_CHECKPOINT),
    "nearly whole": (truncated(0.999), ValueError, NO_CHECKPOINT),
    "text": (lambda path, _: path.write_text("Ein Mann fährt Rad.\n" * 99), ValueError, NO_CHECKPOINT),
    "a dictionary": (lambda path, _: path.write_text("a 402\n, 300\n. 200\n"), ValueError, NO_CHECKPOINT),
    "zeros": (lambda path, _: path.write_bytes(bytes(4096)), ValueError, NO_CHECKPOINT),
    "a plain pickle": (lambda path, _: path.write_bytes(pickle.dumps({"model": {}})), ValueError, NO_CHECKPOINT),
    "a zip": (lambda path, _: ZipFile(path, "w").writestr("model", "weights"), ValueError, NO_CHECKPOINT),
    "a tensor": (saved(torch.zeros(3)), ValueError, NO_CHECKPOINT),
    "a list": (saved([1, 2]), ValueError, NO_CHECKPOINT),
    "a word": (saved("model"), ValueError, NO_CHECKPOINT),
    "a state dict": (saved({"weight": torch.zeros(3)}), ValueError, NO_CHECKPOINT),
    "another project's": (saved({"model": {"w": torch.zeros(3)}, "epoch": 3}), ValueError, NO_CHECKPOINT),
    "no model": (saved({"cfg": {"model": Namespace()}, "extra_state": {}}), ValueError, NO_CHECKPOINT),
    "model is a list": (saved({"cfg": {}, "model": [], "extra_state": {}}), ValueError, NO_CHECKPOINT),
    "no options": (saved({"cfg": None, "args": None, "model": {}, "best_loss": 1}), ValueError, NO_CHECKPOINT),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("to", ["g2lstm", "lstm"])
def test_what_is_no_checkpoint_gets_a_sentence_and_nothing_is_written(checkpoint, tmp_path, capsys, case, to):
    write, kind, sentence = BAD_FILES[case]
    path = tmp_path / "given.pt"
    write(path, checkpoint)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind, match=sentence) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert convert([str(path), str(tmp_path / "out.pt"), "--to", to]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_is_read_as_it_was_written_and_can_be_loaded(checkpoint, tmp_path):
    state = read_checkpoint(checkpoint)
    umask = os.umask(0o027)
    try:
        write_checkpoint(state, tmp_path / "copy.pt")
    finally:
        os.umask(umask)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.pt"]
    assert (tmp_path / "copy.pt").stat().st_mode & 0o777 == 0o640
    assert_identical(read_checkpoint(tmp_path / "copy.pt")["model"], state["model"])
    model, _ = load(tmp_path / "copy.pt")
    assert model.gate_settings.temperature == 0.5


def test_a_file_that_may_not_be_read_is_named(checkpoint, monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("fairseq_g2lstm.checkpoints.load_checkpoint_to_cpu", refuse)
    assert convert([str(checkpoint), "out.pt", "--to", "lstm"]) == 1
    assert capsys.readouterr().err == f"error: [Errno 13] Permission denied: '{checkpoint}'\n"


@pytest.mark.parametrize("before", [None, b"the checkpoint that was there"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, before, error):
    target = tmp_path / "out.pt"
    if before is not None:
        target.write_bytes(before)

    def fail(state, file):
        Path(file).write_bytes(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(error)):
        write_checkpoint({"model": {}}, target)
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["out.pt"])
    assert before is None or target.read_bytes() == before


def test_a_full_disk_is_an_error_line_of_the_command(tmp_path, monkeypatch, checkpoint, capsys):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert convert([str(checkpoint), str(tmp_path / "out.pt"), "--to", "lstm"]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_gets_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write out.pt to: create it first"):
        write_checkpoint({"model": {}}, tmp_path / "nowhere" / "out.pt")


def test_loading_never_turns_the_safe_unpickler_off(checkpoint, monkeypatch):
    asked = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k.get("weights_only")), original(*a, **k))[1])
    for read in (read_checkpoint, lambda path: checkpoint_utils.load_checkpoint_to_cpu(str(path))):
        asked.clear()
        read(checkpoint)
        assert asked and set(asked) <= {None, True}
