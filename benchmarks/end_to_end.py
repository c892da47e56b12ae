"""Training and translating with fairseq's own `lstm` and with `g2lstm` of the same sizes, on the same batches."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.bars import END_TO_END_BARS, Bar
from benchmarks.fairseq_runs import (
    ARMS,
    ENCODERS,
    PRECISIONS,
    RECIPE,
    SMALL,
    Training,
    Translation,
    run_fairseq,
    train,
    translate,
)
from benchmarks.tables import end_to_end_markdown
from benchmarks.timing import Spread, ratio
from examples.common.errors import UserError
from examples.common.files import write_text
from examples.common.stages import sha256_of

Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is trained and how.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch.
        data: a data-bin folder of fairseq.
        checkpoint: of a trained stock `lstm`, or None to train one.
        encoders: keys of ENCODERS.
        precisions: keys of PRECISIONS.
        repeats: trainings and translations of each arm.
        updates: of each timed training.
        interval: updates between lines of its log.
        warmup: updates at its beginning that are not counted.
        decode_updates: of the training of a checkpoint to translate with.
        max_tokens: in a batch.
        small: whether the models have 16 units, to see that everything works.
        work: folder for logs, checkpoints and generated data.
        out: folder for results.json and results.md.
    """

    device: str
    threads: int
    data: Path
    checkpoint: Path | None
    encoders: Sequence[str]
    precisions: Sequence[str]
    repeats: int
    updates: int
    interval: int
    warmup: int
    decode_updates: int
    max_tokens: int
    small: bool
    work: Path
    out: Path

    @property
    def bars(self) -> dict[str, Bar]:
        """What is promised on the device; nothing of small models."""
        return {} if self.small else END_TO_END_BARS[self.device]

    @property
    def options(self) -> tuple[str, ...]:
        """Of all trainings."""
        return ("--max-tokens", str(self.max_tokens), *(SMALL if self.small else ()))


def embedded_corpus(work: Path, smoke: bool) -> Path:
    """The quickstart's corpus of spelled-out numbers, dates and times, made once.

    Returns:
        Its data-bin folder.
    """
    from examples.quickstart.run import parse_arguments, prepare

    return prepare(parse_arguments(["--smoke"] if smoke else []), work / ("corpus-smoke" if smoke else "corpus"))


def run(settings: Settings) -> Result:
    """Trains and translates; writes results.json after each part, results.md at the end.

    Returns:
        What stands in results.json.

    Raises:
        UserError: fairseq failed.
    """
    result: Result = {
        "benchmark": "end-to-end",
        "complete": False,
        **machine.describe(settings.device, settings.threads),
        "settings": {
            "data": describe_data(settings.data),
            "arms": {arm: shlex.join(map(machine.shown, options)) for arm, options in ARMS.items()},
            "recipe": shlex.join([*RECIPE, *settings.options]),
            "updates": settings.updates,
            "warmup": max(settings.warmup, settings.interval),
            "interval": settings.interval,
            "repeats": settings.repeats,
        },
        "training": [],
        "translation": None,
    }
    for precision in settings.precisions:
        for encoder in settings.encoders:
            result["training"].append(compare_training(settings, encoder, precision))
            _write(result, settings.out)
    result["translation"] = compare_translation(settings)
    result["complete"] = True
    _write(result, settings.out)
    write_text(settings.out / "results.md", end_to_end_markdown(result))
    return result


def describe_data(data: Path) -> Result:
    """What tells one data-bin folder from another: sizes of its dictionaries, checksums of its training text."""
    dictionaries = sorted(data.glob("dict.*.txt"))
    training = sorted(data.glob("train.*.bin"))
    if not dictionaries or not training:
        raise UserError(f"{data} is no folder that fairseq-preprocess wrote: it lacks dict.LANG.txt or train.*.bin")
    return {
        "types": {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in dictionaries},
        "sha256": {path.name: sha256_of(path) for path in training},
    }


def compare_training(settings: Settings, encoder: str, precision: str) -> Result:
    """Trains both arms in turns, with an encoder of one direction or of two."""
    options = [*ENCODERS[encoder], *PRECISIONS[precision], *settings.options]
    runs: dict[str, list[Training]] = {arm: [] for arm in ARMS}
    for number in range(settings.repeats):
        for arm in ARMS:
            training = train(
                arm,
                settings.data,
                settings.work / "logs" / f"train-{encoder}-{precision}-{arm}-{number}.log",
                options,
                updates=settings.updates,
                interval=settings.interval,
                warmup=settings.warmup,
                device=settings.device,
                threads=settings.threads,
            )
            runs[arm].append(training)
            print(f"  {training.tokens_per_second:,.0f} target tokens/s, {training.peak_memory / 2**20:,.0f} MiB")
    tokens = {tuple(interval.tokens for interval in run.intervals) for arm in ARMS for run in runs[arm]}
    speeds = {arm: Spread(tuple(run.tokens_per_second for run in runs[arm])) for arm in ARMS}
    memory = {arm: Spread(tuple(float(run.peak_memory) for run in runs[arm])) for arm in ARMS}
    return {
        "encoder": encoder,
        "precision": precision,
        "same_batches": len(tokens) == 1,
        "tokens/s": _comparison(speeds, "tokens_per_s", settings.bars.get("tokens/s")),
        "peak memory": _comparison(memory, "bytes", settings.bars.get("peak memory")),
        "runs": {arm: [run.as_dict() for run in runs[arm]] for arm in ARMS},
    }


def compare_translation(settings: Settings) -> Result:
    """Translates the test set in turns with a stock checkpoint and with the same converted to `g2lstm`."""
    from fairseq_g2lstm.convert import main as convert

    stock = settings.checkpoint or _train_checkpoint(settings)
    checkpoints = {"lstm": stock, "g2lstm": settings.work / "converted.pt"}
    if convert([str(stock), str(checkpoints["g2lstm"]), "--to", "g2lstm"]):
        raise UserError(f"{stock} could not be converted: give --checkpoint a checkpoint of the stock lstm")
    runs: dict[str, list[Translation]] = {arm: [] for arm in ARMS}
    for number in range(settings.repeats):
        for arm, checkpoint in checkpoints.items():
            log = settings.work / "logs" / f"generate-{arm}-{number}.log"
            done = translate(checkpoint, settings.data, log, device=settings.device, threads=settings.threads)
            runs[arm].append(done)
            print(f"  {done.sentences_per_second:,.1f} sentences/s")
    speeds = {arm: Spread(tuple(run.sentences_per_second for run in runs[arm])) for arm in ARMS}
    pairs = zip(runs["lstm"][0].hypotheses, runs["g2lstm"][0].hypotheses, strict=True)
    return {
        "sentences/s": _comparison(speeds, "sentences_per_s", settings.bars.get("sentences/s")),
        "sentences": runs["lstm"][0].sentences,
        "identical": sum(one == other for one, other in pairs),
        "words": {arm: sum(len(text.split()) for text in runs[arm][0].hypotheses) for arm in ARMS},
    }


def _train_checkpoint(settings: Settings) -> Path:
    """A stock `lstm` with an encoder of two directions, trained until its translations end by themselves."""
    folder = settings.work / "checkpoint"
    for stale in folder.glob("*.pt"):
        stale.unlink()
    arguments = [str(settings.data), *ARMS["lstm"], *RECIPE, *ENCODERS["two"], *settings.options]
    arguments += ["--max-update", str(settings.decode_updates), "--save-dir", str(folder), "--no-epoch-checkpoints"]
    arguments += ["--log-format", "json", "--log-interval", "10"]
    log = settings.work / "logs" / "train-checkpoint.log"
    run_fairseq("train", arguments, log, device=settings.device, threads=settings.threads)
    return folder / "checkpoint_last.pt"


def _comparison(spreads: dict[str, Spread], unit: str, bar: Bar | None) -> Result:
    value, by_repeat = ratio(spreads["g2lstm"], spreads["lstm"])
    return {
        **{arm: spread.as_dict(unit) for arm, spread in spreads.items()},
        "ratio": value,
        "iqr_by_repeat": by_repeat.iqr,
        "bar": str(bar) if bar else None,
        "met": bar.met(value) if bar else None,
    }


def _write(result: Result, out: Path) -> None:
    write_text(out / "results.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
