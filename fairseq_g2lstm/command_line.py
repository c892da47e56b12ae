"""What the package's own command lines share."""

import argparse


def positive_integer(text: str) -> int:
    """An option's value as a number >= 1, for `argparse`'s `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)
