"""Bad input as a user meets it: a sentence, a non-zero exit, and nothing half-written.

Options are parsed and models built as fairseq-train does, in this process; a few commands start one of their own. What
the model, the criterions, the modules and the conversion say of arguments in Python stands in their own tests.
"""

import re
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_module, train_in_process, train_options
from fairseq import options as fairseq_options

from fairseq_g2lstm.analysis import gate_histograms
from fairseq_g2lstm.checkpoints import read_checkpoint, write_checkpoint
from fairseq_g2lstm.loading import load_model


def last_line(done: subprocess.CompletedProcess) -> str:
    return done.stderr.strip().splitlines()[-1]


def left_behind(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = ["--max-update", 1, "--disable-validation", "--no-epoch-checkpoints"]
    train_in_process(train_options(tiny_data, folder, "g2lstm", *options))
    return folder / "checkpoint_last.pt"


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny corpus that a test may damage."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data-bin"))


# Options: argparse refuses what is none of the choices or no number (exit status 2), the plugin what is out of range.

REFUSED_BY_THE_PARSER = {
    "--gate-type binary": "argument --gate-type: invalid choice: 'binary'.*gumbel.*sharpened.*sigmoid",
    "--gate-eval-mode loud": "argument --gate-eval-mode: invalid choice: 'loud'.*auto.*soft.*tempered.*hard",
    "--gate-noise-sharing epoch": "argument --gate-noise-sharing: invalid choice: 'epoch'.*step.*mask.*sequence",
    "--gate-temperature-schedule step": "--gate-temperature-schedule: invalid choice: 'step'.*constant.*cosine",
    "--gate-noise-schedule step": "argument --gate-noise-schedule: invalid choice: 'step'.*constant.*cosine",
    "--gate-temperature cold": "argument --gate-temperature: invalid float value: 'cold'",
    "--gate-temperature-updates 2.5": "argument --gate-temperature-updates: invalid int value: '2.5'",
}
REFUSED_BY_THE_MODEL = {
    "--gate-temperature 0": "--gate-temperature must be > 0 and finite, got 0.0",
    "--gate-temperature=-1": "--gate-temperature must be > 0 and finite, got -1.0",
    "--gate-temperature nan": "--gate-temperature must be > 0 and finite, got nan",
    "--gate-noise-prob 1.5": "--gate-noise-prob must be a probability between 0 and 1, got 1.5",
    "--gate-noise-prob=-0.1": "--gate-noise-prob must be a probability between 0 and 1, got -0.1",
    "--dropout 1.5": "--dropout must be a probability between 0 and 1, got 1.5",
    "--encoder-dropout-in 2": "--encoder-dropout-in must be a probability between 0 and 1, got 2.0",
    "--encoder-layers 2 --decoder-layers 1": "--encoder-layers must equal --decoder-layers.*got 2 and 1",
    "--decoder-hidden-size 0": "--decoder-hidden-size must be > 0, got 0",
    "--decoder-attention maybe": "--decoder-attention must be 1 or 0, got 'maybe'",
    "--share-all-embeddings": "--share-all-embeddings needs one dictionary.*preprocess with --joined-dictionary",
    "--encoder-embed-path nowhere": "--encoder-embed-path must be a file of embeddings, got nowhere",
}
REFUSED_BY_THE_CRITERION = {
    "--gate-temperature-start 0": "--gate-temperature-start must be > 0 and finite, got 0.0",
    "--gate-temperature-schedule linear": "--gate-temperature-schedule linear needs --gate-temperature-end, got none",
    "--gate-temperature-schedule cosine --gate-temperature-end 0.5": "needs --gate-temperature-updates, got none",
    "--gate-temperature-schedule linear --gate-temperature-end 0.5 --gate-temperature-updates 0": (
        "--gate-temperature-updates must be > 0, got 0: the schedule would end before it starts"
    ),
    "--gate-temperature-end 0.5": "--gate-temperature-end needs --gate-temperature-schedule linear.*got constant",
    "--gate-noise-start 2": "--gate-noise-start must be a probability between 0 and 1, got 2.0",
    "--gate-noise-schedule linear --gate-noise-end 1.1 --gate-noise-updates 5": (
        "--gate-noise-end must be a probability between 0 and 1, got 1.1"
    ),
    "--gate-noise-schedule exponential --gate-noise-end 0 --gate-noise-updates 5": (
        "--gate-noise-schedule exponential needs a start and an end > 0"
    ),
    "--gate-stats-interval=-1": "--gate-stats-interval must be >= 0 .*got -1",
}


@pytest.mark.parametrize("options", REFUSED_BY_THE_PARSER)
def test_choices_and_numbers_are_checked_by_the_parser(tiny_data, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stopped:
        train_in_process(train_options(tiny_data, tmp_path / "saved", "g2lstm", *options.split()))
    assert stopped.value.code == 2
    assert re.search(REFUSED_BY_THE_PARSER[options], capsys.readouterr().err.splitlines()[-1])
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("options", REFUSED_BY_THE_MODEL | REFUSED_BY_THE_CRITERION)
def test_what_is_outside_its_range_gets_a_sentence(tiny_data, tmp_path, options):
    sentence = (REFUSED_BY_THE_MODEL | REFUSED_BY_THE_CRITERION)[options]
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as refused:
        train_in_process(train_options(tiny_data, tmp_path / "saved", "g2lstm", *options.split()))
    assert "\n" not in str(refused.value)
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_fairseq_train_ends_with_the_sentence_and_a_non_zero_status(tiny_data, tmp_path):
    options = train_options(tiny_data, tmp_path / "saved", "g2lstm", "--encoder-layers", 2, "--decoder-layers", 1)
    done = run_module("fairseq_cli.train", *options)
    assert done.returncode == 1
    assert re.fullmatch("ValueError: --encoder-layers must equal --decoder-layers, .*: got 2 and 1", last_line(done))
    assert left_behind(tmp_path) == []


# Data


def test_a_missing_data_folder_stops_training_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        train_in_process(train_options(tmp_path / "nowhere", tmp_path / "saved"))
    assert left_behind(tmp_path) == []


def test_a_missing_dictionary_stops_training_and_leaves_nothing(data, tmp_path):
    (data / "dict.de.txt").unlink()
    with pytest.raises(FileNotFoundError, match="dict.de.txt"):
        train_in_process(train_options(data, tmp_path / "saved"))
    assert left_behind(tmp_path / "saved") == []


def cut_short(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


@pytest.mark.slow
def test_training_with_a_truncated_dictionary_gets_a_sentence(data, tmp_path):
    lines = (data / "dict.en.txt").read_text().splitlines(keepends=True)
    (data / "dict.en.txt").write_text("".join(lines[:9]))
    done = run_module("fairseq_cli.train", *train_options(data, tmp_path / "saved"))
    assert done.returncode != 0
    # 20 words and fairseq's 4 signs, numbered from 0
    sentence = "the data hold a token number 23, the dictionary only 13 types: it is truncated, or not the one that"
    assert sentence in done.stderr
    # What fairseq itself writes for a post-mortem after an exception in an update.
    assert set(left_behind(tmp_path / "saved")) <= {"crash.pt"}


@pytest.mark.parametrize("side", ["src_tokens", "prev_output_tokens"])
def test_tokens_outside_the_dictionary_get_a_sentence(checkpoint, tiny_data, side):
    model, _ = load_model(checkpoint, tiny_data)
    net_input = {"src_tokens": torch.full((2, 3), 4), "prev_output_tokens": torch.full((2, 3), 4)}
    net_input[side] = torch.tensor([[4, 5, 6], [4, 24, 6]])
    with pytest.raises(ValueError, match="the data hold a token number 24, the dictionary only 24 types"):
        model(src_lengths=torch.tensor([3, 3]), **net_input)


DAMAGE_TO_DATA = {
    "missing dictionary": (lambda data: (data / "dict.en.txt").unlink(), "does not load with the dictionaries of"),
    "truncated dictionary": (
        lambda data: cut_short(data / "dict.en.txt", 0.5),
        "does not load with the dictionaries of",
    ),
    "no files": (lambda data: [path.unlink() for path in data.iterdir()], "does not load with the dictionaries of"),
    "missing split": (
        lambda data: [path.unlink() for path in data.glob("valid.*")],
        "no split 'valid' in .*: give one that fairseq-preprocess has made",
    ),
    "missing half of a split": (
        lambda data: [path.unlink() for path in data.glob("valid.de-en.en.*")],
        "no split 'valid' in .*: give one that fairseq-preprocess has made",
    ),
    "truncated tokens": (
        lambda data: cut_short(data / "valid.de-en.de.bin", 0.9),
        "split 'valid' of .* holds no sentence or is truncated",
    ),
    "truncated target": (
        lambda data: cut_short(data / "valid.de-en.en.bin", 0.9),
        "split 'valid' of .* holds no sentence or is truncated",
    ),
    "empty tokens": (
        lambda data: (data / "valid.de-en.de.bin").write_bytes(b""),
        "split 'valid' of .* holds no sentence or is truncated",
    ),
    "empty index": (
        lambda data: (data / "valid.de-en.de.idx").write_bytes(b""),
        "split 'valid' of .* holds no sentence or is truncated",
    ),
}


# fairseq's data set of a truncated file complains once more when it is thrown away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGE_TO_DATA)
def test_histograms_of_damaged_data_get_a_sentence_that_names_the_folder(data, checkpoint, damage):
    inflict, sentence = DAMAGE_TO_DATA[damage]
    inflict(data)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as refused:
        gate_histograms(checkpoint, data)
    assert str(data) in str(refused.value)


def test_histograms_of_a_split_without_sentences_get_a_sentence(tiny_data, checkpoint, tmp_path):
    from fairseq_cli.preprocess import main as preprocess

    for language in ("de", "en"):
        (tmp_path / f"empty.{language}").touch()
    options = ["-s=de", "-t=en", f"--validpref={tmp_path / 'empty'}", f"--destdir={tmp_path / 'data-bin'}"]
    options += [f"--srcdict={tiny_data / 'dict.de.txt'}", f"--tgtdict={tiny_data / 'dict.en.txt'}"]
    preprocess(fairseq_options.get_preprocessing_parser().parse_args(options))
    with pytest.raises(ValueError, match="split 'valid' of .* holds no sentence"):
        gate_histograms(checkpoint, tmp_path / "data-bin")


def test_histograms_of_a_missing_folder_get_a_sentence(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder .*nowhere: give the data-bin folder of"):
        gate_histograms(checkpoint, tmp_path / "nowhere")


@pytest.mark.parametrize("number", [0, -1])
def test_histograms_need_at_least_one_sentence(tiny_data, checkpoint, number):
    with pytest.raises(ValueError, match=f"max_sentences must be >= 1, got {number}"):
        gate_histograms(checkpoint, tiny_data, max_sentences=number)


# Checkpoints


def damaged(checkpoint: Path, folder: Path, damage: str) -> Path:
    path = folder / "damaged.pt"
    if damage == "missing":
        return path
    shutil.copy(checkpoint, path)
    if damage == "text":
        path.write_text("This is no checkpoint.\n")
    elif damage == "of weights alone":
        torch.save({"weight": torch.zeros(2)}, path)
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        cut_short(path, {"empty": 0.0, "cut in two": 0.5, "cut at the end": 0.999}[damage])
    return path


DAMAGE_TO_CHECKPOINTS = {
    "missing": "no checkpoint at .*damaged.pt: give the path of a fairseq checkpoint",
    "a folder": "no checkpoint at .*damaged.pt: give the path of a fairseq checkpoint",
    "empty": "damaged.pt is truncated or no",
    "cut in two": "damaged.pt is truncated or no",
    "cut at the end": "damaged.pt is truncated or no",
    "text": "damaged.pt is truncated or no",
    "of weights alone": "damaged.pt is (truncated or )?no fairseq checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGE_TO_CHECKPOINTS)
def test_histograms_of_damaged_checkpoints_get_a_sentence(tiny_data, checkpoint, tmp_path, damage):
    path = damaged(checkpoint, tmp_path, damage)
    with pytest.raises((ValueError, FileNotFoundError), match=DAMAGE_TO_CHECKPOINTS[damage]):
        gate_histograms(path, tiny_data)


@pytest.mark.parametrize("damage", ["missing", "cut in two"])
def test_generation_from_a_damaged_checkpoint_fails_and_leaves_nothing(tiny_data, checkpoint, tmp_path, damage):
    from fairseq_cli.generate import main

    path = damaged(checkpoint, tmp_path, damage)
    options = [tiny_data, "--user-dir", ROOT / "fairseq_g2lstm", "--cpu", "--path", path, "--num-workers", 0]
    options += ["--results-path", tmp_path / "results"]
    parser = fairseq_options.get_generation_parser()
    arguments = fairseq_options.parse_args_and_arch(parser, input_args=[str(option) for option in options])
    told = {"missing": "not found", "cut in two": "Invalid argument|PytorchStreamReader"}[damage]
    with pytest.raises((OSError, RuntimeError), match=told):
        main(arguments)
    # Its own words stand, and the file of results that it opened at the start holds no translation.
    results = tmp_path / "results" / "generate-test.txt"
    assert not re.search(r"^[HD]-", results.read_text() if results.exists() else "", re.MULTILINE)


@pytest.mark.slow
def test_conversion_of_a_truncated_checkpoint_ends_with_one_line_and_leaves_nothing(checkpoint, tmp_path):
    path = damaged(checkpoint, tmp_path, "cut in two")
    done = run_module("fairseq_g2lstm.convert", path, tmp_path / "out.pt", "--to", "lstm")
    assert done.returncode == 1
    assert last_line(done).startswith(f"error: {path} is truncated or no")
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == ["damaged.pt"]


def test_a_checkpoint_of_a_task_that_is_not_set_up_here_gets_a_sentence(tiny_data, checkpoint, tmp_path):
    state = read_checkpoint(checkpoint)
    state["cfg"]["task"] = Namespace(task="translation_multi_simple_epoch", data="elsewhere")
    write_checkpoint(state, tmp_path / "multi.pt")
    with pytest.raises(ValueError, match=r"multi\.pt was trained under --task translation_multi_simple_epoch, which"):
        load_model(tmp_path / "multi.pt", tiny_data)


def test_histograms_of_another_model_get_a_sentence(tiny_data, checkpoint, tmp_path):
    state = read_checkpoint(checkpoint)
    state["cfg"]["model"]["_name"] = "transformer"
    torch.save(state, tmp_path / "transformer.pt")
    with pytest.raises(ValueError, match="takes a checkpoint of the stock lstm or lstm_lm, got one of transformer"):
        gate_histograms(tmp_path / "transformer.pt", tiny_data)
