"""Fixtures: real text where it is at hand, a tiny translation corpus, and fairseq's commands."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "fairseq_g2lstm"

torch.set_num_threads(1)


def pytest_configure() -> None:
    # Examples are run and imported from the repository root, as their READMEs print them.
    sys.path.insert(0, str(ROOT))


def pytest_sessionstart() -> None:
    """Where the kernels are required, tests must not skip for want of them."""
    if os.environ.get("FAIRSEQ_G2LSTM_REQUIRE_KERNELS") != "1":
        return
    from fairseq_g2lstm import ops

    if ops.kernels_error() is not None:
        pytest.exit(f"FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1, but {ops.kernels_error()}", returncode=1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text, named by G2LSTM_SHARED_DATA or lying beside the repository."""
    path = Path(os.environ.get("G2LSTM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real text at {path}: name its folder in G2LSTM_SHARED_DATA")
    return path


def run_module(
    module: str, *arguments: object, env: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess:
    """Runs `python -m module arguments` from the repository root with one thread and captures what it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    options.setdefault("timeout", 300)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """`run_module`, as a fixture."""
    return run_module


def write_reversal_corpus(folder: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Sentence pairs whose target is the source's words, reversed and renamed: a task a tiny model can learn."""
    generator = random.Random(seed)
    for split, size in sizes.items():
        with open(folder / f"{split}.de", "w") as source, open(folder / f"{split}.en", "w") as target:
            for _ in range(size):
                words = [generator.randrange(20) for _ in range(generator.randint(1, 9))]
                source.write(" ".join(f"w{word}" for word in words) + "\n")
                target.write(" ".join(f"x{word}" for word in reversed(words)) + "\n")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data-bin of a corpus of 400, 40 and 40 short sentences, languages de and en, dictionaries of 24 types."""
    folder = tmp_path_factory.mktemp("tiny")
    write_reversal_corpus(folder, {"train": 400, "valid": 40, "test": 40})
    prefixes = [f"--{split}pref={folder / split}" for split in ("train", "valid", "test")]
    done = run_module(
        "fairseq_cli.preprocess", "-s", "de", "-t", "en", *prefixes, "--destdir", folder / "data-bin"
    )
    assert done.returncode == 0, done.stderr
    return folder / "data-bin"


def train_options(data: Path, save_dir: Path, arch: str = "g2lstm", *more: object) -> list[str]:
    """Options of fairseq-train for a tiny model: 4 sentences a batch or so, 16 units, 10 updates."""
    criterion = "g2lstm_cross_entropy" if arch.startswith("g2lstm") else "cross_entropy"
    sizes = ["--encoder-embed-dim", 16, "--encoder-hidden-size", 16, "--decoder-embed-dim", 16]
    sizes += ["--decoder-hidden-size", 16, "--decoder-out-embed-dim", 16]
    options = [data, "--user-dir", PLUGIN, "--cpu", "--arch", arch, *sizes]
    options += ["--criterion", criterion, "--optimizer", "adam", "--lr", "0.01", "--max-tokens", 200]
    options += ["--max-update", 10, "--seed", 1, "--update-epoch-batch-itr", "True", "--num-workers", 0]
    options += ["--save-dir", save_dir, "--log-format", "simple", "--log-interval", 5, *more]
    return [str(option) for option in options]


def train_in_process(options: Sequence[str]) -> None:
    """fairseq-train in this process, which spares the seconds that a new one takes to start."""
    from fairseq import options as fairseq_options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.logging import metrics
    from fairseq_cli.train import main

    metrics.reset()
    parser = fairseq_options.get_training_parser()
    arguments = fairseq_options.parse_args_and_arch(parser, input_args=list(options))
    main(convert_namespace_to_omegaconf(arguments))


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """`train(name, *options, arch="g2lstm")` trains a tiny model and returns the folder of its checkpoints."""

    def run(name: str, *more: object, arch: str = "g2lstm") -> Path:
        save_dir = tmp_path / name
        train_in_process(train_options(tiny_data, save_dir, arch, *more))
        return save_dir

    return run


@pytest.fixture(scope="module")
def task(tiny_data: Path) -> Any:
    """fairseq's translation task over the tiny corpus, its validation set loaded."""
    from fairseq.tasks.translation import TranslationTask
    from tiny_runs import training_config

    task = TranslationTask.setup_task(training_config(tiny_data, "--arch", "lstm").task)
    task.load_dataset("valid")
    return task


@pytest.fixture
def sample(task: Any) -> dict[str, Any]:
    """The validation set's first eight sentences as a batch."""
    from tiny_runs import batch

    return batch(task, range(8))


@pytest.fixture(params=["kernels", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs twice, on the compiled operators and on plain PyTorch."""
    from fairseq_g2lstm import ops

    if request.param == "kernels" and ops.kernels_error() is not None:
        pytest.skip("the kernels are not built: make kernels")
    with ops.use_reference() if request.param == "reference" else nullcontext():
        yield


@pytest.fixture
def own_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq keeps its writers for TensorBoard, and with them the folder, as long as the process lives."""
    from fairseq.logging import progress_bar

    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data-bin of a text for language models: some 2,100, 350 and 350 tokens, 17 words."""
    from lm_runs import preprocess, write_text

    folder = tmp_path_factory.mktemp("text")
    write_text(folder, {"train": 300, "valid": 50, "test": 50})
    return preprocess(folder)
