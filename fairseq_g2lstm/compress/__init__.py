"""Compression of trained models: what rounding, clipping, low rank and integers cost."""

from .evaluate import Evaluator, Score
from .parts import Selection
from .study import Cell, compressed, study
from .transforms import Transform, parse

__all__ = ["Cell", "Evaluator", "Score", "Selection", "Transform", "compressed", "parse", "study"]
