"""What the tests of whole models' gates share: tiny models with gates of all values, and these from scratch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_g2lstm.checkpoints import read_checkpoint


def spread(source: Path, target: Path, factor: float = 10) -> Path:
    """Writes a checkpoint whose weights are `factor` times those of another: gates of all values, near 0 and 1 too."""
    state = read_checkpoint(source)
    for name, weight in state["model"].items():
        if name != "gates.values":
            weight *= factor
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, target)
    return target


class DirectModel:
    """A checkpoint's LSTM in float64 and the textbook's words, a sentence at a time: no batches, padding or kernels.

    Args:
        checkpoint: a bidirectional `g2lstm` or stock `lstm`, or a language model.
        temperature: that divides the input and forget gates' arguments in evaluation.
    """

    def __init__(self, checkpoint: Path, temperature: float = 1.0) -> None:
        self.weights = {name: weight.double() for name, weight in read_checkpoint(checkpoint)["model"].items()}
        self.temperature = temperature

    def _layer(self, prefix: str, suffix: str, xs: Tensor, h: Tensor, c: Tensor) -> dict[str, Any]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_ih, w_hh, b_ih, b_hh = (self.weights[f"{prefix}{name}{suffix}"] for name in names)
        outputs, inputs, forgets = [], [], []
        for x in xs:
            a_i, a_f, a_g, a_o = (w_ih @ x + b_ih + w_hh @ h + b_hh).chunk(4)
            i, f = torch.sigmoid(a_i / self.temperature), torch.sigmoid(a_f / self.temperature)
            c = f * c + i * torch.tanh(a_g)
            h = torch.sigmoid(a_o) * torch.tanh(c)
            outputs.append(h)
            inputs.append(i)
            forgets.append(f)
        return {"outputs": torch.stack(outputs), "h": h, "c": c, "gates": (torch.stack(inputs), torch.stack(forgets))}

    def translate(self, source: Tensor, read: Tensor) -> dict[str, Any]:
        """Both gates (T, H) of "encoder, layer 1", "encoder, layer 1, backward", …, "decoder, layer 1", …, and
        `attention`.

        Args:
            source: (S,) the source's tokens. read: (T,) what the decoder reads.
        """
        w = self.weights
        gates: dict[str, Any] = {}
        outputs, states = w["encoder.embed_tokens.weight"][source], []
        n_layers = sum(name.startswith("decoder.layers.") and name.endswith("weight_hh") for name in w)
        for layer in range(n_layers):
            zeros = outputs.new_zeros(w[f"encoder.lstm.weight_hh_l{layer}"].size(1))
            there = self._layer("encoder.lstm.", f"_l{layer}", outputs, zeros, zeros)
            back = self._layer("encoder.lstm.", f"_l{layer}_reverse", outputs.flip(0), zeros, zeros)
            gates[f"encoder, layer {layer + 1}"] = there["gates"]
            gates[f"encoder, layer {layer + 1}, backward"] = tuple(values.flip(0) for values in back["gates"])
            outputs = torch.cat((there["outputs"], back["outputs"].flip(0)), 1)
            h, c = (torch.cat((there[name], back[name])) for name in "hc")
            if "decoder.encoder_hidden_proj.weight" in w:
                h = w["decoder.encoder_hidden_proj.weight"] @ h + w["decoder.encoder_hidden_proj.bias"]
                c = w["decoder.encoder_cell_proj.weight"] @ c + w["decoder.encoder_cell_proj.bias"]
            states.append((h, c))
        feed = torch.zeros_like(h)
        steps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_layers)]
        attention = []
        for embedding in w["decoder.embed_tokens.weight"][read]:
            x = torch.cat((embedding, feed))
            for layer, (h, c) in enumerate(states):
                step = self._layer(f"decoder.layers.{layer}.", "", x[None], h, c)
                states[layer] = step["h"], step["c"]
                steps[layer].append(step["gates"])
                x = step["h"]
            looked = torch.softmax(outputs @ (w["decoder.attention.input_proj.weight"] @ x), 0)
            feed = torch.tanh(w["decoder.attention.output_proj.weight"] @ torch.cat((looked @ outputs, x)))
            attention.append(looked)
        for layer, pairs in enumerate(steps):
            gates[f"decoder, layer {layer + 1}"] = tuple(torch.cat(part) for part in zip(*pairs, strict=True))
        return {**gates, "attention": torch.stack(attention)}

    def read(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Both gates (T, H) of each layer of a language model that reads a text from its start."""
        xs = self.weights["decoder.embed_tokens.weight"][tokens]
        gates, layer = {}, 0
        while f"decoder.layers.{layer}.weight_hh" in self.weights:
            zeros = xs.new_zeros(self.weights[f"decoder.layers.{layer}.weight_hh"].size(1))
            run = self._layer(f"decoder.layers.{layer}.", "", xs, zeros, zeros)
            gates[f"decoder, layer {layer + 1}"] = run["gates"]
            xs, layer = run["outputs"], layer + 1
        return gates
