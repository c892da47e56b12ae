"""What all packings of all models came to: packed.md and packed.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU

from examples.common.files import write_text
from examples.compression.evaluation import Result, Settings
from examples.compression.packings import Model, Packed
from fairseq_g2lstm.compress.search import Found

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One packing of one model.

    Attributes:
        model, packing: their names.
        packed: its bytes.
        kept: what it scores computing with the weights as they are stored.
        unpacked: with the weights put back to float32; None where that is the same.
    """

    model: str
    packing: str
    packed: Packed
    kept: Result
    unpacked: Result | None

    def columns(self) -> dict[str, Any]:
        """The numbers, by the names of packed.csv's columns."""
        sizes = {name: value for name, value in asdict(self.packed).items() if name != "path"}
        columns = {"model": self.model, "packing": self.packing, **sizes}
        for how, result in (("kept", self.kept), ("unpacked", self.unpacked)):
            values = asdict(result) if result else dict.fromkeys(field.name for field in fields(Result))
            columns |= {f"{how}_{name}": value for name, value in values.items() if name != "machine"}
        return columns


def write(
    rows: Sequence[Row],
    models: Sequence[Model],
    found: Mapping[str, Found],
    settings: Settings,
    command: str,
    allowed: float,
    out: Path,
) -> str:
    """Writes packed.md and packed.csv.

    Args:
        rows: in their order.
        models: of which the rows are.
        found: by the models' names, what the search chose.
        settings: of the evaluations.
        command: that was typed.
        allowed: that the search was allowed to lose.
        out: the folder.

    Returns:
        The text of packed.md.
    """
    notes = [*_notes(rows, models, settings), f"`{command}`"]
    lines = [*_table(rows, settings), "", *notes, "", *_choices(found, allowed)]
    text = "\n".join(lines) + "\n"
    write_text(out / "packed.md", text)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.columns() for row in rows)
    write_text(out / "packed.csv", stream.getvalue())
    return text


def _table(rows: Sequence[Row], settings: Settings) -> list[str]:
    metric = settings.metric
    lines = [
        f"| model | packing | file, KiB | LSTM layers, KiB | in memory, KiB | {metric}, kept | {metric}, unpacked "
        f"| {settings.unit}, kept | unpacked |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for row in rows:
        packed = row.packed
        sizes = (f"{n / 1024:,.0f}" for n in (packed.file_bytes, packed.recurrent_bytes, packed.memory_bytes))
        of_float32 = row.kept.p_value is None and row.packing == "float32"
        values = [_value(row.kept, of_float32), _value(row.unpacked)]
        speeds = [f"{row.kept.speed:,.1f}", f"{row.unpacked.speed:,.1f}" if row.unpacked else ""]
        lines.append("| " + " | ".join([row.model, row.packing, *sizes, *values, *speeds]) + " |")
    return lines


def _value(result: Result | None, of_float32: bool = False) -> str:
    if result is None:
        return ""
    if of_float32:
        return f"{result.value:.2f}"
    p = "" if result.p_value is None else f", p = {result.p_value:.3f}"
    return f"{result.value:.2f} ({result.change:+.2f}{p})"


def _notes(rows: Sequence[Row], models: Sequence[Model], settings: Settings) -> list[str]:
    bleu = BLEU(tokenize="none", force=True)
    bleu.corpus_score(["a"], [["a"]])
    metric = (
        "Perplexity is fairseq-eval-lm's"
        if settings.is_language_model
        else f"BLEU is sacrebleu's, `{bleu.get_signature()}`, beam {settings.beam}, p by paired bootstrap"
    )
    converted = [model.name for model in models if not model.kind.startswith("g2")]
    lines = [
        f"{metric}; in parentheses the change from the model's float32. Kept: computed with integers and factors as "
        "they are stored; unpacked: with float32 numbers, where that is not the same. Files are without the "
        "optimiser's state.",
        f"Speeds are {'fairseq-eval-lm' if settings.is_language_model else 'fairseq-generate'}'s own figures, of one "
        "run each, beside whatever else the machine did; the benchmark of speed is in benchmarks/.",
        *([f"Stock, and converted to be packed: {', '.join(converted)}."] if converted else []),
        f"Seeds of the trainings: {', '.join(f'{model.name} {model.seed}' for model in models)}. {settings.split}, "
        f"batches of {settings.batch_size}. {' '.join(_machines(rows))}",
    ]
    return lines


def _machines(rows: Sequence[Row]) -> list[str]:
    """The machines of the evaluations, whenever they were made, each once."""
    results = [result for row in rows for result in (row.kept, row.unpacked) if result is not None]
    found = dict.fromkeys(result.machine or "Some by an earlier version, which kept no machine." for result in results)
    return list(found)


def _choices(found: Mapping[str, Found], allowed: float) -> list[str]:
    lines = [f"## What the search chose, with {allowed:g} allowed on the validation set", ""]
    for name, choice in found.items():
        before, after = choice.bytes
        lines += [
            f"{name}: {choice.metric} {choice.value:.2f} of {choice.own:.2f}, the LSTM layers' matrices in {after:,} "
            f"of {before:,} bytes.",
            "",
            *(f"- {reason}" for reason in choice.reasons),
            "",
        ]
    return lines[:-1]
