"""Reading and writing fairseq's checkpoints.

torch's weights-only unpickler refuses every type that is not named to it, before anything of that type runs.
"""

import argparse
import os
import pickle
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fairseq.distributed.utils
import numpy as np
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from omegaconf.base import ContainerMetadata, Metadata
from torch import Tensor

State = dict[str, Any]

# What torch and fairseq raise over files that are no checkpoints, or parts of one.
_DAMAGED = (
    OSError, EOFError, zipfile.BadZipFile, RuntimeError, LookupError, TypeError, ValueError, AttributeError,
)  # fmt: skip


def allow_fairseq_checkpoints() -> None:
    """Names the types that fairseq's own checkpoints hold beside tensors and plain containers.

    argparse.Namespace holds the options of stock models; the numpy ones stand in the meters of runs with --eval-bleu,
    integers where one process trained, and doubles where several did, whose counts fairseq adds up as such.
    Where several ranks resume, rank 0 sends the others the checkpoint as it is once read, by the same unpickler: with
    its options as OmegaConf's containers, and placeholders for its tensors. None of these types runs code of a
    checkpoint's choosing when it is loaded.
    """
    reconstruct: Any = np.array(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, np.dtypes.Int64DType, np.dtypes.Float64DType]
    # numpy 2 moved the function; a checkpoint may have been written under the other
    allowed += [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    allowed += [DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, defaultdict, dict, list, int, Any]
    allowed.append(fairseq.distributed.utils._TensorPlaceholder)
    torch.serialization.add_safe_globals(allowed)


def read_checkpoint(path: str | Path) -> State:
    """Reads a fairseq checkpoint on the CPU, brought up to the current format by fairseq.

    Returns:
        fairseq's state, with `cfg` a plain dictionary.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
        ValueError: the file is truncated, is no fairseq checkpoint, or holds types that are not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of a fairseq checkpoint (.pt)")
    try:
        state = load_checkpoint_to_cpu(str(path))
    except pickle.UnpicklingError as error:
        # torch says "GLOBAL name" of what is not allowed, in different words for what is blocked outright
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise ValueError(f"{path} is truncated or no torch file") from error
        raise ValueError(
            f"{path} holds Python objects that no fairseq checkpoint needs, and was not loaded: {refused[1]}"
        ) from error
    except PermissionError:
        raise
    except _DAMAGED as error:
        raise ValueError(f"{path} is truncated or no fairseq checkpoint: {error}") from error
    if not isinstance(state.get("model"), dict) or state.get("cfg") is None:
        raise ValueError(f"{path} is no fairseq checkpoint: it has no model, or no options")
    state["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    state["args"] = None  # of older checkpoints, which fairseq would take in place of cfg
    return state


def check_finite(checkpoint: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Refuses a diverged training's weights, which rounding would turn into finite ones.

    Args:
        checkpoint: where they are from, for the sentence.
        weights: a state dict.

    Raises:
        ValueError: some are infinite or NaN.
    """
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(
                f"{checkpoint}: {name} holds infinite numbers or NaN: the training diverged, give a checkpoint from "
                "before that"
            )


def forget_embedding_files(options: dict[str, Any]) -> None:
    """Takes the files of pre-trained embeddings out of a checkpoint's model options.

    It holds what became of them, so that the files need not be where they were.
    """
    for name in ("encoder_embed_path", "decoder_embed_path"):
        if name in options:
            options[name] = None


def model_options(state: State) -> dict[str, Any]:
    """A checkpoint's options of the model, a copy."""
    options = state["cfg"]["model"]
    return dict(vars(options) if isinstance(options, argparse.Namespace) else options or {})


def model_name(state: State) -> str | None:
    """The registered name of a checkpoint's model, whatever its architecture; None where fairseq knows none such."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture(state))


def architecture(state: State) -> str:
    """The name of the architecture that a checkpoint's model was built by."""
    options = model_options(state)
    return str(options.get("_name") or options.get("arch"))


def updates_of(state: State) -> int | None:
    """How many updates a checkpoint was trained for; None where it does not say."""
    history = state.get("optimizer_history") or [{}]
    return history[-1].get("num_updates")


def write_checkpoint(state: State, path: str | Path) -> None:
    """Writes a checkpoint so that a file of this name is either complete or not there.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    with whole_file(path) as unfinished:
        torch.save(state, unfinished)


@contextmanager
def whole_file(path: str | Path) -> Iterator[str]:
    """Gives the name of a file to write, which takes `path`'s place when the block is done, and goes where it fails.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to: create it first")
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield unfinished
        os.chmod(unfinished, 0o666 & ~_umask())
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
