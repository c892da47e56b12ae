"""The bitext example's scripts on a tiny text: training, going on and translating; and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_module, train_options
from tiny_runs import assert_identical

from examples.bitext.same_training import identity
from examples.common.errors import UserError
from examples.common.fairseq_log import sessions_of
from examples.common.fairseq_options import settings_of
from examples.common.same_training import check_same_training
from fairseq_g2lstm.checkpoints import read_checkpoint

TINY = ["--encoder-embed-dim", 8, "--encoder-hidden-size", 8, "--decoder-embed-dim", 8, "--decoder-hidden-size", 8]
TINY += ["--decoder-out-embed-dim", 8, "--max-tokens", 400, "--num-workers", 0]


def script(name: str, *given: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", f"examples/bitext/{name}", *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.slow
def test_a_model_is_trained_goes_on_and_translates(tiny_data: Path, tmp_path: Path):
    runs = [tmp_path / "first", tmp_path / "second"]

    def train(run: Path, *options: object) -> subprocess.CompletedProcess[str]:
        return script("train.sh", tiny_data, run, "g2lstm_iwslt", *TINY, *options)

    for run, n_epochs in zip(runs, (2, 1), strict=True):
        done = train(run, "--max-epoch", n_epochs)
        assert done.returncode == 0, done.stdout + done.stderr
    done = train(runs[1], "--max-epoch", 2, "--gate-type", "sigmoid")
    assert done.returncode == 1 and "second holds a training with other options (gate_type gumbel)" in done.stderr
    done = train(runs[1], "--max-epoch", 2)
    assert done.returncode == 0 and "Loaded checkpoint" in done.stdout, done.stdout + done.stderr
    assert len(sessions_of(runs[1] / "train.log")) == 2
    states = [read_checkpoint(run / "checkpoint_last.pt") for run in runs]
    for part in ("model", "last_optimizer_state"):
        assert_identical(states[1][part], states[0][part], part)

    for run in runs:
        done = script("generate.sh", tiny_data, run, "--gen-subset", "valid", "--beam", 2, "--num-workers", 0)
        assert done.returncode == 0, done.stderr
        assert "BLEU" in done.stdout
        n_lines = [len((run / f"valid.{kind}").read_text().splitlines()) for kind in ("hyp", "ref")]
        assert n_lines[0] == n_lines[1] > 0
        assert not list(run.glob("*.part"))

    done = script("generate.sh", tiny_data, runs[0], "--gen-subset", "nowhere")
    assert done.returncode == 1 and done.stderr.endswith("generate-nowhere.log\n")
    assert "error: fairseq-generate failed" in done.stderr and not list(runs[0].glob("generate-nowhere.txt*"))


@pytest.fixture
def trained(tiny_data: Path, tmp_path: Path) -> Path:
    """A folder whose log tells of a training of `g2lstm`."""
    settings = settings_of(train_options(tiny_data, tmp_path, "g2lstm", "--dropout", 0.1))
    lines = [f"| INFO | fairseq_cli.train | {settings}", "| INFO | fairseq.trainer | No existing checkpoint found x"]
    (tmp_path / "train.log").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ([], None),
        (["--max-update", 90, "--max-epoch", 7, "--max-tokens", 300, "--update-freq", 2, "--log-interval", 9], None),
        (["--gate-type", "sigmoid", "--dropout", 0.3], "dropout 0.1, gate_type gumbel"),
        (["--gate-noise-schedule", "linear", "--gate-noise-end", 0, "--gate-noise-updates", 9],
         "gate_noise_schedule constant"),
        (["--seed", 2, "--lr", 0.5], "seed 1, lr [0.01]"),
        (["--optimizer", "sgd"], "optimizer adam"),
        (["--adam-eps", 1e-7, "--sentence-avg"], "adam_eps 1e-08, sentence_avg False"),
        (["--source-lang", "de"], None),
    ],
    ids=str,
)  # fmt: skip
def test_a_training_with_other_options_is_told(tiny_data: Path, trained: Path, options: list[object], changed):
    arguments = train_options(tiny_data, trained, "g2lstm", "--dropout", 0.1, *options)
    if changed is None:
        check_same_training(trained, arguments, identity)
    else:
        with pytest.raises(UserError) as told:
            check_same_training(trained, arguments, identity)
        assert f"holds a training with other options ({changed});" in str(told.value)


def test_an_option_that_an_earlier_version_did_not_have_is_no_other(tiny_data: Path, trained: Path):
    log = trained / "train.log"
    log.write_text(re.sub(r"'gate_noise_sharing': '\w+', ", "", log.read_text()))
    more = ["--gate-noise-sharing", "mask"]
    check_same_training(trained, train_options(tiny_data, trained, "g2lstm", "--dropout", 0.1, *more), identity)


def test_the_check_is_a_command(tiny_data: Path, trained: Path):
    arguments = train_options(tiny_data, trained, "g2lstm", "--dropout", 0.4)
    done = run_module("examples.bitext.same_training", trained, *arguments)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "(dropout 0.1)" in done.stderr
