"""Evaluating and training language models: fairseq's own `lstm_lm`, and `g2lstm_lm` of the same sizes."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.bars import LANGUAGE_MODEL_BARS, Bar
from benchmarks.comparison import (
    ModelSettings,
    Result,
    against,
    compare_trainings,
    describe_data,
    same_tokens,
    train_in_turns,
    write_results,
)
from benchmarks.end_to_end import embedded_corpus
from benchmarks.fairseq_runs import PLUGIN, PRECISIONS, Evaluation, evaluate, run_fairseq, train_checkpoint
from benchmarks.tables import language_model_markdown
from benchmarks.timing import Spread, in_turns
from examples.common.files import atomic_directory
from examples.common.stages import Stages

STOCK, OURS, CARRIED = "lstm_lm", "g2lstm_lm", "g2lstm_lm carried"
# Of trainings: fairseq's own model on shuffled blocks, and the plugin's on a text in order with the state carried.
ARMS = {
    # 20 rows, where fairseq would round down to a multiple of 8
    STOCK: (
        *("--arch", "lstm_lm", "--task", "language_modeling", "--criterion", "cross_entropy"),
        *("--required-batch-size-multiple", "1"),
    ),
    OURS: (
        *("--user-dir", str(PLUGIN), "--arch", "g2lstm_lm", "--gate-type", "gumbel"),
        *("--task", "g2lstm_language_modeling", "--criterion", "g2lstm_cross_entropy"),
    ),
}
# Zaremba, Sutskever, Vinyals 2014, as in examples/ptb
RECIPE = (
    *("--sentence-avg", "--optimizer", "sgd", "--lr", "1.0", "--clip-norm", "5", "--lr-scheduler", "fixed"),
    *("--seed", "1", "--update-epoch-batch-itr", "True", "--disable-validation", "--num-workers", "0"),
)
# A stock model takes no longer blocks in evaluation than it was built for, and fairseq-eval-lm leaves them out.
ANY_BLOCKS = ("--max-target-positions", "100000")


class Blocks(NamedTuple):
    """How a text is read: rows in a batch, and tokens of each row in a block."""

    n_rows: int
    block_length: int

    def __str__(self) -> str:
        return f"{self.n_rows}x{self.block_length}"


@dataclass(frozen=True)
class Size:
    """Two layers of `units`, embeddings and outputs as wide, trained in `blocks`."""

    units: int
    blocks: Blocks
    dropout: float

    @property
    def options(self) -> tuple[str, ...]:
        """Of fairseq-train."""
        return (
            *("--decoder-embed-dim", str(self.units), "--decoder-out-embed-dim", str(self.units)),
            *("--decoder-layers", "2", "--dropout", str(self.dropout)),
            *("--batch-size", str(self.blocks.n_rows), "--tokens-per-sample", str(self.blocks.block_length)),
        )


SIZES = {200: Size(200, Blocks(20, 20), 0.0), 650: Size(650, Blocks(20, 35), 0.5)}
SMOKE_SIZES = (Size(16, Blocks(4, 5), 0.1),)
BLOCKS = (Blocks(20, 35), Blocks(1, 70))
SMOKE_BLOCKS = (Blocks(3, 7), Blocks(1, 9))


@dataclass(frozen=True)
class Settings(ModelSettings):
    """What is evaluated and trained, and how.

    Attributes:
        sizes: of the models.
        blocks: that the test set is read in.
        checkpoint_updates: of the training of the stock checkpoints to evaluate.
    """

    sizes: Sequence[Size]
    blocks: Sequence[Blocks]
    checkpoint_updates: int

    @property
    def bars(self) -> dict[str, Bar]:
        """What is promised on the device; nothing of small models."""
        return {} if self.small else LANGUAGE_MODEL_BARS[self.device]


def embedded_text(work: Path, smoke: bool, threads: int) -> Path:
    """The English side of the quickstart's corpus in whole words, made once.

    Returns:
        Its data-bin folder.
    """
    corpus = embedded_corpus(work, smoke).parent
    texts = {split: corpus / "text" / f"{split}.en" for split in ("train", "valid", "test")}
    data = corpus / "language-model-bin"

    def preprocess() -> None:
        with atomic_directory(data) as part:
            arguments = ["--only-source", "--destdir", str(part)]
            for split, text in texts.items():
                arguments += [f"--{split}pref", str(text)]
            run_fairseq("preprocess", arguments, work / "logs" / "preprocess.log", device="cpu", threads=threads)

    Stages(corpus).run("language-model-bin", preprocess, inputs=texts.values(), outputs=[data])
    return data


def run(settings: Settings) -> Result:
    """Evaluates and trains; writes results.json and results.md after each part.

    Returns:
        What stands in results.json.

    Raises:
        UserError: fairseq failed.
    """
    texts = ["train.bin", "test.bin"]
    result: Result = {
        "benchmark": "language-model",
        "complete": False,
        **machine.describe(settings.device, settings.threads),
        "settings": {
            "data": describe_data(settings.data, "dict.txt", texts, "fairseq-preprocess --only-source"),
            "arms": {arm: shlex.join(map(machine.shown, options)) for arm, options in ARMS.items()},
            "recipe": shlex.join(RECIPE),
            "sizes": {str(size.units): shlex.join(size.options) for size in settings.sizes},
            **settings.schedule(),
            "rounds": settings.rounds,
            "checkpoint_updates": settings.checkpoint_updates,
        },
        "evaluation": [],
        "training": [],
    }
    for size in settings.sizes:
        checkpoints = make_checkpoints(settings, size)
        for blocks in settings.blocks:
            result["evaluation"].append(compare_evaluation(settings, size, blocks, checkpoints))
            write_results(result, settings.out, language_model_markdown)
    for precision in settings.precisions:
        for size in settings.sizes:
            result["training"].append(compare_training(settings, size, precision))
            write_results(result, settings.out, language_model_markdown)
    result["complete"] = True
    write_results(result, settings.out, language_model_markdown)
    return result


def make_checkpoints(settings: Settings, size: Size) -> dict[str, Path]:
    """A stock `lstm_lm`, and a `g2lstm_lm` with the same weights: finetuned from it for one update at a rate of 0."""
    paths: dict[str, Path] = {}
    for arm, own in ARMS.items():
        options = [*own, *RECIPE, *size.options, *ANY_BLOCKS]
        if arm == OURS:
            options += ["--finetune-from-model", str(paths[STOCK]), "--lr", "0"]
        paths[arm] = train_checkpoint(
            settings.data,
            settings.log("language-model", size.units, "checkpoint", arm),
            options,
            settings.work / "language-model" / f"{size.units}-{arm}",
            updates=settings.checkpoint_updates if arm == STOCK else 1,
            device=settings.device,
            threads=settings.threads,
        )
    return paths


def compare_evaluation(settings: Settings, size: Size, blocks: Blocks, checkpoints: dict[str, Path]) -> Result:
    """Evaluates in turns the stock model, ours with its weights under the stock task, and with the state carried."""
    arms = {
        STOCK: (checkpoints[STOCK], "language_modeling"),
        OURS: (checkpoints[OURS], "language_modeling"),
        CARRIED: (checkpoints[OURS], "g2lstm_language_modeling"),
    }
    runs: dict[str, list[Evaluation]] = {arm: [] for arm in arms}
    for arm in in_turns(list(arms), settings.rounds):
        checkpoint, task = arms[arm]
        name = ("language-model", size.units, "evaluate", blocks, arm.replace(" ", "-"), len(runs[arm]))
        done = evaluate(
            checkpoint,
            settings.data,
            settings.log(*name),
            task=task,
            n_rows=blocks.n_rows,
            block_length=blocks.block_length,
            device=settings.device,
            threads=settings.threads,
        )
        runs[arm].append(done)
        print(f"  {done.tokens_per_second:,.0f} tokens/s, {done.process_seconds:.1f} s, perplexity {done.perplexity}")
    speeds = {arm: Spread(tuple(run.tokens_per_second for run in runs[arm])) for arm in arms}
    seconds = {arm: Spread(tuple(run.process_seconds for run in runs[arm])) for arm in arms}
    perplexity = {arm: runs[arm][0].perplexity for arm in arms}
    return {
        "units": size.units,
        **blocks._asdict(),
        "tokens": runs[STOCK][0].tokens,
        "same_tokens": len({run.tokens for arm in arms for run in runs[arm]}) == 1,
        "perplexity": perplexity,
        # printed with two decimals: equal ones may differ by one in the last, large ones by float32's rounding
        "same_perplexity": math.isclose(perplexity[OURS], perplexity[STOCK], rel_tol=1e-5, abs_tol=0.015),
        "tokens/s": _against_stock(speeds, "tokens_per_s", settings.bars.get("evaluation tokens/s")),
        "process": _against_stock(seconds, "s", None),
    }


def compare_training(settings: Settings, size: Size, precision: str) -> Result:
    """Trains both arms in turns."""
    options = [*RECIPE, *size.options, *PRECISIONS[precision]]
    arms = {arm: [*own, *options] for arm, own in ARMS.items()}
    runs = train_in_turns(settings, arms, "language-model", size.units, "train", precision)
    return {
        "units": size.units,
        **size.blocks._asdict(),
        "precision": precision,
        "same_tokens": same_tokens(runs),
        **compare_trainings(runs, {}),
    }


def _against_stock(spreads: dict[str, Spread], unit: str, bar: Bar | None) -> Result:
    ratios = {arm: against(spread, spreads[STOCK], bar) for arm, spread in spreads.items() if arm != STOCK}
    return {**{arm: spread.as_dict(unit) for arm, spread in spreads.items()}, "ratios": ratios}
