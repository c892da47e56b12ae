"""The compiled operators, torch.ops.g2lstm: what Python adds to the C++ and CUDA code of `kernels/`.

`lstm_step`, `lstm_layer` and `decoder` have the signatures of `fairseq_g2lstm.reference`, which defines what they
compute. Importing this module loads the extension and raises ImportError where it is not built; the operators then
work under autograd, torch.autocast and torch.compile. They have no second derivatives and none of forward mode.

Symbols: T time steps, B batch, I inputs, H units, L layers, S source positions, E source units.
"""

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .reference import AttentionMemory, CellWeights, DecoderOutput, Factor, PackedWeight, unpacked
from .settings import GateMode


def release_of(version: str) -> str:
    """The numbers of a version of torch, without what follows them in nightly builds and in those of others."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version


_built_for = import_module("fairseq_g2lstm._kernels").TORCH_VERSION  # the import registers the operators
if _built_for != release_of(torch.__version__):
    raise ImportError(f"they were built for torch {_built_for}, and this is {torch.__version__}")

from . import fakes  # noqa: E402, F401  - it needs the operators, and gives them their fake kernels

_ops = torch.ops.g2lstm


def lstm_step(
    a: Tensor,
    c: Tensor,
    seed: Tensor | None = None,
    *,
    mode: GateMode,
    step: int = 0,
    rows: Tensor | None = None,
    layer: int = 0,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One time step from pre-activations; see `reference.lstm_step`."""
    h, c_next, _ = _ops.step(a, c, seed, rows, step, 2 * layer + int(reverse), *mode)
    return h, c_next


def lstm_layer(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    w_ih: Tensor | PackedWeight,
    w_hh: Tensor | PackedWeight,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    mode: GateMode,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
    layer: int = 0,
    reverse: bool = False,
    need_gates: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One layer and direction over whole sequences; see `reference.lstm_layer`."""
    if isinstance(w_ih, PackedWeight) or isinstance(w_hh, PackedWeight):
        if x.device.type == "cpu" and mode.noise_prob == 0:
            weights, layout = _flat(w_ih, w_hh)
            biases = [bias for bias in (b_ih, b_hh) if bias is not None]
            bias = sum(biases[1:], biases[0]) if biases else None
            options = reverse, mode.temperature, mode.hard, need_gates
            outputs, h_n, c_n, z = _ops.packed_layer(x, h_0, c_0, weights, layout, bias, lengths, *options)
            return outputs, h_n, c_n, z if need_gates else None
        w_ih, w_hh = unpacked(w_ih, x.dtype), unpacked(w_hh, x.dtype)
    stream = 2 * layer + int(reverse)
    outputs, h_n, c_n, z, _, _ = _ops.layer(
        x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, seed, rows, stream, *mode, need_gates
    )
    return outputs, h_n, c_n, z if need_gates else None


def decoder(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    feed_0: Tensor,
    cells: Sequence[CellWeights],
    source: Tensor | None = None,
    source_padding: Tensor | None = None,
    w_query: Tensor | None = None,
    w_out: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    *,
    mode: GateMode,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
    need_attention: bool = False,
    need_gates: bool = False,
) -> DecoderOutput:
    """Stacked cells with input feeding and attention over a whole target sequence; see `reference.decoder`."""
    if dropout_mask is not None and dropout_mask.requires_grad:
        raise ValueError("dropout_mask has no gradient here: detach it, or use fairseq_g2lstm.ops.use_reference()")
    biases = [cell.bias for cell in cells if cell.bias is not None]
    outputs, h_n, c_n, feed_n, attention, z, *_ = _ops.decoder(
        x,
        h_0,
        c_0,
        feed_0,
        [unpacked(cell.w_ih, x.dtype) for cell in cells],
        [unpacked(cell.w_hh, x.dtype) for cell in cells],
        biases,
        source,
        source_padding,
        w_query,
        w_out,
        dropout_mask,
        seed,
        rows,
        *mode,
        need_gates,
    )
    weights = attention.to(outputs.dtype) if need_attention and source is not None else None
    return DecoderOutput(outputs, h_n, c_n, feed_n, weights, z if need_gates else None)


def decoder_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    feed: Tensor,
    cells: Sequence[CellWeights],
    memory: AttentionMemory | None = None,
    source_rows: Tensor | None = None,
    w_out: Tensor | None = None,
    *,
    mode: GateMode,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of beam search; see `reference.decoder_step`, which computes it where gradients are enabled."""
    if mode.noise_prob > 0 or torch.is_grad_enabled():
        return reference.decoder_step(x, h, c, feed, cells, memory, source_rows, w_out, mode=mode)
    biases = [cell.bias for cell in cells if cell.bias is not None]
    keys, values, padding = (None, None, None) if memory is None else memory
    rest = biases, keys, values, padding, source_rows, w_out, mode.temperature, mode.hard
    matrices = [w for cell in cells for w in (cell.w_ih, cell.w_hh)]
    if x.device.type == "cpu" and any(isinstance(w, PackedWeight) for w in matrices):
        out, h, c, attention = _ops.packed_decoder_step(x, h, c, feed, *_flat(*matrices), *rest)
    else:
        plain = [unpacked(w, x.dtype) for w in matrices]
        out, h, c, attention = _ops.decoder_step(x, h, c, feed, plain[::2], plain[1::2], *rest)
    return out, h, c, None if memory is None else attention


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, fine: bool = False) -> Tensor:
    """A product with packed weights; see `reference.linear`. On other devices than the CPU they are unpacked."""
    if x.device.type != "cpu":
        return F.linear(x, weight.unpacked(x.dtype), bias)
    return _ops.packed_linear(x, *_flat(weight), bias, fine)


def _flat(*weights: Tensor | PackedWeight) -> tuple[list[Tensor], list[int]]:
    """Tensors and layout as the operators take them, of plain matrices as of one factor."""
    packed = [w if isinstance(w, PackedWeight) else PackedWeight(((Factor(w),),)) for w in weights]
    return [t for w in packed for t in w.tensors()], [n for w in packed for n in w.layout()]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.linear of x (..., K), two dimensions or more, by the kernels' products."""
    return _ops.matmul(x.flatten(0, -2), weight.t(), bias).view(*x.shape[:-1], weight.size(0))


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Dropout by counter-based noise; see `reference.dropout`."""
    return _ops.dropout(x, seed, p)


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihoods of the targets and of all classes; see `reference.cross_entropy`."""
    nll, smooth, _ = _ops.cross_entropy(logits, targets, ignore_index)
    return nll, smooth


def _refuse_tangents(*grads: Tensor | None) -> None:
    """Raises NotImplementedError where a gradient has a forward-mode derivative, which a backward operator loses."""
    if forward_ad._current_level >= 0 and any(
        grad is not None and forward_ad.unpack_dual(grad).tangent is not None for grad in grads
    ):
        raise NotImplementedError(
            "g2lstm's compiled operators have no forward-mode derivatives: use fairseq_g2lstm.ops.use_reference() "
            "around the forward pass that needs them"
        )


def _setup_decoder(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, h_0, c_0, feed_0, w_ih, w_hh, bias, *attention, seed, rows = inputs[:14]
    outputs, _, _, _, weights, z, *saved = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(z, *saved)
    ctx.n_cells, ctx.n_biases, ctx.options = len(w_ih), len(bias), inputs[14:-1]
    ctx.save_for_backward(x, h_0, c_0, feed_0, *w_ih, *w_hh, *attention, outputs, weights, *saved, seed, rows)


def _backward_decoder(ctx: Any, *grads: Tensor | None) -> tuple:
    grads = grads[:5]
    _refuse_tangents(*grads)
    n = ctx.n_cells
    if all(grad is None for grad in grads):
        return *[None] * 4, [None] * n, [None] * n, [None] * ctx.n_biases, *[None] * 12
    x, h_0, c_0, feed_0, *rest = ctx.saved_tensors
    w_ih, w_hh, rest = rest[:n], rest[n : 2 * n], rest[2 * n :]
    with torch.autocast(x.device.type, enabled=False):
        grad_x, grad_h, grad_c, grad_feed, grad_w_ih, grad_w_hh, grad_bias, *grad_attention = _ops.decoder_backward(
            *grads, x, h_0, c_0, feed_0, w_ih, w_hh, *rest, *ctx.options
        )
    grad_source, grad_w_query, grad_w_out = (None if rest[0] is None else grad for grad in grad_attention)
    return (
        grad_x,
        grad_h,
        grad_c,
        grad_feed,
        grad_w_ih,
        grad_w_hh,
        grad_bias[: ctx.n_biases],
        grad_source,
        None,
        grad_w_query,
        grad_w_out,
        *[None] * 8,
    )


def _setup_matmul(ctx: Any, inputs: tuple, output: Tensor) -> None:
    a, b, _ = inputs
    ctx.save_for_backward(a, b)


def _backward_matmul(ctx: Any, grad: Tensor) -> tuple:
    _refuse_tangents(grad)
    a, b = ctx.saved_tensors
    need_a, need_b, need_bias = ctx.needs_input_grad
    return (
        _ops.matmul(grad, b.t(), None) if need_a else None,
        # b is most often a weight transposed: so its gradient lies as the weight does
        _ops.matmul(grad.t(), a, None).t() if need_b else None,
        grad.sum(0) if need_bias else None,
    )


def _setup_cross_entropy(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, targets, ctx.ignore_index = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(logits, targets, output[2])


def _backward_cross_entropy(ctx: Any, grad_nll: Tensor | None, grad_smooth: Tensor | None, _unused: None) -> tuple:
    _refuse_tangents(grad_nll, grad_smooth)
    if grad_nll is None and grad_smooth is None:
        return None, None, None
    grads = grad_nll, grad_smooth
    return _ops.cross_entropy_backward(*grads, *ctx.saved_tensors, ctx.ignore_index), None, None


def _no_second_derivative(ctx: Any, *_grads: Tensor | None) -> None:
    raise NotImplementedError(
        "g2lstm's compiled operators have no second derivatives: use fairseq_g2lstm.ops.use_reference() around the "
        "forward pass that needs them"
    )


def _no_gradient(ctx: Any, *_grads: Tensor | None) -> None:
    raise NotImplementedError(
        "g2lstm::decoder_step has no gradients, nor have the operators of packed weights: call them under "
        "torch.no_grad(), or fairseq_g2lstm.ops.decoder_step, which takes plain PyTorch where they are needed"
    )


for _name in ("decoder_step", "packed_linear", "packed_layer", "packed_decoder_step"):
    torch.library.register_autograd(f"g2lstm::{_name}", _no_gradient)
for _name in ("step", "layer", "decoder", "cross_entropy"):
    torch.library.register_autograd(f"g2lstm::{_name}_backward", _no_second_derivative)
# Those of step, layer and dropout stand in kernels/binding/autograd.cpp.
for _name, _setup, _backward in (
    ("decoder", _setup_decoder, _backward_decoder),
    ("cross_entropy", _setup_cross_entropy, _backward_cross_entropy),
    ("matmul", _setup_matmul, _backward_matmul),
):
    torch.library.register_autograd(f"g2lstm::{_name}", _backward, setup_context=_setup)


_library = torch.library.Library("g2lstm", "FRAGMENT")


def _register_autocast(name: str, device_type: str) -> None:
    """Casts what the products read to autocast's dtype, as torch.nn.LSTM's operators do; float64 stays.

    Packed weights stay as they are stored.
    """
    operator = getattr(_ops, name).default
    stays = [argument.name == "weights" for argument in operator._schema.arguments]

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(torch.get_autocast_dtype(device_type))
        return [cast(item) for item in value] if isinstance(value, list) else value

    def call(*args: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return operator(*(arg if stay else cast(arg) for arg, stay in zip(args, stays, strict=False)))

    _library.impl(name, call, "AutocastCPU" if device_type == "cpu" else "AutocastCUDA")


for _name in ("layer", "decoder", "decoder_step", "matmul", "packed_linear", "packed_layer", "packed_decoder_step"):
    for _device_type in ("cpu", "cuda"):
        _register_autocast(_name, _device_type)
