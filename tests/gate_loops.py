"""The gates of an LSTM in the textbook's words, one sequence at a time: no batches, no padding, no kernels."""

import torch
from torch import Tensor

from fairseq_g2lstm import G2LSTM

Key = tuple[int, bool]


def gates_of_sequence(lstm: G2LSTM, x: Tensor, temperature: float = 1.0) -> dict[Key, tuple[Tensor, Tensor]]:
    """The noise-free input and forget gates, each (T, H), of all layers and directions on x (T, I), without hx."""
    found = {}
    for layer in range(lstm.num_layers):
        outputs = []
        for reverse in (False, True)[: 1 + lstm.bidirectional]:
            w_ih, w_hh, b_ih, b_hh = (weight.detach() for weight in lstm.weights(layer, reverse))
            h = c = x.new_zeros(lstm.hidden_size)
            steps: list[tuple[Tensor, Tensor, Tensor]] = []
            for x_t in x.flip(0) if reverse else x:
                a_i, a_f, a_g, a_o = (w_ih @ x_t + b_ih + w_hh @ h + b_hh).chunk(4)
                i, f = torch.sigmoid(a_i / temperature), torch.sigmoid(a_f / temperature)
                c = f * c + i * torch.tanh(a_g)
                h = torch.sigmoid(a_o) * torch.tanh(c)
                steps.append((i, f, h))
            i, f, h = (torch.stack(part[::-1] if reverse else part) for part in map(list, zip(*steps, strict=True)))
            found[layer, reverse] = (i, f)
            outputs.append(h)
        x = torch.cat(outputs, dim=1)
    return found
