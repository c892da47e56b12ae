"""Penn Treebank from the corpus to the comparison: prepare, train and evaluate every arm with every seed, compare.

    python -m examples.ptb.run --corpus FOLDER --out DIR [--recipe small|medium|awd] [-- fairseq-train options]

Writes DIR/data-bin, a folder DIR/RECIPE-ARM-SEED for each training, and DIR/results.md, results.json and
perplexity.png. Called again, it keeps what is finished and goes on with what was interrupted. What follows -- goes to
every training, for example --save-interval-updates 500 --keep-interval-updates 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import write_text
from examples.common.options import docstring_parser
from examples.common.stages import Stages, sha256_of
from examples.ptb import compare, evaluation, prepare
from examples.ptb.progress import Progress, StatusLine

HERE = Path(__file__).resolve().parent
RECIPES = ("small", "medium", "awd")
ARMS = ("gumbel", "sharpened", "sigmoid", "stock")
SEEDS = (1, 1_000_001, 2_000_001)
# The stock model reads blocks, each from zeros: with blocks of the training's length a word has less context than the
# other arms' words have, with these about as much.
LONG_BLOCKS = ("--tokens-per-sample=1000", "--model-overrides={'max_target_positions': 1000}")
FAR_APART = 1_000_000  # more updates than any training here has
OF_THE_PLUGIN = "--float32-matmul-precision"  # an option of the task that the other arms are trained by


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options; `train_options` are those after `--`.

    Raises:
        UserError: seeds that are too close, an arm that the recipe does not have, a number out of range, an option
            for trainings that the stock arm cannot have.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = docstring_parser("examples.ptb.run", __doc__, f"\n{prepare.SOURCE}.")
    parser.add_argument("--corpus", required=True, type=Path, metavar="FOLDER", help="as prepare takes it")
    parser.add_argument("--any-text", action="store_true", help="take another text, as prepare does")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--recipe", choices=RECIPES, default="small", help="of train.sh (default: small)")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, metavar="ARM", help="which to train (default: all that the recipe has)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(SEEDS), metavar="N",
        help=f"a million apart or more (default: {' '.join(map(str, SEEDS))})",
    )  # fmt: skip
    parser.add_argument("--max-epoch", type=int, metavar="N", help="of each training (default: the recipe's)")
    options = parser.parse_args(given[:cut])
    options.train_options = given[cut + 1 :]
    has = [arm for arm in ARMS if (options.recipe, arm) != ("awd", "stock")]
    options.arms = options.arms or has
    if not set(options.arms) <= set(has) or len(set(options.arms)) < len(options.arms):
        got = " ".join(options.arms)
        raise UserError(f"--arms takes {', '.join(has)} with the recipe {options.recipe}, each once, got {got}")
    if "stock" in options.arms and any(each.startswith(OF_THE_PLUGIN) for each in options.train_options):
        others = " ".join(arm for arm in options.arms if arm != "stock")
        raise UserError(
            f"{OF_THE_PLUGIN} is an option of the plugin's task, which stock lstm_lm is not trained by: "
            f"choose --arms without stock{f', such as --arms {others}' if others else ''}"
        )
    for low, high in pairwise(sorted(options.seeds)):
        if high - low < FAR_APART:
            raise UserError(
                f"--seeds must be at least {FAR_APART:,} apart, since fairseq draws the randomness of update u from "
                f"seed + u, got {low} and {high}"
            )
    if min(options.seeds) < 0:
        raise UserError(f"--seeds must be >= 0, got {min(options.seeds)}")
    if options.max_epoch is not None and options.max_epoch < 1:
        raise UserError(f"--max-epoch must be >= 1, got {options.max_epoch}")
    return options


@contextmanager
def running(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A script in a group of processes of its own, all of which end with this one."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHON": sys.executable, "PYTHONUTF8": "1", **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def run_script(command: Sequence[str], watch: Callable[[str], None], **environment: str) -> None:
    """Run one of this folder's scripts, what it says line by line to `watch`.

    Raises:
        UserError: it failed; the end of what it said is given.
    """
    tail: list[str] = []
    with running(["bash", str(HERE / command[0]), *command[1:]], **environment) as process:
        assert process.stdout
        for line in process.stdout:
            tail = [*tail[-14:], line]
            watch(line)
    if process.returncode:
        raise UserError(f"{command[0]} failed with {process.returncode}; it said:\n{''.join(tail)}")


def check_options(options: argparse.Namespace, data_bin: Path) -> None:
    """Make sure that every arm's training takes the options after `--`, before the first one begins.

    Raises:
        UserError: one does not.
    """
    for arm in options.arms if options.train_options else ():
        command = ["train.sh", options.recipe, arm, str(data_bin), str(options.out), *options.train_options]
        try:
            run_script(command, lambda _: None, ONLY_CHECK="1")
        except UserError as error:
            given = shlex.join(options.train_options)
            raise UserError(f"the arm {arm} cannot be trained with {given}: {error}") from error


def check_folder(folder: Path, identity: str) -> None:
    """Make sure that a training in the folder, finished or not, is the one that is asked for; note down which it is.

    Raises:
        UserError: it is another.
    """
    note = folder / "training.json"
    before = note.read_text(encoding="utf-8") if note.exists() else None
    if before != identity and (before is not None or (folder / "checkpoint_last.pt").exists()):
        what = "with other options or other data" if before is not None else "by another command"
        raise UserError(
            f"{folder} holds a training {what}; give another --out, or delete that folder to train it anew"
        )
    write_text(note, identity)


def train(
    stages: Stages, options: argparse.Namespace, arm: str, seed: int, data_bin: Path, title: str, after: int
) -> Path:
    """Train one arm with one seed, go on with it, or leave it as it is where it is finished.

    Returns:
        Its folder.

    Raises:
        UserError: train.sh failed, or its folder holds another training.
    """
    name = f"{options.recipe}-{arm}-{seed}"
    folder = options.out / name
    data = sorted(path for path in data_bin.iterdir() if path.suffix != ".log")
    identity = {
        "recipe": options.recipe,
        "gates": arm,
        "seed": seed,
        "options": options.train_options,
        "data": {path.name: sha256_of(path) for path in data},
    }
    length = [] if options.max_epoch is None else ["--max-epoch", str(options.max_epoch)]

    def work() -> str:
        # more epochs than before are no other training
        check_folder(folder, json.dumps(identity, indent=1) + "\n")
        if (folder / "checkpoint_last.pt").exists():
            stages.say(f"{name}: goes on from {folder / 'checkpoint_last.pt'}")
        command = ["train.sh", options.recipe, arm, str(data_bin), str(folder), "--seed", str(seed)]
        command += [*length, *options.train_options]
        stages.say(shlex.join(["bash", "examples/ptb/train.sh", *command[1:]]))
        sys.stdout.flush()
        progress = Progress(title, after)
        try:
            run_script(command, progress)
        finally:
            progress.close()
        return f"valid perplexity {progress.validation.perplexity:.2f}" if progress.validation else ""

    best = folder / "checkpoint_best.pt"
    stages.run(f"train-{name}", work, inputs=data, outputs=[best], options={**identity, "length": length})
    return folder


def evaluate(
    stages: Stages, folder: Path, data_bin: Path, title: str, name: str, more: Sequence[str] = ()
) -> None:
    """Evaluate a training on the test set, unless its result is that of its best checkpoint already.

    Args:
        folder: the training's.
        data_bin: the data.
        title: what is evaluated.
        name: of the result.
        more: options of evaluate.sh.

    Raises:
        UserError: evaluate.sh failed.
    """
    said: list[str] = []
    status = StatusLine()

    def watch(line: str) -> None:
        said.append(line)
        if line.startswith(evaluation.PROGRESS):
            status.show(f"{title}: {line.strip()}")

    def work() -> str:
        try:
            run_script(["evaluate.sh", str(data_bin), str(folder), *more], watch, RESULT_NAME=name)
        finally:
            status.close()
        return next(line.strip() for line in said if line.startswith("test perplexity"))

    stages.run(
        f"{name}-{folder.name}",
        work,
        inputs=[folder / "checkpoint_best.pt", *(data_bin / name for name in ("dict.txt", "test.bin", "test.idx"))],
        outputs=[folder / f"{name}.json"],
        options={"more": more},
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse_arguments(arguments)
    # a terminated run ends its fairseq too, and does not leave it to write on beside the next one
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # under nohup a hangup is ignored
            signal.signal(number, lambda *_: sys.exit("terminated; run it again to go on"))
    data_bin = prepare.prepare(options)
    check_options(options, data_bin)
    stages = Stages(options.out)
    plan = [(arm, seed) for seed in options.seeds for arm in options.arms]
    folders = []
    for number, (arm, seed) in enumerate(plan, 1):
        title = f"[{number}/{len(plan)}] {options.recipe} {arm}, seed {seed}"
        folder = train(stages, options, arm, seed, data_bin, title, len(plan) - number)
        evaluate(stages, folder, data_bin, title, compare.RESULTS[0])
        if arm == "stock":
            evaluate(stages, folder, data_bin, title, compare.RESULTS[1], LONG_BLOCKS)
        folders.append(str(folder))
    print("", compare.report(folders, options.out), sep="\n")
    print(f"{options.out / 'results.md'}, results.json and perplexity.png written")


if __name__ == "__main__":
    run_main(main)
