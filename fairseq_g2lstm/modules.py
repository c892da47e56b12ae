"""G2LSTM and G2LSTMCell: torch.nn.LSTM's and LSTMCell's interface with gates trained towards 0 and 1."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import ops
from .packed.matrix import weight_of
from .philox import draw_seed
from .reference import unpacked
from .settings import GateSettings, check_probability

GateObserver = Callable[[int, bool, Tensor, Tensor | None], None]
"""Called with layer, whether backward, z (T, B, 2H) and valid (T, B) bool or None; see `G2LSTM.gate_observer`."""


def _setting(name: str) -> Any:
    """A property that reads and, checked, changes one of the gates' settings."""

    def read(module: "_Gated") -> Any:
        return getattr(module.gate_settings, name)

    def change(module: "_Gated", value: Any) -> None:
        settings = replace(module.gate_settings, **{name: value})
        module._check_settings(settings)
        module.gate_settings = settings

    return property(read, change, doc=f"`{name}` of `gate_settings`; setting it checks the value.")


class _Gated(nn.Module):
    """What `G2LSTM` and `G2LSTMCell` share."""

    hidden_size: int

    def __init__(self, settings: GateSettings) -> None:
        super().__init__()
        self._check_settings(settings)
        self.gate_settings = settings

    gate_type = _setting("gate_type")
    temperature = _setting("temperature")
    noise_prob = _setting("noise_prob")
    noise_sharing = _setting("noise_sharing")
    eval_mode = _setting("eval_mode")

    def reset_parameters(self) -> None:
        """Draws every weight from U(-1/sqrt(H), 1/sqrt(H)), in the order of torch.nn.LSTM and LSTMCell."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def _check_settings(self, settings: GateSettings) -> None:
        """Raises ValueError where a module cannot do what is asked; `G2LSTM` can do all."""

    def _check_dtype(self, name: str, x: Tensor) -> None:
        weights = list(self.parameters())  # not by name, which may compute one anew; none where all are packed
        if weights and x.dtype != weights[0].dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{name} has dtype {x.dtype} and the weights have {weights[0].dtype}: convert one to the other's, "
                "or run under torch.autocast"
            )


def _check_pair(hx: tuple[Tensor, Tensor] | None) -> None:
    if hx is not None and len(hx) != 2:
        raise ValueError(f"hx must be a pair of states (h_0, c_0) or None, got {len(hx)}")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _check_size(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be > 0, got {value}")


class G2LSTM(_Gated):
    """A drop-in for torch.nn.LSTM whose input and forget gates are trained towards 0 and 1.

    Takes torch.nn.LSTM's arguments and inputs, returns its outputs, and has its state dict: weights load into
    and from torch.nn.LSTM. The method and its source stand in `fairseq_g2lstm.reference`. In training, each forward
    draws one seed from torch's default CPU generator, whatever the gate type; in evaluation none.

    Args:
        input_size: I, features of each input, > 0.
        hidden_size: H, units, > 0.
        num_layers: stacked layers, > 0.
        bias: whether the layers have b_ih and b_hh.
        batch_first: whether plain inputs and outputs are (B, T, ...).
        dropout: probability of dropping outputs of every layer but the last, in training.
        bidirectional: whether each layer also runs from the end, which doubles its outputs.
        proj_size: must be 0; projections are not supported.
        gate_type: "gumbel", "sharpened" or "sigmoid" (the ordinary LSTM).
        temperature: tau > 0.
        noise_prob: p, 0 <= p <= 1.
        noise_sharing: "step", "mask" or "sequence".
        eval_mode: "auto", "soft", "tempered" or "hard".

    Raises:
        ValueError: an argument is outside its range.
        TypeError: a size is no integer, bias or batch_first no bool.
        NotImplementedError: proj_size is not 0.

    Attributes:
        gate_observer: None, or a function that each forward calls once for each layer and direction with the layer's
            number, whether it runs backward, the noise-free arguments z (T, B, 2H) of the input and forget gates'
            sigmoids (input gates first, time-major), and valid (T, B), false in the padding, or None for a plain input
            without lengths.
            Rows are in the user's order, also under PackedSequence's sorting.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gate_type: str = "gumbel",
        temperature: float = 0.9,
        noise_prob: float = 0.2,
        noise_sharing: str = "step",
        eval_mode: str = "auto",
    ) -> None:
        super().__init__(GateSettings(gate_type, temperature, noise_prob, noise_sharing, eval_mode))
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            _check_size(name, size)
        _check_flag("bias", bias)
        _check_flag("batch_first", batch_first)
        if proj_size != 0:
            raise NotImplementedError(
                f"proj_size is not supported, got {proj_size}: use 0 and a torch.nn.Linear after the layer"
            )
        check_probability("dropout", dropout)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} has no effect with num_layers=1: it is applied between layers", stacklevel=2
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = 0
        self.gate_observer: GateObserver | None = None

        num_directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            layer_inputs = input_size if layer == 0 else hidden_size * num_directions
            for reverse in (False, True)[:num_directions]:
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (4 * hidden_size, layer_inputs),
                    "weight_hh": (4 * hidden_size, hidden_size),
                }
                if bias:
                    shapes |= {"bias_ih": (4 * hidden_size,), "bias_hh": (4 * hidden_size,)}
                for name, shape in shapes.items():
                    weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + _suffix(layer, reverse), weight)
        self.reset_parameters()

    def flatten_parameters(self) -> None:
        """Does nothing; torch.nn.LSTM's callers may call it."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """For each layer and direction its weights, as torch.nn.LSTM's attribute of this name; packed ones unpacked."""
        dtype = next((weight.dtype for weight in self.parameters()), torch.float32)
        return [
            [unpacked(w, dtype) for w in self.weights(layer, reverse) if w is not None]
            for layer in range(self.num_layers)
            for reverse in (False, True)[: 2 if self.bidirectional else 1]
        ]

    def weights(self, layer: int, reverse: bool) -> ops.CellWeights:
        """The weights of one layer and direction as the operators take them; without biases these are None."""
        suffix = _suffix(layer, reverse)
        w_ih, w_hh = (weight_of(self, name + suffix) for name in ("weight_ih", "weight_hh"))
        return ops.CellWeights(w_ih, w_hh, *(getattr(self, name + suffix, None) for name in ("bias_ih", "bias_hh")))

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        parts += [f"{k}={getattr(self, k)}" for k, default in defaults.items() if getattr(self, k) != default]
        settings = self.gate_settings
        parts.append(f"gate_type={settings.gate_type}, temperature={settings.temperature}")
        parts.append(f"noise_prob={settings.noise_prob}, noise_sharing={settings.noise_sharing}")
        return ", ".join(parts) + f", eval_mode={settings.eval_mode}"

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """Runs the sequences through all layers.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence.
            hx: (h_0, c_0), each (num_layers * num_directions, B, H), without B where unbatched; None for zeros.

        Returns:
            outputs (T, B, num_directions * H), shaped or packed as the input; (h_n, c_n), shaped as hx.

        Raises:
            ValueError: the input's or a state's shape or dtype does not fit, T = 0 or B = 0.
        """
        _check_pair(hx)
        if isinstance(input, PackedSequence):
            # not by _replace, over which torch.compile fails
            padded, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
            order, restore = input.sorted_indices, input.unsorted_indices
            if hx is not None:
                self._check_states(hx, padded.size(1))
                if order is not None:
                    hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
            output, (h_n, c_n) = self.run_padded(padded, lengths, hx, None if order is None else order.cpu())
            packed = pack_padded_sequence(output, lengths, enforce_sorted=True)
            if restore is not None:
                h_n, c_n = h_n.index_select(1, restore), c_n.index_select(1, restore)
            return PackedSequence(packed.data, packed.batch_sizes, order, restore), (h_n, c_n)

        if input.dim() not in (2, 3):
            raise ValueError(
                f"input must be (T, B, I), (B, T, I) with batch_first, or (T, I), got {input.dim()} dimensions"
            )
        batched = input.dim() == 3
        time_batch_dim = 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(time_batch_dim)
        if hx is not None and not batched:
            hx = self._check_unbatched_state("h_0", hx[0]), self._check_unbatched_state("c_0", hx[1])
        if self.batch_first:
            x = x.transpose(0, 1)
        if hx is not None:
            self._check_states(hx, x.size(1))
        output, (h_n, c_n) = self.run_padded(x, None, hx)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not batched:
            return output.squeeze(time_batch_dim), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)

    def run_padded(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        hx: tuple[Tensor, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All layers on time-major input padded at the end: what a PackedSequence says without packing.

        Args:
            x: (T, B, I).
            lengths: (B,) int64 on the CPU, 1 to T, in any order; None where all are T.
            hx: (h_0, c_0), each (num_layers * num_directions, B, H); None for zeros.
            rows: (B,) int64, the batch rows' numbers for the noise; None for 0 to B - 1.

        Returns:
            outputs (T, B, num_directions * H), zero in the padding; (h_n, c_n), shaped as hx.

        Raises:
            ValueError: a shape, a length or a dtype does not fit.
        """
        self._check_input(x)
        if lengths is not None:
            shortest, longest = int(lengths.min()), int(lengths.max())
            if tuple(lengths.shape) != (x.size(1),) or shortest < 1 or longest > x.size(0):
                raise ValueError(
                    f"lengths must be {x.size(1)} numbers between 1 and {x.size(0)} (time steps), got "
                    f"{lengths.numel()} between {shortest} and {longest}"
                )
        num_directions = 2 if self.bidirectional else 1
        if hx is None:
            zeros = x.new_zeros(self.num_layers * num_directions, x.size(1), self.hidden_size)
            hx = (zeros, zeros)
        mode = self.gate_settings.mode(self.training)
        seed = draw_seed() if self.training else None
        valid = restore = None
        if self.gate_observer is not None:
            restore = None if rows is None else rows.argsort()
            if lengths is not None:
                valid = torch.arange(x.size(0), device="cpu")[:, None] < lengths
                valid = valid if restore is None else valid[:, restore]
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[:num_directions]:
                state = len(h_n)
                output, h, c, gates = ops.lstm_layer(
                    x,
                    hx[0][state],
                    hx[1][state],
                    *self.weights(layer, reverse),
                    lengths,
                    mode=mode,
                    seed=seed,
                    rows=rows,
                    layer=layer,
                    reverse=reverse,
                    need_gates=self.gate_observer is not None,
                )
                if self.gate_observer is not None and gates is not None:
                    gates = gates if restore is None else gates.index_select(1, restore.to(gates.device))
                    self.gate_observer(layer, reverse, gates, valid)
                outputs.append(output)
                h_n.append(h)
                c_n.append(c)
            x = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1 and self.training:
                x = ops.dropout(x, self.dropout)
        return x, (torch.stack(h_n), torch.stack(c_n))

    def _check_input(self, x: Tensor) -> None:
        if x.size(-1) != self.input_size:
            raise ValueError(f"input must have input_size={self.input_size} features, got {x.size(-1)}")
        if x.size(0) == 0 or x.size(1) == 0:
            raise ValueError(
                "input must have at least one time step and one batch row, "
                f"got {x.size(0)} time steps and {x.size(1)} batch rows"
            )
        self._check_dtype("input", x)

    def _check_states(self, hx: tuple[Tensor, Tensor], n_rows: int) -> None:
        shape = (self.num_layers * (2 if self.bidirectional else 1), n_rows, self.hidden_size)
        for name, state in zip(("h_0", "c_0"), hx, strict=True):
            if tuple(state.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(state.shape)}")
            self._check_dtype(name, state)

    def _check_unbatched_state(self, name: str, state: Tensor) -> Tensor:
        if state.dim() != 2:
            raise ValueError(f"{name} must have 2 dimensions with an unbatched input, got {state.dim()}")
        return state.unsqueeze(1)


def _suffix(layer: int, reverse: bool) -> str:
    return f"_l{layer}" + ("_reverse" if reverse else "")


class G2LSTMCell(_Gated):
    """A drop-in for torch.nn.LSTMCell whose input and forget gates are trained towards 0 and 1.

    Args:
        input_size: I, features of each input, > 0.
        hidden_size: H, units, > 0.
        bias: whether the cell has b_ih and b_hh.
        gate_type: "gumbel", "sharpened" or "sigmoid" (the ordinary LSTM).
        temperature: tau > 0.
        noise_prob: p, 0 <= p <= 1.
        noise_sharing: must be "step": a cell sees one step at a time. To share noise over a sequence, give all its
            steps one seed and one step number.
        eval_mode: "auto", "soft", "tempered" or "hard".

    Raises:
        ValueError: an argument is outside its range.
        TypeError: a size is no integer, bias no bool.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        gate_type: str = "gumbel",
        temperature: float = 0.9,
        noise_prob: float = 0.2,
        noise_sharing: str = "step",
        eval_mode: str = "auto",
    ) -> None:
        super().__init__(GateSettings(gate_type, temperature, noise_prob, noise_sharing, eval_mode))
        _check_size("input_size", input_size)
        _check_size("hidden_size", hidden_size)
        _check_flag("bias", bias)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih = weight(4 * hidden_size, input_size)
        self.weight_hh = weight(4 * hidden_size, hidden_size)
        self.bias_ih = weight(4 * hidden_size) if bias else None
        self.bias_hh = weight(4 * hidden_size) if bias else None
        self.reset_parameters()

    def _check_settings(self, settings: GateSettings) -> None:
        if settings.noise_sharing != "step":
            raise ValueError(
                f"noise_sharing of a cell must be step, got {settings.noise_sharing!r}: use G2LSTM for the others"
            )

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return (
            f"{self.input_size}, {self.hidden_size}{bias}, gate_type={self.gate_type}, "
            f"temperature={self.temperature}, noise_prob={self.noise_prob}, eval_mode={self.eval_mode}"
        )

    def weights(self) -> ops.CellWeights:
        """The weights as the operators take them; without biases these are None."""
        return ops.CellWeights(weight_of(self, "weight_ih"), weight_of(self, "weight_hh"), self.bias_ih, self.bias_hh)

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        seed: Tensor | int | None = None,
        step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """One time step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: (h, c), each (B, H), or (H,) unbatched; None for zeros.
            seed: int64 seed of the noise; None draws one from torch's default CPU generator. Used in training alone.
            step: the time step's number for the noise.

        Returns:
            h' and c', each (B, H), or (H,) unbatched.

        Raises:
            ValueError: the input's or a state's shape or dtype does not fit.
        """
        _check_pair(hx)
        if input.dim() not in (1, 2):
            raise ValueError(f"input must be (B, I) or (I,), got {input.dim()} dimensions")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if x.size(1) != self.input_size:
            raise ValueError(f"input must have input_size={self.input_size} features, got {x.size(1)}")
        if x.size(0) == 0:
            raise ValueError("input must have at least one batch row, got 0")
        self._check_dtype("input", x)
        shape = (x.size(0), self.hidden_size) if batched else (self.hidden_size,)
        if hx is None:
            zeros = x.new_zeros(shape)
            hx = (zeros, zeros)
        for name, state in zip(("h", "c"), hx, strict=True):
            if tuple(state.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(state.shape)}")
            self._check_dtype(name, state)
        h, c = (state if batched else state.unsqueeze(0) for state in hx)

        mode = self.gate_settings.mode(self.training)
        if self.training and seed is None:
            seed = draw_seed()
        w_ih, w_hh, b_ih, b_hh = self.weights()
        a = ops.linear(x, w_ih, b_ih, fine=mode.hard) + ops.linear(h, w_hh, b_hh, fine=mode.hard)
        c_dtype = c.dtype
        c = c.to(torch.float64 if a.dtype == torch.float64 else torch.float32)
        if seed is not None:
            seed = torch.as_tensor(seed, dtype=torch.int64, device="cpu")
        h, c = ops.lstm_step(a, c, seed, mode=mode, step=step)
        h, c = h.to(c_dtype), c.to(c_dtype)
        return (h, c) if batched else (h.squeeze(0), c.squeeze(0))
