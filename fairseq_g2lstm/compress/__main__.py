"""The command line of compression.

    python -m fairseq_g2lstm.compress study CHECKPOINT [CHECKPOINT ...] --data DATA_BIN --out DIR
    python -m fairseq_g2lstm.compress pack CHECKPOINT PACKED --compression int:8 --gates all
    python -m fairseq_g2lstm.compress search CHECKPOINT PACKED --data DATA_BIN --allowed 0.2
    python -m fairseq_g2lstm.compress export CHECKPOINT WEIGHTS.safetensors
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from ..command_line import names, positive_integer
from ..config import PACKED_WEIGHTS
from ..settings import EVAL_MODES
from .evaluate import Evaluator
from .pack import Sizes, check_is_another, export_safetensors, pack
from .parts import GATES, MATRICES, OTHERS, Selection
from .plan import uniform_plan
from .report import markdown, plot, write_csv
from .search import CANDIDATES, Found, search
from .study import DEFAULTS, study
from .transforms import parse


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_g2lstm.compress", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_study(commands)
    _add_pack(commands)
    _add_search(commands)
    _add_export(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _add_study(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "study",
        help="evaluate models under many compressions beside each other",
        description="Evaluates every compression of every checkpoint, g2lstm, g2lstm_lm or stock, by BLEU or "
        "perplexity, and writes study.md, study.csv and study.png. Called again, it goes on where it was.",
    )
    command.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    command.add_argument("--out", required=True, type=Path, metavar="DIR")
    command.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: their folders)")
    command.add_argument(
        "--compressions",
        nargs="+",
        default=list(DEFAULTS),
        metavar="C",
        help="round:STEP, clip:STEP:LIMIT, rank:K, int:BITS, rank:K+int:BITS (default: %(default)s)",
    )
    _add_selection(command)
    _add_evaluation(command, split="test")
    command.set_defaults(run=_study)


def _add_pack(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "pack",
        help="write a smaller checkpoint",
        description="Writes a checkpoint whose weights are stored in integers, as factors or both. fairseq-generate "
        "and fairseq-eval-lm load it with --user-dir alone.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of g2lstm or g2lstm_lm")
    command.add_argument("packed", type=Path, metavar="PACKED", help="file to write")
    command.add_argument(
        "--compression", default="int:8", metavar="C",
        help="int:8, int:4, rank:K or both as rank:K+int:8 (default: %(default)s)",
    )  # fmt: skip
    _add_selection(command)
    command.add_argument(
        "--gate-eval-mode", choices=EVAL_MODES, help="gates in evaluation from now on (default: as they were)"
    )
    _add_in_memory(command)
    command.set_defaults(run=_pack)


def _add_search(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "search",
        help="write the smallest checkpoint that loses no more than is allowed",
        description="Measures what each matrix bears, and writes the smallest packed checkpoint whose BLEU falls, or "
        "perplexity rises, by no more than is allowed on a validation set. Called again, it goes on where it was.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of g2lstm or g2lstm_lm")
    command.add_argument(
        "packed", type=Path, metavar="PACKED", help="file to write; PACKED.json has what was measured"
    )
    command.add_argument("--allowed", type=float, default=0.2, help="BLEU or perplexity (default: %(default)s)")
    command.add_argument(
        "--candidates", nargs="+", default=list(CANDIDATES), metavar="C", help="(default: %(default)s)"
    )
    _add_selection(command)
    _add_in_memory(command)
    _add_evaluation(command, split="valid")
    command.set_defaults(run=_search)


def _search(options: argparse.Namespace) -> None:
    selection = _selection(options)
    check_is_another(options.packed, options.checkpoint)
    found = search(
        options.checkpoint,
        options.data,
        options.allowed,
        options.packed.with_name(options.packed.name + ".json"),
        options.candidates,
        selection,
        options.split,
        options.beam,
        options.batch_size,
        report=lambda line: print(line, flush=True),
    )
    print(f"chosen, {found.metric} {found.value:.2f} of {found.own:.2f} on {options.split}:")
    print("\n".join(found.reasons))
    settings = {"allowed": options.allowed, "choice": {p.name: t.name for p, t in found.choice.items()}}
    settings |= asdict(selection)
    _print_sizes(pack(options.checkpoint, options.packed, found.choice, settings, in_memory=options.packed_weights))
    if options.packed_weights == "keep":
        _check_kept(options, found)


def _check_kept(options: argparse.Namespace, found: Found) -> None:
    """Says what the checkpoint scores as it is loaded: the search measured the weights that it stands for."""
    evaluator = Evaluator(options.packed, options.data, options.split, options.beam, options.batch_size)
    value = evaluator.score().value
    loss = (found.own - value) * (1 if found.metric == "BLEU" else -1)
    verdict = "" if loss <= options.allowed else (
        f", {loss:.2f} lost and more than is allowed: --packed-weights unpack keeps to it, or search with less allowed"
    )
    print(f"as packed, kept in memory as it is stored: {found.metric} {value:.2f}{verdict}")


def _add_export(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "export", help="write the weights as safetensors", description="Writes the weights, unpacked, as safetensors."
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("weights", type=Path, metavar="WEIGHTS", help="file to write")
    command.set_defaults(run=_export)


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gates", choices=GATES, default="input-forget", help="(default: %(default)s)")
    command.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES), help="(default: both)")
    command.add_argument("--biases", action="store_true", help="compress the biases too")
    command.add_argument(
        "--others", nargs="+", choices=OTHERS, default=[], help="compress these matrices too, beside the LSTM layers'"
    )


def _add_in_memory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--packed-weights",
        choices=PACKED_WEIGHTS,
        default="keep",
        help="what loading the checkpoint does with them: keep multiplies by integers and factors as they are stored, "
        "unpack by float32 numbers, which gives the study's translations to the letter (default: %(default)s)",
    )


def _add_evaluation(command: argparse.ArgumentParser, split: str) -> None:
    command.add_argument("--data", required=True, type=Path, metavar="DATA_BIN", help="fairseq's data folder")
    command.add_argument("--split", default=split, help="(default: %(default)s)")
    command.add_argument("--beam", type=positive_integer, default=5, help="(default: %(default)s)")
    command.add_argument(
        "--batch-size", type=positive_integer, default=128, help="sentences, or rows of a text (default: %(default)s)"
    )


def _selection(options: argparse.Namespace) -> Selection:
    return Selection(options.gates, tuple(options.matrices), options.biases, tuple(options.others))


def _pack(options: argparse.Namespace) -> None:
    transform, selection = parse(options.compression), _selection(options)
    sizes = pack(
        options.checkpoint,
        options.packed,
        lambda weights: uniform_plan(weights, transform, selection),
        {"compression": transform.name, **asdict(selection)},
        options.gate_eval_mode,
        options.packed_weights,
    )
    _print_sizes(sizes)


def _print_sizes(sizes: Sizes) -> None:
    for name, (before, after) in (
        ("LSTM layers", sizes.recurrent),
        ("whole model", sizes.model),
        ("file", sizes.file),
    ):
        print(f"{name}: {before:,} -> {after:,} bytes, {after / before:.2f}")


def _export(options: argparse.Namespace) -> None:
    print(f"wrote {options.weights}: {export_safetensors(options.checkpoint, options.weights)} tensors")


def _study(options: argparse.Namespace) -> None:
    checkpoints = names(options.checkpoints, options.names)
    for checkpoint in options.checkpoints:
        if not checkpoint.is_file():
            raise FileNotFoundError(f"no checkpoint at {checkpoint}: give the path of a fairseq checkpoint (.pt)")
    cells = study(
        checkpoints,
        options.data,
        options.out,
        options.compressions,
        _selection(options),
        options.split,
        options.beam,
        options.batch_size,
        report=lambda line: print(line, flush=True),
    )
    table = markdown(cells)
    (options.out / "study.md").write_text(table, encoding="utf-8")
    write_csv(cells, options.out / "study.csv")
    print(table)
    try:
        plot(cells, options.out / "study.png")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
