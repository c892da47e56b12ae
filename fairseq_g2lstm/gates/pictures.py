"""The report's pictures as PNG files, drawn by matplotlib."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .report import ModelGates, is_source, places
from .statistics import BINS, GATES
from .tokens import Token
from .walk import SentenceGates

# of Okabe and Ito's palette, told apart by all kinds of colour vision; the dashes help where there is no colour
_COLOURS = ("#0072b2", "#e69f00", "#1b1f24", "#cc79a7", "#56b4e9", "#8a6d00")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)))
_RAMPS = {"input": ("#f3f8fc", "#3d8fd1"), "forget": ("#fdf5ea", "#e2801f"), "attention": ("#f8f5fb", "#5b3f8c")}
_DPI = 110
_MOST_TOKENS = 60  # of a side; the page has all
_LEVEL = 8  # letters of a token that is written level under its column


def write_pictures(models: Sequence[ModelGates], folder: Path) -> list[Path]:
    """Writes histograms.png, moves.png where something is known of a training, and a picture of each chosen sentence
    and model.

    Returns:
        the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names and tokens may hold dollars
        return _write_pictures(models, folder)


def _write_pictures(models: Sequence[ModelGates], folder: Path) -> list[Path]:
    found = [_save(_histograms(models), folder / "histograms.png")]
    if any(model.moments for model in models):
        found.append(_save(_moves(models), folder / "moves.png"))
    for number, model in enumerate(models):
        slug = re.sub(r"[^\w.-]+", "-", model.name).strip("-.") or f"model-{number + 1}"
        for position, shown in enumerate(model.sentences):
            beside = [other.sentences[position] for other in models]
            path = folder / f"sentence-{shown.number}-{slug}.png"
            found.append(_save(_sentence(shown, beside, model.name), path))
    return found


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def _histograms(models: Sequence[ModelGates]) -> Any:
    """A column a place, input gates above forget gates, the models on the same axes."""
    from matplotlib.ticker import PercentFormatter

    columns = places(models)
    figure = _figure(3.2 * len(columns) + 0.4, 5.2)
    axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    for column, place in enumerate(columns):
        for row, gate in enumerate(GATES):
            axis = axes[row][column]
            for edges in ((0, 0.1), (0.9, 1)):
                axis.axvspan(*edges, color="0.93", linewidth=0)
            for number, model in enumerate(models):
                if place in model.statistics:
                    counts = model.statistics[place].histogram[row]
                    share = counts / max(1, counts.sum())
                    axis.stairs(share, np.linspace(0, 1, BINS + 1), label=model.name, linewidth=1.5, **_line(number))
            axis.set_xlim(0, 1)
            axis.spines[["top", "right"]].set_visible(False)
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if row == 0:
                axis.set_title(place.label, fontsize=11)
            if row == 1:
                axis.set_xlabel("value of the gate")
            if column == 0:
                axis.set_ylabel(f"share of the {gate} gates")
    axes[0][0].set_ylim(0, None)
    _legend(figure, axes[0][0])
    return figure


def _moves(models: Sequence[ModelGates]) -> Any:
    """A column a place; shares within 0.1 of an end above means, input gates above forget gates."""
    from matplotlib.ticker import PercentFormatter

    columns = [place for place in places(models) if any(m.place == place for model in models for m in model.moments)]
    figure = _figure(3.2 * len(columns) + 0.4, 8.4)
    axes = figure.subplots(4, len(columns), sharex=True, sharey="row", squeeze=False)
    for column, place in enumerate(columns):
        for row, gate in enumerate(GATES):
            for number, model in enumerate(models):
                line = [moment for moment in model.moments if moment.place == place and moment.gate == gate]
                if not line:
                    continue
                updates = [moment.updates for moment in line]
                style = {**_line(number), "marker": "o" if len(line) < 30 else "", "markersize": 3, "linewidth": 1.5}
                axes[2 * row][column].plot(updates, [m.low + m.high for m in line], label=model.name, **style)
                axes[2 * row + 1][column].plot(updates, [m.mean for m in line], **style)
            axes[2 * row][column].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if column == 0:
                axes[2 * row][column].set_ylabel(f"{gate} gates\nwithin 0.1 of an end")
                axes[2 * row + 1][column].set_ylabel(f"{gate} gates\nmean")
        axes[0][column].set_title(place.label, fontsize=11)
        axes[3][column].set_xlabel("updates")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, None)
    for row in range(4):  # only now: a limit that is set ends the fitting of the other
        axes[row][0].set_ylim(0, 1 if row % 2 else None)
    _legend(figure, axes[0][0])
    return figure


def _legend(figure: Any, axis: Any) -> None:
    lines, names = axis.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names), frameon=False)


def _sentence(shown: SentenceGates, beside: Sequence[SentenceGates], name: str) -> Any:
    """Means of the gates token by token, a row a place, and the attention to the right.

    Args:
        beside: the sentence in all models, which share the colours' scales.
    """
    tokens = max(map(len, (shown.source, shown.target, shown.written)))
    part = f", the first {_MOST_TOKENS} of {tokens} tokens" if tokens > _MOST_TOKENS else ""
    shown = _beginning(shown)
    sides = [side for side in (True, False) if any(is_source(place) == side for place in shown.gates)]
    panels = [(side, gate) for side in sides for gate in GATES]
    heights = [sum(is_source(place) == side for place in shown.gates) + 1.5 for side, _ in panels]
    longest = max(len(shown.source), len(shown.target))
    width, height = 2.6 + 0.5 * longest, 0.9 + 0.36 * sum(heights)
    if shown.attention is None:
        figure = _figure(width, height)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    else:
        square = 1.6 + 0.32 * len(shown.source)
        figure = _figure(width + square, max(height, 1.6 + 0.32 * len(shown.written)))
        left, right = figure.subfigures(1, 2, width_ratios=(width, square))
        axes = left.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        _draw_attention(right.subplots(), shown)
    for axis, (side, gate) in zip(axes, panels, strict=True):
        _draw_tokens(axis, shown, beside, side, gate)
    figure.suptitle(f"{name}, sentence {shown.number}{part}", fontsize=12)
    return figure


def _beginning(shown: SentenceGates) -> SentenceGates:
    most = slice(_MOST_TOKENS)
    return replace(
        shown,
        source=shown.source[most],
        target=shown.target[most],
        written=shown.written[most],
        attention=None if shown.attention is None else shown.attention[most, most],
        gates={place: (gates[0][most], gates[1][most]) for place, gates in shown.gates.items()},
    )


def _draw_tokens(axis: Any, shown: SentenceGates, beside: Sequence[SentenceGates], side: bool, gate: str) -> None:
    number = GATES.index(gate)
    rows = [place for place in shown.gates if is_source(place) == side]
    means = np.stack([shown.gates[place][number].mean(1) for place in rows])
    all_means = [s.gates[p][number].mean(1) for s in beside for p in s.gates if is_source(p) == side]
    low, high = min(float(m.min()) for m in all_means), max(float(m.max()) for m in all_means)
    axis.imshow(means, cmap=_ramp(gate), vmin=low, vmax=high, aspect="auto")
    for (row, column), mean in np.ndenumerate(means):
        axis.text(column, row, f"{mean:.2f}", ha="center", va="center", fontsize=8)
    labels = _label_tokens(axis.xaxis, shown.source if side else shown.target)
    if max(map(len, labels)) > _LEVEL:
        for label in axis.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), [place.label for place in rows], fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    title = {"input": "input gates: how far they open", "forget": "forget gates: how much they keep"}[gate]
    axis.set_title(title, fontsize=9, loc="left")


def _draw_attention(axis: Any, shown: SentenceGates) -> None:
    axis.imshow(shown.attention, cmap=_ramp("attention"), vmin=0, vmax=1, aspect="equal")
    axis.xaxis.tick_top()
    _label_tokens(axis.xaxis, shown.source)
    _label_tokens(axis.yaxis, shown.written)
    axis.tick_params(length=0)
    for label in axis.get_xticklabels():
        label.set_rotation(90)
    axis.set_xlabel("attention: where the decoder looked (across)\nas it wrote each token (down)", fontsize=9)


def _label_tokens(axis: Any, tokens: Sequence[Token]) -> list[str]:
    # after a plus a token goes on the word before it
    labels = [("+" if token.joined else "") + token.text for token in tokens]
    axis.set_ticks(range(len(labels)), labels, fontsize=9)
    return labels


def _ramp(gate: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(gate, _RAMPS[gate])
