"""What fairseq-train's log tells of its options, and of where a session began."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

_SETTINGS = re.compile(r"\| fairseq_cli\.train \| (\{'_name'.*)")
_START = re.compile(r"(No existing checkpoint found)|Loaded checkpoint .* \(epoch (\d+) @ (\d+) updates\)")


def setting(settings: str, name: str) -> Any:
    """The first value of an option in fairseq's options as it logs them; None where there is none.

    fairseq writes some groups of options as dictionaries, `'lr': [1.0]`, and others as `lr=[1.0]`, and choices
    without quotes. What looks like an option inside another one's value, such as a folder's name, is none.
    """
    key = rf"(?:(?<=[ {{(])'{name}': |(?<=[ (]){name}=)"
    found = re.search(rf"{key}(\[[^]]*\]|\{{'_name': '[^']*'|'[^']*'|[^,)}}]+)", settings)
    if found is None:
        return None
    text = found[1].removeprefix("{'_name': ")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None if text.startswith("Namespace") else text


def optimizer(settings: str) -> str:
    """The optimiser's name, which stands among its options or, where these are a model's too, beside them."""
    named = setting(settings, "optimizer") or setting(settings.partition("optimizer': Namespace")[2], "optimizer")
    return str(named)


def architecture(settings: str) -> str:
    """The model's name, or that of its architecture."""
    return str(setting(settings, "model") or setting(settings.partition("'model': Namespace")[2], "arch"))


def settings_of_line(line: str) -> str | None:
    """fairseq's options, where the line is the one that tells them."""
    found = _SETTINGS.search(line)
    return None if found is None else found[1]


class Start(NamedTuple):
    """goes_on: whether from a checkpoint. epochs, updates: whole ones before it."""

    goes_on: bool
    epochs: int = 0
    updates: int = 0


def start_of_line(line: str) -> Start | None:
    """Where a session begins to train, where the line tells."""
    found = _START.search(line)
    if found is None:
        return None
    return Start(False) if found[1] else Start(True, int(found[2]) - 1, int(found[3]))


def sessions_of(log: Path) -> list[str]:
    """fairseq's options, as it logs them, of each session that came to train, since one began anew.

    Raises:
        FileNotFoundError: there is no such log.
    """
    sessions: list[str] = []
    settings = ""
    with log.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            settings = settings_of_line(line) or settings
            start = start_of_line(line)
            if start is not None:
                sessions = [*(sessions if start.goes_on else []), settings]
    return sessions
