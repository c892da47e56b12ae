"""Building the kernels: what is built where, what happens where they cannot be, and what the built library holds."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

CXX = os.environ.get("CXX", "c++")
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler: {CXX} was not found")
# All that the extension needs to be one, so that a build takes a second.
SOURCE = """
#include <Python.h>
#include "../common/number.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__kernels(void) {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddIntConstant(module, "number", NUMBER);
  return module;
}
"""


def load(path: Path) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup() -> ModuleType:
    return load(ROOT / "setup.py")


@pytest.fixture
def cuda_check() -> ModuleType:
    return load(ROOT / "kernels" / "cuda_check.py")


@pytest.fixture
def tree(tmp_path) -> Path:
    """What an install needs, with one small source in place of the kernels'."""
    tree = tmp_path / "tree"
    built = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "fairseq_g2lstm", tree / "fairseq_g2lstm", ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name, text in (("binding/schema.cpp", SOURCE), ("common/number.h", "#define NUMBER 1\n")):
        path = tree / "kernels" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tree


@pytest.fixture
def no_torch(tmp_path) -> dict[str, str]:
    """An environment in which torch cannot be imported, like that of pip's isolated builds."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text("raise ImportError('there is no torch here')")
    return {"PYTHONPATH": str(tmp_path / "stub")}


def run_setup(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAIRSEQ_G2LSTM_")}
    command = [sys.executable, "setup.py", "--quiet", *arguments]
    return subprocess.run(command, cwd=tree, env={**environment, **env}, capture_output=True, text=True, timeout=300)


def libraries(tree: Path) -> list[Path]:
    return sorted((tree / "fairseq_g2lstm").glob("_kernels*.so"))


def number(tree: Path) -> int:
    """The constant compiled into the small library, asked of a process of its own."""
    code = "import torch, _kernels; print(_kernels.number)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree / "fairseq_g2lstm", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# Where nothing can be built


def test_without_torch_the_package_installs_in_plain_python_and_says_what_to_do(tree, no_torch):
    done = run_setup(tree, "bdist_wheel", **no_torch)
    assert done.returncode == 0, done.stderr
    assert "there is no torch here" in done.stderr and "--no-build-isolation" in done.stderr
    [wheel] = (tree / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "fairseq_g2lstm"
    files = [*package.rglob("*.py"), *package.glob("gates/template/*")]
    source = {str(path.relative_to(ROOT)) for path in files}
    assert source == {name for name in names if name.startswith("fairseq_g2lstm/")}
    assert not [name for name in names if name.endswith(".so")]


def test_a_failing_compiler_leaves_the_package_without_kernels_and_says_so(tree):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tree / "fairseq_g2lstm" / f"_kernels{suffix}").write_text("of an earlier build")
    done = run_setup(tree, "build_ext", "--inplace", CC="false", CXX="false")
    assert done.returncode == 0, done.stderr
    assert "the kernels could not be built" in done.stderr and "plain PyTorch" in done.stderr
    assert not libraries(tree)


@needs_compiler
def test_a_library_that_does_not_load_is_no_build(tree):
    # as one that clang built with OpenMP, whose runtime torch does not bring
    source = tree / "kernels" / "binding" / "schema.cpp"
    source.write_text(source.read_text().replace('"number", NUMBER', '"number", function_of_no_runtime()'))
    source.write_text("extern \"C\" int function_of_no_runtime();\n" + source.read_text())
    done = run_setup(tree, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    assert re.search(r"built and do not load; .*CXX=g\+\+.*undefined symbol", done.stderr), done.stderr
    assert not libraries(tree)


@pytest.mark.parametrize("fault", ["torch", "compiler"])
def test_required_kernels_that_cannot_be_built_fail_the_install(tree, no_torch, fault):
    env = no_torch if fault == "torch" else {"CC": "false", "CXX": "false"}
    done = run_setup(tree, "build_ext", "--inplace", FAIRSEQ_G2LSTM_REQUIRE_KERNELS="1", **env)
    assert done.returncode != 0
    assert not libraries(tree)


# What a build takes in


@pytest.mark.parametrize(
    ("built_for", "nvcc_says", "library", "expected"),
    [
        (None, "release 13.0, V13.0.88", True, "a build without CUDA"),
        ("12.4", None, True, "nvcc was not found; install the CUDA 12 toolkit"),
        ("12.4", "release 13.0, V13.0.88", True, "is of CUDA 13.0; install the CUDA 12 toolkit"),
        ("12.4", "no such thing", True, "does not tell its release"),
        ("12.4", "what nobody may run", True, "cannot be run (Permission denied)"),
        ("13.0", "release 13.2, V13.2.1", False, "no libcudart.so to link with; set CUDA_HOME"),
        ("13.0", "release 13.2, V13.2.1", True, None),
    ],
)
def test_cuda_kernels_are_built_where_torch_and_nvcc_are_of_one_release(
    setup, tmp_path, monkeypatch, built_for, nvcc_says, library, expected
):
    (tmp_path / "lib64").mkdir()
    if library:
        (tmp_path / "lib64" / "libcudart.so").touch()
    if nvcc_says is not None:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {nvcc_says}'\n")
        nvcc.chmod(0o644 if nvcc_says == "what nobody may run" else 0o755)
    monkeypatch.delenv("FAIRSEQ_G2LSTM_CUDA", raising=False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(setup.cpp_extension, "CUDA_HOME", str(tmp_path))
    obstacle = setup.cuda_obstacle()
    assert (obstacle is None) if expected is None else (expected in obstacle)


@needs_compiler
def test_where_nvcc_is_of_another_release_the_cpus_part_is_built_and_what_to_install_is_said(tree, tmp_path):
    (tmp_path / "site").mkdir()
    told = "import torch.utils.cpp_extension as extension\ntorch = extension.torch\ntorch.version.cuda = '12.4'\n"
    told += f"extension.CUDA_HOME = {str(tmp_path / 'cuda')!r}\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(told)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    done = run_setup(tree, "build_ext", "--inplace", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert "is of CUDA 13.0; install the CUDA 12 toolkit" in done.stdout + done.stderr
    [library] = (tree / "fairseq_g2lstm").glob("_kernels*.so")
    assert b"PyInit__kernels" in library.read_bytes()


def test_the_cuda_kernels_can_be_left_out(setup, monkeypatch):
    monkeypatch.setenv("FAIRSEQ_G2LSTM_CUDA", "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "FAIRSEQ_G2LSTM_CUDA=0" in setup.cuda_obstacle()


def test_every_source_is_built_once_and_cuda_alone_makes_the_difference(setup, monkeypatch):
    monkeypatch.chdir(ROOT)
    cpu, both = set(setup.sources(cuda=False)), setup.sources(cuda=True)
    every = {str(p.relative_to(ROOT)) for p in ROOT.glob("kernels/**/*") if p.suffix in (".cpp", ".cu")}
    assert set(both) == every and all("cuda" in path for path in every - cpu) and not any("cuda" in p for p in cpu)
    # Of two sources that differ in nothing but their suffix, one object would overwrite the other.
    assert len({Path(path).with_suffix("") for path in both}) == len(both)


def test_no_flag_names_an_instruction_set(setup):
    assert not [flag for flag in setup.CXX_FLAGS if flag.startswith("-m")]


def test_a_source_archive_holds_all_that_a_build_needs(tree, no_torch):
    shutil.rmtree(tree / "kernels")
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    done = run_setup(tree, "sdist", **no_torch)
    assert done.returncode == 0, done.stderr
    [archive] = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {str(p.relative_to(tree)) for p in (tree / "kernels").glob("**/*") if p.is_file()}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE"} <= names


@needs_compiler
def test_a_build_compiles_what_changed_and_nothing_else(tree):
    def built() -> int:
        done = run_setup(tree, "build_ext", "--inplace", FAIRSEQ_G2LSTM_REQUIRE_KERNELS="1", FAIRSEQ_G2LSTM_CUDA="0")
        assert done.returncode == 0, done.stderr
        [made] = tree.glob("build/**/schema.o")
        return made.stat().st_mtime_ns

    made = built()
    if shutil.which("ninja", path=os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])):
        assert built() == made
    (tree / "kernels" / "common" / "number.h").write_text("#define NUMBER 2\n")
    assert built() != made
    assert number(tree) == 2


# The library as it was built


@pytest.fixture(scope="module")
def library() -> Path:
    """The compiled kernels of the tree that is tested."""
    spec = importlib.util.find_spec("fairseq_g2lstm._kernels")
    if spec is None:
        pytest.skip("the kernels are not built: make kernels")
    return Path(spec.origin)


# Instructions of AVX begin with v; older ones that do take no such register. Those on masks came with AVX-512.
AVX = re.compile(r"\t(v\w+ .*%[xyz]mm|k\w+ .*%k\d|(tile|ldtile|tdp)\w+)")
AVX_FILES = {"isa_avx2.cpp", "isa_avx512.cpp", "isa_avx512_vnni.cpp", "isa_avx512_bf16.cpp", "isa_amx.cpp"}
AVX_NAMESPACES = tuple(
    f"_ZN6g2lstm{name}" for name in ("4avx2", "6avx512", "11avx512_vnni", "11avx512_bf16", "3amx")
)


def functions_of(library: Path) -> dict[int, tuple[str, str]]:
    """The functions by address: symbol, and source file ('' for those that several files may share)."""
    symbols = subprocess.check_output(["readelf", "--symbols", "--wide", library], text=True)
    found, source = {}, ""
    for line in symbols.partition("'.symtab'")[2].splitlines():
        fields = line.split()
        if len(fields) < 7 or not fields[0].rstrip(":").isdigit():
            continue
        name = fields[7] if len(fields) > 7 else ""
        if fields[3] == "FILE":
            source = name
        elif fields[3] == "FUNC" and int(fields[1], 16):
            found[int(fields[1], 16)] = (name, source if fields[4] == "LOCAL" else "")
    return found


def test_outside_their_own_files_no_code_needs_avx(library):
    for tool in ("objdump", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} was not found: it is in Debian's package binutils")
    functions = functions_of(library)
    if not functions:
        pytest.skip(f"{library.name} was stripped of its symbols")
    code = subprocess.check_output(["objdump", "-d", "--no-show-raw-insn", library], text=True)
    users, offenders, where = set(), set(), ("", "")
    for line in code.splitlines():
        if header := re.match(r"([0-9a-f]+) <", line):
            where = functions.get(int(header[1], 16), ("unknown", ""))
        elif AVX.search(line):
            name, source = where
            own = source in AVX_FILES or name.startswith(AVX_NAMESPACES)
            (users if own else offenders).add(where)
    # An older compiler leaves out what needs bfloat16.
    assert {source for _, source in users} >= AVX_FILES - {"isa_avx512_bf16.cpp", "isa_amx.cpp"}
    assert "isa_baseline.cpp" in {source for _, source in functions.values()}
    assert not offenders


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the dynamic linker of Linux")
def test_threads_are_those_of_torchs_own_openmp(library, tmp_path):
    # scikit-learn, of which fairseq makes use, brings a second runtime.
    code = "import importlib\ntry: importlib.import_module('sklearn.metrics')\nexcept ImportError: pass\n"
    code += "import torch, fairseq_g2lstm._kernels; print(torch.__file__)"
    env = {**os.environ, "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(tmp_path / "bindings")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    bound = set()
    for log in tmp_path.glob("bindings*"):
        for line in log.open():
            if f"file {library} " in line and re.search(r"symbol `(GOMP_|omp_|__kmpc_)", line):
                bound.add(Path(line.split(" to ")[1].split()[0]))
    folder = Path(done.stdout.split()[-1]).parent / "lib"
    assert bound and {path.parent for path in bound} == {folder}


# The check of the CUDA part


def test_the_report_of_ptxas_becomes_a_table(cuda_check):
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6g2lstm4cuda4stepIfEEvPT_i' for 'sm_80'
ptxas info    : Function properties for _ZN6g2lstm4cuda4stepIfEEvPT_i
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 128 bytes smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN6g2lstm4cuda4stepIdEEvPT_i' for 'sm_90'
ptxas info    : Function properties for _ZN6g2lstm4cuda4stepIdEEvPT_i
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers
"""
    rows = cuda_check.register_table(said)
    assert [row[1:] for row in rows] == [("sm_80", "38", "24", "24", "128"), ("sm_90", "64", "0", "0", "0")]
    if shutil.which("c++filt"):
        assert cuda_check.readable([row[0] for row in rows]) == ["step<float>", "step<double>"]


@pytest.fixture
def checked(tree, cuda_check, monkeypatch, capsys):
    """Runs the check over the given sources; its exit status and what it printed."""

    def check(**sources: str) -> tuple[int, str]:
        monkeypatch.setattr(cuda_check, "ROOT", tree)
        monkeypatch.setattr(cuda_check, "OUT", tree / "build" / "cuda-check")
        (tree / "kernels" / "cuda").mkdir()
        for suffix, text in sources.items():
            (tree / "kernels" / "cuda" / f"probe.{suffix}").write_text(text)
        status = cuda_check.main()
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return check


def test_the_check_of_the_host_alone_leaves_nvcc_out(tree, cuda_check, monkeypatch, capsys):
    monkeypatch.setattr(cuda_check, "ROOT", tree)
    monkeypatch.setattr(cuda_check, "OUT", tree / "build" / "cuda-check")
    monkeypatch.setattr(cuda_check, "compile_file", lambda command, source: f"{command[0]} {source.name}")
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: pytest.fail("nvcc was looked for"))
    assert cuda_check.main(host_alone=True) == 0
    said = capsys.readouterr().out
    assert "compile against the torch installed here" in said and ".cu" not in said


@needs_compiler
def test_without_nvcc_the_check_says_so_and_succeeds(checked, cuda_check, monkeypatch):
    monkeypatch.setattr(cuda_check, "find_nvcc", lambda: None)
    status, printed = checked(cu="not C++", cpp="#include <c10/macros/Macros.h>\nint one() { return 1; }\n")
    assert status == 0 and "nvcc was not found" in printed


@needs_compiler
@pytest.mark.parametrize("suffix", ["cu", "cpp"])
def test_a_warning_fails_the_check(checked, cuda_check, suffix):
    if suffix == "cu" and cuda_check.find_nvcc() is None:
        pytest.skip("nvcc was not found")
    status, printed = checked(**{suffix: "void nothing() { int unused = 1; }\n"})
    assert status == 1 and f"probe.{suffix} does not compile" in printed and "unused" in printed


# What the documentation says


def test_the_readme_of_the_kernels_lists_every_operator_and_where_it_runs():
    text = (ROOT / "kernels" / "README.md").read_text()
    rows = re.findall(r"^\| (`\w+`[^|]*)\|[^|]*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    listed = {}
    for names, cpu, cuda in rows:
        listed.update({name: (bool(cpu.strip()), bool(cuda.strip())) for name in re.findall(r"`(\w+)`", names)})
    schema = (ROOT / "kernels" / "binding" / "schema.cpp").read_text()
    backends = ["".join(p.read_text() for p in ROOT.glob(f"kernels/{folder}/*.cpp")) for folder in ("cpu", "cuda")]
    built = {
        name: tuple(f'impl("{name}"' in backend for backend in backends)
        for name in re.findall(r'm\.def\(\s*"(\w+)\(', schema)
    }
    assert listed == built
