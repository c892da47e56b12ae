"""Prepare IWSLT'14 German-English as the community does.

    python -m examples.iwslt14.prepare --out data/iwslt14

downloads the published archive (or takes `--archive PATH`): Moses tokenisation, cleaning (lengths 1
to 175, ratio 1.5), lower-casing, every 23rd training pair to the validation set, a joint byte-pair
encoding of 10,000 merges, and fairseq's binary data. The test set is dev2010, TEDX.dev2012,
tst2010, tst2011 and tst2012, one after another.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from examples.common.archives import extract
from examples.common.download import Remote, fetch
from examples.common.errors import UserError, run_main
from examples.common.files import held_folder, read_pairs
from examples.common.markup import read_segments, read_tagged
from examples.common.options import docstring_parser
from examples.common.preprocess import add_segmentation, check_segmentation, segment_and_binarise, segment_split, sides
from examples.common.stages import Stages
from examples.common.text import Cleaning, LineFormat, prepare_text, write_pairs

URL = "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
LANGUAGES = ("de", "en")
TRAIN = "train.tags.de-en.{language}"
TEST = tuple(
    f"IWSLT14.{name}.de-en.{{language}}.xml"
    for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
)
LINE_FORMAT = LineFormat(tokenizer="moses", lowercase=True)
CLEANING = Cleaning(max_length=175, max_ratio=1.5)
VALID_EVERY = 23


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = docstring_parser("examples.iwslt14.prepare", __doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="PATH",
        help="the archive, as tgz or tar.xz, instead of downloading it",
    )
    parser.add_argument("--url", default=URL, help=f"where to download it (default: {URL})")
    add_segmentation(parser, merges=10000)
    parser.add_argument(
        "--test-only", action="store_true", help="prepare only the test set's text; needs --codes"
    )
    parser.add_argument(
        "--codes",
        type=Path,
        metavar="PATH",
        help="with --test-only, the byte-pair encoding to apply",
    )
    return parser.parse_args(arguments)


def both(folder: Path, name: str) -> tuple[Path, Path]:
    """A file's German and English version."""
    return folder / name.format(language="de"), folder / name.format(language="en")


def split_train(source: Path, target: Path, *, valid: bool) -> Iterator[tuple[str, str]]:
    """Every 23rd pair for the validation set, or all the others."""
    for number, pair in enumerate(read_pairs(source, target), 1):
        if (number % VALID_EVERY == 0) == valid:
            yield pair


def prepare_test(stages: Stages, original: Path, workers: int) -> None:
    """The stage from the test sets' XML to `OUT/text/test.*`."""
    files = [both(original, name) for name in TEST]
    outputs = sides(stages.directory / "text", "test", LANGUAGES)
    pairs = chain.from_iterable(read_pairs(*pair, reader=read_segments) for pair in files)
    stages.run(
        "text-test",
        lambda: prepare_text(pairs, outputs, LANGUAGES, LINE_FORMAT, None, workers),
        inputs=chain.from_iterable(files),
        outputs=outputs,
        options={"line_format": repr(LINE_FORMAT), "sacremoses": version("sacremoses")},
    )


def prepare_train(stages: Stages, original: Path, workers: int) -> None:
    """The stages from `train.tags.*` to `OUT/text/train.*` and `valid.*`."""
    text = stages.directory / "text"
    raw, cleaned = both(original, TRAIN), sides(text, "all", LANGUAGES)
    stages.run(
        "text-all",
        lambda: prepare_text(
            read_pairs(*raw, reader=read_tagged), cleaned, LANGUAGES, LINE_FORMAT, CLEANING, workers
        ),
        inputs=raw,
        outputs=cleaned,
        options={
            "line_format": repr(LINE_FORMAT),
            "cleaning": repr(CLEANING),
            "sacremoses": version("sacremoses"),
        },
    )
    for split in ("train", "valid"):
        outputs = sides(text, split, LANGUAGES)

        def work(split: str = split, outputs: tuple[Path, Path] = outputs) -> str:
            return write_pairs(split_train(*cleaned, valid=split == "valid"), *outputs)

        stages.run(
            f"text-{split}",
            work,
            inputs=cleaned,
            outputs=outputs,
            options={"valid_every": VALID_EVERY},
        )


def prepare(options: argparse.Namespace) -> None:
    """Run or skip each stage.

    Raises:
        UserError: a bad option; an archive that is missing, damaged or the wrong one.
    """
    check_segmentation(options)
    if options.test_only != (options.codes is not None):
        raise UserError("--test-only and --codes PATH belong together: give both or neither")
    stages = Stages(options.out)
    with held_folder(options.out, "preparation"):
        original = options.out / "orig"
        archive = options.archive
        if archive is None:
            by_hand = (
                "fetch de-en.tgz of IWSLT 2014 by hand, there or from the WIT3 site "
                "(wit3.fbk.eu, 2014-01), and give it with --archive PATH"
            )
            archive = fetch(Remote(options.url, by_hand=by_hand), options.out / "download")
        elif not archive.is_file():
            raise UserError(f"no such file: {archive} (given with --archive)")
        names = TEST if options.test_only else (TRAIN, *TEST)
        wanted = {path.name: path for name in names for path in both(original, name)}
        stages.run(
            "extract",
            lambda: extract(archive, wanted),
            inputs=[archive],
            outputs=wanted.values(),
        )
        prepare_test(stages, original, options.workers)
        if options.test_only:
            segment_split(stages, "test", LANGUAGES, options.codes, workers=options.workers)
            return
        prepare_train(stages, original, options.workers)
        segment_and_binarise(
            stages,
            LANGUAGES,
            merges=options.merges,
            joined_dictionary=False,
            workers=options.workers,
        )


if __name__ == "__main__":
    run_main(lambda: prepare(parse_arguments()))
