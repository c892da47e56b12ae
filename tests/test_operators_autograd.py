"""The compiled operators under autograd: what is kept, what is changed, what shares memory, and how much of it all."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from operator_cases import (
    DTYPES,
    F32,
    F64,
    GRADIENT_BOUND,
    HALF_TYPES,
    Case,
    DecoderCase,
    LayerCase,
    StepCase,
    assert_near,
    case_name,
    coefficients,
    dtype_name,
    each_case,
    leaves,
    needs_kernels,
    run_operator,
)
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.ops import CellWeights

pytestmark = needs_kernels

ALL_DTYPES = [*DTYPES, *HALF_TYPES]
# One step, one layer and no mask: where what is returned could most easily be what was given, or one memory twice.
SHORT = [
    LayerCase(n_steps=1),
    LayerCase(n_steps=1, lengths="ones"),
    LayerCase(n_steps=1, n_rows=1, mode=LayerCase().mode, zero_state=True, bias=False),
    DecoderCase(n_steps=1, n_layers=1, dropout=False),
    DecoderCase(n_steps=1, n_layers=1, dropout=False, n_source=0),
]


def differentiable(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in outputs.items() if t.requires_grad}


def forward(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Arguments that take gradients, and the outputs that have one."""
    tensors = leaves(case.tensors())
    return tensors, differentiable(case.call(case.operator, tensors))


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# Nothing is changed


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@each_case(*SHORT)
def test_backward_twice_gives_the_same_gradients(case, dtype):
    tensors, outputs = forward(replace(case, dtype=dtype))
    grads = coefficients(outputs, dtype)
    first, second = (
        torch.autograd.grad(list(outputs.values()), list(tensors.values()), grads, retain_graph=True)
        for _ in range(2)
    )
    for name, one, other in zip(tensors, first, second, strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@each_case(*SHORT, LayerCase(lengths="ragged", reverse=True, rows=True))
def test_forward_and_backward_change_nothing_that_was_given(case, dtype):
    case = replace(case, dtype=dtype)
    args, options = case.arguments(leaves(case.tensors()))
    given = [leaf for leaf in pytree.tree_leaves((args, options)) if isinstance(leaf, Tensor)]
    before = [t.detach().clone() for t in given]
    returned = [t for t in pytree.tree_leaves(case.operator(*args, **options)) if isinstance(t, Tensor)]
    outputs = [t for t in returned if t.requires_grad]
    values = [t.detach().clone() for t in returned]
    grads = [torch.randn_like(t) for t in outputs]
    grads_before = [grad.clone() for grad in grads]
    torch.autograd.grad(outputs, [t for t in given if t.requires_grad], grads)
    for one, other in zip([*given, *returned, *grads], [*before, *values, *grads_before], strict=True):
        assert torch.equal(one, other)


# Nothing shares memory


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@each_case(*SHORT)
def test_outputs_have_memory_of_their_own(case, dtype):
    case = replace(case, dtype=dtype)
    tensors = case.tensors()
    args, options = case.arguments(tensors)
    with torch.no_grad():
        returned = case.operator(*args, **options)
    given = [leaf for leaf in pytree.tree_leaves((args, options)) if isinstance(leaf, Tensor)]
    outputs = [t for t in pytree.tree_leaves(returned) if isinstance(t, Tensor)]
    places = [memory(t) for t in outputs if t.numel()]
    assert len(set(places)) == len(places)
    assert not set(places) & {memory(t) for t in given}


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@each_case(*SHORT)
def test_gradients_have_memory_of_their_own(case, dtype):
    case = replace(case, dtype=dtype)
    tensors, outputs = forward(case)
    grads = coefficients(outputs, dtype)
    torch.autograd.backward(list(outputs.values()), grads, retain_graph=True)
    places = [memory(tensor.grad) for tensor in tensors.values()]
    assert len(set(places)) == len(places)
    assert not set(places) & {memory(t) for t in (*tensors.values(), *outputs.values(), *grads)}
    # Whoever changes a gradient in place, as clipping does, changes no other and not the next backward pass.
    kept = {name: tensor.grad.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad.mul_(0)
    torch.autograd.backward(list(outputs.values()), grads)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, kept[name]), name


def test_outputs_changed_in_place_before_backward_are_noticed_or_do_not_matter():
    for case in (StepCase(dtype=F64), LayerCase(dtype=F64), DecoderCase(dtype=F64)):
        expected = run_operator(case).gradients
        for name in forward(case)[1]:
            tensors, outputs = forward(case)
            grads = coefficients(outputs, F64)
            # A linear function of the output, whose own gradient needs no value of it.
            roots = [t.mul_(1.0) if key == name else t for key, t in outputs.items()]
            outputs[name].detach().zero_()
            try:
                found = torch.autograd.grad(roots, list(tensors.values()), grads)
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error)
                continue
            for key, gradient in zip(tensors, found, strict=True):
                assert_near(gradient, expected[key], GRADIENT_BOUND[F64], f"{name}, {key}")


@pytest.mark.parametrize("name", ["x", "h_0", "c_0", "w_ih", "w_hh"])
def test_arguments_changed_in_place_before_backward_are_noticed(name):
    tensors, outputs = forward(LayerCase())
    with torch.no_grad():
        tensors[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs["outputs"].sum().backward()


@pytest.mark.parametrize("name", ["lengths", "seed", "rows"])
def test_integers_changed_in_place_before_backward_are_noticed(name):
    case = LayerCase(lengths="ragged", rows=True)
    tensors = leaves(case.tensors())
    args, options = case.arguments(tensors)
    integers = {"lengths": args[7], "seed": options["seed"], "rows": options["rows"]}
    outputs = case.operator(*args, **options)[0]
    integers[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


# What is asked for


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@each_case(*SHORT)
def test_inference_computes_what_training_computes(case, dtype):
    case = replace(case, dtype=dtype)
    expected = case.call(case.operator, leaves(case.tensors()))
    with torch.no_grad():
        under_no_grad = case.call(case.operator, leaves(case.tensors()))
    with torch.inference_mode():
        under_inference = case.call(case.operator, case.tensors())
    without_gradients = case.call(case.operator, case.tensors())
    for found in (under_no_grad, under_inference, without_gradients):
        for name, output in found.items():
            assert torch.equal(output, expected[name]), name
            assert not output.requires_grad


@pytest.mark.parametrize("dtype", [F32, F64], ids=dtype_name)
@each_case(LayerCase(), LayerCase(bias=False, reverse=True, lengths="ragged"), DecoderCase(n_source=0, n_layers=1))
def test_gradients_are_the_same_whatever_else_takes_one(case, dtype):
    case = replace(case, dtype=dtype)
    expected = run_operator(case).gradients
    for name in case.tensors():
        tensors = case.tensors()
        tensors[name].requires_grad_()
        outputs = differentiable(case.call(case.operator, tensors))
        grads = dict(zip(differentiable(forward(case)[1]), coefficients(forward(case)[1], dtype), strict=True))
        sum((outputs[key] * grads[key]).sum() for key in outputs).backward()
        assert_near(tensors[name].grad, expected[name], GRADIENT_BOUND[dtype], name)
        assert all(tensor.grad is None for key, tensor in tensors.items() if key != name)


@pytest.mark.parametrize("there", ["b_ih", "b_hh"])
def test_a_layer_with_one_bias_gives_its_gradient(there):
    gradients = []
    for function in (ops.lstm_layer, reference.lstm_layer):
        case = LayerCase(dtype=F64)
        tensors = leaves(case.tensors())
        del tensors["b_hh" if there == "b_ih" else "b_ih"]
        outputs = differentiable(case.call(function, tensors))
        values = list(tensors.values())
        gradients.append(torch.autograd.grad(list(outputs.values()), values, coefficients(outputs, F64)))
    for name, found, expected in zip(tensors, *gradients, strict=True):
        assert_near(found, expected, GRADIENT_BOUND[F64], name)


@each_case(StepCase(dtype=F64), LayerCase(dtype=F64), DecoderCase(dtype=F64))
def test_gradients_are_the_same_where_forward_is_run_again_for_them(case):
    expected = run_operator(case).gradients
    tensors = leaves(case.tensors())
    outputs = checkpoint(lambda: differentiable(case.call(case.operator, tensors)), use_reentrant=False)
    grads = coefficients(outputs, F64)
    found = torch.autograd.grad(list(outputs.values()), list(tensors.values()), grads)
    for name, grad in zip(tensors, found, strict=True):
        assert_near(grad, expected[name], GRADIENT_BOUND[F64], name)


@each_case()
def test_gradients_are_the_same_where_forward_is_run_again_within_backward(case):
    expected = run_operator(case).gradients
    tensors = leaves(case.tensors())
    names = list(forward(case)[1])  # of the outputs that take gradients

    def again(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = case.call(case.operator, dict(zip(tensors, values, strict=True)))
        return tuple(outputs[name] for name in names)

    outputs = dict(zip(names, checkpoint(again, *tensors.values(), use_reentrant=True), strict=True))
    torch.autograd.backward(list(outputs.values()), coefficients(outputs, case.dtype))
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, expected[name]), name


@each_case()
def test_gradients_are_the_same_where_what_is_kept_is_kept_elsewhere(case):
    expected = run_operator(case).gradients
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda kept: kept.clone()):
        tensors, outputs = forward(case)
    torch.autograd.backward(list(outputs.values()), coefficients(outputs, case.dtype))
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, expected[name]), name


@pytest.mark.parametrize("case", [StepCase(), LayerCase(lengths="ragged")], ids=["step", "layer"])
def test_gradients_of_several_at_once_are_those_of_each(case):
    tensors, outputs = forward(case)
    grads = [torch.stack([grad, -2 * grad]) for grad in coefficients(outputs, case.dtype)]
    found = torch.autograd.grad(list(outputs.values()), list(tensors.values()), grads, is_grads_batched=True)
    for name, (first, second) in zip(tensors, found, strict=True):
        assert torch.equal(first, run_operator(case).gradients[name]) and torch.equal(second, -2 * first), name


@pytest.mark.parametrize("dtype", [F32, F64], ids=dtype_name)
@each_case()
def test_gradients_of_sums_come_in_expanded(case, dtype):
    # The gradient of a sum is one number, expanded with strides of 0.
    case = replace(case, dtype=dtype)
    for name in forward(case)[1]:
        gradients = []
        for function in (case.operator, case.reference):
            tensors = leaves(case.tensors())
            case.call(function, tensors)[name].sum().backward()
            gradients.append({key: t.grad for key, t in tensors.items()})
        for key, found in gradients[0].items():
            expected = gradients[1][key]
            if expected is None or found is None:
                assert all(g is None or not g.any() for g in (found, expected)), key
            else:
                # The attention's sum is 1 whatever the arguments: its gradient is 0 but for rounding.
                assert_near(found, expected, GRADIENT_BOUND[dtype], f"{name}, {key}", floor=0.1)


def test_gradients_add_up_over_calls():
    case = LayerCase(dtype=F64)
    tensors = leaves(case.tensors())
    for _ in range(3):
        case.call(case.operator, tensors)["outputs"].sum().backward()
    once = leaves(case.tensors())
    case.call(case.operator, once)["outputs"].sum().backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, 3 * once[name].grad, rtol=1e-12, atol=1e-12)


def test_one_tensor_in_several_places_gets_all_their_gradients():
    torch.manual_seed(0)
    gradients = []
    for module in (ops, reference):
        generator = torch.Generator().manual_seed(0)
        x, state, w, b = (
            torch.randn(*shape, generator=generator, dtype=F64).requires_grad_()
            for shape in ((4, 3, 5), (3, 5), (20, 5), (20,))
        )
        outputs, h_n, c_n, _ = module.lstm_layer(x, state, state, w, w, b, b, mode=ops.GateMode(0.9))
        cell, wide = CellWeights(w, w, b, b), torch.cat((w, w), dim=1)
        tied = module.decoder(
            outputs,
            torch.stack((h_n, h_n, h_n)),
            torch.stack((c_n, state, state)),
            state,
            [CellWeights(wide, w, b, b), cell, cell],
            mode=ops.GateMode(0.9),
        )
        gradients.append(torch.autograd.grad(tied.outputs.sum() + tied.c.sum(), (x, state, w, b)))
    for found, expected in zip(*gradients, strict=True):
        assert_near(found, expected, GRADIENT_BOUND[F64])


# The size of the graph


def nodes_of(output: Tensor) -> int:
    """Autograd nodes that an output hangs on."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def saved_by(case: Case) -> Iterator[int]:
    """Bytes of each memory that the forward pass keeps for the backward pass, beside the arguments'."""
    tensors = leaves(case.tensors())
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[memory(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = case.call(case.operator, tensors)
    arguments = {memory(t) for t in tensors.values()}
    del outputs
    return (size for place, size in kept.items() if place not in arguments)


@pytest.mark.parametrize("case", [LayerCase(), DecoderCase()], ids=lambda case: case_name[type(case)])
def test_the_graph_does_not_grow_with_the_steps(case):
    def nodes(n_steps: int) -> int:
        return max(nodes_of(output) for output in forward(replace(case, n_steps=n_steps))[1].values())

    # One node of the operator, one for each argument, and the decoder's sums of biases.
    assert nodes(50) == nodes(1) <= 2 * len(case.tensors()) + 3


def torchs_own(case: Case) -> Counter:
    """How often each of torch's own operators is called in a forward and backward pass."""
    tensors = leaves(case.tensors())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs = case.call(case.operator, tensors)
        torch.autograd.backward([o for o in outputs.values() if o.requires_grad], [
            torch.ones_like(o) for o in outputs.values() if o.requires_grad
        ])  # fmt: skip
    return Counter(event.name for event in profile.events() if event.name.startswith("aten::"))


@pytest.mark.parametrize(
    "case", [LayerCase(), LayerCase(lengths="ragged", reverse=True), DecoderCase()], ids=lambda case: repr(case)[:60]
)
def test_sums_over_time_are_made_at_once_and_nothing_is_filled_with_zeros_at_each_step(case):
    # Were weight gradients, the inputs' product or fills with zeros made at every step, there would be as many more.
    few, many = (torchs_own(replace(case, n_steps=n_steps)) for n_steps in (5, 50))
    assert few == many and sum(few.values()) > 0
    assert many["aten::zero_"] <= 1  # of a single number, or of one state


def test_what_a_layer_keeps_is_its_gates_cells_and_outputs():
    n_steps, n_rows, h_size = 40, 30, 32
    case = LayerCase(n_steps, n_rows, 6, h_size)
    # Gates 4H, cells H and outputs H of four bytes a place; half as much again for whatever does not grow with T.
    assert sum(saved_by(case)) <= 1.5 * n_steps * n_rows * 6 * h_size * 4


def test_what_a_decoder_keeps_does_not_hold_the_source_for_each_step():
    n_steps, n_rows, h_size, n_layers, n_source, source_size = 40, 10, 32, 2, 50, 64
    case = DecoderCase(n_steps, n_rows, 6, h_size, n_layers, n_source, source_size)
    # A step: gates, cells and hidden states of each cell, the output with and without dropout, the attention, and the
    # dropout mask that was given. Once: keys and values. Rows of H or 2E numbers for each source position and step, as
    # autograd keeps them of a loop, would be thirty times as much.
    a_step = n_layers * 6 * h_size + 2 * h_size + n_source + n_layers * h_size
    numbers = n_steps * n_rows * a_step + 2 * n_rows * n_source * h_size
    assert sum(saved_by(case)) <= 1.2 * numbers * 4


def test_noise_is_not_kept():
    with_noise, without = LayerCase(20, 20, 6, 64), LayerCase(20, 20, 6, 64, mode=ops.GateMode(0.9))
    # The seed is one number of eight bytes.
    assert sum(saved_by(with_noise)) <= sum(saved_by(without)) + 8
