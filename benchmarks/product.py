"""Speed and accuracy of products of float32 matrices, `torch.ops.g2lstm.matmul` beside torch's own.

The operator makes large products itself on AMX, of products of bfloat16, and on processors that are not Intel's;
elsewhere, and below the size from which that pays, it is torch's product. The logits of a model go by it, and so do the
layer's products over all time steps. Both are asked for float32's precision, or may be allowed to round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.comparison import write_json, write_results
from benchmarks.tables import product_markdown
from benchmarks.timing import ratio, time_interleaved
from examples.common.errors import UserError
from fairseq_g2lstm.tasks.matmul_precision import float32_matmul_precision

Result = dict[str, Any]
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "g2lstm": lambda a, b: torch.ops.g2lstm.matmul(a, b, None),
    "torch": torch.matmul,
}


class Sizes(NamedTuple):
    """Of a product: (rows, depth) times (depth, columns)."""

    rows: int
    depth: int
    columns: int


# The smallest that the operator makes itself, in each direction; a layer's and a language model's larger ones.
SIZES = (
    Sizes(64, 1024, 1024),
    Sizes(1024, 1024, 64),
    Sizes(1024, 64, 1024),
    Sizes(512, 256, 512),
    Sizes(3840, 256, 1024),
    Sizes(3840, 512, 2048),
    Sizes(700, 650, 10_000),
    Sizes(10_000, 700, 650),
    Sizes(2048, 2048, 2048),
)
SMOKE_SIZES = (Sizes(3, 4, 5),)


@dataclass(frozen=True)
class Settings:
    """What is timed and how.

    Attributes:
        threads: of torch.
        sizes: of the products.
        precision: what torch.set_float32_matmul_precision is given meanwhile.
        rounds: turns of each operator.
        min_seconds: of a turn.
        out: folder of results.json and results.md.
    """

    threads: int
    sizes: tuple[Sizes, ...]
    precision: str
    rounds: int
    min_seconds: float
    out: Path


def run(settings: Settings) -> Result:
    """Times every size; writes results.json and results.md.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the compiled kernels are not there.
    """
    missing = machine.kernels_missing("cpu")
    if missing is not None:
        raise UserError(f"there is nothing to compare with torch: {missing}")
    result: Result = {
        "benchmark": "product",
        "complete": False,
        **machine.describe("cpu", settings.threads),
        "settings": {
            "rounds": settings.rounds,
            "min_seconds": settings.min_seconds,
            "precision": settings.precision,
        },
        "rows": [],
    }
    with float32_matmul_precision(settings.precision):
        for sizes in settings.sizes:
            result["rows"].append(_measure(sizes, settings))
            write_json(result, settings.out)
    result["complete"] = True
    write_results(result, settings.out, product_markdown)
    return result


def _measure(sizes: Sizes, settings: Settings) -> Result:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(sizes.rows, sizes.depth, generator=generator)
    b = torch.randn(sizes.columns, sizes.depth, generator=generator).t()  # as weights lie in memory
    times = time_interleaved(
        {name: partial(product, a, b) for name, product in PRODUCTS.items()},
        rounds=settings.rounds,
        min_seconds=settings.min_seconds,
        threads=settings.threads,
        device="cpu",
    )
    exact = a.double() @ b.double()
    value, by_round = ratio(times["g2lstm"], times["torch"])
    return {
        "sizes": sizes._asdict(),
        "times": {name: spread.as_dict("s") for name, spread in times.items()},
        "errors": {name: _error(product(a, b), exact) for name, product in PRODUCTS.items()},
        "ratio": value,
        "iqr_by_round": by_round.iqr,
    }


def _error(found: Tensor, exact: Tensor) -> float:
    """Root of the mean square of the errors over that of the numbers."""
    return float((found - exact).norm() / exact.norm())
