"""A training that is stopped and called again goes on as if it had never been stopped, bit for bit on the CPU."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, train_in_process, train_options
from tiny_runs import assert_identical

from fairseq_g2lstm.checkpoints import State, read_checkpoint

# 15 updates make an epoch of the tiny corpus, so update 33 lies in the third. Everything that moves with the updates or
# draws random numbers takes part: both schedules, the learning rate, dropout, noise and the order of the batches.
LAST = 33
RECIPE = ["--encoder-bidirectional", "--dropout", 0.3, "--clip-norm", 1.0]
RECIPE += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", 20, "--warmup-init-lr", 0.001]
RECIPE += ["--gate-temperature-schedule", "cosine", "--gate-temperature-start", 1.0]
RECIPE += ["--gate-temperature-end", 0.5, "--gate-temperature-updates", 30]
RECIPE += ["--gate-noise-schedule", "exponential", "--gate-noise-start", 0.5]
RECIPE += ["--gate-noise-end", 0.1, "--gate-noise-updates", 25, "--gate-stats-interval", 4]


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> State:
    """The last checkpoint of the training that nobody stops."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_in_process(train_options(tiny_data, folder, "g2lstm", *RECIPE, "--max-update", LAST))
    return read_checkpoint(folder / "checkpoint_last.pt")


def position(state: State) -> tuple[int, int, int]:
    """Epoch, batches read of it, and updates done."""
    iterator = state["extra_state"]["train_iterator"]
    return iterator["epoch"], iterator["iterations_in_epoch"], state["optimizer_history"][-1]["num_updates"]


def assert_same_training(found: State, expected: State) -> None:
    assert position(found) == position(expected)
    for part in ("model", "last_optimizer_state"):
        assert_identical(found[part], expected[part], part)


# where it is stopped, and epoch, batches read and updates in the checkpoint then
STOPS = {
    "within epoch 1": (["--max-update", 7], (1, 7, 7)),
    "at the last update of epoch 1": (["--max-update", 15], (2, 0, 15)),
    "at the end of epoch 1": (["--max-epoch", 1], (2, 0, 15)),
    "within epoch 2": (["--max-update", 22], (2, 7, 22)),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_training_goes_on_as_if_never_stopped(train: Callable[..., Path], uninterrupted: State, stop: str):
    limit, where = STOPS[stop]
    folder = train("run", *RECIPE, "--max-update", LAST, *limit)
    stopped = read_checkpoint(folder / "checkpoint_last.pt")
    assert position(stopped) == where
    assert not torch.equal(stopped["model"]["decoder.fc_out.weight"], uninterrupted["model"]["decoder.fc_out.weight"])
    train("run", *RECIPE, "--max-update", LAST)
    assert_same_training(read_checkpoint(folder / "checkpoint_last.pt"), uninterrupted)


def test_a_training_may_be_stopped_again_and_again(train: Callable[..., Path], uninterrupted: State):
    for max_update in (1, 16, 30, LAST):
        folder = train("run", *RECIPE, "--max-update", max_update)
    assert_same_training(read_checkpoint(folder / "checkpoint_last.pt"), uninterrupted)


def test_gradients_gathered_over_two_batches_resume_too(train: Callable[..., Path]):
    options = [*RECIPE, "--update-freq", 2]
    expected = train("whole", *options, "--max-update", 13) / "checkpoint_last.pt"
    for max_update in (5, 13):  # an epoch has 8 updates
        found = train("stopped", *options, "--max-update", max_update) / "checkpoint_last.pt"
    assert_same_training(read_checkpoint(found), read_checkpoint(expected))


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(
    tiny_data: Path, tmp_path: Path, train: Callable[..., Path], uninterrupted: State
):
    options = train_options(tiny_data, tmp_path / "run", "g2lstm", *RECIPE, "--max-update", 10**6)
    options += ["--save-interval-updates", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fairseq_cli.train", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "run" / "checkpoint_2_20.pt"
    deadline = time.monotonic() + 600
    try:
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
    assert checkpoint.exists() and process.wait() == -signal.SIGKILL
    folder = train("again", *RECIPE, "--max-update", LAST, "--restore-file", checkpoint)
    assert_same_training(read_checkpoint(folder / "checkpoint_last.pt"), uninterrupted)
