"""The fairseq task `g2lstm_language_modeling`: a text read in order, with the hidden state carried along."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq import utils
from fairseq.data import (
    AppendTokenDataset,
    EpochBatchIterator,
    FairseqDataset,
    IdDataset,
    ListDataset,
    NestedDictionaryDataset,
    NumelDataset,
    PadDataset,
    PrependTokenDataset,
    StripTokenDataset,
    data_utils,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.distributed import utils as distributed_utils
from fairseq.optim import AMPOptimizer, FairseqOptimizer
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import II

from ..config import flag
from ..models.cache import CacheSettings
from ..models.carried import TextState
from ..models.language_model import G2LSTMLanguageModel
from ..optim.nt_asgd import find_nt_asgd
from ..text_rows import RowBlocks, TokenStream, block_iterator, rows_within
from .averaging import NonMonotonicTrigger
from .matmul_precision import MATMUL_PRECISIONS, float32_matmul_precision

logger = logging.getLogger(__name__)

EVAL_LM_MAX_TOKENS = 36000  # what fairseq-eval-lm gives where --max-tokens is not


@dataclass
class G2LSTMLanguageModelingConfig(LanguageModelingConfig):
    """Options of the task; those of fairseq's `language_modeling` that fit a text read in order mean the same."""

    variable_tokens_per_sample: bool = field(
        default=False,
        metadata={
            "help": "in training, draw each block's length around --tokens-per-sample and scale the learning rate to it"
        },
    )
    cache_size: int = field(
        default=CacheSettings().size,
        metadata={"help": "in fairseq-eval-lm, steps that the continuous cache remembers; 0 for no cache"},
    )
    cache_theta: float = field(
        default=CacheSettings().theta, metadata={"help": "how sharply the cache tells states apart, >= 0"}
    )
    cache_lambda: float = field(
        default=CacheSettings().weight, metadata={"help": "share of the cache in the probabilities, 0 to below 1"}
    )
    float32_matmul_precision: ChoiceEnum(["default", *MATMUL_PRECISIONS]) = field(  # type: ignore[valid-type]
        default="default",
        metadata={
            "help": "in updates, what torch.set_float32_matmul_precision is given: high and medium round what float32 "
            "products multiply and are faster where the processor can; default leaves it alone"
        },
    )
    update_freq: Any = II("optimization.update_freq")
    sentence_avg: bool = II("optimization.sentence_avg")
    disable_validation: bool = II("dataset.disable_validation")
    validate_interval: int = II("dataset.validate_interval")
    post_process: Any = II("common_eval.post_process")


@register_task("g2lstm_language_modeling", dataclass=G2LSTMLanguageModelingConfig)
class G2LSTMLanguageModelingTask(LanguageModelingTask):
    """Word-level language modelling as its benchmarks are run: contiguous rows of text, hidden state carried.

    The split's text is cut into --batch-size rows on each of the ranks, each a contiguous piece, and read in blocks of
    --tokens-per-sample; a batch holds one block of every row. A `g2lstm_lm` starts each block from the state that it
    left the last one with. Works with fairseq-train, fairseq-validate, fairseq-eval-lm (one row unless --batch-size
    says otherwise) and fairseq-interactive.

    Raises:
        ValueError: an option does not fit a text read in order, or is outside its range.
    """

    def __init__(self, args: Any, dictionary: Any, output_dictionary: Any = None, targets: Any = None) -> None:
        super().__init__(args, dictionary, output_dictionary, targets)
        _check_options(args, self.targets)
        self.cache = CacheSettings(args.cache_size, args.cache_theta, args.cache_lambda)
        self.cache.check()
        self._model: G2LSTMLanguageModel | None = None
        self._optimizer: FairseqOptimizer | None = None
        self._train_iterator: EpochBatchIterator | None = None
        self._trigger = NonMonotonicTrigger()
        self._trigger_restored = False
        self._first_valid_set = True
        self._length_ratios: list[float] = []
        self._ranks_state: _RanksState | None = None

    def build_model(self, args: Any, from_checkpoint: bool = False) -> G2LSTMLanguageModel:
        """Builds the model.

        Raises:
            ValueError: the architecture is not a `g2lstm_lm`.
        """
        model = super().build_model(args, from_checkpoint)
        if not isinstance(model, G2LSTMLanguageModel):
            raise ValueError(
                f"the task g2lstm_language_modeling carries hidden state, which {type(model).__name__} cannot: "
                "use --arch g2lstm_lm, or --task language_modeling; python -m fairseq_g2lstm.convert --to g2lstm makes "
                "a g2lstm_lm of a stock lstm_lm's checkpoint"
            )
        # the batches of an update may be given again
        model.decoder.carried(training=True).kept_before = max(self.args.update_freq or [1])
        self._model = model
        return model

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Loads a split, of several data folders the epoch's.

        Raises:
            FileNotFoundError: the split is not there.
        """
        paths = utils.split_paths(self.args.data)
        split_path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        sentences = data_utils.load_indexed_dataset(
            split_path, self.dictionary, self.args.dataset_impl, combine=combine
        )
        if sentences is None:
            raise FileNotFoundError(f"dataset not found: {split} ({split_path}); prepare it with fairseq-preprocess")
        self.datasets[split] = TokenStream(sentences)

    def get_batch_iterator(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        skip_remainder_batch: bool = False,
        context_window: int = 0,
        update_epoch_batch_itr: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """fairseq's iterator over the blocks of a split in order; a dataset for inference gets the stock one.

        Args:
            dataset: of `load_dataset` or `build_dataset_for_inference`.
            max_sentences: rows of each shard. max_tokens: at most so many tokens in a block.
            context_window: tokens that each row reads before its own without being asked for them.
            update_epoch_batch_itr: given by fairseq for the iterator of training alone.

        Raises:
            ValueError: neither number of rows is given, the text is shorter than the rows, or block lengths are drawn
                and the gradient grows with them.
        """
        if not isinstance(dataset, TokenStream):
            return super().get_batch_iterator(
                dataset,
                max_tokens=max_tokens,
                max_sentences=max_sentences,
                seed=seed,
                num_shards=num_shards,
                shard_id=shard_id,
                num_workers=num_workers,
                epoch=epoch,
                data_buffer_size=data_buffer_size,
                skip_remainder_batch=skip_remainder_batch,
                **kwargs,
            )
        block_length = self.args.tokens_per_sample
        training = update_epoch_batch_itr is not None
        drawn = training and self.args.variable_tokens_per_sample
        if drawn and self.args.sentence_avg:
            raise ValueError(
                "--variable-tokens-per-sample scales the learning rate to a block's length, with --sentence-avg the "
                "gradient grows with it already: leave one of them out"
            )
        blocks = RowBlocks(
            dataset.tokens,
            rows_within(max_sentences, max_tokens, block_length),
            block_length,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            n_shards=num_shards,
            shard=shard_id,
            context=context_window,
            draw=(seed, epoch) if drawn else None,
        )
        iterator = block_iterator(blocks, epoch, num_workers, data_buffer_size, skip_remainder_batch)
        if training:
            self._train_iterator = iterator
        return iterator

    def eval_lm_dataloader(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = EVAL_LM_MAX_TOKENS,
        batch_size: int | None = None,
        max_positions: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ) -> Any:
        """The blocks of a text for fairseq-eval-lm, in one row unless `batch_size` says otherwise.

        With several rows each but the first starts without the text before it, or with `context_window` tokens of it.

        Raises:
            ValueError: options of the cache were given without its size, `max_tokens` that a block exceeds, or
                --remove-bpe where blocks or rows may cut words apart.
        """
        if self.cache.size == 0 and self.cache != CacheSettings():
            raise ValueError(
                "--cache-theta and --cache-lambda have no effect without a cache: give --cache-size too, "
                "the number of steps that it remembers"
            )
        rows, block_length = batch_size or 1, self.args.tokens_per_sample
        self._check_words(rows * num_shards, len(dataset), context_window)
        if max_tokens not in (None, EVAL_LM_MAX_TOKENS) and rows * block_length > max_tokens:
            raise ValueError(
                f"--max-tokens {max_tokens} must be at least {rows * block_length}, a block of {block_length} tokens "
                f"of {rows} row{'s' if rows > 1 else ''}: change --tokens-per-sample or --batch-size"
            )
        if self.cache.size > 0 and self._model is not None:
            self._model.decoder.cache = self.cache
        return self.get_batch_iterator(
            dataset,
            max_sentences=rows,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
            context_window=context_window,
        ).next_epoch_itr(shuffle=False)

    def _check_words(self, n_rows: int, n_tokens: int, context_window: int) -> None:
        if self.args.post_process is None:
            return
        if self.args.post_process == "subword_nmt":
            raise ValueError(
                "fairseq-eval-lm joins nothing by --remove-bpe alone: give it what subwords end in, --remove-bpe '@@ '"
            )
        if n_rows > 1 or self.args.tokens_per_sample < n_tokens:
            raise ValueError(
                "--remove-bpe joins subwords within a block, and the end of one may stand inside a word: give "
                f"--tokens-per-sample {n_tokens + context_window}, one row and one shard, the text as a whole, or "
                "leave it out and take the perplexity a word from the bits a token: 2 ** (bits * tokens / words)"
            )

    def build_dataset_for_inference(
        self, src_tokens: list[torch.Tensor], src_lengths: list[int], **kwargs: Any
    ) -> FairseqDataset:
        """Sentences to go on with, each after an end of sentence; their own ends are taken off.

        fairseq's own does the same through a dataset that fails under numpy 2.
        """
        pad, eos = self.source_dictionary.pad(), self.source_dictionary.eos()
        sentences = StripTokenDataset(ListDataset(src_tokens, src_lengths), eos)
        source = PrependTokenDataset(sentences, eos)
        net_input = {
            "src_tokens": PadDataset(source, pad_idx=pad, left_pad=False),
            "src_lengths": NumelDataset(source, reduce=False),
        }
        target = PadDataset(AppendTokenDataset(sentences, pad), pad_idx=pad, left_pad=False)
        parts = {"id": IdDataset(), "net_input": net_input, "target": target}
        return NestedDictionaryDataset(parts, sizes=[np.array(src_lengths)])

    def inference_step(self, generator: Any, models: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's, for fairseq-interactive.

        Raises:
            ValueError: the sample is a block of a text, as fairseq-generate gives.
        """
        if "block" in sample["net_input"]:
            raise ValueError(
                "fairseq-generate has nothing to generate from in a text: score it with fairseq-eval-lm, or sample "
                "from prefixes with fairseq-interactive"
            )
        return super().inference_step(generator, models, sample, *args, **kwargs)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: FairseqOptimizer, update_num: int, **kwargs: Any
    ) -> Any:
        """fairseq's, on the weights that SGD moves."""
        if optimizer is not self._optimizer:
            self._watch(optimizer)
        averager = find_nt_asgd(optimizer)
        if averager is not None:
            if self._trigger.fired and not averager.averaging:
                logger.info(f"averaging the weights from update {update_num} on")
                averager.start_averaging()
            self._use(averages=False)
        if all(weight.grad is None for weight in model.parameters()):
            self._length_ratios = []  # an update begins; the last one may have been left out
        self._length_ratios.append(sample.get("length_ratio", 1.0))
        with float32_matmul_precision(str(self.args.float32_matmul_precision)):
            result = super().train_step(sample, model, criterion, optimizer, update_num, **kwargs)
        if distributed_utils.get_data_parallel_world_size() > 1:
            # now, because rank 0 alone asks for what a checkpoint keeps
            self._ranks_state = self._state_of_ranks()
        return result

    def optimizer_step(self, optimizer: FairseqOptimizer, model: Any, update_num: int) -> None:
        """fairseq's, with the learning rate scaled to the blocks' length where that is drawn."""
        ratio = sum(self._length_ratios) / len(self._length_ratios)
        lr = optimizer.get_lr()
        optimizer.set_lr(lr * ratio)
        super().optimizer_step(optimizer, model, update_num)
        optimizer.set_lr(lr)

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Validation is on the averages, where there are any."""
        super().begin_valid_epoch(epoch, model)
        self._use(averages=True)
        self._first_valid_set = True

    def post_validate(self, model: Any, stats: Mapping[str, Any], agg: Any) -> None:
        """Watches the first validation set's loss at each epoch's end for the time to start averaging.

        Validations at other times than --validate-interval's do not count: a run that is stopped there, which
        validates, goes on as if it had not been.
        """
        first, self._first_valid_set = self._first_valid_set, False
        averager = find_nt_asgd(self._optimizer)
        train = self._train_iterator
        is_due = train is not None and train.end_of_epoch() and train.epoch % self.args.validate_interval == 0
        if averager is not None and first and is_due:
            meter = agg["nll_loss"] if "nll_loss" in agg else agg["loss"]
            self._trigger.see(float(meter.avg), averager.cfg.asgd_nonmono)

    def _watch(self, optimizer: FairseqOptimizer) -> None:
        if isinstance(optimizer, AMPOptimizer) and isinstance(optimizer.optimizer, torch.optim.SGD | torch.optim.ASGD):
            raise ValueError(
                "fairseq's --amp divides the gradients by the loss scale twice, which SGD does not forgive: "
                "use --fp16, or an optimiser that takes gradients of any size, such as adam"
            )
        self._optimizer = optimizer
        averager = find_nt_asgd(optimizer)
        if averager is not None:
            averager.watched = True
            if self.args.disable_validation and averager.cfg.asgd_nonmono > 0 and not averager.averaging:
                logger.warning(
                    "validation starts the averaging of --optimizer nt_asgd, which is plain SGD with "
                    "--disable-validation: leave that out, or give --asgd-nonmono 0 if that is what you want"
                )
            if not averager.restored and self._trigger_restored:
                # the run goes on with --reset-optimizer, or from a checkpoint without the optimiser's state
                if self._trigger.fired:
                    logger.info("the optimiser begins anew, and so does the wait for the averaging to start")
                self._trigger = NonMonotonicTrigger()
            self._trigger_restored = False
        if averager is not None and self._model is not None:
            # a checkpoint without a validation before it shall hold the averages too
            self._model.register_state_dict_pre_hook(lambda *_: self._use(averages=True))

    def _use(self, averages: bool) -> None:
        averager = find_nt_asgd(self._optimizer)
        if averager is None:
            return
        changed = averager.use_averages() if averages else averager.use_raw()
        # under --fp16 the model is a copy of what the optimiser holds
        copy_to_model = getattr(self._optimizer, "_sync_fp32_params_to_fp16", None)
        if copy_to_model is not None and changed:
            copy_to_model()

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the task: the state carried in training, of all ranks, and the validations."""
        state = self._ranks_state
        if state is None and distributed_utils.get_data_parallel_world_size() == 1:
            state = self._state_of_ranks()
        carried = None if state is None else {**state.to_save(), "layout": self._layout()}
        return {type(self).__name__: {"carried": carried, "trigger": self._trigger.state_dict()}}

    def set_checkpoint_dict(self, kept: dict[str, Any]) -> None:
        """Takes up what `get_checkpoint_dict` gave; fairseq calls it when a run goes on."""
        self._trigger.load_state_dict(kept["trigger"])
        self._trigger_restored = True
        state, model = kept["carried"], self._model
        if state is None or model is None or state["layout"] != self._layout():
            return  # inside an epoch the first block then says what is missing
        world = distributed_utils.get_data_parallel_world_size()
        rank = distributed_utils.get_data_parallel_rank() if world > 1 else 0
        if state["h"][0].size(0) % world != 0:
            return
        if world > 1:
            rows = torch.cat([*state["h"], *state["c"]], 1).chunk(world)
            self._ranks_state = _RanksState(state["block"], [h.size(1) for h in state["h"]], list(rows))
        device = next(model.parameters()).device
        # copies: as views into all ranks' rows they would lie unaligned, and products differ in their last bits
        h, c = ([s.chunk(world)[rank].clone().to(device) for s in state[name]] for name in "hc")
        model.decoder.carried(training=True).keep(state["block"], TextState(h, c))

    def _layout(self) -> list[Any]:
        drawn = self.args.variable_tokens_per_sample
        return [self.args.tokens_per_sample, self.args.seed if drawn else None]

    def _state_of_ranks(self) -> "_RanksState | None":
        """The state that leads to training's next block, gathered from all ranks; None before the first block."""
        newest = None if self._model is None else self._model.decoder.carried(training=True).newest()
        if newest is None:
            return None
        block, state = newest
        rows = torch.cat([*state.h, *state.c], 1)
        if distributed_utils.get_data_parallel_world_size() == 1:
            return _RanksState(block, [h.size(1) for h in state.h], [rows])
        gathered = distributed_utils.all_gather(rows.contiguous(), group=distributed_utils.get_data_parallel_group())
        return _RanksState(block, [h.size(1) for h in state.h], gathered)


class _RanksState(NamedTuple):
    """block: the next one's number. sizes: units of each layer. rows: each rank's h and c, (B, 2 sum H)."""

    block: int
    sizes: list[int]
    rows: list[torch.Tensor]

    def to_save(self) -> dict[str, Any]:
        """The block's number, and h and c of each layer for all rows, on the CPU."""
        parts = [part.clone() for part in torch.cat(self.rows).cpu().split(self.sizes * 2, 1)]
        n_layers = len(self.sizes)
        return {"block": self.block, "h": parts[:n_layers], "c": parts[n_layers:]}


def _check_options(args: Any, targets: list[str]) -> None:
    if str(args.sample_break_mode) != "none":
        raise ValueError(
            f"--sample-break-mode must be none where text is read in order, got {args.sample_break_mode}: "
            "use --task language_modeling for the others"
        )
    if targets != ["future"]:
        raise ValueError(f"g2lstm_language_modeling predicts the next token alone, got --*-target for {targets}")
    for name in ("add_bos_token", "pad_to_fixed_length", "pad_to_fixed_bsz"):
        if getattr(args, name):
            raise ValueError(f"{flag(name)} does not fit a text read in order: leave it out")
    if args.output_dictionary_size >= 0:
        raise ValueError("--output-dictionary-size is of --task language_modeling alone: leave it out")
    if str(args.shorten_method) != "none":
        raise ValueError("--shorten-method does not fit a text read in order: leave it out")
    if args.tokens_per_sample <= 0:
        raise ValueError(
            f"--tokens-per-sample must be > 0, got {args.tokens_per_sample}: fairseq-eval-lm takes off --context-window"
        )
