"""How far a training is, and how long the rest of it will take, from fairseq-train's simple log.

    fairseq-train … | python -m examples.ptb.progress

passes the log on, with a line of progress on standard error after each of fairseq's.
"""

from __future__ import annotations

import signal
import sys
import time

from examples.common.durations import in_words
from examples.ptb.train_log import Validation, setting, settings_of_line, step_of_line, validation_of_line


class TimeLeft:
    """Reads a training's log while it grows.

    Args:
        title: what is trained, which begins each text; may be empty.
        after: number of trainings after this one.

    Attributes:
        done, total: updates so far and in all, 0 before the log tells.
        validation: the last one.
    """

    def __init__(self, title: str = "", after: int = 0) -> None:
        self.title, self.after = title, after
        self.done = self.total = 0
        self.validation: Validation | None = None
        self._max_epoch = self._max_update = 0
        self._first: tuple[int, float] | None = None

    def read(self, line: str) -> str | None:
        """How far the training is by a line of its log; None where the line does not tell, or nothing is timed yet."""
        settings = settings_of_line(line)
        if settings is not None:
            self._max_epoch = setting(settings, "max_epoch") or 0
            self._max_update = setting(settings, "max_update") or 0
        self.validation = validation_of_line(line) or self.validation
        step = step_of_line(line)
        if step is None:
            return None
        epoch, updates_an_epoch, self.done = step
        limits = [limit for limit in (self._max_epoch * updates_an_epoch, self._max_update) if limit > 0]
        self.total = min(limits, default=0)
        now = time.monotonic()
        if self._first is None:
            self._first = (self.done, now)
            return None
        seconds = (now - self._first[1]) / max(1, self.done - self._first[0])
        text = f"{self.title}: " if self.title else ""
        text += f"epoch {epoch}"
        text += f" of {self._max_epoch}, " if self._max_epoch > 0 else ", "
        text += f"{self.done:,} of {self.total:,} updates" if self.total else f"{self.done:,} updates, no end given"
        if self.validation is not None:
            text += f", valid perplexity {self.validation.perplexity:.2f}"
        if self.total:
            left = seconds * max(0, self.total - self.done)
            text += f", {in_words(left)} left"
            if self.after:
                text += f", about {in_words(left + self.after * seconds * self.total)} with the {self.after} after it"
        return text


class Progress(TimeLeft):
    """Shows it on standard error: in one line on a terminal, else each twentieth of the training."""

    def __init__(self, title: str, after: int) -> None:
        super().__init__(title, after)
        self._told = -1
        self._terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        text = self.read(line)
        if text is None:
            return
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif not self.total or self.done * 20 // self.total > self._told:
            self._told = self.done * 20 // self.total if self.total else -1
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._terminal and self.done:
            print(file=sys.stderr)


def main() -> None:
    """Passes standard input on, until fairseq ends it: an interrupt is fairseq's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    left = TimeLeft()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        text = left.read(line.decode(errors="replace"))
        if text is not None:
            print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
