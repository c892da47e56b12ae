"""The rows and blocks that g2lstm_language_modeling reads a text in."""

import numpy as np
import pytest
import torch

from fairseq_g2lstm.text_rows import RowBlocks, block_iterator, drawn_lengths, rows_within

PAD, EOS = 1, 2


def blocks_of(n_tokens: int, n_rows: int, block_length: int, **options) -> RowBlocks:
    return RowBlocks(np.arange(10, 10 + n_tokens, dtype=np.int32), n_rows, block_length, PAD, EOS, **options)


def rows_of(blocks: RowBlocks, key: str) -> list[list[int]]:
    parts = [b["target"] if key == "target" else b["net_input"][key] for b in blocks]
    return torch.cat(parts, 1).tolist()


@pytest.mark.parametrize("n_tokens", [7, 12, 13, 20])
@pytest.mark.parametrize(("n_rows", "n_shards"), [(1, 1), (3, 1), (2, 2), (1, 7)])
@pytest.mark.parametrize("block_length", [1, 4, 50])
def test_every_token_is_asked_for_once_and_in_order(n_tokens, n_rows, n_shards, block_length):
    asked = []
    for shard in range(n_shards):
        blocks = blocks_of(n_tokens, n_rows, block_length, n_shards=n_shards, shard=shard)
        for row in rows_of(blocks, "target"):
            asked += [token for token in row if token != PAD]
    assert asked == list(range(10, 10 + n_tokens))


def test_each_token_is_predicted_from_the_one_before_it_in_the_text():
    blocks = blocks_of(8, 2, 3)
    assert rows_of(blocks, "src_tokens") == [[EOS, 10, 11, 12], [13, 14, 15, 16]]
    assert rows_of(blocks, "target") == [[10, 11, 12, 13], [14, 15, 16, 17]]


def test_rows_of_unequal_length_are_padded_at_their_end():
    blocks = blocks_of(7, 2, 3)
    assert rows_of(blocks, "target") == [[10, 11, 12, 13], [14, 15, 16, PAD]]
    assert "src_lengths" not in blocks[0]["net_input"]  # which spares a GPU a wait in each full block
    assert blocks[1]["net_input"]["src_lengths"].tolist() == [1, 0]
    assert [b["ntokens"] for b in blocks] == [6, 1]


def test_all_shards_have_the_same_number_of_blocks_and_rows():
    # 13 tokens in 4 rows: the first is longer and would alone fill a block more
    shards = [blocks_of(13, 2, 3, n_shards=2, shard=shard) for shard in range(2)]
    assert [len(blocks) for blocks in shards] == [2, 2]
    assert [b["net_input"]["src_tokens"].shape for b in shards[1]] == [(2, 3), (2, 1)]


def test_the_rows_of_two_shards_are_those_of_one_twice_as_wide():
    wide = rows_of(blocks_of(23, 4, 5), "src_tokens")
    halves = [rows_of(blocks_of(23, 2, 5, n_shards=2, shard=shard), "src_tokens") for shard in range(2)]
    assert halves[0] + halves[1] == wide


def test_a_context_window_is_read_and_not_asked_for():
    blocks = blocks_of(8, 2, 3, context=2)
    assert rows_of(blocks, "src_tokens") == [[EOS, 10, 11, 12, PAD, PAD], [11, 12, 13, 14, 15, 16]]
    assert rows_of(blocks, "target") == [[10, 11, 12, 13, PAD, PAD], [PAD, PAD, 14, 15, 16, 17]]
    assert [b["start_indices"] for b in blocks] == [[0, 2], [0, 0]]
    assert sum(b["ntokens"] for b in blocks) == 8


def test_drawn_lengths_fill_the_text_and_depend_on_seed_and_epoch_alone():
    lengths = drawn_lengths(10_000, 70, 1, 1)
    assert sum(lengths) == 10_000 and min(lengths[:-1]) >= 5
    assert lengths == drawn_lengths(10_000, 70, 1, 1)
    assert lengths != drawn_lengths(10_000, 70, 1, 2) and lengths != drawn_lengths(10_000, 70, 2, 1)


def test_drawn_lengths_have_the_recipes_distribution():
    lengths = np.array(drawn_lengths(2_000_000, 70, 7, 3)[:-1])
    halved = lengths < 52  # 3.6 standard deviations from either centre
    # about 29,200 blocks: five standard deviations of the share 0.05 are 0.0064
    assert abs(halved.mean() - 0.05) < 0.0064
    # int() rounds towards zero, half a token on average; five standard errors of the mean are 0.15
    assert abs(lengths[~halved].mean() - 69.5) < 0.15
    assert abs(lengths[~halved].std() - 5.0) < 0.12


def test_blocks_of_drawn_lengths_say_their_share_of_the_mean():
    blocks = blocks_of(1000, 2, 20, draw=(1, 1))
    assert {b["length_ratio"] for b in blocks} == {b["target"].size(1) / 20 for b in blocks}
    assert "length_ratio" not in blocks_of(1000, 2, 20)[0]


def test_the_iterator_goes_on_inside_an_epoch_where_it_was_saved():
    def iterator():
        return block_iterator(blocks_of(40, 2, 3), 1, num_workers=0, buffer_size=0, skip_last=False)

    saved = iterator()
    epoch = saved.next_epoch_itr(shuffle=True)
    seen = [next(epoch)["net_input"]["block"] for _ in range(3)]
    resumed = iterator()
    resumed.load_state_dict(saved.state_dict())
    seen += [sample["net_input"]["block"] for sample in resumed.next_epoch_itr(shuffle=True)]
    assert seen == list(range(7))


def test_more_rows_than_tokens_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="the text has 3 tokens, fewer than the 4 rows .*--batch-size"):
        blocks_of(3, 2, 5, n_shards=2)


@pytest.mark.parametrize(("rows", "tokens", "found"), [(20, None, 20), (None, 100, 5), (3, 100, 3), (30, 100, 5)])
def test_rows_keep_to_both_limits(rows, tokens, found):
    assert rows_within(rows, tokens, 20) == found


def test_without_any_limit_the_number_of_rows_is_asked_for():
    with pytest.raises(ValueError, match="use --batch-size"):
        rows_within(None, None, 20)
    with pytest.raises(ValueError, match="--max-tokens 19 must be at least --tokens-per-sample 20"):
        rows_within(None, 19, 20)
    with pytest.raises(ValueError, match="--batch-size must be >= 1, got 0"):
        rows_within(0, None, 20)
