"""Models that fairseq finds through --user-dir."""

from . import g2lstm, language_model

__all__ = ["g2lstm", "language_model"]
