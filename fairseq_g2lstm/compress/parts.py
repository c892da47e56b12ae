"""Which of a model's weights are compressed: rows of gates of its LSTM layers, and other matrices where asked for."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GATES = ("input-forget", "all")
MATRICES = ("ih", "hh")

# encoder.lstm.weight_ih_l0, encoder.lstm.weight_hh_l1_reverse, decoder.layers.0.weight_ih
_LSTM_WEIGHT = re.compile(r"(encoder\.lstm|decoder\.layers\.\d+)\.(weight|bias)_(ih|hh)(_l\d+(_reverse)?)?")

_OTHERS = {
    "embeddings": re.compile(r"(encoder|decoder)\.embed_tokens\.weight"),
    "output": re.compile(r"decoder\.fc_out\.weight"),
    "projections": re.compile(
        r"decoder\.(attention\.(input|output)_proj|encoder_(hidden|cell)_proj|additional_fc)\.weight"
    ),
}
OTHERS = tuple(_OTHERS)


class Part(NamedTuple):
    """name: of the weight in the state dict. rows: of how many rows, its first, the part is."""

    name: str
    rows: int


@dataclass(frozen=True)
class Selection:
    """Which parts are compressed; with torch's gate order the input and forget gates are the first half of the rows.

    Args:
        gates: "input-forget", as in the paper, or "all".
        matrices: "ih" (input to hidden), "hh" (hidden to hidden) or both.
        biases: whether their biases too.
        others: whole matrices beside the LSTM layers': "embeddings", "output" (of the logits; tied to the embeddings
            it goes with these), "projections" (attention, and what fits sizes to one another).

    Raises:
        ValueError: an unknown name, or no matrices.
    """

    gates: str = "input-forget"
    matrices: tuple[str, ...] = MATRICES
    biases: bool = False
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gates not in GATES:
            raise ValueError(f"gates must be one of {', '.join(GATES)}, got {self.gates!r}")
        if not self.matrices or not set(self.matrices) <= set(MATRICES):
            raise ValueError(f"matrices must be ih, hh or both, got {', '.join(self.matrices) or 'none'}")
        if not set(self.others) <= set(OTHERS):
            raise ValueError(f"others must be of {', '.join(OTHERS)}, got {', '.join(self.others)}")

    def parts(self, weights: Mapping[str, Tensor]) -> Iterator[Part]:
        """The parts of a model; of tied matrices the first.

        Args:
            weights: its state dict, of `g2lstm`, `g2lstm_lm` or the stock models, whose names are the same.
        """
        for name, weight in weights.items():
            if name != next(tied_names(weights, name)):
                continue
            if any(_OTHERS[other].fullmatch(name) for other in self.others):
                yield Part(name, weight.size(0))
            found = _LSTM_WEIGHT.fullmatch(name)
            if found is None or found[3] not in self.matrices or (found[2] == "bias" and not self.biases):
                continue
            yield Part(name, weight.size(0) if self.gates == "all" else weight.size(0) // 2)


def tied_names(weights: Mapping[str, Tensor], name: str) -> Iterator[str]:
    """The names under which a state dict holds one and the same weight, in its order.

    Checkpoints that were written on a GPU hold tied embeddings as two equal tensors.
    """
    weight, embeddings = weights[name], _OTHERS["embeddings"].fullmatch
    for other, candidate in weights.items():
        if candidate.shape != weight.shape:
            continue
        both_embeddings = embeddings(name) and embeddings(other)
        if candidate.data_ptr() == weight.data_ptr() or (both_embeddings and torch.equal(candidate, weight)):
            yield other


def model_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes of a model's weights as they are, tied ones once."""
    return sum({w.data_ptr(): w.numel() * w.element_size() for w in weights.values()}.values())


def recurrent_bytes(weights: Mapping[str, Tensor]) -> int:
    """Bytes of all LSTM layers' weights and biases, packed or not."""
    packed = re.compile(rf"(packed\.)?{_LSTM_WEIGHT.pattern}(\.\w+)?")
    return sum(w.numel() * w.element_size() for name, w in weights.items() if packed.fullmatch(name))
