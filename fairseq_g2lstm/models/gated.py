"""What the fairseq models share: gates whose temperature and noise a criterion moves and a checkpoint keeps."""

import math
from functools import partial
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from ..modules import G2LSTM, G2LSTMCell
from ..packed import PackedMatrix, keep_packed, unpack_weights
from ..settings import GateSettings

GATE_VALUES = "gates.values"  # in a checkpoint


class GateValues(nn.Module):
    """The gates' temperature and noise probability in use, kept in the checkpoint.

    The buffer holds (temperature, noise_prob) in use and then the options' values at the time of saving, so that a
    value that the user changes after training is told from one that a schedule changed during it. It stays in
    float64 when the model turns to half precision.
    """

    values: Tensor

    def __init__(self, settings: GateSettings) -> None:
        super().__init__()
        options = [settings.temperature, settings.noise_prob]
        self.register_buffer("values", torch.tensor(options * 2, dtype=torch.float64))

    def _apply(self, fn, recurse=True):
        exact = self.values
        super()._apply(fn, recurse)
        self.values = exact.to(self.values.device)
        return self


class GatedModel(BaseFairseqModel):
    """A model with G2-LSTM gates; a subclass names its fairseq base after it, and calls `init_gates` when built.

    Attributes:
        decoder: holds the gates' settings in use, and `adaptive_softmax`, which may be None.
        option_settings: the gates' settings that the options ask for.
        num_updates: updates done so far, as the trainer told.
        keeps_packed: whether the weights of a packed checkpoint stay as they are stored when it is loaded.
    """

    decoder: Any
    keeps_packed: bool = False

    def init_gates(self, settings: GateSettings) -> None:
        """Takes the gates' settings of the options."""
        self.option_settings = settings
        self.gates = GateValues(settings)
        self.num_updates = 0
        self.register_load_state_dict_post_hook(_take_loaded_gate_values)

    def train(self, mode: bool = True) -> "GatedModel":
        """As of any module.

        Raises:
            ValueError: training is asked for, and weights are kept packed.
        """
        if mode and any(isinstance(module, PackedMatrix) for module in self.modules()):
            raise ValueError(
                "packed weights that are kept as they are stored cannot be trained: load them with "
                "--packed-weights unpack (in --model-overrides packed_weights)"
            )
        return super().train(mode)

    def get_normalized_probs(
        self, net_output: Any, log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """As of any fairseq model.

        Raises:
            ValueError: they are asked for in training, and an adaptive softmax's have no gradients.
        """
        if self.training and torch.is_grad_enabled() and self.decoder.adaptive_softmax is not None:
            raise ValueError(
                "--adaptive-softmax-cutoff needs --criterion adaptive_loss (and --ddp-backend legacy_ddp)"
            )
        return super().get_normalized_probs(net_output, log_probs, sample)

    def set_num_updates(self, num_updates: int) -> None:
        """Takes the number of updates from the trainer.

        Temperature and noise probability return to the options' constant values; a criterion with schedules sets
        its own in the forward that follows.
        """
        super().set_num_updates(num_updates)
        self.num_updates = num_updates
        self.set_gate_values(self.option_settings.temperature, self.option_settings.noise_prob)

    def set_gate_values(self, temperature: float, noise_prob: float) -> None:
        """Sets the gates' temperature (> 0) and noise probability (0 to 1) in use.

        Raises:
            ValueError: a value is outside its range.
        """
        if (temperature, noise_prob) != (self.gate_settings.temperature, self.gate_settings.noise_prob):
            self.use_gate_settings(self.option_settings.with_values(temperature, noise_prob))
            self.gates.values[:2] = self.gates.values.new_tensor([temperature, noise_prob])

    @property
    def gate_settings(self) -> GateSettings:
        """The gates' settings in use."""
        return self.decoder.gate_settings

    def use_gate_settings(self, settings: GateSettings) -> None:
        """Hands settings to every module that has gates; here the decoder and its cells."""
        self.decoder.gate_settings = settings
        for cell in self.decoder.cells():
            cell.gate_settings = settings

    def take_loaded_gate_values(self) -> None:
        """Uses the temperature and noise probability of the buffer, unless an option was changed since."""
        options = self.option_settings
        values = self.gates.values.tolist()
        # An option that differs from the one saved was changed since, and holds. Averages of checkpoints round, and an
        # exponential average in float32 (--ema-fp32) does at every update, since decay and 1 - decay round apart.
        same = partial(math.isclose, rel_tol=1e-3)
        temperature = values[0] if same(options.temperature, values[2]) else options.temperature
        noise_prob = values[1] if same(options.noise_prob, values[3]) else options.noise_prob
        in_use = [temperature, noise_prob, options.temperature, options.noise_prob]
        self.gates.values.copy_(self.gates.values.new_tensor(in_use))
        self.use_gate_settings(options.with_values(temperature, noise_prob))

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Unpacks a packed checkpoint's weights, or makes the model ready for them as they are stored; gives a stock
        one the options' temperature and noise probability."""
        if self.keeps_packed:
            keep_packed(self, state_dict, (G2LSTM, G2LSTMCell))
        else:
            unpack_weights(state_dict)
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        state_dict.setdefault(prefix + GATE_VALUES, GateValues(self.option_settings).values)


def _take_loaded_gate_values(model: GatedModel, _keys: object) -> None:
    # Not a method or a closure: a copy of the model must act on itself, and pickle.
    model.take_loaded_gate_values()
