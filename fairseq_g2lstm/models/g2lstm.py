"""The fairseq model `g2lstm`: the stock `lstm` translation model with G2-LSTM layers, the same parameter names."""

import os
from argparse import Namespace

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import (
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from torch import Tensor, nn

from ..config import (
    ARCHITECTURES,
    G2LSTMConfig,
    ModelOptions,
    apply_architecture,
    gate_settings,
    resolve,
)
from ..distributed import check_ranks_are_joined
from ..reference import GateSettings
from .common import INIT_RANGE, IncrementalState
from .decoder import G2LSTMDecoder
from .encoder import G2LSTMEncoder


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

    encoder: G2LSTMEncoder
    decoder: G2LSTMDecoder

    def __init__(
        self, encoder: G2LSTMEncoder, decoder: G2LSTMDecoder, settings: GateSettings
    ) -> None:
        super().__init__(encoder, decoder)
        self.option_settings = settings
        self.gates = GateValues(settings)
        self.num_updates = 0
        self.register_load_state_dict_post_hook(_take_loaded_gate_values)
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

    def take_loaded_gate_values(self) -> None:
        """Uses the temperature and noise probability of the buffer, unless an option was changed since."""
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


def _take_loaded_gate_values(model: G2LSTMModel, _keys: object) -> None:
    # Not a method or a closure: a copy of the model must act on itself, and pickle.
    model.take_loaded_gate_values()


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
    try:
        pretrained = utils.parse_embedding(path)
    except (StopIteration, ValueError) as error:
        raise ValueError(
            f"{flag} must be a text file whose first line is its size and whose others are a word and its numbers, "
            f"got {path}: {error or 'it is empty'}"
        ) from error
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
