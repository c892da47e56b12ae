"""The layer operator against plain PyTorch, forward and gradients."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    DTYPES,
    F32,
    F64,
    HALF_TYPES,
    MODES,
    LayerCase,
    assert_equals_reference,
    dtype_name,
    needs_kernels,
    run_operator,
)

from fairseq_g2lstm.ops import GateMode

pytestmark = needs_kernels

LENGTHS = ["none", "ragged", "ones", "full"]
# (T, B, I, H). Blocks of units have 2 to 16 vector lanes, blocks of rows 1 to 6 or 12: sizes at and beside both.
SIZES = [
    (1, 1, 1, 1),
    (1, 4, 3, 5),
    (6, 1, 2, 3),
    (2, 5, 1, 8),
    (3, 6, 7, 16),
    (4, 7, 5, 17),
    (3, 12, 4, 33),
    (5, 13, 9, 15),
    (2, 25, 3, 31),
    (120, 2, 3, 2),
]
LARGE_SIZES = [(6, 9, 256, 256), (3, 20, 400, 1150)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_equals_the_reference_in_every_mode(mode, lengths, reverse, dtype):
    assert_equals_reference(LayerCase(mode=mode, lengths=lengths, reverse=reverse, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lengths", ["none", "ragged"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference_at_every_size(size, lengths, reverse, dtype):
    assert_equals_reference(LayerCase(*size, lengths=lengths, reverse=reverse, dtype=dtype))


@pytest.mark.parametrize(("lengths", "reverse"), [("none", False), ("ragged", True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", LARGE_SIZES, ids=str)
def test_equals_the_reference_at_large_sizes(size, dtype, lengths, reverse):
    assert_equals_reference(LayerCase(*size, lengths=lengths, reverse=reverse, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize("lengths", ["none", "ragged"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_half_types_are_float32_rounded_once(mode, lengths, dtype):
    # Hard gates turn at 0: a pre-activation there must not be moved across it, and with these numbers none is.
    assert_equals_reference(LayerCase(mode=mode, lengths=lengths, dtype=dtype, reverse=lengths == "ragged"))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (30, 9, 64, 64), (6, 9, 256, 256), (3, 5, 400, 1150)], ids=str)
def test_half_types_hold_their_bounds_at_other_sizes(size, dtype):
    # The cell state stays in float32 from step to step: thirty steps stray no further than one.
    assert_equals_reference(LayerCase(*size, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "differentiated", [["outputs"], ["h_n"], ["c_n"], ["outputs", "c_n"], ["h_n", "c_n"]], ids="+".join
)
def test_gradients_of_some_outputs_alone(differentiated, lengths, reverse, dtype):
    assert_equals_reference(LayerCase(lengths=lengths, reverse=reverse, dtype=dtype), differentiated)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_TYPES], ids=dtype_name)
@pytest.mark.parametrize(
    "option",
    [{"bias": False}, {"zero_state": True}, {"rows": True}, {"layer": 3}, {"n_steps": 1}, {"n_rows": 1}],
    ids=str,
)
@pytest.mark.parametrize(("lengths", "reverse"), [("none", False), ("ragged", False), ("ragged", True)])
def test_equals_the_reference_with_every_option(option, lengths, reverse, dtype):
    assert_equals_reference(replace(LayerCase(lengths=lengths, reverse=reverse, dtype=dtype), **option))


@pytest.mark.parametrize("bias", ["b_ih", "b_hh"])
def test_either_bias_may_be_missing(bias):
    class OneBias(LayerCase):
        def tensors(self):
            return {name: t for name, t in super().tensors().items() if name != bias}

    assert_equals_reference(OneBias(dtype=F64))


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_TYPES], ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_outputs_are_zero_in_the_padding(reverse, dtype):
    case = LayerCase(lengths="ragged", reverse=reverse, dtype=dtype)
    outputs = run_operator(case).outputs["outputs"]
    padding = (~case.valid()).expand_as(outputs)
    assert padding.any() and not outputs[padding].any() and outputs[~padding].all()


@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_equals_the_reference_at_every_probability_and_sharing(p, sharing, dtype):
    case = LayerCase(mode=GateMode(0.8, p, sharing), lengths="ragged", reverse=True, dtype=dtype)
    assert_equals_reference(case)


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_equals_the_reference_at_any_size(data):
    case = LayerCase(
        n_steps=data.draw(st.integers(1, 6)),
        n_rows=data.draw(st.integers(1, 30)),
        n_inputs=data.draw(st.integers(1, 9)),
        h_size=data.draw(st.integers(1, 40)),
        mode=data.draw(st.sampled_from(list(MODES.values()))),
        dtype=data.draw(st.sampled_from(DTYPES)),
        lengths=data.draw(st.sampled_from(LENGTHS)),
        bias=data.draw(st.booleans()),
        rows=data.draw(st.booleans()),
        layer=data.draw(st.integers(0, 4)),
        reverse=data.draw(st.booleans()),
        zero_state=data.draw(st.booleans()),
    )
    # One unit's gradient may be far smaller than the terms it is made of; a wrong one is off by about 1.
    assert_equals_reference(case, floor=0.1)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
def test_float32_holds_its_bound_over_many_steps(reverse):
    # 400 steps feed rounding errors back 400 times; gates forget them faster than they gather.
    assert_equals_reference(LayerCase(400, 3, 5, 24, lengths="ragged", dtype=F32, reverse=reverse))
