"""The command line of compression.

    python -m fairseq_g2lstm.compress study CHECKPOINT [CHECKPOINT ...] --data DATA_BIN --out DIR
"""

import argparse
import sys
from pathlib import Path

from .parts import GATES, MATRICES, Selection
from .report import markdown, plot, write_csv
from .study import DEFAULTS, names, study


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_g2lstm.compress", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_study(commands)
    options = parser.parse_args(arguments)
    try:
        _study(options)
    except (ValueError, OSError) as error:
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
    command.add_argument("--data", required=True, type=Path, metavar="DATA_BIN", help="fairseq's data folder")
    command.add_argument("--out", required=True, type=Path, metavar="DIR")
    command.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: their folders)")
    command.add_argument(
        "--compressions",
        nargs="+",
        default=list(DEFAULTS),
        metavar="C",
        help="round:STEP, clip:STEP:LIMIT, rank:K, int:BITS (default: %(default)s)",
    )
    command.add_argument("--gates", choices=GATES, default="input-forget", help="(default: %(default)s)")
    command.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES))
    command.add_argument("--biases", action="store_true", help="compress the biases too")
    command.add_argument("--split", default="test", help="(default: %(default)s)")
    command.add_argument("--beam", type=int, default=5, help="(default: %(default)s)")
    command.add_argument(
        "--batch-size", type=int, default=128, help="sentences, or rows of a text (default: %(default)s)"
    )


def _study(options: argparse.Namespace) -> None:
    checkpoints = names(options.checkpoints)
    if options.names is not None:
        if len(set(options.names)) != len(options.checkpoints):
            raise ValueError(
                f"--names must be {len(options.checkpoints)} different names, one a checkpoint, "
                f"got {' '.join(options.names)}"
            )
        checkpoints = dict(zip(options.names, options.checkpoints, strict=True))
    for checkpoint in options.checkpoints:
        if not checkpoint.is_file():
            raise FileNotFoundError(f"no checkpoint at {checkpoint}: give the path of a fairseq checkpoint (.pt)")
    cells = study(
        checkpoints,
        options.data,
        options.out,
        options.compressions,
        Selection(options.gates, tuple(options.matrices), options.biases),
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
