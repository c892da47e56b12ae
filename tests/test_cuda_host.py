"""What of the CUDA code can be tested without a GPU.

Its index arithmetic, and what each thread computes, are C++ that the host runs as well: alone through ctypes
(cuda_scalar.cpp), and as whole operators, with fibers for threads (cuda_on_host.cpp), held against the same tests as
the CPU's and the GPU's operators. Where nvcc is at hand, the kernels are compiled for the devices they are meant for.
"""

import ctypes
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from cuda_on_host import VARIABLE
from operator_cases import F32, F64, MODES
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from benchmarks.bars import CUDA_SHAPES
from fairseq_g2lstm.philox import random_words
from fairseq_g2lstm.reference import cell_step
from fairseq_g2lstm.settings import GateMode

CXX = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler (g++ or c++)")

KERNELS = ROOT / "kernels" / "cuda"
NVCC = runpy.run_path(str(ROOT / "kernels" / "cuda_check.py"))["find_nvcc"]()
BLOCK_THREADS = 1024  # the most that any CUDA device has in a block
BLOCKS_X, BLOCKS_Y = 2**31 - 1, 2**16 - 1  # and the most blocks in each direction of a grid


def compile_library(source: Path, to: Path, *options: str) -> Path:
    command = [CXX, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", source, *options, "-o", to]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_library(ROOT / "tests" / "cuda_scalar.cpp", tmp_path_factory.mktemp("cuda") / "scalar.so")
    functions = ctypes.CDLL(str(library))
    for name in ("offset", "gate_offset", "argument_offset", "word_offset"):
        getattr(functions, f"test_{name}").restype = ctypes.c_int64
    return functions


def int64(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


# Index arithmetic


@pytest.mark.parametrize("h_size", [1, 7, 1150, 2**20])
@pytest.mark.parametrize("row", [0, 3, 2**32 + 5])
def test_offsets_are_those_of_rows_and_gates_beyond_32_bits(scalar, row, h_size):
    for gate, unit in itertools.product(range(4), {0, h_size // 2, h_size - 1}):
        assert scalar.test_gate_offset(*int64(row, gate, unit, h_size)) == row * 4 * h_size + gate * h_size + unit
        assert scalar.test_word_offset(*int64(gate, row, unit, 2**33, h_size)) == (gate * 2**33 + row) * h_size + unit
        if gate < 2:
            expected = row * 2 * h_size + gate * h_size + unit
            assert scalar.test_argument_offset(*int64(row, gate, unit, h_size)) == expected
        assert scalar.test_offset(*int64(row, unit, 3 * h_size)) == row * 3 * h_size + unit


def grid_of(function, *sizes: int) -> list[int]:
    out = torch.zeros(4, dtype=torch.int64)
    function(*int64(*sizes), pointer(out))
    return out.tolist()


SIZES = [1, 2, 3, 31, 32, 33, 127, 128, 129, 1150, 70_000, 2**24, 2**31, 2**40]


@pytest.mark.parametrize("n_rows", SIZES)
def test_grids_stay_within_the_limits_of_devices_and_reach_everything_that_these_allow(scalar, n_rows):
    for h_size in SIZES:
        block_x, block_y, blocks_x, blocks_y = grid_of(scalar.test_unit_grid, n_rows, h_size)
        assert block_x * block_y == 256 <= BLOCK_THREADS
        assert 1 <= blocks_x <= BLOCKS_X and 1 <= blocks_y <= BLOCKS_Y
        assert blocks_x * block_x >= h_size or blocks_x == BLOCKS_X
        assert blocks_y * block_y >= n_rows or blocks_y == BLOCKS_Y
        # no block without work
        assert (blocks_x - 1) * block_x < h_size and (blocks_y - 1) * block_y < n_rows
    threads, rows, blocks_x, blocks_y = grid_of(scalar.test_row_grid, n_rows)
    assert threads % 32 == 0 and threads <= BLOCK_THREADS and (rows, blocks_y) == (1, 1)
    assert blocks_x == min(n_rows, BLOCKS_X)


@pytest.mark.parametrize("extent", [(1, 1), (2, 3), (8, 4), (16, 16)], ids=str)
@pytest.mark.parametrize(("n_rows", "h_size"), [(1, 1), (3, 8), (5, 7), (9, 2)])
def test_threads_take_every_cell_once_whatever_their_number(scalar, n_rows, h_size, extent):
    counts = torch.zeros(n_rows, h_size, dtype=torch.int64)
    for x, y in itertools.product(range(extent[0]), range(extent[1])):
        place = torch.tensor([x, y, *extent])
        scalar.test_cover(*int64(n_rows, h_size), pointer(place), pointer(counts))
    assert counts.eq(1).all()


# 132 multiprocessors of 227 KiB: an H100 or H200. Units of a block: 16 in half types, 8 in float32.
@pytest.mark.parametrize(
    ("dtype", "n_rows", "h_size", "rows_of_block", "launches"),
    [
        ("half", 1, 256, 16, [1]),
        ("half", 128, 1024, 64, [2]),
        ("half", 129, 1024, 64, [2, 1]),
        ("half", 512, 256, 64, [8]),
        ("half", 512, 1024, 64, [2, 2, 2, 2]),
        ("half", 320, 1024, 64, [2, 2, 1]),
        ("half", 1, 1152, 16, [1]),
        ("half", 1, 1680, 0, []),  # weights of 16 units and pieces: 271 KiB
        ("half", 1, 1150, 0, []),  # no multiple of 16
        ("float", 64, 1024, 64, [1]),
        ("float", 65, 1024, 64, [1, 1]),
        ("float", 512, 512, 64, [2, 2, 2, 2]),
        ("float", 320, 256, 64, [3, 2]),  # four at once
        ("float", 128, 256, 32, [4]),
        ("float", 1, 1152, 0, []),  # 144 blocks
        ("float", 1, 0, 0, []),
        ("half", 0, 256, 0, []),
    ],
)
def test_the_blocks_of_a_launch_run_at_the_same_time_and_those_of_all_launches_have_every_row(
    scalar, dtype, n_rows, h_size, rows_of_block, launches
):
    function = getattr(scalar, f"test_plan_{dtype}")
    found = torch.zeros(50, dtype=torch.int64)
    function(*int64(132, 227 * 1024, 70, n_rows, h_size), pointer(found))
    rows, n_launches, *parts = found.tolist()
    assert rows == rows_of_block
    firsts, blocks, counters = (parts[i : 3 * n_launches : 3] for i in range(3))
    assert blocks == launches
    assert counters == [sum(blocks[:i]) for i in range(n_launches)]
    assert firsts == [rows * counter for counter in counters]
    assert parts[3 * n_launches] >= sum(blocks)
    if n_launches:
        units = 16 if dtype == "half" else 8
        assert max(blocks) * h_size // units <= 132
        assert rows * (sum(blocks) - 1) < n_rows <= rows * sum(blocks)
    # arrivals are counted in 32 bits
    function(*int64(132, 227 * 1024, 2**31, n_rows, h_size), pointer(found))
    assert found[0] == 0


@pytest.mark.parametrize("dtype", ["half", "float"])
def test_an_h100_has_a_persistent_kernel_for_all_sizes_of_the_gpus_bar(scalar, dtype):
    found = torch.zeros(50, dtype=torch.int64)
    for shape in CUDA_SHAPES:
        getattr(scalar, f"test_plan_{dtype}")(
            *int64(132, 227 * 1024, shape.n_steps, shape.n_rows, shape.hidden_size), pointer(found)
        )
        assert found[0] > 0, shape


# One thread's arithmetic


@pytest.mark.parametrize("rows", [None, [5, 0, 2**32 - 1]], ids=["own_rows", "numbered_rows"])
@pytest.mark.parametrize("stream", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("seed", [0, 1, -1, 0x0123456789ABCDEF])
def test_words_are_the_references(scalar, seed, stream, rows):
    found = torch.zeros(4, 3, 3, 11, dtype=torch.int64)
    given = None if rows is None else torch.tensor(rows)
    numbers = torch.arange(3) if given is None else given
    given_rows = None if given is None else pointer(given)
    scalar.test_words(*int64(seed, stream), given_rows, *int64(*found.shape[1:]), pointer(found))
    assert torch.equal(found, random_words(seed, torch.arange(3), numbers, 11, stream // 2, bool(stream % 2)))


@pytest.mark.parametrize("mode", ["sigmoid", "sharpened", "hard"])
@pytest.mark.parametrize(("dtype", "bound"), [(F32, 1e-6), (F64, 1e-15)], ids=["float32", "float64"])
def test_one_step_is_the_references(scalar, dtype, bound, mode):
    gate_mode: GateMode = MODES[mode]
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(40, 4 * 50, generator=generator, dtype=F64).mul(3).to(dtype)
    a[0], a[1], a[2] = 0, 100, -1000
    c = torch.randn(40, 50, generator=generator, dtype=F64).to(dtype)
    h_next, c_next, z = torch.empty_like(c), torch.empty_like(c), c.new_empty(40, 100)
    function = scalar.test_forward_float if dtype == F32 else scalar.test_forward_double
    function(
        *map(pointer, (a, c)), *int64(40, 50), ctypes.c_double(gate_mode.temperature), ctypes.c_bool(gate_mode.hard),
        *map(pointer, (h_next, c_next, z)),
    )  # fmt: skip
    for found, expected in zip((h_next, c_next, z), cell_step(a, c, None, gate_mode), strict=True):
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


# The operators


@pytest.fixture(scope="module")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = [f"-isystem{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    options += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    options += [f"-L{path}" for path in library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
    to = tmp_path_factory.mktemp("cuda") / "_kernels.so"
    return compile_library(ROOT / "tests" / "cuda_on_host.cpp", to, *options)


def run_tests(library: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "cuda_on_host", "-p", "no:cacheprovider", "-q", *arguments]
    python_path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, VARIABLE: str(library), "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-2_000:]


@pytest.mark.slow
def test_operators_pass_the_gpus_tests(host_library):
    run_tests(host_library, "tests/test_cuda.py")


# Half types are rounded at every step on CUDA and once on the CPU: test_cuda.py has the bounds for them.
@pytest.mark.slow
def test_operators_pass_the_cpus_tests(host_library):
    files = [f"tests/test_operators_{name}.py" for name in ("step", "layer", "decoder", "noise")]
    run_tests(host_library, *files, "-k", "not float16 and not large and not any_size")


@pytest.mark.slow
def test_operators_keep_to_their_signatures(host_library):
    only = "(opcheck_of_operators or opcheck_of_backward) and not float16"
    run_tests(host_library, "tests/test_operators_torch.py", "-k", only)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc (the CUDA toolkit's compiler)")
@pytest.mark.parametrize("source", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.stem)
def test_kernels_compile_without_warnings_and_spill_no_registers(source, tmp_path):
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "--Werror", "all-warnings,cross-execution-space-call"]
    flags += ["-Xcompiler", "-Wall,-Wextra,-Wno-unknown-pragmas,-fPIC"]
    for architecture in ("80", "90"):
        flags += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command = [NVCC, *flags, "-c", source, "-o", tmp_path / "kernels.o"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stdout + done.stderr)
    assert reports and set(reports) == {("0", "0")}
