"""What the encoder and the decoders share."""

import os
from argparse import Namespace
from typing import NamedTuple, TypeVar

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.modules import FairseqDropout
from torch import Tensor, nn
from torch.nn import functional

from .. import ops
from ..config import flag
from ..packed import Embedding

MAX_POSITIONS = 100_000
INIT_RANGE = 0.1  # the stock models'


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


def init_uniform(module: Initialised, init_range: float = INIT_RANGE) -> Initialised:
    """Draws every weight of a module from U(-init_range, init_range), and returns the module."""
    for weight in module.parameters():
        nn.init.uniform_(weight, -init_range, init_range)
    return module


def lengths_of_rows(lengths: Tensor, n_rows: int) -> Tensor:
    """A batch's lengths (B',) with 0 for the rows beyond them, which --pad-to-fixed-bsz adds without any."""
    return functional.pad(lengths, (0, n_rows - len(lengths)))


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


def build_embedding(
    dictionary: Dictionary, embed_dim: int, path_option: str, options: Namespace, init_range: float = INIT_RANGE
) -> nn.Embedding:
    """Embeddings of a dictionary's types, zero for padding, others drawn from U(-init_range, init_range) or read.

    Args:
        dictionary: V types.
        embed_dim: E, numbers a type.
        path_option: the option of `options`, the model's, that may name a file of embeddings.

    Returns:
        An embedding (V, E).

    Raises:
        FileNotFoundError: that file is missing.
        ValueError: it is no such file, or its vectors have another size.
    """
    embedding = Embedding(len(dictionary), embed_dim, padding_idx=dictionary.pad())
    nn.init.uniform_(embedding.weight, -init_range, init_range)
    nn.init.constant_(embedding.weight[dictionary.pad()], 0)
    path = getattr(options, path_option)
    if not path:
        return embedding
    path_flag = flag(path_option)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path_flag} must be a file of embeddings, got {path}, which does not exist")
    try:
        pretrained = utils.parse_embedding(path)
    except (StopIteration, ValueError) as error:
        raise ValueError(
            f"{path_flag} must be a text file whose first line is its size and whose others are a word and its "
            f"numbers, got {path}: {error or 'it is empty'}"
        ) from error
    sizes = {len(vector) for vector in pretrained.values()}
    if sizes != {embed_dim}:
        raise ValueError(
            f"{path_flag} must hold vectors of {embed_dim} numbers (the embedding dimension), "
            f"got {sorted(sizes)} in {path}"
        )
    utils.print_embed_overlap(pretrained, dictionary)
    return utils.load_embedding(pretrained, dictionary, embedding)
