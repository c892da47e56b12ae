"""Packed weights in a model."""

import logging
from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from .. import ops
from .matrix import Embedding, Linear, PackedMatrix
from .storage import META, restore, take_packed, unpack_weights

logger = logging.getLogger(__name__)


def keep_packed(
    model: nn.Module, state_dict: MutableMapping[str, Tensor], holders: tuple[type[nn.Module], ...]
) -> None:
    """Makes a model ready to load a packed state dict as it is, and gives the tensors the names that they have then.

    Matrices of `holders`, embeddings and linear layers stay as they are stored; anything else is unpacked to float32.
    So is all where integers are stored and the compiled kernels are not there. A state dict without packed weights is
    left as it is.

    Args:
        model: its parameters are replaced.
        state_dict: changed in place.
        holders: the modules that compute with packed matrices, beside `Embedding` and `Linear`.

    Raises:
        ValueError: the weights are of a later version of the format, incomplete, or not what was written.
    """
    if META not in state_dict:
        return
    if _holds_integers(state_dict) and not ops.integer_products():
        logger.warning(
            "packed weights are unpacked to float32, since the kernels that multiply integers are not built: the "
            "model takes the memory and the time of the float32 one"
        )
        unpack_weights(state_dict)
        return
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for name, packed in take_packed(state_dict).items():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if module is None or len(packed.shape) != 2 or not isinstance(module, (*holders, Embedding, Linear)):
            state_dict[name] = restore(packed)
            continue
        tensors = {key: tensor.contiguous() for key, tensor in packed.as_int8().items()}
        if attribute in module._parameters:
            expected = tuple(getattr(module, attribute).shape)
            if expected != tuple(packed.shape):
                raise ValueError(f"the packed {name} has shape {tuple(packed.shape)}, the model's {expected}")
            del module._parameters[attribute]
            # empty ones of the same shapes, which loading fills
            module.add_module(attribute, PackedMatrix({key: torch.empty_like(t) for key, t in tensors.items()}))
        state_dict.update({f"{name}.{key}": tensor for key, tensor in tensors.items()})


def _holds_integers(state_dict: MutableMapping[str, Tensor]) -> bool:
    return any(key.startswith("packed.") and key.endswith("scales") for key in state_dict)
