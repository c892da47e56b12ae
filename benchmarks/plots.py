"""The picture of the layer's time against T, B and H."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.peers import TITLES
from benchmarks.timing import Spread
from examples.common.files import save_picture

_AXES = {
    "T": ("n_steps", "T, time steps"),
    "B": ("n_rows", "B, batch rows"),
    "H": ("hidden_size", "H, units (I = H)"),
}
# Okabe and Ito's colours, told apart by all kinds of colour vision
_STYLES = {
    "g2lstm": ("#D55E00", "o"),
    "g2lstm-persistent": ("#009E73", "D"),
    "torch.nn.LSTM": ("#0072B2", "s"),
    "identity": ("#56B4E9", "^"),
    "python-loop": ("#999999", "x"),
}


def draw_sweeps(rows: list[dict[str, Any]], path: Path, result: dict[str, Any]) -> None:
    """Draws time against T, B and H, one line a peer, quartiles as bars, as a PNG file.

    Args:
        rows: of results.json that have an axis.
        path: of the file.
        result: the whole of results.json, for the machine's name.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (name, (size, title)) in zip(axes, _AXES.items(), strict=True):
        own = [row for row in rows if row["axis"] == name]
        for peer, (colour, marker) in _STYLES.items():
            points = [row for row in own if peer in row["times"]]
            if not points:
                continue
            spreads = [Spread(tuple(row["times"][peer]["values_s"])) for row in points]
            medians = [1000 * spread.median for spread in spreads]
            errors = [
                [1000 * abs(spread.quartiles[side] - spread.median) for spread in spreads] for side in (0, 1)
            ]
            sizes = [row["shape"][size] for row in points]
            axis.errorbar(sizes, medians, errors, color=colour, marker=marker, capsize=2, label=TITLES[peer])
        others = [f"{other} = {own[0]['shape'][key]}" for other, (key, _) in _AXES.items() if other != name]
        axis.set_title(", ".join(others), fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = [row["shape"][size] for row in own]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel(title)
        axis.grid(True, which="major", linewidth=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(frameon=False, fontsize=9)
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    figure.suptitle(f"Forward and backward of one layer, {rows[0]['dtype']}, {where}", fontsize=11)
    save_picture(figure, path)
