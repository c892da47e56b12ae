"""The decoder of the fairseq model `g2lstm`."""

from argparse import Namespace
from typing import cast

from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax
from torch import Tensor, nn

from .. import ops
from ..config import adaptive_softmax_cutoffs, has_attention
from ..modules import G2LSTMCell, GateObserver
from ..packed import Linear, weight_of
from ..philox import draw_seed
from ..settings import GateMode, GateSettings
from .common import MAX_POSITIONS, Dropout, EncoderOut, IncrementalState, embed, init_uniform


class Attention(nn.Module):
    """The weights of the attention, under the stock model's names; `ops.decoder` computes with them."""

    def __init__(self, h_size: int, source_size: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(h_size, source_size, bias=False)
        self.output_proj = nn.Linear(h_size + source_size, h_size, bias=False)
        init_uniform(self)


class G2LSTMDecoder(FairseqIncrementalDecoder):
    """Stacked G2-LSTM cells with input feeding and attention.

    Args:
        dictionary: the target dictionary.
        embed_tokens: the target embeddings.
        source_size: E, units of the encoder's outputs and states.
        options: resolved options of the model.
        settings: the gates' settings.

    Attributes:
        gate_observer: None, or a function called once for each layer in each forward, as `G2LSTM.gate_observer`.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        source_size: int,
        options: Namespace,
        settings: GateSettings,
    ) -> None:
        super().__init__(dictionary)
        name = self.__class__.__name__
        h_size, out_size = options.decoder_hidden_size, options.decoder_out_embed_dim
        self.dropout_in_module = Dropout(
            float(options.decoder_dropout_in), module_name=name
        )
        self.dropout_out_module = Dropout(
            float(options.decoder_dropout_out), module_name=name
        )
        self.gate_settings = settings
        self.gate_observer: GateObserver | None = None
        self.h_size = h_size
        self.padding_idx = dictionary.pad()
        self.share_input_output_embed = options.share_decoder_input_output_embed
        self.need_attn = True
        self.embed_tokens = embed_tokens
        self.encoder_hidden_proj = self.encoder_cell_proj = None
        if source_size != h_size:
            self.encoder_hidden_proj = init_uniform(Linear(source_size, h_size))
            self.encoder_cell_proj = init_uniform(Linear(source_size, h_size))
        self.layers = nn.ModuleList()
        for layer in range(options.decoder_layers):
            n_inputs = h_size if layer > 0 else options.decoder_embed_dim + h_size
            cell = G2LSTMCell(n_inputs, h_size)
            cell.gate_settings = settings
            self.layers.append(init_uniform(cell))
        self.attention = Attention(h_size, source_size) if has_attention(options) else None
        self.additional_fc = None
        if h_size != out_size:
            self.additional_fc = init_uniform(Linear(h_size, out_size))
        self.adaptive_softmax = None
        cutoff = adaptive_softmax_cutoffs(options)
        if cutoff is not None:
            self.adaptive_softmax = AdaptiveSoftmax(
                len(dictionary), h_size, cutoff, dropout=self.dropout_out_module.p
            )
        elif not self.share_input_output_embed:
            self.fc_out = init_uniform(Linear(out_size, len(dictionary)))

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut | None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Decodes a target prefix; see `G2LSTMModel.forward`.

        Returns:
            logits (B, T, V), and in evaluation the attention (B, T, S), else None.
        """
        x, attention = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return self.output_layer(x), attention

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut | None = None,
        incremental_state: IncrementalState | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, with features (B, T, out_embed_dim) in place of logits.

        Raises:
            ValueError: there is no encoder_out, or a token is not in the dictionary.
        """
        if encoder_out is None:
            raise ValueError("the g2lstm decoder needs encoder_out, got None: it has no mode without an encoder")
        if incremental_state is not None and len(incremental_state) > 0:
            prev_output_tokens = prev_output_tokens[:, -1:]
            h, c, feed = self._cached(incremental_state)
        else:
            h, c, feed = self._first_states(encoder_out)
        x = self.dropout_in_module(embed(self.embed_tokens, prev_output_tokens.t()))
        dropout_mask = self._dropout_mask(x, len(self.layers))
        mode = self.gate_settings.mode(self.training)
        attention: Tensor | None
        plain = not self.training and self.gate_observer is None and dropout_mask is None
        if incremental_state is not None and plain and len(x) == 1:
            feed, h, c, attention = self._search_step(x[0], h, c, feed, encoder_out, incremental_state, mode)
            features = feed.unsqueeze(1)
            attention = None if attention is None else attention.unsqueeze(1)
        else:
            out = self._teacher_forced(x, h, c, feed, encoder_out, dropout_mask, mode)
            if self.gate_observer is not None and out.gates is not None:
                valid = prev_output_tokens.ne(self.padding_idx).t()
                for layer, z in enumerate(out.gates):
                    self.gate_observer(layer, False, z, valid)
            features, h, c, feed = out.outputs.transpose(0, 1), out.h, out.c, out.feed
            attention = None if out.attention is None else out.attention.transpose(0, 1)
        if incremental_state is not None:
            if self.adaptive_softmax is not None:
                features = features.clone()  # which fairseq divides by --temperature in place; feed shares their memory
            cached = {"prev_hiddens": h, "prev_cells": c, "input_feed": feed}
            self.set_incremental_state(incremental_state, "cached_state", cached)
        if self.additional_fc is not None and self.adaptive_softmax is None:
            features = self.dropout_out_module(self.additional_fc(features))
        return features, attention if self.need_attn and not self.training else None

    def _teacher_forced(
        self,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        feed: Tensor,
        encoder_out: EncoderOut,
        dropout_mask: Tensor | None,
        mode: GateMode,
    ) -> ops.DecoderOutput:
        attention = self.attention
        source = padding = None
        if attention is not None:
            source, padding = encoder_out.outputs, encoder_out.padding
            if encoder_out.rows is not None:
                source, padding = (s.index_select(1, encoder_out.rows) for s in (source, padding))
        return ops.decoder(
            x,
            h,
            c,
            feed,
            [cell.weights() for cell in self.cells()],
            source,
            padding,
            attention.input_proj.weight if attention is not None else None,
            attention.output_proj.weight if attention is not None else None,
            dropout_mask,
            mode=mode,
            seed=draw_seed() if self.training else None,
            need_attention=not self.training and self.need_attn,
            need_gates=self.gate_observer is not None,
        )

    def _search_step(
        self,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        feed: Tensor,
        encoder_out: EncoderOut,
        incremental_state: IncrementalState,
        mode: GateMode,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        cells = [cell.weights() for cell in self.cells()]
        if self.attention is None:
            return ops.decoder_step(x, h, c, feed, cells, mode=mode)
        w_out = self.attention.output_proj.weight
        cached = self.get_incremental_state(incremental_state, "attention_memory")
        if cached is None:
            w_query = self.attention.input_proj.weight
            memory = ops.attention_memory(encoder_out.outputs, encoder_out.padding, w_query, w_out)
            self.set_incremental_state(incremental_state, "attention_memory", memory._asdict())
        else:
            memory = ops.AttentionMemory(**cached)
        return ops.decoder_step(x, h, c, feed, cells, memory, encoder_out.rows, w_out, mode=mode)

    def cells(self) -> list[G2LSTMCell]:
        """The stacked cells, the lowest first."""
        return cast(list[G2LSTMCell], list(self.layers))

    def _first_states(self, encoder_out: EncoderOut) -> tuple[Tensor, Tensor, Tensor]:
        h, c = encoder_out.h_n, encoder_out.c_n
        if self.encoder_hidden_proj is not None and self.encoder_cell_proj is not None:
            h, c = self.encoder_hidden_proj(h), self.encoder_cell_proj(c)
        return h, c, h.new_zeros(h.size(1), self.h_size)

    def _cached(self, incremental_state: IncrementalState | None) -> tuple[Tensor, Tensor, Tensor]:
        cached = self.get_incremental_state(incremental_state, "cached_state")
        return cached["prev_hiddens"], cached["prev_cells"], cached["input_feed"]

    def _dropout_mask(self, x: Tensor, n_layers: int) -> Tensor | None:
        """(T, L, B, H) dropout factors of all steps at once, or None where nothing is dropped."""
        dropout = self.dropout_out_module
        if dropout.p == 0.0 or not (self.training or dropout.apply_during_inference):
            return None
        return dropout(x.new_ones(x.size(0), n_layers, x.size(1), self.h_size))

    def output_layer(self, features: Tensor) -> Tensor:
        """Projects features (B, T, out_embed_dim) to logits (B, T, V); adaptive softmax takes them as they are."""
        if self.adaptive_softmax is not None:
            return features
        if self.share_input_output_embed:
            return ops.linear(features, weight_of(self.embed_tokens, "weight"))
        return self.fc_out(features)

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """Selects batch rows of the cached states, as beam search asks."""
        if not incremental_state:
            return
        h, c, feed = self._cached(incremental_state)
        cached = {
            "prev_hiddens": h.index_select(1, new_order),
            "prev_cells": c.index_select(1, new_order),
            "input_feed": feed.index_select(0, new_order),
        }
        self.set_incremental_state(incremental_state, "cached_state", cached)

    def max_positions(self) -> int:
        """The longest target sentence that the model takes."""
        return MAX_POSITIONS

    def make_generation_fast_(self, need_attn: bool = False, **kwargs) -> None:
        """Leaves out the attention at generation unless it is asked for."""
        self.need_attn = need_attn
