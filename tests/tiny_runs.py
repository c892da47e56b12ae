"""What the tests of criterions, checkpoints and training share: configurations, tiny models, loading, comparing."""

import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import PLUGIN
from fairseq import checkpoint_utils
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.lstm import LSTMModel, base_architecture
from torch import Tensor

from fairseq_g2lstm.models.g2lstm import G2LSTMModel

SMALL = {
    "encoder_embed_dim": 7,
    "encoder_hidden_size": 9,
    "decoder_embed_dim": 7,
    "decoder_hidden_size": 9,
    "decoder_out_embed_dim": 9,
    "dropout": 0.0,
}


def training_config(*options: object) -> Any:
    """fairseq's configuration for options of fairseq-train."""
    parser = fairseq_options.get_training_parser()
    arguments = fairseq_options.parse_args_and_arch(parser, input_args=[str(option) for option in options])
    return convert_namespace_to_omegaconf(arguments)


def generation_config(*options: object) -> Any:
    """fairseq's configuration for options of fairseq-generate, on the CPU."""
    parser = fairseq_options.get_generation_parser()
    given = ["--user-dir", PLUGIN, "--cpu", "--num-workers", 0, *options]
    arguments = fairseq_options.parse_args_and_arch(parser, input_args=[str(option) for option in given])
    return convert_namespace_to_omegaconf(arguments)


def batch(task: Any, sentences: Iterable[int]) -> dict[str, Any]:
    """Sentences of a task's validation set, by number, as a batch."""
    dataset = task.dataset("valid")
    return dataset.collater([dataset[i] for i in sentences])


def build(task: Any, **options: Any) -> G2LSTMModel:
    """A `g2lstm` of nine units without dropout."""
    return G2LSTMModel.build_model(Namespace(_name="g2lstm", **{**SMALL, **options}), task)


def build_stock(task: Any, **options: Any) -> LSTMModel:
    """A stock `lstm` of nine units without dropout."""
    arguments = Namespace(**{"criterion": "cross_entropy", **SMALL, **options})
    base_architecture(arguments)
    return LSTMModel.build_model(arguments, task)


def load(checkpoint: Path, **overrides: Any) -> tuple[Any, Any]:
    """The model of a checkpoint, in evaluation, and its task, by fairseq's own loader."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=overrides)
    return models[0].eval(), task


def assert_identical(found: Any, expected: Any, name: str = "") -> None:
    """Asserts that two nests of containers hold the same keys, values and bit-identical tensors."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, name
        assert torch.equal(found, expected), f"{name} differs by {(found - expected).abs().max()}"
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected), name
        for key in expected:
            assert_identical(found[key], expected[key], f"{name}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_identical(one, other, f"{name}[{number}]")
    else:
        assert type(found) is type(expected) and found == expected, name


def rendezvous(folder: Path) -> str:
    """Where the processes of one training meet: a file of its own, since a free port may be taken until they listen."""
    return f"file://{Path(tempfile.mkdtemp(dir=folder)) / 'rendezvous'}"
