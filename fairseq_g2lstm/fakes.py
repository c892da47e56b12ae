"""The compiled operators' results without their values, shapes and dtypes alone, for torch.compile and opcheck."""

import torch
from torch import Tensor

from .reference.method import state_dtype


def _gates_dtype(x: Tensor) -> torch.dtype:
    # What backward needs: the CPU keeps the gates and all else in the state's dtype; CUDA the pre-activations and
    # what products read in the input's.
    return x.dtype if x.device.type == "cuda" else state_dtype(x)


def _check_devices(x: Tensor, *others: Tensor | None, seed: Tensor | None, rows: Tensor | None = None) -> None:
    # Where one tensor is a meta tensor the fake kernel is called for all, and it alone can tell.
    for tensor in others:
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"a tensor is on {tensor.device} and the others on {x.device}: move all to one device")
    for name, numbers in (("seed", seed), ("rows", rows)):
        if numbers is not None and numbers.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {numbers.device}")


def _check_lengths(lengths: Tensor | None) -> None:
    if lengths is not None and lengths.device.type != "cpu":
        raise ValueError(f"lengths must be on the CPU, got {lengths.device}")


@torch.library.register_fake("g2lstm::noise_words")
def _(seed, n_steps, n_rows, hidden_size, stream, rows=None, dtype=torch.float32):
    return seed.new_empty((4, n_steps, n_rows, hidden_size))


@torch.library.register_fake("g2lstm::step")
def _(a, c, seed, rows, *_args):
    _check_devices(a, c, seed=seed, rows=rows)
    gates = a.new_empty(a.shape, dtype=_gates_dtype(a))
    return c.new_empty(c.shape, dtype=a.dtype), c.new_empty(c.shape), gates


@torch.library.register_fake("g2lstm::step_backward")
def _(grad_h, grad_c, gates, c, *_args):
    return grad_h.new_empty(gates.shape), c.new_empty(c.shape)


@torch.library.register_fake("g2lstm::layer")
def _(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, seed, rows, *args):
    _check_devices(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, seed=seed, rows=rows)
    _check_lengths(lengths)
    n_steps, n_rows, h_size = x.size(0), x.size(1), w_hh.size(1)
    outputs, state = x.new_empty((n_steps, n_rows, h_size)), state_dtype(x)
    return (
        outputs,
        x.new_empty((n_rows, h_size)),
        x.new_empty((n_rows, h_size)),
        x.new_empty((n_steps if args[-1] else 0, n_rows, 2 * h_size), dtype=state),
        x.new_empty((n_steps, n_rows, 4 * h_size), dtype=_gates_dtype(x)),
        x.new_empty((n_steps, n_rows, h_size), dtype=state),
    )


@torch.library.register_fake("g2lstm::layer_backward")
def _(grad_outputs, grad_h_n, grad_c_n, x, h_0, c_0, w_ih, w_hh, *args):
    grad_x = x.new_empty(x.shape if args[-1] else (0, *x.shape[1:]))
    return (
        grad_x,
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape),
        w_ih.new_empty(w_ih.shape),
        w_hh.new_empty(w_hh.shape),
        w_hh.new_empty(w_hh.shape[:1]),
    )


@torch.library.register_fake("g2lstm::decoder")
def _(x, h_0, c_0, feed_0, w_ih, w_hh, bias, source, source_padding, w_query, w_out, dropout_mask, seed, rows, *args):
    attention = source, source_padding, w_query, w_out, dropout_mask
    _check_devices(x, h_0, c_0, feed_0, *w_ih, *w_hh, *bias, *attention, seed=seed, rows=rows)
    n_steps, n_rows, n_layers, h_size = x.size(0), x.size(1), h_0.size(0), h_0.size(2)
    need_gates, state = args[-1], state_dtype(x)
    source_size = 0 if source is None else source.size(0)
    memory = (0,) if source is None else (n_rows, source_size, h_size)
    undropped = (0,) if source is None or dropout_mask is None else (n_steps, n_rows, h_size)
    cells = x.new_empty((n_layers, n_steps, n_rows, h_size), dtype=state)
    return (
        x.new_empty((n_steps, n_rows, h_size)),
        x.new_empty(h_0.shape),
        x.new_empty(h_0.shape),
        x.new_empty(feed_0.shape),
        x.new_empty((n_steps, n_rows, source_size), dtype=state),
        x.new_empty((n_layers, n_steps if need_gates else 0, n_rows, 2 * h_size), dtype=state),
        x.new_empty((n_layers, n_steps, n_rows, 4 * h_size), dtype=_gates_dtype(x)),
        cells,
        *(x.new_empty(shape, dtype=_gates_dtype(x)) for shape in (cells.shape, undropped, memory, memory)),
    )


@torch.library.register_fake("g2lstm::decoder_backward")
def _(*args):
    x, h_0, c_0, feed_0, w_ih, w_hh, source, _, w_query, w_out = args[5:15]

    def like(tensor):
        return x.new_empty((0,), dtype=_gates_dtype(x)) if tensor is None else tensor.new_empty(tensor.shape)

    return (
        *(like(t) for t in (x, h_0, c_0, feed_0)),
        [like(w) for w in w_ih],
        [like(w) for w in w_hh],
        [w.new_empty(w.shape[:1]) for w in w_hh],
        *(like(t) for t in (source, w_query, w_out)),
    )


@torch.library.register_fake("g2lstm::decoder_step")
def _(x, h, c, feed, w_ih, w_hh, bias, *args):
    return _decoder_step(x, h, c, feed, [*w_ih, *w_hh, *bias], *args)


def _decoder_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    feed: Tensor,
    weights: list[Tensor],
    keys: Tensor | None,
    values: Tensor | None,
    source_padding: Tensor | None,
    source_rows: Tensor | None,
    w_out: Tensor | None,
    *_args: object,
) -> tuple[Tensor, ...]:
    _check_devices(x, h, c, feed, *weights, keys, values, source_padding, source_rows, w_out, seed=None)
    attention = x.new_empty((x.size(0), 0 if keys is None else keys.size(1)))
    return feed.new_empty(feed.shape), h.new_empty(h.shape), c.new_empty(c.shape), attention


@torch.library.register_fake("g2lstm::packed_linear")
def _(x, weights, layout, bias, fine=False):
    _check_devices(x, *weights, bias, seed=None)
    return x.new_empty((*x.shape[:-1], _packed_rows(weights, layout)))


@torch.library.register_fake("g2lstm::packed_layer")
def _(x, h_0, c_0, weights, layout, bias, lengths, reverse, temperature, hard, need_gates):
    _check_devices(x, h_0, c_0, *weights, bias, seed=None)
    _check_lengths(lengths)
    n_steps, n_rows, h_size = x.size(0), x.size(1), h_0.size(1)
    z = x.new_empty((n_steps if need_gates else 0, n_rows, 2 * h_size), dtype=state_dtype(x))
    return x.new_empty((n_steps, n_rows, h_size)), h_0.new_empty(h_0.shape), h_0.new_empty(h_0.shape), z


@torch.library.register_fake("g2lstm::packed_decoder_step")
def _(x, h, c, feed, weights, layout, bias, *args):
    return _decoder_step(x, h, c, feed, [*weights, *bias], *args)


def _packed_rows(weights: list[Tensor], layout: list[int]) -> int:
    """Rows of the first matrix of packed weights."""
    rows, tensors = 0, iter(weights)
    for n_factors in layout[1 : 1 + layout[0]]:
        for _ in range(n_factors):
            factor = next(tensors)
            if factor.dtype == torch.int8:
                next(tensors)  # its scales
        rows += factor.size(0)
    return rows


@torch.library.register_fake("g2lstm::matmul")
def _(a, b, bias):
    _check_devices(a, b, bias, seed=None)
    if a.dim() != 2 or b.dim() != 2 or a.size(1) != b.size(0):
        raise ValueError(f"a must be (M, K) and b (K, N), got {list(a.shape)} and {list(b.shape)}")
    return a.new_empty((a.size(0), b.size(1)))


@torch.library.register_fake("g2lstm::dropout")
def _(x, seed, p):
    _check_devices(x, seed=seed)
    return x.new_empty(x.shape)


@torch.library.register_fake("g2lstm::cross_entropy")
def _(logits, targets, ignore_index):
    _check_devices(logits, targets, seed=None)
    nll, smooth = (logits.new_empty((), dtype=state_dtype(logits)) for _ in range(2))
    return nll, smooth, logits.new_empty(logits.shape[:1], dtype=torch.float64)


@torch.library.register_fake("g2lstm::cross_entropy_backward")
def _(grad_nll, grad_smooth, logits, targets, log_normalizer, ignore_index):
    return logits.new_empty(logits.shape)
