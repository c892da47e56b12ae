"""The seam between the modules and what computes them.

Everything above calls the operators by these names and knows nothing of the backends; everything below knows
nothing of modules, options or fairseq. Both operators take and return tensors alone, and the plain-PyTorch
reference defines what they compute.
"""

from .reference import CellWeights, DecoderOutput, GateMode, decoder, lstm_layer

__all__ = ["CellWeights", "DecoderOutput", "GateMode", "decoder", "lstm_layer"]
