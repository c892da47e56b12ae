"""Decoding with packed weights kept as they are stored, beside the float32 model."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.bars import PACKED_BAR, Bar
from benchmarks.comparison import Result, against, describe_data, write_json, write_results
from benchmarks.fairseq_runs import evaluate, read_state, translate
from benchmarks.tables import packed_markdown
from benchmarks.timing import Spread, in_turns
from examples.common.errors import UserError
from fairseq_g2lstm.checkpoints import model_name
from fairseq_g2lstm.compress.__main__ import main as compress
from fairseq_g2lstm.compress.pack import memory_bytes

FLOAT = "float32"
LAYERS = ("--gates", "all")
WHOLE = (*LAYERS, "--others", "embeddings", "output", "projections")
# name -> what is packed, and how
PACKINGS = {
    "int:8, layers": ("--compression", "int:8", *LAYERS),
    "int:8, whole model": ("--compression", "int:8", *WHOLE),
    "int:4, whole model": ("--compression", "int:4", *WHOLE),
    "rank:64, layers": ("--compression", "rank:64", *LAYERS),
    "rank:64+int:8, layers": ("--compression", "rank:64+int:8", *LAYERS),
}
ROWS = (128, 1)


@dataclass(frozen=True)
class Settings:
    """What is decoded and how.

    Attributes:
        threads: of torch.
        data: a data-bin folder of fairseq.
        checkpoint: of `g2lstm`, which translates, or `g2lstm_lm`, which is evaluated.
        packings: keys of PACKINGS.
        rows: sentences in a batch, or rows of the text.
        block_length: tokens of a row in a block of a text.
        rounds: turns of each arm.
        work: folder for packed checkpoints and logs.
        out: folder for results.json and results.md.
    """

    threads: int
    data: Path
    checkpoint: Path
    packings: Sequence[str]
    rows: Sequence[int]
    block_length: int
    rounds: int
    work: Path
    out: Path


def run(settings: Settings) -> Result:
    """Packs and decodes; writes results.json after each batch size, results.md at the end.

    Returns:
        What stands in results.json.

    Raises:
        UserError: fairseq failed, or the checkpoint cannot be read or is of another model.
    """
    kind = model_name(read_state(settings.checkpoint))
    if kind not in ("g2lstm", "g2lstm_lm"):
        raise UserError(f"{settings.checkpoint} is of {kind}: give a g2lstm or g2lstm_lm, or convert it first")
    translates = kind == "g2lstm"
    checkpoints = {FLOAT: settings.checkpoint}
    for name in settings.packings:
        target = settings.work / "packed" / (name.translate(str.maketrans(":+, ", "----")) + ".pt")
        target.parent.mkdir(parents=True, exist_ok=True)
        if compress(["pack", str(settings.checkpoint), str(target), *PACKINGS[name]]):
            raise UserError(f"{settings.checkpoint} could not be packed by {name}")
        checkpoints[name] = target
    texts = ["test.*.bin"] if translates else ["test.bin"]
    result: Result = {
        "benchmark": "packed",
        "complete": False,
        **machine.describe("cpu", settings.threads),
        "settings": {
            "data": describe_data(settings.data, "dict*.txt", texts, "fairseq-preprocess"),
            "model": kind,
            "packings": {name: shlex.join(PACKINGS[name]) for name in settings.packings},
            "block_length": None if translates else settings.block_length,
            "rounds": settings.rounds,
        },
        "bytes": {
            name: {"file": path.stat().st_size, "memory": memory_bytes(path, settings.data)}
            for name, path in checkpoints.items()
        },
        "decoding": [],
    }
    for n_rows in settings.rows:
        result["decoding"].append(_compare(settings, translates, checkpoints, n_rows))
        write_json(result, settings.out)
    result["complete"] = True
    write_results(result, settings.out, packed_markdown)
    return result


def _compare(settings: Settings, translates: bool, checkpoints: dict[str, Path], n_rows: int) -> Result:
    """Decodes in turns with each checkpoint."""
    speeds: dict[str, list[float]] = {name: [] for name in checkpoints}
    found: dict[str, tuple[str, ...] | float] = {}
    for name in in_turns(list(checkpoints), settings.rounds):
        path = checkpoints[name]
        log = settings.work / "logs" / f"packed-{n_rows}-{path.stem}-{len(speeds[name])}.log"
        if translates:
            done = translate(path, settings.data, log, device="cpu", threads=settings.threads, batch_size=n_rows)
            speeds[name].append(done.sentences_per_second)
            found[name] = done.hypotheses
        else:
            scored = evaluate(
                path,
                settings.data,
                log,
                task="g2lstm_language_modeling",
                n_rows=n_rows,
                block_length=settings.block_length,
                device="cpu",
                threads=settings.threads,
            )
            speeds[name].append(scored.tokens_per_second)
            found[name] = scored.perplexity
        print(f"  {name}: {speeds[name][-1]:,.1f} {'sentences' if translates else 'tokens'}/s", flush=True)
    spreads = {name: Spread(tuple(values)) for name, values in speeds.items()}
    own = found[FLOAT]
    return {
        "rows": n_rows,
        "speed": {
            name: {
                **spread.as_dict("per_s"),
                **({} if name == FLOAT else against(spread, spreads[FLOAT], _bar(name))),
            }
            for name, spread in spreads.items()
        },
        "same": {
            name: sum(a == b for a, b in zip(value, own, strict=True))
            for name, value in found.items()
            if isinstance(value, tuple) and isinstance(own, tuple)
        },
        "perplexity": {name: value for name, value in found.items() if isinstance(value, float)},
    }


def _bar(name: str) -> Bar | None:
    return PACKED_BAR if name.startswith("int:8") else None
