"""The decoder operator against plain PyTorch, forward and gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    DTYPES,
    F64,
    FORWARD_BOUND,
    HALF_TYPES,
    MODES,
    SEED,
    DecoderCase,
    assert_equals_reference,
    assert_near,
    dtype_name,
    needs_kernels,
    run_operator,
)

from fairseq_g2lstm import ops, reference

pytestmark = needs_kernels

OUTPUTS = ["outputs", "h", "c", "feed", "attention"]
# (T, B, I, H, L, S, E): sizes at and beside the vectors' lanes, each size once alone at 1.
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 3, 4, 5, 2, 3, 2),
    (5, 1, 2, 3, 1, 4, 6),
    (3, 5, 1, 8, 2, 6, 8),
    (2, 6, 7, 16, 3, 1, 5),
    (4, 7, 5, 17, 1, 9, 1),
    (3, 13, 4, 33, 2, 33, 31),
    (2, 25, 3, 15, 2, 5, 40),
    (60, 2, 3, 2, 2, 3, 4),
]
LARGE_SIZES = [(3, 9, 256, 256, 2, 20, 512), (2, 5, 400, 1150, 1, 7, 600)]


def decoder_case(size: tuple[int, ...], **options) -> DecoderCase:
    return DecoderCase(*size, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("attention", [False, True], ids=["no_attention", "attention"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_equals_the_reference_in_every_mode(mode, n_layers, attention, dtype):
    case = DecoderCase(mode=mode, n_layers=n_layers, n_source=7 if attention else 0, dtype=dtype)
    assert_equals_reference(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("padding", [False, True], ids=["no_padding", "padding"])
@pytest.mark.parametrize("dropout", [False, True], ids=["no_dropout", "dropout"])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n_source", [0, 7], ids=["no_attention", "attention"])
def test_equals_the_reference_with_every_option(n_source, n_layers, dropout, padding, bias, dtype):
    assert_equals_reference(
        DecoderCase(n_source=n_source, n_layers=n_layers, dropout=dropout, padding=padding, bias=bias, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference_at_every_size(size, dtype):
    assert_equals_reference(decoder_case(size, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", LARGE_SIZES, ids=str)
def test_equals_the_reference_at_large_sizes(size, dtype):
    assert_equals_reference(decoder_case(size, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize("n_source", [0, 7], ids=["no_attention", "attention"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_half_types_are_float32_rounded_once(mode, n_source, dtype):
    assert_equals_reference(DecoderCase(mode=mode, n_source=n_source, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1, 1, 1), *LARGE_SIZES], ids=str)
def test_half_types_hold_their_bounds_at_other_sizes(size, dtype):
    assert_equals_reference(decoder_case(size, dtype=dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_TYPES], ids=dtype_name)
@pytest.mark.parametrize("n_source", [0, 7], ids=["no_attention", "attention"])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("differentiated", [*([name] for name in OUTPUTS), ["outputs", "attention"]], ids="+".join)
def test_gradients_of_some_outputs_alone(differentiated, n_layers, n_source, dtype):
    if "attention" in differentiated and not n_source:
        differentiated = ["outputs"]
    assert_equals_reference(DecoderCase(n_layers=n_layers, n_source=n_source, dtype=dtype), differentiated)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_attention_that_is_not_asked_for_changes_nothing_else(dtype):
    case = DecoderCase(dtype=dtype)
    bare = run_operator(replace(case, need_attention=False))
    full = run_operator(case, ["outputs", "h", "c", "feed"])
    assert "attention" not in bare.outputs
    for name, output in bare.outputs.items():
        assert torch.equal(output, full.outputs[name]), name
    for name, gradient in bare.gradients.items():
        assert torch.equal(gradient, full.gradients[name]), name


def test_gates_are_returned_only_when_asked_for_and_take_no_gradient():
    case = DecoderCase(dtype=F64)
    tensors = {name: t.requires_grad_() for name, t in case.tensors().items()}
    options = {"mode": case.mode, "seed": torch.tensor(SEED)}
    args = (*(tensors[name] for name in ("x", "h_0", "c_0", "feed_0")), case.cells(tensors))
    bare, full = ops.decoder(*args, **options), ops.decoder(*args, **options, need_gates=True)
    assert bare.gates is None and bare.attention is None and full.attention is None
    assert full.gates.shape == (2, 4, 5, 38) and not full.gates.requires_grad


def test_attention_sums_to_one_and_is_zero_at_the_padding():
    case = DecoderCase(dtype=F64)
    attention = run_operator(case).outputs["attention"]
    padding = case.source_padding().t().expand_as(attention)
    assert padding.any() and not attention[padding].any() and attention[~padding].all()
    assert_near(attention.sum(-1), torch.ones(4, 5), 1e-14)


def test_what_stands_in_the_source_padding_does_not_matter():
    case = DecoderCase(dtype=F64)

    class Filled(DecoderCase):
        def tensors(self):
            tensors = super().tensors()
            tensors["source"][self.source_padding()] = 1e6
            return tensors

    plain, filled = run_operator(case), run_operator(Filled(dtype=F64))
    for name, output in plain.outputs.items():
        assert torch.equal(output, filled.outputs[name]), name
    # The padding gets no gradient and leaves none: 0 times 1e6 is 0.
    assert not filled.gradients["source"][case.source_padding()].any()
    assert_near(filled.gradients["w_query"], plain.gradients["w_query"], 1e-10)
    assert_near(filled.gradients["w_out"], plain.gradients["w_out"], 1e-10)


def test_scores_of_hundreds_do_not_overflow():
    class Sharp(DecoderCase):
        def tensors(self):
            tensors = super().tensors()
            return tensors | {"w_query": tensors["w_query"] * 300}

    for dtype in DTYPES:
        # Attention is nearly all on one position: gradients through it are products of weights close to 0.
        assert_equals_reference(Sharp(dtype=dtype), floor=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("n_source", [0, 7], ids=["no_attention", "attention"])
def test_states_and_feed_continue_a_sequence(n_source, dtype):
    case = DecoderCase(n_steps=5, n_source=n_source, mode=MODES["sharpened"], dropout=False, dtype=dtype)
    whole = run_operator(case).outputs
    tensors = case.tensors()
    with torch.no_grad():
        first = case.call(ops.decoder, tensors | {"x": tensors["x"][:2]})
        states = {"h_0": first["h"], "c_0": first["c"], "feed_0": first["feed"]}
        second = case.call(ops.decoder, tensors | states | {"x": tensors["x"][2:]})
    bound = FORWARD_BOUND[dtype]
    for name in ("outputs", "attention") if n_source else ("outputs",):
        assert_near(torch.cat((first[name], second[name])), whole[name], bound, name)
    for name in ("h", "c", "feed"):
        assert_near(second[name], whole[name], bound, name)


@given(data=st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_equals_the_reference_at_any_size(data):
    case = DecoderCase(
        n_steps=data.draw(st.integers(1, 5)),
        n_rows=data.draw(st.integers(1, 20)),
        n_inputs=data.draw(st.integers(1, 9)),
        h_size=data.draw(st.integers(1, 40)),
        n_layers=data.draw(st.integers(1, 3)),
        n_source=data.draw(st.integers(0, 40)),
        source_size=data.draw(st.integers(1, 40)),
        mode=data.draw(st.sampled_from(list(MODES.values()))),
        dtype=data.draw(st.sampled_from(DTYPES)),
        bias=data.draw(st.booleans()),
        padding=data.draw(st.booleans()),
        dropout=data.draw(st.booleans()),
        need_attention=data.draw(st.booleans()),
    )
    # One unit's gradient may be far smaller than the terms it is made of; a wrong one is off by about 1.
    assert_equals_reference(case, floor=0.1)


# The single step of beam search


def search_arguments(case: DecoderCase, source_rows: torch.Tensor | None = None) -> tuple:
    """What `decoder_step` takes of a case's first step; source_rows makes several rows read one source."""
    tensors = case.tensors()
    states = [tensors[name] for name in ("h_0", "c_0", "feed_0")]
    if not case.n_source:
        return tensors["x"][0], *states, case.cells(tensors)
    memory = ops.attention_memory(tensors["source"], case.source_padding(), tensors["w_query"], tensors["w_out"])
    return tensors["x"][0], *states, case.cells(tensors), memory, source_rows, tensors["w_out"]


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_TYPES], ids=dtype_name)
@pytest.mark.parametrize("rows", [None, [0, 0, 3, 2, 3]], ids=["own_source", "shared_sources"])
@pytest.mark.parametrize(("n_source", "padding"), [(0, False), (7, False), (7, True)])
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("mode", ["sigmoid", "sharpened", "hard"])
def test_search_step_equals_the_reference(mode, n_layers, n_source, padding, rows, dtype):
    case = DecoderCase(
        mode=MODES[mode], n_layers=n_layers, n_source=n_source, padding=padding, dtype=dtype, bias=n_layers > 1
    )
    args = search_arguments(case, None if rows is None else torch.tensor(rows))
    with torch.no_grad():
        found = ops.decoder_step(*args, mode=case.mode)
        expected = reference.decoder_step(*in_float32(args), mode=case.mode)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == dtype
            assert_near(one, other, FORWARD_BOUND[dtype])


def in_float32(value):
    """Half-precision tensors as float32, in whatever holds them."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in HALF_TYPES else value
    if isinstance(value, tuple):
        converted = map(in_float32, value)
        return type(value)(*converted) if hasattr(value, "_fields") else tuple(converted)
    return [in_float32(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_search_steps_make_the_whole_sequence(size, dtype):
    case = decoder_case(size, mode=MODES["sharpened"], dropout=False, dtype=dtype)
    whole, tensors = run_operator(case).outputs, case.tensors()
    _, h, c, feed, *rest = search_arguments(case)
    with torch.no_grad():
        for t, x in enumerate(tensors["x"]):
            feed, h, c, attention = ops.decoder_step(x, h, c, feed, *rest, mode=case.mode)
            assert_near(feed, whole["outputs"][t], FORWARD_BOUND[dtype])
            assert_near(attention, whole["attention"][t], FORWARD_BOUND[dtype])
    for found, name in ((h, "h"), (c, "c"), (feed, "feed")):
        assert_near(found, whole[name], FORWARD_BOUND[dtype], name)


def test_search_step_gives_gradients_where_they_are_wanted():
    args = search_arguments(DecoderCase(dtype=F64))
    x = args[0].requires_grad_()
    found, expected = (
        torch.autograd.grad(function(x, *args[1:], mode=ops.GateMode())[0].sum(), x)[0]
        for function in (ops.decoder_step, reference.decoder_step)
    )
    assert_near(found, expected, 1e-10)


def test_search_step_has_no_noise():
    with torch.no_grad(), pytest.raises(ValueError, match="a decoder step has no noise, got noise_prob=0.2"):
        ops.decoder_step(*search_arguments(DecoderCase()), mode=MODES["gumbel"])


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_TYPES], ids=dtype_name)
def test_rows_with_numbers_of_their_own_have_the_references_noise(dtype):
    assert_equals_reference(DecoderCase(mode=MODES["gumbel, mask"], rows=True, dtype=dtype))


def test_strided_biases_of_stacked_cells_are_read_right():
    torch.manual_seed(0)
    x, states, feed = torch.randn(3, 2, 5), torch.randn(2, 2, 2, 4), torch.randn(2, 4)
    weights = [torch.randn(16, 9), torch.randn(16, 4)], [torch.randn(16, 4), torch.randn(16, 4)]
    strided = [torch.randn(16, 3)[:, 1] for _ in range(2)]
    found, expected = (
        torch.ops.g2lstm.decoder(
            x, *states, feed, *weights, biases, *[None] * 7, 1.0, 0.0, "step", False, False
        )[0]
        for biases in (strided, [bias.contiguous() for bias in strided])
    )
    assert torch.equal(found, expected)
