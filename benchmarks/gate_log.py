"""What the log of the gates costs a training: `g2lstm` with records every update, every tenth, and without."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.comparison import ModelSettings, Result, against, describe_data, same_tokens, train_in_turns, write_json
from benchmarks.end_to_end import ARMS, ENCODERS, RECIPE, SMALL
from benchmarks.fairseq_runs import PRECISIONS, Training
from benchmarks.tables import gate_log_markdown
from benchmarks.timing import Spread
from examples.common.files import write_text

# Updates from record to record of each arm; 0 is never.
INTERVALS = (0, 10, 1)
# At which the share of the time is given.
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
        arms = {str(n): [*options, "--gate-log-interval", str(n), *_folder(settings, n)] for n in INTERVALS}
        runs = train_in_turns(settings, arms, "gate-log", precision)
        result["training"].append({"precision": precision, "same_batches": same_tokens(runs), **compare(runs)})
    result["complete"] = True
    write_json(result, settings.out)
    write_text(settings.out / "results.md", gate_log_markdown(result))
    return result


def _folder(settings: Settings, interval: int) -> list[str]:
    return ["--save-dir", str(settings.work / "gate-log" / str(interval))]


def compare(runs: Mapping[str, Sequence[Training]]) -> Result:
    """Seconds of an update with each interval beside those without records, for JSON.

    Args:
        runs: interval -> its trainings; "0" is without.
    """
    seconds = {interval: Spread(tuple(map(_seconds_per_update, trainings))) for interval, trainings in runs.items()}
    without = seconds["0"]
    rows = []
    for interval, spread in seconds.items():
        row = {"interval": int(interval), **spread.as_dict("s")}
        if int(interval) > 0:
            a_record = int(interval) * (spread.median - without.median)
            row |= {**against(spread, without, None), "s_per_record": a_record}
            row["share_at_usual"] = a_record / USUAL / without.median
        rows.append(row)
    return {"usual": USUAL, "arms": rows}


def _seconds_per_update(training: Training) -> float:
    return sum(part.seconds for part in training.intervals) / sum(part.updates for part in training.intervals)
