"""Times of one layer: G2-LSTM beside its peers, at the bars' shapes and over T, B and H."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.bars import Shape, layer_bar
from benchmarks.comparison import write_results
from benchmarks.peers import PEERS, SWEEP_PEERS, TITLES, Unavailable, persistent_workload
from benchmarks.plots import draw_sweeps
from benchmarks.tables import layer_markdown, sizes
from benchmarks.timing import Spread, Workload, ratio, set_tf32, time_interleaved, timer_name, workload
from fairseq_g2lstm import G2LSTM

TEMPERATURE, NOISE_PROB = 0.9, 0.2
COMPARED = ("g2lstm", "torch.nn.LSTM")  # without which a benchmark tells nothing
Result = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Points at which times are taken for the picture: T, B and H in turn, around a middle with I = H."""

    middle: tuple[int, int, int]
    n_steps: tuple[int, ...]
    n_rows: tuple[int, ...]
    hidden_size: tuple[int, ...]

    def points(self) -> Iterator[tuple[str, Shape]]:
        """The axis and the shape of each point."""
        t, b, h = self.middle
        yield from (("T", Shape(value, b, h, h)) for value in self.n_steps)
        yield from (("B", Shape(t, value, h, h)) for value in self.n_rows)
        yield from (("H", Shape(t, b, value, value)) for value in self.hidden_size)


SWEEPS = {
    "cpu": Sweep((30, 64, 256), (5, 15, 30, 60, 120), (8, 16, 32, 64, 128, 256), (64, 128, 256, 512, 1024)),
    "cuda": Sweep((30, 128, 512), (5, 15, 30, 60, 120), (8, 32, 128, 512), (128, 256, 512, 1024, 2048)),
}
SMOKE_SWEEP = Sweep((2, 3, 4), (1, 3), (1, 5), (2, 7))


@dataclass(frozen=True)
class Settings:
    """What is timed and how.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch.
        shapes: of the tables.
        dtypes: names of torch's dtypes.
        peers: keys of PEERS.
        rounds: turns of each peer.
        min_seconds: of a turn.
        sweep: points of the picture, or None for no picture.
        out: folder of results.json, results.md and sweep.png.
    """

    device: str
    threads: int
    shapes: Sequence[Shape]
    dtypes: Sequence[str]
    peers: Sequence[str]
    rounds: int
    min_seconds: float
    sweep: Sweep | None
    out: Path


@dataclass(frozen=True)
class Case:
    """One row: a shape, a dtype, whether backward is timed too, whether float32 may be rounded to TF32."""

    shape: Shape
    dtype: str
    backward: bool
    tf32: bool = False
    axis: str | None = None


def cases(settings: Settings) -> Iterator[Case]:
    """What is timed, in order: the tables, then the points of the picture."""
    for tf32 in (False, True) if settings.device == "cuda" else (False,):
        for dtype in settings.dtypes:
            if tf32 and dtype != "float32":
                continue
            for shape in settings.shapes:
                for backward in (True, False):
                    yield Case(shape, dtype, backward, tf32)
    if settings.sweep is not None:
        for axis, shape in settings.sweep.points():
            yield Case(shape, settings.dtypes[0], True, axis=axis)


def run(settings: Settings) -> Result:
    """Times every case; writes results.json and results.md after each, sweep.png at the end.

    Returns:
        What stands in results.json.
    """
    result: Result = {
        "benchmark": "layer",
        "complete": False,
        **machine.describe(settings.device, settings.threads),
        "settings": {
            "timer": timer_name(settings.device),
            "rounds": settings.rounds,
            "min_seconds": settings.min_seconds,
            "gates": {"gate_type": "gumbel", "temperature": TEMPERATURE, "noise_prob": NOISE_PROB},
        },
        "rows": [],
    }
    first_runs: dict[str, str | None] = {}
    for case in cases(settings):
        row = time_case(case, settings, first_runs)
        result["rows"].append(row)
        write_results(result, settings.out, layer_markdown)
        print(_progress(row), flush=True)
    result["complete"] = True
    write_results(result, settings.out, layer_markdown)
    if settings.sweep is not None:
        draw_sweeps([row for row in result["rows"] if row["axis"]], settings.out / "sweep.png", result)
    return result


def time_case(case: Case, settings: Settings, first_runs: dict[str, str | None]) -> Result:
    """Times the peers at one case; those that cannot run have a reason instead of times.

    Args:
        case: what is timed.
        settings: of the benchmark.
        first_runs: peer -> why its first run failed, so that it is not tried again, or None; added to.
    """
    set_tf32(case.tf32)
    shape, dtype = case.shape, getattr(torch, case.dtype)
    torch.manual_seed(1)
    lstm = G2LSTM(
        shape.input_size,
        shape.hidden_size,
        gate_type="gumbel",
        temperature=TEMPERATURE,
        noise_prob=NOISE_PROB,
        device=settings.device,
        dtype=dtype,
    )
    x = torch.randn(shape[:3], device=settings.device, dtype=dtype, requires_grad=True)
    workloads: dict[str, Workload] = {}
    skipped: dict[str, str] = {}
    for peer in settings.peers:
        if case.axis is not None and peer not in SWEEP_PEERS:
            continue
        reason = first_runs.get(peer)
        if reason is not None:
            skipped[peer] = reason
            continue
        try:
            workloads[peer] = _prepare(peer, lstm, x, case.backward)
            first_runs[peer] = None
        except Unavailable as error:
            skipped[peer] = str(error)
        except Exception as error:
            if peer in COMPARED:
                raise
            skipped[peer] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
            first_runs.setdefault(peer, skipped[peer])
    times = time_interleaved(
        workloads,
        rounds=settings.rounds,
        min_seconds=settings.min_seconds,
        threads=settings.threads,
        device=settings.device,
    )
    bar_of = partial(layer_bar, settings.device, shape, case.backward, case.tf32)
    return {
        "shape": shape._asdict(),
        "dtype": case.dtype,
        "passes": "forward + backward" if case.backward else "forward",
        "tf32": case.tf32,
        "axis": case.axis,
        "times": {peer: spread.as_dict("s") for peer, spread in times.items()},
        "skipped": skipped,
        "ratios": _ratios("g2lstm", times, bar_of),
        "ratios_in_one_launch": _ratios("g2lstm-persistent", times, bar_of),
    }


def _prepare(peer: str, lstm: G2LSTM, x: torch.Tensor, backward: bool) -> Workload:
    """A peer's workload, run once."""
    prepared = workload(PEERS[peer](lstm).train(), x, backward)
    if peer == "g2lstm-persistent":
        return persistent_workload(prepared, lstm, x)
    prepared()
    return prepared


def _ratios(ours: str, times: dict[str, Spread], bar_of: Callable[[str], Any]) -> Result:
    """The time of one of G2-LSTM's kernels divided by each peer's, with the bar where there is one."""
    ratios: Result = {}
    for peer in times:
        if peer.startswith("g2lstm") or ours not in times:
            continue
        value, by_round = ratio(times[ours], times[peer])
        bar = bar_of(peer)
        ratios[peer] = {
            "ratio": value,
            "iqr_by_round": by_round.iqr,
            "bar": str(bar) if bar else None,
            "met": bar.met(value) if bar else None,
        }
    return ratios


def _progress(row: Result) -> str:
    times = [f"{TITLES[peer]} {1000 * time['median_s']:,.4g} ms" for peer, time in row["times"].items()]
    title = f"{sizes(row)} {row['passes']}, {row['dtype']}{', TF32' if row['tf32'] else ''}"
    return f"{title}: {', '.join(times) or 'nothing could run'}"
