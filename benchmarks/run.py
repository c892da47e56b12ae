"""G2-LSTM's speed and memory beside its peers'.

    python -m benchmarks.run layer [--shapes T,B,I,H …] [--dtypes …] [--peers …] [--rounds N] [--no-sweep]
    python -m benchmarks.run end-to-end [--data DATA_BIN] [--checkpoint STOCK.pt] [--encoders …] [--repeats N]
    python -m benchmarks.run language-model [--data DATA_BIN] [--units …] [--blocks ROWSxTOKENS …] [--rounds N]
    python -m benchmarks.run packed --data DATA_BIN --checkpoint G2LSTM.pt [--packings …] [--rows …] [--rounds N]
    python -m benchmarks.run gate-log [--data DATA_BIN] [--repeats N]
    python -m benchmarks.run product [--precision NAME] [--rounds N]

All print a Markdown table and write it as results.md, with results.json, into --out. --smoke runs tiny sizes, to see
that everything works.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import end_to_end, gate_log, language_model, layer, packed, peers, product
from benchmarks.bars import LAYER_SHAPES, Shape
from benchmarks.language_model import Blocks
from benchmarks.machine import ROOT, cores
from benchmarks.tables import (
    end_to_end_markdown,
    gate_log_markdown,
    language_model_markdown,
    layer_markdown,
    packed_markdown,
    product_markdown,
)
from examples.common.errors import UserError, run_main
from examples.common.options import docstring_parser
from fairseq_g2lstm.command_line import positive_integer
from fairseq_g2lstm.tasks.matmul_precision import MATMUL_PRECISIONS

DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16", "bfloat16")}
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "float16")}
SMOKE_SHAPES = (Shape(3, 4, 5, 6), Shape(4, 2, 3, 16))
# For each mode: name of an option -> its default, the same with --smoke, and what it is.
NUMBERS = {
    "layer": {"rounds": (9, 2, "turns of each peer")},
    "end-to-end": {
        "repeats": (3, 1, "trainings and translations of each arm"),
        "updates": (60, 6, "of each timed training"),
        "interval": (10, 2, "updates between lines of its log"),
        "warmup": (20, 2, "updates at its beginning that are not counted"),
        "decode-updates": (300, 4, "of the training of a checkpoint to translate with"),
        "max-tokens": (4000, 400, "in a batch"),
    },
    "language-model": {
        "rounds": (3, 1, "evaluations and trainings of each arm"),
        "updates": (200, 6, "of each timed training"),
        "interval": (25, 2, "updates between lines of its log"),
        "warmup": (50, 2, "updates at its beginning that are not counted"),
        "checkpoint-updates": (100, 4, "of the training of the checkpoints to evaluate"),
    },
    "packed": {
        "rounds": (5, 1, "turns of each packing"),
        "block-length": (35, 7, "tokens of a row in a block of a text"),
    },
    "gate-log": {
        "repeats": (5, 1, "trainings of each arm"),
        "updates": (100, 6, "of each training"),
        "warmup": (20, 2, "updates at its beginning that are not counted"),
        "max-tokens": (4000, 400, "in a batch"),
    },
    "product": {"rounds": (9, 2, "turns of each operator")},
}
CPU_MODES = ("packed", "product")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options.

    Raises:
        UserError: a number out of range, an unknown name.
    """
    parser = docstring_parser("benchmarks.run", __doc__)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="|".join(NUMBERS))
    one = modes.add_parser("layer", help="time of one layer")
    one.add_argument("--shapes", type=_shape, nargs="+", metavar="T,B,I,H", help="default: those of the bars")
    one.add_argument("--dtypes", nargs="+", choices=DTYPES["cuda"], help="default: float32; on CUDA all")
    one.add_argument("--peers", nargs="+", choices=tuple(peers.PEERS),
                     help="default: all of the device but one launch; on CUDA no reference")  # fmt: skip
    one.add_argument("--no-sweep", action="store_true", help="no picture of time against T, B and H")

    whole = modes.add_parser("end-to-end", help="training and translating")
    whole.add_argument("--data", type=_path, metavar="DATA_BIN",
                       help="default: the quickstart's corpus, made if need be")  # fmt: skip
    whole.add_argument("--checkpoint", type=_path, metavar="STOCK.pt",
                       help="a trained stock lstm to translate with (default: one is trained)")  # fmt: skip
    whole.add_argument("--encoders", nargs="+", choices=tuple(end_to_end.ENCODERS), default=["one", "two"],
                       help="directions of the encoder (default: one and two)")  # fmt: skip

    text = modes.add_parser("language-model", help="evaluating and training language models")
    text.add_argument("--data", type=_path, metavar="DATA_BIN",
                      help="a text (default: the quickstart's English, made if need be)")  # fmt: skip
    text.add_argument("--units", type=int, nargs="+", choices=tuple(language_model.SIZES),
                      help="of the models' two layers (default: all)")  # fmt: skip
    text.add_argument("--blocks", type=_blocks, nargs="+", metavar="ROWSxTOKENS",
                      help="that the test set is read in (default: 20x35 and 1x70)")  # fmt: skip

    small = modes.add_parser("packed", help="decoding with packed weights, on the CPU")
    small.add_argument("--data", type=_path, metavar="DATA_BIN", required=True, help="sentence pairs or a text")
    small.add_argument("--checkpoint", type=_path, metavar="G2LSTM.pt", required=True,
                       help="a trained g2lstm or g2lstm_lm")  # fmt: skip
    small.add_argument("--packings", nargs="+", choices=tuple(packed.PACKINGS), default=list(packed.PACKINGS),
                       help="default: all")  # fmt: skip
    small.add_argument("--rows", type=positive_integer, nargs="+", default=list(packed.ROWS), metavar="N",
                       help="sentences in a batch, or rows of a text (default: 128 and 1)")  # fmt: skip
    small.add_argument("--work", type=_path, default=ROOT / "runs/benchmark", metavar="DIR",
                       help="for logs and packed checkpoints (default: runs/benchmark)")  # fmt: skip

    log = modes.add_parser("gate-log", help="what the log of the gates costs a training")
    log.add_argument("--data", type=_path, metavar="DATA_BIN",
                     help="default: the quickstart's corpus, made if need be")  # fmt: skip

    products = modes.add_parser("product", help="products of matrices, on the CPU")
    products.add_argument("--precision", choices=MATMUL_PRECISIONS, default="highest",
                          help="what torch.set_float32_matmul_precision is given (default: highest)")  # fmt: skip

    for mode in (whole, text, log):
        mode.add_argument("--precisions", nargs="+", choices=PRECISIONS["cuda"],
                          help="of training (default: float32; on CUDA both)")  # fmt: skip
        mode.add_argument("--work", type=_path, default=ROOT / "runs/benchmark", metavar="DIR",
                          help="for logs, checkpoints and generated data (default: runs/benchmark)")  # fmt: skip
    for name, mode in modes.choices.items():
        for number, (default, _, what) in NUMBERS[name].items():
            mode.add_argument(f"--{number}", type=positive_integer, metavar="N", help=f"{what} (default: {default})")
        devices = ("cpu",) if name in CPU_MODES else ("cpu", "cuda")
        mode.add_argument("--device", choices=devices, default="cpu" if name in CPU_MODES else None,
                          help="default: cuda where there is one")  # fmt: skip
        mode.add_argument("--threads", type=positive_integer, default=cores(), metavar="N", help="default: %(default)s")
        mode.add_argument("--out", type=_path, metavar="DIR", help="default: benchmarks/results/MODE-cpu or -gpu")
        mode.add_argument("--smoke", action="store_true", help="tiny sizes; results go to runs/benchmark")
    options = parser.parse_args(arguments)
    _complete(options)
    return options


def _complete(options: argparse.Namespace) -> None:
    for number, (default, smoke, _) in NUMBERS[options.mode].items():
        name = number.replace("-", "_")
        if getattr(options, name) is None:
            setattr(options, name, smoke if options.smoke else default)
    updates, warmup = getattr(options, "updates", None), getattr(options, "warmup", None)
    if updates is not None and warmup is not None and updates <= warmup:
        raise UserError(f"--updates must be more than --warmup, got {updates} and {warmup}")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, and torch finds none")
    if options.out is None:
        folder = "runs/benchmark" if options.smoke else "benchmarks/results"
        options.out = ROOT / folder / f"{options.mode}-{'gpu' if options.device == 'cuda' else 'cpu'}"


def _path(text: str) -> Path:
    return Path(text).resolve()


def _shape(text: str) -> Shape:
    sizes = text.split(",")
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"takes four sizes T,B,I,H, got {text}")
    return Shape(*map(positive_integer, sizes))


def _blocks(text: str) -> Blocks:
    sizes = text.split("x")
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"takes rows and tokens of a block as ROWSxTOKENS, got {text}")
    return Blocks(*map(positive_integer, sizes))


def run_layer(options: argparse.Namespace) -> str:
    """Times the layer; returns the table."""
    device, smoke = options.device, options.smoke
    settings = layer.Settings(
        device=device,
        threads=options.threads,
        shapes=options.shapes or (SMOKE_SHAPES if smoke else LAYER_SHAPES[device]),
        dtypes=options.dtypes or DTYPES[device],
        peers=options.peers or peers.DEFAULT_PEERS[device],
        rounds=options.rounds,
        min_seconds=0.001 if smoke else {"cpu": 0.2, "cuda": 0.04}[device],
        sweep=None if options.no_sweep else layer.SMOKE_SWEEP if smoke else layer.SWEEPS[device],
        out=options.out,
    )
    return layer_markdown(layer.run(settings))


def run_end_to_end(options: argparse.Namespace) -> str:
    """Trains and translates; returns the table."""
    settings = end_to_end.Settings(
        data=options.data or end_to_end.embedded_corpus(options.work, options.smoke),
        rounds=options.repeats,
        checkpoint=options.checkpoint,
        encoders=options.encoders,
        decode_updates=options.decode_updates,
        max_tokens=options.max_tokens,
        **_model_settings(options),
    )
    return end_to_end_markdown(end_to_end.run(settings))


def run_language_model(options: argparse.Namespace) -> str:
    """Evaluates and trains; returns the tables."""
    smoke = options.smoke
    chosen = [language_model.SIZES[units] for units in options.units or language_model.SIZES]
    settings = language_model.Settings(
        data=options.data or language_model.embedded_text(options.work, smoke, options.threads),
        rounds=options.rounds,
        sizes=language_model.SMOKE_SIZES if smoke else chosen,
        blocks=options.blocks or (language_model.SMOKE_BLOCKS if smoke else language_model.BLOCKS),
        checkpoint_updates=options.checkpoint_updates,
        **_model_settings(options),
    )
    return language_model_markdown(language_model.run(settings))


def run_packed(options: argparse.Namespace) -> str:
    """Packs and decodes; returns the table."""
    settings = packed.Settings(
        threads=options.threads,
        data=options.data,
        checkpoint=options.checkpoint,
        packings=options.packings,
        rows=options.rows,
        block_length=options.block_length,
        rounds=options.rounds,
        work=options.work,
        out=options.out,
    )
    return packed_markdown(packed.run(settings))


def run_gate_log(options: argparse.Namespace) -> str:
    """Trains with and without records of the gates; returns the table."""
    settings = gate_log.Settings(
        data=options.data or end_to_end.embedded_corpus(options.work, options.smoke),
        rounds=options.repeats,
        max_tokens=options.max_tokens,
        **_model_settings(options),
    )
    return gate_log_markdown(gate_log.run(settings))


def run_product(options: argparse.Namespace) -> str:
    """Multiplies; returns the table."""
    settings = product.Settings(
        threads=options.threads,
        sizes=product.SMOKE_SIZES if options.smoke else product.SIZES,
        precision=options.precision,
        rounds=options.rounds,
        min_seconds=0.001 if options.smoke else 0.2,
        out=options.out,
    )
    return product_markdown(product.run(settings))


def _model_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": options.device,
        "threads": options.threads,
        "precisions": options.precisions or PRECISIONS[options.device],
        "updates": options.updates,
        "interval": getattr(options, "interval", 1),
        "warmup": options.warmup,
        "small": options.smoke,
        "work": options.work,
        "out": options.out,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse_arguments(arguments)
    runs = {
        "layer": run_layer,
        "end-to-end": run_end_to_end,
        "language-model": run_language_model,
        "packed": run_packed,
        "gate-log": run_gate_log,
        "product": run_product,
    }
    table = runs[options.mode](options)
    print("", table, f"results.json and results.md written to {options.out}", sep="\n")


if __name__ == "__main__":
    run_main(main)
