"""The benchmark of packed weights, by both kinds of models in small."""

import json
from pathlib import Path

import pytest
from conftest import run_module
from operator_cases import needs_kernels
from test_compress_study import language_model, translation  # noqa: F401  - fixtures

from benchmarks.tables import packed_markdown

pytestmark = needs_kernels
PACKINGS = ["int:8, whole model", "rank:64, layers"]


def benchmark(data: Path, checkpoint: Path, folder: Path) -> tuple[dict, str]:
    done = run_module(
        *("benchmarks.run", "packed", "--smoke", "--threads", 1, "--data", data, "--checkpoint", checkpoint),
        *("--rows", 8, 1, "--packings", *PACKINGS, "--work", folder / "work", "--out", folder / "out"),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "out" / "results.json").read_text())
    table = (folder / "out" / "results.md").read_text()
    assert result["complete"] and table in done.stdout and table == packed_markdown(result)
    assert str(folder) not in table and [row["rows"] for row in result["decoding"]] == [8, 1]
    for row in result["decoding"]:
        assert set(row["speed"]) == {"float32", *PACKINGS}
        assert row["speed"][PACKINGS[0]]["bar"] == "≥ 1" and row["speed"][PACKINGS[1]]["bar"] is None
    sizes = result["bytes"]
    assert sizes[PACKINGS[0]]["file"] == (folder / "work/packed/int-8--whole-model.pt").stat().st_size
    # the tiny models' matrices are smaller as they are than with 64 columns
    assert sizes[PACKINGS[1]]["memory"] == sizes["float32"]["memory"] > sizes[PACKINGS[0]]["memory"]
    return result, table


@pytest.mark.slow
def test_packed_translation_models_are_compared(tiny_data, translation, tmp_path):  # noqa: F811
    result, table = benchmark(tiny_data, translation, tmp_path)
    for row in result["decoding"]:
        # the test set has 40 sentences, and a rank that makes nothing smaller changes nothing
        assert row["same"]["float32"] == row["same"][PACKINGS[1]] == 40
    assert "sentences/s, 8 sentences a batch" in table


@pytest.mark.slow
def test_packed_language_models_are_compared(tiny_text, language_model, tmp_path):  # noqa: F811
    result, table = benchmark(tiny_text, language_model, tmp_path)
    for row in result["decoding"]:
        assert row["perplexity"][PACKINGS[1]] == row["perplexity"]["float32"]
        assert row["perplexity"][PACKINGS[0]] == pytest.approx(row["perplexity"]["float32"], rel=0.01)
    assert "tokens/s, 8 rows a batch" in table


def test_a_stock_checkpoint_is_refused_with_a_sentence(tiny_data, tmp_path):
    from conftest import train_in_process, train_options

    train_in_process(train_options(tiny_data, tmp_path, "lstm", "--max-update", 1))
    checkpoint = tmp_path / "checkpoint_last.pt"
    done = run_module("benchmarks.run", "packed", "--data", tiny_data, "--checkpoint", checkpoint)
    assert done.returncode != 0 and "is of lstm: give a g2lstm or g2lstm_lm, or convert it first" in done.stderr
