"""Models read through a data set: statistics of all their gates, and the gates of chosen sentences token by token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from ..checkpoints import read_checkpoint, updates_of
from ..loading import load_model
from ..models.g2lstm import G2LSTMModel
from ..models.gated import GatedModel
from ..models.language_model import G2LSTMLanguageModel
from ..settings import GateSettings
from .recording import Record, record_gates
from .statistics import GateStatistics, Place, collect_statistics
from .tokens import Token, readable, sentence

_BATCH = 50  # sentences
_BLOCK = 500  # tokens of a text that are read at once
_READABLE = range(6, 21)  # tokens of a sentence that is chosen unasked

Progress = Callable[[int], None]
"""Told of how many more sentences were read."""


@dataclass(frozen=True)
class SentenceGates:
    """The gates of one sentence, token by token.

    Attributes:
        number: of the sentence in the split, from 0.
        source: the source's tokens; empty for language models.
        target: the tokens that the decoder read, its own translation after a start; for language models the text.
        written: the tokens that the translation model wrote, one for each that it read; else empty.
        reference: the split's translation as one line; "" for language models.
        attention: (T, S) how much each written token looked at each source token; None without attention.
        gates: by place the input and the forget gates, each (T, H) float32 in the tokens' order, T being the
            source's length in the encoder and the target's elsewhere.
    """

    number: int
    source: list[Token]
    target: list[Token]
    written: list[Token]
    reference: str
    attention: np.ndarray | None
    gates: dict[Place, tuple[np.ndarray, np.ndarray]]


class Reader:
    """A model beside the data set that it is to read.

    Args:
        checkpoint: of `g2lstm` or `g2lstm_lm`, or of stock `lstm` or `lstm_lm`.
        data: the data-bin folder.
        split: which of its splits.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: the checkpoint is of another model, cannot be read or does not fit the dictionaries; the split is
            empty or truncated.

    Attributes:
        updates: how many the checkpoint was trained for; None where it does not say.
        is_language_model: whether it is, or translates.
        languages: of source and target; one, or None, for language models.
        n_sentences: of the split.
    """

    def __init__(self, checkpoint: str | Path, data: str | Path, split: str) -> None:
        state = read_checkpoint(checkpoint)
        self.updates = updates_of(state)
        self.model, self._task = load_model(checkpoint, data, state)
        self.is_language_model = isinstance(self.model, G2LSTMLanguageModel)
        if self.is_language_model:
            self._tokens = _load_text(self._task, data, split)
            (ends,) = np.nonzero(self._tokens == self._task.dictionary.eos())
            last = len(self._tokens) - 1
            self._ends = ends if len(ends) and ends[-1] == last else np.append(ends, last)
            self.n_sentences = len(self._ends)
            self.languages: tuple[str, ...] = ()
        else:
            self._dataset = _load_pairs(self._task, data, split)
            self.n_sentences = len(self._dataset)
            self.languages = (self._task.cfg.source_lang, self._task.cfg.target_lang)
        if self.n_sentences == 0:
            raise ValueError(f"split {split!r} of {data} holds no sentence")

    @property
    def gate_settings(self) -> GateSettings:
        """The gates' settings in use."""
        return cast(GatedModel, self.model).gate_settings

    def choose(self, n_wanted: int, max_sentences: int) -> list[int]:
        """Numbers of sentences that are short enough to read, spread evenly over the first of the split."""
        n_sentences = min(max_sentences, self.n_sentences)
        if self.is_language_model:
            lengths = np.diff(self._ends, prepend=-1)[:n_sentences] - 1
        else:
            lengths = np.asarray(self._dataset.src.sizes[:n_sentences]) - 1
        numbers = [number for number, length in enumerate(lengths) if length in _READABLE] or list(range(n_sentences))
        places = np.linspace(0, len(numbers) - 1, min(n_wanted, len(numbers))).round().astype(int)
        return [numbers[place] for place in places]

    @torch.no_grad()
    def read(
        self, max_sentences: int, chosen: Sequence[int] = (), beam: int = 5, progress: Progress = lambda n: None
    ) -> tuple[dict[Place, GateStatistics], list[SentenceGates]]:
        """Reads the first sentences of the split: translations teacher-forced, a text in order with the state carried.

        Args:
            max_sentences: how many at most.
            chosen: numbers of those whose gates are wanted token by token; a translation model translates them with
                this `beam`.
            progress: told of the sentences that were read.

        Returns:
            the statistics by place, and the chosen sentences in the order asked for.

        Raises:
            ValueError: a chosen sentence is not among those that are read; the model's gates are no numbers.
        """
        n_sentences = min(max_sentences, self.n_sentences)
        for number in chosen:
            if not 0 <= number < n_sentences:
                raise ValueError(
                    f"sentence {number} is not among the {n_sentences} that are read: give numbers from 0 to "
                    f"{n_sentences - 1}, or read more of the split's {self.n_sentences}"
                )
        if self.is_language_model:
            statistics, sentences = self._read_text(n_sentences, chosen, progress)
            _check_finite(statistics)
            return statistics, sentences
        statistics = self._read_pairs(n_sentences, progress)
        _check_finite(statistics)
        generator = SequenceGenerator([self.model], self._task.target_dictionary, beam_size=beam)
        return statistics, [self._translate(number, generator) for number in chosen]

    def _read_pairs(self, n_sentences: int, progress: Progress) -> dict[Place, GateStatistics]:
        # batches of equal lengths have little padding
        order = sorted(range(n_sentences), key=lambda n: (self._dataset.num_tokens(n), n))
        with collect_statistics(self.model) as statistics:
            for first in range(0, n_sentences, _BATCH):
                numbers = order[first : first + _BATCH]
                net_input = self._dataset.collater([self._dataset[number] for number in numbers])["net_input"]
                self._run(net_input["src_tokens"], net_input["src_lengths"], net_input["prev_output_tokens"])
                progress(len(numbers))
        return statistics

    def _run(self, source: Tensor, lengths: Tensor, prev_output_tokens: Tensor) -> Tensor | None:
        """The model without its output layer; the attention (B, T, S)."""
        model = cast(G2LSTMModel, self.model)
        return model.decoder.extract_features(prev_output_tokens, model.encoder(source, lengths))[1]

    def _translate(self, number: int, generator: SequenceGenerator) -> SentenceGates:
        sample = self._dataset.collater([self._dataset[number]])
        source, lengths = sample["net_input"]["src_tokens"], sample["net_input"]["src_lengths"]
        written = self._task.inference_step(generator, [self.model], sample)[0][0]["tokens"].long()
        target = self._task.target_dictionary
        read = torch.cat((written.new_tensor([target.eos()]), written[:-1]))
        with record_gates(self.model) as recording:
            attention = self._run(source, lengths, read[None])
        return SentenceGates(
            number,
            readable(self._task.source_dictionary, source[0].tolist()),
            readable(target, read.tolist(), starts=True),
            readable(target, written.tolist()),
            sentence(readable(target, self._dataset.tgt[number].tolist())),
            None if attention is None else attention[0].float().numpy(),
            {_place(record): _rows(record) for record in recording},
        )

    def _read_text(
        self, n_sentences: int, chosen: Sequence[int], progress: Progress
    ) -> tuple[dict[Place, GateStatistics], list[SentenceGates]]:
        dictionary, decoder = self._task.dictionary, cast(G2LSTMLanguageModel, self.model).decoder
        # each sentence after the end of the one before it, and without its own
        read = np.concatenate([[dictionary.eos()], self._tokens[:-1]]).astype(np.int64)
        first = {number: int(self._ends[number - 1]) + 1 if number > 0 else 0 for number in chosen}
        n_tokens = int(self._ends[n_sentences - 1]) + 1
        cuts = {0, n_tokens, *range(0, n_tokens, _BLOCK)}
        cuts |= {edge for number in chosen for edge in (first[number], int(self._ends[number]) + 1)}
        edges = sorted(cuts)
        # without the blocks' cuts inside the chosen sentences
        for number in chosen:
            edges = [edge for edge in edges if not first[number] < edge <= self._ends[number]]
        recordings: dict[int, list[Record]] = {}
        n_read = 0
        with collect_statistics(self.model) as statistics:
            for block, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
                wanted = [number for number in chosen if first[number] == begin]
                with ExitStack() as stack:
                    recording = stack.enter_context(record_gates(self.model)) if wanted else []
                    decoder.extract_features(torch.from_numpy(read[None, begin:end]), block=block)
                recordings |= {number: recording for number in wanted}
                n_done = int(np.searchsorted(self._ends[:n_sentences], end - 1, side="right"))
                progress(n_done - n_read)
                n_read = n_done
        sentences = []
        for number in chosen:
            tokens = readable(dictionary, read[first[number] : self._ends[number] + 1].tolist(), starts=True)
            gates = {_place(record): _rows(record) for record in recordings[number]}
            sentences.append(SentenceGates(number, [], tokens, [], "", None, gates))
        return statistics, sentences


def _load_pairs(task: Any, data: str | Path, split: str) -> Any:
    # sentences without the padding that the checkpoint's training may have added, which would come before their tokens
    task.cfg.required_seq_len_multiple, task.cfg.num_batch_buckets = 1, 0
    with _errors_naming(data, split):
        task.load_dataset(split)
        dataset = task.dataset(split)
        if dataset.tgt is None:
            raise FileNotFoundError(f"{split}: no target language")
        dataset[len(dataset) - 1]  # a truncated file ends before its last sentence
    return dataset


def _load_text(task: Any, data: str | Path, split: str) -> np.ndarray:
    with _errors_naming(data, split):
        task.load_dataset(split)
        tokens = task.dataset(split).tokens
    if len(tokens) == 0:
        raise ValueError(f"split {split!r} of {data} holds no sentence")
    return tokens


@contextmanager
def _errors_naming(data: str | Path, split: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no split {split!r} in {data}: give one that fairseq-preprocess has made") from error
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split {split!r} of {data} holds no sentence or is truncated: {error}") from error


def _check_finite(statistics: dict[Place, GateStatistics]) -> None:
    for place, counted in statistics.items():
        if not np.isfinite(counted.sum).all():
            raise ValueError(
                f"gates of {place.label} are no numbers: the training diverged, give a checkpoint from before that"
            )


def _place(record: Record) -> Place:
    return Place(record.module, record.layer, record.reverse)


def _rows(record: Record) -> tuple[np.ndarray, np.ndarray]:
    return record.input[:, 0].float().numpy(), record.forget[:, 0].float().numpy()
