"""The example that makes a report of the quickstart's models."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_module, train_in_process, train_options

from examples.common.errors import UserError
from examples.gates.run import report_arguments


@pytest.fixture
def quickstart(tiny_data: Path, tmp_path: Path) -> Path:
    """A folder as the quickstart leaves it, with two of its four models."""
    folder = tmp_path / "quickstart"
    options = ["--gate-type", "sharpened", "--gate-log-interval", 3, "--disable-validation"]
    train_in_process(train_options(tiny_data, folder / "sharpened", "g2lstm", *options))
    (folder / "sharpened" / "checkpoint_last.pt").rename(folder / "sharpened" / "checkpoint_best.pt")
    (folder / "lstm").mkdir()
    shutil.copy(folder / "sharpened" / "checkpoint_best.pt", folder / "lstm")
    shutil.copytree(tiny_data, folder / "data-bin")
    return folder


def test_the_report_shows_the_models_that_are_there_and_how_their_gates_moved(quickstart, tmp_path):
    out = tmp_path / "gates"
    done = run_module("examples.gates.run", "--quickstart", quickstart, "--out", out, "--max-sentences", 12)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("python -m fairseq_g2lstm.gates ")
    page = (out / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert [model["name"] for model in data["models"]] == ["sharpened", "lstm"]
    updates = [[point[0] for point in line["points"]] for line in data["models"][0]["moments"]]
    assert updates == [[0, 3, 6, 9]] * len(updates) and updates and data["models"][1]["moments"] == []


def test_without_trained_models_a_sentence_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match="no trained model in .*: make them with python -m examples.quickstart.run"):
        report_arguments(tmp_path, tmp_path / "out", [])
    done = run_module("examples.gates.run", "--quickstart", tmp_path)
    assert done.returncode == 1 and done.stderr.strip().endswith("--quickstart")


def test_a_report_that_cannot_be_made_ends_with_a_status(quickstart, tmp_path):
    done = run_module("examples.gates.run", "--quickstart", quickstart, "--out", tmp_path, "--split", "other")
    assert done.returncode == 1 and "error: no split 'other'" in done.stderr


def test_the_examples_pictures_are_in_the_documents():
    for name in ("gates-report.png", "gates-moves.png"):
        assert (ROOT / "docs" / name).read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / name).stat().st_size < 300_000
