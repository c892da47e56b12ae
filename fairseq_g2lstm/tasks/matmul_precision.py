"""How precisely float32 matrices are multiplied, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MATMUL_PRECISIONS = ("highest", "high", "medium")


@contextmanager
def float32_matmul_precision(precision: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` within the block; "default" leaves all as it is.

    Afterwards torch's settings are what they were: the older one, and those of each backend, which torch has from 2.9
    on. They are put back as well where they contradict each other, which torch does not let anyone read as one.
    """
    if precision == "default":
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # a backend's differs
        before = "highest"
    both: list[Any] = [getattr(torch.backends.mkldnn, "matmul", None), torch.backends.cuda.matmul]
    backends = [backend for backend in both if hasattr(backend, "fp32_precision")]
    of_backends = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, was in zip(backends, of_backends, strict=True):
            backend.fp32_precision = was
