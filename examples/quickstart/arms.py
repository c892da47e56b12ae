"""The four trainings that the quickstart compares, as commands of fairseq, and their running.

The arms differ in nothing but the gates: same sizes, same recipe, same data, same seed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from examples.common.checkpoints import replace_cut_off
from examples.common.errors import UserError
from examples.common.files import part_path, write_text
from examples.common.stages import sha256_of
from examples.quickstart.machine import machine

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "fairseq_g2lstm"
ARMS = {
    "gumbel": "g2lstm, gumbel gates",
    "sharpened": "g2lstm, sharpened gates",
    "sigmoid": "g2lstm, sigmoid gates",
    "lstm": "fairseq's own lstm",
}


@dataclass(frozen=True)
class Recipe:
    """What all arms have in common.

    Attributes:
        updates: number of parameter updates.
        embed: size of the embeddings.
        units: hidden units of the decoder, and of each direction of the encoder.
        lr: highest learning rate, held for the middle three fifths of the updates.
        max_tokens: tokens in a batch at most.
        save_interval: updates between checkpoints.
        seed: of parameters, batches and noise.
    """

    updates: int
    embed: int
    units: int
    lr: float
    max_tokens: int
    save_interval: int
    seed: int


@cache
def device_options() -> tuple[str, ...]:
    """`--cpu` where torch sees no GPU."""
    return () if torch.cuda.is_available() else ("--cpu",)


def model_options(arm: str, recipe: Recipe) -> list[str]:
    """The options that choose an arm's model and criterion."""
    sizes = {"embed-dim": recipe.embed, "hidden-size": recipe.units, "layers": 1}
    options = [
        f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()
    ]
    options += [f"--decoder-out-embed-dim={recipe.embed}", "--share-all-embeddings"]
    # the corpus has no end, so nothing but the gates' noise need hold the model back
    options += ["--encoder-bidirectional", "--dropout=0"]
    if arm == "lstm":
        return ["--arch=lstm", *options, "--criterion=cross_entropy"]
    gates = ["--arch=g2lstm", f"--gate-type={arm}"]
    return [*gates, *options, "--criterion=g2lstm_cross_entropy", "--gate-log-interval=100"]


def train_command(arm: str, recipe: Recipe, data: Path, folder: Path) -> list[str]:
    """An arm's training as fairseq's command; called again, it goes on from checkpoint_last.pt."""
    return [
        *("python", "-m", "fairseq_cli.train", str(data), f"--user-dir={PLUGIN}"),
        *device_options(),
        "--distributed-world-size=1",  # or each of several GPUs would take a batch of its own
        *("--source-lang=de", "--target-lang=en"),
        *model_options(arm, recipe),
        *("--optimizer=adam", "--adam-betas=(0.9, 0.98)", f"--lr={recipe.lr}", "--clip-norm=1.0"),
        *("--lr-scheduler=tri_stage", "--phase-ratio=[0.05, 0.6, 0.35]"),
        *("--final-lr-scale=0.02", f"--max-update={recipe.updates}"),
        *(f"--max-tokens={recipe.max_tokens}", f"--seed={recipe.seed}"),
        *("--update-epoch-batch-itr=True", "--no-epoch-checkpoints"),
        *(f"--save-interval-updates={recipe.save_interval}", "--keep-interval-updates=1"),
        *("--log-format=json", "--log-interval=10", f"--save-dir={folder}"),
    ]


def generate_command(data: Path, folder: Path) -> list[str]:
    """Translates the test set with an arm's best checkpoint."""
    return [
        *("python", "-m", "fairseq_cli.generate", str(data), f"--user-dir={PLUGIN}"),
        *device_options(),
        *(f"--path={folder / 'checkpoint_best.pt'}", "--gen-subset=test"),
        # by default fairseq leaves out a set's last batch where its size is no multiple of eight
        *("--beam=5", "--remove-bpe", "--batch-size=128", "--required-batch-size-multiple=1"),
    ]


def printable(command: list[str], threads: int) -> str:
    """The command as a user would type it."""
    return f"OMP_NUM_THREADS={threads} {shlex.join(command)}"


@contextmanager
def _running(command: list[str], threads: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"},
        close_fds=False,  # it holds the folder's lock too, since it may outlive this process
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _run(
    command: list[str], threads: int, log: Path, mode: str, watch: Callable[[str], None]
) -> None:
    """Run fairseq, its output to `log` and line by line to `watch`.

    Raises:
        UserError: the command failed; the end of what it said is given.
    """
    with _running(command, threads) as process, log.open(mode, encoding="utf-8") as stream:
        assert process.stdout
        for line in process.stdout:
            stream.write(line)
            stream.flush()
            watch(line)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(f"{command[2]} failed with {process.returncode}; {log} ends with:\n{tail}")


def updates_and_loss(line: str) -> tuple[int, str] | None:
    """The number of updates and the loss (bits a token) that a line of fairseq's log tells."""
    if "| train_inner | {" not in line:
        return None
    with suppress(ValueError, KeyError):
        values = json.loads(line[line.index("{") :])
        return int(values["num_updates"]), str(values["loss"])
    return None


class Progress:
    """Shows how far one arm is, and what is left of all.

    Args:
        arm: its name.
        updates: of one training.
        before, after: number of arms before and after this one.
    """

    def __init__(self, arm: str, updates: int, before: int, after: int) -> None:
        self.title = f"[{before + 1}/{before + 1 + after}] {arm}"
        self.updates, self.after = updates, after
        self.first: tuple[int, float] | None = None
        self.told = -1
        self.terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        told = updates_and_loss(line)
        if told is None:
            return
        done, loss = told
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)
            return
        seconds = (now - self.first[1]) / max(1, done - self.first[0])
        left = seconds * (self.updates - done)
        text = f"{self.title}: {done} of {self.updates} updates, loss {loss}, {left:.0f} s left"
        if self.after:
            text += f", {(left + seconds * self.updates * self.after) / 60:.0f} min for all arms"
        if self.terminal:
            print(f"\r\033[K{text}", end="\n" if done >= self.updates else "", file=sys.stderr)
        elif done * 10 // self.updates > self.told:
            self.told = done * 10 // self.updates
            print(text, file=sys.stderr, flush=True)


def _identity(command: list[str], data: Path) -> dict[str, Any]:
    """What a training is begun with: the command, and the data's contents."""
    files = [path for path in sorted(data.iterdir()) if path.suffix != ".log"]
    return {"command": command, "data": {path.name: sha256_of(path) for path in files}}


def _same_training(text: str, identity: dict[str, Any]) -> bool:
    """Whether what a folder tells of its training is this one, wherever the folders are and on whatever device."""
    with suppress(ValueError, KeyError, TypeError):
        return _placeless(json.loads(text)) == _placeless(identity)
    return False


def _placeless(identity: dict[str, Any]) -> dict[str, Any]:
    python, flag, module, _, *options = identity["command"]
    options = [option for option in options if option != "--cpu" and not option.startswith("--save-dir=")]
    return {**identity, "command": [python, flag, module, *options]}


def train(
    arm: str, recipe: Recipe, data: Path, folder: Path, threads: int, before: int, after: int
) -> None:
    """Train one arm, or go on with it, or leave it as it is where it is finished.

    Args:
        arm: a key of ARMS.
        recipe: what it has in common with the others.
        data: the data-bin folder.
        folder: for its checkpoints and train.log.
        threads: of torch.
        before, after: number of arms before and after this one, for the display.

    Raises:
        UserError: fairseq failed.
    """
    command = train_command(arm, recipe, data, folder)
    identity = _identity(command, data)
    started, finished = folder / "started.json", folder / "finished.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not started.exists() or not _same_training(started.read_text(encoding="utf-8"), identity):
        if started.exists():
            print(f"{arm}: its options or its data changed, so it starts over")
        for pattern in ("checkpoint*.pt", "train.log", "generate-test.txt", finished.name):
            for stale in folder.glob(pattern):
                stale.unlink()
        write_text(started, json.dumps(identity, indent=1))
    if finished.exists():
        print(f"{arm}: finished before, kept ({folder})")
        return
    if (folder / "checkpoint_last.pt").exists():
        replace_cut_off(folder)
        print(f"{arm}: goes on from {folder / 'checkpoint_last.pt'}")
    print(printable(command, threads), flush=True)
    progress = Progress(arm, recipe.updates, before, after)
    _run(command, threads, folder / "train.log", "a", progress)
    write_text(finished, json.dumps(machine(threads), ensure_ascii=False) + "\n")


def finished_on(folder: Path) -> dict[str, Any] | None:
    """The machine of the call that finished a training, None where an earlier version finished it."""
    return json.loads((folder / "finished.json").read_text(encoding="utf-8")) or None


def translate(data: Path, folder: Path, threads: int) -> Path:
    """Translate the test set with an arm's best checkpoint, unless done before.

    Returns:
        The log of fairseq-generate.

    Raises:
        UserError: fairseq failed.
    """
    log = folder / "generate-test.txt"
    if log.exists():
        print(f"{log}: kept")
        return log
    command = generate_command(data, folder)
    print(printable(command, threads), flush=True)
    _run(command, threads, part_path(log), "w", lambda line: None)
    os.replace(part_path(log), log)
    return log
