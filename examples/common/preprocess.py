"""From segmented text to fairseq's binary data, and the stages that every bitext goes through."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from examples.common.errors import UserError
from examples.common.files import atomic_directory
from examples.common.stages import Stages
from examples.common.text import Cleaning, apply_codes, learn_codes

SPLITS = ("train", "valid", "test")
Languages = tuple[str, str]


def sides(folder: Path, split: str, languages: Languages) -> tuple[Path, Path]:
    """The two files of a split in a folder."""
    return folder / f"{split}.{languages[0]}", folder / f"{split}.{languages[1]}"


def fairseq_preprocess(
    data_bin: Path,
    languages: Languages,
    splits: Mapping[str, Path],
    *,
    joined_dictionary: bool = False,
    workers: int = 1,
) -> str:
    """Run fairseq-preprocess; the data folder appears whole or not at all.

    Args:
        data_bin: the folder to write, replaced where it exists.
        languages: source and target.
        splits: for each split its prefix, to which fairseq adds `.LANGUAGE`.
        joined_dictionary: one dictionary for both languages.
        workers: number of processes.

    Raises:
        UserError: fairseq-preprocess failed; the end of what it said is given.
    """
    given = ["--source-lang", languages[0], "--target-lang", languages[1]]
    given += ["--joined-dictionary"] if joined_dictionary else []
    with atomic_directory(data_bin) as part:
        run_fairseq_preprocess(part, splits, *given, "--workers", str(max(1, workers)))
        sizes = [
            len((part / f"dict.{lang}.txt").read_text("utf-8").splitlines()) for lang in languages
        ]
    return f"dictionaries of {sizes[0]} and {sizes[1]} types"


def run_fairseq_preprocess(folder: Path, splits: Mapping[str, Path], *options: str) -> None:
    """Run fairseq-preprocess on each split's prefix or file.

    Raises:
        UserError: it failed; the end of what it said is given.
    """
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *options, f"--destdir={folder}"]
    command += [f"--{split}pref={path}" for split, path in splits.items()]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise UserError(f"fairseq-preprocess failed with {done.returncode}; it said:\n{tail}")


def add_segmentation(parser: argparse.ArgumentParser, merges: int) -> None:
    """Add the options of `segment_and_binarise` that every bitext has; `merges` is the default."""
    parser.add_argument(
        "--merges",
        type=int,
        default=merges,
        metavar="N",
        help="merges of the joint byte-pair encoding (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)"
    )


def check_folder(out: Path) -> None:
    """Check the folder to write.

    Raises:
        UserError: fairseq would cut its name.
    """
    if set(":,") & set(str(out)):
        raise UserError(f"--out must have neither colon nor comma, at which fairseq cuts names, got {out}")


def check_segmentation(options: argparse.Namespace) -> None:
    """Check what `add_segmentation` added, and the folder to write.

    Raises:
        UserError: a number is below 1, or fairseq would cut the folder's name.
    """
    check_folder(options.out)
    for name in ("merges", "workers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be >= 1, got {getattr(options, name)}")


def segment_split(
    stages: Stages,
    split: str,
    languages: Languages,
    codes: Path,
    cleaning: Cleaning | None = None,
    workers: int = 1,
) -> None:
    """The stage from `OUT/text` to `OUT/bpe` of one split."""
    out = stages.directory
    inputs, outputs = sides(out / "text", split, languages), sides(out / "bpe", split, languages)
    stages.run(
        f"bpe-{split}",
        lambda: apply_codes(inputs, outputs, codes, cleaning, workers),
        inputs=[codes, *inputs],
        outputs=outputs,
        options={"cleaning": repr(cleaning), "subword-nmt": version("subword-nmt")},
    )


def segment_and_binarise(
    stages: Stages,
    languages: Languages,
    *,
    merges: int,
    joined_dictionary: bool,
    clean_segmented: Cleaning | None = None,
    workers: int = 1,
) -> None:
    """The stages from `OUT/text` by `OUT/codes` and `OUT/bpe` to `OUT/data-bin`.

    Args:
        stages: of the output directory, with train, valid and test under `text`.
        languages: source and target.
        merges: of the joint byte-pair encoding, learned on train.
        joined_dictionary: one dictionary for both languages.
        clean_segmented: which training pairs stay after segmentation; None keeps all.
        workers: number of processes.
    """
    out = stages.directory
    codes, bpe = out / "codes", out / "bpe"
    train = sides(out / "text", "train", languages)
    stages.run(
        "codes",
        lambda: learn_codes(train, codes, merges),
        inputs=train,
        outputs=[codes],
        options={"merges": merges, "subword-nmt": version("subword-nmt")},
    )
    for split in SPLITS:
        cleaning = clean_segmented if split == "train" else None
        segment_split(stages, split, languages, codes, cleaning, workers)
    stages.run(
        "data-bin",
        lambda: fairseq_preprocess(
            out / "data-bin",
            languages,
            {split: bpe / split for split in SPLITS},
            joined_dictionary=joined_dictionary,
            workers=workers,
        ),
        inputs=[path for split in SPLITS for path in sides(bpe, split, languages)],
        outputs=[out / "data-bin"],
        options={"joined_dictionary": joined_dictionary, "languages": languages},
    )
    stages.say(f"fairseq's data: {out / 'data-bin'}")
