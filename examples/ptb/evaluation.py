"""Perplexity of a trained language model, by fairseq-eval-lm; the work of evaluate.sh.

    python -m examples.ptb.evaluation DATA_BIN SAVE_DIR [fairseq-eval-lm options; later ones win]
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from examples.common.durations import in_words
from examples.common.errors import UserError, run_main
from examples.common.files import write_text

PLUGIN = Path(__file__).resolve().parents[2] / "fairseq_g2lstm"
BLOCK_LENGTH = 70  # tokens; where state is carried it decides the speed alone
CACHE_OPTIONS = ("--cache-theta", "--cache-lambda")
PROGRESS = "evaluated "  # how a line of progress begins
STOCK_TOKENS = 2000  # of a batch of the stock model's blocks: their logits take 80 MB at 10,000 types


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says of its model.

    Attributes:
        arch: `lstm_lm`, or a `g2lstm_lm`.
        gate_type: of its gates; None for stock `lstm_lm`.
        tokens_per_sample: length of the blocks that it was trained on, tokens.
        seed: of its training.
        updates: that it has seen.
    """

    arch: str
    gate_type: str | None
    tokens_per_sample: int
    seed: int
    updates: int

    def options(self) -> list[str]:
        """fairseq-eval-lm's, so that no token of the text is left out."""
        if self.gate_type is None:
            task = ["--task=language_modeling", f"--tokens-per-sample={self.tokens_per_sample}"]
            return [*task, "--sample-break-mode=none", f"--max-tokens={STOCK_TOKENS}"]
        task = ["--task=g2lstm_language_modeling", f"--tokens-per-sample={BLOCK_LENGTH}"]
        return [*task, "--sample-break-mode=none", "--batch-size=1"]


def read_trained(checkpoint: Path) -> Trained:
    """Read what the evaluation needs to know.

    Raises:
        UserError: no such checkpoint, or one of no language model of these examples.
    """
    from fairseq_g2lstm.checkpoints import architecture, model_options, read_checkpoint

    if not checkpoint.is_file():
        raise UserError(f"no {checkpoint}; train first, with examples/ptb/train.sh")
    try:
        state = read_checkpoint(checkpoint)
    except ValueError as error:
        raise UserError(str(error)) from error
    arch = architecture(state)
    if not arch.startswith(("g2lstm_lm", "lstm_lm")):
        raise UserError(f"{checkpoint} holds a {arch}; give the folder of a g2lstm_lm or an lstm_lm")
    return Trained(
        arch=arch,
        gate_type=str(model_options(state)["gate_type"]) if arch.startswith("g2lstm_lm") else None,
        tokens_per_sample=int(state["cfg"]["task"]["tokens_per_sample"]),
        seed=int(state["cfg"]["common"]["seed"]),
        updates=int(state["optimizer_history"][-1]["num_updates"]),
    )


def parse_options(options: list[str]) -> Namespace:
    """What fairseq-eval-lm makes of its options."""
    from fairseq import options as fairseq_options

    parser = fairseq_options.get_eval_lm_parser()
    return fairseq_options.parse_args_and_arch(parser, input_args=options)


def count_tokens(data_bin: Path, subset: str) -> int:
    """Tokens of a set of the data, with the ends of sentence.

    Raises:
        UserError: there is no such set.
    """
    from fairseq.data import data_utils

    dataset = data_utils.load_indexed_dataset(str(data_bin / subset), None, None)
    if dataset is None:
        raise UserError(f"{data_bin} holds no {subset}.bin and {subset}.idx; prepare the data first")
    return int(dataset.sizes.sum())


def context_of_words(task: str, tokens_per_sample: int, rows: int, window: int) -> str:
    """How much of the text each word is predicted from, in words.

    Args:
        task: fairseq's.
        tokens_per_sample: as fairseq-eval-lm takes it, the context window included.
        rows: that the text is cut into where it is read in order.
        window: the context window, tokens.
    """
    if task == "language_modeling":
        return f"{window + 1} to {tokens_per_sample} tokens"
    if rows == 1:
        return "all of the text before the word"
    start = f", and the {window} tokens before that" if window else ""
    return f"all of the text before the word in its row, of {rows}{start}"


def run_eval_lm(parsed: Namespace, log: Path) -> tuple[float, float, int]:
    """Run fairseq-eval-lm in this process; what it says goes to the log, its progress to standard error.

    Args:
        parsed: its options.
        log: written anew.

    Returns:
        Perplexity, bits a token, number of tokens.

    Raises:
        UserError: it failed; the log tells all.
    """
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    with logged_to(log):
        try:
            from fairseq_cli import eval_lm

            with progress_told(eval_lm):
                results = eval_lm.main(convert_namespace_to_omegaconf(parsed))
        except Exception as error:
            logging.getLogger("fairseq").exception("failed")
            raise UserError(f"fairseq-eval-lm failed: {error}; all it said is in {log}") from error
    found = re.search(r"Evaluated ([\d,]+) tokens", log.read_text(encoding="utf-8"))
    assert found is not None
    return float(results["perplexity"]), float(results["loss"]), int(found[1].replace(",", ""))


class Told:
    """Batches that say on standard error how many of them were read, each tenth."""

    def __init__(self, batches: Any, **_: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        began, told, total = time.monotonic(), 0, len(self._batches)
        for done, batch in enumerate(self._batches, 1):
            yield batch
            if done * 10 // total > told:
                told = done * 10 // total
                left = in_words((time.monotonic() - began) / done * (total - done))
                print(f"{PROGRESS}{done:,} of {total:,} batches, {left} left", file=sys.stderr, flush=True)


@contextmanager
def progress_told(eval_lm: Any) -> Iterator[None]:
    """Has fairseq-eval-lm, whose bar is for a terminal alone, tell its progress where there is none."""
    before = eval_lm.progress_bar
    if not sys.stderr.isatty():
        eval_lm.progress_bar = SimpleNamespace(progress_bar=Told)
    try:
        yield
    finally:
        eval_lm.progress_bar = before


@contextmanager
def logged_to(log: Path) -> Iterator[None]:
    """Sends what fairseq logs to a file alone."""
    handler = logging.FileHandler(log, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
    loggers = [logging.getLogger(name) for name in ("fairseq", "fairseq_cli", "fairseq_g2lstm")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


def previous_options(result: Path) -> list[str] | None:
    """The options of the evaluation whose result stands there, or None."""
    try:
        return list(json.loads(result.read_text(encoding="utf-8"))["options"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluate(data_bin: Path, save_dir: Path, given: list[str], name: str | None = None) -> dict[str, Any]:
    """Evaluate `checkpoint_best.pt` and keep the result beside it.

    Args:
        data_bin: what prepare wrote.
        save_dir: what train.sh wrote.
        given: options of fairseq-eval-lm.
        name: of the result's files; without it `eval-SUBSET`, with a cache `eval-SUBSET-cache`.

    Returns:
        What stands in the result.

    Raises:
        UserError: something is missing, fairseq-eval-lm failed or left tokens out, the result of another
            evaluation would be overwritten, or the options name another checkpoint.
    """
    if any(option.split("=")[0] == "--path" for option in given):
        raise UserError(
            f"what is evaluated is {save_dir / 'checkpoint_best.pt'}, not another --path: copy the other one under "
            "that name to a folder of its own, and give that folder"
        )
    checkpoint = save_dir / "checkpoint_best.pt"
    trained = read_trained(checkpoint)
    # one process reads the data, since the context window hands tokens on from block to block
    options = [str(data_bin), f"--user-dir={PLUGIN}", f"--path={checkpoint}"]
    options += ["--gen-subset=test", "--num-workers=0", *trained.options(), *given]
    parsed = parse_options(options)
    cache = None
    if getattr(parsed, "cache_size", 0) > 0:
        cache = {key: getattr(parsed, f"cache_{key}") for key in ("size", "theta", "lambda")}
    elif getattr(parsed, "cache_size", 0) == 0 and any(option.startswith(CACHE_OPTIONS) for option in given):
        raise UserError(f"{' and '.join(CACHE_OPTIONS)} have no effect without a cache: give a --cache-size > 0 too")
    expected = count_tokens(data_bin, parsed.gen_subset)
    result = save_dir / f"{name or f'eval-{parsed.gen_subset}' + ('-cache' if cache else '')}.json"
    asked = [option for option in given if option != "--cpu"]
    before = previous_options(result)
    if before is not None and before != asked:
        raise UserError(
            f"{result} is of another evaluation, with the options {shlex.join(before) or 'of this script'}; "
            "name this one's files by RESULT_NAME=NAME in the environment, or delete it"
        )
    print(shlex.join(["python", "-m", "fairseq_cli.eval_lm", *options]), flush=True)
    perplexity, bits, tokens = run_eval_lm(parsed, result.with_suffix(".log"))
    if tokens != expected:
        raise UserError(
            f"fairseq-eval-lm evaluated {tokens:,} of {parsed.gen_subset}'s {expected:,} tokens, which is no "
            "perplexity of it: it leaves out what other shards are to read, and blocks longer than those "
            "that a stock model was trained on unless it is given "
            f"--model-overrides \"{{'max_target_positions': {parsed.tokens_per_sample}}}\""
        )
    rows = parsed.batch_size or 1
    context = context_of_words(parsed.task, parsed.tokens_per_sample, rows, parsed.context_window)
    content = {
        "perplexity": round(perplexity, 4),
        "bits": round(bits, 6),
        "tokens": tokens,
        "subset": parsed.gen_subset,
        "context": context,
        "cache": cache,
        "task": parsed.task,
        "tokens_per_sample": parsed.tokens_per_sample,
        "batch_size": parsed.batch_size,
        "context_window": parsed.context_window,
        "model_overrides": parsed.model_overrides,
        "options": asked,
        "checkpoint": str(checkpoint),
        "arch": trained.arch,
        "gate_type": trained.gate_type,
        "seed": trained.seed,
        "updates": trained.updates,
    }
    write_text(result, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    pieces = "words" if parsed.post_process is None else "subwords"
    print(
        f"{parsed.gen_subset} perplexity {perplexity:.2f} a word, {bits:.4f} bits, {tokens:,} {pieces} with "
        f"the ends of sentence; context: {context}" + (f"; cache {cache}" if cache else "")
    )
    print(f"{result} written")
    return content


def main() -> None:
    """The command."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m examples.ptb.evaluation DATA_BIN SAVE_DIR [fairseq-eval-lm options]")
    logging.basicConfig(level=logging.WARNING)  # or fairseq's import sets everyone's to its level of detail
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:], os.environ.get("RESULT_NAME"))


if __name__ == "__main__":
    run_main(main)
