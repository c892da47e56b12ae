"""Builds the package and its kernels; everything declarative stands in pyproject.toml.

What the environment decides:

    FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1    an install whose kernels do not build fails; otherwise it goes on without them
    FAIRSEQ_G2LSTM_CUDA=0               the CUDA kernels are left out
    CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX    as torch.utils.cpp_extension takes them
"""

import os
import re
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension
except (ImportError, OSError) as error:  # OSError: one of torch's libraries is missing
    torch_error: Exception | None = error
    from setuptools.command.build_ext import build_ext as BuildExtension
else:
    torch_error = None

NAME = "fairseq_g2lstm._kernels"
# OpenMP is compiled for, since at::parallel_for is inlined here, but not linked: the runtime has to be torch's own.
# No flag names an instruction set: the kernels choose theirs at run time.
CXX_FLAGS = ["-O3", "-g0", "-Wall", "-Wno-maybe-uninitialized", "-fvisibility=hidden"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
NVCC_FLAGS = ["-O3", "-lineinfo", "-std=c++17", "-Xcompiler=-fvisibility=hidden"]
CUDA_ARCHITECTURES = ("8.0", "9.0")  # in the build the last one also as PTX, for later devices


def say(sentence: str) -> None:
    print(f"fairseq-g2lstm: {sentence}", file=sys.stderr, flush=True)


def cuda_obstacle() -> str | None:
    """Why the CUDA kernels cannot be built and what to install for them, in a sentence; None where they can."""
    if os.environ.get("FAIRSEQ_G2LSTM_CUDA") == "0":
        return "the CUDA kernels are left out, as FAIRSEQ_G2LSTM_CUDA=0 says"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA, so the kernels are built for the CPU alone"
    start = f"the CUDA kernels are left out: torch {torch.__version__} was built for CUDA {torch.version.cuda}"
    wanted = torch.version.cuda.split(".")[0]
    nvcc = Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    if cpp_extension.CUDA_HOME is None or not nvcc.is_file():
        return f"{start} and nvcc was not found; install the CUDA {wanted} toolkit, or set CUDA_HOME to where it is"
    try:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        return f"{start} and {nvcc} cannot be run ({error.strerror}); install the CUDA {wanted} toolkit anew"
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None:
        return f"{start} and {nvcc} --version does not tell its release; install the CUDA {wanted} toolkit"
    if release[1] != wanted:
        return (
            f"{start} and {nvcc} is of CUDA {release[1]}.{release[2]}; install the CUDA {wanted} toolkit and set "
            f"CUDA_HOME to where it is, or install a torch built for CUDA {release[1]}"
        )
    # CUDA_HOME is guessed from where nvcc is found, which may be a link or a script in another folder.
    if not any(Path(folder, "libcudart.so").exists() for folder in linked_folders()):
        return (
            f"{start} and {cpp_extension.CUDA_HOME} holds no libcudart.so to link with; set CUDA_HOME to the folder of "
            f"the CUDA {wanted} toolkit"
        )
    return None


def linked_folders() -> list[str]:
    """Where the linker will look for CUDA's libraries."""
    given = os.environ.get("LIBRARY_PATH", "").split(os.pathsep)
    return [*cpp_extension.library_paths("cuda"), *filter(None, given), "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]


def sources(cuda: bool) -> list[str]:
    """The kernels' sources, relative to this folder, as setuptools asks."""
    found = [p for folder in ("binding", "cpu", "cuda") for p in Path("kernels", folder).glob("*.c*")]
    return sorted(str(p) for p in found if p.suffix in (".cpp", ".cu") and (cuda or p.parent.name != "cuda"))


def extension() -> Extension:
    """The extension with all that this machine can build of it."""
    if torch_error is not None:
        return Extension(NAME, [])
    obstacle = cuda_obstacle()
    kind = cpp_extension.CppExtension if obstacle else cpp_extension.CUDAExtension
    return kind(NAME, sources(cuda=not obstacle), extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS})


def check_loads(library: Path) -> None:
    """Raises RuntimeError, and removes the library, where it does not load: a compiler may ask for an OpenMP runtime
    that torch does not bring, as clang does."""
    load = "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", load, str(library)], capture_output=True, text=True)
    if done.returncode != 0:
        library.unlink()
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"they were built and do not load; another compiler may help (CXX=g++): {said}")


class BuildKernels(BuildExtension):
    """build_ext that leaves the kernels out, and says so, where they cannot be built."""

    def initialize_options(self) -> None:
        super().initialize_options()
        if torch_error is None:
            # Kept, where an editable install would use a temporary folder; and objects of another torch stay apart.
            self.build_temp = f"build/kernels-{sys.implementation.cache_tag}-torch-{torch.__version__}"

    def finalize_options(self) -> None:
        super().finalize_options()
        # What lies in build/lib may be of another torch. ninja, where it is found, compiles only what has changed.
        self.force = True

    def run(self) -> None:
        # What an earlier build left must not be taken for this one's.
        Path(self.get_ext_fullpath(NAME)).unlink(missing_ok=True)
        super().run()

    def build_extensions(self) -> None:
        obstacle = None
        try:
            if torch_error is not None:
                raise RuntimeError(
                    f"building them needs the torch that will run them, and importing torch failed ({torch_error}); "
                    "install torch first, then this package with pip's option --no-build-isolation"
                )
            obstacle = cuda_obstacle()
            if obstacle:
                say(obstacle)
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(CUDA_ARCHITECTURES) + "+PTX")
            super().build_extensions()
            check_loads(Path(self.get_ext_fullpath(NAME)))
        except Exception as error:  # a compiler's, a linker's, or torch's in its checks of them
            if os.environ.get("FAIRSEQ_G2LSTM_REQUIRE_KERNELS") == "1":
                raise
            self.extensions = []
            hint = "" if torch_error or obstacle else "; without CUDA they may: set FAIRSEQ_G2LSTM_CUDA=0"
            say(f"the kernels could not be built: {textwrap.shorten(str(error), 400)}{hint}")
            say("the package is installed without them: everything works, computed by plain PyTorch, which is slower")


if __name__ == "__main__":
    # ninja is often installed beside a Python whose folder of commands is not on the path.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    setup(ext_modules=[extension()], cmdclass={"build_ext": BuildKernels})
