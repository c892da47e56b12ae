"""When averaged SGD starts."""

from typing import Any


class NonMonotonicTrigger:
    """Fires at the first validation loss above the lowest of those more than N validations before it.

    Source: Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models" (ICLR 2018), algorithm 1.

    Attributes:
        fired: whether it has fired.
    """

    def __init__(self) -> None:
        self.fired = False
        self._losses: list[float] = []

    def see(self, loss: float, nonmono: int) -> None:
        """Takes a validation's loss; with a nonmono N of 0 it never fires."""
        if 0 < nonmono < len(self._losses) and loss > min(self._losses[:-nonmono]):
            self.fired = True
        self._losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"fired": self.fired, "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.fired, self._losses = state_dict["fired"], list(state_dict["losses"])
