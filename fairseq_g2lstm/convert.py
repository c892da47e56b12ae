"""Turn a checkpoint of fairseq's stock LSTM models into one of the plugin's, or back, without training.

    python -m fairseq_g2lstm.convert lstm.pt g2lstm.pt --to g2lstm
    python -m fairseq_g2lstm.convert g2lstm.pt lstm.pt --to lstm

`lstm` becomes `g2lstm`, the language model `lstm_lm` becomes `g2lstm_lm`. The converted model computes in evaluation
what the given one computes.
"""

import argparse
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY

from . import config_lm
from .checkpoints import State, architecture, model_name, model_options, read_checkpoint, write_checkpoint
from .config import TRANSLATION, GateConfig, OptionTables, gate_settings, resolve
from .models.common import MAX_POSITIONS
from .models.gated import GATE_VALUES, GateValues
from .packed import unpack_weights

_STOCK_CRITERIONS = {
    "g2lstm_cross_entropy": ("cross_entropy", "CrossEntropyCriterion"),
    "g2lstm_label_smoothed_cross_entropy": (
        "label_smoothed_cross_entropy",
        "LabelSmoothedCrossEntropyCriterion",
    ),
}


def to_g2lstm(state: State, gate_type: str = "sigmoid") -> State:
    """A stock `lstm` or `lstm_lm` checkpoint as one of `g2lstm` or `g2lstm_lm`.

    Args:
        state: the stock checkpoint, from `checkpoints.read_checkpoint`.
        gate_type: the gate type of the new checkpoint. It computes what the given one does with "sigmoid" and "gumbel",
            whose gates in evaluation are plain sigmoids.

    Returns:
        A new state that shares its tensors with the given one.

    Raises:
        ValueError: the checkpoint is not of a stock `lstm` or `lstm_lm`, or that has residual connections.
    """
    options, stock = model_options(state), model_name(state)
    if stock not in ("lstm", "lstm_lm"):
        name = architecture(state)
        raise ValueError(f"--to g2lstm takes a checkpoint of the stock lstm or lstm_lm, got one of {name}")
    if options.get("residuals"):
        raise ValueError("this lstm_lm has --residuals, which g2lstm_lm does not")
    options["_name"] = f"g2{stock}"
    if options.get("criterion") != "adaptive_loss":
        options["adaptive_softmax_cutoff"] = None
    options["gate_type"] = gate_type
    resolved, tables = _resolved(options)
    given: dict[str, Any] = {f.name: getattr(resolved, f.name) for f in fields(tables.config)}
    given["_name"] = options["_name"]
    weights = dict(state["model"])
    weights[GATE_VALUES] = GateValues(gate_settings(resolved)).values
    return {**state, "model": weights, "cfg": {**state["cfg"], "model": given}}


def _resolved(options: dict[str, Any]) -> tuple[Namespace, OptionTables]:
    """The complete options of a `g2lstm` or a `g2lstm_lm`, and that model's tables."""
    if options["_name"] in config_lm.LANGUAGE_MODEL.architectures:
        return config_lm.resolve(Namespace(**options)), config_lm.LANGUAGE_MODEL
    return resolve(Namespace(**options)), TRANSLATION


def to_lstm(state: State) -> State:
    """A `g2lstm` or `g2lstm_lm` checkpoint as one of the stock `lstm` or `lstm_lm`.

    Where the gates in evaluation are tempered, the temperature goes into the weights of the input and forget gates.

    Args:
        state: the `g2lstm` checkpoint, from `checkpoints.read_checkpoint`.

    Returns:
        A new state; it shares unchanged tensors with the given one.

    Raises:
        ValueError: the checkpoint is not of a `g2lstm` or `g2lstm_lm`, or has what the stock model does not: hard gates
            in evaluation, layers of different sizes, a bias of tied outputs.
    """
    name = architecture(state)
    if name not in {*TRANSLATION.architectures, *config_lm.LANGUAGE_MODEL.architectures}:
        raise ValueError(f"--to lstm takes a checkpoint of g2lstm or g2lstm_lm, got one of {name}")
    resolved, tables = _resolved(model_options(state))
    weights = dict(state["model"])
    unpack_weights(weights)
    settings = gate_settings(resolved)
    values = weights.pop(GATE_VALUES, None)
    if values is not None:
        settings = settings.with_values(*values.tolist()[:2])
    mode = settings.mode(training=False)
    if mode.hard:
        raise ValueError(
            "the stock lstm has no hard gates: this checkpoint's gate_eval_mode is hard; "
            "evaluate it as g2lstm, or train with --gate-eval-mode soft"
        )
    if mode.temperature != 1.0:
        for key, weight in weights.items():
            if key.startswith(("encoder.lstm.", "decoder.layers.")):
                weights[key] = _fold_temperature(weight, mode.temperature)
    own = {f.name for f in fields(GateConfig)}
    options = {f.name: getattr(resolved, f.name) for f in fields(tables.config) if f.name not in own - {"_name"}}
    criterion = dict(state["cfg"].get("criterion") or {})
    options["criterion"] = criterion.get("_name")
    options["adaptive_softmax_cutoff"] = options["adaptive_softmax_cutoff"] or "10000,50000,200000"
    stock = "lstm" if tables is TRANSLATION else "lstm_lm"
    options |= {"_name": stock, "arch": stock}
    cfg = dict(state["cfg"])
    if stock == "lstm_lm":
        options |= _stock_lm_options(resolved)
        cfg["task"] = {**(cfg["task"] or {}), "_name": "language_modeling"}
    cfg["model"] = Namespace(**options)
    converted = {**state, "model": weights, "cfg": cfg}
    if criterion.get("_name") in _STOCK_CRITERIONS:
        stock_name, stock_class = _STOCK_CRITERIONS[criterion["_name"]]
        converted["cfg"]["model"].criterion = stock_name
        known = {f.name for f in fields(CRITERION_DATACLASS_REGISTRY[stock_name])}
        kept = {key: value for key, value in criterion.items() if key in known}
        converted["cfg"]["criterion"] = {**kept, "_name": stock_name}
        converted["optimizer_history"] = [
            {**entry, "criterion_name": stock_class} for entry in state.get("optimizer_history", [])
        ]
    return converted


def _stock_lm_options(resolved: Namespace) -> dict[str, Any]:
    """The options of a stock `lstm_lm` that a `g2lstm_lm` has otherwise."""
    sizes = config_lm.layer_sizes(resolved)
    if len(set(sizes)) > 1:
        raise ValueError(f"the stock lstm_lm has layers of one size: these have {', '.join(map(str, sizes))} units")
    if resolved.share_decoder_input_output_embed and resolved.decoder_output_bias:
        raise ValueError("the stock lstm_lm has no bias of tied outputs, which --decoder-output-bias gave this one")
    return {
        "decoder_hidden_size": sizes[0],
        "decoder_layers": len(sizes),
        "residuals": False,
        # a stock model refuses longer blocks than it was built for
        "max_target_positions": MAX_POSITIONS,
    }


def _fold_temperature(weight: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divides the rows of the input and forget gates, the first half, by the temperature."""
    folded = weight.clone()
    folded[: weight.size(0) // 2] /= temperature
    return folded


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_g2lstm.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint to read")
    parser.add_argument("converted", type=Path, help="checkpoint to write")
    parser.add_argument("--to", choices=("g2lstm", "lstm"), required=True, help="model to convert to")
    parser.add_argument(
        "--gate-type",
        default="sigmoid",
        choices=("sigmoid", "gumbel"),
        help="gate type of the g2lstm checkpoint when it is trained further (default: sigmoid)",
    )
    options = parser.parse_args(arguments)
    try:
        state = read_checkpoint(options.checkpoint)
        converted = to_g2lstm(state, options.gate_type) if options.to == "g2lstm" else to_lstm(state)
        write_checkpoint(converted, options.converted)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    name = architecture(converted)
    print(f"wrote {options.converted}: {name} with {len(converted['model'])} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
