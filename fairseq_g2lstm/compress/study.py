"""What compression costs: every compression of every model evaluated on one data set, as the paper's study does."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from ..checkpoints import read_checkpoint
from ..packed import META
from .evaluate import Evaluator, Score
from .kept import file_digest, read_json, write_json
from .parts import Selection, model_bytes
from .plan import compressed, part_bytes, plan_bytes, uniform_plan
from .transforms import Transform, parse

# Steps and ranks of the paper's kind, rows in integers, and factors in integers
DEFAULTS = (
    *("round:0.05", "round:0.1", "round:0.2", "round:0.4", "round:0.8"),
    *("clip:0.05:0.5", "clip:0.1:0.5", "clip:0.2:0.6", "clip:0.4:0.4"),
    *("rank:128", "rank:64", "rank:32", "rank:16", "rank:8", "rank:4"),
    *("int:8", "int:6", "int:4", "int:3", "int:2"),
    *("rank:64+int:8", "rank:32+int:8", "rank:16+int:8"),
)


@dataclass(frozen=True)
class Cell:
    """One compression of one model.

    Attributes:
        model: the model's name in the study.
        compression: the transform's name.
        metric, value: BLEU or perplexity.
        change: value minus the model's own without compression; negative BLEU and positive perplexity are losses.
        part_bytes: of the compressed parts, stored.
        model_bytes: of the whole model with them, all else as it is.
        seconds: of the evaluation.
        p_value: of the change of BLEU, by paired bootstrap against the model's own translations; None of perplexity and
            of the model itself.
    """

    model: str
    compression: str
    metric: str
    value: float
    change: float
    part_bytes: int
    model_bytes: int
    seconds: float
    p_value: float | None

    def sentence(self) -> str:
        """The cell in a line."""
        p = "" if self.p_value is None else f", p = {self.p_value:.3f}"
        return (
            f"{self.model}, {self.compression}: {self.metric} {self.value:.2f} ({self.change:+.2f}{p}), "
            f"parts {self.part_bytes:,} bytes, {self.seconds:.1f} s"
        )


def study(
    checkpoints: Mapping[str, Path],
    data: Path,
    out: Path,
    compressions: Sequence[str] = DEFAULTS,
    selection: Selection | None = None,
    split: str = "test",
    beam: int = 5,
    batch_size: int = 128,
    report: Callable[[str], None] = print,
) -> list[Cell]:
    """Evaluates every compression of every model; what an earlier call has done is not done again.

    Args:
        checkpoints: by the name that each has in tables and pictures.
        data: the data-bin folder.
        out: folder of the results: `cells/`, a file each, with the translations.
        compressions: names of transforms; each model is evaluated without any as well.
        selection: the parts that are compressed; None for input and forget gates of all matrices.
        split: of the data.
        beam, batch_size: as for `Evaluator`.
        report: takes a line about each cell.

    Returns:
        The cells, model by model.

    Raises:
        FileNotFoundError: a checkpoint, the data or the split is missing.
        ValueError: a compression's name is wrong, or a checkpoint cannot be read, does not fit the data or is packed.
    """
    selection = selection or Selection()
    transforms = [parse(name) for name in dict.fromkeys(["float32", *compressions])]
    cells: list[Cell] = []
    n_all = len(checkpoints) * len(transforms)
    for checkpoint in checkpoints.values():
        if META in read_checkpoint(checkpoint)["model"]:
            raise ValueError(f"{checkpoint} is packed already: give the one that it was made of")
    for name, checkpoint in checkpoints.items():
        evaluator: Evaluator | None = None
        own: dict[str, Any] | None = None
        setting = {
            "checkpoint": file_digest(checkpoint),
            "data": file_digest(*sorted(data.glob(f"{split}*.bin"))),
            "split": split,
            "selection": asdict(selection),
            "beam": beam,
            "batch_size": batch_size,
        }
        for transform in transforms:
            path = _cell_path(out, {**setting, "compression": transform.name})
            if path.is_file():
                kept = read_json(path)
            else:
                evaluator = evaluator or Evaluator(checkpoint, data, split, beam, batch_size)
                kept = {**setting, **_evaluate(evaluator, transform, selection)}
                if own is not None and kept["hypotheses"] is not None:
                    kept["p_value"] = p_value(own["hypotheses"], kept["hypotheses"], kept["references"])
                write_json(path, kept)
            own = own or kept
            change = kept["value"] - own["value"]
            numbers = {key: kept[key] for key in ("metric", "value", "part_bytes", "model_bytes", "seconds", "p_value")}
            cells.append(Cell(model=name, compression=transform.name, change=change, **numbers))
            report(f"[{len(cells)}/{n_all}] {cells[-1].sentence()}")
    return cells


def _evaluate(evaluator: Evaluator, transform: Transform, selection: Selection) -> dict[str, Any]:
    weights = evaluator.weights
    plan = uniform_plan(weights, transform, selection)
    score: Score = evaluator.score(compressed(weights, plan))
    own = sum(part_bytes(weights, part) for part in plan)
    parts = plan_bytes(weights, plan)
    return {
        "compression": transform.name,
        "metric": score.metric,
        "value": score.value,
        "seconds": score.seconds,
        "part_bytes": parts,
        "model_bytes": model_bytes(weights) - own + parts,
        "hypotheses": score.hypotheses,
        "references": evaluator.references,
        "p_value": None,
    }


def p_value(own: list[str], hypotheses: list[str], references: list[str]) -> float:
    """Of the difference in BLEU, by paired bootstrap with 1,000 samples (Koehn 2004)."""
    if hypotheses == own:
        return 1.0
    systems: Any = [("own", own), ("compressed", hypotheses)]
    metrics: Any = {"BLEU": BLEU(tokenize="none", force=True)}
    test = PairedTest(systems, metrics, [references], test_type="bs", n_samples=1000)
    _, scores = test()
    result: Any = scores["BLEU"][1]
    return float(result.p_value)


def _cell_path(out: Path, setting: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
    return out / "cells" / f"{setting['compression'].replace(':', '-')}-{key}.json"
