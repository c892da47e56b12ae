"""Checkpoints of stock `lstm_lm` as `g2lstm_lm` and back, and what both compute then."""

from pathlib import Path

import pytest
from conftest import train_in_process
from lm_runs import eval_lm, stock_lm_options, train_lm
from omegaconf import OmegaConf
from tiny_runs import assert_identical

from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.convert import main
from fairseq_g2lstm.loading import load_model

STOCK_TASK = ["--task", "language_modeling"]


def converted(checkpoint: Path, target: Path, to: str) -> Path:
    assert main([str(checkpoint), str(target), "--to", to]) == 0
    return target


def loss(data: Path, checkpoint: Path) -> float:
    return float(eval_lm(data, checkpoint, *STOCK_TASK)["loss"])


@pytest.fixture(scope="module")
def stock(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of stock `lstm_lm`, its layers of other units than its outputs."""
    folder = tmp_path_factory.mktemp("stock")
    train_in_process(stock_lm_options(tiny_text, folder, "--max-epoch", 2))
    return folder / "checkpoint_last.pt"


def test_a_stock_model_computes_the_same_as_a_g2lstm_lm(tiny_text: Path, tmp_path: Path, stock: Path):
    ours = converted(stock, tmp_path / "ours.pt", "g2lstm")
    assert loss(tiny_text, ours) == pytest.approx(loss(tiny_text, stock), rel=1e-5)


def test_there_and_back_leaves_the_weights_as_they_were(tmp_path: Path, stock: Path):
    ours = converted(stock, tmp_path / "ours.pt", "g2lstm")
    back = converted(ours, tmp_path / "back.pt", "lstm")
    assert_identical(read_checkpoint(back)["model"], read_checkpoint(stock)["model"])


@pytest.mark.parametrize("gate_type", ["gumbel", "sharpened"])
def test_a_g2lstm_lm_computes_the_same_as_a_stock_model(tiny_text: Path, tmp_path: Path, gate_type: str):
    sizes = ["--decoder-layer-sizes", "9,9", "--gate-type", gate_type, "--gate-temperature", 0.5, "--max-epoch", 2]
    ours = train_lm(tiny_text, tmp_path, *sizes) / "checkpoint_last.pt"
    stock = converted(ours, tmp_path / "stock.pt", "lstm")
    assert loss(tiny_text, stock) == pytest.approx(loss(tiny_text, ours), rel=1e-5)
    _, task = load_model(ours, tiny_text)
    criterion = task.build_criterion(OmegaConf.create(read_checkpoint(stock)["cfg"]["criterion"]))
    assert type(criterion).__name__ == "CrossEntropyCriterion"


def test_a_model_of_fairseqs_own_task_loads_whatever_its_blocks_were(tiny_text: Path, tmp_path: Path):
    blocks = ["--sample-break-mode", "complete", "--shorten-method", "truncate", "--max-update", 1]
    ours = train_lm(tiny_text, tmp_path, *STOCK_TASK, *blocks) / "checkpoint_last.pt"
    model, _ = load_model(ours, tiny_text)
    assert_identical(dict(model.state_dict()), read_checkpoint(ours)["model"])


@pytest.mark.parametrize("options", [["--add-bos-token"], ["--output-dictionary-size", 9]])
def test_a_model_of_another_text_is_refused_with_the_reason(tiny_text: Path, tmp_path: Path, options):
    ours = train_lm(tiny_text, tmp_path, *STOCK_TASK, *options, "--max-update", 1) / "checkpoint_last.pt"
    with pytest.raises(ValueError, match=f"was trained with {options[0]}, .*--task language_modeling$"):
        load_model(ours, tiny_text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the stock lstm_lm has layers of one size: these have 9, 8 units"),
        (
            ["--decoder-layer-sizes", "9,9", "--share-decoder-input-output-embed", "--decoder-output-bias"],
            "the stock lstm_lm has no bias of tied outputs",
        ),
    ],
)
def test_what_the_stock_model_lacks_is_said(tiny_text: Path, tmp_path: Path, capsys, options, message):
    ours = train_lm(tiny_text, tmp_path, *options, "--max-update", 1) / "checkpoint_last.pt"
    assert main([str(ours), str(tmp_path / "stock.pt"), "--to", "lstm"]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "stock.pt").exists()
