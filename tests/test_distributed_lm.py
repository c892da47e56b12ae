"""A text read by two ranks: each its own rows, all their states in the checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from lm_runs import RECIPE, lm_options, train_lm
from tiny_runs import assert_identical, rendezvous

from fairseq_g2lstm.checkpoints import State, read_checkpoint

pytestmark = pytest.mark.slow

JOINED = ["--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
STILL = ["--gate-noise-prob", 0, "--dropout", 0]
LAST = 12


def train_ranks(data: Path, folder: Path, *options: object) -> Path:
    """Two ranks of two rows each train one model; returns the folder of its checkpoints."""
    given = lm_options(data, folder / "run", "--batch-size", 2, "--max-update", LAST, *options)
    given += ["--distributed-world-size", "2", "--distributed-init-method", rendezvous(folder), *JOINED]
    command = [sys.executable, "-m", "fairseq_cli.train", *given, "--distributed-rank"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with open(log, "w") as output:
                processes.append(
                    subprocess.Popen(
                        [*command, str(rank)], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return folder / "run"


def carried(state: State) -> dict:
    return state["extra_state"]["G2LSTMLanguageModelingTask"]["carried"]


def test_two_ranks_of_two_rows_train_what_one_of_four_trains(tiny_text: Path, tmp_path: Path):
    ranks = train_ranks(tiny_text, tmp_path, *STILL)
    one = train_lm(tiny_text, tmp_path / "one", *STILL, "--batch-size", 4, "--max-update", LAST)
    found, expected = (read_checkpoint(folder / "checkpoint_last.pt") for folder in (ranks, one))
    for name, weight in expected["model"].items():
        torch.testing.assert_close(found["model"][name], weight, rtol=1e-4, atol=1e-6)
    # rank 1's rows follow rank 0's
    assert carried(found)["block"] == carried(expected)["block"] == LAST
    for name in "hc":
        for state, whole in zip(carried(found)[name], carried(expected)[name], strict=True):
            torch.testing.assert_close(state, whole, rtol=1e-4, atol=1e-6)


# the second draws the blocks' lengths, and stops after the averaging has begun
@pytest.mark.parametrize(
    ("options", "n_rows", "middle", "last"),
    [([], 4, 7, LAST), ([*RECIPE, "--batch-size", 4], 8, 125, 132)],
    ids=["sgd", "nt_asgd"],
)
def test_two_ranks_go_on_inside_an_epoch_bit_for_bit(
    tiny_text: Path, tmp_path: Path, options: list[object], n_rows: int, middle: int, last: int
):
    (tmp_path / "whole").mkdir()
    (tmp_path / "rest").mkdir()
    options = [*options, "--max-update", last]
    whole = train_ranks(tiny_text, tmp_path / "whole", *options, "--save-interval-updates", middle)
    (stopped,) = whole.glob(f"checkpoint_*_{middle}.pt")
    state = read_checkpoint(stopped)
    assert state["extra_state"]["train_iterator"]["iterations_in_epoch"] > 0
    assert state["last_optimizer_state"].get("averaging", True)
    assert all(len(h) == n_rows for h in carried(state)["h"])  # of both ranks
    rest = train_ranks(tiny_text, tmp_path / "rest", *options, "--restore-file", stopped)
    found, expected = (read_checkpoint(folder / "checkpoint_last.pt") for folder in (rest, whole))
    for part in ("model", "last_optimizer_state"):
        assert_identical(found[part], expected[part], part)
    assert_identical(carried(found), carried(expected))
