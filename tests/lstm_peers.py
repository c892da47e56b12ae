"""Independent peers of G2LSTM, built on torch.nn.LSTM alone.

The noise identity: (a + m n) / tau is affine in h. Divide the input and forget gates' rows of W_ih, W_hh and the
biases by tau, append the noise, and the ordinary LSTM whose W_ih has a block of identity / tau beside it computes the
same. The noise comes from the scalar table, cell by cell.
"""

from dataclasses import dataclass

import torch
from noise_table import Place
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fairseq_g2lstm import G2LSTM

# Equality in double precision: sums in another order stray by some 1e-15, and the promise is 1e-6.
EQUAL = {"rtol": 1e-9, "atol": 1e-9}


@dataclass(frozen=True)
class Noise:
    """How the noise of a forward pass is drawn."""

    seed: int
    noise_prob: float
    sharing: str = "step"

    def __call__(self, n_steps: int, n_rows: int, hidden_size: int, layer: int, direction: int) -> Tensor:
        """(T, B, 2H) float64, from the scalar table."""
        noise = torch.empty(n_steps, n_rows, 2, hidden_size, dtype=torch.float64)
        for t, b, j in torch.cartesian_prod(*map(torch.arange, (n_steps, n_rows, hidden_size))).reshape(-1, 3).tolist():
            place = Place(self.seed, layer, direction, t, b, j, self.noise_prob, self.sharing)
            noise[t, b, :, j] = torch.tensor(place.noise(), dtype=torch.float64)
        return noise.flatten(2)


def torch_twin(lstm: G2LSTM) -> nn.LSTM:
    """torch.nn.LSTM of the same sizes with the same weights, in the same mode."""
    twin = nn.LSTM(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        lstm.bias,
        lstm.batch_first,
        lstm.dropout,
        lstm.bidirectional,
        dtype=lstm.weight_hh_l0.dtype,
    )
    twin.load_state_dict(lstm.state_dict())
    return twin.train(lstm.training)


class IdentityPeer:
    """One torch.nn.LSTM a layer, which together compute G2LSTM's training forward with given noise.

    Args:
        lstm: whose weights are taken; its settings are not looked at.
        temperature: tau.
        noise: the noise, or None for none.
    """

    def __init__(self, lstm: G2LSTM, temperature: float, noise: Noise | None) -> None:
        self.lstm, self.noise = lstm, noise
        self.n_directions = 2 if lstm.bidirectional else 1
        h_size = lstm.hidden_size
        # What the rows of i, f, g and o are divided by.
        self.scale = torch.ones(4 * h_size, 1, dtype=torch.float64)
        self.scale[: 2 * h_size] = 1 / temperature
        self.layers = [self._layer(layer) for layer in range(lstm.num_layers)]

    def _layer(self, layer: int) -> nn.LSTM:
        lstm, h_size = self.lstm, self.lstm.hidden_size
        n_inputs = getattr(lstm, f"weight_ih_l{layer}").size(1)
        extra = 2 * h_size * self.n_directions
        peer = nn.LSTM(
            n_inputs + extra, h_size, bias=lstm.bias, bidirectional=lstm.bidirectional, dtype=torch.float64
        )
        with torch.no_grad():
            for direction, suffix in enumerate(("", "_reverse")[: self.n_directions]):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if lstm.bias else 2]:
                    weight = getattr(lstm, f"{name}_l{layer}{suffix}")
                    scale = self.scale if weight.dim() == 2 else self.scale.squeeze(1)
                    scaled = weight * scale
                    if name == "weight_ih":
                        block = torch.zeros(4 * h_size, extra, dtype=torch.float64)
                        columns = slice(2 * h_size * direction, 2 * h_size * (direction + 1))
                        block[: 2 * h_size, columns] = torch.eye(2 * h_size) * self.scale[0]
                        scaled = torch.cat((scaled, block), dim=1)
                    getattr(peer, f"{name}_l0{suffix}").copy_(scaled)
        return peer

    def __call__(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Time-major padded x (T, B, I) in, padded outputs and states out; rows are the user's, in any order."""
        states = []
        for layer, peer in enumerate(self.layers):
            part = slice(layer * self.n_directions, (layer + 1) * self.n_directions)
            noises = [
                torch.zeros(*x.shape[:2], 2 * self.lstm.hidden_size, dtype=torch.float64)
                if self.noise is None
                else self.noise(*x.shape[:2], self.lstm.hidden_size, layer, direction)
                for direction in range(self.n_directions)
            ]
            inputs = torch.cat((x, *noises), dim=-1)
            layer_hx = None if hx is None else (hx[0][part], hx[1][part])
            if lengths is None:
                x, state = peer(inputs, layer_hx)
            else:
                packed, state = peer(pack_padded_sequence(inputs, lengths, enforce_sorted=False), layer_hx)
                x, _ = pad_packed_sequence(packed, total_length=x.size(0))
            states.append(state)
        h_n, c_n = (torch.cat(part) for part in zip(*states, strict=True))
        return x, (h_n, c_n)

    def weight_gradients(self) -> dict[str, Tensor]:
        """The gradients of the G2LSTM's own weights, by name: each is a row of the peer's, scaled."""
        gradients = {}
        for layer, peer in enumerate(self.layers):
            for name, weight in peer.named_parameters():
                gradient = weight.grad * (self.scale if weight.dim() == 2 else self.scale.squeeze(1))
                if name.startswith("weight_ih"):
                    gradient = gradient[:, : -2 * self.lstm.hidden_size * self.n_directions]
                gradients[name.replace("_l0", f"_l{layer}")] = gradient
        return gradients


def padded(output: Tensor | PackedSequence) -> Tensor:
    """The data of a plain or packed output; packed ones padded, in the user's order."""
    return pad_packed_sequence(output)[0] if isinstance(output, PackedSequence) else output


def weighted_sum(*tensors: Tensor) -> Tensor:
    """A scalar that weighs every element differently, so that its gradient tells them apart."""
    return sum(
        (x * torch.linspace(-1, 1.3, x.numel(), dtype=x.dtype).sin().reshape(x.shape)).sum() for x in tensors
    )


def assert_same_outputs(found, expected, **tolerance: float) -> None:
    """Compares (output, (h_n, c_n)) of two LSTMs, padded or packed alike, their packing included."""
    tolerance = tolerance or EQUAL
    (output, state), (expected_output, expected_state) = found, expected
    assert isinstance(output, PackedSequence) == isinstance(expected_output, PackedSequence)
    if isinstance(output, PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            one, other = getattr(output, field), getattr(expected_output, field)
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
        output, expected_output = output.data, expected_output.data
    torch.testing.assert_close(output, expected_output, **tolerance)
    for one, other in zip(state, expected_state, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
