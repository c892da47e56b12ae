"""The bars: what the plugin promises, and whether a measured ratio keeps it."""

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of a layer: T time steps, B batch rows, I inputs, H units."""

    n_steps: int
    n_rows: int
    input_size: int
    hidden_size: int


@dataclass(frozen=True)
class Bar:
    """A bound on the ratio of G2-LSTM's number to a peer's."""

    limit: float
    at_most: bool = True

    def met(self, ratio: float) -> bool:
        """Whether the ratio keeps the bound."""
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


CPU_SHAPES = (Shape(30, 128, 256, 256), Shape(30, 128, 512, 512), Shape(70, 20, 400, 1150))
CUDA_SHAPES = tuple(Shape(t, b, h, h) for h in (256, 512, 1024) for b in (20, 128, 512) for t in (30, 70))

# Time of forward and backward, G2-LSTM's divided by a peer's, at the shapes above; gumbel gates, p = 0.2. On the CPU
# in float32 on 2 cores, on CUDA against cuDNN in the same dtype.
LAYER_BARS = {
    "cpu": {"torch.nn.LSTM": Bar(1.05), "python-loop": Bar(0.5)},
    "cuda": {"torch.nn.LSTM": Bar(1.0)},
}
LAYER_SHAPES = {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES}

# `g2lstm_iwslt` divided by stock `lstm_wiseman_iwslt_de_en`: training and decoding speed, peak memory in training.
END_TO_END_BARS = {
    "cpu": {"tokens/s": Bar(1.4, at_most=False), "sentences/s": Bar(1.3, at_most=False), "peak memory": Bar(1.0)},
    "cuda": {"tokens/s": Bar(3.0, at_most=False), "peak memory": Bar(1.0)},
}

# `g2lstm_lm` divided by stock `lstm_lm`, evaluated by fairseq-eval-lm; on the CPU in float32 on 2 cores.
LANGUAGE_MODEL_BARS: dict[str, dict[str, Bar]] = {
    "cpu": {"evaluation tokens/s": Bar(1.0, at_most=False)},
    "cuda": {},
}

# Decoding speed of a model packed in 8 bits divided by that of the float32 model, on 2 cores.
PACKED_BAR = Bar(1.0, at_most=False)


def layer_bar(device: str, shape: Shape, backward: bool, tf32: bool, peer: str) -> Bar | None:
    """The bar of a layer's time against a peer's, or None where there is none, as where float32 is rounded to TF32."""
    if not backward or tf32 or shape not in LAYER_SHAPES[device]:
        return None
    return LAYER_BARS[device].get(peer)
