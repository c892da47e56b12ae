"""Tokenisation, cleaning and byte-pair encoding of two aligned texts, streamed.

The work itself is sacremoses' and subword-nmt's; here are the settings that reproduce what Moses'
`tokenizer.perl` and `clean-corpus-n.perl` give, and the spreading over processes.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from sacremoses import MosesPunctNormalizer, MosesTokenizer
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe
from tqdm import tqdm

from examples.common.errors import UserError
from examples.common.files import atomic_writers, read_lines, read_pairs

TOKENIZERS = ("moses", "none")
Pair = tuple[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")
_BLOCK = 2000


@cache
def _moses(language: str) -> MosesTokenizer:
    return MosesTokenizer(lang=language)


@cache
def _normalizer(language: str) -> MosesPunctNormalizer:
    return MosesPunctNormalizer(lang=language, post_remove_control_chars=True, perl_parity=True)


def split_final_stop(tokens: list[str]) -> list[str]:
    """Split a full stop off the last token, abbreviation or not.

    Moses' `tokenizer.perl` does so since the last word of a line is hardly ever an abbreviation;
    sacremoses 0.2.0 does not. Dots alone stay together.
    """
    if tokens and tokens[-1].endswith(".") and tokens[-1].strip("."):
        return [*tokens[:-1], tokens[-1][:-1], "."]
    return tokens


@dataclass(frozen=True)
class LineFormat:
    """What is done to each line before cleaning.

    Attributes:
        tokenizer: `moses`, or `none` for text that is already tokenised.
        lowercase: whether to lower-case.
        aggressive_dash_splits: split `foo-bar` into `foo @-@ bar`, Moses' option `-a`.
        normalize: normalise punctuation first and remove control characters, as Moses'
            `normalize-punctuation.perl` and `remove-non-printing-char.perl` do.
    """

    tokenizer: str = "moses"
    lowercase: bool = False
    aggressive_dash_splits: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise UserError(f"tokenizer must be one of {TOKENIZERS}, got {self.tokenizer!r}")

    def __call__(self, line: str, language: str) -> str:
        """One line, tokenised, with single spaces between tokens and none around them."""
        if self.normalize:
            line = _normalizer(language).normalize(" ".join(line.split()))
        if self.tokenizer == "moses":
            tokens = _moses(language).tokenize(
                line, aggressive_dash_splits=self.aggressive_dash_splits, escape=True
            )
            line = " ".join(split_final_stop(tokens))
        if self.lowercase:
            line = line.lower()
        # fairseq reads a lone carriage return as the end of a line: no whitespace but the space.
        return " ".join(line.split())


@dataclass(frozen=True)
class Cleaning:
    """Which pairs stay, after Moses' `clean-corpus-n.perl`.

    Attributes:
        max_length: most tokens on either side; 0 sets no limit.
        max_ratio: largest quotient of the two lengths, either way; 0 sets no limit.
        max_token_length: most characters of one token, 1000 as in Moses; 0 sets no limit.
    """

    max_length: int = 175
    max_ratio: float = 9.0
    max_token_length: int = 1000

    def __post_init__(self) -> None:
        if self.max_length < 0:
            raise UserError(f"max length must be >= 1, or 0 for none, got {self.max_length}")
        if self.max_ratio != 0 and not self.max_ratio >= 1:
            raise UserError(f"max ratio must be >= 1, or 0 for none, got {self.max_ratio}")

    def objection(self, pair: Pair) -> str | None:
        """Why a pair is dropped: `empty`, `length`, `ratio` or `token`; None where it stays."""
        tokens = [side.split() for side in pair]
        shorter, longer = sorted(len(side) for side in tokens)
        if shorter == 0:
            return "empty"
        if self.max_length and longer > self.max_length:
            return "length"
        if self.max_ratio and longer > self.max_ratio * shorter:
            return "ratio"
        if self.max_token_length and max(map(len, chain(*tokens))) > self.max_token_length:
            return "token"
        return None


def spread(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`map` over processes, in order, reading no further ahead than some blocks of items."""
    if workers <= 1:
        yield from map(function, items)
        return
    items = iter(items)
    # A fork of this process could inherit a lock held by another thread, of a progress bar say.
    with multiprocessing.get_context("forkserver").Pool(workers) as pool:
        while block := list(islice(items, workers * _BLOCK)):
            yield from pool.imap(function, block, chunksize=max(1, _BLOCK // 8))


@contextmanager
def _progress(title: str) -> Iterator[Callable[[Iterable[Item]], Iterator[Item]]]:
    """A progress bar that appears only on a terminal."""
    with tqdm(desc=title, unit=" lines", unit_scale=True, disable=None, leave=False) as bar:

        def watch(items: Iterable[Item]) -> Iterator[Item]:
            for item in items:
                bar.update()
                yield item

        yield watch


def format_pair(pair: Pair, *, line_format: LineFormat, source_lang: str, target_lang: str) -> Pair:
    """Both sides of a pair through `line_format`."""
    return line_format(pair[0], source_lang), line_format(pair[1], target_lang)


def write_pairs(
    pairs: Iterable[Pair], source: Path, target: Path, cleaning: Cleaning | None = None
) -> str:
    """Write pairs to two aligned files, dropping those that `cleaning` objects to.

    Returns:
        How many were kept, and why others were dropped.
    """
    dropped: Counter[str] = Counter()
    kept = 0
    with atomic_writers(source, target) as (sources, targets):
        for pair in pairs:
            if cleaning and (reason := cleaning.objection(pair)):
                dropped[reason] += 1
                continue
            kept += 1
            sources.write(pair[0] + "\n")
            targets.write(pair[1] + "\n")
        total = kept + dropped.total()
        if total == 0:
            raise UserError(f"no lines to write to {source}: its inputs are empty")
        if kept == 0:
            raise UserError(
                f"cleaning left none of {total} pairs for {source} ({_reasons(dropped)}); "
                "are both files in the right language and tokenised?"
            )
    return f"{kept} pairs" + (f" of {total} ({_reasons(dropped)})" if dropped else "")


def _reasons(dropped: Counter[str]) -> str:
    return "dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))


def prepare_text(
    pairs: Iterable[Pair],
    outputs: tuple[Path, Path],
    languages: tuple[str, str],
    line_format: LineFormat,
    cleaning: Cleaning | None = None,
    workers: int = 1,
) -> str:
    """Tokenise pairs of lines, clean them and write them to two aligned files.

    Args:
        pairs: of lines, as `read_pairs` gives them.
        outputs: the two files to write.
        languages: of the two sides, as Moses abbreviates them.
        line_format: what is done to each line.
        cleaning: which pairs stay; None keeps all.
        workers: number of processes.

    Returns:
        A remark on what was kept.
    """
    one = partial(
        format_pair, line_format=line_format, source_lang=languages[0], target_lang=languages[1]
    )
    with _progress(outputs[0].name) as watch:
        return write_pairs(watch(spread(one, pairs, workers)), *outputs, cleaning)


def learn_codes(texts: Iterable[Path], codes: Path, merges: int) -> str:
    """Learn a joint byte-pair encoding on all the texts together.

    Raises:
        UserError: `merges` below 1, or a text without a pair of symbols to merge.
    """
    if merges < 1:
        raise UserError(f"merges must be >= 1, got {merges}")
    lines = chain.from_iterable(read_lines(path) for path in texts)
    # subword-nmt's progress bar knows no terminal from a log file.
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with atomic_writers(codes) as (stream,), quiet, _progress("reading for BPE") as watch:
        try:
            learn_bpe(watch(lines), stream, merges)
        except ValueError as error:
            raise UserError(f"cannot learn a byte-pair encoding from this text: {error}") from error
    learned = sum(1 for _ in read_lines(codes)) - 1
    if learned < merges:
        return f"only {learned} merges: the text holds no more pairs that occur twice"
    return f"{learned} merges"


@cache
def load_codes(codes: Path) -> BPE:
    """The segmenter of a codes file, loaded once per process.

    Raises:
        UserError: the file is missing or holds something else than codes.
    """
    text = "\n".join(read_lines(codes))
    try:
        return BPE(io.StringIO(text))
    except (SystemExit, ValueError) as error:
        raise UserError(f"{codes} is not a file of BPE codes as subword-nmt writes it") from error


def segment_pair(pair: Pair, *, codes: Path) -> Pair:
    """Both sides of a pair, segmented."""
    bpe = load_codes(codes)
    return bpe.segment(pair[0]), bpe.segment(pair[1])


def apply_codes(
    inputs: tuple[Path, Path],
    outputs: tuple[Path, Path],
    codes: Path,
    cleaning: Cleaning | None = None,
    workers: int = 1,
) -> str:
    """Segment two aligned files by a joint encoding, then clean them by pairs of segments."""
    load_codes.cache_clear()
    load_codes(codes)
    one = partial(segment_pair, codes=codes)
    with _progress(outputs[0].name) as watch:
        return write_pairs(watch(spread(one, read_pairs(*inputs), workers)), *outputs, cleaning)
