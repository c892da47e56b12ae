"""Options of the `g2lstm_lm` model and the sizes of its architectures."""

import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Optional

from .config import GateConfig, ModelOptions, OptionTables, apply_architecture, architecture_of, complete, flag
from .settings import check_probability

DROPOUT_TYPES = ("plain", "locked")


@dataclass
class G2LSTMLanguageModelConfig(GateConfig):
    """Options of the language model; those that stock `lstm_lm` has mean what they mean there."""

    dropout: Optional[float] = field(
        default=None, metadata={"help": "dropout probability of inputs, outputs and between layers"}
    )
    decoder_embed_dim: Optional[int] = field(default=None, metadata={"help": "embedding dimension"})
    decoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "path to pre-trained embeddings"}
    )
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "units of each layer (default: --decoder-embed-dim)"}
    )
    decoder_layers: Optional[int] = field(default=None, metadata={"help": "number of layers"})
    decoder_layer_sizes: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma separated units of each layer, lowest first, in place of --decoder-layers and "
            "--decoder-hidden-size"
        },
    )
    decoder_out_embed_dim: Optional[int] = field(
        default=None,
        metadata={"help": "output embedding dimension; where the last layer has other units, a projection joins them"},
    )
    share_decoder_input_output_embed: Optional[bool] = field(
        default=None, metadata={"help": "tie input and output embeddings"}
    )
    decoder_output_bias: Optional[bool] = field(
        default=None, metadata={"help": "give tied outputs a bias; untied ones always have one"}
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma separated adaptive softmax cutoff points; must be used with adaptive_loss criterion"
        },
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability of the embeddings' outputs (default: --dropout)"}
    )
    decoder_dropout_hidden: Optional[float] = field(
        default=None, metadata={"help": "dropout probability between layers (default: --decoder-dropout-out)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout probability of the last layer's outputs (default: --dropout)"}
    )
    decoder_dropout_type: Optional[str] = field(
        default=None,
        metadata={
            "help": "plain: elements dropped anew at each step; locked: the same ones at all steps of a block "
            "(default: plain, locked in g2lstm_lm_ptb)"
        },
    )
    decoder_dropout_embed: Optional[float] = field(
        default=None, metadata={"help": "probability of dropping a type's whole embedding, in all its places"}
    )
    decoder_weight_drop: Optional[float] = field(
        default=None,
        metadata={"help": "probability of dropping an element of the recurrent matrices, for a whole block"},
    )
    init_range: Optional[float] = field(
        default=None, metadata={"help": "weights are drawn from U(-R, R) at first"}
    )
    lstm_init_range: Optional[float] = field(
        default=None,
        metadata={
            "help": "the same for the layers' weights (default: --init-range); 0 for 1 / sqrt(units), as torch's LSTM"
        },
    )


# g2lstm_lm: sizes of stock lstm_lm. g2lstm_lm_zaremba: the medium model of Zaremba, Sutskever, Vinyals, "Recurrent
# Neural Network Regularization" (2014). g2lstm_lm_ptb: Merity, Keskar, Socher, "Regularizing and Optimizing LSTM
# Language Models" (ICLR 2018), Penn Treebank.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "g2lstm_lm": {},
    "g2lstm_lm_zaremba": {
        "dropout": 0.5,
        "decoder_embed_dim": 650,
        "decoder_layers": 2,
        "decoder_out_embed_dim": 650,
        "init_range": 0.05,
    },
    "g2lstm_lm_ptb": {
        "decoder_embed_dim": 400,
        "decoder_layer_sizes": "1150,1150,400",
        "decoder_out_embed_dim": 400,
        "share_decoder_input_output_embed": True,
        "decoder_output_bias": True,
        "decoder_dropout_type": "locked",
        "decoder_dropout_embed": 0.1,
        "decoder_dropout_in": 0.4,
        "decoder_dropout_hidden": 0.25,
        "decoder_dropout_out": 0.4,
        "decoder_weight_drop": 0.5,
        "lstm_init_range": 0.0,
    },
}

FALLBACKS: dict[str, Any] = {
    "dropout": 0.1,
    "decoder_embed_dim": 512,
    "decoder_hidden_size": "decoder_embed_dim",
    "decoder_layers": 1,
    "decoder_out_embed_dim": 512,
    "share_decoder_input_output_embed": False,
    "decoder_output_bias": False,
    "decoder_dropout_type": "plain",
    "decoder_dropout_in": "dropout",
    "decoder_dropout_out": "dropout",
    "decoder_dropout_hidden": "decoder_dropout_out",
    "decoder_dropout_embed": 0.0,
    "decoder_weight_drop": 0.0,
    "init_range": 0.1,
    "lstm_init_range": "init_range",
}

LANGUAGE_MODEL = OptionTables(G2LSTMLanguageModelConfig, ARCHITECTURES, FALLBACKS)


# Stock lstm_lm's options: where each has a value, an architecture has filled them in, here or in stock's own training.
_OF_STOCK = (
    "dropout",
    "decoder_embed_dim",
    "decoder_hidden_size",
    "decoder_layers",
    "decoder_out_embed_dim",
    "share_decoder_input_output_embed",
    "decoder_dropout_in",
    "decoder_dropout_out",
)


def apply_to_given(name: str, options: ModelOptions) -> None:
    """`config.apply_architecture` to what the command line or a file for Hydra gave.

    Raises:
        ValueError: an option that was given has no effect beside the architecture's; the message names it.
    """
    given = _of_stock(options)
    apply_architecture(name, options, LANGUAGE_MODEL)
    # fairseq applies an architecture twice, and what the first time filled in looks as if it had been given
    again = all(value is not None for value in given.values())
    _check_given(name, given, options, filled_in_may_be_given=again)


def resolve(options: ModelOptions) -> Namespace:
    """The complete, checked options of a language model; see `config.complete`.

    Raises:
        ValueError: an option is outside its range or does not fit another; the message names it.
    """
    resolved = complete(options, LANGUAGE_MODEL)
    for name in ("decoder_dropout_hidden", "decoder_dropout_embed", "decoder_weight_drop"):
        check_probability(flag(name), getattr(resolved, name))
    if str(resolved.decoder_dropout_type) not in DROPOUT_TYPES:
        raise ValueError(
            f"--decoder-dropout-type must be one of {', '.join(DROPOUT_TYPES)}, got {resolved.decoder_dropout_type!r}"
        )
    for name in ("init_range", "lstm_init_range"):
        if not 0 <= getattr(resolved, name) < math.inf:
            raise ValueError(f"{flag(name)} must be >= 0 and finite, got {getattr(resolved, name)}")
    if resolved.share_decoder_input_output_embed and resolved.decoder_embed_dim != resolved.decoder_out_embed_dim:
        raise ValueError(
            "--share-decoder-input-output-embed needs --decoder-embed-dim equal to --decoder-out-embed-dim, "
            f"got {resolved.decoder_embed_dim} and {resolved.decoder_out_embed_dim}"
        )
    layer_sizes(resolved)  # refuses what is no list of them
    # they may be a checkpoint's
    _check_given(architecture_of(options, LANGUAGE_MODEL), _of_stock(options), resolved, filled_in_may_be_given=True)
    return resolved


def _of_stock(options: ModelOptions) -> dict[str, Any]:
    return {option: getattr(options, option, None) for option in _OF_STOCK}


def _check_given(name: str, given: dict[str, Any], filled: Any, filled_in_may_be_given: bool) -> None:
    """Refuses what was given without effect; `filled` are the options after the architecture's."""
    own = ARCHITECTURES[name]
    sizes = given["decoder_layers"], given["decoder_hidden_size"]
    filled_in = (own.get("decoder_layers", 1), own.get("decoder_hidden_size", filled.decoder_embed_dim))
    fine = {(None, None), filled_in} if filled_in_may_be_given else {(None, None)}
    if filled.decoder_layer_sizes is not None and sizes not in fine:
        raise _sizes_twice(filled.decoder_layer_sizes, *sizes)
    left = [place for place in ("decoder_dropout_in", "decoder_dropout_out") if given[place] is None]
    if given["dropout"] is not None and left and all(place in own for place in left):
        raise ValueError(
            f"--dropout {given['dropout']} has no effect in {name}, which has a --decoder-dropout-in, "
            "--decoder-dropout-hidden and --decoder-dropout-out of its own: give these"
        )


def _sizes_twice(sizes: str, n_layers: int | None, n_units: int | None) -> ValueError:
    got = [f"--decoder-layers {n_layers}"] if n_layers is not None else []
    got += [f"--decoder-hidden-size {n_units}"] if n_units is not None else []
    return ValueError(
        f"--decoder-layer-sizes {sizes}, given or the architecture's, stands in place of --decoder-layers and "
        f"--decoder-hidden-size, got {' and '.join(got)} as well: change the former"
    )


def layer_sizes(options: Namespace) -> list[int]:
    """Units of each layer, the lowest first.

    Raises:
        ValueError: --decoder-layer-sizes is no comma separated list of integers > 0.
    """
    given = options.decoder_layer_sizes
    if given is None:
        return [options.decoder_hidden_size] * options.decoder_layers
    parts = str(given).strip("[]() ").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--decoder-layer-sizes must be comma separated integers > 0, got {given!r}")
    return [int(part) for part in parts]
