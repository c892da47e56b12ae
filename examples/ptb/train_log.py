"""What fairseq-train's log tells of a language model's training: options, validations, speed, how far it came."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.common.errors import UserError
from examples.common.fairseq_log import sessions_of, setting, settings_of_line, start_of_line

_VALIDATION = re.compile(r"\| valid \| epoch (\d+) .*\| loss (\S+) .*\| ppl (\S+) .*\| num_updates (\d+)")
_EPOCH = re.compile(r"\| train \| epoch (\d+) .*\| wps (\S+) ")
_STEP = re.compile(r"\| train_inner \| epoch (\d+): +(\d+) / (\d+) .*\bnum_updates=(\d+)")
_PERPLEXITY = re.compile(r"\| ppl (\S+) ")
_PARAMETERS = re.compile(r"num\. shared model params: .*\(num\. trained: ([\d,]+)\)")


@dataclass(frozen=True)
class Validation:
    """One validation.

    Attributes:
        epoch: in which it was, from 1.
        updates: before it.
        loss: by which fairseq chooses the best checkpoint.
        perplexity: a word.
    """

    epoch: int
    updates: int
    loss: float
    perplexity: float


@dataclass(frozen=True)
class Training:
    """A training, as far as it has come.

    Attributes:
        settings: fairseq's options of the last session, as they stand in the log.
        sessions: those of each session that came to train, from the beginning on.
        parameters: number of trained ones.
        validations: in their order, without those of what a later session did again.
        speeds: of each whole epoch, tokens/s; likewise.
        perplexities: of each whole epoch, in training, with dropout and noise; likewise; None where the log tells none.
        finished: whether fairseq said that it is done.
    """

    settings: str
    sessions: list[str]
    parameters: int
    validations: list[Validation]
    speeds: list[float]
    perplexities: list[float | None]
    finished: bool

    def setting(self, name: str) -> Any:
        """An option's value; None where it has none."""
        return setting(self.settings, name)

    @property
    def epochs(self) -> int:
        """Number of whole epochs."""
        return len(self.speeds)

    @property
    def best(self) -> Validation:
        """The validation with the lowest loss."""
        return min(self.validations, key=lambda validation: validation.loss)

    def by_epoch(self) -> dict[int, float]:
        """The perplexity of each epoch's last validation."""
        return {validation.epoch: validation.perplexity for validation in self.validations}


@dataclass(frozen=True)
class Step:
    """Where a training is inside an epoch.

    Attributes:
        epoch: from 1.
        done_of_epoch, of_epoch: updates of the epoch so far, and in all.
        updates: so far in all epochs.
    """

    epoch: int
    done_of_epoch: int
    of_epoch: int
    updates: int


def step_of_line(line: str) -> Step | None:
    """Where the training is, where the line tells of progress inside an epoch."""
    found = _STEP.search(line)
    return None if found is None else Step(*map(int, found.groups()))


def validation_of_line(line: str) -> Validation | None:
    """The validation that the line tells of, if it does."""
    found = _VALIDATION.search(line)
    if found is None:
        return None
    return Validation(int(found[1]), int(found[4]), float(found[2]), float(found[3]))


def read_training(log: Path) -> Training:
    """Read what train.sh kept of a training; of several sessions the last one's options hold.

    Raises:
        UserError: there is no such log, or it tells no options.
    """
    if not log.is_file():
        raise UserError(f"no {log}; train with examples/ptb/train.sh, which writes it")
    settings, parameters, finished = None, 0, False
    # by the number of updates before, and by the number of the epoch
    validations: dict[int, Validation] = {}
    speeds: dict[int, tuple[float, float | None]] = {}  # and perplexities
    with log.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            found = settings_of_line(line)
            if found is not None:
                settings, finished = found, False
            start = start_of_line(line)
            if start is not None:
                epochs, updates = start.epochs, start.updates
                validations = {u: validation for u, validation in validations.items() if u <= updates}
                speeds = {e: speed for e, speed in speeds.items() if e <= epochs}
            validation = validation_of_line(line)
            if validation is not None:
                validations[validation.updates] = validation
            epoch = _EPOCH.search(line)
            if epoch is not None:
                perplexity = _PERPLEXITY.search(line)
                speeds[int(epoch[1])] = float(epoch[2]), float(perplexity[1]) if perplexity else None
            count = _PARAMETERS.search(line)
            if count is not None:
                parameters = int(count[1].replace(",", ""))
            finished = finished or "| done training in" in line
    if settings is None:
        raise UserError(f"{log} tells no options of fairseq-train's simple log, so it is of no training yet")
    ordered = [validations[updates] for updates in sorted(validations)]
    by_epoch = [speeds[epoch] for epoch in sorted(speeds)]
    of_speed, of_training = [speed for speed, _ in by_epoch], [perplexity for _, perplexity in by_epoch]
    return Training(settings, sessions_of(log), parameters, ordered, of_speed, of_training, finished)
