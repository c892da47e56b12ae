"""Checkpoints as models ready for evaluation, the stock ones as the plugin's that compute the same."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import nn

from .checkpoints import State, forget_embedding_files, model_name, read_checkpoint
from .config import flag
from .convert import to_g2lstm


def load_model(checkpoint: str | Path, data: str | Path, state: State | None = None) -> tuple[nn.Module, Any]:
    """Loads a model for evaluation on the CPU.

    Args:
        checkpoint: of `g2lstm` or `g2lstm_lm`, or of stock `lstm` or `lstm_lm`, which are converted.
        data: the data-bin folder.
        state: what `read_checkpoint` gave for the checkpoint, where it has been read already.

    Returns:
        the model and fairseq's task, for language models `g2lstm_language_modeling`.

    Raises:
        FileNotFoundError: the checkpoint or the data folder is missing.
        ValueError: the checkpoint is of another model, cannot be read, does not fit the dictionaries, or was trained
            under another task, or with --add-bos-token or --output-dictionary-size.
    """
    if not Path(data).is_dir():
        raise FileNotFoundError(f"no data folder {data}: give the data-bin folder of fairseq-preprocess")
    if state is None:
        state = read_checkpoint(checkpoint)
    if model_name(state) not in ("g2lstm", "g2lstm_lm"):
        state = to_g2lstm(state)
    task_options = state["cfg"]["task"]
    if isinstance(task_options, Namespace):  # a task whose options fairseq has not brought up to date
        raise ValueError(
            f"{checkpoint} was trained under --task {getattr(task_options, 'task', None)}, which is not set up here: "
            "translation and the two tasks of language modelling are"
        )
    task_options["data"] = str(data)
    forget_embedding_files(state["cfg"]["model"])
    if model_name(state) == "g2lstm_lm":
        _read_in_order(task_options, checkpoint)
    config = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    try:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], state={**state, "cfg": config}
        )
    except Exception as error:  # fairseq raises bare exceptions here
        raise ValueError(f"{checkpoint} does not load with the dictionaries of {data}: {error}") from error
    return models[0].eval(), task


def _read_in_order(task_options: dict[str, Any], checkpoint: str | Path) -> None:
    for name, usual in (("add_bos_token", False), ("output_dictionary_size", -1)):
        if task_options.get(name, usual) != usual:
            raise ValueError(
                f"{checkpoint} was trained with {flag(name)}, and the text is read without it here: evaluate it by "
                "fairseq-eval-lm --task language_modeling"
            )
    task_options |= {"_name": "g2lstm_language_modeling", "sample_break_mode": "none", "shorten_method": "none"}
    task_options |= {"pad_to_fixed_length": False, "pad_to_fixed_bsz": False}
