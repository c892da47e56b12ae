"""Prepare Penn Treebank, or any text in three files, for language modelling by words.

    python -m examples.ptb.prepare --corpus FOLDER --out data/ptb

reads FOLDER/ptb.train.txt, ptb.valid.txt and ptb.test.txt, each plain, .xz or .gz, one sentence a
line, words separated by spaces, and writes data/ptb/text and, for fairseq, data/ptb/data-bin.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import atomic_directory, atomic_writers, find_text, read_lines
from examples.common.options import docstring_parser
from examples.common.preprocess import SPLITS, run_fairseq_preprocess
from examples.common.stages import Stages

# Tokens of Mikolov's preparation with an end of sentence for each line, as everyone counts them, and
# its types with <unk> and the end of sentence.
TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}
TYPES = 10_000
SOURCE = (
    "Penn Treebank is to be had from the Linguistic Data Consortium (catalogue number LDC99T42); the "
    "three files are Tomas Mikolov's preparation of it, in the folder data of the archive "
    "'simple-examples' of his RNNLM toolkit"
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = docstring_parser("examples.ptb.prepare", __doc__, f"\n{SOURCE}.")
    parser.add_argument(
        "--corpus", required=True, type=Path, metavar="FOLDER", help="of the three files"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--any-text",
        action="store_true",
        help="take another text under these names; its counts are told, not checked",
    )
    return parser.parse_args(arguments)


def find_corpus(folder: Path) -> dict[str, Path]:
    """The file of each split.

    Raises:
        UserError: one is missing; where the corpus is to be had is told.
    """
    try:
        return {split: find_text(folder / f"ptb.{split}", "txt") for split in SPLITS}
    except UserError as error:
        raise UserError(f"{error}. {SOURCE}") from error


def write_text(raw: Mapping[str, Path], text: Mapping[str, Path], any_text: bool) -> str:
    """Copy the splits with single spaces between words; all three are written, or none is.

    Args:
        raw: the file of each split, plain or compressed.
        text: where each goes.
        any_text: whether a text other than Penn Treebank is welcome.

    Returns:
        The numbers of tokens and types, in words.

    Raises:
        UserError: a split is empty or damaged, or the counts are not Penn Treebank's.
    """
    words: dict[str, set[str]] = {}
    tokens: dict[str, int] = {}
    with atomic_writers(*(text[split] for split in SPLITS)) as streams:
        for split, stream in zip(SPLITS, streams, strict=True):
            words[split], tokens[split] = set(), 0
            for line in read_lines(raw[split]):
                parts = line.split()
                words[split].update(parts)
                tokens[split] += len(parts) + 1  # the end of sentence
                stream.write(" ".join(parts) + "\n")
            if not words[split]:
                raise UserError(f"{raw[split]} holds no words")
        types = len(words["train"]) + 1
        if not any_text:
            check_counts(tokens, types)
    unknown = {split: len(words[split] - words["train"]) for split in SPLITS[1:]}
    return (
        ", ".join(f"{split} {tokens[split]:,}" for split in SPLITS)
        + f" tokens with the ends of sentence, {types:,} types"
        + "".join(f", {n:,} types of {split} unknown" for split, n in unknown.items() if n)
    )


def check_counts(tokens: Mapping[str, int], types: int) -> None:
    """Hold the counts against Penn Treebank's.

    Raises:
        UserError: one differs.
    """
    found = {**{f"tokens of {split}": tokens[split] for split in SPLITS}, "types of train": types}
    expected = {**{f"tokens of {split}": TOKENS[split] for split in SPLITS}, "types of train": TYPES}
    wrong = [
        f"{number:,} {what} in place of {expected[what]:,}"
        for what, number in found.items()
        if number != expected[what]
    ]
    if wrong:
        raise UserError(
            "this is not Penn Treebank in Mikolov's preparation: with the ends of sentence it has "
            f"{', '.join(wrong)}; give --any-text where another text is meant. {SOURCE}"
        )


def binarise(data_bin: Path, text: Mapping[str, Path]) -> str:
    """Run fairseq-preprocess; the data folder appears whole or not at all.

    Args:
        data_bin: the folder to write, replaced where it exists.
        text: the file of each split.

    Returns:
        The size of fairseq's dictionary, in words.

    Raises:
        UserError: fairseq-preprocess failed; the end of what it said is given.
    """
    with atomic_directory(data_bin) as part:
        # By default fairseq rounds the dictionary's size up to a multiple of eight with types of no text.
        run_fairseq_preprocess(part, text, "--only-source", "--padding-factor=1")
        listed = len((part / "dict.txt").read_text("utf-8").splitlines())
    return f"a dictionary of {listed + 4:,} types with <s>, <pad>, </s> and <unk>"


def prepare(options: argparse.Namespace) -> Path:
    """Run or skip each stage.

    Returns:
        The data-bin folder.

    Raises:
        UserError: a missing or damaged file, or one that is not Penn Treebank's.
    """
    raw = find_corpus(options.corpus)
    stages = Stages(options.out)
    text = {split: options.out / "text" / f"{split}.txt" for split in SPLITS}
    data_bin = options.out / "data-bin"
    stages.run(
        "text",
        lambda: write_text(raw, text, options.any_text),
        inputs=raw.values(),
        outputs=text.values(),
        options={"any_text": options.any_text},
    )
    stages.run(
        "data-bin",
        lambda: binarise(data_bin, text),
        inputs=text.values(),
        outputs=[data_bin],
    )
    stages.say(f"fairseq's data: {data_bin}")
    return data_bin


def main() -> None:
    """The command."""
    prepare(parse_arguments())


if __name__ == "__main__":
    run_main(main)
