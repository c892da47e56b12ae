"""Checkpoints whose weights are stored in integers or factored: `storage.py` writes and reads them, `matrix.py`
computes with them as they are stored, `installing.py` puts that into a model."""

from .installing import keep_packed
from .matrix import Embedding, Linear, PackedMatrix, weight_of
from .storage import META, Packing, pack_weights, unpack_weights

__all__ = [
    "META",
    "Embedding",
    "Linear",
    "PackedMatrix",
    "Packing",
    "keep_packed",
    "pack_weights",
    "unpack_weights",
    "weight_of",
]
