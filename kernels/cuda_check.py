"""Compiles the CUDA part without a GPU, warnings as errors: make cuda-check.

Every kernels/cuda/*.cu is compiled by nvcc for each architecture that setup.py names, and what ptxas reports of
registers and spills is kept as a table; the host code beside them is compiled against the torch that is installed.
Without nvcc the .cu files are left out, which is said and is no failure. `--host` leaves them out, too: they include
nothing of torch, so that another torch does not change them.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "cuda-check"
COLUMNS = ("kernel", "architecture", "registers", "stack", "spilled", "shared")


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of the path, or of the toolkit's usual place."""
    homes = [os.environ["CUDA_HOME"]] if os.environ.get("CUDA_HOME") else []
    folders = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def compile_file(command: list[str], source: Path) -> str:
    """Runs a compiler and gives what it says.

    Raises:
        RuntimeError: it failed; the message is what it says.
    """
    target = OUT / f"{source.name}.o"
    done = subprocess.run([*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        report = re.compile(r"^(ptxas info|    \d+ bytes stack frame).*\n", re.MULTILINE)
        faults = report.sub("", done.stdout + done.stderr)
        raise RuntimeError(f"{source.relative_to(ROOT)} does not compile:\n{faults}")
    return done.stdout + done.stderr


def device_command(nvcc: str, build: dict) -> list[str]:
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    architectures = [a.replace(".", "") for a in build["CUDA_ARCHITECTURES"]]
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    # nvcc hands its own pragmas on to the host compiler, which does not know them.
    strict = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wno-unknown-pragmas", "-Xptxas=-v"]
    return [nvcc, *COMMON_NVCC_FLAGS, *build["NVCC_FLAGS"], *strict, *targets, "-Xcompiler=-fPIC"]


def host_command(build: dict) -> list[str]:
    import torch
    from torch.utils import cpp_extension

    folders = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    # As cpp_extension itself has it, of which no other place tells.
    standard = max(re.findall(r"-std=c\+\+\d\d", Path(cpp_extension.__file__).read_text()))
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    system = [option for folder in folders for option in ("-isystem", folder)]
    return [os.environ.get("CXX", "c++"), *build["CXX_FLAGS"], "-Werror", standard, abi, "-fPIC", *system]


def register_table(said: str) -> list[tuple[str, ...]]:
    """The rows of COLUMNS, one for each kernel and architecture, of what ptxas said. Sizes are in bytes."""
    rows = []
    for entry in said.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for '(\w+)'", entry).groups()
        # A kernel's own line comes first, those of functions that were not inlined into it follow.
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        stack, spilled = sum(int(f[0]) for f in frames), sum(int(f[1]) + int(f[2]) for f in frames)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", entry)
        numbers = (registers[1] if registers else "?", str(stack), str(spilled), shared[1] if shared else "0")
        rows.append((name, architecture, *numbers))
    return rows


def readable(names: list[str]) -> list[str]:
    """The names as C++ has them, without arguments and namespaces; as given where c++filt is missing."""
    if shutil.which("c++filt") is None or not names:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    namespaces = re.compile(r"g2lstm::(cuda::)?|\(anonymous namespace\)::|\w*_GLOBAL__N_\w*::")
    return [namespaces.sub("", line).removeprefix("void ").split("(")[0] for line in done.stdout.splitlines()]


def as_text(rows: list[tuple[str, ...]]) -> str:
    lines = [COLUMNS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    pad = [str.ljust, str.ljust, *[str.rjust] * 4]
    padded = [[p(cell, w) for p, cell, w in zip(pad, line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded) + "\n"


def main(host_alone: bool = False) -> int:
    build = runpy.run_path(str(ROOT / "setup.py"))
    OUT.mkdir(parents=True, exist_ok=True)
    host, device = sorted(ROOT.glob("kernels/cuda/*.cpp")), sorted(ROOT.glob("kernels/cuda/*.cu"))
    nvcc = None if host_alone else find_nvcc()
    work = [(host_command(build), source) for source in host]
    if nvcc is not None:
        work = [(device_command(nvcc, build), source) for source in device] + work
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = list(pool.map(lambda job: compile_file(*job), work))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(host)} C++ files of kernels/cuda compile against the torch installed here")
    if host_alone:
        return 0
    if nvcc is None:
        print("nvcc was not found, so the .cu files were not compiled: install the CUDA toolkit, or set CUDA_HOME")
        return 0
    (OUT / "ptxas.txt").write_text("".join(said))
    rows = register_table("".join(said))
    table = as_text(sorted((name, *row[1:]) for name, row in zip(readable([r[0] for r in rows]), rows, strict=True)))
    (OUT / "registers.txt").write_text(table)
    print(
        f"{len(device)} .cu files compile with {nvcc}; registers of a thread, bytes of stack, spills, shared memory:\n"
    )
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(host_alone="--host" in sys.argv[1:]))
