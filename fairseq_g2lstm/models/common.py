"""What the encoder and the decoder share."""

from typing import TypeVar

from torch import Tensor, nn

MAX_POSITIONS = 100_000
INIT_RANGE = 0.1

EncoderOut = tuple[Tensor, Tensor, Tensor, Tensor]
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
