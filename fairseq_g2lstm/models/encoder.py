"""The encoder of the fairseq model `g2lstm`."""

from argparse import Namespace

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from ..modules import G2LSTM
from ..settings import GateSettings
from .common import MAX_POSITIONS, Dropout, EncoderOut, embed, init_uniform


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
        self.dropout_in_module = Dropout(
            float(options.encoder_dropout_in), module_name=name
        )
        self.dropout_out_module = Dropout(
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
        init_uniform(self.lstm)
        self.output_units = options.encoder_hidden_size * (2 if options.encoder_bidirectional else 1)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, enforce_sorted: bool = False
    ) -> EncoderOut:
        """Encodes the source.

        Args:
            src_tokens: (B, S), padded on either side. src_lengths: (B,), in any order.
            enforce_sorted: taken for the stock model's callers; lengths need no order here.

        Returns:
            outputs, last states and padding.
        """
        src_tokens = utils.convert_padding_direction(
            src_tokens, self.padding_idx, left_to_right=True
        )
        x = self.dropout_in_module(embed(self.embed_tokens, src_tokens.t()))
        x, (h_n, c_n) = self.lstm.run_padded(x, src_lengths.cpu())
        x = self.dropout_out_module(x)
        padding = src_tokens.eq(self.padding_idx).t()
        return EncoderOut(x, self._join_directions(h_n), self._join_directions(c_n), padding)

    def _join_directions(self, states: Tensor) -> Tensor:
        """(L * directions, B, H) -> (L, B, directions * H)"""
        layers = states.unflatten(0, (self.lstm.num_layers, -1))
        return layers.transpose(1, 2).flatten(2)

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Selects batch rows, as beam search asks; the outputs stay, and the rows' numbers say whose they are."""
        rows = new_order if encoder_out.rows is None else encoder_out.rows.index_select(0, new_order)
        h_n, c_n = (state.index_select(1, new_order) for state in (encoder_out.h_n, encoder_out.c_n))
        return encoder_out._replace(h_n=h_n, c_n=c_n, rows=rows)

    def max_positions(self) -> int:
        """The longest source sentence that the model takes."""
        return MAX_POSITIONS
