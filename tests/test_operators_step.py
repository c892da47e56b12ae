"""The step operator against plain PyTorch, forward and gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    BF16,
    DTYPES,
    F16,
    F32,
    GRADIENT_BOUND,
    HALF_TYPES,
    MODES,
    StepCase,
    assert_equals_reference,
    assert_near,
    dtype_name,
    needs_kernels,
)

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.ops import GateMode

pytestmark = needs_kernels

# 16 and 8 are the lanes of the widest vectors in float32 and float64, 4 and 2 of the narrowest.
SIZES = [(1, 1), (3, 2), (2, 7), (5, 8), (1, 15), (4, 16), (3, 17), (13, 33), (7, 256), (2, 1150)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("n_rows", "h_size"), SIZES)
def test_equals_the_reference(n_rows, h_size, mode, dtype):
    # A single unit's state may be a small difference of large terms; among many, the largest is not.
    assert_equals_reference(StepCase(n_rows, h_size, mode, dtype), floor=0.1 if n_rows * h_size == 1 else 0.0)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_half_types_are_float32_rounded_once(mode, dtype):
    assert_equals_reference(StepCase(mode=mode, dtype=dtype))


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=dtype_name)
@pytest.mark.parametrize(("n_rows", "h_size"), [(1, 1), (3, 17), (7, 256), (2, 1150)])
def test_half_types_hold_their_bounds_at_other_sizes(n_rows, h_size, dtype):
    assert_equals_reference(StepCase(n_rows, h_size, dtype=dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, BF16, F16], ids=dtype_name)
@pytest.mark.parametrize("differentiated", ["h", "c"])
def test_gradient_of_one_output_alone(differentiated, dtype):
    assert_equals_reference(StepCase(dtype=dtype), [differentiated])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
@pytest.mark.parametrize(
    "place",
    [{"step": 0}, {"step": 69}, {"step": 2**31 + 5}, {"rows": True}, {"reverse": True}, {"layer": 7, "reverse": True}],
    ids=str,
)
def test_noise_is_that_of_the_place(place, sharing, dtype):
    assert_equals_reference(replace(StepCase(mode=GateMode(0.9, 0.5, sharing), dtype=dtype), **place))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_saturated_gates_and_cells_equal_the_reference(dtype):
    # Pre-activations of hundreds, beyond what exp can hold in float32, and cells where tanh is 1.
    case = StepCase(n_rows=8, h_size=32, mode=GateMode(0.9), dtype=dtype)
    tensors = case.tensors()
    a = (tensors["a"] * 100).requires_grad_()
    c = (tensors["c"] * 30).requires_grad_()
    found, expected = (function(a, c, mode=case.mode) for function in (ops.lstm_step, reference.lstm_step))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-5 if dtype == F32 else 1e-10)
    gradients = [torch.autograd.grad([*output], (a, c), [torch.ones_like(c)] * 2) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert_near(one, other, GRADIENT_BOUND[dtype])


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_the_reference_at_any_size(data):
    case = StepCase(
        n_rows=data.draw(st.integers(1, 30)),
        h_size=data.draw(st.integers(1, 70)),
        mode=data.draw(st.sampled_from(list(MODES.values()))),
        dtype=data.draw(st.sampled_from(DTYPES)),
        step=data.draw(st.integers(0, 2**32 - 1)),
        rows=data.draw(st.booleans()),
        layer=data.draw(st.integers(0, 2**31 - 1)),
        reverse=data.draw(st.booleans()),
    )
    # One unit's gradient may be far smaller than the terms it is made of; a wrong one is off by about 1.
    assert_equals_reference(case, floor=0.1)
