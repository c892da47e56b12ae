"""Durations in words."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """A duration, >= 0, rounded as one tells it: `90 s`, `5 min`, `3.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
