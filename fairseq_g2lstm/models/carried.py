"""The hidden state of a language model between one block of text and the next."""

from typing import NamedTuple

from torch import Tensor


class TextState(NamedTuple):
    """Where a language model stands in the text of its B rows.

    h, c: for each layer (B, H), the states after the last token.
    keys (B, N, H), tokens (B, N): the last N outputs and the tokens read at their steps, for the continuous cache.
    """

    h: list[Tensor]
    c: list[Tensor]
    keys: Tensor | None = None
    tokens: Tensor | None = None

    def detach(self) -> "TextState":
        """The same values without their history."""
        h, c = ([state.detach() for state in states] for states in (self.h, self.c))
        return self._replace(h=h, c=c)


class CarriedState:
    """States by the number of the block of text that they lead to, the newest two.

    The one before the last is for a block that is given again, as fairseq's --amp does where gradients overflow.
    """

    def __init__(self) -> None:
        self._states: dict[int, TextState] = {}

    def at(self, block: int) -> TextState | None:
        """The state that a block starts from; None for the first block, which starts from zeros.

        Raises:
            ValueError: the state before this block is not known.
        """
        if block == 0:
            return None
        if block not in self._states:
            known = ", ".join(map(str, self._states)) or "none"
            raise ValueError(
                f"no hidden state leads to block {block} of the text (known: {known}): blocks must come in order. "
                "A run that goes on inside an epoch needs a checkpoint of the task g2lstm_language_modeling with the "
                "same --batch-size times ranks and --tokens-per-sample; --reset-dataloader starts the epoch again"
            )
        return self._states[block]

    def keep(self, block: int, state: TextState) -> None:
        """Keeps the state that leads to a block."""
        self._states = {number: s for number, s in self._states.items() if number == block - 1}
        self._states[block] = state.detach()

    def newest(self) -> tuple[int, TextState] | None:
        """The last block's number and state, or None before the first."""
        return max(self._states.items(), default=None, key=lambda item: item[0])
