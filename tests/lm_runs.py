"""What the tests of language models share: a tiny text, fairseq's options, training and evaluation in this process."""

import random
from pathlib import Path
from typing import Any

from conftest import PLUGIN, run_module, train_in_process
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

TASK = ["--task", "g2lstm_language_modeling", "--tokens-per-sample", 10]
SMALL = ["--decoder-embed-dim", 8, "--decoder-layer-sizes", "9,8", "--decoder-out-embed-dim", 8]
# Everything that moves or draws random numbers: drawn lengths, dropout of all kinds, noise, averaging. An epoch of the
# tests' text has some 22 blocks of eight rows. The averaging starts early: a large learning rate and --asgd-nonmono 1.
RECIPE = ["--variable-tokens-per-sample", "--tokens-per-sample", 12]
RECIPE += ["--decoder-dropout-type", "locked", "--decoder-weight-drop", 0.3, "--decoder-dropout-embed", 0.1]
RECIPE += ["--activation-reg", 2, "--temporal-activation-reg", 1]
RECIPE += ["--optimizer", "nt_asgd", "--asgd-nonmono", 1, "--lr", 40, "--clip-norm", 1]


def write_text(folder: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Lines of words each of which names its neighbour's successor by a rule, so that what came before tells."""
    generator = random.Random(seed)
    for split, n_lines in sizes.items():
        lines, word = [], 0
        for _ in range(n_lines):
            line = []
            for _ in range(generator.randint(3, 9)):
                word = (3 * word + generator.choice([1, 2])) % 17
                line.append(f"w{word}")
            lines.append(" ".join(line))
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")


def preprocess(folder: Path, *more: object) -> Path:
    """The data-bin of a folder's train.txt, valid.txt and test.txt."""
    prefixes = [f"--{split}pref={folder / f'{split}.txt'}" for split in ("train", "valid", "test")]
    done = run_module("fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", folder / "data-bin", *more)
    assert done.returncode == 0, done.stderr
    return folder / "data-bin"


def lm_options(data: Path | str, save_dir: Path, *more: object) -> list[str]:
    """Options of fairseq-train for a tiny language model: 4 rows in blocks of 10 tokens."""
    options: list[object] = [data, "--user-dir", PLUGIN, "--cpu", "--arch", "g2lstm_lm", *TASK, *SMALL]
    options += ["--dropout", 0.2, "--criterion", "g2lstm_cross_entropy", "--optimizer", "sgd", "--lr", 1.0]
    options += ["--clip-norm", 1.0, "--batch-size", 4, "--seed", 1, "--num-workers", 0, "--no-epoch-checkpoints"]
    options += ["--update-epoch-batch-itr", "True", "--save-dir", save_dir, "--log-format", "simple", *more]
    return [str(option) for option in options]


def train_lm(data: Path | str, save_dir: Path, *more: object) -> Path:
    """Trains a tiny language model in this process; returns the folder of its checkpoints."""
    train_in_process(lm_options(data, save_dir, *more))
    return save_dir


def eval_lm(data: Path, checkpoint: Path, *more: object) -> dict[str, Any]:
    """fairseq-eval-lm in this process; what it returns: loss in bits a token, and perplexity."""
    from fairseq_cli.eval_lm import main

    parser = fairseq_options.get_eval_lm_parser()
    given = [data, "--user-dir", PLUGIN, "--cpu", "--path", checkpoint, "--num-workers", 0, *TASK, *more]
    arguments = fairseq_options.parse_args_and_arch(parser, input_args=[str(option) for option in given])
    return main(convert_namespace_to_omegaconf(arguments))


def stock_lm_options(data: Path, save_dir: Path, *more: object) -> list[str]:
    """Options of fairseq-train for a tiny stock `lstm_lm` of two layers of nine units, under fairseq's own task."""
    options = lm_options(data, save_dir, "--task", "language_modeling", "--decoder-layers", 2)
    options[options.index("g2lstm_lm")] = "lstm_lm"
    position = options.index("--decoder-layer-sizes")
    del options[position : position + 2]
    return [*options, "--decoder-hidden-size", "9", "--criterion", "cross_entropy", *map(str, more)]
