"""benchmarks/gpu.sh with a stand-in for Python: which steps run, with what, and what is kept of them."""

import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, run_module
from example_texts import write

# A GPU and kernels are there where GPU and KERNELS say so. What it is told to run, it prints.
STUB = """#!/bin/sh
case "$2" in
    *get_device_name*) echo "$GPU" ;;
    *get_device_capability*) echo 9.0 ;;
    *kernels_missing*) [ -n "$KERNELS" ] || { echo "no module named bitarray"; exit 1; } ;;
    "import torch, fairseq") [ -z "$LACKS_FAIRSEQ" ] || { echo "no module named omegaconf"; exit 1; } ;;
    *xdist*|*pytest_timeout*) exit 1 ;;
    *num2words*) [ -z "$LACKS_TEXT" ] ;;
    *device_count*) echo 0 ;;
    examples.ptb.progress) exec cat ;;
    *) echo "$*"; [ -n "$WRITES" ] && echo it > "$WRITES"; case "$*" in *"$FAILS"*) exit 7 ;; esac ;;
esac
"""


def gpu_script(folder: Path, *steps: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for name in ("python3", "nvidia-smi", "ncu"):
        write(folder / "bin" / name, STUB).chmod(0o755)
    settings = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OUT": str(folder / "out"), "FAILS": "nothing"}
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *steps], capture_output=True, text=True, cwd=ROOT, env=settings | environment
    )


def table(folder: Path) -> list[str]:
    """The first two words of each line."""
    path = folder / "out" / "steps.txt"
    return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_step_that_fails_does_not_stop_the_others_and_all_is_in_the_archive(tmp_path):
    archive = tmp_path / "kept.tgz"
    done = gpu_script(tmp_path, "kernels", "layer", "language-model", FAILS="run layer", ARCHIVE=str(archive))
    assert done.returncode == 1
    assert table(tmp_path) == ["kernels passed", "layer exit", "language-model passed"]
    assert "no GPU; logs and results in out:" in done.stdout
    with tarfile.open(archive) as kept:
        names = {Path(name).name for name in kept.getnames()}
        assert {"steps.txt", "kernels.log", "layer.log", "language-model.log"} <= names
        assert kept.extractfile("./steps.txt").read().decode().count("passed") == 2


def test_a_budget_leaves_out_what_has_no_time_and_shortens_the_benchmarks(tmp_path):
    done = gpu_script(tmp_path, "layer", BUDGET="20")
    assert done.returncode == 1 and table(tmp_path) == ["layer left"] and "out: no time" in done.stdout
    done = gpu_script(tmp_path, "layer", "end-to-end", BUDGET="600", END_TO_END_OPTIONS="--repeats 9")
    assert done.returncode == 0, done.stderr
    # the first call's failure is none of the second's, and is kept
    assert table(tmp_path) == ["layer left", "layer passed", "end-to-end passed"] and "no time" not in done.stdout
    assert "--rounds 3 --no-sweep" in (tmp_path / "out" / "layer.log").read_text()
    assert (tmp_path / "out" / "end-to-end.log").read_text().rstrip().endswith("--repeats 9")


def test_fairseqs_logs_of_this_run_are_kept(tmp_path):
    logs = ROOT / "runs" / "benchmark" / "logs"
    old, new = (f"test-{os.getpid()}-{name}.log" for name in ("old", "new"))
    try:
        write(logs / old, "")
        os.utime(logs / old, (0, 0))
        done = gpu_script(tmp_path, "layer", WRITES=str(logs / new))
        assert done.returncode == 0, done.stderr
        kept = {path.name for path in (tmp_path / "out" / "logs").iterdir()}
        assert new in kept and old not in kept
    finally:
        for name in (old, new):
            (logs / name).unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["DATA", "TEXT", "CHECKPOINT"])
def test_what_is_not_there_is_told_before_the_first_step(tmp_path, name):
    done = gpu_script(tmp_path, "layer", **{name: str(tmp_path / "nowhere")})
    assert done.returncode == 1 and table(tmp_path) == []
    assert f"{tmp_path / 'nowhere'}\n" in done.stderr


@pytest.mark.parametrize("gpu", ["", "H100"])
def test_the_layers_kernels_are_profiled_where_there_is_a_gpu(tmp_path, gpu):
    done = gpu_script(tmp_path, "profile", GPU=gpu, KERNELS="built")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == (["profile-steps passed", "profile-persistent passed"] if gpu else ["profile left"])
    for kernel in ("steps", "persistent") if gpu else ():
        log = (tmp_path / "out" / f"profile-{kernel}.log").read_text()
        assert log.strip().endswith(f"profile-{kernel}.csv python3 -m benchmarks.profiled {kernel}")
        assert "--clock-control none" in log  # or ncu would set those of a GPU that others use


# as compute-sanitizer tells of itself
SANITIZER = """#!/bin/sh
case "$1" in --help) echo "$SANITIZER_HELP" ;; *) echo "$*" ;; esac
"""


SANITIZED = ("memcheck", "memcheck-persistent", "racecheck", "racecheck-persistent")


def sanitize(folder: Path, told: str) -> dict[str, str]:
    """The command line of each step, of a sanitizer that tells of these options."""
    write(folder / "bin" / "compute-sanitizer", SANITIZER).chmod(0o755)
    done = gpu_script(folder, "sanitize", GPU="H100", KERNELS="built", SANITIZER_HELP=told)
    assert done.returncode == 0, done.stderr
    assert table(folder) == [f"{step} passed" for step in SANITIZED]
    return {step: (folder / "out" / f"{step}.log").read_text().strip() for step in SANITIZED}


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("--kernel-name --kernel-regex --destroy-on-device-error", "kernel-name kns=g2lstm --destroy-on-device-error"),
        ("--kernel-regex", "--kernel-regex kns=g2lstm python3"),
        ("", "--target-processes all python3"),
    ],
)
def test_our_own_kernels_are_sanitized_with_the_options_that_there_are(tmp_path, told, given):
    for step, line in sanitize(tmp_path, told).items():
        assert line.startswith(f"--tool {step.partition('-')[0]} ") and given in line


@pytest.mark.slow
def test_what_is_sanitized_are_a_few_tests_of_each_kind(tmp_path):
    decoder = {"test_decoder_equals_the_reference_at_every_size": 4}
    persistent = {
        "test_persistent_layer_equals_the_reference_in_every_mode": 24,
        "test_persistent_layer_equals_the_reference_with_more_pieces_than_are_kept": 3,
    }
    others = {
        "test_step_equals_the_reference_at_every_size": 6,
        "test_layer_equals_the_reference_at_every_length": 2,
        "test_random_words_are_the_references": 18,
    }
    expected = dict(zip(SANITIZED, (decoder | others, persistent, decoder, persistent), strict=True))
    for step, line in sanitize(tmp_path, "").items():
        found = run_module("pytest", "tests/test_cuda.py", "-k", line.partition(" -k ")[2], "--collect-only", "-q")
        assert Counter(re.findall(r"::(\w+)", found.stdout)) == expected[step], step


@pytest.mark.skipif(shutil.which("compute-sanitizer") is not None, reason="compute-sanitizer is on the path")
def test_a_tool_that_is_not_there_is_a_failure_where_a_gpu_is_needed(tmp_path):
    given = {"GPU": "H100", "KERNELS": "built", "COMMIT": "abc", "CUDA_HOME": str(tmp_path)}
    for need, status in (("", 0), ("1", 1)):
        done = gpu_script(tmp_path, "sanitize", NEED_GPU=need, **given)
        assert done.returncode == status and "left out: compute-sanitizer is not there\n" in done.stdout


@pytest.mark.parametrize("fails", ["nothing", "-k persistent"])
def test_one_launch_is_timed_by_itself_where_its_tests_pass(tmp_path, fails):
    done = gpu_script(tmp_path, "layer", "persistent", "layer-persistent", GPU="H100", KERNELS="built", FAILS=fails)
    ends = ("passed", "passed") if fails == "nothing" else ("exit", "left")
    expected = ["layer passed", f"persistent {ends[0]}", f"layer-persistent {ends[1]}"]
    assert table(tmp_path) == expected and done.returncode == (fails != "nothing")
    assert "persistent" not in (tmp_path / "out" / "layer.log").read_text()
    if fails == "nothing":
        log = (tmp_path / "out" / "layer-persistent.log").read_text()
        assert log.strip().endswith("--peers g2lstm g2lstm-persistent torch.nn.LSTM")


def test_the_library_that_was_built_lies_beside_the_archive(tmp_path):
    archive = tmp_path / "kept" / "gpu.tgz"
    done = gpu_script(tmp_path, "build", GPU="H100", KERNELS="built", ARCHIVE=str(archive))
    assert done.returncode == 0, done.stderr
    built = {path.name for path in (ROOT / "fairseq_g2lstm").glob("_kernels*.so")}
    assert {path.name for path in archive.parent.iterdir()} == built | {archive.name}


def test_results_without_a_commit_are_refused_where_a_gpu_is_needed(tmp_path):
    given = {"GPU": "H100", "KERNELS": "built", "NEED_GPU": "1", "GIT_DIR": str(tmp_path)}
    done = gpu_script(tmp_path, "layer", **given)
    assert done.returncode == 1 and table(tmp_path) == []
    assert done.stderr == "error: the tree has no history: give the commit that the results are of as COMMIT\n"
    assert gpu_script(tmp_path, "layer", COMMIT="abc", **given).returncode == 0


def test_what_cannot_be_imported_is_told_before_a_build(tmp_path):
    done = gpu_script(tmp_path, "layer", GPU="H100", LACKS_FAIRSEQ="1")
    assert done.returncode == 1 and table(tmp_path) == []
    assert done.stderr == "error: torch and fairseq cannot be imported: no module named omegaconf\n"


def test_a_text_that_cannot_be_made_leaves_out_what_needs_it(tmp_path):
    write(tmp_path / "text" / "dict.txt", "")
    done = gpu_script(tmp_path, "end-to-end", "language-model", LACKS_TEXT="1", TEXT=str(tmp_path / "text"))
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == ["end-to-end left", "language-model passed"]
    assert "by babel and num2words, which are not there; give DATA\n" in done.stdout


@pytest.mark.parametrize("kernels", ["", "built"])
def test_a_gpu_without_kernels_gets_a_build_first_and_without_them_no_step(tmp_path, kernels):
    done = gpu_script(tmp_path, "layer", GPU="H100", KERNELS=kernels)
    if kernels:
        assert done.returncode == 0 and table(tmp_path) == ["layer passed"]
    else:
        assert done.returncode == 1 and "error: built without CUDA kernels" in done.stderr
        assert "build.log. no module named bitarray" in done.stderr
        assert table(tmp_path) == ["build passed"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NEED_GPU": "1"}, "error: torch sees no GPU"),
        ({"DATA": "nowhere/data-bin"}, "error: no folder nowhere/data-bin"),
        ({"TEXT": "nowhere/text"}, "error: no folder nowhere/text"),
        ({"ARCHIVE": "{out}/a.tgz"}, "error: ARCHIVE={out}/a.tgz lies in OUT, all of which it would hold"),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_any_step(tmp_path, environment, message):
    out = tmp_path / "out"
    message = message.format(out=out)
    given = {name: value.format(out=out) for name, value in environment.items()}
    done = gpu_script(tmp_path, "layer", **given)
    assert done.returncode == 1 and done.stderr.strip() == message
    assert table(tmp_path) == []


def test_an_unknown_step_gets_a_sentence(tmp_path):
    done = gpu_script(tmp_path, "bench")
    assert done.returncode == 2 and done.stderr.startswith("error: no step is called bench: build, kernels,")


def test_language_models_are_trained_and_tested_where_a_text_is_given(tmp_path):
    write(tmp_path / "text" / "dict.txt", "")
    done = gpu_script(tmp_path, "ptb")
    assert done.returncode == 0 and "left out: it needs TEXT" in done.stdout
    runs = {"PTB_RUNS": "medium-gumbel", "PTB_DIR": str(tmp_path / "runs")}
    done = gpu_script(tmp_path, "ptb", TEXT=str(tmp_path / "text"), GPU="", **runs)
    assert table(tmp_path)[1:] == ["medium-gumbel passed", "medium-gumbel-test exit", "ptb passed"]
    # the stand-in wrote no checkpoint
    assert "train first" in (tmp_path / "out" / "medium-gumbel-test.log").read_text()
    log = (tmp_path / "out" / "ptb" / "medium-gumbel" / "train.log").read_text()
    assert "g2lstm_lm_zaremba" in log and "--gate-type gumbel" in log
