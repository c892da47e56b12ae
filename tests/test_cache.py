"""The continuous cache against its definition, computed word by word, and under fairseq-eval-lm."""

import math
from pathlib import Path

import pytest
import torch
from lm_runs import eval_lm, preprocess, train_lm, write_text
from test_language_model import N_WORDS as WORDS_OF_MODEL
from test_language_model import build
from torch import Tensor

from fairseq_g2lstm.models.cache import CacheSettings, attend, mix

N_WORDS = 11


def by_definition(outputs: Tensor, tokens: Tensor, probs: Tensor, settings: CacheSettings) -> Tensor:
    """Mixed probabilities (T, V) of one row; outputs (T, H), tokens (T,) read, probs (T, V)."""
    mixed = probs.clone()
    for t in range(len(outputs)):
        seen = range(max(0, t - settings.size), t)
        if not len(seen):
            continue
        scores = [math.exp(settings.theta * float(outputs[t] @ outputs[i])) for i in seen]
        mixed[t] *= 1 - settings.weight
        for i, score in zip(seen, scores, strict=True):
            mixed[t, tokens[i + 1]] += settings.weight * score / sum(scores)
    return mixed


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("edges", [[], [1], [5, 6, 11]])
def test_it_mixes_as_defined_whatever_the_blocks(size: int, edges: list[int]):
    generator = torch.Generator().manual_seed(2)
    settings = CacheSettings(size, 0.7, 0.3)
    outputs = torch.randn(3, 16, 5, generator=generator)
    tokens = torch.randint(N_WORDS, (3, 16), generator=generator)
    probs = torch.randn(3, 16, N_WORDS, generator=generator).softmax(-1)
    keys = key_tokens = None
    found = []
    for a, b in zip([0, *edges], [*edges, 16], strict=True):
        attention, keys, key_tokens = attend(outputs[:, a:b], tokens[:, a:b], keys, key_tokens, settings)
        found.append(mix(probs[:, a:b].log(), attention, settings.weight).exp())
    expected = [by_definition(outputs[row], tokens[row], probs[row], settings) for row in range(3)]
    torch.testing.assert_close(torch.cat(found, 1), torch.stack(expected))


def test_probabilities_sum_to_one():
    outputs, tokens = torch.randn(2, 9, 4), torch.randint(N_WORDS, (2, 9))
    probs = torch.randn(2, 9, N_WORDS).softmax(-1)
    attention, _, _ = attend(outputs, tokens, None, None, CacheSettings(5, 1.0, 0.4))
    torch.testing.assert_close(mix(probs.log(), attention, 0.4).exp().sum(-1), torch.ones(2, 9))


def test_a_very_unlikely_word_keeps_its_score():
    model = build().eval()
    model.decoder.cache = CacheSettings(5, 1.0, 0.4)
    logits = torch.zeros(1, 3, WORDS_OF_MODEL)
    logits[..., 0] = 120.0
    extra = model(torch.tensor([[5, 6, 7]]), block=0)[1]
    found = model.get_normalized_probs((logits, extra), log_probs=True).detach()
    # the cache is empty at first, then has word 6 alone; word 9 it never has
    expected = torch.tensor([-120.0, -120.0 + math.log(0.6), -120.0 + math.log(0.6)])
    torch.testing.assert_close(found[0, :, 9], expected)
    assert found[0, 1, 6] == pytest.approx(math.log(0.4))
    torch.testing.assert_close(model.get_normalized_probs((logits, extra), log_probs=False), found.exp())


def test_no_word_is_used_before_it_is_read():
    outputs, tokens = torch.randn(1, 6, 4), torch.randint(N_WORDS, (1, 6))
    other = tokens.clone()
    other[0, 4:] = (tokens[0, 4:] + 1) % N_WORDS
    log_probs = torch.full((1, 6, N_WORDS), -math.log(N_WORDS))
    settings = CacheSettings(9, 1.0, 0.4)
    one, two = (mix(log_probs, attend(outputs, t, None, None, settings)[0], 0.4) for t in (tokens, other))
    assert torch.equal(one[:, :4], two[:, :4]) and not torch.equal(one[:, 4:], two[:, 4:])


def test_half_a_block_is_refused_with_a_sentence():
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    attention, _, _ = attend(torch.randn(1, 6, 4), tokens, None, None, CacheSettings(3, 1, 1))
    with pytest.raises(ValueError, match="leave out --softmax-batch"):
        mix(torch.rand(1, 3, N_WORDS), attention, 0.5)


@pytest.fixture(scope="module")
def repetitive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A test text that repeats a line which training has not seen, and a model of the tiny text."""
    folder = tmp_path_factory.mktemp("repetitive")
    write_text(folder, {"train": 200, "valid": 20})
    (folder / "test.txt").write_text("w9 w2 w2 w13 w0 w0 w4\n" * 30)
    data = preprocess(folder)
    return data, train_lm(data, folder / "run", "--max-epoch", 2, "--dropout", 0) / "checkpoint_last.pt"


CACHE = ["--cache-size", 50, "--cache-theta", 1.0, "--cache-lambda", 0.3]


def test_it_helps_where_text_repeats(repetitive: tuple[Path, Path]):
    without, within = eval_lm(*repetitive), eval_lm(*repetitive, *CACHE)
    assert within["perplexity"] < 0.8 * without["perplexity"]


def test_with_it_too_perplexity_is_the_same_for_any_block_length(repetitive: tuple[Path, Path]):
    losses = [float(eval_lm(*repetitive, *CACHE, "--tokens-per-sample", n)["loss"]) for n in (1, 7, 500)]
    # sums of 240 float32 log-probabilities
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("options", [("--cache-theta", 1), ("--cache-lambda", 0.3)])
def test_its_options_without_its_size_are_refused_with_a_sentence(repetitive: tuple[Path, Path], options):
    with pytest.raises(ValueError, match="have no effect without a cache: give --cache-size too"):
        eval_lm(*repetitive, *options)


def test_softmax_in_pieces_is_refused_with_a_sentence(repetitive: tuple[Path, Path]):
    with pytest.raises(ValueError, match="leave out --softmax-batch"):
        eval_lm(*repetitive, *CACHE, "--softmax-batch", 3)


def test_the_mixture_with_half_precision_is_that_of_the_same_numbers():
    outputs, tokens = torch.randn(2, 5, 3), torch.randint(N_WORDS, (2, 5))
    attention = attend(outputs, tokens, None, None, CacheSettings(size=4))[0]
    half = torch.randn(2, 5, N_WORDS).log_softmax(-1).half()
    assert torch.equal(mix(half, attention, 0.4), mix(half.float(), attention, 0.4))
