"""Trainings with their evaluations, and what tells two of them apart."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.common.errors import UserError
from examples.common.fairseq_log import architecture, optimizer, setting
from examples.common.same_training import changed_options
from examples.ptb.train_log import Training, read_training

# Options that two trainings must have in common to be compared, beside the optimiser's name and the number of
# parameters, and what holds where one is not given; a name above stands for that option.
RECIPE: dict[str, Any] = {
    "lr": None,
    "lr_scheduler": "fixed",
    "lr_shrink": None,
    "force_anneal": None,
    "warmup_updates": 0,
    "clip_norm": 0,
    "momentum": 0,
    "weight_decay": 0,
    "fp16": False,
    "bf16": False,
    "amp": False,
    "float32_matmul_precision": "default",
    "sentence_avg": False,
    "batch_size": None,
    "max_tokens": None,
    "update_freq": None,
    "distributed_world_size": 1,
    "tokens_per_sample": None,
    "train_subset": "train",
    "curriculum": 0,
    "skip_remainder_batch": False,
    "decoder_embed_path": None,
    "variable_tokens_per_sample": False,
    "max_epoch": 0,
    "max_update": 0,
    "dropout": None,
    "decoder_dropout_in": "dropout",
    "decoder_dropout_out": "dropout",
    "decoder_dropout_hidden": "decoder_dropout_out",
    "decoder_dropout_type": "plain",
    "decoder_dropout_embed": 0,
    "decoder_weight_drop": 0,
    "activation_reg": 0,
    "temporal_activation_reg": 0,
    "asgd_nonmono": None,
    "init_range": 0.1,
    "lstm_init_range": "init_range",
}
# of these, what stock lstm_lm has no choice of, so that it is compared with any
NOT_STOCK = ("init_range", "lstm_init_range")
# of a model
SIZES = (
    "decoder_embed_dim",
    "decoder_hidden_size",
    "decoder_layers",
    "decoder_layer_sizes",
    "decoder_out_embed_dim",
    "share_decoder_input_output_embed",
)
# Options that make an arm another arm, and what goes without saying.
ARM: dict[str, Any] = {
    "gate_temperature": 0.9,
    "gate_temperature_schedule": "constant",
    "gate_temperature_start": None,
    "gate_temperature_end": None,
    "gate_temperature_updates": None,
    "gate_noise_prob": 0.2,
    "gate_noise_sharing": "step",
    "gate_noise_schedule": "constant",
    "gate_noise_start": None,
    "gate_noise_end": None,
    "gate_noise_updates": None,
    "gate_eval_mode": "auto",
    "task": "g2lstm_language_modeling",
}
# of these, the beginnings of those that say nothing under some gates
HAS_NO: dict[str, str | tuple[str, ...]] = {
    "sigmoid": ("gate_noise_", "gate_temperature"),
    "sharpened": "gate_noise_",
    "stock": ("gate_", "task"),
}


@dataclass(frozen=True)
class Run:
    """One training with its evaluation.

    Attributes:
        folder: as given.
        training: what its log tells.
        seed: of the training.
        gates: the gates' type, or `stock`.
        recipe: what it must share with another to be compared.
        arm: the gates, and what is unusual about them.
        result: what evaluate.sh wrote.
    """

    folder: str
    training: Training
    seed: int
    gates: str
    recipe: tuple[tuple[str, Any], ...]
    arm: str
    result: Mapping[str, Any]


def recipe_of(gates: str, training: Training, result: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The options that make trainings and their evaluations comparable, with what holds where they are not given."""
    recipe: dict[str, Any] = {"parameters": training.parameters, "optimizer": optimizer(training.settings)}
    for name, otherwise in RECIPE.items():
        value = training.setting(name)
        if value is None:
            value = recipe.get(otherwise, otherwise)
        recipe[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    overrides = ast.literal_eval(result.get("model_overrides", "{}"))
    overrides.pop("max_target_positions", None)  # which the context tells
    recipe["cache"] = _in_words(result.get("cache"))
    recipe["subset"] = result.get("subset", "test")
    recipe["model_overrides"] = _in_words(overrides)
    lacks = NOT_STOCK if gates == "stock" else ()
    return tuple(
        (name, str(value) if isinstance(value, list) else value) for name, value in recipe.items() if name not in lacks
    )


def _in_words(options: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{key} {value}" for key, value in options.items()) if options else None


def read_run(folder: str, result_name: str, tell_context: bool = False) -> Run:
    """Read a folder's train.log and its result.

    Args:
        folder: of the two.
        result_name: of the result, without its ending.
        tell_context: in the arm's name, as for a second evaluation of the same training.

    Raises:
        UserError: one is missing, or the result is of an earlier checkpoint.
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}")
    training = read_training(Path(folder) / "train.log")
    if not training.validations or not training.speeds:
        raise UserError(f"{folder} is not compared: its training has not come to the end of an epoch yet")
    changed = changed_options(training.sessions, training.settings, identity)
    if changed:
        raise UserError(
            f"{folder} is not compared: it was begun with other options ({', '.join(changed)}); train it anew in a "
            "folder of its own"
        )
    gates = str(training.setting("gate_type") or "stock")
    path = Path(folder) / f"{result_name}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        perplexity, updates = float(result["perplexity"]), int(result["updates"])
        recipe = recipe_of(gates, training, result)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not compared: it has no {path.name}; {progress(training)}, validation perplexity "
            f"{training.best.perplexity:.2f}; evaluate it with examples/ptb/evaluate.sh"
        ) from error
    except (OSError, ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not compared: {path} is no result of evaluate.sh: {error!r}") from error
    if not math.isfinite(perplexity):
        raise UserError(f"{folder} is not compared: its perplexity is {perplexity}")
    losses = {validation.updates: validation.loss for validation in training.validations}
    if losses.get(updates) != training.best.loss:
        raise UserError(
            f"{folder} is not compared: {path.name} is of the model after {updates} updates, and by train.log the "
            f"best one is that after {training.best.updates}; evaluate it again"
        )
    return Run(
        folder,
        training,
        seed=int(training.setting("seed")),
        gates=gates,
        recipe=recipe,
        arm=arm_of(gates, training, str(result.get("context")) if tell_context else None),
        result=result,
    )


def identity(settings: str) -> dict[str, Any]:
    """What makes a training another one, with what holds where an earlier version had no such option."""
    usual = RECIPE | ARM
    found: dict[str, Any] = {"architecture": architecture(settings), "optimizer": optimizer(settings)}
    for name in (*SIZES, "gate_type", "criterion", "seed", "valid_subset", "batch_size_valid", *ARM, *RECIPE):
        if name not in ("max_epoch", "max_update"):
            value, otherwise = setting(settings, name), usual.get(name)
            found[name] = otherwise if value is None and otherwise not in usual else value
    return found


def progress(training: Training) -> str:
    """How far a training has come, in words."""
    of = f" of {training.setting('max_epoch')}" if training.setting("max_epoch") else ""
    return f"{'finished after' if training.finished else 'unfinished,'} {training.epochs}{of} epochs"


def arm_of(gates: str, training: Training, context: str | None) -> str:
    """The name of a run's arm: its gates, what is unusual about it, and the test's context where that is given."""
    parts = [gates]
    for name, usual in ARM.items():
        value = training.setting(name)
        if value not in (None, usual) and not name.startswith(HAS_NO.get(gates, "none")):
            parts.append(f"{name.replace('_', ' ')} {value}")
    if context is not None:
        parts.append(f"tested with {context}")
    if not training.finished:
        parts.append(progress(training))
    return ", ".join(parts)
