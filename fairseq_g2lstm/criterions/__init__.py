"""fairseq's cross-entropy criterions with schedules of the gates' temperature and noise, and gate statistics."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from .. import ops
from ..config import flag
from ..gate_stats import GateCounts, observe_gates
from ..gates.statistics import GATES, GateStatistics, Place, collect_statistics
from ..gates.training import GateLog
from ..models.gated import GatedModel
from ..schedules import SCHEDULES, Schedule
from ..settings import GateSettings, check_probability, check_temperature
from .activation import ActivationConfig, RegularisedCrossEntropyCriterion

logger = logging.getLogger(__name__)


@dataclass
class GateScheduleConfig(FairseqDataclass):
    """Options that both criterions add to fairseq's."""

    gate_temperature_schedule: ChoiceEnum(list(SCHEDULES)) = field(  # type: ignore[valid-type]
        default="constant", metadata={"help": "how the gates' temperature moves over the updates"}
    )
    gate_temperature_start: Optional[float] = field(
        default=None, metadata={"help": "first temperature, > 0 (default: --gate-temperature)"}
    )
    gate_temperature_end: Optional[float] = field(
        default=None, metadata={"help": "last temperature, > 0"}
    )
    gate_temperature_updates: Optional[int] = field(
        default=None, metadata={"help": "number of updates from the first temperature to the last"}
    )
    gate_noise_schedule: ChoiceEnum(list(SCHEDULES)) = field(  # type: ignore[valid-type]
        default="constant", metadata={"help": "how the noise probability moves over the updates"}
    )
    gate_noise_start: Optional[float] = field(
        default=None, metadata={"help": "first noise probability, 0 to 1 (default: --gate-noise-prob)"}
    )
    gate_noise_end: Optional[float] = field(
        default=None, metadata={"help": "last noise probability, 0 to 1"}
    )
    gate_noise_updates: Optional[int] = field(
        default=None, metadata={"help": "number of updates from the first noise probability to the last"}
    )
    gate_stats_interval: int = field(
        default=10, metadata={"help": "in training, measure the gates every N updates; 0 for never"}
    )


@dataclass
class GateLogConfig(FairseqDataclass):
    """Options of the gates' log, which both criterions take."""

    gate_log_interval: int = field(
        default=0,
        metadata={"help": "in training, log each layer's gates every N updates, also into gates.jsonl; 0 for never"},
    )
    save_dir: str = II("checkpoint.save_dir")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")


class GateScheduleMixin:
    """Sets temperature and noise probability before each training forward and measures the gates in it."""

    temperature_schedule: Schedule
    noise_schedule: Schedule
    gate_stats_interval: int
    gate_log: GateLog
    _schedules_checked = False

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Any:
        """Builds fairseq's criterion, the schedules and the gates' log from the options.

        Raises:
            ValueError: an option is outside its range; the message names it and what is accepted.
        """
        criterion = super().build_criterion(cfg, task)  # type: ignore[misc]
        criterion.temperature_schedule = _schedule(cfg, "gate_temperature", check_temperature)
        criterion.noise_schedule = _schedule(cfg, "gate_noise", check_probability)
        interval = getattr(cfg, "gate_stats_interval", 10)
        if interval < 0:
            raise ValueError(f"--gate-stats-interval must be >= 0 (0 for never), got {interval}")
        criterion.gate_stats_interval = interval
        criterion.gate_log = _gate_log(cfg)
        return criterion

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """fairseq's forward of the criterion; see the class.

        Raises:
            ValueError: the model is not a `g2lstm` or `g2lstm_lm`, or has an adaptive softmax.
        """
        g2lstm = _unwrap(model)
        if g2lstm.training:
            options = g2lstm.option_settings
            g2lstm.set_gate_values(
                self.temperature_schedule.value(g2lstm.num_updates, options.temperature),
                self.noise_schedule.value(g2lstm.num_updates, options.noise_prob),
            )
            self._warn_of_schedules(options)
        interval, n_updates = self.gate_stats_interval, g2lstm.num_updates
        counts: GateCounts | None = None
        statistics: dict[Place, GateStatistics] | None = None
        with ExitStack() as observers:
            if interval > 0 and not (g2lstm.training and n_updates % interval != 0):
                counts = GateCounts()
                add = counts.add
                observers.enter_context(observe_gates(g2lstm, lambda _name, _layer, _reverse, *gates: add(*gates)))
            if g2lstm.training and self.gate_log.is_due(n_updates):
                statistics = observers.enter_context(collect_statistics(g2lstm))
            loss, sample_size, log = super().forward(model, sample, reduce)  # type: ignore[misc]
        if counts is not None:
            log["gate_count"] = counts.total
            for number, kind in enumerate(GATES):
                log[f"{kind}_gates_low"] = counts.low[number]
                log[f"{kind}_gates_high"] = counts.high[number]
        if statistics is not None:
            self.gate_log.record(n_updates, statistics)
        in_training = g2lstm.gate_settings.mode(training=True)
        log["gate_forwards"] = 1
        log["gumbel_temperature"] = in_training.temperature
        log["gumbel_noise_prob"] = in_training.noise_prob
        return loss, sample_size, log

    def _warn_of_schedules(self, options: GateSettings) -> None:
        """Says once which schedules move what gates of this type do not have."""
        if self._schedules_checked:
            return
        self._schedules_checked = True
        gates = f"gates of type {options.gate_type}"
        if options.gate_type != "gumbel" and self.noise_schedule.is_given:
            logger.warning(f"the schedule of --gate-noise changes nothing: {gates} have no noise")
        # evaluation may have one where training has none
        if options.gate_type == "sigmoid" and options.eval_mode != "tempered" and self.temperature_schedule.is_given:
            logger.warning(f"the schedule of --gate-temperature changes nothing: {gates} have no temperature")

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs fairseq's values, the temperature, the noise probability and the gates' shares."""
        super().reduce_metrics(logging_outputs)  # type: ignore[misc]

        def total(key: str) -> float:
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        forwards, count = total("gate_forwards"), total("gate_count")
        if forwards > 0:
            for key in ("gumbel_temperature", "gumbel_noise_prob"):
                metrics.log_scalar(key, total(key) / forwards, forwards, round=4)
        if count > 0:
            for kind in GATES:
                for side in ("low", "high"):
                    key = f"{kind}_gates_{side}"
                    metrics.log_scalar(key, total(key) / count, count, round=4)


def _unwrap(model: Any) -> GatedModel:
    inner = model
    while not isinstance(inner, GatedModel) and hasattr(inner, "module"):
        inner = inner.module
    if not isinstance(inner, GatedModel):
        raise ValueError(
            f"the g2lstm criterions need a g2lstm or g2lstm_lm model, got {type(inner).__name__}: "
            "for other models use cross_entropy or label_smoothed_cross_entropy"
        )
    return inner


def _schedule(cfg: Any, name: str, check: Any) -> Schedule:
    def option(suffix: str, default: Any = None) -> Any:
        return getattr(cfg, f"{name}_{suffix}", default)

    kind = str(option("schedule", "constant"))
    return Schedule(flag(name), kind, option("start"), option("end"), option("updates"), check)


def _gate_log(cfg: Any) -> GateLog:
    folder = getattr(cfg, "save_dir", None)
    tensorboard = getattr(cfg, "tensorboard_logdir", None)
    return GateLog(
        getattr(cfg, "gate_log_interval", 0),
        Path(folder) if folder else None,
        Path(tensorboard) / "gates" if tensorboard else None,
    )


@dataclass
class G2LSTMCrossEntropyConfig(GateScheduleConfig, GateLogConfig, ActivationConfig, CrossEntropyCriterionConfig):
    """Options of `g2lstm_cross_entropy`."""


@dataclass
class G2LSTMLabelSmoothedCrossEntropyConfig(
    GateScheduleConfig, GateLogConfig, LabelSmoothedCrossEntropyCriterionConfig
):
    """Options of `g2lstm_label_smoothed_cross_entropy`."""


@register_criterion("g2lstm_cross_entropy", dataclass=G2LSTMCrossEntropyConfig)
class G2LSTMCrossEntropyCriterion(GateScheduleMixin, RegularisedCrossEntropyCriterion):
    """fairseq's `cross_entropy` with gate schedules and statistics, and activation regularisation."""

    def compute_loss(self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True) -> Any:
        """fairseq's loss, without keeping the log-probabilities where it is summed."""
        if not _has_logits(model, reduce):
            return super().compute_loss(model, net_output, sample, reduce)
        nll, _ = _cross_entropy(model, net_output, sample, self.padding_idx)
        return nll, nll


@register_criterion(
    "g2lstm_label_smoothed_cross_entropy", dataclass=G2LSTMLabelSmoothedCrossEntropyConfig
)
class G2LSTMLabelSmoothedCrossEntropyCriterion(GateScheduleMixin, LabelSmoothedCrossEntropyCriterion):
    """fairseq's `label_smoothed_cross_entropy` with gate schedules and statistics."""

    def compute_loss(self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True) -> Any:
        """fairseq's loss, without keeping the log-probabilities where it is summed."""
        if not _has_logits(model, reduce) or self.ignore_prefix_size > 0:
            return super().compute_loss(model, net_output, sample, reduce)
        nll, smooth = _cross_entropy(model, net_output, sample, self.padding_idx)
        eps_i = self.eps / (net_output[0].size(-1) - 1)
        return (1.0 - self.eps - eps_i) * nll + eps_i * smooth, nll


def _has_logits(model: Any, reduce: bool) -> bool:
    return reduce and _unwrap(model).decoder.adaptive_softmax is None


def _cross_entropy(
    model: Any, net_output: Any, sample: dict[str, Any], padding_idx: int
) -> tuple[Tensor, Tensor]:
    logits = net_output[0]
    targets = model.get_targets(sample, net_output).view(-1)
    return ops.cross_entropy(logits.reshape(-1, logits.size(-1)), targets, padding_idx)
