"""What the four arms came to: one table, and one picture of their gates."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU

from examples.common.errors import UserError
from examples.common.files import read_lines, save_picture
from examples.common.generate_log import read_translations
from examples.quickstart.arms import ARMS, finished_on
from examples.quickstart.machine import sentence
from fairseq_g2lstm.analysis import gate_histograms
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.gates import GATES

# fairseq asks for pinned memory
warnings.filterwarnings("ignore", message=".*pin_memory")

# Okabe and Ito's blue and vermilion, told apart by all kinds of colour vision
_COLOURS = {"input": "#0072B2", "forget": "#D55E00"}


@dataclass(frozen=True)
class Row:
    """One arm's results.

    Attributes:
        arm: a key of ARMS.
        bleu: of the test set, on its lower-cased tokens.
        exact: share of test sentences that equal the reference.
        saturated: share of input and of forget gates below 0.1 or above 0.9, on the valid set.
        histograms: counts of the gates' values by kind, in bins of equal width from 0 to 1.
        seconds: of training up to the last checkpoint, all sessions together, with validation.
        parameters: number of trained numbers, shared ones once.
        machine: what the training was finished on, None where it was finished by an earlier version, which did not say.
    """

    arm: str
    bleu: float
    exact: float
    saturated: dict[str, float]
    histograms: dict[str, list[int]]
    seconds: float
    parameters: int
    machine: dict[str, Any] | None


def exact_share(hypotheses: list[str], references: list[str]) -> float:
    """Share of the hypotheses that equal their reference."""
    pairs = zip(hypotheses, references, strict=True)
    return sum(ours == right for ours, right in pairs) / len(references)


def parameters(train_log: str) -> int:
    """Number of trained parameters as fairseq-train counted them, shared ones once.

    Raises:
        UserError: the log does not tell.
    """
    counts = re.findall(r"num\. shared model params: .*\(num\. trained: ([\d,]+)\)", train_log)
    if not counts:
        raise UserError("the training's log does not tell the number of parameters; train again")
    return int(counts[-1].replace(",", ""))


def evaluate(
    arm: str, folder: Path, log: Path, data: Path, references: Path, max_sentences: int
) -> tuple[Row, str]:
    """Score an arm and look at its gates.

    Args:
        arm: a key of ARMS.
        folder: of its checkpoints.
        log: of fairseq-generate on the test set.
        data: the data-bin folder.
        references: the test set's English side.
        max_sentences: of the valid set, for the gates.

    Returns:
        The row, and sacrebleu's signature.
    """
    hypotheses = read_translations(log).hypotheses
    right = list(read_lines(references))
    # The text is tokenised already; `force` only silences sacrebleu's remark on that.
    bleu = BLEU(tokenize="none", force=True)
    score = bleu.corpus_score(hypotheses, [right])
    best = folder / "checkpoint_best.pt"
    gates = gate_histograms(str(best), str(data), "valid", max_sentences=max_sentences)
    row = Row(
        arm,
        bleu=float(score.score),
        exact=exact_share(hypotheses, right),
        saturated={kind: float(gates.share_saturated(kind)) for kind in GATES},
        histograms={"input": gates.input.tolist(), "forget": gates.forget.tolist()},
        seconds=float(
            read_checkpoint(folder / "checkpoint_last.pt")["extra_state"]["previous_training_time"]
        ),
        parameters=parameters((folder / "train.log").read_text(encoding="utf-8")),
        machine=finished_on(folder),
    )
    return row, str(bleu.get_signature())


def markdown(
    rows: list[Row], signature: str, sizes: dict[str, int], updates: int, where: dict[str, Any]
) -> str:
    """The table, with what is needed to repeat it below."""
    lines = [
        "| model | BLEU | exact match | saturated input gates | saturated forget gates "
        "| training time | parameters |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {ARMS[row.arm]} | {row.bleu:.2f} | {row.exact:.1%} | {row.saturated['input']:.1%} "
        f"| {row.saturated['forget']:.1%} | {row.seconds:.0f} s | {row.parameters:,} |"
        for row in rows
    ]
    lines += [
        "",
        f"BLEU: sacrebleu, `{signature}`, beam 5, {sizes['test']} test sentences; a gate is "
        "saturated below 0.1 or above 0.9, without noise, on the valid set.",
        f"Trained for {updates} updates on {sizes['train']} pairs, seed {where['seed']}. {_machines(rows)}",
        f"`{where['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _machines(rows: list[Row]) -> str:
    """One machine, or each with the arms that were trained there."""
    arms: dict[str, list[str]] = {}
    for row in rows:
        name = sentence(row.machine) if row.machine else "Finished by an earlier version, which did not say on what."
        arms.setdefault(name, []).append(ARMS[row.arm])
    if len(arms) == 1:
        return next(iter(arms))
    return " ".join(f"{'; '.join(names)}: {name}" for name, names in arms.items())


def draw_gates(rows: list[Row], path: Path) -> None:
    """Histograms of the gates, a column an arm, input gates above forget gates, as a PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(3.1 * len(rows), 5.2), layout="constrained")
    axes = figure.subplots(2, len(rows), sharex=True, sharey=True, squeeze=False)
    for column, row in enumerate(rows):
        for line, kind in enumerate(GATES):
            axis, counts = axes[line][column], row.histograms[kind]
            shares = [count / sum(counts) for count in counts]
            width = 1 / len(counts)
            starts = [number * width for number in range(len(counts))]
            axis.bar(starts, shares, width, align="edge", color=_COLOURS[kind])
            axis.set_title(
                (f"{ARMS[row.arm]}\n" if line == 0 else "")
                + f"{row.saturated[kind]:.0%} of {kind} gates saturated",
                fontsize=10,
            )
            for edge in (0.1, 0.9):
                axis.axvline(edge, color="0.4", linewidth=0.8, linestyle=":")
            axis.set_xlim(0, 1)
            axis.yaxis.set_major_formatter(PercentFormatter(1))
            axis.spines[["top", "right"]].set_visible(False)
            if line == 1:
                axis.set_xlabel("value of the gate")
            if column == 0:
                axis.set_ylabel(f"share of the {kind} gates")
    figure.suptitle("Gates in evaluation; saturated: below 0.1 or above 0.9 (dotted)", fontsize=11)
    save_picture(figure, path)
