"""The study of compressions, on a translation model and a language model of tiny texts."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import train_in_process, train_options
from fairseq.data import Dictionary
from lm_runs import eval_lm, train_lm
from tiny_runs import generation_config

from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.compress import Evaluator, Selection, compressed, parse, study, uniform_plan
from fairseq_g2lstm.compress.__main__ import main
from fairseq_g2lstm.compress.evaluate import segmentation_of

COMPRESSIONS = ["round:0.5", "rank:2", "int:4"]


@pytest.fixture(scope="module")
def translation(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translation")
    train_in_process(train_options(tiny_data, folder, "g2lstm", "--max-update", 120, "--encoder-bidirectional"))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def stock(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    train_in_process(train_options(tiny_data, folder, "lstm", "--max-update", 30))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def language_model(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lm(tiny_text, tmp_path_factory.mktemp("lm"), "--max-epoch", 2) / "checkpoint_last.pt"


def generated(data: Path, checkpoint: Path) -> list[str]:
    """fairseq-generate's own translations, beam 5."""
    import io

    from fairseq_cli.generate import _main

    output = io.StringIO()
    options = [data, "--path", checkpoint, "--beam", 5, "--batch-size", 128, "--required-batch-size-multiple", 1]
    _main(generation_config(*options, "--remove-bpe"), output)
    found = dict(
        line[2:].split("\t", 1) for line in output.getvalue().splitlines() if line.startswith("H-")
    )
    return [found[number].split("\t")[1] for number in sorted(found, key=int)]


def test_the_translations_are_fairseq_generates(tiny_data: Path, translation: Path):
    score = Evaluator(translation, tiny_data).score()
    assert score.metric == "BLEU" and score.hypotheses == generated(tiny_data, translation)


def test_the_perplexity_is_fairseq_eval_lms(tiny_text: Path, language_model: Path):
    score = Evaluator(language_model, tiny_text, batch_size=3).score()
    assert score.metric == "perplexity"
    expected = eval_lm(tiny_text, language_model, "--batch-size", 3)
    assert score.value == pytest.approx(float(expected["perplexity"]), 1e-5)


def test_a_compressed_models_score_is_that_of_a_checkpoint_with_its_weights(
    tiny_data: Path, translation: Path, tmp_path: Path
):
    transform, selection = parse("round:0.5"), Selection()
    evaluator = Evaluator(translation, tiny_data)
    found = evaluator.score(compressed(evaluator.weights, uniform_plan(evaluator.weights, transform, selection)))
    state = read_checkpoint(translation)
    state["model"] |= compressed(state["model"], uniform_plan(state["model"], transform, selection))
    torch.save(state, tmp_path / "rounded.pt")
    assert found.hypotheses == generated(tiny_data, tmp_path / "rounded.pt")
    assert evaluator.score().hypotheses == generated(tiny_data, translation), "the model is as it was"


def test_only_the_selected_rows_change(translation: Path):
    weights = read_checkpoint(translation)["model"]
    changed = compressed(weights, uniform_plan(weights, parse("round:0.5"), Selection()))
    assert changed and all(name.split(".")[-1].startswith("weight_") for name in changed)
    for name, weight in changed.items():
        half = len(weight) // 2
        assert torch.equal(weight[half:], weights[name][half:]) and not torch.equal(weight[:half], weights[name][:half])


def test_a_study_holds_models_beside_each_other_and_goes_on_where_it_was(
    tiny_data: Path, translation: Path, stock: Path, tmp_path: Path, monkeypatch
):
    lines: list[str] = []
    models = {"ours": translation, "stock": stock}
    cells = study({"ours": translation}, tiny_data, tmp_path, COMPRESSIONS, report=lines.append)
    assert [cell.compression for cell in cells] == ["float32", *COMPRESSIONS] and len(lines) == 4
    assert cells[0].change == 0 and cells[0].p_value is None
    for cell in cells[1:]:
        assert cell.change == cell.value - cells[0].value and 0 < cell.p_value <= 1
        assert cell.model_bytes == cells[0].model_bytes - cells[0].part_bytes + cell.part_bytes
    again = study(models, tiny_data, tmp_path, COMPRESSIONS, report=lines.append)
    assert again[:4] == cells and [cell.model for cell in again[4:]] == ["stock"] * 4
    monkeypatch.setattr(Evaluator, "score", None)
    assert study(models, tiny_data, tmp_path, COMPRESSIONS, report=lines.append) == again


def test_the_command_writes_table_csv_and_picture(tiny_text: Path, language_model: Path, tmp_path: Path, capsys):
    arguments = ["study", str(language_model), "--names", "tiny", "--data", str(tiny_text), "--out", str(tmp_path)]
    arguments += ["--compressions", *COMPRESSIONS, "--gates", "all", "--batch-size", "4"]
    assert main(arguments) == 0
    table = (tmp_path / "study.md").read_text()
    assert table in capsys.readouterr().out and "| tiny, perplexity |" in table
    with open(tmp_path / "study.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["compression"] for row in rows] == ["float32", *COMPRESSIONS]
    assert (tmp_path / "study.png").stat().st_size > 10_000
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json")]
    assert {cell["compression"] for cell in kept} == {"float32", *COMPRESSIONS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--compressions": ["int:9"]}, "must be an integer, 2 to 8"),
        ({"--compressions": ["clip:0.5:0.4"]}, "must be at least the step, got 'clip:0.5:0.4'"),
        ({"--split": ["odd"]}, "no file of the split"),
        ({"--names": ["a", "b"]}, "--names must be 1 different names"),
        ({"--names": ["a", "a"]}, "--names must be 1 different names"),
        ({"--data": ["nowhere"]}, "no file of the split"),
    ],
)
def test_a_mistake_ends_with_one_line(tiny_data, translation, tmp_path, capsys, change, message):
    options = {"--data": [str(tiny_data)], "--out": [str(tmp_path)], "--compressions": ["int:4"], **change}
    arguments = ["study", str(translation)]
    for name, values in options.items():
        arguments += [name, *values]
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_study_of_nothing_but_the_model_itself_has_no_picture(tiny_data, translation, tmp_path):
    given = [str(translation), "--data", str(tiny_data), "--out", str(tmp_path), "--compressions", "float32"]
    assert main(["study", *given]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "study.md", "study.csv"}


def test_a_model_given_twice_is_refused(tiny_data, translation, tmp_path, capsys):
    assert main(["study", str(translation), str(translation), "--data", str(tiny_data), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == "error: a checkpoint is named twice: give each once, or tell them apart by --names\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [(["a@@", "b", "c"], "ab c"), (["▁a", "b", "▁c"], "ab c"), (["a", "b", "c"], "a b c"), (["a@@", "b", "▁"], "ab ▁")],
    ids=["subword-nmt", "sentencepiece", "words", "an odd word"],
)
def test_pieces_of_words_are_put_together_for_the_score(symbols, expected):
    dictionary = Dictionary()
    tokens = torch.tensor([dictionary.add_symbol(symbol) for symbol in symbols])
    assert dictionary.string(tokens, segmentation_of(dictionary)) == expected


def test_a_missing_checkpoint_is_named(tiny_data: Path, tmp_path: Path, capsys):
    assert main(["study", "nowhere.pt", "--data", str(tiny_data), "--out", str(tmp_path)]) == 1
    assert "no checkpoint at nowhere.pt" in capsys.readouterr().err
