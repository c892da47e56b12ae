"""The smallest packing of a model that keeps it as good as is asked for, by measured sensitivity of each matrix."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .evaluate import Evaluator
from .kept import file_digest, read_json, write_json
from .pack import read_packable
from .parts import Part, Selection
from .plan import Plan, compressed, part_bytes, plan_bytes
from .transforms import Transform, parse

CANDIDATES = ("int:8", "int:4", "rank:64+int:8", "rank:32+int:8", "rank:16+int:8")

@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        choice: the transform of each part.
        metric: BLEU or perplexity.
        own, value: of the model as it is, and packed by the choice.
        bytes: of the parts, before and packed.
        reasons: a sentence a part.
    """

    choice: Plan
    metric: str
    own: float
    value: float
    bytes: tuple[int, int]
    reasons: list[str]


def search(
    checkpoint: Path,
    data: Path,
    allowed: float,
    work: Path,
    candidates: Sequence[str] = CANDIDATES,
    selection: Selection | None = None,
    split: str = "valid",
    beam: int = 5,
    batch_size: int = 128,
    report: Callable[[str], None] = print,
) -> Found:
    """Chooses how each part of a model is packed.

    Each part is packed by each candidate alone, and the rise of the loss (nats a token, which moves more evenly than
    BLEU) is measured. Then packings are made smaller step by step, each time where the least loss is paid for a byte
    saved, and of this row of packings the smallest is found by bisection that loses no more than is allowed.

    Args:
        checkpoint: of `g2lstm` or `g2lstm_lm`.
        data: the data-bin folder.
        allowed: how much BLEU may fall, or perplexity rise, on the split; >= 0.
        work: a file that keeps what has been measured, for a search that is called again.
        candidates: `int:8`, `int:4`, `rank:K`, `rank:K+int:8`, `rank:K+int:4`.
        selection: the parts; None for input and forget gates of all matrices.
        split: of the data.
        beam, batch_size: as for `Evaluator`.
        report: takes a line about each measurement.

    Raises:
        FileNotFoundError: the checkpoint, the data or the split is missing.
        ValueError: a candidate cannot be packed, allowed is < 0, or the checkpoint cannot be read or does not fit the
            data.
    """
    if not allowed >= 0:
        raise ValueError(f"--allowed must be >= 0, got {allowed}")
    transforms = [parse(name) for name in candidates]
    for transform in transforms:
        transform.check_packable()
    measured = _Measured(checkpoint, data, work, selection or Selection(), split, beam, batch_size, report)
    own_loss = measured.loss({})
    rises = {
        (part, transform.name): measured.loss({part: transform}) - own_loss
        for part in measured.parts
        for transform in transforms
        if part_bytes(measured.weights, part, transform) < part_bytes(measured.weights, part)
    }
    path = _path(measured, transforms, rises)
    own = measured.score({})
    worse = -1 if measured.metric == "BLEU" else 1

    def fits(choice: Plan) -> bool:
        return worse * (measured.score(choice) - own) <= allowed

    first, last = 0, len(path) - 1  # the first, which changes nothing, fits
    while first < last:
        middle = (first + last + 1) // 2
        if fits(path[middle]):
            first = middle
        else:
            last = middle - 1
    choice = path[first]
    whole = {**dict.fromkeys(measured.parts, parse("float32")), **choice}
    reasons = [
        f"{part.name}: {transform.name}, {part_bytes(measured.weights, part, transform):,} of "
        f"{part_bytes(measured.weights, part):,} bytes, alone "
        f"{rises.get((part, transform.name), 0.0):+.4f} nats a token"
        for part, transform in whole.items()
    ]
    sizes = sum(part_bytes(measured.weights, part) for part in whole), plan_bytes(measured.weights, whole)
    return Found(choice, measured.metric, own, measured.score(choice), sizes, reasons)


def _path(
    measured: "_Measured", transforms: Sequence[Transform], rises: Mapping[tuple[Part, str], float]
) -> list[Plan]:
    """Packings from none to the smallest of every part, each a step from the one before it."""
    path: list[Plan] = [{}]
    while True:
        now = path[-1]
        best: tuple[float, Part, Transform] | None = None
        for part in measured.parts:
            current = now.get(part, parse("float32"))
            bytes_now = part_bytes(measured.weights, part, current)
            for transform in transforms:
                saved = bytes_now - part_bytes(measured.weights, part, transform)
                if saved <= 0:
                    continue
                price = (rises[part, transform.name] - rises.get((part, current.name), 0.0)) / saved
                if best is None or price < best[0]:
                    best = (price, part, transform)
        if best is None:
            return path
        path.append({**now, best[1]: best[2]})


class _Measured:
    """Losses and scores of packings, kept in a file."""

    def __init__(
        self,
        checkpoint: Path,
        data: Path,
        work: Path,
        selection: Selection,
        split: str,
        beam: int,
        batch_size: int,
        report: Callable[[str], None],
    ) -> None:
        self._evaluator: Evaluator | None = None
        self._make = lambda: Evaluator(checkpoint, data, split, beam, batch_size)
        self.weights: dict[str, Tensor] = read_packable(checkpoint)["model"]
        self.parts = list(selection.parts(self.weights))
        if not self.parts:
            raise ValueError(f"{checkpoint} has none of the chosen matrices: give a g2lstm or g2lstm_lm")
        self._work, self._report = work, report
        setting = {
            "checkpoint": file_digest(checkpoint),
            "data": file_digest(*sorted(data.glob(f"{split}*.bin"))),
            "selection": asdict(selection),
            "beam": beam,
            "batch_size": batch_size,
        }
        self._kept: dict[str, Any] = {"setting": setting, "metric": None, "losses": {}, "scores": {}}
        if work.is_file():
            kept = read_json(work)
            if kept.get("setting") == json.loads(json.dumps(setting)):
                self._kept = kept

    @property
    def metric(self) -> str:
        return str(self._kept["metric"])

    def loss(self, choice: Plan) -> float:
        return self._value("losses", choice, lambda evaluator, weights: evaluator.loss(weights))

    def score(self, choice: Plan) -> float:
        def measure(evaluator: Evaluator, weights: dict[str, Tensor]) -> float:
            score = evaluator.score(weights)
            self._kept["metric"] = score.metric
            return score.value

        return self._value("scores", choice, measure)

    def _value(self, kind: str, choice: Plan, measure: Callable[[Evaluator, dict[str, Tensor]], float]) -> float:
        key = ", ".join(f"{part.name} {transform.name}" for part, transform in sorted(choice.items())) or "float32"
        if key not in self._kept[kind]:
            self._evaluator = self._evaluator or self._make()
            self._kept[kind][key] = measure(self._evaluator, compressed(self.weights, choice))
            write_json(self._work, self._kept)
        value = float(self._kept[kind][key])
        what = f"loss {value:.4f} nats a token" if kind == "losses" else f"{self.metric} {value:.2f}"
        self._report(f"{key}: {what}")
        return value
