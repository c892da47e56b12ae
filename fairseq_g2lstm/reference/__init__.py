"""The operators in plain PyTorch: `method.py` has the equations, `decoding.py` the translation decoder, `packed.py`
products with the weights of packed checkpoints."""

from .decoding import (
    AttentionMemory,
    CellWeights,
    DecoderOutput,
    attend,
    attention_memory,
    decoder,
    decoder_step,
)
from .method import (
    EPS,
    bernoulli,
    cell_step,
    cross_entropy,
    dropout,
    gate_argument,
    gate_noise,
    logistic,
    lstm_layer,
    lstm_step,
    uniform,
)
from .packed import Factor, PackedWeight, linear, unpacked

__all__ = [
    "EPS",
    "AttentionMemory",
    "CellWeights",
    "DecoderOutput",
    "Factor",
    "PackedWeight",
    "attend",
    "attention_memory",
    "bernoulli",
    "cell_step",
    "cross_entropy",
    "decoder",
    "decoder_step",
    "dropout",
    "gate_argument",
    "gate_noise",
    "linear",
    "logistic",
    "lstm_layer",
    "lstm_step",
    "uniform",
    "unpacked",
]
