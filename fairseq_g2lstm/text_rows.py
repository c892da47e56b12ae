"""A text cut into rows that are read side by side, block after block, so that hidden state can be carried."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils, iterators

_SHORTEST_BLOCK = 5  # of blocks of drawn lengths
_LENGTH_SPREAD = 5  # standard deviation of those, tokens
_HALVED_SHARE = 0.05  # of them are half as long on average


class TokenStream(FairseqDataset):
    """The tokens of all sentences of a split one after another, as int32 in memory; `RowBlocks` has batches of them.

    Args:
        sentences: fairseq's indexed dataset, with the end of sentence in each.
    """

    def __init__(self, sentences: Any) -> None:
        super().__init__()
        parts = [np.asarray(sentences[i], dtype=np.int32) for i in range(len(sentences))]
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.tokens)


def drawn_lengths(n_steps: int, mean: int, seed: int, epoch: int) -> list[int]:
    """Lengths of blocks that vary from one to the next, as in AWD-LSTM: a pure function of the arguments.

    Each is drawn from a normal distribution around the mean, one in twenty around half of it, and at least 5; the
    last is what is left.

    Args:
        n_steps: the lengths' sum.
        mean: > 0, tokens.
    """
    lengths = []
    with data_utils.numpy_seed(seed, epoch):
        left = n_steps
        while left > 0:
            centre = mean / 2 if np.random.random() < _HALVED_SHARE else mean
            lengths.append(min(max(_SHORTEST_BLOCK, int(np.random.normal(centre, _LENGTH_SPREAD))), left))
            left -= lengths[-1]
    return lengths


class RowBlocks(torch.utils.data.Dataset):
    """A text in R rows, each a contiguous piece of it, and every row in blocks; item k is block k of some rows.

    The rows differ by a token at most and leave none out; shard s of S has the rows s R / S to (s + 1) R / S - 1. Each
    token is predicted once, from the one before it in the text, the first from an end of sentence.

    Args:
        tokens: (n,) the text.
        n_rows: rows of this shard, R / S > 0.
        block_length: tokens of a row in a block, > 0.
        pad: the padding's number, at the end of the shorter rows.
        eos: the end of sentence's number.
        n_shards: S. shard: s.
        context: tokens before its own that each row reads first without being asked for them, where there are so many.
        draw: None for blocks of `block_length`, or (seed, epoch) to draw their lengths around it.

    Raises:
        ValueError: the text has fewer tokens than rows.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        n_rows: int,
        block_length: int,
        pad: int,
        eos: int,
        n_shards: int = 1,
        shard: int = 0,
        context: int = 0,
        draw: tuple[int, int] | None = None,
    ) -> None:
        all_rows = n_rows * n_shards
        if len(tokens) < all_rows:
            raise ValueError(
                f"the text has {len(tokens)} tokens, fewer than the {all_rows} rows it is to be read in: "
                "lower --batch-size or --batch-size-valid"
            )
        base, longer = divmod(len(tokens), all_rows)
        row = np.arange(all_rows + 1)
        starts = base * row + np.minimum(row, longer)
        firsts = np.maximum(starts[:-1] - context, 0)
        n_steps = int((starts[1:] - firsts).max())
        mine = slice(shard * n_rows, (shard + 1) * n_rows)
        self._tokens, self._pad, self._eos = tokens, pad, eos
        self._rows = row[:-1][mine]
        self._first, self._start, self._end = firsts[mine], starts[:-1][mine], starts[1:][mine]
        self._mean_length = block_length
        self._drawn = draw is not None
        if draw is None:
            lengths = [block_length] * (n_steps // block_length)
            lengths += [n_steps % block_length] if n_steps % block_length else []
        else:
            lengths = drawn_lengths(n_steps, block_length, *draw)
        self._edges = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self._edges) - 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[block] for block in range(len(self)))

    def __getitem__(self, block: int) -> dict[str, Any]:
        begin, end = self._edges[block], self._edges[block + 1]
        position = self._first[:, None] + np.arange(begin, end)
        inside = position < self._end[:, None]
        last = len(self._tokens) - 1
        source = np.where(position > 0, self._tokens[np.clip(position - 1, 0, last)], self._eos)
        source = np.where(inside, source, self._pad)
        asked = inside & (position >= self._start[:, None])
        target = np.where(asked, self._tokens[np.minimum(position, last)], self._pad)
        sample: dict[str, Any] = {
            "id": torch.from_numpy(self._rows.astype(np.int64)),
            "nsentences": len(self._rows),
            "ntokens": int(asked.sum()),
            "net_input": {
                "src_tokens": torch.from_numpy(source.astype(np.int64)),
                "block": block,
            },
            "target": torch.from_numpy(target.astype(np.int64)),
        }
        if not inside.all():
            sample["net_input"]["src_lengths"] = torch.from_numpy(inside.sum(1))
        if not np.array_equal(self._first, self._start):
            sample["start_indices"] = np.clip(self._start - self._first - begin, 0, end - begin).tolist()
        if self._drawn:
            sample["length_ratio"] = float(end - begin) / self._mean_length
        return sample


def block_iterator(
    blocks: RowBlocks, epoch: int, num_workers: int, buffer_size: int, skip_last: bool
) -> iterators.EpochBatchIterator:
    """fairseq's iterator over the blocks in their order, which checkpoints and goes on inside an epoch."""
    return iterators.EpochBatchIterator(
        dataset=blocks,
        collate_fn=_only,
        batch_sampler=[[block] for block in range(len(blocks))],
        num_workers=num_workers,
        epoch=epoch,
        buffer_size=buffer_size,
        disable_shuffling=True,
        skip_remainder_batch=skip_last,
        persistent_workers=False,
    )


def _only(samples: list[dict[str, Any]]) -> dict[str, Any]:
    (sample,) = samples
    return sample


def rows_within(max_rows: int | None, max_tokens: int | None, block_length: int) -> int:
    """How many rows a batch has: `max_rows`, or as many as keep a block within `max_tokens`.

    Raises:
        ValueError: neither is given, or not one row fits.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"--batch-size must be >= 1, got {max_rows}")
    rows = math.inf if max_rows is None else max_rows
    if max_tokens is not None:
        rows = min(rows, max_tokens // block_length)
    if rows is math.inf:
        raise ValueError("the number of rows of text must be given: use --batch-size")
    if rows < 1:
        raise ValueError(
            f"--max-tokens {max_tokens} must be at least --tokens-per-sample {block_length}, one row of a block"
        )
    return int(rows)
