"""The fairseq model `g2lstm`: the stock `lstm` translation model with G2-LSTM layers, the same parameter names."""

import os
from argparse import Namespace
from typing import cast

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
    register_model_architecture,
)
from fairseq.modules import AdaptiveSoftmax, FairseqDropout
from torch import Tensor, nn

from .. import ops
from ..config import (
    ARCHITECTURES,
    G2LSTMConfig,
    ModelOptions,
    apply_architecture,
    gate_settings,
    resolve,
)
from ..distributed import check_ranks_are_joined
from ..modules import G2LSTM, G2LSTMCell, GateObserver
from ..philox import draw_seed
from ..reference import GateSettings

MAX_POSITIONS = 100_000
INIT_RANGE = 0.1

EncoderOut = tuple[Tensor, Tensor, Tensor, Tensor]
IncrementalState = dict[str, dict[str, Tensor | None]]


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


@register_model("g2lstm", dataclass=G2LSTMConfig)
class G2LSTMModel(FairseqEncoderDecoderModel):
    """Recurrent translation model with attention and input feeding whose gates are trained towards 0 and 1.

    With `gate_type="sigmoid"` it computes what the stock `lstm` computes from the same parameters.

    Args:
        encoder: the encoder.
        decoder: the decoder.
        settings: the gates' settings that the options ask for.
    """

    encoder: "G2LSTMEncoder"
    decoder: "G2LSTMDecoder"

    def __init__(
        self, encoder: "G2LSTMEncoder", decoder: "G2LSTMDecoder", settings: GateSettings
    ) -> None:
        super().__init__(encoder, decoder)
        self.option_settings = settings
        self.gates = GateValues(settings)
        self.num_updates = 0
        self.register_load_state_dict_post_hook(lambda *_: self._take_loaded_gate_values())
        self.set_gate_values(settings.temperature, settings.noise_prob)

    @classmethod
    def build_model(cls, cfg: ModelOptions, task) -> "G2LSTMModel":
        """Builds the model from fairseq's options and the task's dictionaries.

        Raises:
            ValueError: an option is outside its range or does not fit another; the message names it.
            FileNotFoundError: a file of pre-trained embeddings is missing.
            RuntimeError: torchrun started several processes that fairseq has not joined.
        """
        check_ranks_are_joined()
        options = resolve(cfg)
        settings = gate_settings(options)
        source, target = task.source_dictionary, task.target_dictionary
        if options.share_all_embeddings and source != target:
            raise ValueError(
                "--share-all-embeddings needs one dictionary for both languages, got two different ones: "
                "preprocess with --joined-dictionary"
            )
        encoder_embed = _build_embedding(
            source, options.encoder_embed_dim, "encoder_embed_path", options
        )
        decoder_embed = encoder_embed
        if not options.share_all_embeddings:
            decoder_embed = _build_embedding(
                target, options.decoder_embed_dim, "decoder_embed_path", options
            )
        encoder_embed.weight.requires_grad_(not options.encoder_freeze_embed)
        if options.decoder_freeze_embed:
            decoder_embed.weight.requires_grad_(False)
        encoder = G2LSTMEncoder(source, encoder_embed, options, settings)
        decoder = G2LSTMDecoder(target, decoder_embed, encoder.output_units, options, settings)
        return cls(encoder, decoder, settings)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        incremental_state: IncrementalState | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher-forced pass.

        Args:
            src_tokens: (B, S) source tokens. src_lengths: (B,). prev_output_tokens: (B, T).
            incremental_state: fairseq's state of incremental decoding, or None.

        Returns:
            logits (B, T, V), and in evaluation the attention (B, T, S), else None.
        """
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths)
        return self.decoder(
            prev_output_tokens, encoder_out=encoder_out, incremental_state=incremental_state
        )

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
            self._use(self.option_settings.with_values(temperature, noise_prob))
            self.gates.values[:2] = self.gates.values.new_tensor([temperature, noise_prob])

    @property
    def gate_settings(self) -> GateSettings:
        """The gates' settings in use."""
        return self.decoder.gate_settings

    def _use(self, settings: GateSettings) -> None:
        self.encoder.lstm.gate_settings = settings
        self.decoder.gate_settings = settings
        for cell in self.decoder.cells():
            cell.gate_settings = settings

    def _take_loaded_gate_values(self) -> None:
        options = self.option_settings
        values = self.gates.values.tolist()
        # An option that differs from the one saved was changed since, and holds.
        temperature = values[0] if options.temperature == values[2] else options.temperature
        noise_prob = values[1] if options.noise_prob == values[3] else options.noise_prob
        in_use = [temperature, noise_prob, options.temperature, options.noise_prob]
        self.gates.values.copy_(self.gates.values.new_tensor(in_use))
        self._use(options.with_values(temperature, noise_prob))

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Gives a stock `lstm` checkpoint the options' temperature and noise probability."""
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        options = self.option_settings
        values = [options.temperature, options.noise_prob] * 2
        state_dict.setdefault(f"{prefix}gates.values", torch.tensor(values, dtype=torch.float64))


class G2LSTMEncoder(FairseqEncoder):
    """Stacked, optionally bidirectional G2-LSTM over source embeddings.

    Args:
        dictionary: the source dictionary.
        embed_tokens: the source embeddings.
        options: resolved options of the model.
        settings: the gates' settings.
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
        self.dropout_in_module = FairseqDropout(
            float(options.encoder_dropout_in), module_name=name
        )
        self.dropout_out_module = FairseqDropout(
            float(options.encoder_dropout_out), module_name=name
        )
        self.padding_idx = dictionary.pad()
        self.embed_tokens = embed_tokens
        self.lstm = G2LSTM(
            options.encoder_embed_dim,
            options.encoder_hidden_size,
            num_layers=options.encoder_layers,
            dropout=self.dropout_out_module.p if options.encoder_layers > 1 else 0.0,
            bidirectional=options.encoder_bidirectional,
        )
        self.lstm.gate_settings = settings
        _init_uniform(self.lstm)
        self.output_units = options.encoder_hidden_size * (2 if options.encoder_bidirectional else 1)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, enforce_sorted: bool = False
    ) -> EncoderOut:
        """Encodes the source.

        Args:
            src_tokens: (B, S), padded on either side. src_lengths: (B,), in any order.
            enforce_sorted: taken for the stock model's callers; lengths need no order here.

        Returns:
            outputs (S, B, E); last h and last c (L, B, E); padding mask (S, B), true at padding.
        """
        src_tokens = utils.convert_padding_direction(
            src_tokens, self.padding_idx, left_to_right=True
        )
        x = self.dropout_in_module(self.embed_tokens(src_tokens)).transpose(0, 1)
        x, (h_n, c_n) = self.lstm.run_padded(x, src_lengths.cpu())
        x = self.dropout_out_module(x)
        return x, self._join_directions(h_n), self._join_directions(c_n), src_tokens.eq(self.padding_idx).t()

    def _join_directions(self, states: Tensor) -> Tensor:
        """(L * directions, B, H) -> (L, B, directions * H)"""
        layers = states.unflatten(0, (self.lstm.num_layers, -1))
        return layers.transpose(1, 2).flatten(2)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Selects batch rows, as beam search asks."""
        outputs, h_n, c_n, padding = (state.index_select(1, new_order) for state in encoder_out)
        return outputs, h_n, c_n, padding

    def max_positions(self) -> int:
        """The longest source sentence that the model takes."""
        return MAX_POSITIONS


class Attention(nn.Module):
    """The weights of the attention, under the stock model's names; `ops.decoder` computes with them."""

    def __init__(self, h_size: int, source_size: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(h_size, source_size, bias=False)
        self.output_proj = nn.Linear(h_size + source_size, h_size, bias=False)
        _init_uniform(self)


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
        self.dropout_in_module = FairseqDropout(
            float(options.decoder_dropout_in), module_name=name
        )
        self.dropout_out_module = FairseqDropout(
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
            self.encoder_hidden_proj = _init_uniform(nn.Linear(source_size, h_size))
            self.encoder_cell_proj = _init_uniform(nn.Linear(source_size, h_size))
        self.layers = nn.ModuleList()
        for layer in range(options.decoder_layers):
            n_inputs = h_size if layer > 0 else options.decoder_embed_dim + h_size
            cell = G2LSTMCell(n_inputs, h_size)
            cell.gate_settings = settings
            self.layers.append(_init_uniform(cell))
        has_attention = utils.eval_bool(options.decoder_attention)
        self.attention = Attention(h_size, source_size) if has_attention else None
        self.additional_fc = None
        if h_size != out_size:
            self.additional_fc = _init_uniform(nn.Linear(h_size, out_size))
        self.adaptive_softmax = None
        if options.adaptive_softmax_cutoff is not None:
            cutoff = utils.eval_str_list(options.adaptive_softmax_cutoff, type=int)
            self.adaptive_softmax = AdaptiveSoftmax(
                len(dictionary), h_size, cutoff, dropout=self.dropout_out_module.p
            )
        elif not self.share_input_output_embed:
            self.fc_out = _init_uniform(nn.Linear(out_size, len(dictionary)))

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
        """As `forward`, with features (B, T, out_embed_dim) in place of logits."""
        if encoder_out is None:
            raise ValueError("the g2lstm decoder needs encoder_out, got None: it has no mode without an encoder")
        source, _, _, source_padding = encoder_out
        going_on = incremental_state is not None and len(incremental_state) > 0
        if going_on:
            prev_output_tokens = prev_output_tokens[:, -1:]
            h, c, feed = self._cached(incremental_state)
        else:
            h, c, feed = self._first_states(encoder_out)
        x = self.dropout_in_module(self.embed_tokens(prev_output_tokens)).transpose(0, 1)
        attention = self.attention
        need_attention = not self.training and self.need_attn and attention is not None
        out = ops.decoder(
            x,
            h,
            c,
            feed,
            [cell.weights() for cell in self.cells()],
            source if attention is not None else None,
            source_padding if attention is not None else None,
            attention.input_proj.weight if attention is not None else None,
            attention.output_proj.weight if attention is not None else None,
            self._dropout_mask(x, len(self.layers)),
            mode=self.gate_settings.mode(self.training),
            seed=draw_seed() if self.training else None,
            need_attention=need_attention,
            need_gates=self.gate_observer is not None,
        )
        if self.gate_observer is not None and out.gates is not None:
            valid = prev_output_tokens.ne(self.padding_idx).t()
            for layer, z in enumerate(out.gates):
                self.gate_observer(layer, False, z, valid)
        if incremental_state is not None:
            cached = {"prev_hiddens": out.h, "prev_cells": out.c, "input_feed": out.feed}
            self.set_incremental_state(incremental_state, "cached_state", cached)
        features = out.outputs.transpose(0, 1)
        if self.additional_fc is not None and self.adaptive_softmax is None:
            features = self.dropout_out_module(self.additional_fc(features))
        return features, None if out.attention is None else out.attention.transpose(0, 1)

    def cells(self) -> list[G2LSTMCell]:
        """The stacked cells, the lowest first."""
        return cast(list[G2LSTMCell], list(self.layers))

    def _first_states(self, encoder_out: EncoderOut) -> tuple[Tensor, Tensor, Tensor]:
        _, h, c, _ = encoder_out
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
            return F.linear(features, self.embed_tokens.weight)
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


def _init_uniform(module):
    for weight in module.parameters():
        nn.init.uniform_(weight, -INIT_RANGE, INIT_RANGE)
    return module


def _build_embedding(
    dictionary: Dictionary, embed_dim: int, path_option: str, options: Namespace
) -> nn.Embedding:
    embedding = nn.Embedding(len(dictionary), embed_dim, padding_idx=dictionary.pad())
    nn.init.uniform_(embedding.weight, -INIT_RANGE, INIT_RANGE)
    nn.init.constant_(embedding.weight[dictionary.pad()], 0)
    path = getattr(options, path_option)
    if path is None:
        return embedding
    flag = "--" + path_option.replace("_", "-")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{flag} must be a file of embeddings, got {path}, which does not exist")
    pretrained = utils.parse_embedding(path)
    sizes = {len(vector) for vector in pretrained.values()}
    if sizes != {embed_dim}:
        raise ValueError(
            f"{flag} must hold vectors of {embed_dim} numbers (the embedding dimension), "
            f"got {sorted(sizes)} in {path}"
        )
    utils.print_embed_overlap(pretrained, dictionary)
    return utils.load_embedding(pretrained, dictionary, embedding)


def _register_architectures() -> None:
    for name in ARCHITECTURES:
        if name == "g2lstm":  # registered with the model
            continue
        register_model_architecture("g2lstm", name)(
            lambda options, name=name: apply_architecture(name, options)
        )


_register_architectures()
