"""Activation regularisation of Merity, McCann, Socher, "Revisiting Activation Regularization for Language RNNs"
(2017), as in AWD-LSTM: small outputs of the last layer, and outputs that change slowly."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ..config import flag
from ..models.common import lengths_of_rows


@dataclass
class ActivationConfig(FairseqDataclass):
    """Options of the regularisation."""

    activation_reg: float = field(
        default=0.0, metadata={"help": "weight, >= 0, of the last layer's mean squared outputs after dropout"}
    )
    temporal_activation_reg: float = field(
        default=0.0, metadata={"help": "weight, >= 0, of their mean squared change from step to step, without dropout"}
    )


class RegularisedCrossEntropyCriterion(CrossEntropyCriterion):
    """fairseq's `cross_entropy`, and in training alpha mean(d^2) + beta mean((h_t+1 - h_t)^2) added to its mean.

    d are the last layer's outputs after dropout, h before. The losses that are logged are without it.
    """

    activation_reg = 0.0
    temporal_activation_reg = 0.0

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Any:
        """Builds the criterion from the options.

        Raises:
            ValueError: a weight is < 0, or not finite.
        """
        criterion = super().build_criterion(cfg, task)
        for name in ("activation_reg", "temporal_activation_reg"):
            weight = getattr(cfg, name, 0.0)
            if not 0 <= weight < math.inf:
                raise ValueError(f"{flag(name)} must be >= 0 and finite, got {weight}")
            setattr(criterion, name, weight)
        return criterion

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """fairseq's forward of the criterion; see the class.

        Raises:
            ValueError: a weight is not 0 and the model does not hand out its outputs.
        """
        if not (model.training and (self.activation_reg > 0 or self.temporal_activation_reg > 0)):
            return super().forward(model, sample, reduce)
        net_output = model(**sample["net_input"])
        loss, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        extra = net_output[1]
        if not isinstance(extra, dict) or "outputs" not in extra:
            raise ValueError("--activation-reg and --temporal-activation-reg need a g2lstm_lm")
        penalty = self._penalty(extra["outputs"], extra["dropped_outputs"], sample["net_input"].get("src_lengths"))
        return loss + sample_size * penalty, sample_size, logging_output

    def _penalty(self, outputs: Tensor, dropped: Tensor, lengths: Tensor | None) -> Tensor:
        valid = torch.ones(outputs.shape[:2], dtype=torch.bool, device=outputs.device)
        if lengths is not None:
            lengths = lengths_of_rows(lengths, outputs.size(1)).to(outputs.device)
            valid = torch.arange(len(outputs), device=outputs.device)[:, None] < lengths
        size = self.activation_reg * _mean_square(dropped, valid)
        return size + self.temporal_activation_reg * _mean_square(outputs[1:] - outputs[:-1], valid[1:])


def _mean_square(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of the squares of x (T, B, H) where valid (T, B); 0 where nothing is."""
    squares = x.float().square().sum(-1).masked_fill(~valid, 0.0).sum()
    return squares / (valid.sum() * x.size(-1)).clamp(min=1)
