"""The noise, cell by cell, in plain integers: what every backend's noise is held against.

Written from the table that fixes the noise, not from the code under test, and in another manner: one cell at a
time, Python's integers, fractions and math.log, no arrays. `python tests/noise_table.py` writes golden_noise.json.

    key                    the 64-bit seed, low word then high word
    counter words 0 to 3   unit j; batch row b; time step t; 2 * layer + direction (0 forward, 1 backward)
    output words 0 to 3    u of i; u of f; m of i; m of f
    uniform                u = (w >> 8) 2^-24
    noise                  n = log(u + eps) - log(1 - u + eps), eps = 1e-3
    Bernoulli              m = 1 where w < floor(p 2^32)
    sharing                mask: the words of m taken at t = 0; sequence: all four taken at t = 0
"""

import json
import math
import os
import struct
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

GOLDEN_FILE = Path(__file__).with_name("golden_noise.json")
WORD = 1 << 32


def philox4x32_10(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Four output words of Philox4x32-10 (Salmon et al., SC'11)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, WORD)
        high1, low1 = divmod(0xCD9E8D57 * x2, WORD)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return [x0, x1, x2, x3]


@dataclass(frozen=True)
class Place:
    """One unit's input and forget gate at one step of one row, and how noise is drawn there."""

    seed: int
    layer: int
    direction: int
    t: int
    b: int
    j: int
    noise_prob: float
    sharing: str

    def words(self) -> list[int]:
        """The four words this place uses, after sharing."""
        t_of_u = 0 if self.sharing == "sequence" else self.t
        t_of_m = self.t if self.sharing == "step" else 0
        return self._words_at(t_of_u)[:2] + self._words_at(t_of_m)[2:]

    def _words_at(self, t: int) -> list[int]:
        unsigned = self.seed % 2**64
        return philox4x32_10(
            [self.j, self.b, t, 2 * self.layer + self.direction], (unsigned % WORD, unsigned // WORD)
        )

    def u24(self) -> list[int]:
        """2^24 u of i and f, exact."""
        return [word // 256 for word in self.words()[:2]]

    def m(self) -> list[int]:
        """The Bernoulli masks of i and f."""
        threshold = math.floor(Fraction(self.noise_prob) * WORD)
        return [int(word < threshold) for word in self.words()[2:]]

    def n(self) -> list[float]:
        """Logistic noise of i and f, in double precision."""
        us = [u24 / 2**24 for u24 in self.u24()]
        return [math.log(u + 1e-3) - math.log(1 - u + 1e-3) for u in us]

    def n_float32(self) -> list[float]:
        """Logistic noise of i and f, every operation rounded to single precision."""
        eps = single(1e-3)

        def log(x: float) -> float:
            return single(math.log(single(x)))

        us = [u24 / 2**24 for u24 in self.u24()]
        return [single(log(u + eps) - log(single(1 - u) + eps)) for u in us]

    def noise(self) -> list[float]:
        """m n of i and f, in double precision."""
        return [m * n for m, n in zip(self.m(), self.n(), strict=True)]


def single(x: float) -> float:
    """x rounded to single precision."""
    return struct.unpack("f", struct.pack("f", x))[0]


def places() -> list[Place]:
    """The places of the golden file: every extreme of every column, in cycles whose lengths share no factor."""
    seeds = cycle((0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -0x61C8864680B583EB))
    layers = cycle(((0, 0), (0, 1), (1, 0), (1, 1), (3, 0)))
    steps = cycle((0, 1, 2, 69, 0, 5, 2**31 + 5, 3, 0, 1023, 7))
    sharings = cycle(("step", "mask", "sequence"))
    rows = cycle((0, 1, 127, 2))
    units = cycle((0, 1, 255, 2, 1149, 3, 31, 4, 17, 63, 5, 6, 7))
    probabilities = cycle((0.2, 1.0, 0.5, 0.0, 0.9))
    columns = zip(seeds, layers, steps, sharings, rows, units, probabilities, strict=False)
    chosen = [
        Place(seed, layer, direction, t, b, j, p, sharing)
        for seed, (layer, direction), t, sharing, b, j, p in islice(columns, 60)
    ]
    # The ends of the comparison w < floor(p 2^32), and probabilities too small or too near 1 for single precision.
    word = Place(2024, 1, 1, 4, 3, 9, 0.0, "step").words()[2]
    for p in (word / WORD, (word + 1) / WORD, (word + 1.5) / WORD, 1e-10, 1 / WORD, 1 - 1 / WORD):
        chosen.append(Place(2024, 1, 1, 4, 3, 9, p, "step"))
    return chosen


def golden_row(place: Place) -> dict[str, object]:
    """One row of the golden file."""
    return asdict(place) | {
        "words": [f"{word:08x}" for word in place.words()],
        "u24": place.u24(),
        "m": place.m(),
        "n": place.n(),
        "n_float32": place.n_float32(),
    }


def read_golden() -> list[tuple[Place, dict[str, object]]]:
    """The golden file's rows, each with its place."""
    rows = json.loads(GOLDEN_FILE.read_text())
    return [(Place(**{k: row[k] for k in Place.__dataclass_fields__}), row) for row in rows]


def main() -> None:
    lines = ",\n".join(json.dumps(golden_row(place)) for place in places())
    unfinished = GOLDEN_FILE.with_suffix(".tmp")
    unfinished.write_text(f"[\n{lines}\n]\n")
    os.replace(unfinished, GOLDEN_FILE)


if __name__ == "__main__":
    main()
