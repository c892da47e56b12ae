"""Training and translating with fairseq's own `lstm` and with `g2lstm` of the same sizes, on the same batches."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.bars import END_TO_END_BARS, Bar
from benchmarks.comparison import (
    ModelSettings,
    Result,
    compare_trainings,
    comparison,
    describe_data,
    same_tokens,
    train_in_turns,
    write_results,
)
from benchmarks.fairseq_runs import PLUGIN, PRECISIONS, Translation, read_state, train_checkpoint, translate
from benchmarks.tables import end_to_end_markdown
from benchmarks.timing import Spread, in_turns
from examples.common.errors import UserError

# The arms: fairseq's own model, and the plugin's of the same sizes.
ARMS = {
    "lstm": ("--arch", "lstm_wiseman_iwslt_de_en", "--criterion", "label_smoothed_cross_entropy"),
    "g2lstm": (
        *("--user-dir", str(PLUGIN), "--arch", "g2lstm_iwslt", "--gate-type", "gumbel"),
        *("--criterion", "g2lstm_label_smoothed_cross_entropy"),
    ),
}
ENCODERS = {"one": (), "two": ("--encoder-bidirectional",)}
RECIPE = (
    *("--dropout", "0.3", "--encoder-dropout-in", "0.3", "--encoder-dropout-out", "0.3"),
    *("--decoder-dropout-in", "0.3", "--decoder-dropout-out", "0.3", "--label-smoothing", "0.1"),
    *("--optimizer", "adam", "--clip-norm", "1.0"),
    *("--lr", "2e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "400"),
    *("--seed", "1", "--update-epoch-batch-itr", "True", "--disable-validation"),
)
SMALL = tuple(
    word
    for side in ("encoder", "decoder")
    for name in ("embed-dim", "hidden-size")
    for word in (f"--{side}-{name}", "16")
) + ("--decoder-out-embed-dim", "16")


@dataclass(frozen=True)
class Settings(ModelSettings):
    """What is trained and translated, and how; `rounds` are trainings and translations of each arm.

    Attributes:
        checkpoint: of a trained stock `lstm`, or None to train one.
        encoders: keys of ENCODERS.
        decode_updates: of the training of a checkpoint to translate with.
        max_tokens: in a batch.
    """

    checkpoint: Path | None
    encoders: Sequence[str]
    decode_updates: int
    max_tokens: int

    @property
    def bars(self) -> dict[str, Bar]:
        """What is promised on the device; nothing of small models."""
        return {} if self.small else END_TO_END_BARS[self.device]

    @property
    def options(self) -> tuple[str, ...]:
        """Of all trainings."""
        return ("--max-tokens", str(self.max_tokens), *(SMALL if self.small else ()))


def embedded_corpus(work: Path, smoke: bool) -> Path:
    """The quickstart's corpus of spelled-out numbers, dates and times, made once.

    Returns:
        Its data-bin folder.
    """
    from examples.quickstart.run import parse_arguments, prepare

    return prepare(parse_arguments(["--smoke"] if smoke else []), work / ("corpus-smoke" if smoke else "corpus"))


def run(settings: Settings) -> Result:
    """Trains and translates; writes results.json and results.md after each part.

    Returns:
        What stands in results.json.

    Raises:
        UserError: fairseq failed, or the checkpoint cannot be read.
    """
    if settings.checkpoint is not None:
        read_state(settings.checkpoint)  # or what is wrong with it would be found last
    result: Result = {
        "benchmark": "end-to-end",
        "complete": False,
        **machine.describe(settings.device, settings.threads),
        "settings": {
            "data": describe_data(settings.data, "dict.*.txt", ["train.*.bin", "test.*.bin"], "fairseq-preprocess"),
            "arms": {arm: shlex.join(map(machine.shown, options)) for arm, options in ARMS.items()},
            "recipe": shlex.join([*RECIPE, *settings.options]),
            **settings.schedule(),
            "repeats": settings.rounds,
        },
        "training": [],
        "translation": None,
    }
    for precision in settings.precisions:
        for encoder in settings.encoders:
            result["training"].append(compare_training(settings, encoder, precision))
            write_results(result, settings.out, end_to_end_markdown)
    result["translation"] = compare_translation(settings)
    result["complete"] = True
    write_results(result, settings.out, end_to_end_markdown)
    return result


def compare_training(settings: Settings, encoder: str, precision: str) -> Result:
    """Trains both arms in turns, with an encoder of one direction or of two."""
    options = [*RECIPE, *ENCODERS[encoder], *PRECISIONS[precision], *settings.options]
    arms = {arm: [*own, *options] for arm, own in ARMS.items()}
    runs = train_in_turns(settings, arms, "train", encoder, precision)
    return {
        "encoder": encoder,
        "precision": precision,
        "same_batches": same_tokens(runs),
        **compare_trainings(runs, settings.bars),
    }


def compare_translation(settings: Settings) -> Result:
    """Translates the test set in turns with a stock checkpoint and with the same converted to `g2lstm`."""
    from fairseq_g2lstm.checkpoints import updates_of
    from fairseq_g2lstm.convert import main as convert

    stock = settings.checkpoint or _train_checkpoint(settings)
    updates = updates_of(read_state(stock))
    checkpoints = {"lstm": stock, "g2lstm": settings.work / "converted.pt"}
    if convert([str(stock), str(checkpoints["g2lstm"]), "--to", "g2lstm"]):
        raise UserError(f"{stock} could not be converted: give --checkpoint a checkpoint of the stock lstm")
    runs: dict[str, list[Translation]] = {arm: [] for arm in ARMS}
    for arm in in_turns(list(checkpoints), settings.rounds):
        log = settings.log("generate", arm, len(runs[arm]))
        done = translate(checkpoints[arm], settings.data, log, device=settings.device, threads=settings.threads)
        runs[arm].append(done)
        print(f"  {done.sentences_per_second:,.1f} sentences/s")
    speeds = {arm: Spread(tuple(run.sentences_per_second for run in runs[arm])) for arm in ARMS}
    pairs = zip(runs["lstm"][0].hypotheses, runs["g2lstm"][0].hypotheses, strict=True)
    return {
        "checkpoint_updates": updates,
        "sentences/s": comparison(speeds, "sentences_per_s", settings.bars.get("sentences/s")),
        "sentences": runs["lstm"][0].sentences,
        "identical": sum(one == other for one, other in pairs),
        "words": {arm: sum(len(text.split()) for text in runs[arm][0].hypotheses) for arm in ARMS},
    }


def _train_checkpoint(settings: Settings) -> Path:
    """A stock `lstm` with an encoder of two directions, trained until its translations end by themselves."""
    return train_checkpoint(
        settings.data,
        settings.log("train-checkpoint"),
        [*ARMS["lstm"], *RECIPE, *ENCODERS["two"], *settings.options],
        settings.work / "checkpoint",
        updates=settings.decode_updates,
        device=settings.device,
        threads=settings.threads,
    )
