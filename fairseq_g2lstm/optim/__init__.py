"""Optimisers that fairseq finds through --user-dir."""

from . import nt_asgd

__all__ = ["nt_asgd"]
