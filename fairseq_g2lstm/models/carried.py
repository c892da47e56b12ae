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
        return self._replace(h=h, c=c, keys=None if self.keys is None else self.keys.detach())


class CarriedState:
    """States by the number of the block of text that they lead to.

    Beside the newest the `kept_before` before it are kept, for blocks that are given again: where gradients overflow
    under --amp or are not finite, fairseq repeats the batches of an update. As many blocks may be left out: where
    memory runs out, fairseq drops what is left of an update.
    """

    def __init__(self) -> None:
        self.kept_before = 1
        self._states: dict[int, TextState | None] = {}

    def at(self, block: int) -> TextState | None:
        """The state that a block starts from: the newest of the blocks before it, None for zeros.

        Block 0 starts from zeros, and all states before are forgotten.

        Raises:
            ValueError: no such state is known.
        """
        if block == 0:
            self._states = {0: None}
        number = max((n for n in self._states if block - self.kept_before <= n <= block), default=None)
        if number is None:
            known = ", ".join(map(str, self._states)) or "none"
            raise ValueError(
                f"no hidden state leads to block {block} of the text (known: {known}). A run that goes on inside an "
                "epoch needs a checkpoint of the task g2lstm_language_modeling, the same --batch-size times ranks, "
                "--tokens-per-sample and --variable-tokens-per-sample, and with the latter the same --seed. Go on from "
                "a checkpoint of an epoch's end, or begin again at epoch 1 by --reset-dataloader"
            )
        return self._states[number]

    def keep(self, block: int, state: TextState) -> None:
        """Keeps the state that leads to a block."""
        kept = range(block - self.kept_before, block)
        self._states = {number: s for number, s in self._states.items() if number in kept}
        self._states[block] = state.detach()

    def newest(self) -> tuple[int, TextState] | None:
        """The number of the block that the newest state leads to, and the state; None where there is none."""
        states = [(number, state) for number, state in self._states.items() if state is not None]
        return max(states, default=None, key=lambda item: item[0])
