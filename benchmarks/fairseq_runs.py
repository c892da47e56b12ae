"""fairseq's commands, each in a process of its own, and what their logs tell."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, shown
from examples.common.errors import UserError
from examples.common.files import read_lines

PLUGIN = ROOT / "fairseq_g2lstm"
# from fairseq's scale of 128 on, the arms could skip other first updates, and so have other batches
PRECISIONS = {"float32": (), "float16": ("--fp16", "--fp16-init-scale", "4")}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint that the user gave.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read.
    """
    from fairseq_g2lstm.checkpoints import read_checkpoint

    try:
        return read_checkpoint(checkpoint)
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True)
class Process:
    """A process that ended well: how long it ran, and its peak memory, resident or, on CUDA, allocated by torch."""

    seconds: float
    peak_memory: int


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


@dataclass(frozen=True)
class Evaluation:
    """One run of fairseq-eval-lm: tokens and tokens a second as it says, and the seconds of the whole process."""

    tokens: int
    tokens_per_second: float
    perplexity: float
    process_seconds: float


def run_fairseq(name: str, arguments: Sequence[str], log: Path, *, device: str, threads: int) -> Process:
    """Runs a command of fairseq, on CUDA without TF32: cuDNN's LSTM has it by default, products have not.

    Args:
        name: "train", "generate", "eval_lm" or "preprocess".
        arguments: the command's.
        log: file for all it says.
        device: "cpu" or "cuda".
        threads: of torch.

    Raises:
        UserError: the command failed; the end of what it said is given.
    """
    arguments = [*arguments, *(("--cpu",) if device == "cpu" else ())]
    command = f"fairseq-{name.replace('_', '-')}"
    print(f"OMP_NUM_THREADS={threads} {shlex.join([command, *map(shown, arguments)])}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    peak = log.with_suffix(".peak.json")
    peak.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"}
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fairseq_process", str(peak), name, *arguments],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    seconds = time.perf_counter() - start
    if done.returncode or not peak.exists():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise UserError(f"{command} failed with {done.returncode}; {log} ends with:\n{tail}")
    return Process(seconds, json.loads(peak.read_text())["resident" if device == "cpu" else "cuda"])


def train(
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
    """Trains without writing checkpoints.

    Args:
        data: the data-bin folder.
        log: file for what fairseq says.
        options: of fairseq-train, beside those of its length, log and checkpoints.
        updates: in all.
        interval: updates between lines of the log.
        warmup: updates at the beginning that are not counted, at least one interval.
        device: "cpu" or "cuda".
        threads: of torch.
    """
    # fairseq writes a file to the folder of checkpoints, to try it, even with --no-save
    arguments = [str(data), "--save-dir", str(log.parent / "unused"), *options, "--no-save"]
    arguments += ["--max-update", str(updates), "--log-format", "json", "--log-interval", str(interval)]
    process = run_fairseq("train", arguments, log, device=device, threads=threads)
    return Training(tuple(read_intervals(log, interval, warmup)), process.peak_memory)


def train_checkpoint(
    data: Path, log: Path, options: Sequence[str], folder: Path, *, updates: int, device: str, threads: int
) -> Path:
    """Trains for some updates, and writes a checkpoint at the end in place of what was in the folder.

    Returns:
        The checkpoint's path.
    """
    for stale in folder.glob("*.pt"):
        stale.unlink()
    arguments = [str(data), *options, "--max-update", str(updates), "--save-dir", str(folder)]
    arguments += ["--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "10"]
    run_fairseq("train", arguments, log, device=device, threads=threads)
    return folder / "checkpoint_last.pt"


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


def translate(
    checkpoint: Path, data: Path, log: Path, *, device: str, threads: int, batch_size: int = 128
) -> Translation:
    """Translates the test set with beam 5."""
    arguments = [str(data), "--user-dir", str(PLUGIN), "--path", str(checkpoint), "--gen-subset", "test"]
    arguments += ["--beam", "5", "--batch-size", str(batch_size), "--required-batch-size-multiple", "1"]
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


def evaluate(
    checkpoint: Path,
    data: Path,
    log: Path,
    *,
    task: str,
    n_rows: int,
    block_length: int,
    device: str,
    threads: int,
) -> Evaluation:
    """Evaluates a language model on the test set, in blocks of `block_length` tokens of `n_rows` rows."""
    arguments = [str(data), "--user-dir", str(PLUGIN), "--task", task, "--path", str(checkpoint)]
    arguments += ["--gen-subset", "test", "--batch-size", str(n_rows), "--tokens-per-sample", str(block_length)]
    arguments += ["--num-workers", "0", "--no-progress-bar"]
    process = run_fairseq("eval_lm", arguments, log, device=device, threads=threads)
    return read_evaluation(log, process.seconds)


def read_evaluation(log: Path, process_seconds: float) -> Evaluation:
    """What fairseq-eval-lm logged.

    Raises:
        UserError: the line with its speed or that with the perplexity is missing.
    """
    speed = perplexity = None
    for line in read_lines(log):
        speed = re.search(r"Evaluated ([\d,]+) tokens in .*\(([\d.]+) tokens/s\)", line) or speed
        perplexity = re.search(r"Perplexity: (\S+)$", line) or perplexity
    if speed is None or perplexity is None:
        raise UserError(f"{log} does not tell what was evaluated in which time; run again")
    count = int(speed[1].replace(",", ""))
    return Evaluation(count, float(speed[2]), float(perplexity[1]), process_seconds)
