"""Derivatives taken otherwise than by backward(): forward mode, torch.func, compiled autograd, and none at all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from operator_cases import (
    F64,
    GRADIENT_BOUND,
    SEED,
    Case,
    assert_near,
    coefficients,
    each_case,
    leaves,
    needs_kernels,
    random_tensor,
    run_operator,
)
from torch import Tensor
from torch.autograd import forward_ad

from fairseq_g2lstm import G2LSTM, ops
from fairseq_g2lstm.ops import GateMode
from fairseq_g2lstm.reference import Factor, PackedWeight

pytestmark = needs_kernels
if ops.kernels_error() is None:
    from fairseq_g2lstm import operators

REFUSED = r"no forward-mode derivatives.*use_reference\(\)"
x = torch.linspace(-1, 1, 12, dtype=F64).view(3, 4)


@each_case()
def test_forward_mode_agrees_with_backward(case):
    case = type(case)(dtype=F64)
    tensors = case.tensors()
    generator = torch.Generator().manual_seed(11)
    tangents = {name: random_tensor(generator, F64, *tensor.shape) for name, tensor in tensors.items()}
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(tensor, tangents[name]) for name, tensor in tensors.items()}
        outputs = case.call(case.operator, duals)
        moved = {name: forward_ad.unpack_dual(output).tangent for name, output in outputs.items()}
    expected = run_operator(case)
    chosen = {name: output for name, output in outputs.items() if name in differentiable(case)}
    weights = coefficients(chosen, F64)
    forward = sum((weight * moved[name]).sum() for weight, name in zip(weights, chosen, strict=True))
    backward = sum((expected.gradients[name] * tangents[name]).sum() for name in tensors)
    assert_near(forward, backward, GRADIENT_BOUND[F64])


def differentiable(case: Case) -> set[str]:
    """Names of the outputs that take gradients."""
    return {name for name, output in case.call(case.operator, leaves(case.tensors())).items() if output.requires_grad}


def step(a: Tensor) -> Tensor:
    return torch.ops.g2lstm.step(a, x[:, :1], torch.tensor(SEED), None, 0, 0, 0.9, 0.2, "step", False)[0]


def layer(inputs: Tensor) -> Tensor:
    state, w_ih, w_hh = x[:, :1], torch.ones(4, 4, dtype=F64), torch.ones(4, 1, dtype=F64)
    none = (None,) * 5
    return torch.ops.g2lstm.layer(inputs[None], state, state, w_ih, w_hh, *none, 0, 0.9, 0.0, "step", False, False)[0]


def dropout(inputs: Tensor) -> Tensor:
    return torch.ops.g2lstm.dropout(inputs, torch.tensor(SEED), 0.5)


OPERATORS = [step, layer, dropout]


def matmul(inputs: Tensor) -> Tensor:
    return torch.ops.g2lstm.matmul(inputs, x.t(), None)


def cross_entropy(inputs: Tensor) -> Tensor:
    return torch.ops.g2lstm.cross_entropy(inputs, torch.arange(3), 7)[0]


@pytest.mark.parametrize("function", OPERATORS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_of_torch_refuse_it(function, requires_grad):
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
        function(forward_ad.make_dual(x.clone().requires_grad_(requires_grad), torch.ones_like(x)))
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))


def decoder(inputs: Tensor) -> Tensor:
    state, ones = x[None, :, :1], partial(torch.ones, dtype=F64)
    cells, attention = ([ones(4, 5)], [ones(4, 1)], []), (None,) * 5
    gates = 0.9, 0.0, "step", False
    rest = *cells, *attention, None, None, *gates, False
    return torch.ops.g2lstm.decoder(inputs[None], state, state, state[0], *rest)[0]


def decoder_step(inputs: Tensor) -> Tensor:
    state, ones = x[None, :, :1], partial(torch.ones, dtype=F64)
    cells, attention = ([ones(4, 5)], [ones(4, 1)], []), (None,) * 5
    return torch.ops.g2lstm.decoder_step(inputs, state, state, state[0], *cells, *attention, 0.9, False)[0]


def packed(*shape: int) -> PackedWeight:
    return PackedWeight(((Factor(torch.ones(shape)),),))


def packed_linear(inputs: Tensor) -> Tensor:
    return operators.packed_linear(inputs.float(), packed(2, 4))


def packed_layer(inputs: Tensor) -> Tensor:
    state = x[:, :1].float()
    return operators.lstm_layer(inputs[None].float(), state, state, packed(4, 4), packed(4, 1), mode=GateMode())[0]


def packed_decoder_step(inputs: Tensor) -> Tensor:
    state, weights = x[None, :, :1].float(), operators._flat(packed(4, 5), packed(4, 1))
    attention = (None,) * 5
    return torch.ops.g2lstm.packed_decoder_step(
        inputs.float(), state, state, state[0], *weights, [], *attention, 1.0, False
    )[0]


PYTHONS = [matmul, cross_entropy, decoder, decoder_step, packed_linear, packed_layer, packed_decoder_step]


@pytest.mark.parametrize("function", PYTHONS)
def test_operators_of_torch_whose_derivatives_are_pythons_refuse_it(function):
    assert torch.isfinite(function(x)).all()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
        function(forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("function", [*OPERATORS, matmul, cross_entropy])
def test_gradients_that_carry_tangents_are_refused(function):
    leaf = x.clone().requires_grad_()
    output = function(leaf)
    with forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(NotImplementedError, match=REFUSED):
            torch.autograd.grad((output * factor).sum(), leaf)


@pytest.mark.parametrize("training", [False, True])
def test_the_reference_has_the_derivatives_of_torch_func(training):
    torch.manual_seed(1)
    lstm = G2LSTM(4, 5, 2, bidirectional=True).double().train(training)
    inputs = torch.randn(6, 3, 4, dtype=F64)

    def total(inputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        return lstm(inputs)[0].square().sum()

    leaf = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    with ops.use_reference():
        assert_near(torch.func.grad(total)(inputs), expected, GRADIENT_BOUND[F64])
    tangent = torch.randn(6, 3, 4, dtype=F64)
    moved = torch.func.jvp(total, (inputs,), (tangent,))[1]
    assert_near(moved, (expected * tangent).sum(), GRADIENT_BOUND[F64])


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="compiled autograd of C++ functions: tried from 2.13 on")
@each_case()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_autograd_computes_the_same_gradients(case, backend):
    from torch._dynamo import compiled_autograd

    expected = run_operator(case)
    tensors = leaves(case.tensors())
    outputs = case.call(case.operator, tensors)
    chosen = {name: output for name, output in outputs.items() if output.requires_grad}
    with compiled_autograd._enable(torch.compile(backend=backend)):
        torch.autograd.backward(list(chosen.values()), coefficients(chosen, case.dtype))
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, expected.gradients[name]), name


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize("function", OPERATORS)
def test_where_no_gradient_comes_none_goes(function: Callable[[Tensor], Tensor]):
    leaf = x.clone().requires_grad_()
    NoGradient.apply(function(leaf)).sum().backward()
    assert leaf.grad is None


@pytest.mark.parametrize(
    "function",
    [
        lambda value: ops.linear(value, torch.ones(1024, 1024)),  # large enough for the kernels' own product
        lambda value: ops.dropout(value, 0.5),
        lambda value: ops.cross_entropy(value.log_softmax(-1), torch.arange(64), -1)[0],
    ],
    ids=["linear", "dropout", "cross_entropy"],
)
def test_forward_mode_agrees_with_backward_in_the_other_operators(function: Callable[[Tensor], Tensor]):
    generator = torch.Generator().manual_seed(12)
    value, tangent = torch.randn(2, 64, 1024, generator=generator)
    leaf = value.clone().requires_grad_()

    def at(value: Tensor) -> Tensor:
        torch.manual_seed(3)
        return function(value).mean()

    moved = torch.func.jvp(at, (value,), (tangent,))[1]
    with ops.use_reference():  # whose dropout has the masks that plain PyTorch draws
        (gradient,) = torch.autograd.grad(at(leaf), leaf)
    # 65,536 products of either sign add up
    torch.testing.assert_close(moved, (gradient * tangent).sum(), rtol=1e-3, atol=1e-6)
    assert moved.abs() > 1e-5
