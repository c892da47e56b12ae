"""How far a training is, and how long the rest of it will take, from fairseq-train's simple log.

    fairseq-train … | python -m examples.ptb.progress

passes the log on, with a line of progress on standard error after each of fairseq's.
"""

from __future__ import annotations

import signal
import sys
import time

from examples.common.durations import in_words
from examples.common.fairseq_log import setting, settings_of_line
from examples.ptb.train_log import Validation, step_of_line, validation_of_line


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
        self.done = step.updates
        # where the blocks' lengths are drawn, other epochs have somewhat more or fewer updates
        after_epoch = self.done + step.of_epoch - step.done_of_epoch
        by_epochs = after_epoch + (self._max_epoch - step.epoch) * step.of_epoch if self._max_epoch > 0 else 0
        self.total = min((limit for limit in (by_epochs, self._max_update) if limit > 0), default=0)
        now = time.monotonic()
        if self._first is None:
            self._first = (self.done, now)
            return None
        seconds = (now - self._first[1]) / max(1, self.done - self._first[0])
        text = f"{self.title}: " if self.title else ""
        text += f"epoch {step.epoch}"
        text += f" of {self._max_epoch}, " if self._max_epoch > 0 else ", "
        text += f"{self.done:,} of {self.total:,} updates" if self.total else f"{self.done:,} updates, no end given"
        if self.validation is not None:
            text += f", valid perplexity {self.validation.perplexity:.2f}"
        if self.total:
            left = seconds * max(0, self.total - self.done)
            text += f", {in_words(left)} left"
            if self.after:
                trainings = f"{self.after} training{'s' if self.after > 1 else ''}"
                text += f", about {in_words(left + self.after * seconds * self.total)} with the {trainings} after it"
        return text


class StatusLine:
    """Texts on standard error, each in place of the last one on a terminal, else in a line of its own.

    Attributes:
        terminal: whether it is one.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._open = False

    def show(self, text: str) -> None:
        """Shows a text."""
        start, end = ("\r\033[K", "") if self.terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        self._open = self.terminal

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


class Progress(TimeLeft, StatusLine):
    """Shows it on standard error, each twentieth of the training where that is no terminal."""

    def __init__(self, title: str, after: int) -> None:
        TimeLeft.__init__(self, title, after)
        StatusLine.__init__(self)
        self._told = -1

    def __call__(self, line: str) -> None:
        text = self.read(line)
        if text is None:
            return
        part = self.done * 20 // self.total if self.total else 0
        if self.terminal or not self.total or part > self._told:
            self._told = part
            self.show(text)


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
