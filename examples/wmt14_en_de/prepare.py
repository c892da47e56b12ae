"""Prepare WMT'14 English-German.

    python -m examples.wmt14_en_de.prepare --out data/wmt14 --workers 16

downloads Europarl v7, Common Crawl and News Commentary v9 for training, newstest2013 for validation
and the full newstest2014 for testing, or takes them from `--archives DIR`: punctuation of the
training text normalised, Moses tokenisation with split hyphens, a joint byte-pair encoding of
32,000 merges, cleaning of the segmented training pairs (lengths 1 to 250, ratio 1.5), and fairseq's
binary data.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from examples.common.archives import extract
from examples.common.download import Remote, fetch, verify
from examples.common.errors import UserError, run_main
from examples.common.files import held_folder, read_lines, read_pairs
from examples.common.markup import read_segments
from examples.common.options import docstring_parser
from examples.common.preprocess import add_segmentation, check_segmentation, segment_and_binarise, sides
from examples.common.stages import Stages
from examples.common.text import Cleaning, LineFormat, prepare_text, write_pairs

BASE_URL = "https://www.statmt.org"
LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Corpus:
    """One archive and what is taken from it.

    Attributes:
        name: of its stages and text files.
        path: of the archive under the base URL.
        checksum: SHA-256 as TensorFlow Datasets lists it, MD5 as sacrebleu does.
        files: names of the English and the German file in it.
    """

    name: str
    path: str
    checksum: str
    files: tuple[str, str]

    @property
    def marked_up(self) -> bool:
        """Whether the files are SGML."""
        return self.files[0].endswith(".sgm")


TRAINING = (
    Corpus(
        "europarl",
        "wmt13/training-parallel-europarl-v7.tgz",
        "sha256:0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        ("europarl-v7.de-en.en", "europarl-v7.de-en.de"),
    ),
    Corpus(
        "commoncrawl",
        "wmt13/training-parallel-commoncrawl.tgz",
        "sha256:c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        ("commoncrawl.de-en.en", "commoncrawl.de-en.de"),
    ),
    Corpus(
        "newscommentary",
        "wmt14/training-parallel-nc-v9.tgz",
        "sha256:cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        ("news-commentary-v9.de-en.en", "news-commentary-v9.de-en.de"),
    ),
)
VALID = Corpus(
    "valid",
    "wmt13/test.tgz",
    "md5:48eca5d02f637af44e85186847141f67",
    ("newstest2013-src.en.sgm", "newstest2013-src.de.sgm"),
)
TEST = Corpus(
    "test",
    "wmt14/test-full.tgz",
    "md5:a8cd784e006feb32ac6f3d9ec7eb389a",
    ("newstest2014-deen-src.en.sgm", "newstest2014-deen-ref.de.sgm"),
)
TRAIN_FORMAT = LineFormat(aggressive_dash_splits=True, normalize=True)
TEST_FORMAT = LineFormat(aggressive_dash_splits=True)
# A line never has fewer segments than tokens: what goes here would go after segmentation too.
CLEANING = Cleaning(max_length=250, max_ratio=0)
CLEANING_SEGMENTED = Cleaning(max_length=250, max_ratio=1.5)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = docstring_parser("examples.wmt14_en_de.prepare", __doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--archives",
        type=Path,
        metavar="DIR",
        help="folder that holds the five archives, instead of downloading them",
    )
    parser.add_argument(
        "--base-url",
        default=BASE_URL,
        metavar="URL",
        help=f"where wmt13/ and wmt14/ are (default: {BASE_URL})",
    )
    parser.add_argument(
        "--skip-checksums",
        action="store_true",
        help="do not compare with the published checksums, for repacked archives",
    )
    add_segmentation(parser, merges=32000)
    parser.add_argument(
        "--joined-dictionary",
        action="store_true",
        help="one dictionary for both languages, as --share-all-embeddings needs",
    )
    return parser.parse_args(arguments)


def find_archive(corpus: Corpus, options: argparse.Namespace) -> Path:
    """The corpus' archive: downloaded, or from `--archives`; checked either way.

    Raises:
        UserError: it is missing, or not the one expected.
    """
    url = f"{options.base_url.rstrip('/')}/{corpus.path}"
    remote = Remote(
        url,
        None if options.skip_checksums else corpus.checksum,
        by_hand=f"fetch {url} by hand and give its folder with --archives DIR",
    )
    if options.archives is None:
        return fetch(remote, options.out / "download")
    path = options.archives / remote.name
    if not path.is_file():
        raise UserError(f"no such file: {path}; {remote.by_hand}")
    verify(path, remote)
    return path


def prepare_corpus(
    stages: Stages, corpus: Corpus, archive: Path, workers: int
) -> tuple[Path, Path]:
    """The stages from one archive to `OUT/text/NAME.*`, whose files are returned."""
    original = stages.directory / "orig"
    raw = (original / corpus.files[0], original / corpus.files[1])
    outputs = sides(stages.directory / "text", corpus.name, LANGUAGES)
    stages.run(
        f"extract-{corpus.name}",
        lambda: extract(archive, {path.name: path for path in raw}),
        inputs=[archive],
        outputs=raw,
    )
    line_format = TEST_FORMAT if corpus.marked_up else TRAIN_FORMAT
    cleaning = None if corpus.marked_up else CLEANING
    pairs = read_pairs(*raw, reader=read_segments if corpus.marked_up else read_lines)
    stages.run(
        f"text-{corpus.name}",
        lambda: prepare_text(pairs, outputs, LANGUAGES, line_format, cleaning, workers),
        inputs=raw,
        outputs=outputs,
        options={
            "line_format": repr(line_format),
            "cleaning": repr(cleaning),
            "sacremoses": version("sacremoses"),
        },
    )
    return outputs


def prepare(options: argparse.Namespace) -> None:
    """Run or skip each stage.

    Raises:
        UserError: a bad option; an archive that is missing, damaged or the wrong one.
    """
    check_segmentation(options)
    stages = Stages(options.out)
    with held_folder(options.out, "preparation"):
        corpora = (*TRAINING, VALID, TEST)
        archives = [find_archive(corpus, options) for corpus in corpora]
        texts = [
            prepare_corpus(stages, corpus, archive, options.workers)
            for corpus, archive in zip(corpora, archives, strict=True)
        ][: len(TRAINING)]
        train = sides(options.out / "text", "train", LANGUAGES)
        stages.run(
            "text-train",
            lambda: write_pairs(chain.from_iterable(read_pairs(*pair) for pair in texts), *train),
            inputs=chain.from_iterable(texts),
            outputs=train,
        )
        segment_and_binarise(
            stages,
            LANGUAGES,
            merges=options.merges,
            joined_dictionary=options.joined_dictionary,
            clean_segmented=CLEANING_SEGMENTED,
            workers=options.workers,
        )


if __name__ == "__main__":
    run_main(lambda: prepare(parse_arguments()))
