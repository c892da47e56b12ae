"""How good a model is on a data set: BLEU of a translation model, perplexity of a language model."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from sacrebleu.metrics import BLEU
from torch import Tensor

from ..checkpoints import check_finite
from ..gates.tokens import CONTINUES, marks_beginnings
from ..loading import load_model
from ..models.language_model import G2LSTMLanguageModel


class Score(NamedTuple):
    """metric: "BLEU" (higher is better) or "perplexity" (lower is). hypotheses: the translations in the data's order,
    or None. seconds: of the search or the scoring."""

    metric: str
    value: float
    hypotheses: list[str] | None
    seconds: float


class Evaluator:
    """A model and a data set, to be evaluated with one set of weights after another.

    Args:
        checkpoint: of `g2lstm`, `g2lstm_lm`, or a stock model of either kind.
        data: the data-bin folder.
        split: the data set.
        beam: hypotheses of beam search.
        batch_size: sentences of a batch; of a language model rows of the text, with the context of fairseq-eval-lm.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: the checkpoint cannot be read, does not fit the data, or holds numbers that are not finite.

    Attributes:
        model: its weights may be changed in place.
        references: of translation models, the split's targets, else None.
    """

    def __init__(
        self, checkpoint: str | Path, data: str | Path, split: str = "test", beam: int = 5, batch_size: int = 128
    ) -> None:
        self.model, self._task = load_model(checkpoint, data)
        check_finite(checkpoint, self.model.state_dict())
        self._split, self._beam, self._batch_size = split, beam, batch_size
        try:
            self._task.load_dataset(split)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no split {split!r} in {data}: name one that fairseq-preprocess made") from error
        self._is_language_model = isinstance(self.model, G2LSTMLanguageModel)
        self._segmentation = segmentation_of(self._task.target_dictionary)
        self.references = None if self._is_language_model else self._read_references()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's state dict; it shares the model's memory."""
        return self.model.state_dict()

    @torch.no_grad()
    def score(self, weights: Mapping[str, Tensor] | None = None) -> Score:
        """Evaluates the model.

        Args:
            weights: what some names of the state dict shall hold meanwhile; the model is as before afterwards.
        """
        with self._with(weights or {}):
            start = time.perf_counter()
            if self._is_language_model:
                return Score("perplexity", math.exp(self._loss()), None, time.perf_counter() - start)
            hypotheses = self._translate()
            seconds = time.perf_counter() - start
            return Score("BLEU", bleu(hypotheses, self.references or []), hypotheses, seconds)

    @torch.no_grad()
    def loss(self, weights: Mapping[str, Tensor] | None = None) -> float:
        """Mean negative log-likelihood of the split's targets, nats a token; `weights` as for `score`."""
        with self._with(weights or {}):
            return self._loss()

    @contextmanager
    def _with(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        own = self.weights
        kept = {name: own[name].clone() for name in weights}
        try:
            for name, weight in weights.items():
                own[name].copy_(weight)
            yield
        finally:
            for name, weight in kept.items():
                own[name].copy_(weight)

    def _batches(self, **options: Any) -> Any:
        # one process reads the data: with several, leaving early would leave them behind
        return self._task.get_batch_iterator(
            self._task.dataset(self._split), max_sentences=self._batch_size, num_workers=0, **options
        ).next_epoch_itr(shuffle=False)

    def _translate(self) -> list[str]:
        target = self._task.target_dictionary
        generator = SequenceGenerator([self.model], target, beam_size=self._beam)
        found: dict[int, str] = {}
        for sample in self._batches(ignore_invalid_inputs=True):
            hypotheses = self._task.inference_step(generator, [self.model], sample)
            for number, best in zip(sample["id"].tolist(), hypotheses, strict=True):
                found[number] = self._string(best[0]["tokens"])
        return [found[number] for number in sorted(found)]

    def _read_references(self) -> list[str]:
        dataset = self._task.dataset(self._split)
        if dataset.tgt is None:
            raise FileNotFoundError(f"the split {self._split!r} has no target language to score against")
        return [self._string(dataset.tgt[number], escape_unk=True) for number in range(len(dataset))]

    def _string(self, tokens: Tensor, escape_unk: bool = False) -> str:
        return self._task.target_dictionary.string(tokens.int().cpu(), self._segmentation, escape_unk=escape_unk)

    def _loss(self) -> float:
        scorer = SequenceScorer(self._task.target_dictionary)
        total, count = 0.0, 0
        for sample in self._batches(**({} if self._is_language_model else {"ignore_invalid_inputs": True})):
            for (hypothesis,) in scorer.generate([self.model], sample):
                total += float(hypothesis["positional_scores"].double().sum())
                count += len(hypothesis["tokens"])
        return -total / count


def segmentation_of(dictionary: Dictionary) -> str:
    """What fairseq's `Dictionary.string` is to be told, so that it puts pieces of words together again."""
    return "sentencepiece" if marks_beginnings(dictionary.symbols) else f"{CONTINUES} "


def bleu(hypotheses: list[str], references: list[str]) -> float:
    """sacrebleu's score of texts that are tokenised already."""
    return BLEU(tokenize="none", force=True).corpus_score(hypotheses, [references]).score
