"""Prepare any two line-aligned texts for translation with fairseq.

    python -m examples.bitext.prepare --source-lang de --target-lang en \\
        --train corpus/train --valid corpus/valid --test corpus/test --out data/mine

reads `corpus/train.de` and `corpus/train.en` (or the same with `.gz` or `.xz`) and so on, and
writes `data/mine/text` (tokenised and cleaned), `codes`, `bpe` and, for fairseq, `data-bin`.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import version
from pathlib import Path

from examples.common.errors import UserError, run_main
from examples.common.files import find_text, held_folder, read_pairs
from examples.common.options import docstring_parser
from examples.common.preprocess import SPLITS, add_segmentation, check_segmentation, segment_and_binarise, sides
from examples.common.stages import Stages
from examples.common.text import TOKENIZERS, Cleaning, LineFormat, prepare_text


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = docstring_parser("examples.bitext.prepare", __doc__)
    parser.add_argument("--source-lang", required=True, metavar="LANG")
    parser.add_argument("--target-lang", required=True, metavar="LANG")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            required=True,
            metavar="PREFIX",
            help="of PREFIX.LANG, PREFIX.LANG.gz or PREFIX.LANG.xz",
        )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        default="moses",
        help="none for text that is tokenised already (default: moses)",
    )
    parser.add_argument("--lowercase", action="store_true", help="lower-case both sides")
    add_segmentation(parser, merges=10000)
    parser.add_argument(
        "--max-length",
        type=int,
        default=175,
        metavar="N",
        help="drop longer training pairs, in tokens; 0 keeps all (default: 175)",
    )
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=9.0,
        metavar="R",
        help="drop training pairs of lengths further apart; 0 keeps all (default: 9)",
    )
    parser.add_argument(
        "--joined-dictionary",
        action="store_true",
        help="one dictionary for both languages, as --share-all-embeddings needs",
    )
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    """Run or skip each stage.

    Raises:
        UserError: a bad option, a missing, damaged or misaligned file.
    """
    languages = (options.source_lang, options.target_lang)
    if languages[0] == languages[1]:
        raise UserError(f"source and target language must differ, got {languages[0]!r} twice")
    for lang in languages:
        if not re.fullmatch(r"\w+", lang):
            raise UserError(
                "a language must be of letters, digits and underscores, since fairseq finds it in the names of files, "
                f"train.SOURCE-TARGET.LANGUAGE.bin, got {lang!r}: link the texts to names such as train.pt_BR"
            )
    check_segmentation(options)
    line_format = LineFormat(options.tokenizer, options.lowercase)
    cleaning = Cleaning(options.max_length, options.max_ratio)
    raw = {
        split: tuple(find_text(getattr(options, split), lang) for lang in languages)
        for split in SPLITS
    }
    stages = Stages(options.out)
    with held_folder(options.out, "preparation"):
        for split in SPLITS:
            outputs = sides(options.out / "text", split, languages)
            clean = cleaning if split == "train" else None

            def work(inputs=raw[split], outputs=outputs, clean=clean) -> str:
                return prepare_text(
                    read_pairs(*inputs), outputs, languages, line_format, clean, options.workers
                )

            stages.run(
                f"text-{split}",
                work,
                inputs=raw[split],
                outputs=outputs,
                options={
                    "line_format": repr(line_format),
                    "cleaning": repr(clean),
                    "languages": languages,
                    "sacremoses": version("sacremoses"),
                },
            )
        segment_and_binarise(
            stages,
            languages,
            merges=options.merges,
            joined_dictionary=options.joined_dictionary,
            workers=options.workers,
        )


if __name__ == "__main__":
    run_main(lambda: prepare(parse_arguments()))
