"""What the package's own command lines share."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path


def positive_integer(text: str) -> int:
    """An option's value as a number >= 1, for `argparse`'s `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)


def names(checkpoints: Iterable[Path], chosen: Sequence[str] | None = None) -> dict[str, Path]:
    """Checkpoints by short names.

    Args:
        checkpoints: their paths.
        chosen: what `--names` gives, a name for each; None for those of their folders, or the whole path where two
            share it.

    Raises:
        ValueError: the names are not as many as the checkpoints, or two are the same; without names, a checkpoint is
            given twice.
    """
    paths = list(checkpoints)
    if chosen is not None:
        if not len(set(chosen)) == len(chosen) == len(paths):
            raise ValueError(f"--names must be {len(paths)} different names, one a checkpoint, got {' '.join(chosen)}")
        return dict(zip(chosen, paths, strict=True))
    short = [path.parent.name or path.stem for path in paths]
    found = {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}
    if len(found) < len(paths):
        raise ValueError("a checkpoint is named twice: give each once, or tell them apart by --names")
    return found
