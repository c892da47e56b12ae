"""A checkpoint's score and speed on a data set, by fairseq-generate or fairseq-eval-lm as a user types them."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from examples.common.errors import UserError
from examples.common.files import part_path, write_text
from examples.common.generate_log import read_translations
from examples.common.machine import processor
from examples.common.stages import Stages
from fairseq_g2lstm import ops
from fairseq_g2lstm.compress.evaluate import bleu
from fairseq_g2lstm.compress.study import p_value

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_g2lstm"
UNPACKED = "--model-overrides={'packed_weights': 'unpack'}"
SUBWORDS = "@@ "  # the segmentation of subword-nmt, which --remove-bpe means by itself
BLOCK_LENGTH = 70  # tokens; the state is carried from block to block, so that it decides the speed alone
_SENTENCES_PER_SECOND = re.compile(r"Translated [\d,]+ sentences .*\(([\d.]+) sentences/s")
_TOKENS_PER_SECOND = re.compile(r"Evaluated [\d,]+ tokens in .*\(([\d.]+) tokens/s\)")
_PERPLEXITY = re.compile(r"Perplexity: ([\d.]+)")


@dataclass(frozen=True)
class Settings:
    """What all evaluations have in common.

    Attributes:
        data: the data-bin folder.
        is_language_model: whether perplexity is measured, not BLEU.
        split: the data set.
        beam: hypotheses of beam search.
        batch_size: sentences of a batch, or rows of a text.
        segmentation: of a translation's words, as fairseq-generate's --remove-bpe takes it.
    """

    data: Path
    is_language_model: bool
    split: str
    beam: int
    batch_size: int
    segmentation: str = SUBWORDS

    @property
    def metric(self) -> str:
        return "perplexity" if self.is_language_model else "BLEU"

    @property
    def unit(self) -> str:
        """Of speed."""
        return "tokens/s" if self.is_language_model else "sentences/s"

    def files(self) -> list[Path]:
        """Of the data, what an evaluation reads."""
        dictionaries = self.data.glob("dict*.txt")
        return sorted([*dictionaries, *self.data.glob(f"{self.split}.*bin"), *self.data.glob(f"{self.split}.*idx")])

    def command(self, checkpoint: Path, *more: str) -> list[str]:
        """fairseq's command."""
        plugin = PLUGIN.name if Path.cwd() == PLUGIN.parent else str(PLUGIN)
        module = "fairseq_cli.eval_lm" if self.is_language_model else "fairseq_cli.generate"
        command = ["python", "-m", module, str(self.data), f"--user-dir={plugin}", "--cpu", f"--path={checkpoint}"]
        # without workers: with one, torch 2.6 was seen to abort a command after the last line of its result
        command += [f"--gen-subset={self.split}", f"--batch-size={self.batch_size}", "--num-workers=0"]
        if self.is_language_model:
            return [*command, "--task=g2lstm_language_modeling", f"--tokens-per-sample={BLOCK_LENGTH}", *more]
        # by default fairseq leaves out a set's last batch where its size is no multiple of eight
        joined = "--remove-bpe" if self.segmentation == SUBWORDS else f"--remove-bpe={self.segmentation}"
        return [*command, f"--beam={self.beam}", joined, "--required-batch-size-multiple=1", *more]


@dataclass(frozen=True)
class Result:
    """What fairseq's command said.

    Attributes:
        value: BLEU by sacrebleu of the text as it is tokenised, or perplexity.
        change: from the float32 model.
        p_value: of a change of BLEU, by paired bootstrap; None of perplexity and of the float32 model.
        speed: sentences/s or tokens/s, fairseq's own figure.
        machine: that it ran on, a sentence; "" where an earlier version did not keep it.
    """

    value: float
    change: float
    p_value: float | None
    speed: float
    machine: str = ""

    def sentence(self, metric: str) -> str:
        p = "" if self.p_value is None else f", p = {self.p_value:.3f}"
        return f"{metric} {self.value:.2f} ({self.change:+.2f}{p})"


def log_of(checkpoint: Path, unpacked: bool) -> Path:
    """Where fairseq's output about a checkpoint is kept."""
    return checkpoint.with_name(f"{checkpoint.stem}-{'unpacked' if unpacked else 'kept'}.txt")


def evaluate(stages: Stages, settings: Settings, checkpoint: Path, own: Path, unpacked: bool = False) -> Result:
    """Evaluates a checkpoint of the output folder, unless that was done before.

    Args:
        stages: of the output folder.
        settings: what all evaluations have in common.
        checkpoint: a packed one, or the float32 model's.
        own: the float32 model's, evaluated first.
        unpacked: put packed weights back to float32, and do not compute with them as they are stored.

    Raises:
        UserError: fairseq's command failed; the end of what it said is given.
    """
    log = log_of(checkpoint, unpacked)
    kept = log.with_suffix(".json")

    def work() -> None:
        command = settings.command(checkpoint, *([UNPACKED] if unpacked else []))
        print(shlex.join(command), flush=True)
        _run(command, log)
        result = replace(_read(settings, log, log_of(own, False)), machine=machine())
        write_text(kept, json.dumps(asdict(result), indent=1) + "\n")

    options = {"beam": settings.beam, "batch_size": settings.batch_size, "unpacked": unpacked}
    if settings.segmentation != SUBWORDS:
        options["segmentation"] = settings.segmentation
    own_log = [] if checkpoint == own else [log_of(own, False)]
    stages.run(
        f"evaluate-{checkpoint.parent.name}-{log.stem}",
        work,
        inputs=[checkpoint, *own_log, *settings.files()],
        outputs=[log, kept],
        options=options,
    )
    return Result(**json.loads(kept.read_text(encoding="utf-8")))


def machine() -> str:
    """The machine and the versions that an evaluation runs on, in a sentence, and whether it unpacks all integers."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ve-fairseq", "sacrebleu"))
    n_threads = torch.get_num_threads()
    unpacks = "" if ops.integer_products() else (
        " Kept integers are unpacked too: the kernels that multiply them are not built."
    )
    return (
        f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), {len(os.sched_getaffinity(0))} cores, "
        f"{n_threads} thread{'s' if n_threads > 1 else ''}; Python {platform.python_version()}, {packages}.{unpacks}"
    )


def _read(settings: Settings, log: Path, own_log: Path) -> Result:
    if settings.is_language_model:
        value, own = (_number(_PERPLEXITY, path) for path in (log, own_log))
        return Result(value, value - own, None, _number(_TOKENS_PER_SECOND, log))
    found = read_translations(log)
    value, speed = bleu(found.hypotheses, found.references), _number(_SENTENCES_PER_SECOND, log)
    if log == own_log:
        return Result(value, 0.0, None, speed)
    own_hypotheses = read_translations(own_log).hypotheses
    change = value - bleu(own_hypotheses, found.references)
    return Result(value, change, p_value(own_hypotheses, found.hypotheses, found.references), speed)


def _number(pattern: re.Pattern[str], log: Path) -> float:
    numbers = pattern.findall(log.read_text(encoding="utf-8"))
    if not numbers:
        raise UserError(f"{log} does not tell what fairseq measured; delete it and run again")
    return float(numbers[-1])


def _run(command: list[str], log: Path) -> None:
    """Runs fairseq, all that it says to `log`; of a failure it stands in `log.part`, of an interruption nowhere."""
    part = part_path(log)
    environment = {**os.environ, "LOGLEVEL": "INFO", "PYTHONUTF8": "1", "PYTHONWARNINGS": "ignore"}
    with part.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                [sys.executable, *command[1:]], stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
        except BaseException:
            part.unlink()
            raise
    if done.returncode:
        tail = "\n".join(part.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise UserError(f"{command[2]} failed with {done.returncode}; {part} ends with:\n{tail}")
    os.replace(part, log)
