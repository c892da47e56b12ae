"""Trainings and translations by fairseq's commands, each in a process of its own, and what their logs tell."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, shown
from examples.common.errors import UserError
from examples.common.files import read_lines

PLUGIN = ROOT / "fairseq_g2lstm"
# The arms: fairseq's own model, and the plugin's of the same sizes.
ARMS = {
    "lstm": ("--arch", "lstm_wiseman_iwslt_de_en", "--criterion", "label_smoothed_cross_entropy"),
    "g2lstm": (
        *("--user-dir", str(PLUGIN), "--arch", "g2lstm_iwslt", "--gate-type", "gumbel"),
        *("--criterion", "g2lstm_label_smoothed_cross_entropy"),
    ),
}
ENCODERS = {"one": (), "two": ("--encoder-bidirectional",)}
PRECISIONS = {"float32": (), "float16": ("--fp16",)}
RECIPE = (
    *("--dropout", "0.3", "--encoder-dropout-in", "0.3", "--encoder-dropout-out", "0.3"),
    *("--decoder-dropout-in", "0.3", "--decoder-dropout-out", "0.3", "--label-smoothing", "0.1"),
    *("--optimizer", "adam", "--clip-norm", "1.0"),
    *("--lr", "2e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "400"),
    *("--seed", "1", "--update-epoch-batch-itr", "True", "--disable-validation"),
)
SMALL = tuple(
    word
    for side in ("encoder", "decoder")
    for name in ("embed-dim", "hidden-size")
    for word in (f"--{side}-{name}", "16")
) + ("--decoder-out-embed-dim", "16")


@dataclass(frozen=True)
class Interval:
    """What fairseq logged of some updates: their number, the target tokens in them without padding, the seconds."""

    updates: int
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        intervals: what was logged after the warm-up.
        peak_memory: bytes, resident or, on CUDA, allocated by torch.
    """

    intervals: tuple[Interval, ...]
    peak_memory: int

    @property
    def tokens_per_second(self) -> float:
        """Target tokens a second over all intervals."""
        return sum(part.tokens for part in self.intervals) / sum(part.seconds for part in self.intervals)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        intervals = [asdict(interval) for interval in self.intervals]
        return {"tokens_per_s": self.tokens_per_second, "peak_memory": self.peak_memory, "intervals": intervals}


@dataclass(frozen=True)
class Translation:
    """One run of fairseq-generate: sentences a second as it says, and its hypotheses in the order of the data."""

    sentences_per_second: float
    sentences: int
    hypotheses: tuple[str, ...]


def run_fairseq(name: str, arguments: Sequence[str], log: Path, *, device: str, threads: int) -> int:
    """Runs a command of fairseq.

    Args:
        name: "train" or "generate".
        arguments: the command's.
        log: file for all it says.
        device: "cpu" or "cuda".
        threads: of torch.

    Returns:
        Its peak memory, bytes: resident on the CPU, allocated by torch on CUDA.

    Raises:
        UserError: the command failed; the end of what it said is given.
    """
    arguments = [*arguments, *(("--cpu",) if device == "cpu" else ())]
    print(f"OMP_NUM_THREADS={threads} {shlex.join([f'fairseq-{name}', *map(shown, arguments)])}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    peak = log.with_suffix(".peak.json")
    peak.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"}
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fairseq_process", str(peak), name, *arguments],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    if done.returncode or not peak.exists():
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(f"fairseq-{name} failed with {done.returncode}; {log} ends with:\n{tail}")
    return json.loads(peak.read_text())["resident" if device == "cpu" else "cuda"]


def train(
    arm: str,
    data: Path,
    log: Path,
    options: Sequence[str],
    *,
    updates: int,
    interval: int,
    warmup: int,
    device: str,
    threads: int,
) -> Training:
    """Trains an arm without validation or checkpoints.

    Args:
        arm: a key of ARMS.
        data: the data-bin folder.
        log: file for what fairseq says.
        options: beside the arm's and the recipe's.
        updates: in all.
        interval: updates between lines of the log.
        warmup: updates at the beginning that are not counted, at least one interval.
        device: "cpu" or "cuda".
        threads: of torch.
    """
    arguments = [str(data), *ARMS[arm], *RECIPE, *options, "--no-save", "--max-update", str(updates)]
    arguments += ["--log-format", "json", "--log-interval", str(interval)]
    peak = run_fairseq("train", arguments, log, device=device, threads=threads)
    return Training(tuple(read_intervals(log, interval, warmup)), peak)


def read_intervals(log: Path, interval: int, warmup: int) -> list[Interval]:
    """What fairseq-train logged with `--log-format json`.

    Args:
        log: its log.
        interval: updates between its lines.
        warmup: updates at the beginning that are not counted.

    Raises:
        UserError: no interval lies behind the warm-up.
    """
    found = []
    for line in read_lines(log):
        if "| train_inner | {" not in line:
            continue
        values = json.loads(line[line.index("{") :])
        # wpb is the mean of target tokens in a batch, wps that of a second; fairseq starts both anew at each line
        tokens = float(values["wpb"]) * interval
        if int(values["num_updates"]) > max(warmup, interval):
            found.append(Interval(interval, tokens, tokens / float(values["wps"])))
    if not found:
        raise UserError(f"{log} has no line behind the first {warmup} updates: raise --updates or lower --interval")
    return found


def translate(checkpoint: Path, data: Path, log: Path, *, device: str, threads: int) -> Translation:
    """Translates the test set with beam 5."""
    arguments = [str(data), "--user-dir", str(PLUGIN), "--path", str(checkpoint), "--gen-subset", "test"]
    arguments += ["--beam", "5", "--batch-size", "128", "--required-batch-size-multiple", "1"]
    run_fairseq("generate", arguments, log, device=device, threads=threads)
    return read_translation(log)


def read_translation(log: Path) -> Translation:
    """What fairseq-generate logged.

    Raises:
        UserError: the line with its speed or the hypotheses are missing.
    """
    hypotheses: dict[int, str] = {}
    speed = None
    for line in read_lines(log):
        if line.startswith("H-"):
            number, _, text = line.split("\t", 2)
            hypotheses.setdefault(int(number[2:]), text)
        speed = re.search(r"Translated ([\d,]+) sentences .*\(([\d.]+) sentences/s", line) or speed
    if speed is None or not hypotheses:
        raise UserError(f"{log} does not tell what was translated in which time; run again")
    count = int(speed[1].replace(",", ""))
    return Translation(float(speed[2]), count, tuple(hypotheses[number] for number in sorted(hypotheses)))
