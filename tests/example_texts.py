"""Small texts for the tests of the examples."""

import gzip
import lzma
import random
from pathlib import Path

from examples.common.files import atomic_directory

OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}
WORDS = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four", "fünf": "five"}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with OPENERS.get(path.suffix, open)(path, "wb") as stream:
        stream.write(text.encode())
    return path


def corpus(folder: Path, split: str, lines: int, seed: int = 0) -> Path:
    """A small German-English corpus; returns its prefix."""
    rng = random.Random(f"{split} {seed}")
    pairs = [rng.choices(list(WORDS.items()), k=rng.randint(1, 8)) for _ in range(lines)]
    for side, language in enumerate(("de", "en")):
        text = "".join(" ".join(word[side] for word in pair) + " .\n" for pair in pairs)
        write(folder / f"{split}.{language}", text)
    return folder / split


def stand_in_for_fairseq_preprocess(data_bin, languages, splits, **options) -> str:
    """Leaves a dictionary that tells what it was called with."""
    with atomic_directory(data_bin) as part:
        write(part / "dict.de.txt", repr((languages, sorted(splits), options)))
    return "stand-in"
