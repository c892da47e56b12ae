"""The fairseq model `g2lstm_lm`: the stock `lstm_lm` with G2-LSTM layers and what AWD-LSTM adds, the same names."""

from fairseq.models import FairseqLanguageModel, register_model, register_model_architecture
from torch import Tensor

from ..config import ModelOptions, gate_settings
from ..config_lm import LANGUAGE_MODEL, G2LSTMLanguageModelConfig, apply_to_given, resolve
from ..distributed import check_ranks_are_joined
from ..settings import GateSettings
from .common import IncrementalState, build_embedding
from .gated import GatedModel
from .lm_decoder import Extra, LanguageModelDecoder


@register_model("g2lstm_lm", dataclass=G2LSTMLanguageModelConfig)
class G2LSTMLanguageModel(GatedModel, FairseqLanguageModel):
    """Recurrent language model whose gates are trained towards 0 and 1.

    With `gate_type="sigmoid"` it computes what the stock `lstm_lm` computes from the same parameters.

    Args:
        decoder: the layers.
        settings: the gates' settings that the options ask for.
    """

    decoder: LanguageModelDecoder

    def __init__(self, decoder: LanguageModelDecoder, settings: GateSettings) -> None:
        super().__init__(decoder)
        self.init_gates(settings)

    @classmethod
    def build_model(cls, cfg: ModelOptions, task) -> "G2LSTMLanguageModel":
        """Builds the model from fairseq's options and the task's dictionary.

        Raises:
            ValueError: an option is outside its range or does not fit another; the message names it.
            FileNotFoundError: a file of pre-trained embeddings is missing.
            RuntimeError: torchrun started several processes that fairseq has not joined.
        """
        check_ranks_are_joined()
        options = resolve(cfg)
        source, target = task.source_dictionary, task.target_dictionary
        # fairseq's TruncatedDictionary equals the one that it shortens
        differ = source != target or len(source) != len(target)
        if options.share_decoder_input_output_embed and differ:
            raise ValueError(
                "--share-decoder-input-output-embed needs one dictionary for inputs and outputs: "
                "leave out --output-dictionary-size"
            )
        settings = gate_settings(options)
        embed_tokens = build_embedding(
            source, options.decoder_embed_dim, "decoder_embed_path", options, options.init_range
        )
        model = cls(LanguageModelDecoder(target, embed_tokens, options, settings), settings)
        model.keeps_packed = options.packed_weights == "keep"
        return model

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        block: int | None = None,
    ) -> tuple[Tensor, Extra]:
        """Reads a block of text.

        Args:
            src_tokens: (B, T), padded at the end.
            src_lengths: (B,), for statistics of gates and the last states; None where all are T.
            incremental_state: fairseq's state of incremental decoding, or None.
            block: the block's number in its rows' text where the state is carried from one to the next: block 0
                starts from zeros, any other from the state that the one before it left, in training and in
                evaluation apart. None starts from zeros and keeps nothing.

        Returns:
            logits (B, T, V), and what else the decoder has to say; see `lm_decoder.Extra`.

        Raises:
            ValueError: the block does not follow the one before it.
        """
        return self.decoder(
            src_tokens, incremental_state=incremental_state, src_lengths=src_lengths, block=block
        )


def _register_architectures() -> None:
    for name in LANGUAGE_MODEL.architectures:
        if name == "g2lstm_lm":  # registered with the model
            continue
        register_model_architecture("g2lstm_lm", name)(
            lambda options, name=name: apply_to_given(name, options)
        )


_register_architectures()
