"""The operators in plain PyTorch: `method.py` has the equations, `decoding.py` the translation decoder."""

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

__all__ = [
    "EPS",
    "AttentionMemory",
    "CellWeights",
    "DecoderOutput",
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
    "logistic",
    "lstm_layer",
    "lstm_step",
    "uniform",
]
