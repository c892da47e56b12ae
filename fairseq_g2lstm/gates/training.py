"""The gates while a model trains: in fairseq's log, in a file beside the checkpoints, and in TensorBoard."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import whole_file
from ..distributed import is_first_rank
from .statistics import BINS, GATES, GateStatistics, Place

FILE_NAME = "gates.jsonl"
logger = logging.getLogger(__name__)


class GateLog:
    """Records of the gates of single batches, every N updates; in distributed training of rank 0's batches alone.

    Args:
        interval: N >= 0; 0 for never.
        folder: where `gates.jsonl` goes, made if need be; None for no file.
        tensorboard_folder: where the events go, for histograms and scalars by update; None for none.

    Raises:
        ValueError: interval < 0.
    """

    def __init__(self, interval: int, folder: Path | None, tensorboard_folder: Path | None = None) -> None:
        if interval < 0:
            raise ValueError(f"--gate-log-interval must be >= 0 (0 for never), got {interval}")
        self.interval = interval
        self.path = None if folder is None else folder / FILE_NAME
        self.tensorboard_folder = tensorboard_folder
        self._writer: Any = None
        self._latest: int | None = None
        self._recorded: int | None = None

    def is_due(self, num_updates: int) -> bool:
        """Whether a training forward is to be recorded; to be asked at each.

        True at the first batch of every Nth update, on rank 0. At the first call, and wherever the updates go back, the
        file's records of this update and of later ones are dropped: made after the last checkpoint by a run that ended.

        Args:
            num_updates: updates done before this one.

        Raises:
            ValueError: the file in the folder is not one of gates.
        """
        if self.interval == 0 or not is_first_rank():
            return False
        if self._latest is None or num_updates < self._latest:
            self._begin(num_updates)
        self._latest = num_updates
        return num_updates % self.interval == 0 and num_updates != self._recorded

    def record(self, num_updates: int, statistics: Mapping[Place, GateStatistics]) -> None:
        """Writes the gates of a batch wherever they go.

        Args:
            num_updates: updates done before this one.
            statistics: of the batch alone.
        """
        for place, gates in statistics.items():
            logger.info(" | ".join([f"update {num_updates}", place.label, *(_in_words(gates, gate) for gate in GATES)]))
        if self.path is not None:
            lines = [json.dumps(record) for record in _records(num_updates, statistics)]
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        if self._writer is not None:
            for place, gates in statistics.items():
                self._write_events(num_updates, place, gates)
            self._writer.flush()
        self._recorded = num_updates

    def _begin(self, num_updates: int) -> None:
        self._recorded = None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _drop_from(self.path, num_updates)
        if self.tensorboard_folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                logger.warning("tensorboard is not installed, so it gets no gates: pip install tensorboard")
                return
            self._writer = SummaryWriter(str(self.tensorboard_folder), purge_step=num_updates)

    def _write_events(self, num_updates: int, place: Place, statistics: GateStatistics) -> None:
        name = place.label.replace(",", "").replace(" ", "_")
        limits = (np.arange(BINS) + 1) / BINS
        for number, gate in enumerate(GATES):
            counts = statistics.histogram[number]
            centres = limits - 0.5 / BINS
            self._writer.add_histogram_raw(
                f"{gate}_gates/{name}",
                min=0.0,
                max=1.0,
                num=int(counts.sum()),
                sum=float(statistics.sum[number].sum()),
                sum_squares=float(counts @ centres**2),  # within a bin's width; TensorBoard does not show it
                bucket_limits=limits.tolist(),
                bucket_counts=counts.tolist(),
                global_step=num_updates,
            )
            for what in ("share_low", "share_high", "mean"):
                value = getattr(statistics, what)(gate)
                self._writer.add_scalar(f"{gate}_gates_{what.removeprefix('share_')}/{name}", value, num_updates)


def read_gate_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `gates.jsonl`, in the order of their updates.

    Returns:
        A dictionary for each recorded update, place and gate: `update`, `module`, `layer`, `reverse`, `gate` ("input"
        or "forget"), `steps` (tokens that the layer read), `low` and `high` (shares below 0.1 and above 0.9), `mean`,
        and `histogram` (counts in 50 bins of equal width between 0 and 1). A last line that was cut off is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such record.
    """
    text = Path(path).read_text(encoding="utf-8")
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last line end was cut off
        try:
            record = json.loads(line)
            record["update"], record["gate"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no record of gates: move the file away") from error
        records.append(record)
    return records


def _drop_from(path: Path, num_updates: int) -> None:
    """Drops the records of an update and of later ones."""
    records = read_gate_log(path)
    kept = [record for record in records if record["update"] < num_updates]
    if len(kept) < len(records):
        dropped = len(records) - len(kept)
        logger.info(f"training begins at update {num_updates}: {dropped} lines of {path} from there on are dropped")
    with whole_file(path) as unfinished:
        Path(unfinished).write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def _records(num_updates: int, statistics: Mapping[Place, GateStatistics]) -> list[dict[str, Any]]:
    return [
        {"update": num_updates, **place._asdict(), "gate": gate, "steps": gates.steps, **values}
        for place, gates in statistics.items()
        for gate, values in gates.as_json().items()
    ]


def _in_words(statistics: GateStatistics, gate: str) -> str:
    low, high = statistics.share_low(gate), statistics.share_high(gate)
    return f"{gate} gates {low:.1%} below 0.1, {high:.1%} above 0.9, mean {statistics.mean(gate):.3f}"
