"""G2-LSTM's speed and memory beside its peers'.

    python -m benchmarks.run layer [--shapes T,B,I,H …] [--dtypes …] [--peers …] [--rounds N] [--no-sweep]
    python -m benchmarks.run end-to-end [--data DATA_BIN] [--checkpoint STOCK.pt] [--encoders …] [--repeats N]

Both print a Markdown table and write it as results.md, with results.json, into --out. --smoke runs tiny sizes, to see
that everything works.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import end_to_end, fairseq_runs, layer, peers
from benchmarks.bars import LAYER_SHAPES, Shape
from benchmarks.machine import ROOT, cores
from benchmarks.tables import end_to_end_markdown, layer_markdown
from examples.common.errors import UserError, run_main

DTYPES = {"cpu": ("float32",), "cuda": ("float32", "float16", "bfloat16")}
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "float16")}
SMOKE_SHAPES = (Shape(3, 4, 5, 6), Shape(4, 2, 3, 7))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options.

    Raises:
        UserError: a number out of range, an unknown name.
    """
    summary, usage = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=summary,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_subparsers(dest="mode", required=True, metavar="layer|end-to-end")
    one = modes.add_parser("layer", help="time of one layer")
    one.add_argument("--shapes", type=_shape, nargs="+", metavar="T,B,I,H", help="default: those of the bars")
    one.add_argument("--dtypes", nargs="+", choices=DTYPES["cuda"], help="default: float32; on CUDA all")
    one.add_argument("--peers", nargs="+", choices=tuple(peers.PEERS),
                     help="default: on the CPU all but flashrnn, on CUDA all but the reference")  # fmt: skip
    one.add_argument("--rounds", type=_positive, metavar="N", help="turns of each peer (default: 9)")
    one.add_argument("--no-sweep", action="store_true", help="no picture of time against T, B and H")

    whole = modes.add_parser("end-to-end", help="training and translating")
    whole.add_argument("--data", type=_path, metavar="DATA_BIN",
                       help="default: the quickstart's corpus, made if need be")  # fmt: skip
    whole.add_argument("--checkpoint", type=_path, metavar="STOCK.pt",
                       help="a trained stock lstm to translate with (default: one is trained)")  # fmt: skip
    whole.add_argument("--encoders", nargs="+", choices=tuple(fairseq_runs.ENCODERS), default=["one", "two"],
                       help="directions of the encoder (default: one and two)")  # fmt: skip
    whole.add_argument("--precisions", nargs="+", choices=PRECISIONS["cuda"], help="default: float32; on CUDA both")
    numbers = {
        "repeats": (3, "trainings and translations of each arm"),
        "updates": (60, "of each timed training"),
        "interval": (10, "updates between lines of its log"),
        "warmup": (20, "updates at its beginning that are not counted"),
        "decode-updates": (300, "of the training of a checkpoint to translate with"),
        "max-tokens": (4000, "in a batch"),
    }
    for name, (default, what) in numbers.items():
        whole.add_argument(f"--{name}", type=_positive, metavar="N", help=f"{what} (default: {default})")
    whole.add_argument("--work", type=_path, default=ROOT / "runs/benchmark", metavar="DIR",
                       help="for logs, checkpoints and generated data (default: runs/benchmark)")  # fmt: skip

    for mode in (one, whole):
        mode.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
        mode.add_argument("--threads", type=_positive, default=cores(), metavar="N", help="default: %(default)s")
        mode.add_argument("--out", type=_path, metavar="DIR", help="default: benchmarks/results/MODE-cpu or -gpu")
        mode.add_argument("--smoke", action="store_true", help="tiny sizes; results go to runs/benchmark")
    options = parser.parse_args(arguments)
    if options.mode == "end-to-end":
        smoke = {"repeats": 1, "updates": 6, "interval": 2, "warmup": 2, "decode-updates": 4, "max-tokens": 400}
        for name, (default, _) in numbers.items():
            key = name.replace("-", "_")
            if getattr(options, key) is None:
                setattr(options, key, smoke[name] if options.smoke else default)
    _complete(options)
    return options


def _complete(options: argparse.Namespace) -> None:
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use, and torch finds none")
    if options.out is None:
        folder = "runs/benchmark" if options.smoke else "benchmarks/results"
        options.out = ROOT / folder / f"{options.mode}-{'gpu' if options.device == 'cuda' else 'cpu'}"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"takes a whole number >= 1, got {text}")
    return int(text)


def _path(text: str) -> Path:
    return Path(text).resolve()


def _shape(text: str) -> Shape:
    sizes = text.split(",")
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"takes four sizes T,B,I,H, got {text}")
    return Shape(*map(_positive, sizes))


def run_layer(options: argparse.Namespace) -> str:
    """Times the layer; returns the table."""
    device, smoke = options.device, options.smoke
    settings = layer.Settings(
        device=device,
        threads=options.threads,
        shapes=options.shapes or (SMOKE_SHAPES if smoke else LAYER_SHAPES[device]),
        dtypes=options.dtypes or DTYPES[device],
        peers=options.peers or peers.DEFAULT_PEERS[device],
        rounds=options.rounds or (2 if smoke else 9),
        min_seconds=0.001 if smoke else {"cpu": 0.2, "cuda": 0.04}[device],
        sweep=None if options.no_sweep else layer.SMOKE_SWEEP if smoke else layer.SWEEPS[device],
        out=options.out,
    )
    return layer_markdown(layer.run(settings))


def run_end_to_end(options: argparse.Namespace) -> str:
    """Trains and translates; returns the table."""
    settings = end_to_end.Settings(
        device=options.device,
        threads=options.threads,
        data=options.data or end_to_end.embedded_corpus(options.work, options.smoke),
        checkpoint=options.checkpoint,
        encoders=options.encoders,
        precisions=options.precisions or PRECISIONS[options.device],
        repeats=options.repeats,
        updates=options.updates,
        interval=options.interval,
        warmup=options.warmup,
        decode_updates=options.decode_updates,
        max_tokens=options.max_tokens,
        small=options.smoke,
        work=options.work,
        out=options.out,
    )
    return end_to_end_markdown(end_to_end.run(settings))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parse_arguments(arguments)
    table = {"layer": run_layer, "end-to-end": run_end_to_end}[options.mode](options)
    print("", table, f"results.json and results.md written to {options.out}", sep="\n")


if __name__ == "__main__":
    run_main(main)
