"""How the gates are computed: the settings of a module, and what they come to in training and in evaluation."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import NamedTuple

GATE_TYPES = ("gumbel", "sharpened", "sigmoid")
EVAL_MODES = ("auto", "soft", "tempered", "hard")
SHARINGS = ("step", "mask", "sequence")


class GateMode(NamedTuple):
    """How the input and forget gates are computed in one forward pass.

    temperature: tau > 0.
    noise_prob: p in [0, 1]; 0 means no noise.
    noise_sharing: "step", "mask" or "sequence".
    hard: gates are 1 where a >= 0, else 0; temperature and noise play no part.
    """

    temperature: float = 1.0
    noise_prob: float = 0.0
    noise_sharing: str = "step"
    hard: bool = False


@dataclass(frozen=True)
class GateSettings:
    """What a user chooses of the method.

    Args:
        gate_type: "gumbel" (noise and temperature in training), "sharpened" (temperature alone) or
            "sigmoid" (the ordinary LSTM).
        temperature: tau > 0.
        noise_prob: p, 0 <= p <= 1.
        noise_sharing: how often noise is drawn: "step" u and m anew at each time step, "mask" m held over the
            sequence, "sequence" both held.
        eval_mode: gates in evaluation: "soft" sigmoid(a), "tempered" sigmoid(a / tau), "hard" 1 where a >= 0 and
            else 0, "auto" tempered for gate type sharpened and soft for the others.

    Raises:
        ValueError: a value is outside its range; the message names it and what is accepted.
    """

    gate_type: str = "gumbel"
    temperature: float = 0.9
    noise_prob: float = 0.2
    noise_sharing: str = "step"
    eval_mode: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (
            ("gate_type", GATE_TYPES),
            ("noise_sharing", SHARINGS),
            ("eval_mode", EVAL_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        check_temperature("temperature", self.temperature)
        check_probability("noise_prob", self.noise_prob)
        # numpy's numbers too: torch.compile takes those for tensors
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "noise_prob", float(self.noise_prob))

    def mode(self, training: bool) -> GateMode:
        """The gates in use in training or in evaluation."""
        if not training:
            eval_mode = self.eval_mode
            if eval_mode == "auto":
                eval_mode = "tempered" if self.gate_type == "sharpened" else "soft"
            temperature = self.temperature if eval_mode == "tempered" else 1.0
            return GateMode(temperature, hard=eval_mode == "hard")
        if self.gate_type == "gumbel":
            return GateMode(self.temperature, self.noise_prob, self.noise_sharing)
        return GateMode(self.temperature if self.gate_type == "sharpened" else 1.0)

    def with_values(self, temperature: float, noise_prob: float) -> "GateSettings":
        """The same settings with another temperature and noise probability."""
        return replace(self, temperature=temperature, noise_prob=noise_prob)


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError unless value is a number and 0 < value < infinity."""
    if not _is_number(value) or not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be > 0 and finite, got {value!r}")


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless value is a number and 0 <= value <= 1."""
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
