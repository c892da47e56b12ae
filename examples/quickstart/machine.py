"""The machine and the versions that stand beside every figure."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from examples.common.machine import processor

_PACKAGES = ("torch", "ve-fairseq", "sacrebleu", "num2words", "babel")


def machine(threads: int) -> dict[str, Any]:
    """The one that this process runs on.

    Args:
        threads: of torch.
    """
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def sentence(where: dict[str, Any]) -> str:
    """What `machine` returned, for people."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return (
        f"{where['processor']}, {where['cores']} cores, {where['threads']} threads, {where['gpu'] or 'no GPU'}; "
        f"Python {where['python']}, {versions}."
    )
