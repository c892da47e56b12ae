"""How the gates of a model moved over its training: at its checkpoints, and in the file that the training wrote."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from .statistics import GATES, GateStatistics, Place
from .training import read_gate_log
from .walk import Reader

_CHECKPOINT = re.compile(r"checkpoint(\d+|_\d+_\d+)\.pt")


class Moment(NamedTuple):
    """The gates of one kind ("input" or "forget") at one place after so many updates: shares below 0.1 and above 0.9,
    and mean."""

    updates: int
    place: Place
    gate: str
    low: float
    high: float
    mean: float


def moments(updates: int, statistics: Mapping[Place, GateStatistics]) -> list[Moment]:
    """Where the gates stand after so many updates."""
    return [
        Moment(updates, place, gate, counted.share_low(gate), counted.share_high(gate), counted.mean(gate))
        for place, counted in statistics.items()
        for gate in GATES
    ]


def read_log(path: Path) -> list[Moment]:
    """The gates as the training itself saw them, on its own batches and without their noise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such record.
    """
    return [
        Moment(
            record["update"],
            Place(record["module"], record["layer"], record["reverse"]),
            record["gate"],
            record["low"],
            record["high"],
            math.nan if record["mean"] is None else record["mean"],
        )
        for record in read_gate_log(path)
    ]


def training_checkpoints(folder: Path) -> list[Path]:
    """A training's checkpoints of single epochs and updates: checkpointN.pt and checkpoint_N_M.pt.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path for path in sorted(folder.glob("checkpoint*.pt")) if _CHECKPOINT.fullmatch(path.name)]
    if not found:
        raise FileNotFoundError(
            f"no checkpoint of an epoch or an update in {folder}: fairseq-train keeps them unless told "
            "--no-epoch-checkpoints, or with --save-interval-updates N"
        )
    return found


def read_checkpoints(
    folder: Path, data: Path, split: str, max_sentences: int, tell: Callable[[str], None] = lambda line: None
) -> list[Moment]:
    """The gates at each checkpoint of a training, on the same sentences.

    Args:
        folder: of the checkpoints.
        data, split, max_sentences: what each reads; see `walk.Reader`.
        tell: given each checkpoint's name before it is read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one cannot be read, or does not say after how many updates it was written.
    """
    found: dict[int, list[Moment]] = {}
    for checkpoint in training_checkpoints(folder):
        tell(checkpoint.name)
        reader = Reader(checkpoint, data, split)
        if reader.updates is None:
            raise ValueError(f"{checkpoint} does not say after how many updates it was written: leave it out")
        found[reader.updates] = moments(reader.updates, reader.read(max_sentences)[0])
    return [moment for updates in sorted(found) for moment in found[updates]]
