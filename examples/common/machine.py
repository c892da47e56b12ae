"""What the machine is called."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, with its family and model, since virtual machines often tell no more of the name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    told = dict(line.split("\t", 1) for line in reversed(lines) if "\t" in line)
    name, family, model = (told.get(key, "").strip("\t: ") for key in ("model name", "cpu family", "model"))
    if not name:
        return platform.processor() or platform.machine()
    return f"{name}, family {family}, model {model}" if family and model else name
