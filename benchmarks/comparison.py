"""What the benchmarks of whole models share: two arms trained by fairseq in turns, and their numbers side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar
from benchmarks.fairseq_runs import Training, train
from benchmarks.timing import Spread, in_turns, ratio
from examples.common.errors import UserError
from examples.common.files import write_text
from examples.common.stages import sha256_of

Result = dict[str, Any]


@dataclass(frozen=True)
class ModelSettings:
    """What is trained and how.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch.
        data: a data-bin folder of fairseq.
        precisions: keys of `fairseq_runs.PRECISIONS`.
        rounds: turns of each arm.
        updates: of each timed training.
        interval: updates between lines of its log.
        warmup: updates at its beginning that are not counted.
        small: whether the models have 16 units, to see that everything works.
        work: folder for logs, checkpoints and generated data.
        out: folder for results.json and results.md.
    """

    device: str
    threads: int
    data: Path
    precisions: Sequence[str]
    rounds: int
    updates: int
    interval: int
    warmup: int
    small: bool
    work: Path
    out: Path

    def log(self, *names: object) -> Path:
        """The file for what a process says."""
        return self.work / "logs" / f"{'-'.join(map(str, names))}.log"

    def schedule(self) -> Result:
        """The timed trainings' numbers, for JSON; an interval of warm-up at least."""
        return {"updates": self.updates, "warmup": max(self.warmup, self.interval), "interval": self.interval}


def train_in_turns(
    settings: ModelSettings, arms: Mapping[str, Sequence[str]], *names: object
) -> dict[str, list[Training]]:
    """Trains arms in turns.

    Args:
        settings: how.
        arms: name -> options of fairseq-train.
        names: of the logs, before the arm's and the round's.
    """
    runs: dict[str, list[Training]] = {arm: [] for arm in arms}
    for arm in in_turns(list(arms), settings.rounds):
        training = train(
            settings.data,
            settings.log(*names, arm, len(runs[arm])),
            arms[arm],
            updates=settings.updates,
            interval=settings.interval,
            warmup=settings.warmup,
            device=settings.device,
            threads=settings.threads,
        )
        runs[arm].append(training)
        print(f"  {training.tokens_per_second:,.0f} target tokens/s, {training.peak_memory / 2**20:,.0f} MiB")
    return runs


def same_tokens(runs: Mapping[str, Sequence[Training]]) -> bool:
    """Whether all trainings read the same number of target tokens in each interval."""
    return len({tuple(part.tokens for part in run.intervals) for arm in runs.values() for run in arm}) == 1


def compare_trainings(runs: Mapping[str, Sequence[Training]], bars: Mapping[str, Bar]) -> Result:
    """Speed and memory of two arms, the peer's and ours, for JSON."""
    speeds = {arm: Spread(tuple(run.tokens_per_second for run in runs[arm])) for arm in runs}
    memory = {arm: Spread(tuple(float(run.peak_memory) for run in runs[arm])) for arm in runs}
    return {
        "tokens/s": comparison(speeds, "tokens_per_s", bars.get("tokens/s")),
        "peak memory": comparison(memory, "bytes", bars.get("peak memory")),
        "runs": {arm: [run.as_dict() for run in runs[arm]] for arm in runs},
    }


def comparison(spreads: Mapping[str, Spread], unit: str, bar: Bar | None) -> Result:
    """Two arms' measurements, the peer's and ours, and their ratio, for JSON."""
    theirs, ours = spreads.values()
    return {**{arm: spread.as_dict(unit) for arm, spread in spreads.items()}, **against(ours, theirs, bar)}


def against(ours: Spread, theirs: Spread, bar: Bar | None) -> Result:
    """The ratio of ours to theirs, its spread over the rounds, its bar and whether it is met, for JSON."""
    value, by_round = ratio(ours, theirs)
    return {
        "ratio": value,
        "iqr_by_repeat": by_round.iqr,
        "bar": str(bar) if bar else None,
        "met": bar.met(value) if bar else None,
    }


def describe_data(data: Path, dictionary: str, texts: Sequence[str], made_by: str) -> Result:
    """What tells one data-bin folder from another: sizes of its dictionaries, checksums of its texts.

    Args:
        data: the folder.
        dictionary: pattern of the dictionaries' names.
        texts: patterns of the texts' names.
        made_by: the command that makes such folders.

    Raises:
        UserError: a dictionary or a text is missing.
    """
    dictionaries = sorted(data.glob(dictionary))
    found = [sorted(data.glob(text)) for text in texts]
    if not dictionaries or not all(found):
        *others, last = [dictionary, *texts]
        raise UserError(f"{data} is no folder that {made_by} wrote: it lacks {', '.join(others)} or {last}")
    return {
        "types": {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in dictionaries},
        "sha256": {path.name: sha256_of(path) for paths in found for path in paths},
    }


def write_results(result: Result, out: Path, markdown: Callable[[Result], str]) -> None:
    """Writes results.json and, as `markdown` makes it of the result, results.md."""
    write_json(result, out)
    write_text(out / "results.md", markdown(result))


def write_json(result: Result, out: Path) -> None:
    """Writes results.json, whole or not at all."""
    write_text(out / "results.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
