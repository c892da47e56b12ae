"""Bad input to the compiled operators: a sentence or the reference's answer, never a crash or silent garbage."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import (
    DTYPES,
    F16,
    F32,
    F64,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    MODES,
    SEED,
    Case,
    DecoderCase,
    LayerCase,
    StepCase,
    assert_near,
    case_name,
    dtype_name,
    each_case,
    leaves,
    needs_kernels,
)
from torch import Tensor

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.ops import CellWeights, GateMode

pytestmark = needs_kernels

STEP, LAYER, DECODER = StepCase(), LayerCase(), DecoderCase()
NAMES = {
    StepCase: ("a", "c", "seed"),
    LayerCase: ("x", "h_0", "c_0", "w_ih", "w_hh", "b_ih", "b_hh", "lengths"),
    DecoderCase: (
        "x", "h_0", "c_0", "feed_0", "cells", "source", "source_padding", "w_query", "w_out", "dropout_mask",
    ),
}  # fmt: skip
FUNCTIONS = {StepCase: "lstm_step", LayerCase: "lstm_layer", DecoderCase: "decoder"}


def call(case: Case, module: Any = ops, **changes: Any) -> tuple:
    """The case's operator with some arguments changed: each change is a value, or a function of the old value."""
    args, options = case.arguments(case.tensors())
    given = dict(zip(NAMES[type(case)], args, strict=True)) | options
    for name, change in changes.items():
        given[name] = change(given[name]) if callable(change) else change
    positional = [given.pop(name) for name in NAMES[type(case)]]
    return getattr(module, FUNCTIONS[type(case)])(*positional, **given)


def change_cell(index: int, name: str, change: Callable) -> Callable:
    def changed(cells: list[CellWeights]) -> list[CellWeights]:
        cells = list(cells)
        cells[index] = cells[index]._replace(**{name: change(getattr(cells[index], name))})
        return cells

    return changed


# Dtypes


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64], ids=str)
@each_case()
def test_dtypes_that_are_not_floating_point_are_refused(case, dtype):
    first = NAMES[type(case)][0]
    with pytest.raises(TypeError, match="g2lstm operators take float32, float64, float16 and bfloat16, got"):
        call(case, **{first: lambda t: t.to(dtype)})


@pytest.mark.parametrize("name", ["h_0", "w_ih", "w_hh", "b_ih", "b_hh"])
def test_layer_refuses_mixed_dtypes(name):
    with pytest.raises(ValueError, match="has dtype Double and the others Float: convert all to one, or run under"):
        call(LAYER, **{name: Tensor.double})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("h_0", Tensor.double),
        ("feed_0", Tensor.double),
        ("source", Tensor.double),
        ("w_query", Tensor.double),
        ("w_out", Tensor.double),
        ("cells", change_cell(1, "w_ih", Tensor.double)),
        ("cells", change_cell(0, "w_hh", Tensor.double)),
        ("cells", change_cell(1, "b_ih", Tensor.double)),
    ],
)
def test_decoder_refuses_mixed_dtypes(name, change):
    with pytest.raises(ValueError, match="has dtype Double and the others Float: convert all to one, or run under"):
        call(DECODER, **{name: change})


@pytest.mark.parametrize("dtype", [F16, F64], ids=dtype_name)
def test_step_refuses_cell_states_of_another_dtype(dtype):
    with pytest.raises(ValueError, match="c must have dtype Float, got"):
        call(STEP, c=lambda c: c.to(dtype))


@pytest.mark.parametrize("case", [LAYER, DECODER], ids=lambda case: case_name[type(case)])
def test_cell_states_of_another_dtype_are_converted_as_the_reference_does(case):
    found, expected = (call(case, module, c_0=Tensor.double) for module in (ops, reference))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert_near(one, other, FORWARD_BOUND[F32])


@pytest.mark.parametrize(
    "seed",
    [torch.tensor(3, dtype=torch.int32), torch.tensor(3.0), torch.tensor([1, 2]), torch.empty(0, dtype=torch.int64)],
    ids=str,
)
@each_case()
def test_seeds_that_are_not_one_int64_are_refused(case, seed):
    with pytest.raises(ValueError, match="seed must be one int64 number on the CPU, got"):
        call(case, seed=seed)


@pytest.mark.parametrize(
    "rows",
    [torch.arange(4), torch.zeros(7, 1, dtype=torch.int64), torch.zeros(7, dtype=torch.int32), torch.zeros(7)],
    ids=lambda rows: f"{tuple(rows.shape)} {rows.dtype}",
)
def test_rows_that_are_not_one_number_a_row_are_refused(rows):
    with pytest.raises(ValueError, match="rows must be 7 int64 numbers on the CPU, got"):
        call(LAYER, rows=rows)
    with pytest.raises(ValueError, match="rows must be 5 int64 numbers on the CPU, got"):
        call(STEP, rows=rows)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.tensor([-1] * 5)},
        {"rows": torch.tensor([2**32] * 5)},
        {"step": -1},
        {"step": 2**32},
        {"layer": -1},
        {"layer": 2**31},
    ],
    ids=str,
)
def test_numbers_beyond_32_bits_are_refused_or_mean_what_the_reference_means(change):
    try:
        expected = call(STEP, reference, **change)
    except (ValueError, OverflowError):
        expected = None
    if expected is None:
        with pytest.raises(ValueError):
            call(STEP, **change)
        return
    for one, other in zip(call(STEP, **change), expected, strict=True):
        assert_near(one, other, FORWARD_BOUND[F32])


# Lengths


@pytest.mark.parametrize(
    ("lengths", "got"),
    [([5, 4, 0, 1, 1, 1, 1], "0 to 5"), ([5, 4, 6, 1, 1, 1, 1], "1 to 6"), ([-1, 4, 1, 1, 1, 1, 1], "-1 to 4")],
)
def test_lengths_outside_the_sequence_are_refused(lengths, got):
    with pytest.raises(ValueError, match=rf"lengths must be between 1 and 5 \(time steps\), got {got}"):
        call(LAYER, lengths=torch.tensor(lengths))


@pytest.mark.parametrize(
    "lengths",
    [torch.ones(6, dtype=torch.int64), torch.ones(7, dtype=torch.int32), torch.ones(7), torch.ones(7, 1).long()],
    ids=lambda lengths: f"{tuple(lengths.shape)} {lengths.dtype}",
)
def test_lengths_that_are_not_one_number_a_row_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be 7 int64 numbers on the CPU, got"):
        call(LAYER, lengths=lengths)


# Shapes


@pytest.mark.parametrize("case", [LAYER, DECODER], ids=lambda case: case_name[type(case)])
@pytest.mark.parametrize("cut", [lambda x: x[:0], lambda x: x[:, :0]], ids=["no steps", "no rows"])
def test_no_steps_and_no_rows_are_refused(case, cut):
    with pytest.raises(ValueError, match="x must have at least one time step and one batch row, got"):
        call(case, x=cut)


def test_a_step_of_no_rows_has_no_rows():
    h, c = call(STEP, a=lambda a: a[:0], c=lambda c: c[:0])
    assert h.shape == c.shape == (0, 19)


WRONG_SHAPES = {
    "x": [lambda t: t[0], lambda t: t[..., :-1], lambda t: t[:, :-1]],
    "h_0": [lambda t: t[..., :-1], lambda t: t[0], lambda t: t.unsqueeze(0), lambda t: t.t(), lambda t: t[:1]],
    "c_0": [lambda t: t[..., :-1], lambda t: t[0], lambda t: t.unsqueeze(0), lambda t: t.t(), lambda t: t[:1]],
    "w_ih": [lambda t: t.t(), lambda t: t[:-1], lambda t: t[:, :-1], lambda t: t[0]],
    "w_hh": [lambda t: t.t(), lambda t: t[:-1], lambda t: t[:, :-1], lambda t: t[0]],
    "b_ih": [lambda t: t[:-1], lambda t: t.unsqueeze(0), lambda t: t[0]],
    "b_hh": [lambda t: t[:-1], lambda t: t.unsqueeze(0), lambda t: t[0]],
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, changes in WRONG_SHAPES.items() for change in changes]
)
def test_layer_refuses_wrong_shapes(name, change):
    with pytest.raises(ValueError, match=r"must (be|have shape) .*, got"):
        call(LAYER, **{name: change})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda t: t[0]),
        ("x", lambda t: t[:, :-1]),
        ("h_0", lambda t: t[0]),
        ("h_0", lambda t: t[:1]),
        ("h_0", lambda t: t[:, :1]),
        ("c_0", lambda t: t[..., :-1]),
        ("c_0", lambda t: t[:1]),
        ("feed_0", lambda t: t[:1]),
        ("feed_0", lambda t: t[..., :-1]),
        ("cells", lambda cells: cells[:1]),
        ("cells", lambda cells: cells[::-1]),
        ("cells", lambda cells: [*cells, cells[1]]),
        ("cells", lambda cells: []),
        ("cells", change_cell(0, "w_ih", lambda t: t[:, :-1])),
        ("cells", change_cell(1, "w_hh", lambda t: t[:, :-1])),
        ("cells", lambda cells: [cell._replace(b_ih=cell.b_ih[:-1], b_hh=cell.b_hh[:-1]) for cell in cells]),
        ("source", lambda t: t[0]),
        ("source", lambda t: t[:, :-1]),
        ("source", lambda t: t[..., :-1]),
        ("source_padding", lambda t: t.t()),
        ("source_padding", lambda t: t[:-1]),
        ("source_padding", lambda t: t.float()),
        ("source_padding", lambda t: t.long()),
        ("w_query", lambda t: t.t()),
        ("w_query", lambda t: t[:-1]),
        ("w_out", lambda t: t[:, :-1]),
        ("w_out", lambda t: t[:-1]),
        ("dropout_mask", lambda t: t[:-1]),
        ("dropout_mask", lambda t: t[..., :-1]),
        ("dropout_mask", lambda t: t[0]),
    ],
)
def test_decoder_refuses_wrong_shapes(name, change):
    with pytest.raises(ValueError, match=r"must (be|have shape|hold) .*, got"):
        call(DECODER, **{name: change})


@pytest.mark.parametrize("missing", ["w_query", "w_out"])
def test_attention_without_its_weights_is_refused(missing):
    with pytest.raises(ValueError, match="attention over a source needs w_query and w_out, got None"):
        call(DECODER, **{missing: None})


def test_biases_of_some_cells_alone_are_refused():
    def without(cells: list[CellWeights]) -> list[CellWeights]:
        return [cells[0], CellWeights(cells[1].w_ih, cells[1].w_hh)]

    with pytest.raises(ValueError, match="one tensor for each of the cells, and bias too or none, got 2, 2 and 1"):
        call(DECODER, cells=without)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a", lambda t: t[0]),
        ("a", lambda t: t[:, :-1]),
        ("a", lambda t: t[:, :-4]),
        ("a", lambda t: t[:-1]),
        ("a", lambda t: t[:, :0]),
        ("c", lambda t: t[0]),
        ("c", lambda t: t[:, :-1]),
        ("c", lambda t: t.t()),
        ("c", lambda t: t.unsqueeze(0)),
    ],
)
def test_step_refuses_wrong_shapes(name, change):
    with pytest.raises(ValueError, match=r"must (be|have shape) .*, got"):
        call(STEP, **{name: change})


@pytest.mark.parametrize("case", [LAYER, DECODER], ids=lambda case: case_name[type(case)])
def test_inputs_of_no_features_leave_the_biases_and_the_recurrence(case):
    h_size = case.h_size
    changes = {"x": lambda x: x[..., :0]}
    if case is LAYER:
        changes["w_ih"] = lambda w: w[:, :0]
    else:
        changes["cells"] = change_cell(0, "w_ih", lambda w: w[:, :h_size])
    found, expected = (call(case, module, **changes) for module in (ops, reference))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, FORWARD_BOUND[F32])


def test_inputs_of_no_features_have_gradients():
    changes = {"x": lambda x: x[..., :0], "w_ih": lambda w: w[:, :0]}
    results = []
    for module in (ops, reference):
        tensors = leaves({name: changes.get(name, Tensor.clone)(t) for name, t in LAYER.tensors().items()})
        args, options = LAYER.arguments(tensors)
        outputs = module.lstm_layer(*args, **options)[0]
        results.append(torch.autograd.grad(outputs.square().sum(), list(tensors.values())))
    for name, one, other in zip(tensors, *results, strict=True):
        assert_near(one, other, GRADIENT_BOUND[F32], name)


def test_an_empty_source_gives_the_references_answer():
    changes = {"source": lambda s: s[:0], "source_padding": lambda p: p[:0]}
    found, expected = (call(DECODER, module, **changes) for module in (ops, reference))
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert_near(one, other, FORWARD_BOUND[F32], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_source_of_padding_alone_gives_the_references_nan(dtype):
    case = DecoderCase(dtype=dtype)
    padding = case.source_padding()
    padding[:, 2] = True
    found, expected = (call(case, module, source_padding=padding) for module in (ops, reference))
    assert expected.outputs[:, 2].isnan().all() and expected.outputs[:, :2].isfinite().all()
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert_near(one, other, FORWARD_BOUND[dtype], name)


# Settings


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
@each_case()
def test_temperatures_out_of_range_are_refused(case, temperature):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got"):
        call(case, mode=GateMode(temperature))


@pytest.mark.parametrize("noise_prob", [-0.1, 1.5, float("nan"), float("inf")])
@each_case()
def test_probabilities_out_of_range_are_refused(case, noise_prob):
    with pytest.raises(ValueError, match="noise_prob must be a probability between 0 and 1, got"):
        call(case, mode=GateMode(0.9, noise_prob))


@each_case()
def test_unknown_sharing_is_refused(case):
    with pytest.raises(ValueError, match="noise_sharing must be one of step, mask, sequence, got batch"):
        call(case, mode=GateMode(0.9, 0.2, "batch"))


@each_case()
def test_noise_without_a_seed_is_refused(case):
    with pytest.raises(ValueError, match="a noise probability above 0 needs a seed, got None"):
        call(case, seed=None)


@each_case()
def test_no_seed_is_needed_without_noise(case):
    found, expected = (call(case, module, mode=MODES["sharpened"], seed=None) for module in (ops, reference))
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert_near(one, other, FORWARD_BOUND[F32])


@pytest.mark.parametrize("module", [ops, reference], ids=["operator", "reference"])
@each_case()
def test_temperature_and_noise_play_no_part_where_gates_are_hard(case, module):
    expected = call(case, module, mode=GateMode(hard=True), seed=None)
    for mode in (GateMode(0.5, 1.0, hard=True), GateMode(0.5, 0.2, "sequence", hard=True)):
        for one, other in zip(call(case, module, mode=mode), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


# Devices. Meta tensors hold no numbers: an answer made from one would be whatever lies in memory.


OTHER_DEVICE = r"(a tensor is on \w+ and the others on \w+: move all|(lengths|seed) must be on the CPU, got meta)"


@pytest.mark.parametrize("name", NAMES[LayerCase])
def test_layer_refuses_one_tensor_on_another_device(name):
    with pytest.raises(ValueError, match=OTHER_DEVICE):
        call(LayerCase(lengths="ragged"), **{name: lambda t: t.to("meta")})


@pytest.mark.parametrize("name", NAMES[DecoderCase])
def test_decoder_refuses_one_tensor_on_another_device(name):
    change = change_cell(1, "w_hh", lambda t: t.to("meta")) if name == "cells" else lambda t: t.to("meta")
    with pytest.raises(ValueError, match=OTHER_DEVICE):
        call(DECODER, **{name: change})


@pytest.mark.parametrize("name", NAMES[StepCase])
def test_step_refuses_one_tensor_on_another_device(name):
    with pytest.raises(ValueError, match=OTHER_DEVICE):
        call(STEP, **{name: lambda t: t.to("meta")})


@each_case()
def test_seed_and_rows_on_another_device_are_refused(case):
    with pytest.raises(ValueError, match="seed must be on the CPU, got meta"):
        call(case, seed=torch.tensor(SEED, device="meta"))
    with pytest.raises(ValueError, match="rows must be on the CPU, got meta"):
        call(case, rows=torch.arange(case.n_rows, device="meta"))


# The search step and the words


def search_step(**changes: Any) -> tuple:
    tensors = DECODER.tensors()
    memory = ops.attention_memory(
        tensors["source"], DECODER.source_padding(), tensors["w_query"], tensors["w_out"]
    )
    given = {
        "x": tensors["x"][0],
        "h": tensors["h_0"],
        "c": tensors["c_0"],
        "feed": tensors["feed_0"],
        "cells": DECODER.cells(tensors),
        "memory": memory,
        "source_rows": None,
        "w_out": tensors["w_out"],
    }
    for name, change in changes.items():
        given[name] = change(given[name]) if callable(change) else change
    with torch.no_grad():
        return ops.decoder_step(*given.values(), mode=GateMode())


def change_memory(name: str, change: Callable) -> Callable:
    return lambda memory: memory._replace(**{name: change(getattr(memory, name))})


def to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", to_meta),
        ("h", to_meta),
        ("c", to_meta),
        ("feed", to_meta),
        ("cells", change_cell(1, "w_hh", to_meta)),
        ("memory", change_memory("keys", to_meta)),
        ("memory", change_memory("values", to_meta)),
        ("memory", change_memory("padding", to_meta)),
        ("source_rows", torch.zeros(5, dtype=torch.int64, device="meta")),
        ("w_out", to_meta),
    ],
)
def test_search_step_refuses_one_tensor_on_another_device(name, change):
    with pytest.raises(ValueError, match="move all to one device"):
        search_step(**{name: change})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda t: t[:0]),
        ("x", lambda t: t[0]),
        ("x", lambda t: t[:, :-1]),
        ("x", lambda t: t[:-1]),
        ("x", Tensor.double),
        ("h", lambda t: t[0]),
        ("h", lambda t: t[:, :-1]),
        ("h", Tensor.double),
        ("c", lambda t: t[..., :-1]),
        ("c", Tensor.double),
        ("feed", lambda t: t[:-1]),
        ("feed", Tensor.double),
        ("cells", lambda cells: cells[:1]),
        ("cells", lambda cells: []),
        ("cells", change_cell(1, "w_hh", lambda t: t[:, :-1])),
        ("cells", change_cell(0, "w_ih", lambda t: t[:, :-1])),
        ("cells", change_cell(0, "w_ih", Tensor.double)),
        ("cells", lambda cells: [CellWeights(*cells[0][:2]), cells[1]]),
        ("memory", change_memory("keys", lambda t: t[:-1])),
        ("memory", change_memory("keys", lambda t: t[..., :-1])),
        ("memory", change_memory("keys", Tensor.double)),
        ("memory", change_memory("values", lambda t: t[:, :-1])),
        ("memory", change_memory("padding", lambda t: t[:, :-1])),
        ("memory", change_memory("padding", Tensor.float)),
        ("source_rows", torch.tensor([0, 1, 2, 3, 5])),
        ("source_rows", torch.tensor([0, 1, 2, 3, -1])),
        ("source_rows", torch.tensor([0, 1, 2])),
        ("source_rows", torch.zeros(5, dtype=torch.int32)),
        ("w_out", lambda t: t[:-1]),
        ("w_out", lambda t: t[:, :5]),
        ("w_out", None),
    ],
)
def test_search_step_refuses_wrong_arguments(name, change):
    with pytest.raises(ValueError, match=r"must|needs|has dtype"):
        search_step(**{name: change})


@pytest.mark.parametrize("sizes", [(-1, 2, 2), (2, -1, 2), (2, 2, -1)])
def test_words_of_negative_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be >= 0, got"):
        torch.ops.g2lstm.noise_words(torch.tensor(1), *sizes, 0)


def test_words_of_wrong_seeds_and_rows_are_refused():
    with pytest.raises(ValueError, match="seed must be one int64 number on the CPU, got"):
        torch.ops.g2lstm.noise_words(torch.tensor(1.0), 1, 2, 3, 0)
    with pytest.raises(ValueError, match="rows must be 2 int64 numbers on the CPU, got"):
        torch.ops.g2lstm.noise_words(torch.tensor(1), 1, 2, 3, 0, torch.tensor([1]))


# The backward operators, called with what no forward pass has returned


@pytest.mark.parametrize("name", ["outputs", "gates", "cells"])
def test_layers_backward_refuses_saved_tensors_of_other_sizes(name):
    case = LayerCase(n_steps=2, n_rows=2, h_size=5)
    (x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, _), _ = case.arguments(case.tensors())
    options = (None, torch.tensor(SEED), None, 0, *case.mode)
    outputs, _, _, _, gates, cells = torch.ops.g2lstm.layer(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, *options, False)
    saved = {"outputs": outputs, "gates": gates, "cells": cells}
    saved[name] = saved[name][:1]
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.g2lstm.layer_backward(
            torch.ones_like(outputs), None, None, x, h_0, c_0, w_ih, w_hh, *saved.values(), *options, True
        )


def decoders_backward(change: Callable[[dict[str, Tensor]], None], dropout: bool = True) -> list[Tensor]:
    """Gradients of a decoder whose saved tensors are changed before."""
    case = DecoderCase(n_steps=2, n_rows=2, h_size=5, dropout=dropout)
    (x, h_0, c_0, feed_0, cells, *attention), _ = case.arguments(case.tensors())
    states, weights = (x, h_0, c_0, feed_0), ([cell.w_ih for cell in cells], [cell.w_hh for cell in cells])
    options = (torch.tensor(SEED), None, *case.mode)
    returned = torch.ops.g2lstm.decoder(
        *states, *weights, [cell.bias for cell in cells], *attention, *options, False
    )
    names = ("outputs", "", "", "", "attention", "", "gates", "cells", "hiddens", "undropped", "keys", "values")
    saved = {key: t for key, t in zip(names, returned, strict=True) if key}
    change(saved)
    return torch.ops.g2lstm.decoder_backward(
        torch.ones(2, 2, 5), *[None] * 4, *states, *weights, *attention, *saved.values(), *options
    )


@pytest.mark.parametrize(
    "name", ["outputs", "attention", "gates", "cells", "hiddens", "undropped", "keys", "values"]
)
def test_decoders_backward_refuses_saved_tensors_of_other_sizes(name):
    with pytest.raises((ValueError, RuntimeError)):
        decoders_backward(lambda saved: saved.update({name: saved[name][:1]}))


def test_decoders_backward_reads_outputs_of_any_strides():
    def transpose(saved: dict[str, Tensor]) -> None:
        saved["outputs"] = saved["outputs"].transpose(0, 1).contiguous().transpose(0, 1)

    # with dropout it reads what was there before it
    found, expected = decoders_backward(transpose, dropout=False), decoders_backward(lambda _: None, dropout=False)
    assert torch.equal(found[0], expected[0]) and found[0].any()


def test_a_mask_of_dropout_that_needs_a_gradient_is_refused():
    case = DecoderCase(dropout=True)
    (*arguments, mask), options = case.arguments(case.tensors())
    with pytest.raises(ValueError, match="dropout_mask has no gradient here: detach it"):
        ops.decoder(*arguments, mask.requires_grad_(), **options)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", "2.13.0"), ("2.6.0a0+ecf3bae40a.nv25.01", "2.6.0"), ("2.15.0.dev20261101+cu130", "2.15.0")],
)
def test_kernels_are_of_a_release_of_torch_whatever_stands_behind_its_numbers(version, expected):
    from fairseq_g2lstm.operators import release_of

    assert release_of(version) == expected


# What only a direct call can do wrong


def decoder_step_arguments(h_size: int = 4, dtype: torch.dtype = F32) -> list:
    x, states, feed = torch.randn(3, 5), torch.randn(2, 1, 3, h_size), torch.randn(3, h_size)
    weights = [torch.randn(4 * h_size, 5 + h_size)], [torch.randn(4 * h_size, h_size)], [torch.randn(4 * h_size)]
    return [x, *states, feed, *weights, None, None, None, None, None, 1.0, False]


def test_a_search_step_of_no_units_is_refused():
    with pytest.raises(ValueError, match=r"h must be \(L, B, H\), got"):
        torch.ops.g2lstm.decoder_step(*decoder_step_arguments(h_size=0))


def test_a_search_step_called_directly_refuses_to_be_differentiated():
    arguments = decoder_step_arguments()
    arguments[0].requires_grad_()
    out = torch.ops.g2lstm.decoder_step(*arguments)[0]
    with pytest.raises(NotImplementedError, match="decoder_step has no gradients"):
        out.sum().backward()


def test_cross_entropys_backward_refuses_targets_that_are_no_class():
    logits = torch.randn(3, 5)
    one = torch.tensor(1.0)
    _, _, normalizer = torch.ops.g2lstm.cross_entropy(logits, torch.tensor([0, 1, 2]), -100)
    with pytest.raises(IndexError, match="targets must be between 0 and 4, got 5"):
        torch.ops.g2lstm.cross_entropy_backward(one, one, logits, torch.tensor([0, 1, 5]), normalizer, -100)
    with pytest.raises(ValueError, match="log_normalizer must have shape"):
        torch.ops.g2lstm.cross_entropy_backward(one, one, logits, torch.tensor([0, 1, 2]), normalizer[:2], -100)


def test_layers_backward_refuses_a_gradient_of_another_shape():
    x, h, w_ih, w_hh = torch.randn(3, 2, 5), torch.zeros(2, 4), torch.randn(16, 5), torch.randn(16, 4)
    options = [None, None, None, 0, 1.0, 0.0, "step", False]
    outputs, _, _, _, gates, cells = torch.ops.g2lstm.layer(x, h, h, w_ih, w_hh, None, None, *options, False)
    saved = [x, h, h, w_ih, w_hh, outputs, gates, cells]
    with pytest.raises(ValueError, match="grad_outputs must have shape"):
        torch.ops.g2lstm.layer_backward(torch.ones(1, 2, 4), None, None, *saved, *options, True)


@pytest.mark.parametrize("temperature", [1e-38, 1e-300])
def test_the_smallest_temperatures_make_no_nan(temperature):
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    h, c = ops.lstm_step(a, torch.ones(1, 1), mode=GateMode(temperature))
    expected = 0.5 + 0.5 * torch.tanh(torch.tensor(1.0))
    torch.testing.assert_close(c, expected.view(1, 1))
    assert h.isfinite().all()
