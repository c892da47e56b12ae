"""What a number was measured on: the machine, the versions, the command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from examples.common.machine import processor
from fairseq_g2lstm import ops

ROOT = Path(__file__).resolve().parent.parent
_CHOOSE_KERNELS = ("G2LSTM_CPU_CAPABILITY", "G2LSTM_CPU_PRODUCTS", "G2LSTM_CUDA_LAYER")
_PACKAGES = {"numpy": "numpy", "fairseq": "ve-fairseq", "triton": "triton", "flashrnn": "flashrnn"}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(device: str, threads: int) -> dict[str, Any]:
    """The machine and the versions, for JSON.

    Args:
        device: "cpu" or "cuda".
        threads: of torch.
    """
    machine: dict[str, Any] = {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    missing = kernels_missing(device)
    compiled = "compiled"
    if device == "cpu" and missing is None:
        compiled += f" ({torch.ops.g2lstm.cpu_capability()}, large products {torch.ops.g2lstm.cpu_products()})"
    versions = {**_versions(), "kernels": missing or compiled}
    return {"machine": machine, "versions": versions, "command": command()}


def kernels_missing(device: str) -> str | None:
    """Why the reference computes in place of the compiled kernels on "cpu" or "cuda", or None where it does not."""
    error = ops.kernels_error()
    if error is not None or device == "cpu":
        return error
    for_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("g2lstm::layer", "CUDA")
    return None if for_cuda else "built without CUDA"


def command() -> str:
    """The command line, without the folders of this machine, after the variables that choose kernels."""
    chosen = [f"{name}={os.environ[name]}" for name in _CHOOSE_KERNELS if name in os.environ]
    return shlex.join([*chosen, "python", "-m", "benchmarks.run", *map(shown, sys.argv[1:])])


def shown(word: str) -> str:
    """A word of a command line without the folders of this machine."""
    if not os.path.isabs(word):
        return word
    path = Path(word)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def sentence(described: dict[str, Any]) -> str:
    """What `describe` returns, in two lines for people."""
    machine, versions = described["machine"], described["versions"]
    parts = [f"{machine['processor']} ({machine['instructions']})", f"{machine['cores']} cores"]
    parts += [f"{machine['threads']} threads", f"{machine['memory_gib']} GiB"]
    parts.append(f"{machine['gpu']}, CUDA {machine['cuda']}" if machine["gpu"] else "no GPU")
    parts.append(f"load {machine['load_average']} at the start")
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "kernels" and number)
    return f"{', '.join(parts)}; {numbers}; kernels: {versions['kernels']}.\n\n`{described['command']}`"


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"Python": platform.python_version(), "torch": torch.__version__}
    for name, package in _PACKAGES.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            versions[name] = None
    commit = _output("git", "rev-parse", "HEAD")
    # results that an earlier benchmark has just written are no change of what is measured
    elsewhere = ("--", ".", ":(exclude)benchmarks/results")
    changed = commit and _output("git", "status", "--porcelain", "--untracked-files=no", *elsewhere)
    # a copy of the tree without its history is told which commit it is of
    versions["commit"] = f"{commit} with changes" if changed else commit or os.environ.get("COMMIT")
    return versions


def _output(*words: str) -> str | None:
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
