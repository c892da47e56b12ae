"""What the log of the gates costs a training.

`g2lstm` is trained with a record at every other update, and without any, on the same batches. In each training the time
of the one half of the updates is divided by that of the other half, which the machine's other load meets alike. The
quotient with records over the one without is the time of an update with a record, measured in updates without.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.comparison import ModelSettings, Result, describe_data, same_tokens, train_in_turns, write_results
from benchmarks.end_to_end import ARMS, ENCODERS, RECIPE, SMALL
from benchmarks.fairseq_runs import PRECISIONS, Interval, Training
from benchmarks.tables import gate_log_markdown
from benchmarks.timing import Spread, ratio

# Updates from record to record of each arm.
INTERVALS = {"never": 0, "recorded": 2}
# The interval at which the share of the time is given.
USUAL = 100


@dataclass(frozen=True)
class Settings(ModelSettings):
    """What is trained, and how; `rounds` are trainings of each arm.

    Attributes:
        max_tokens: in a batch.
    """

    max_tokens: int

    @property
    def options(self) -> tuple[str, ...]:
        """Of all trainings."""
        return (*ENCODERS["two"], "--max-tokens", str(self.max_tokens), *(SMALL if self.small else ()))


def run(settings: Settings) -> Result:
    """Trains the arms in turns; writes results.json and results.md.

    Returns:
        What stands in results.json.

    Raises:
        UserError: fairseq failed.
    """
    result: Result = {
        "benchmark": "gate-log",
        "complete": False,
        **machine.describe(settings.device, settings.threads),
        "settings": {
            "data": describe_data(settings.data, "dict.*.txt", ["train.*.bin"], "fairseq-preprocess"),
            "recipe": shlex.join([*map(machine.shown, ARMS["g2lstm"]), *RECIPE, *settings.options]),
            **settings.schedule(),
            "repeats": settings.rounds,
        },
        "training": [],
    }
    for precision in settings.precisions:
        options = [*ARMS["g2lstm"], *RECIPE, *settings.options, *PRECISIONS[precision]]
        arms = {arm: [*options, *_log_options(settings, interval)] for arm, interval in INTERVALS.items()}
        runs = train_in_turns(settings, arms, "gate-log", precision)
        first = settings.schedule()["warmup"]
        row = {"precision": precision, "same_batches": same_tokens(runs), **compare(runs, first)}
        result["training"].append(row)
    result["complete"] = True
    write_results(result, settings.out, gate_log_markdown)
    return result


def _log_options(settings: Settings, interval: int) -> list[str]:
    return ["--gate-log-interval", str(interval), "--save-dir", str(settings.work / "gate-log" / str(interval))]


def compare(runs: Mapping[str, Sequence[Training]], first: int) -> Result:
    """What a record takes, for JSON.

    Args:
        runs: arm -> its trainings, with an interval for each update.
        first: updates done before the first interval.
    """
    quotients = {arm: Spread(tuple(_quotient(run, first) for run in trainings)) for arm, trainings in runs.items()}
    _, in_updates = ratio(quotients["recorded"], quotients["never"])
    a_record = Spread(tuple(value - 1 for value in in_updates.values))
    an_update = Spread(tuple(_mean(run.intervals) for run in runs["never"]))
    return {
        "update": an_update.as_dict("s"),
        "quotients": {arm: spread.as_dict("updates") for arm, spread in quotients.items()},
        "record": a_record.as_dict("updates"),
        "usual": USUAL,
        "share_at_usual": a_record.median / USUAL,
    }


def _quotient(training: Training, first: int) -> float:
    """Time of the updates that the second arm records, those after an even number, over that of the others."""
    parts = training.intervals
    return _mean(parts[first % 2 :: 2]) / _mean(parts[1 - first % 2 :: 2])


def _mean(parts: Sequence[Interval]) -> float:
    return sum(part.seconds for part in parts) / len(parts)
