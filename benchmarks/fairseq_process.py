"""One of fairseq's commands in a process that notes its peak memory when it ends.

    python -m benchmarks.fairseq_process PEAK.json train|generate|… ARGUMENTS…

is `fairseq-train ARGUMENTS…` and so on, with TF32 off on CUDA, and writes `{"resident": BYTES, "cuda": BYTES or null}`.
"""

import importlib
import json
import sys
from pathlib import Path

import torch

from examples.common.files import write_text


class CudaPeak:
    """The largest number of bytes that torch had allocated on the GPU.

    fairseq's trainer resets torch's own maximum after every update; this one outlives that.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._reset = torch.cuda.reset_peak_memory_stats
        torch.cuda.reset_peak_memory_stats = self._note_and_reset

    def _note_and_reset(self, device: torch.device | str | int | None = None) -> None:
        self.note()
        self._reset(device)

    def note(self) -> None:
        """Takes torch's maximum since the last reset into account."""
        self.bytes = max(self.bytes, torch.cuda.max_memory_allocated())


def peak_resident() -> int:
    """The largest resident set of this process, bytes.

    The kernel's count for this address space: getrusage's would contain the parent's at the fork.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM")


def main() -> None:
    """The command."""
    report, name, *arguments = sys.argv[1:]
    cuda = CudaPeak() if torch.cuda.is_available() and "--cpu" not in arguments else None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sys.argv = [f"fairseq-{name}", *arguments]
    importlib.import_module(f"fairseq_cli.{name}").cli_main()
    if cuda is not None:
        cuda.note()
    peak = {"resident": peak_resident(), "cuda": cuda.bytes if cuda is not None else None}
    write_text(Path(report), json.dumps(peak) + "\n")


if __name__ == "__main__":
    main()
