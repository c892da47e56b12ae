"""How the gates' temperature and noise probability move over training: pure functions of the update number."""

import math
from collections.abc import Callable
from dataclasses import dataclass

SCHEDULES = ("constant", "linear", "exponential", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end` in `updates` updates and stays there.

    Args:
        name: the options' common prefix, for messages, such as "--gate-temperature".
        kind: "constant", "linear", "exponential" (a constant factor an update) or "cosine" (half a period).
        start: the first value; None for the model's option.
        end: the last value; None for a constant.
        updates: number of updates from start to end; None for a constant.
        check: called with a name and a value, raises ValueError where the value is outside its range.

    Raises:
        ValueError: a value is outside its range, or one that the kind needs is missing or does not belong to it.
    """

    name: str
    kind: str
    start: float | None
    end: float | None
    updates: int | None
    check: Callable[[str, float], None]

    @property
    def is_given(self) -> bool:
        """Whether it can give another value than the model's option."""
        return self.kind != "constant" or self.start is not None

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"{self.name}-schedule must be one of {', '.join(SCHEDULES)}, got {self.kind!r}")
        for which, value in (("start", self.start), ("end", self.end)):
            if value is not None:
                self.check(f"{self.name}-{which}", value)
        if self.kind == "constant":
            if self.end is not None or self.updates is not None:
                given = "end" if self.end is not None else "updates"
                raise ValueError(
                    f"{self.name}-{given} needs {self.name}-schedule linear, exponential or cosine, got constant"
                )
            return
        if self.end is None or self.updates is None:
            missing = "end" if self.end is None else "updates"
            raise ValueError(f"{self.name}-schedule {self.kind} needs {self.name}-{missing}, got none")
        if self.updates <= 0:
            raise ValueError(
                f"{self.name}-updates must be > 0, got {self.updates}: the schedule would end before it starts"
            )
        if self.kind == "exponential" and 0 in (self.start, self.end):
            raise self._zero_refused(self.start)

    def value(self, num_updates: int, option: float) -> float:
        """The value at an update.

        Args:
            num_updates: updates done so far, >= 0.
            option: the model's option, which stands for a start of None.

        Raises:
            ValueError: an exponential schedule starts at an option of 0.
        """
        start = option if self.start is None else self.start
        if self.kind == "constant" or self.end is None or self.updates is None:
            return start
        done = min(max(num_updates, 0) / self.updates, 1.0)
        if self.kind == "linear":
            return start + (self.end - start) * done
        if self.kind == "cosine":
            return self.end + (start - self.end) * (1 + math.cos(math.pi * done)) / 2
        if start <= 0 or self.end <= 0:
            raise self._zero_refused(start)
        return start * (self.end / start) ** done

    def _zero_refused(self, start: float | None) -> ValueError:
        return ValueError(
            f"{self.name}-schedule exponential needs a start and an end > 0, got start {start} and end {self.end}: "
            "use linear or cosine"
        )
