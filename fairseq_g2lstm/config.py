"""Options of the gates and of the `g2lstm` model, and the sizes of its architectures."""

from argparse import Namespace
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Optional, TypeAlias

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import DictConfig

from .settings import EVAL_MODES, GATE_TYPES, SHARINGS, GateSettings, check_probability, check_temperature

PACKED_WEIGHTS = ("unpack", "keep")

# Options whose default depends on the architecture are None until `resolve` fills them in. The gates' options
# start with gate_ because fairseq keeps flat names: a model option called temperature would also set the
# temperature of the saved generation options.


@dataclass
class GateConfig(FairseqDataclass):
    """Options of the gates and of packed weights, the same for every model."""

    gate_type: ChoiceEnum(list(GATE_TYPES)) = field(  # type: ignore[valid-type]
        default="gumbel",
        metadata={
            "help": "gumbel: noise and temperature in training; sharpened: temperature alone; sigmoid: plain LSTM"
        },
    )
    gate_temperature: float = field(
        default=0.9, metadata={"help": "temperature tau > 0 of the input and forget gates"}
    )
    gate_noise_prob: float = field(
        default=0.2, metadata={"help": "probability that a gate gets noise, 0 to 1"}
    )
    gate_noise_sharing: ChoiceEnum(list(SHARINGS)) = field(  # type: ignore[valid-type]
        default="step",
        metadata={
            "help": "noise drawn anew at each step, with one mask a sequence (mask), or once a sequence"
        },
    )
    gate_eval_mode: ChoiceEnum(list(EVAL_MODES)) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "gates in evaluation: soft sigmoid(a), tempered sigmoid(a / tau), hard a >= 0, "
            "auto: tempered for sharpened, soft for the others"
        },
    )
    packed_weights: ChoiceEnum(list(PACKED_WEIGHTS)) = field(  # type: ignore[valid-type]
        default="unpack",
        metadata={
            "help": "weights of a packed checkpoint in memory: unpack (to float32) or keep (as they are stored, for "
            "evaluation alone)"
        },
    )


@dataclass
class G2LSTMConfig(GateConfig):
    """Options of the model; all but the gates' have the names and meanings of fairseq's stock `lstm`."""

    dropout: Optional[float] = field(default=None, metadata={"help": "dropout probability"})
    encoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "encoder embedding dimension"}
    )
    encoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "path to pre-trained encoder embedding"}
    )
    encoder_freeze_embed: bool = field(
        default=False, metadata={"help": "freeze encoder embeddings"}
    )
    encoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "encoder hidden size"}
    )
    encoder_layers: Optional[int] = field(
        default=None, metadata={"help": "number of encoder layers"}
    )
    encoder_bidirectional: bool = field(
        default=False, metadata={"help": "make all layers of the encoder bidirectional"}
    )
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder embedding dimension"}
    )
    decoder_embed_path: Optional[str] = field(
        default=None, metadata={"help": "path to pre-trained decoder embedding"}
    )
    decoder_freeze_embed: bool = field(
        default=False, metadata={"help": "freeze decoder embeddings"}
    )
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "decoder hidden size"}
    )
    decoder_layers: Optional[int] = field(
        default=None, metadata={"help": "number of decoder layers"}
    )
    decoder_out_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder output embedding dimension"}
    )
    decoder_attention: str = field(
        default="1", metadata={"help": "decoder attention: 1 or 0"}
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share decoder input and output embeddings"}
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={
            "help": "share encoder, decoder and output embeddings (requires shared dictionary and embed dim)"
        },
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={
            "help": "comma separated adaptive softmax cutoff points; must be used with adaptive_loss criterion"
        },
    )
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder input embedding"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder output"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for decoder input embedding"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for decoder output"}
    )


# Sizes of stock lstm_wiseman_iwslt_de_en and lstm_luong_wmt_en_de.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "g2lstm": {},
    "g2lstm_iwslt": {
        "encoder_embed_dim": 256,
        "encoder_dropout_in": 0.0,
        "encoder_dropout_out": 0.0,
        "decoder_embed_dim": 256,
        "decoder_out_embed_dim": 256,
        "decoder_dropout_in": 0.0,
    },
    "g2lstm_wmt": {
        "encoder_embed_dim": 1000,
        "encoder_layers": 4,
        "encoder_dropout_out": 0.0,
        "decoder_embed_dim": 1000,
        "decoder_layers": 4,
        "decoder_out_embed_dim": 1000,
        "decoder_dropout_out": 0.0,
    },
}

# What an option that neither the user nor the architecture sets falls back to; a name stands for that option.
FALLBACKS: dict[str, Any] = {
    "dropout": 0.1,
    "encoder_embed_dim": 512,
    "encoder_hidden_size": "encoder_embed_dim",
    "encoder_layers": 1,
    "decoder_embed_dim": 512,
    "decoder_hidden_size": "decoder_embed_dim",
    "decoder_layers": 1,
    "decoder_out_embed_dim": 512,
    "encoder_dropout_in": "dropout",
    "encoder_dropout_out": "dropout",
    "decoder_dropout_in": "dropout",
    "decoder_dropout_out": "dropout",
}

ModelOptions: TypeAlias = Namespace | DictConfig | FairseqDataclass


class OptionTables(NamedTuple):
    """What the options of a model are and where those come from that nobody set.

    config: the dataclass. architectures: sizes by the architecture's name, the model's own name first.
    fallbacks: what is used where neither the user nor the architecture sets an option; a name stands for that option.
    """

    config: type[GateConfig]
    architectures: dict[str, dict[str, Any]]
    fallbacks: dict[str, Any]


TRANSLATION = OptionTables(G2LSTMConfig, ARCHITECTURES, FALLBACKS)


def apply_architecture(name: str, options: ModelOptions, tables: OptionTables = TRANSLATION) -> None:
    """Fills in, in place, every option that is missing or None from the architecture and the defaults.

    Args:
        name: one of the tables' architectures.
        options: a Namespace, a DictConfig open for new keys, or a dataclass instance.
        tables: the model's.
    """
    for option in fields(tables.config):
        if option.name.startswith("_") or getattr(options, option.name, None) is not None:
            continue
        setattr(options, option.name, tables.architectures[name].get(option.name, option.default))
    for option_name, fallback in tables.fallbacks.items():
        if getattr(options, option_name, None) is None:
            setattr(options, option_name, getattr(options, str(fallback), fallback))


def resolve(options: ModelOptions) -> Namespace:
    """The complete, checked options of a translation model; see `complete`."""
    resolved = complete(options, TRANSLATION)
    _check(resolved)
    return resolved


def complete(options: ModelOptions, tables: OptionTables) -> Namespace:
    """The complete options of a model, those that all models have checked.

    Args:
        options: what fairseq hands to `build_model`: a Namespace (older checkpoints), a DictConfig or a dataclass
            instance, perhaps without options that came later, perhaps without the architecture's sizes.
        tables: the model's.

    Returns:
        A Namespace with every field of the tables' dataclass, none of the sizes None.

    Raises:
        ValueError: an option is outside its range; the message names it and what is accepted.
    """
    name = architecture_of(options, tables)
    if name not in tables.architectures:
        raise ValueError(f"architecture must be one of {', '.join(tables.architectures)}, got {name!r}")
    if is_dataclass(options):
        given = {f.name: getattr(options, f.name) for f in fields(options)}
    else:
        given = {
            str(key): value
            for key, value in (vars(options) if isinstance(options, Namespace) else options).items()
        }
    known = {f.name for f in fields(tables.config)}
    resolved = Namespace(**{key: value for key, value in given.items() if key in known})
    apply_architecture(name, resolved, tables)
    _check_common(resolved)
    return resolved


def architecture_of(options: ModelOptions, tables: OptionTables) -> str:
    """The name of the architecture that the options are of; the model's own where they name none."""
    return getattr(options, "_name", None) or getattr(options, "arch", None) or next(iter(tables.architectures))


def gate_settings(options: Namespace) -> GateSettings:
    """The gates' settings of resolved options."""
    return GateSettings(
        gate_type=str(options.gate_type),
        temperature=float(options.gate_temperature),
        noise_prob=float(options.gate_noise_prob),
        noise_sharing=str(options.gate_noise_sharing),
        eval_mode=str(options.gate_eval_mode),
    )


def has_attention(options: Namespace) -> bool:
    """Whether the decoder attends over the source.

    The value may come from a checkpoint, so unlike in fairseq it is compared, never evaluated.

    Raises:
        ValueError: the option is neither 1, 0, True nor False.
    """
    given = str(options.decoder_attention)
    if given not in ("1", "0", "True", "False"):
        raise ValueError(f"--decoder-attention must be 1 or 0, got {options.decoder_attention!r}")
    return given in ("1", "True")


def adaptive_softmax_cutoffs(options: Namespace) -> list[int] | None:
    """The cutoffs of the adaptive softmax, or None without one.

    Raises:
        ValueError: the option is no comma separated list of ascending integers > 0.
    """
    given = options.adaptive_softmax_cutoff
    if given is None:
        return None
    parts = str(given).strip("[]() ").split(",")
    cutoffs = [int(part) for part in parts if part.strip().isdecimal()]
    if len(cutoffs) < len(parts) or any(low >= high for low, high in pairwise([0, *cutoffs])):
        raise ValueError(f"--adaptive-softmax-cutoff must be comma separated, ascending integers > 0, got {given!r}")
    return cutoffs


def _check_common(options: Namespace) -> None:
    check_temperature("--gate-temperature", options.gate_temperature)
    check_probability("--gate-noise-prob", options.gate_noise_prob)
    for name, choices in (
        ("gate_type", GATE_TYPES),
        ("gate_noise_sharing", SHARINGS),
        ("gate_eval_mode", EVAL_MODES),
        ("packed_weights", PACKED_WEIGHTS),
    ):
        if str(getattr(options, name)) not in choices:
            raise ValueError(
                f"{flag(name)} must be one of {', '.join(choices)}, got {getattr(options, name)!r}"
            )
    for name, value in vars(options).items():
        if name.endswith(("dropout", "_dropout_in", "_dropout_out")):
            check_probability(flag(name), value)
        elif name.endswith(("_dim", "_size", "_layers")) and value <= 0:
            raise ValueError(f"{flag(name)} must be > 0, got {value}")
    adaptive_softmax_cutoffs(options)


def _check(options: Namespace) -> None:
    if options.encoder_layers != options.decoder_layers:
        raise ValueError(
            "--encoder-layers must equal --decoder-layers, because each encoder layer's last state starts a decoder "
            f"layer: got {options.encoder_layers} and {options.decoder_layers}"
        )
    if options.share_all_embeddings:
        options.share_decoder_input_output_embed = True
        if options.encoder_embed_dim != options.decoder_embed_dim:
            raise ValueError(
                "--share-all-embeddings needs --encoder-embed-dim equal to --decoder-embed-dim, "
                f"got {options.encoder_embed_dim} and {options.decoder_embed_dim}"
            )
        if options.decoder_embed_path and options.decoder_embed_path != options.encoder_embed_path:
            raise ValueError(
                "--share-all-embeddings allows no --decoder-embed-path of its own, "
                f"got {options.decoder_embed_path}: use --encoder-embed-path alone"
            )
    if (
        options.share_decoder_input_output_embed
        and options.decoder_embed_dim != options.decoder_out_embed_dim
    ):
        raise ValueError(
            "--share-decoder-input-output-embed and --share-all-embeddings need --decoder-embed-dim equal to "
            f"--decoder-out-embed-dim, got {options.decoder_embed_dim} and {options.decoder_out_embed_dim}"
        )
    has_attention(options)


def flag(name: str) -> str:
    """An option's name on the command line."""
    return "--" + name.replace("_", "-")
