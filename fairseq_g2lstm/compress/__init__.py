"""Compression of trained models: what rounding, clipping, low rank and integers cost."""

from .evaluate import Evaluator, Score
from .parts import Selection
from .plan import compressed, uniform_plan
from .study import Cell, study
from .transforms import Transform, parse

__all__ = ["Cell", "Evaluator", "Score", "Selection", "Transform", "compressed", "parse", "study", "uniform_plan"]
