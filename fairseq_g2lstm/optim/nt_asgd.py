"""SGD that turns to averaged SGD once validation stops improving: NT-ASGD of Merity, Keskar, Socher, "Regularizing
and Optimizing LSTM Language Models" (ICLR 2018), on torch's SGD and ASGD (Polyak and Juditsky 1992)."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II, DictConfig

logger = logging.getLogger(__name__)


@dataclass
class NTASGDConfig(FairseqDataclass):
    """Options of the optimiser `nt_asgd`."""

    weight_decay: float = field(default=0.0, metadata={"help": "weight decay", "argparse_alias": "--wd"})
    asgd_nonmono: int = field(
        default=5,
        metadata={
            "help": "averaging starts after the first validation at an epoch's end whose loss is above the lowest of "
            "those more than N such validations before it; 0 for never. Needs --task "
            "g2lstm_language_modeling: else this is plain SGD"
        },
    )
    lr: Any = II("optimization.lr")


@register_optimizer("nt_asgd", dataclass=NTASGDConfig)
class NTASGD(FairseqOptimizer):
    """Plain SGD, and from `start_averaging` on SGD beside the running average of its weights.

    The parameters hold either the weights that SGD moves or their averages; `use_averages` and `use_raw` change
    them, and a step returns to the former. A state dict taken while they hold the averages has the others, as `raw`.

    Attributes:
        restored: whether a state dict was loaded.
        watched: whether there is a task that will start the averaging.

    Raises:
        ValueError: an option is outside its range.
    """

    def __init__(self, cfg: DictConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        if cfg.asgd_nonmono < 0:
            raise ValueError(f"--asgd-nonmono must be >= 0 (0 for never), got {cfg.asgd_nonmono}")
        self._optimizer: torch.optim.Optimizer = torch.optim.SGD(params, **self.optimizer_config)
        self._first = self._optimizer
        self._holds_averages = False
        self.restored = False
        self.watched = False
        self._warned = False

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Learning rate and weight decay of the options."""
        lr = self.cfg.lr
        return {"lr": lr if isinstance(lr, float) else lr[0], "weight_decay": self.cfg.weight_decay}

    @property
    def supports_flat_params(self) -> bool:
        """True: each weight moves by itself."""
        return True

    @property
    def averaging(self) -> bool:
        """Whether weights are averaged."""
        return isinstance(self._optimizer, torch.optim.ASGD)

    def start_averaging(self) -> None:
        """Averages the weights from the second step after this on, as torch's ASGD does."""
        if not self.averaging:
            group = self.param_groups[0]
            # lambd = 0 keeps the learning rate, t0 = 0 averages at once
            self._optimizer = torch.optim.ASGD(
                group["params"],
                lr=group["lr"],
                lambd=0.0,
                t0=0.0,
                weight_decay=group["weight_decay"],
                capturable=group["params"][0].is_cuda,  # else each step waits for the device
            )
            self._share_groups()

    def _share_groups(self) -> None:
        """A scheduler that was given the first optimiser, as reduce_lr_on_plateau is, sets this one's learning rate."""
        self._first.param_groups = self._optimizer.param_groups

    def use_averages(self) -> bool:
        """Puts the averages into the parameters, where there are any; returns whether the parameters changed."""
        if self.averaging and not self._holds_averages:
            self._exchange()
            return self._holds_averages
        return False

    def use_raw(self) -> bool:
        """Puts back the weights that SGD moves; returns whether the parameters changed."""
        if self._holds_averages:
            self._exchange()
            return True
        return False

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, state in self._optimizer.state.items():
            kept = weight.detach().clone()
            weight.copy_(state["ax"])
            state["ax"].copy_(kept)
        # before the first step there is nothing to average
        self._holds_averages = not self._holds_averages and len(self._optimizer.state) > 0

    def step(self, closure: Any = None, scale: float = 1.0, groups: Any = None) -> None:
        """One step of SGD, and the average brought up to date."""
        if not (self.watched or self.averaging or self._warned) and self.cfg.asgd_nonmono > 0:
            self._warned = True
            logger.warning(
                "this task never starts the averaging of --optimizer nt_asgd, which is plain SGD then: use "
                "--task g2lstm_language_modeling, or --asgd-nonmono 0 if that is what you want"
            )
        self.use_raw()
        for state in self._optimizer.state.values():
            if "eta" in state:  # torch's ASGD would use the learning rate of the step before
                state["eta"].fill_(self.get_lr())
        super().step(closure, scale, groups)

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict of SGD or ASGD, whose `ax` is called `raw` where the parameters hold the averages."""
        state_dict = self._optimizer.state_dict()
        if self._holds_averages:
            state_dict["state"] = {key: _renamed(s, "ax", "raw") for key, s in state_dict["state"].items()}
        return {**state_dict, "averaging": self.averaging}

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Takes a state dict; the parameters must hold what they held when it was taken.

        Raises:
            ValueError: it is of another optimiser, which under --fp16 fairseq does not notice.
        """
        if "averaging" not in state_dict:
            raise ValueError("the checkpoint holds the state of another optimiser than nt_asgd: give --reset-optimizer")
        inner = {key: value for key, value in state_dict.items() if key in ("state", "param_groups")}
        self.restored = True
        if state_dict["averaging"]:
            self.start_averaging()
            # of the device that the parameters are on now, not of the one that they were saved from
            capturable = self.param_groups[0]["capturable"]
            inner["param_groups"] = [{**group, "capturable": capturable} for group in inner["param_groups"]]
        self._holds_averages = any("raw" in state for state in inner["state"].values())
        if self._holds_averages:
            inner["state"] = {key: _renamed(state, "raw", "ax") for key, state in inner["state"].items()}
        super().load_state_dict(inner, optimizer_overrides)
        self._share_groups()


def _renamed(state: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in state.items()}


def find_nt_asgd(optimizer: FairseqOptimizer | None) -> NTASGD | None:
    """The optimiser itself or inside fairseq's wrappers of mixed precision; None where it is another or none."""
    inner: Any = optimizer
    while not isinstance(inner, NTASGD):
        inner = getattr(inner, "fp32_optimizer", None)
        if inner is None:
            return None
    return inner
