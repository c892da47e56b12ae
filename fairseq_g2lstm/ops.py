"""The seam between the modules and what computes them.

Everything above calls the operators by these names and knows nothing of the backends; everything below knows
nothing of modules, options or fairseq. All take and return tensors alone, and the plain-PyTorch reference defines
what they compute. The compiled operators serve where the extension is built, the reference elsewhere.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import reference
from .philox import draw_seed
from .reference import AttentionMemory, CellWeights, DecoderOutput, PackedWeight, attention_memory
from .settings import GateMode

__all__ = [
    "AttentionMemory",
    "CellWeights",
    "DecoderOutput",
    "GateMode",
    "PackedWeight",
    "attention_memory",
    "cross_entropy",
    "decoder",
    "decoder_step",
    "dropout",
    "integer_products",
    "kernels_error",
    "linear",
    "lstm_layer",
    "lstm_step",
    "use_reference",
]

_compiled: ModuleType | None = None
_error: str | None = None
_reference_wanted = 0  # blocks that are in use_reference
_wanted_lock = Lock()
_warned = False

try:
    from . import operators as _compiled  # type: ignore[no-redef]
except ImportError as error:
    _error = str(error)

_has_cuda = _compiled is not None and torch._C._dispatch_has_kernel_for_dispatch_key("g2lstm::layer", "CUDA")


# Whether the kernels make large products of float32 themselves.
_own_products = (
    _compiled is not None
    and torch._C._dispatch_has_kernel_for_dispatch_key("g2lstm::matmul", "CPU")
    and torch.ops.g2lstm.cpu_products() == "own"
)
_FEWEST_ROWS, _FEWEST_MULTIPLICATIONS = 64, 2**26  # from which on they are: kernels/cpu/matrix.cpp


def kernels_error() -> str | None:
    """Why the compiled kernels are not there, or None where they are."""
    return _error


@contextmanager
def use_reference() -> Iterator[None]:
    """Within it, the plain-PyTorch reference computes everything, in all threads.

    Where torch.utils.checkpoint makes the forward pass again for the backward pass, the block must hold both: dropout's
    masks are others with the compiled kernels.
    """
    _count_wanted(1)
    try:
        yield
    finally:
        _count_wanted(-1)


def _count_wanted(change: int) -> None:
    global _reference_wanted
    with _wanted_lock:
        _reference_wanted += change


def _reference_serves() -> bool:
    """Whether the reference was asked for, or forward-mode derivatives are, which the compiled operators lack."""
    return _reference_wanted > 0 or forward_ad._current_level >= 0


def _backend(name: str, device: torch.device) -> Callable[..., Any]:
    if _reference_serves():
        return getattr(reference, name)
    if _compiled is None:
        _warn_once(
            f"fairseq_g2lstm's compiled kernels are not there ({_error}): plain PyTorch computes instead, which takes "
            "several times as long; install a C++ compiler and, in the project's folder, run "
            "pip install --no-build-isolation --no-deps --force-reinstall . with the torch that will run it"
        )
        return getattr(reference, name)
    if device.type == "cuda" and not _has_cuda:
        _warn_once(
            "fairseq_g2lstm was built without its CUDA kernels, plain PyTorch computes instead, several times slower: "
            "install nvcc of torch's CUDA version and install the project again"
        )
        return getattr(reference, name)
    if device.type not in ("cpu", "cuda", "meta"):
        return getattr(reference, name)
    return getattr(_compiled, name)


def _warn_once(message: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def lstm_step(a: Tensor, c: Tensor, seed: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """One time step from pre-activations; see `reference.lstm_step`."""
    return _backend("lstm_step", a.device)(a, c, seed, **options)


def lstm_layer(x: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One layer and direction over whole sequences; see `reference.lstm_layer`."""
    return _backend("lstm_layer", x.device)(x, *args, **options)


def decoder(x: Tensor, *args: Any, **options: Any) -> DecoderOutput:
    """Stacked cells with input feeding and attention over a target sequence; see `reference.decoder`."""
    return _backend("decoder", x.device)(x, *args, **options)


def decoder_step(x: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of beam search; see `reference.decoder_step`."""
    return _backend("decoder_step", x.device)(x, *args, **options)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, fine: bool = False) -> Tensor:
    """A product with weights that may be packed; see `reference.linear`."""
    if isinstance(weight, Tensor):
        if _own_products and not _reference_serves() and _is_large_product(x, weight):
            return cast(ModuleType, _compiled).linear(x, weight, bias)
        return F.linear(x, weight, bias)
    if _compiled is None or _reference_serves():
        return reference.linear(x, weight, bias, fine)
    return _compiled.packed_linear(x, weight, bias, fine)


def _is_large_product(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels' product of plain float32 matrices on the CPU takes less time than torch's."""
    plain = type(weight) in (Tensor, Parameter) and weight.layout == torch.strided and weight.dim() == 2
    if not plain or x.dim() < 2 or not x.dtype == weight.dtype == torch.float32:
        return False
    if not x.device.type == weight.device.type == "cpu":
        return False
    rows = x.numel() // max(x.size(-1), 1)
    return min(rows, weight.size(0)) >= _FEWEST_ROWS and rows * weight.numel() >= _FEWEST_MULTIPLICATIONS


def integer_products() -> bool:
    """Whether there are kernels for products with integer weights; the reference's are slower than any other way."""
    return _compiled is not None


def dropout(x: Tensor, p: float) -> Tensor:
    """Drops elements of x with probability p and divides the others by 1 - p.

    The compiled operator makes the mask from a seed of its own, drawn from torch's default CPU generator, and stores
    none; without it torch.nn.functional.dropout serves.
    """
    if p == 0.0:
        return x
    if x.device.type == "cpu" and _compiled is not None and not _reference_serves():
        return _compiled.dropout(x, p, draw_seed())
    return F.dropout(x, p)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihoods of the targets and of all classes; see `reference.cross_entropy`."""
    if logits.device.type == "cpu" and _compiled is not None and not _reference_serves():
        return _compiled.cross_entropy(logits, targets, ignore_index)
    return reference.cross_entropy(logits, targets, ignore_index)
