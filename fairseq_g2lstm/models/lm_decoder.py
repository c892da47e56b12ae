"""The decoder of the fairseq model `g2lstm_lm`: stacked G2-LSTM layers over a text."""

import math
from argparse import Namespace
from typing import Any, cast

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from .. import ops
from ..config import adaptive_softmax_cutoffs
from ..config_lm import layer_sizes
from ..modules import G2LSTMCell, GateObserver
from ..packed import Linear, weight_of
from ..philox import draw_seed
from ..settings import GateSettings
from .cache import CacheSettings, attend, mix
from .carried import CarriedState, TextState
from .common import MAX_POSITIONS, Dropout, IncrementalState, embed, init_uniform, lengths_of_rows

Extra = dict[str, Any]
"""What the decoder returns beside logits: `attn`, always None; in training `outputs` (T, B, H) of the last layer and
`dropped_outputs`, the same after dropout; in evaluation with a cache `cache`, a `CacheAttention`."""


class LockedDropout(Dropout):
    """Dropout of the same elements at all time steps: Gal and Ghahramani's variational dropout.

    Takes and returns (T, B, ...).
    """

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        if self.p > 0 and (self.training or self.apply_during_inference):
            return x * super().forward(x.new_ones(1, *x.shape[1:]))
        return x


class LanguageModelDecoder(FairseqIncrementalDecoder):
    """Stacked G2-LSTM layers of any sizes, with the regularisers of AWD-LSTM (Merity, Keskar, Socher 2018).

    Args:
        dictionary: the dictionary.
        embed_tokens: the embeddings.
        options: resolved options of the model.
        settings: the gates' settings.

    Attributes:
        gate_observer: None, or a function called once for each layer in each forward, as `G2LSTM.gate_observer`.
        cache: settings of the continuous cache, used in evaluation of carried text alone, or None.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        options: Namespace,
        settings: GateSettings,
    ) -> None:
        super().__init__(dictionary)
        name = self.__class__.__name__
        dropout = LockedDropout if options.decoder_dropout_type == "locked" else Dropout
        self.dropout_in_module = dropout(float(options.decoder_dropout_in), module_name=name)
        self.dropout_hidden_module = dropout(float(options.decoder_dropout_hidden), module_name=name)
        self.dropout_out_module = dropout(float(options.decoder_dropout_out), module_name=name)
        self.dropout_embed = float(options.decoder_dropout_embed)
        self.weight_drop = float(options.decoder_weight_drop)
        self.gate_settings = settings
        self.gate_observer: GateObserver | None = None
        self.cache: CacheSettings | None = None
        self.padding_idx = dictionary.pad()
        self.share_input_output_embed = bool(options.share_decoder_input_output_embed)
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList()
        n_inputs = options.decoder_embed_dim
        for n_units in layer_sizes(options):
            cell = G2LSTMCell(n_inputs, n_units)
            cell.gate_settings = settings
            lstm_range = options.lstm_init_range or 1.0 / math.sqrt(n_units)
            self.layers.append(init_uniform(cell, lstm_range))
            n_inputs = n_units
        out_size = options.decoder_out_embed_dim
        self.additional_fc = None
        if n_inputs != out_size:
            self.additional_fc = init_uniform(Linear(n_inputs, out_size), options.init_range)
        self.adaptive_softmax = self.output_bias = None
        cutoff = adaptive_softmax_cutoffs(options)
        if cutoff is not None:
            self.adaptive_softmax = AdaptiveSoftmax(
                len(dictionary), n_inputs, cutoff, dropout=self.dropout_out_module.p
            )
        elif not self.share_input_output_embed:
            self.fc_out = init_uniform(Linear(out_size, len(dictionary)), options.init_range)
        elif options.decoder_output_bias:
            self.output_bias = nn.Parameter(torch.zeros(len(dictionary)))
        self._carried = {True: CarriedState(), False: CarriedState()}

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
        block: int | None = None,
    ) -> tuple[Tensor, Extra]:
        """Reads a block of text; see `G2LSTMLanguageModel.forward`.

        Returns:
            logits (B, T, V), with adaptive softmax features (B, T, H), and `Extra`.
        """
        x, extra = self.extract_features(prev_output_tokens, incremental_state, src_lengths, block)
        return self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
        block: int | None = None,
    ) -> tuple[Tensor, Extra]:
        """As `forward`, with features (B, T, out_embed_dim) in place of logits.

        Raises:
            ValueError: no state leads to the block, or one of another number of rows; a token is not in the dictionary.
        """
        state = None
        if incremental_state is not None:
            state = self._cached(incremental_state)
            if state is not None:
                prev_output_tokens = prev_output_tokens[:, -1:]
        elif block is not None:
            state = self.carried(self.training).at(block)
            if state is not None and len(state.h[0]) != len(prev_output_tokens):
                raise ValueError(
                    f"block {block} of the text has {len(prev_output_tokens)} rows, the state before it "
                    f"{len(state.h[0])}: keep --batch-size, or begin again at epoch 1 by --reset-dataloader"
                )
        tokens = prev_output_tokens.t()
        lengths = None if src_lengths is None or incremental_state is not None else src_lengths.cpu()
        if lengths is not None:
            lengths = lengths_of_rows(lengths, len(prev_output_tokens))
            if int(lengths.min()) == len(tokens):
                lengths = None
        outputs, h, c = self._run_layers(self._embed(tokens), state, lengths)
        state = TextState(h, c) if state is None else state._replace(h=h, c=c)
        dropped = self.dropout_out_module(outputs)
        extra: Extra = {"attn": None}
        if self.training:
            extra |= {"outputs": outputs, "dropped_outputs": dropped}
        if block is not None:
            if self.cache is not None and not self.training:
                extra["cache"], keys, key_tokens = attend(
                    outputs.transpose(0, 1), prev_output_tokens, state.keys, state.tokens, self.cache
                )
                state = state._replace(keys=keys, tokens=key_tokens)
            self.carried(self.training).keep(block + 1, state)
        if incremental_state is not None:
            cached = {f"h{layer}": value for layer, value in enumerate(h)}
            cached |= {f"c{layer}": value for layer, value in enumerate(c)}
            self.set_incremental_state(incremental_state, "cached_state", cached)
        features = dropped.transpose(0, 1)
        if self.additional_fc is not None and self.adaptive_softmax is None:
            features = self.dropout_out_module(self.additional_fc(features).transpose(0, 1)).transpose(0, 1)
        return features, extra

    def _embed(self, tokens: Tensor) -> Tensor:
        x = embed(self.embed_tokens, tokens)
        if self.training and self.dropout_embed > 0:
            kept = ops.dropout(x.new_ones(self.embed_tokens.num_embeddings), self.dropout_embed)
            x = x * kept[tokens].unsqueeze(-1)
        return self.dropout_in_module(x)

    def _run_layers(
        self, x: Tensor, state: TextState | None, lengths: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        mode = self.gate_settings.mode(self.training)
        seed = draw_seed() if self.training else None
        valid = None
        if self.gate_observer is not None and lengths is not None:
            valid = torch.arange(len(x), device="cpu")[:, None] < lengths
        if lengths is not None:
            lengths = lengths.clamp(min=1)  # rows without a token, whose state nobody needs
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for layer, cell in enumerate(self.cells()):
            weights = cell.weights()
            if self.training and isinstance(weights.w_hh, Tensor):
                weights = weights._replace(w_hh=ops.dropout(weights.w_hh, self.weight_drop))
            if state is not None:
                h_0, c_0 = state.h[layer].to(x.dtype), state.c[layer].to(x.dtype)
            else:
                h_0 = c_0 = x.new_zeros(x.size(1), cell.hidden_size)
            x, h, c, gates = ops.lstm_layer(
                x,
                h_0,
                c_0,
                *weights,
                lengths,
                mode=mode,
                seed=seed,
                layer=layer,
                need_gates=self.gate_observer is not None,
            )
            if self.gate_observer is not None and gates is not None:
                self.gate_observer(layer, False, gates, valid)
            h_n.append(h)
            c_n.append(c)
            if layer < len(self.layers) - 1:
                x = self.dropout_hidden_module(x)
        return x, h_n, c_n

    def cells(self) -> list[G2LSTMCell]:
        """The layers, the lowest first."""
        return cast(list[G2LSTMCell], list(self.layers))

    def carried(self, training: bool) -> CarriedState:
        """The state carried from block to block, one in training and another in evaluation."""
        return self._carried[training]

    def output_layer(self, features: Tensor) -> Tensor:
        """Projects features (B, T, out_embed_dim) to logits (B, T, V); adaptive softmax takes them as they are."""
        if self.adaptive_softmax is not None:
            return features
        if self.share_input_output_embed:
            return ops.linear(features, weight_of(self.embed_tokens, "weight"), self.output_bias)
        return self.fc_out(features)

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Extra], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """Probabilities (B, T, V), or their logarithms, of what `forward` returned, with the cache's where it is on."""
        cache = net_output[1].get("cache")
        if cache is None or self.cache is None:
            return super().get_normalized_probs(net_output, log_probs, sample)
        mixed = mix(super().get_normalized_probs(net_output, True, sample), cache, self.cache.weight)
        return mixed if log_probs else mixed.exp()

    def _cached(self, incremental_state: IncrementalState) -> TextState | None:
        cached = self.get_incremental_state(incremental_state, "cached_state")
        if cached is None:
            return None
        h, c = ([cached[f"{name}{layer}"] for layer in range(len(self.layers))] for name in "hc")
        return TextState(h, c)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Selects batch rows of the cached states, as beam search asks."""
        cached = self.get_incremental_state(incremental_state, "cached_state")
        if cached is not None:
            reordered = {name: value.index_select(0, new_order) for name, value in cached.items()}
            self.set_incremental_state(incremental_state, "cached_state", reordered)

    def max_positions(self) -> int:
        """The longest block that the model takes."""
        return MAX_POSITIONS
