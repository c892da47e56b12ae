"""The quickstart: a corpus, four trainings, one table, one picture.

    python -m examples.quickstart.run [--out DIR] [--updates N] [--threads N] [--seed N] [--smoke]

Trains g2lstm with gumbel, sharpened and sigmoid gates and fairseq's own lstm on spelled-out
numbers, money, dates and times, German to English, and writes results.md, results.json and
gates.png to DIR. Called again, it keeps what is finished and goes on with what was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import held_folder, write_text
from examples.common.options import docstring_parser
from examples.common.preprocess import check_folder, segment_and_binarise, sides
from examples.common.stages import Stages
from examples.quickstart import corpus
from examples.quickstart.arms import ARMS, ROOT, Recipe, train, translate
from examples.quickstart.machine import machine

SMOKE = {
    "updates": 40, "train": 2_000, "valid": 60, "test": 40, "merges": 200,
    "embed": 32, "units": 32, "save_interval": 20,
}  # fmt: skip


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options.

    Raises:
        UserError: a number out of range, an unknown arm.
    """
    parser = docstring_parser("examples.quickstart.run", __doc__)
    cores = len(os.sched_getaffinity(0))
    numbers = {
        "updates": (3_000, "of each training"),
        "threads": (cores, "of torch"),
        "train": (30_000, "training pairs"),
        "valid": (500, "validation pairs"),
        "test": (1_000, "test pairs"),
        "merges": (500, "of the joint byte-pair encoding"),
        "embed": (128, "size of the embeddings"),
        "units": (128, "hidden units"),
        "max_tokens": (500, "tokens in a batch at most"),
        "save_interval": (500, "updates between checkpoints"),
    }
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="default: runs/quickstart, with --smoke runs/quickstart-smoke")
    parser.add_argument("--smoke", action="store_true",
                        help="tiny sizes, to see that everything works; options given still hold")
    parser.add_argument("--seed", type=int, default=1, metavar="N",
                        help="of corpus, parameters, batches and noise (default: 1)")
    parser.add_argument("--arms", default=",".join(ARMS), metavar="ARM,…",
                        help="which to train (default: all: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, metavar="X",
                        help="highest learning rate (default: %(default)s)")
    for name, (default, what) in numbers.items():
        smoke = f", with --smoke {SMOKE[name]}" if name in SMOKE else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N",
                            help=f"{what} (default: {default}{smoke})")
    options = parser.parse_args(arguments)
    if options.out is None:
        options.out = Path("runs/quickstart-smoke" if options.smoke else "runs/quickstart")
    for name, (default, _) in numbers.items():
        given = getattr(options, name)
        if given is None:
            setattr(options, name, SMOKE.get(name, default) if options.smoke else default)
        elif given < 1:
            raise UserError(f"--{name.replace('_', '-')} must be >= 1, got {given}")
    if options.seed < 0:
        raise UserError(f"--seed must be >= 0, got {options.seed}")
    if not options.lr > 0:
        raise UserError(f"--lr must be > 0, got {options.lr}")
    options.arms = options.arms.split(",")
    for arm in options.arms:
        if arm not in ARMS or options.arms.count(arm) > 1:
            given = ",".join(options.arms)
            raise UserError(f"--arms takes {', '.join(ARMS)}, each once, got {given}")
    return options


def prepare(options: argparse.Namespace, out: Path) -> Path:
    """Make the corpus, segment it and turn it into fairseq's data.

    Returns:
        The data-bin folder.
    """
    stages = Stages(out)
    sizes = {part: getattr(options, part) for part in corpus.LARGEST}

    def make_corpus() -> str:
        parts = corpus.build(sizes, options.seed)
        corpus.write(parts, out / "text")
        return ", ".join(f"{part}: {len(parts[part])} pairs" for part in parts)

    stages.run(
        "corpus",
        make_corpus,
        inputs=[Path(corpus.__file__), Path(corpus.spell.__file__)],
        outputs=[path for part in sizes for path in sides(out / "text", part, corpus.LANGUAGES)],
        options={
            "sizes": sizes,
            "seed": options.seed,
            "versions": [version("num2words"), version("babel")],
        },
    )
    segment_and_binarise(
        stages, corpus.LANGUAGES, merges=options.merges, joined_dictionary=True
    )
    return out / "data-bin"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse_arguments(arguments)
    # a terminated run ends its fairseq too, and does not leave it to write on beside the next one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; run it again to go on"))
    out = options.out.resolve()
    if out.is_relative_to(ROOT):
        out = out.relative_to(ROOT)
    check_folder(out)
    os.chdir(ROOT)
    with held_folder(out, "quickstart"):
        compare(options, out)


def compare(options: argparse.Namespace, out: Path) -> None:
    """Trains and evaluates the arms, and writes what they came to.

    Raises:
        UserError: fairseq failed.
    """
    data = prepare(options, out)
    recipe = Recipe(
        updates=options.updates,
        embed=options.embed,
        units=options.units,
        lr=options.lr,
        max_tokens=options.max_tokens,
        save_interval=options.save_interval,
        seed=options.seed,
    )
    logs = {}
    for number, arm in enumerate(options.arms):
        folder = out / arm
        after = len(options.arms) - number - 1
        train(arm, recipe, data, folder, options.threads, number, after)
        logs[arm] = translate(data, folder, options.threads)

    from examples.quickstart import report  # only now: it takes seconds to import

    rows, signature = [], ""
    for arm in options.arms:
        references = sides(out / "text", "test", corpus.LANGUAGES)[1]
        row, signature = report.evaluate(
            arm, out / arm, logs[arm], data, references, max_sentences=options.valid
        )
        rows.append(row)
    command = " ".join(["python -m examples.quickstart.run", *sys.argv[1:]])
    where = {**machine(options.threads), "seed": options.seed, "command": command}
    sizes = {part: getattr(options, part) for part in corpus.LARGEST}
    table = report.markdown(rows, signature, sizes, options.updates, where)
    result = {
        "rows": [asdict(row) for row in rows],
        "signature": signature,
        "sizes": sizes,
        "recipe": asdict(recipe),
        "environment": where,
    }
    write_text(out / "results.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "results.md", table)
    print("", table, f"{out / 'results.md'} and results.json written", sep="\n")
    try:
        report.draw_gates(rows, out / "gates.png")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    else:
        print(f"{out / 'gates.png'} written")


if __name__ == "__main__":
    run_main(main)
