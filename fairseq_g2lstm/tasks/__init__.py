"""Tasks that fairseq finds through --user-dir."""

from . import language_modeling

__all__ = ["language_modeling"]
