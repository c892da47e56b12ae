"""What the encoder and the decoder share."""

from typing import NamedTuple, TypeVar

from fairseq.modules import FairseqDropout
from torch import Tensor, nn

from .. import ops

MAX_POSITIONS = 100_000
INIT_RANGE = 0.1


class EncoderOut(NamedTuple):
    """What the encoder gives the decoder: outputs (S, B', E); h_n and c_n (L, B, E), the last states; padding (S, B')
    bool, true at padding; rows (B,) int64, the outputs' row of each batch row, or None for the same.

    Hypotheses of one sentence share its outputs: reordering moves their rows' numbers.
    """

    outputs: Tensor
    h_n: Tensor
    c_n: Tensor
    padding: Tensor
    rows: Tensor | None = None


class Dropout(FairseqDropout):
    """fairseq's dropout through the compiled operator."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p > 0 and (self.training or self.apply_during_inference):
            return ops.dropout(x, self.p)
        return x


IncrementalState = dict[str, dict[str, Tensor | None]]
Initialised = TypeVar("Initialised", bound=nn.Module)


def init_uniform(module: Initialised) -> Initialised:
    """Draws every weight of a module from U(-0.1, 0.1), as the stock model, and returns the module."""
    for weight in module.parameters():
        nn.init.uniform_(weight, -INIT_RANGE, INIT_RANGE)
    return module


def embed(embed_tokens: nn.Embedding, tokens: Tensor) -> Tensor:
    """Embeddings of tokens, of any shape.

    Raises:
        ValueError: on the CPU, a token is not in the dictionary.
    """
    try:
        return embed_tokens(tokens)
    except IndexError as error:
        raise ValueError(
            f"the data hold a token number {int(tokens.max())}, the dictionary only {embed_tokens.num_embeddings} "
            "types: it is truncated, or not the one that the data were preprocessed with"
        ) from error
