"""Command lines whose help is their module's docstring."""

from __future__ import annotations

import argparse


def docstring_parser(module: str, doc: str | None, more: str = "") -> argparse.ArgumentParser:
    """A parser for `python -m MODULE`: the docstring's first line stands above the options, the others below.

    Args:
        module: its full name, which is `__main__` to the module itself.
        doc: its `__doc__`.
        more: what the help ends with.
    """
    summary, usage = (doc or "").split("\n", 1)
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=summary,
        epilog=usage + more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
