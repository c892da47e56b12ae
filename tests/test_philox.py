"""The generator's known answers, the noise table's golden vectors, and where seeds come from."""

import os
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from noise_table import Place, golden_row, philox4x32_10, places, read_golden

from fairseq_g2lstm import G2LSTM, philox
from fairseq_g2lstm.philox import RANK_STRIDE, draw_seed, philox4x32, random_words, rank_seed
from fairseq_g2lstm.reference import bernoulli, gate_noise, logistic, uniform

# Philox4x32-10's published known answers: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
GOLDEN = read_golden()

# Each logarithm is at most 6.91, where neighbouring single-precision numbers lie 4.8e-7 apart: two logarithms one
# unit off in the last place and one rounding of their difference. Double precision: the same, 2^29 times finer.
N_TOLERANCE = {torch.float32: 1.5e-6, torch.float64: 3e-15}


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def indices(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    low, high = hex_words(key)
    words = philox4x32(np.array(hex_words(counter), dtype=np.uint64), low + (high << 32))
    assert words.tolist() == hex_words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_the_scalar_generator(counter, key, expected):
    assert philox4x32_10(hex_words(counter), tuple(hex_words(key))) == hex_words(expected)


def test_scalar_table_reproduces_the_golden_file():
    assert [golden_row(place) for place in places()] == [row for _, row in GOLDEN]


@pytest.mark.parametrize(("place", "row"), GOLDEN)
def test_words_uniforms_and_masks_are_the_golden_ones(place: Place, row):
    def words_at(t: int) -> torch.Tensor:
        words = random_words(
            place.seed, indices(t), indices(place.b), place.j + 1, place.layer, bool(place.direction)
        )
        assert words.shape == (4, 1, 1, place.j + 1)
        return words[:, 0, 0, place.j]

    u_words = words_at(0 if place.sharing == "sequence" else place.t)[:2]
    m_words = words_at(place.t if place.sharing == "step" else 0)[2:]
    assert [f"{word:08x}" for word in (*u_words.tolist(), *m_words.tolist())] == row["words"]
    assert bernoulli(m_words, place.noise_prob).int().tolist() == row["m"]
    for dtype, n in ((torch.float32, "n_float32"), (torch.float64, "n")):
        u = uniform(u_words, dtype)
        assert (u * 2**24).tolist() == row["u24"]
        torch.testing.assert_close(
            logistic(u), torch.tensor(row[n], dtype=dtype), rtol=0, atol=N_TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("place", "row"), GOLDEN)
def test_noise_is_the_golden_one(place: Place, row, dtype):
    noise = gate_noise(
        torch.tensor(place.seed),
        indices(place.t),
        indices(place.b),
        place.j + 1,
        noise_prob=place.noise_prob,
        noise_sharing=place.sharing,
        layer=place.layer,
        reverse=bool(place.direction),
        dtype=dtype,
    )
    n = row["n"] if dtype == torch.float64 else row["n_float32"]
    expected = torch.tensor([m * n for m, n in zip(row["m"], n, strict=True)], dtype=dtype)
    found = noise[0, 0, [place.j, 2 * place.j + 1]]
    assert noise.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=N_TOLERANCE[dtype])


def test_half_types_draw_float32_noise():
    args = (7, torch.arange(3), torch.arange(2), 5)
    single = gate_noise(*args, noise_prob=1.0)
    for dtype in (torch.bfloat16, torch.float16):
        noise = gate_noise(*args, noise_prob=1.0, dtype=dtype)
        assert noise.dtype == torch.float32
        assert torch.equal(noise, single)


def test_words_of_a_large_shape_are_those_of_its_cells():
    # More counters than the generator takes at a time, so that each cell's place in a later chunk is checked too.
    seed, n_steps, n_rows, n_units = -5, 9, 31, 123
    assert n_steps * n_rows * n_units > 2 * philox._CHUNK
    words = random_words(seed, torch.arange(n_steps), torch.arange(n_rows), n_units, 2, True)
    for t, b, j in [(0, 0, 0), (4, 9, 41), (4, 9, 42), (8, 13, 122), (8, 30, 121), (8, 30, 122)]:
        assert words[:, t, b, j].tolist() == Place(seed, 2, 1, t, b, j, 1.0, "step").words()


def test_noise_of_some_steps_and_rows_is_that_part_of_all():
    words = random_words(11, torch.arange(6), torch.arange(5), 4, 0, False)
    steps, rows = indices(5, 0, 3), indices(4, 1)
    part = random_words(11, steps, rows, 4, 0, False)
    assert torch.equal(part, words[:, steps][:, :, rows])


def test_draw_seed_is_one_int64_draw_from_torchs_default_generator():
    torch.manual_seed(31)
    expected = [torch.empty((), dtype=torch.int64).random_() for _ in range(3)]
    after = torch.get_rng_state()
    torch.manual_seed(31)
    seeds = [draw_seed() for _ in range(3)]
    assert seeds == expected
    assert torch.equal(torch.get_rng_state(), after)
    for seed in seeds:
        assert (seed.dtype, seed.shape, seed.device.type) == (torch.int64, (), "cpu")


def test_draw_seed_stays_on_the_cpu_under_another_default_device():
    torch.manual_seed(31)
    expected = draw_seed()
    torch.manual_seed(31)
    with torch.device("meta"):
        seed = draw_seed()
        share = rank_seed(expected, 1)
    assert seed.device.type == share.device.type == "cpu"
    assert seed == expected


@pytest.mark.parametrize("seed", [0, 5, -1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("rank", [0, 1, 2, 7, 4095])
def test_rank_seed_adds_the_ranks_share_modulo_two_to_the_64(seed, rank):
    found = rank_seed(torch.tensor(seed), rank)
    assert (found.dtype, found.shape) == (torch.int64, ())
    assert (int(found) - seed - rank * 0x9E3779B97F4A7C15) % 2**64 == 0
    assert RANK_STRIDE == 0x9E3779B97F4A7C15


def test_single_process_seed_has_no_share_added(tmp_path):
    torch.manual_seed(31)
    alone = draw_seed()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        torch.manual_seed(31)
        assert draw_seed() == alone
    finally:
        torch.distributed.destroy_process_group()


SECOND_RANK = """
import sys, torch
from fairseq_g2lstm.philox import draw_seed
store = torch.distributed.FileStore(sys.argv[1], 2)
torch.distributed.init_process_group("gloo", store=store, rank=1, world_size=2)
torch.manual_seed(31)
print(int(draw_seed()))
torch.distributed.destroy_process_group()
"""


def test_each_of_two_real_ranks_adds_its_share(tmp_path):
    torch.manual_seed(31)
    alone = int(draw_seed())
    path = str(tmp_path / "store")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "OMP_NUM_THREADS": "1"}
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_RANK, path], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        store = torch.distributed.FileStore(path, 2)
        minute = timedelta(seconds=60)  # where the other does not come
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=minute)
        try:
            torch.manual_seed(31)
            first_seed = int(draw_seed())
        finally:
            torch.distributed.destroy_process_group()
        out, _ = second.communicate(timeout=60)
    finally:
        second.kill()
    assert second.returncode == 0
    assert first_seed == alone
    assert (int(out) - alone) % 2**64 == RANK_STRIDE


def test_module_on_another_rank_draws_the_noise_of_its_rank_seed(monkeypatch):
    lstm = G2LSTM(3, 4, noise_prob=1.0)
    x = torch.randn(5, 2, 3)

    def forward(seed: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(31)
        with monkeypatch.context() as patch:
            if seed is not None:
                patch.setattr("fairseq_g2lstm.modules.draw_seed", lambda: seed)
            return lstm(x)[0]

    torch.manual_seed(31)
    alone = draw_seed()
    first = forward(None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    fourth = forward(None)
    assert torch.equal(fourth, forward(rank_seed(alone, 3)))
    assert not torch.allclose(first, fourth)
