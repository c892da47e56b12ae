"""How far the work is, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping

from examples.common.durations import in_words

# what a step takes until the first of its kind has been measured, in steps of the study; a search is some
# thirty losses and half a dozen scores
_EXPECTED = {"study": 1.0, "evaluation": 2.0, "search": 10.0}
_KEPT = 0.5  # seconds; a step that takes less was done by an earlier run, and says nothing about the others


class Progress:
    """Prints a line for each step, with the time left.

    Args:
        steps: how many there are of each kind, a key of the table above.
    """

    def __init__(self, steps: Mapping[str, int]) -> None:
        self._left = dict(steps)
        self._spent: dict[str, list[float]] = {kind: [] for kind in steps}
        self._all = sum(steps.values())
        self.begin()

    def begin(self) -> None:
        """Starts the clock of the next step, where something else came between."""
        self._last = time.monotonic()

    def done(self, kind: str, sentence: str) -> None:
        """A step is done.

        Args:
            kind: of the step.
            sentence: what came of it.
        """
        now = time.monotonic()
        if now - self._last > _KEPT:
            self._spent[kind].append(now - self._last)
        self._last = now
        self._left[kind] -= 1
        left = self.seconds_left()
        number = self._all - sum(self._left.values())
        print(f"[{number}/{self._all}] {sentence}" + (f"; {in_words(left)} left" if left else ""), flush=True)

    def seconds_left(self) -> float | None:
        """About how long the rest will take; None before anything has been measured."""
        spent = sum(map(sum, self._spent.values()))
        n_expected = sum(_EXPECTED[kind] * len(seconds) for kind, seconds in self._spent.items())
        if not n_expected:
            return None
        return sum(
            n_left * (sum(own) / len(own) if (own := self._spent[kind]) else _EXPECTED[kind] * spent / n_expected)
            for kind, n_left in self._left.items()
        )
