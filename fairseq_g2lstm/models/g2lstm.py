"""The fairseq model `g2lstm`: the stock `lstm` translation model with G2-LSTM layers, the same parameter names."""


from fairseq.models import (
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from torch import Tensor

from ..config import (
    ARCHITECTURES,
    G2LSTMConfig,
    ModelOptions,
    apply_architecture,
    gate_settings,
    resolve,
)
from ..distributed import check_ranks_are_joined
from ..settings import GateSettings
from .common import IncrementalState, build_embedding
from .decoder import G2LSTMDecoder
from .encoder import G2LSTMEncoder
from .gated import GatedModel


@register_model("g2lstm", dataclass=G2LSTMConfig)
class G2LSTMModel(GatedModel, FairseqEncoderDecoderModel):
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
        self.init_gates(settings)

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
        encoder_embed = build_embedding(source, options.encoder_embed_dim, "encoder_embed_path", options)
        decoder_embed = encoder_embed
        if not options.share_all_embeddings:
            decoder_embed = build_embedding(target, options.decoder_embed_dim, "decoder_embed_path", options)
        encoder_embed.weight.requires_grad_(not options.encoder_freeze_embed)
        if options.decoder_freeze_embed:
            decoder_embed.weight.requires_grad_(False)
        encoder = G2LSTMEncoder(source, encoder_embed, options, settings)
        decoder = G2LSTMDecoder(target, decoder_embed, encoder.output_units, options, settings)
        model = cls(encoder, decoder, settings)
        model.keeps_packed = options.packed_weights == "keep"
        return model

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

    def use_gate_settings(self, settings: GateSettings) -> None:
        """Hands settings to the encoder and the decoder."""
        super().use_gate_settings(settings)
        self.encoder.lstm.gate_settings = settings


def _register_architectures() -> None:
    for name in ARCHITECTURES:
        if name == "g2lstm":  # registered with the model
            continue
        register_model_architecture("g2lstm", name)(
            lambda options, name=name: apply_architecture(name, options)
        )


_register_architectures()
