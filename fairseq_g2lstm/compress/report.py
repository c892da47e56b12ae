"""The study's cells as a Markdown table, a CSV file and a picture."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from .study import Cell
from .transforms import parse


def markdown(cells: Sequence[Cell]) -> str:
    """A table with a row a compression and for each model its value, change and the parts' bytes."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    by_place = {(cell.compression, cell.model): cell for cell in cells}
    lines = ["| compression | " + " | ".join(f"{model}, {cells[0].metric} | parts, KiB" for model in models) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(models))
    for compression in dict.fromkeys(cell.compression for cell in cells):
        row = [compression]
        for model in models:
            cell = by_place.get((compression, model))
            row += ["", ""] if cell is None else [_value(cell), f"{cell.part_bytes / 1024:.0f}"]
        lines.append("| " + " | ".join(row) + " |")
    lines.append("")
    lines.append("In parentheses the change from the model without compression; * where p < 0.05 by paired bootstrap.")
    return "\n".join(lines) + "\n"


def _value(cell: Cell) -> str:
    if cell.compression == "float32":
        return f"{cell.value:.2f}"
    star = "*" if cell.p_value is not None and cell.p_value < 0.05 else ""
    return f"{cell.value:.2f} ({cell.change:+.2f}{star})"


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """A row a cell, a column a field of `Cell`."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Cell)])
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in cells)


_TITLES = {
    "round": "rounded",
    "clip": "rounded and clipped",
    "rank": "low rank",
    "int": "integers",
    "rank+int": "low rank in integers",
}


def plot(cells: Sequence[Cell], path: Path) -> None:
    """BLEU or perplexity against the parts' bytes, a panel a kind of compression, a line a model; none without a kind.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(cell.model for cell in cells))
    kinds = list(dict.fromkeys(parse(c.compression).kind for c in cells if c.compression != "float32"))
    if not kinds:
        path.unlink(missing_ok=True)  # of an earlier study
        return
    figure = Figure(figsize=(3.4 * len(kinds), 3.4), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    colours = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
    for axis, kind in zip(axes, kinds, strict=True):
        for number, model in enumerate(models):
            mine = [c for c in cells if c.model == model and parse(c.compression).kind == kind]
            mine.sort(key=lambda cell: cell.part_bytes)
            colour = colours[number % len(colours)]
            axis.plot(
                [c.part_bytes / 1024 for c in mine], [c.value for c in mine],
                marker="os^Dv*"[number % 6], color=colour, label=model,
            )  # fmt: skip
            (own,) = [c for c in cells if c.model == model and c.compression == "float32"]
            axis.axhline(own.value, color=colour, linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(_TITLES[kind])
        axis.set_xlabel("compressed parts, KiB")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(cells[0].metric)
    axes[0].legend(title="dotted: float32")
    figure.savefig(path, dpi=120)
