"""Compare trained language models: test perplexity of each kind of gates over the seeds.

    python -m examples.ptb.compare DIR [DIR ...] [--results NAME [NAME ...]] [--out DIR]

Each DIR is one that train.sh and evaluate.sh wrote to. Prints a table and writes results.md, results.json and
perplexity.png. Trainings by another recipe, or of another size, get a table of their own; one that is not finished gets
a row of its own, and one that cannot be compared is named below.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from examples.common.errors import UserError, run_main
from examples.common.files import save_picture, write_text
from examples.common.options import docstring_parser
from examples.ptb.trained_runs import RECIPE, Run, read_run

GATES = ("gumbel", "sharpened", "sigmoid", "stock")
BASELINE = "sigmoid"
RESULTS = ("eval-test", "eval-test-long")
# Okabe and Ito's, told apart by all kinds of colour vision
COLOURS = ["#0072B2", "#E69F00", "#000000", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"]


@dataclass(frozen=True)
class Row:
    """One arm's results over its seeds.

    Attributes:
        name: the gates, and what else tells the arm from others.
        seeds: in ascending order; the next six have a value for each of them.
        test: perplexity of the evaluated set.
        valid: lowest perplexity of the validation set, that of the evaluated checkpoint.
        epochs: whole ones.
        speeds: tokens/s in training, the median over the epochs.
        trained: perplexity of the last epoch in training, with dropout and noise; None where the log tells none.
        tokens: of the evaluated set.
        mean: of `test`.
        deviation: its standard deviation, None for a single seed.
        difference: of `test` from the baseline's at the same seeds, on average; None where they share no seed.
        error: the standard error of that, None where they share one seed only.
        shared: the seeds that they share.
        context: of each word in the evaluation.
        curves: for each seed the validation perplexity by epoch.
    """

    name: str
    seeds: list[int]
    test: list[float]
    valid: list[float]
    epochs: list[int]
    speeds: list[float]
    trained: list[float | None]
    tokens: list[int | None]
    mean: float
    deviation: float | None
    difference: float | None
    error: float | None
    shared: list[int]
    context: str
    curves: list[dict[int, float]]


@dataclass(frozen=True)
class Table:
    """The arms of one recipe: it in words, its options, the rows."""

    title: str
    recipe: dict[str, Any]
    rows: list[Row]


def arms_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their arm, each arm's in the order of its seeds.

    Raises:
        UserError: an arm has two runs of one seed, or its runs were evaluated in different ways.
    """
    arms: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (GATES.index(run.gates), run.seed)):
        arms.setdefault(run.arm, []).append(run)
    for its_runs in arms.values():
        for one, other in pairwise(its_runs):
            if one.seed == other.seed:
                raise UserError(f"{one.folder} and {other.folder} are the same training: give one of them")
            contexts = [run.result.get("context") for run in (one, other)]
            if contexts[0] != contexts[1]:
                raise UserError(
                    f"{one.folder} and {other.folder} were not evaluated alike: each word's context is "
                    f"{contexts[0]}, and {contexts[1]}; evaluate them anew, in one way"
                )
    return arms


def row_of(name: str, runs: Sequence[Run], baseline: Mapping[int, float]) -> Row:
    """An arm's row.

    Args:
        name: of the arm.
        runs: its runs in the order of their seeds.
        baseline: test perplexity of the baseline by seed; empty where there is nothing to hold this arm against.
    """
    test = {run.seed: float(run.result["perplexity"]) for run in runs}
    shared = [seed for seed in test if seed in baseline]
    differences = [test[seed] - baseline[seed] for seed in shared]
    return Row(
        name,
        seeds=list(test),
        test=list(test.values()),
        valid=[run.training.best.perplexity for run in runs],
        epochs=[run.training.epochs for run in runs],
        speeds=[statistics.median(run.training.speeds) for run in runs],
        trained=[run.training.perplexities[-1] for run in runs],
        tokens=[run.result.get("tokens") for run in runs],
        mean=statistics.mean(test.values()),
        deviation=statistics.stdev(test.values()) if len(test) > 1 else None,
        difference=statistics.mean(differences) if differences else None,
        error=statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None,
        shared=shared,
        context=str(runs[0].result.get("context")),
        curves=[run.training.by_epoch() for run in runs],
    )


def compare(runs: Sequence[Run]) -> list[Table]:
    """A table for each recipe, in the order in which they are met.

    Raises:
        UserError: two runs are of the same arm and seed.
    """
    by_recipe: dict[tuple[tuple[str, Any], ...], list[Run]] = {}
    # stock models last, whose recipes lack options of the others
    for run in sorted(runs, key=lambda run: run.gates == "stock"):
        recipe = next((recipe for recipe in by_recipe if set(run.recipe) <= set(recipe)), run.recipe)
        by_recipe.setdefault(recipe, []).append(run)
    tables = []
    told_apart_by = _differing([dict(recipe) for recipe in by_recipe])
    for recipe, its_runs in by_recipe.items():
        arms = arms_of(its_runs)
        baseline = {run.seed: float(run.result["perplexity"]) for run in arms.get(BASELINE, [])}
        rows = []
        for name, of_arm in arms.items():
            # what is not finished is held against nothing
            comparable = name != BASELINE and all(run.training.finished for run in of_arm)
            rows.append(row_of(name, of_arm, baseline if comparable else {}))
        options = dict(recipe)
        title = (
            f"{options['parameters']:,} parameters, {options['optimizer']} at {options['lr']}, {options['batch_size']} "
            f"rows, blocks of {options['tokens_per_sample']} tokens, at most {options['max_epoch']} epochs"
        )
        for name in told_apart_by:
            if options.get(name) != options.get(RECIPE[name], RECIPE[name]):
                title += f", {name.replace('_', ' ')} {options[name]}"
        title += f", cache of {options['cache']}" if options["cache"] else ""
        title += f", evaluated with {options['model_overrides']}" if options["model_overrides"] else ""
        tables.append(Table(title, options, rows))
    return tables


def _differing(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Options that differ between recipes and that no title tells anyway."""
    told = {"optimizer", "lr", "batch_size", "tokens_per_sample", "max_epoch"}
    values = {name: {str(recipe[name]) for recipe in recipes if name in recipe} for name in RECIPE}
    return [name for name, different in values.items() if len(different) > 1 and name not in told]


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables in Markdown, and below them what is to be said of the evaluations and of other runs."""
    lines: list[str] = []
    for table in tables:
        lines += [
            f"{table.title}:",
            "",
            f"| gates | seeds | {table.recipe['subset']} perplexity | standard deviation | by seed | valid perplexity "
            f"| epochs | tokens/s | difference to {BASELINE} ± standard error |",
            "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
        ]
        for row in table.rows:
            lines.append(
                f"| {row.name} | {len(row.seeds)} | {row.mean:.2f} | {_number(row.deviation)} "
                f"| {', '.join(f'{value:.2f}' for value in row.test)} | {statistics.mean(row.valid):.2f} "
                f"| {_range(row.epochs)} | {statistics.mean(row.speeds):,.0f} | {_difference(row)} |"
            )
        seeds = sorted({seed for row in table.rows for seed in row.seeds})
        lines += ["", f"Seeds: {', '.join(map(str, seeds))}."]
        for row in table.rows:
            if row.seeds != seeds:
                lines.append(f"Of {row.name} only: {', '.join(map(str, row.seeds))}.")
        contexts: dict[str, list[str]] = {}
        for row in table.rows:
            contexts.setdefault(row.context, []).append(row.name)
        lines += [f"Context of a word in the test: {what} ({', '.join(names)})." for what, names in contexts.items()]
        lines.append("")
    lines += [f"{note}." for note in notes] + ([""] if notes else [])
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _range(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    error = "" if row.error is None else f" ± {row.error:.2f}"
    few = f" ({len(row.shared)} of the seeds)" if len(row.shared) < len(row.seeds) else ""
    return f"{row.difference:+.2f}{error}{few}"


def draw(tables: Sequence[Table], path: Path) -> None:
    """Validation perplexity by epoch, a panel a recipe, a colour an arm, a line a seed, as a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(6.4 * len(tables), 4.4), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        drawn: list[dict[int, float]] = []  # a training that was evaluated twice has one curve
        for number, row in enumerate(table.rows):
            colour = COLOURS[number % len(COLOURS)]
            for curve in row.curves if row.curves[0] not in drawn else []:
                label = textwrap.fill(row.name, 48) if curve is row.curves[0] else None
                marker = "o" if len(curve) == 1 else None
                axis.plot(list(curve), list(curve.values()), color=colour, linewidth=1, label=label, marker=marker)
            drawn += row.curves
        axis.set_yscale("log")
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(ScalarFormatter())
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch")
        axis.set_ylabel("validation perplexity")
        axis.set_title(textwrap.fill(table.title, 90), fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    save_picture(figure, path)


def report(folders: Sequence[str], out: Path, results: Sequence[str] = RESULTS) -> str:
    """Compare the folders' runs and write results.md, results.json and perplexity.png.

    Args:
        folders: of train.sh and evaluate.sh.
        out: the folder to write to.
        results: names of the evaluations; the first is wanted of each folder, others are taken where they are.

    Returns:
        The tables in Markdown.

    Raises:
        UserError: a folder is given twice, or not one can be compared.
    """
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise UserError(f"each folder may be given once, got {' '.join(folders)}")
    runs: list[Run] = []
    notes: list[str] = []
    for folder in folders:
        there = [name for name in results[1:] if (Path(folder) / f"{name}.json").exists()]
        for name in (results[0], *there):
            try:
                runs.append(read_run(folder, name, tell_context=name != results[0]))
            except UserError as error:
                notes.append(str(error))
    if not runs:
        raise UserError("nothing to compare: " + "; ".join(notes))
    tables = compare(runs)
    text = markdown(tables, notes)
    content = {"results": list(results), "tables": [asdict(table) for table in tables], "notes": notes}
    write_text(out / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "results.md", text)
    try:
        draw(tables, out / "perplexity.png")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    return text


def main() -> None:
    """The command."""
    parser = docstring_parser("examples.ptb.compare", __doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument(
        "--results",
        nargs="+",
        default=list(RESULTS),
        metavar="NAME",
        help="compare what NAME.json tells; of several names the first is wanted of each DIR, and the others get rows "
        f"of their own where they are there (default: {' '.join(RESULTS)})",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: the folder that the first DIR lies in)"
    )
    options = parser.parse_args()
    out = options.out or Path(options.folders[0]).resolve().parent
    print(report(options.folders, out, options.results))
    print(f"{out / 'results.md'}, results.json and perplexity.png written")


if __name__ == "__main__":
    run_main(main)
