"""The noise's distribution, its independence, and what each way of sharing shares.

Every statistical test here bounds its false alarms rigorously: a perfect generator would fail one of them for at
most one key in a million (FALSE_ALARM). There are fewer than 400 of them and the keys are fixed, so that the whole
file would have failed at first sight with a probability below 4e-4, and has not. Beside each test stands its power:
the same test must refuse a law, or a dependence, that is slightly wrong.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fairseq_g2lstm.philox import random_words, rank_seed
from fairseq_g2lstm.reference import bernoulli, gate_noise, logistic, uniform
from fairseq_g2lstm.settings import SHARINGS

FALSE_ALARM = 1e-6
LOG_ODDS = math.log(2 / FALSE_ALARM)
SEED = 20180606
STEPS, ROWS, UNITS = torch.arange(40), torch.arange(50), 64
WORDS = ("u of i", "u of f", "m of i", "m of f")


def words_of(seed: Tensor | int = SEED, layer: int = 0, reverse: bool = False) -> Tensor:
    """(4, 40, 50, 64): 128,000 counters."""
    return random_words(seed, STEPS, ROWS, UNITS, layer, reverse)


def mean_is(samples: Tensor, mean: float, variance: float, bound: float) -> bool:
    """Bernstein's inequality: independent samples, |sample - mean| <= bound, stray no further than this."""
    n = samples.numel()
    third = LOG_ODDS * bound / 3
    threshold = (third + math.sqrt(third**2 + 2 * n * LOG_ODDS * variance)) / n
    return abs(samples.double().mean().item() - mean) <= threshold


def follows(samples: Tensor, cdf: Tensor) -> bool:
    """Kolmogorov and Smirnov's test, with Massart's bound P(D > d) <= 2 exp(-2 n d^2); cdf holds samples' F."""
    n = samples.numel()
    sorted_cdf = cdf.double().reshape(-1)[samples.reshape(-1).argsort()]
    below = torch.arange(n, dtype=torch.float64) / n
    distance = torch.maximum(sorted_cdf - below, below + 1 / n - sorted_cdf).max().item()
    return distance <= math.sqrt(LOG_ODDS / (2 * n))


def are_uncorrelated(x: Tensor, y: Tensor) -> bool:
    """Whether uniforms x and y show no correlation: (x - 1/2)(y - 1/2) has mean 0, variance 1/144, bound 1/4."""
    return mean_is((x.double() - 0.5) * (y.double() - 0.5), 0.0, 1 / 144, 0.25)


def are_independent(x: Tensor, y: Tensor) -> bool:
    """Whether the pairs of uniforms x and y fill each cell of an 8 by 8 grid, 64 means tested together, and show
    no correlation. Half of the false alarms go to the correlation, the other half is divided among the cells."""
    cells = ((x * 8).long() * 8 + (y * 8).long()).reshape(-1)
    share = torch.bincount(cells, minlength=64).double() / cells.numel()
    p, n, log_odds = 1 / 64, cells.numel(), math.log(4 * 64 / FALSE_ALARM)
    threshold = (log_odds / 3 + math.sqrt((log_odds / 3) ** 2 + 2 * n * log_odds * p * (1 - p))) / n
    return bool((share - p).abs().max() <= threshold) and are_uncorrelated(x, y)


def noise_cdf(n: Tensor) -> Tensor:
    """The exact law of n = log(u + eps) - log(1 - u + eps): solved for u, u = sigmoid(n) (1 + 2 eps) - eps."""
    return torch.sigmoid(n.double()) * (1 + 2e-3) - 1e-3


# The law of each cell's noise


@pytest.mark.parametrize("word", range(4), ids=WORDS)
def test_every_bit_of_every_word_is_balanced(word):
    words = words_of()[word]
    for bit in range(32):
        assert mean_is((words >> bit) & 1, 0.5, 0.25, 0.5), bit


def test_balance_test_refuses_a_coin_that_is_one_in_a_hundred_off():
    assert not mean_is((uniform(words_of()[0], torch.float64) < 0.51).int(), 0.5, 0.25, 0.5)


@pytest.mark.parametrize("word", range(4), ids=WORDS)
def test_uniforms_are_uniform(word):
    u = uniform(words_of()[word], torch.float64)
    assert follows(u, u)
    assert u.min() >= 0.0 and u.max() < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_reach_zero_and_stay_below_one(dtype):
    u = uniform(torch.tensor([0, 255, 256, 2**32 - 1]), dtype)
    assert u.tolist() == [0.0, 0.0, 2.0**-24, 1.0 - 2.0**-24]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", range(2), ids=("input", "forget"))
def test_noise_follows_the_logistic_law_cut_off_by_eps(gate, dtype):
    n = gate_noise(SEED, STEPS, ROWS, UNITS, noise_prob=1.0, dtype=dtype)[..., gate * UNITS : (gate + 1) * UNITS]
    assert follows(n, noise_cdf(n))
    # The ends of the support, at u = 0 and just below u = 1.
    assert n.abs().max() <= math.log(1.001 / 0.001) + 1e-5


def test_noise_reaches_the_ends_of_its_support():
    ends = logistic(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([-1, 0, 1], dtype=torch.float64) * math.log(1001))


def wrong_laws() -> dict[str, Tensor]:
    u = uniform(words_of()[0], torch.float64).clamp(min=1e-9)
    logistic_noise = torch.log(u) - torch.log(1 - u)
    return {
        "Gumbel": -torch.log(-torch.log(u)),
        "normal of the same variance": torch.special.ndtri(u) * math.pi / math.sqrt(3),
        "logistic divided by 0.95": logistic_noise / 0.95,
        "logistic moved by 0.05": logistic_noise + 0.05,
        "m n with p = 0.98": logistic_noise * bernoulli(words_of()[2], 0.98),
    }


@pytest.mark.parametrize("law", wrong_laws().keys())
def test_law_test_refuses_wrong_laws(law):
    n = wrong_laws()[law]
    assert not follows(n, noise_cdf(n).clamp(0, 1))


@pytest.mark.parametrize("word", [2, 3], ids=WORDS[2:])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_masks_are_bernoulli_and_the_test_refuses_p_off_by_a_hundredth(p, word):
    m = bernoulli(words_of()[word], p)
    assert mean_is(m, p, p * (1 - p), 1.0)
    for wrong in (p - 0.01, p + 0.01):
        assert not mean_is(m, wrong, wrong * (1 - wrong), 1.0)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_probability_zero_never_adds_noise_and_probability_one_always(sharing):
    options = {"noise_sharing": sharing, "layer": 1}
    never = gate_noise(SEED, STEPS, ROWS, UNITS, noise_prob=0.0, **options)
    always = gate_noise(SEED, STEPS, ROWS, UNITS, noise_prob=1.0, **options)
    assert never.shape == always.shape == (40, 50, 128)
    assert not never.any()
    # n itself is 0 at u = 1/2 alone, which 24 bits hit once in 16 million draws, and not with this seed.
    assert always.all()


def test_masks_compare_all_32_bits():
    words = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
    assert bernoulli(words, 0.0).tolist() == [False] * 5
    assert bernoulli(words, 2.0**-32).tolist() == [True, False, False, False, False]
    assert bernoulli(words, 0.5).tolist() == [True, True, False, False, False]
    assert bernoulli(words, 1 - 2.0**-32).tolist() == [True, True, True, True, False]
    assert bernoulli(words, 1.0).tolist() == [True] * 5


# Independence


def other_streams() -> dict[str, Tensor]:
    """Words that must have nothing in common with layer 0's forward direction on rank 0."""
    seed = torch.tensor(SEED)
    return {
        "backward direction": words_of(reverse=True),
        "layer 1": words_of(layer=1),
        "layer 1 backward": words_of(layer=1, reverse=True),
        "layer 2": words_of(layer=2),
        "rank 1": words_of(rank_seed(seed, 1)),
        "rank 2": words_of(rank_seed(seed, 2)),
        "rank 1, layer 1": words_of(rank_seed(seed, 1), layer=1),
        "next seed": words_of(seed + 1),
        "seed with another high word": words_of(seed + 2**32),
    }


def neighbours(words: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Words paired with the same words one place on; each word is in one pair, so that pairs are independent."""
    return {
        "steps": (words[:, 0::2], words[:, 1::2]),
        "rows": (words[:, :, 0::2], words[:, :, 1::2]),
        "units": (words[..., 0::2], words[..., 1::2]),
        "step and row": (words[:, 0::2, 0::2], words[:, 1::2, 1::2]),
        "row and unit": (words[:, :, 0::2, 0::2], words[:, :, 1::2, 1::2]),
        "row and unit, crossed": (words[:, :, 0::2, 1::2], words[:, :, 1::2, 0::2]),
    }


@pytest.mark.parametrize("stream", other_streams().keys())
def test_layers_directions_and_ranks_are_independent(stream):
    here = uniform(words_of(), torch.float64)
    there = uniform(other_streams()[stream], torch.float64)
    for word in range(4):
        assert are_independent(here[word], there[word]), WORDS[word]


@pytest.mark.parametrize("axis", neighbours(torch.empty(4, 2, 2, 2)).keys())
def test_neighbouring_steps_rows_and_units_are_independent(axis):
    here, there = neighbours(uniform(words_of(), torch.float64))[axis]
    for word in range(4):
        assert are_independent(here[word], there[word]), WORDS[word]


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations(range(4), 2)), ids=lambda word: WORDS[word].replace(" ", "_")
)
def test_input_and_forget_gates_and_uniforms_and_masks_are_independent(one, other):
    u = uniform(words_of(), torch.float64)
    assert are_independent(u[one], u[other])


def test_no_two_places_share_their_noise():
    # Ten streams of 128,000 counters: 64 random bits each collide with a probability of 4e-8.
    words = torch.cat([words_of().reshape(4, -1), *(w.reshape(4, -1) for w in other_streams().values())], dim=1)
    for first, second in ((0, 1), (2, 3)):
        # Signed 64-bit integers hold the two words' bits; the order is of no interest.
        both = (words[first] << 32) | words[second]
        assert both.unique().numel() == both.numel()


def test_independence_test_refuses_weak_dependence():
    u, v = uniform(words_of(), torch.float64)[:2]
    shared = uniform(words_of()[2], torch.float64) < 0.03
    assert not are_independent(u, torch.where(shared, u, v))
    # Dependent but uncorrelated: the grid's part of the test.
    folded = (2 * u - 1).abs()
    assert are_uncorrelated(u, folded)
    assert not are_independent(u, folded)


# Sharing


def noise_and_mask(sharing: str, steps: Tensor = STEPS, **place) -> tuple[Tensor, Tensor]:
    """n, from p = 1, and m, from where p = 1/2 leaves noise."""
    args = (SEED, steps, ROWS, UNITS)
    n = gate_noise(*args, noise_prob=1.0, noise_sharing=sharing, **place)
    half = gate_noise(*args, noise_prob=0.5, noise_sharing=sharing, **place)
    m = half != 0
    assert torch.equal(half, m * n)
    return n, m


def held(x: Tensor) -> Tensor:
    """The first step's values at every step."""
    return x[:1].expand_as(x)


@pytest.mark.parametrize("place", [{}, {"layer": 2, "reverse": True}], ids=str)
def test_mask_sharing_holds_the_first_steps_mask_and_draws_uniforms_anew(place):
    n_step, m_step = noise_and_mask("step", **place)
    n, m = noise_and_mask("mask", **place)
    assert torch.equal(n, n_step)
    assert torch.equal(m, held(m_step))
    assert not torch.equal(n, held(n))
    assert not torch.equal(m_step, held(m_step))


@pytest.mark.parametrize("place", [{}, {"layer": 2, "reverse": True}], ids=str)
def test_sequence_sharing_holds_the_first_steps_mask_and_uniforms(place):
    n_step, m_step = noise_and_mask("step", **place)
    n, m = noise_and_mask("sequence", **place)
    assert torch.equal(n, held(n_step))
    assert torch.equal(m, held(m_step))


@pytest.mark.parametrize("sharing", ["mask", "sequence"])
def test_what_is_held_is_step_zeros_even_if_step_zero_is_not_asked_for(sharing):
    n, m = noise_and_mask(sharing)
    n_late, m_late = noise_and_mask(sharing, steps=STEPS[7:12])
    assert torch.equal(m_late, m[7:12])
    assert torch.equal(n_late, n[7:12])


@pytest.mark.parametrize("sharing", ["mask", "sequence"])
def test_sharing_over_steps_shares_nothing_over_rows_units_and_gates(sharing):
    _, m = noise_and_mask(sharing)
    m_i, m_f = m[0].split(UNITS, dim=1)
    # Fair coins of independent places agree half of the time.
    pairs = ((m_i[0::2], m_i[1::2]), (m_i[:, 0::2], m_i[:, 1::2]), (m_f[0::2], m_f[1::2]), (m_i, m_f))
    for here, there in pairs:
        assert mean_is(here == there, 0.5, 0.25, 0.5)
    assert not mean_is(m_i == m_i, 0.5, 0.25, 0.5)
