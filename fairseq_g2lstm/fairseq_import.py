"""Imports fairseq and leaves logging as it was: one of its modules sets it up, for everyone, and another tells of a
library that it would use."""

import logging


def _import_fairseq() -> None:
    root, fairseqs = logging.getLogger(), logging.getLogger("fairseq")
    level, handlers, fairseqs_level = root.level, root.handlers[:], fairseqs.level
    fairseqs.setLevel(logging.WARNING)
    try:
        import fairseq  # noqa: F401
    finally:
        fairseqs.setLevel(fairseqs_level)
        root.setLevel(level)
        root.handlers[:] = handlers


_import_fairseq()
