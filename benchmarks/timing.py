"""Timing of several workloads side by side in one process."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

Workload = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """The middle of several measurements of one thing and how far they lie apart.

    Attributes:
        values: the measurements, in the order they were taken.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    @property
    def iqr(self) -> float:
        """The distance between the quartiles."""
        first, third = self.quartiles
        return third - first

    def as_dict(self, unit: str) -> dict[str, Any]:
        """For JSON: median, distance between the quartiles and all values."""
        return {f"median_{unit}": self.median, f"iqr_{unit}": self.iqr, f"values_{unit}": list(self.values)}


def ratio(ours: Spread, theirs: Spread) -> tuple[float, Spread]:
    """The ratio of two medians, and the ratios of what was measured in the same round."""
    return ours.median / theirs.median, Spread(tuple(a / b for a, b in zip(ours.values, theirs.values, strict=True)))


def in_turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """The names in turns, so that what else the machine does meets all alike; each round begins with another one."""
    for number in range(rounds):
        first = number % len(names) if names else 0
        yield from (*names[first:], *names[:first])


def time_interleaved(
    workloads: Mapping[str, Workload], *, rounds: int, min_seconds: float, threads: int, device: str
) -> dict[str, Spread]:
    """Times workloads in turns.

    Args:
        workloads: name -> function to run; on CUDA it need not wait for the GPU.
        rounds: how often each gets its turn, > 0.
        min_seconds: each turn runs its workload until about this many seconds have passed, once at least.
        threads: of torch.
        device: "cpu" or "cuda".

    Returns:
        For each workload the seconds a run took in each round: on the CPU the mean of the turn's runs by
        torch.utils.benchmark's Timer, on CUDA their median by triton's do_bench where triton is installed.
    """
    turns = {name: _turn(run, min_seconds, threads, device) for name, run in workloads.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for name in in_turns(list(workloads), rounds):
        seconds[name].append(turns[name]())
    return {name: Spread(tuple(values)) for name, values in seconds.items()}


def timer_name(device: str) -> str:
    """Which timer `time_interleaved` uses."""
    return "torch.utils.benchmark.Timer" if _do_bench(device) is None else "triton.testing.do_bench"


def _do_bench(device: str) -> Callable[..., float] | None:
    if device != "cuda":
        return None
    try:
        from triton.testing import do_bench
    except ImportError:
        return None
    return do_bench


def _turn(workload: Workload, min_seconds: float, threads: int, device: str) -> Callable[[], float]:
    do_bench = _do_bench(device)
    if do_bench is not None:
        milliseconds = 1000 * min_seconds
        return lambda: do_bench(workload, warmup=milliseconds / 4, rep=milliseconds, return_mode="median") / 1000
    timer = Timer("run()", globals={"run": workload}, num_threads=threads)
    number = max(1, math.ceil(min_seconds / timer.timeit(1).median))
    return lambda: timer.timeit(number).median


def set_tf32(allowed: bool) -> None:
    """Lets products and cuDNN round float32 to TF32 on CUDA, or keeps them from it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def workload(module: torch.nn.Module, x: torch.Tensor, backward: bool) -> Workload:
    """A training forward of a layer, alone or with the gradients of its inputs and weights."""
    if not backward:
        return lambda: module(x)
    targets: Sequence[torch.Tensor] = (x, *module.parameters())
    grad = torch.ones_like(module(x)[0])
    return lambda: torch.autograd.grad(module(x)[0], targets, grad)
