"""Makes a report of what the gates of trained models do on a data set.

    python -m fairseq_g2lstm.gates CHECKPOINT [CHECKPOINT ...] DATA_BIN --out DIR
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..command_line import names, positive_integer
from . import moves
from .page import render
from .report import DataSet, ModelGates, as_json
from .tables import write_tables
from .training import FILE_NAME
from .walk import Progress, Reader

MAX_BYTES = 5_000_000  # of the page
CHOSEN = 6  # sentences, where none is named


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_g2lstm.gates",
        description="Reads a data set with trained models, and writes report.html, which needs no server and no "
        "network, and the tables (CSV) and pictures (PNG) that it is made of.",
    )
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="of g2lstm, g2lstm_lm, stock lstm or lstm_lm"
    )
    parser.add_argument("data", type=Path, metavar="DATA_BIN", help="fairseq's data folder")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models (default: their folders)")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--max-sentences", type=positive_integer, default=1000, metavar="N",
        help="read the split's first N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sentences", type=int, nargs="+", metavar="N",
        help="show these token by token, by fairseq's numbers, the first is 0 "
        f"(default: {CHOSEN} of 6 to 20 tokens, spread evenly over what is read)",
    )  # fmt: skip
    parser.add_argument(
        "--beam", type=positive_integer, default=5, metavar="N", help="of translations (default: %(default)s)"
    )
    parser.add_argument(
        "--moves", action="store_true",
        help="read the data with the checkpoints of epochs and updates in the models' folders too (checkpointN.pt, "
        f"checkpoint_N_M.pt) to draw how the gates moved; without it, that is drawn where training wrote {FILE_NAME}",
    )  # fmt: skip
    return parser


def _run(options: argparse.Namespace) -> None:
    readers = _open(options)
    first = next(iter(readers.values()))
    asked = None if options.sentences is None else list(dict.fromkeys(options.sentences))
    chosen = first.choose(CHOSEN, options.max_sentences) if asked is None else asked
    models = []
    for (name, reader), checkpoint in zip(readers.items(), options.checkpoints, strict=True):
        with _progress(name, min(options.max_sentences, reader.n_sentences)) as progress:
            statistics, sentences = reader.read(options.max_sentences, chosen, options.beam, progress)
        model = ModelGates(name, reader.gate_settings, reader.updates, statistics, sentences)
        models.append(replace(model, moments=_moments(options, name, checkpoint.parent)))
    data = DataSet(
        options.split, first.n_sentences, min(options.max_sentences, first.n_sentences), first.languages
    )
    page = render(as_json(models, data))
    while len(page.encode()) > MAX_BYTES and asked is None and models[0].sentences:
        models = [replace(model, sentences=model.sentences[:-1]) for model in models]
        page = render(as_json(models, data))
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(
            f"the page would take {len(page.encode()) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:g}: give fewer "
            "--sentences, or fewer models"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    written = [options.out / "report.html"]
    written[0].write_text(page, encoding="utf-8")
    written += write_tables(models, options.out)
    try:
        import matplotlib  # noqa: F401

        from .pictures import write_pictures

        print("drawing pictures", file=sys.stderr)
        written += write_pictures(models, options.out)
    except ImportError:
        print("no pictures: matplotlib is not installed", file=sys.stderr)
    n_shown = len(models[0].sentences)
    if n_shown < len(chosen):
        print(f"shows {n_shown} sentences: more do not fit into {MAX_BYTES / 1e6:g} MB", file=sys.stderr)
    print(f"wrote {written[0]} ({len(page.encode()) / 1e6:.1f} MB), and beside it")
    print(", ".join(path.name for path in written[1:]))


def _open(options: argparse.Namespace) -> dict[str, Reader]:
    checkpoints = names(options.checkpoints, options.names)
    readers = {name: Reader(path, options.data, options.split) for name, path in checkpoints.items()}
    first = next(iter(readers.values()))
    for name, reader in readers.items():
        if (reader.is_language_model, reader.languages) != (first.is_language_model, first.languages):
            raise ValueError(
                f"{name} and {next(iter(readers))} do not read the same: one report shows translation models of one "
                "direction, or language models"
            )
    return readers


def _moments(options: argparse.Namespace, name: str, folder: Path) -> list[moves.Moment]:
    if options.moves:
        tell = lambda checkpoint: print(f"{name}: {checkpoint}", file=sys.stderr)  # noqa: E731
        return moves.read_checkpoints(folder, options.data, options.split, options.max_sentences, tell)
    log = folder / FILE_NAME
    return moves.read_log(log) if log.exists() else []


@contextmanager
def _progress(name: str, n_sentences: int) -> Iterator[Progress]:
    start = time.perf_counter()
    with tqdm(total=n_sentences, desc=name, unit=" sentences", leave=False, disable=None) as shown:
        yield lambda n: None if shown.update(n) else None
    print(f"{name}: read {n_sentences} sentences in {time.perf_counter() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
