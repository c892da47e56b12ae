"""Compression, all of it: what it costs, packed checkpoints and their scores, the smallest that serves.

    python -m examples.compression.run CHECKPOINT [CHECKPOINT …] --data DATA_BIN --out DIR
    python -m examples.compression.run --quickstart

Takes translation models or language models, of the plugin or fairseq's own. Writes DIR/study.md, study.csv and
study.png, DIR/packed.md and packed.csv, and a folder for each model with its packed checkpoints and their translations.
Called again, it keeps what is finished and goes on with what was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import warnings
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import held_folder
from examples.common.options import docstring_parser
from examples.common.stages import Stages
from examples.compression import report
from examples.compression.evaluation import SUBWORDS, Result, Settings, evaluate
from examples.compression.packings import FLOAT32, LAYERS, Model, Packing, pack_model, read_model, to_pack
from examples.compression.progress import Progress
from examples.quickstart.arms import ARMS
from fairseq_g2lstm.command_line import names
from fairseq_g2lstm.compress.evaluate import segmentation_of
from fairseq_g2lstm.compress.report import markdown, plot, write_csv
from fairseq_g2lstm.compress.search import CANDIDATES, Found, search
from fairseq_g2lstm.compress.study import DEFAULTS, study

QUICK_COMPRESSIONS = ("round:0.2", "rank:16", "int:4")
QUICK_CANDIDATES = ("int:8", "int:4")
SEARCHED = Packing("searched", None)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options; `models` are paths of checkpoints by their names.

    Raises:
        UserError: models or data are missing, names that do not serve, a number out of range.
    """
    parser = docstring_parser("examples.compression.run", __doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="all of one data set")
    parser.add_argument("--data", type=Path, metavar="DATA_BIN", help="fairseq's data folder")
    parser.add_argument("--quickstart", nargs="?", type=Path, const=Path("runs/quickstart"), metavar="DIR",
                        help="take models and data of the quickstart, from DIR (default: %(const)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/compression"), metavar="DIR",
                        help="default: %(default)s")  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: their folders)")
    parser.add_argument("--quick", action="store_true", help="a few compressions and packings, to see that all works")
    parser.add_argument("--allowed", type=float, default=0.2, metavar="X",
                        help="BLEU or perplexity that the search may lose (default: %(default)s)")  # fmt: skip
    parser.add_argument("--split", default="test", help="data set of study and table (default: %(default)s)")
    parser.add_argument("--valid", default="valid", metavar="SPLIT", help="that of the search (default: %(default)s)")
    parser.add_argument("--beam", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N",
                        help="sentences, or rows that a text is cut into (default: %(default)s)")  # fmt: skip
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    options.command = shlex.join(["python", "-m", "examples.compression.run", *given])
    if options.quickstart is not None:
        if options.checkpoints or options.data:
            raise UserError("--quickstart brings its own checkpoints and data; give it, or CHECKPOINT … and --data")
        options.checkpoints, options.data = _of_the_quickstart(options.quickstart)
    if not options.checkpoints or options.data is None:
        raise UserError("give checkpoints and --data DATA_BIN, or --quickstart for those of the quickstart")
    options.models = _named(options.checkpoints, options.names)
    for name in ("beam", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    if not options.allowed >= 0:
        raise UserError(f"--allowed must be >= 0, got {options.allowed}")
    if ":" in str(options.out):
        raise UserError(f"--out must have no colon, which fairseq takes for the end of a path, got {options.out}")
    return options


def _of_the_quickstart(folder: Path) -> tuple[list[Path], Path]:
    trained = [folder / arm for arm in ARMS if (folder / arm / "finished.json").is_file()]
    if not trained:
        raise UserError(
            f"{folder} has no trained models; train them with python -m examples.quickstart.run --out {folder}, or "
            "name the folder where they are: --quickstart DIR"
        )
    return [arm / "checkpoint_best.pt" for arm in trained], folder / "data-bin"


def _named(checkpoints: list[Path], given: list[str] | None) -> dict[str, Path]:
    try:
        found = names(checkpoints, given)
    except ValueError as error:
        raise UserError(str(error)) from error
    for name in found:
        if not name.strip(".") or {"/", ":"} & set(name):
            raise UserError(
                f"a model's name is that of a folder, without slashes and colons, got {name!r}; give others by --names"
            )
    for path in checkpoints:
        if ":" in str(path):
            raise UserError(f"fairseq takes a colon for the end of a path; move or link {path} to one without")
    return found


def read_models(paths: dict[str, Path]) -> list[Model]:
    """What the checkpoints hold.

    Raises:
        UserError: one cannot be read, or translation and language models are mixed.
    """
    models = [read_model(name, path) for name, path in paths.items()]
    if len({model.is_language_model for model in models}) > 1:
        kinds = ", ".join(f"{model.name} is a {model.kind}" for model in models)
        raise UserError(f"give translation models or language models, not both: {kinds}")
    return models


def read_segmentation(data: Path, model: Model) -> str:
    """How the words of a translation model's target language were cut, as fairseq-generate's --remove-bpe takes it.

    Raises:
        UserError: the dictionary is missing.
    """
    from fairseq.data import Dictionary
    from fairseq.data.data_utils import infer_language_pair

    # of a training that named no languages fairseq finds them, here as there, in the names of the data's files
    language = model.target_lang or (data.is_dir() and infer_language_pair(str(data))[1])
    path = data / f"dict.{language}.txt"
    if not path.is_file():
        raise UserError(f"{data} has no dictionary of what {model.name} translates to; give its data-bin folder")
    return segmentation_of(Dictionary.load(str(path)))


def make_study(options: argparse.Namespace, compressions: tuple[str, ...], progress: Progress) -> None:
    """The study of all models, its table, numbers and picture."""
    cells = study(
        options.models,
        options.data,
        options.out / "study",
        compressions,
        split=options.split,
        beam=options.beam,
        batch_size=options.batch_size,
        report=lambda line: progress.done("study", line.partition("] ")[2]),
    )
    (options.out / "study.md").write_text(markdown(cells), encoding="utf-8")
    write_csv(cells, options.out / "study.csv")
    try:
        plot(cells, options.out / "study.png")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)


def make_rows(
    stages: Stages, settings: Settings, model: Model, packings: list[Packing], progress: Progress, found: Found | None
) -> list[report.Row]:
    """Packs a model and evaluates what comes of it.

    Args:
        stages: of the output folder.
        settings: of the evaluations.
        model: to be packed.
        packings: how.
        progress: told of each evaluation.
        found: what a search chose, which the packings then are of.
    """
    checkpoint = to_pack(stages, model)
    own = stages.directory / model.name / f"{FLOAT32.name}.pt"
    rows = []
    for packing in packings:
        choice = None if found is None else found.choice
        packed = pack_model(stages, model, packing, checkpoint, settings.data, choice)
        results: dict[str, Result] = {}
        for how in ("kept", "unpacked") if packing.has_integers or choice is not None else ("kept",):
            progress.begin()
            results[how] = evaluate(stages, settings, packed.path, own, how == "unpacked")
            said = results[how].sentence(settings.metric)
            progress.done("evaluation", f"{model.name}, {packing.name}, {how}: {said}")
        rows.append(report.Row(model.name, packing.name, packed, results["kept"], results.get("unpacked")))
    return rows


def search_model(stages: Stages, options: argparse.Namespace, model: Model, progress: Progress) -> Found:
    """The smallest packing of the LSTM layers that loses no more than is allowed."""
    progress.begin()
    print(f"{model.name}: searching for what loses no more than {options.allowed:g} on {options.valid}")
    found = search(
        to_pack(stages, model),
        options.data,
        options.allowed,
        stages.directory / model.name / "search.json",
        QUICK_CANDIDATES if options.quick else CANDIDATES,
        LAYERS,
        options.valid,
        options.beam,
        options.batch_size,
        report=lambda line: print(f"  {line}", flush=True),
    )
    size = f"{found.bytes[1]:,} of {found.bytes[0]:,} bytes"
    progress.done("search", f"{model.name}: {found.metric} {found.value:.2f} of {found.own:.2f} in {size}")
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse_arguments(arguments)
    # a terminated run ends its fairseq too, and does not leave it to write on beside the next one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; run it again to go on"))
    warnings.filterwarnings("ignore", message=".*pin_memory")
    models = read_models(options.models)
    with held_folder(options.out, "compression"):
        compress(options, models)


def compress(options: argparse.Namespace, models: list[Model]) -> None:
    """Studies, packs and evaluates the models, and writes what they came to.

    Raises:
        UserError: the data do not fit the models, or fairseq failed.
    """
    is_language_model = models[0].is_language_model
    segmentation = SUBWORDS if is_language_model else read_segmentation(options.data, models[0])
    settings = Settings(
        options.data, is_language_model, options.split, options.beam, options.batch_size, segmentation
    )
    stages = Stages(options.out, say=lambda line: print(line) if line.endswith("changed") else None)
    compressions = QUICK_COMPRESSIONS if options.quick else DEFAULTS
    plans = {model.name: model.packings(options.quick) for model in models}
    n_packed = sum(1 + packing.has_integers for plan in plans.values() for packing in plan)
    n_studied = len(models) * (1 + len(compressions))
    progress = Progress({"study": n_studied, "evaluation": n_packed + 2 * len(models), "search": len(models)})
    try:
        make_study(options, compressions, progress)
        rows = {m.name: make_rows(stages, settings, m, plans[m.name], progress, None) for m in models}
        found = {model.name: search_model(stages, options, model, progress) for model in models}
        for model in models:
            rows[model.name] += make_rows(stages, settings, model, [SEARCHED], progress, found[model.name])
    except ValueError as error:
        raise UserError(str(error)) from error
    in_order = [row for model in models for row in rows[model.name]]
    text = report.write(in_order, models, found, settings, options.command, options.allowed, options.out)
    print("", text, sep="\n")
    print(f"{options.out / 'packed.md'}, packed.csv, study.md, study.csv and study.png written")


if __name__ == "__main__":
    run_main(main)
