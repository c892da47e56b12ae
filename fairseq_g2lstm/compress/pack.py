"""Checkpoints that are really smaller, and weights that leave the project."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoints import (
    State,
    check_finite,
    forget_embedding_files,
    model_name,
    read_checkpoint,
    whole_file,
    write_checkpoint,
)
from ..loading import load_model
from ..packed import META, Packing, pack_weights, unpack_weights
from .parts import model_bytes, recurrent_bytes, tied_names
from .plan import Plan


class Sizes(NamedTuple):
    """Bytes of weights: of the LSTM layers and of the whole model, before and after, and of the two files."""

    recurrent: tuple[int, int]
    model: tuple[int, int]
    file: tuple[int, int]


def pack(
    checkpoint: Path,
    target: Path,
    plan: Plan | Callable[[Mapping[str, Tensor]], Plan],
    settings: Mapping[str, Any],
    eval_mode: str | None = None,
    in_memory: str = "keep",
) -> Sizes:
    """Writes a checkpoint for evaluation with packed weights, without the optimiser's state.

    Args:
        checkpoint: of `g2lstm` or `g2lstm_lm`.
        target: the file to write.
        plan: what is done to each part, or a function of the weights that gives it: `int:8`, `int:4`, `rank:K` or both.
        settings: kept in the checkpoint, for people.
        eval_mode: the gates in evaluation from now on, such as "hard"; None leaves them.
        in_memory: the checkpoint's `--packed-weights`: "keep", and it computes with integers and factors, or "unpack".

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no folder to write to.
        ValueError: the checkpoint is of another model or packed already, or a transform cannot be packed.
    """
    state = read_packable(checkpoint)
    check_is_another(target, checkpoint)
    weights: dict[str, Tensor] = state["model"]
    packed = pack_weights(weights, _packings(plan(weights) if callable(plan) else plan, weights), settings)
    options = {**state["cfg"]["model"], "packed_weights": in_memory}
    forget_embedding_files(options)
    if eval_mode is not None:
        options["gate_eval_mode"] = eval_mode
    write_checkpoint({**_for_evaluation(state), "cfg": {**state["cfg"], "model": options}, "model": packed}, target)
    return Sizes(
        (recurrent_bytes(weights), recurrent_bytes(packed)),
        (model_bytes(weights), model_bytes(packed)),
        (checkpoint.stat().st_size, target.stat().st_size),
    )


def read_packable(checkpoint: Path) -> State:
    """Reads a checkpoint whose weights can be packed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is of another model, packed already, or holds numbers that are not finite.
    """
    state = read_checkpoint(checkpoint)
    name = model_name(state)
    if name not in ("g2lstm", "g2lstm_lm"):
        raise ValueError(
            f"{checkpoint} is of {name}, only g2lstm and g2lstm_lm read packed weights: "
            "convert it first, with python -m fairseq_g2lstm.convert"
        )
    if META in state["model"]:
        raise ValueError(f"{checkpoint} is packed already: give the one that it was made of")
    check_finite(checkpoint, state["model"])
    return state


def check_is_another(target: Path, checkpoint: Path) -> None:
    """Raises ValueError where a file to be written is the checkpoint that is read."""
    if target.exists() and checkpoint.exists() and target.samefile(checkpoint):
        raise ValueError(f"{target} is the checkpoint itself, which would be lost: give another file to write")


def memory_bytes(checkpoint: Path, data: Path) -> int:
    """Bytes of a loaded model's weights, tied ones once.

    Args:
        checkpoint: packed or not.
        data: the data-bin folder.

    Raises:
        FileNotFoundError: the checkpoint or the data folder is missing.
        ValueError: the checkpoint cannot be read or does not fit the dictionaries.
    """
    model, _ = load_model(checkpoint, data)
    return model_bytes(model.state_dict())


def _packings(plan: Plan, weights: Mapping[str, Tensor]) -> Iterator[Packing]:
    for part, transform in plan.items():
        transform.check_packable()
        for name in tied_names(weights, part.name):
            yield Packing(name, part.rows, transform.bits, transform.rank)


def export_safetensors(checkpoint: Path, target: Path) -> int:
    """Writes a model's weights, unpacked, as safetensors, with the names that they have in the checkpoint.

    Returns:
        How many tensors were written.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such checkpoint, or no folder to write to.
        ValueError: the checkpoint cannot be read.
    """
    from safetensors.torch import save_file

    weights: dict[str, Tensor] = read_checkpoint(checkpoint)["model"]
    check_is_another(target, checkpoint)
    unpack_weights(weights)
    # tied weights share memory, which the format does not allow
    own = {name: weight.detach().clone().contiguous() for name, weight in weights.items()}
    with whole_file(target) as unfinished:
        save_file(own, unfinished, metadata={"format": "pt"})
    return len(own)


def _for_evaluation(state: State) -> Mapping[str, Any]:
    """A checkpoint without what only training goes on from."""
    kept = ("train_iterator", "val_loss", "best")
    extra = {key: value for key, value in state["extra_state"].items() if key in kept}
    return {"args": None, "extra_state": extra, "optimizer_history": state["optimizer_history"][-1:], "task_state": {}}
