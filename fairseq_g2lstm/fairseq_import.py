"""Imports fairseq and leaves logging as it was: one of its modules sets it up, for everyone."""

import logging


def _import_fairseq() -> None:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        import fairseq  # noqa: F401
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


_import_fairseq()
