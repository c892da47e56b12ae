"""Odd layouts and odd numbers: the compiled operators give the reference's answer."""

from collections.abc import Callable

import pytest
import torch
from operator_cases import (
    DTYPES,
    F32,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    MODES,
    DecoderCase,
    LayerCase,
    StepCase,
    assert_near,
    coefficients,
    dtype_name,
    each_case,
    needs_kernels,
)
from torch import Tensor

from fairseq_g2lstm import ops, reference

pytestmark = needs_kernels

# Layouts


def expanded(tensor: Tensor) -> Tensor:
    """The first row for all rows, with stride 0."""
    return tensor[..., :1, :].detach().expand(tensor.shape)


def transposed(tensor: Tensor) -> Tensor:
    """The same numbers, laid out the other way round."""
    if tensor.dim() < 2:
        return torch.stack((tensor, tensor), dim=1)[:, 0]
    return tensor.detach().transpose(0, 1).contiguous().transpose(0, 1)


def sliced(tensor: Tensor) -> Tensor:
    """The same numbers, every other one of a larger tensor."""
    return torch.stack((tensor, tensor + 1), dim=-1).detach()[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers at an address that no vector is aligned to."""
    return torch.cat((tensor.new_zeros(1), tensor.detach().flatten()))[1:].view(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", [expanded, transposed, sliced, shifted], ids=lambda layout: layout.__name__)
@each_case()
def test_other_layouts_give_the_references_answer(case, layout, dtype):
    case = type(case)(dtype=dtype)
    keep = ("b_",) if layout is expanded else ()
    bases = {name: t if name.startswith(keep) else layout(t) for name, t in case.tensors().items()}
    assert layout is shifted or any(not t.is_contiguous() for t in bases.values())

    def run_with(function: Callable) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        tensors = {name: t.detach().requires_grad_() for name, t in bases.items()}
        outputs = case.call(function, tensors)
        wanted = {k: v for k, v in outputs.items() if v.requires_grad}
        given = [layout(c) if c.dim() > 1 else c for c in coefficients(wanted, dtype)]
        return outputs, torch.autograd.grad(list(wanted.values()), list(tensors.values()), given)

    (found, gradients), (expected, expected_gradients) = run_with(case.operator), run_with(case.reference)
    for name, one in found.items():
        assert_near(one, expected[name], FORWARD_BOUND[dtype], name)
    for name, one, other in zip(bases, gradients, expected_gradients, strict=True):
        assert_near(one, other, GRADIENT_BOUND[dtype], f"gradient of {name}")


def test_lengths_rows_and_masks_of_other_layouts_give_the_references_answer():
    lengths, rows = torch.tensor([[5, 0], [1, 0], [3, 0], [2, 0], [5, 0], [4, 0], [1, 0]])[:, 0], torch.arange(14)[::2]
    (*args, _), options = LayerCase().arguments(LayerCase().tensors())
    found, expected = (
        module.lstm_layer(*args, lengths, **options | {"rows": rows, "need_gates": False})
        for module in (ops, reference)
    )
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert_near(one, other, FORWARD_BOUND[F32])
    (*args, padding, w_query, w_out, mask), options = DecoderCase().arguments(DecoderCase().tensors())
    masks = {"source_padding": transposed(padding), "dropout_mask": sliced(mask)}
    found, expected = (
        module.decoder(*args, w_query=w_query, w_out=w_out, **masks, **options) for module in (ops, reference)
    )
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, FORWARD_BOUND[F32])


# NaN and infinities


def nan_of(bits: int) -> float:
    return torch.tensor([bits - 2**32 if bits >= 2**31 else bits], dtype=torch.int32).view(F32)


ODD_NUMBERS = {
    "nan": torch.tensor(float("nan")),
    # NaN come with a payload too: of sums of NaN, of other libraries, of uninitialised memory.
    "nan with a payload": nan_of(0x7FC00001),
    "negative nan": nan_of(0xFFFFFFFF),
    "inf": torch.tensor(float("inf")),
    "-inf": torch.tensor(float("-inf")),
}


def spoil(tensor: Tensor, value: Tensor) -> Tensor:
    """One number in the middle replaced."""
    spoiled = tensor.clone()
    spoiled.view(-1)[tensor.numel() // 2] = value.to(tensor.dtype)
    return spoiled


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", ODD_NUMBERS.values(), ids=ODD_NUMBERS)
@pytest.mark.parametrize("mode", ["gumbel", "hard"])
@pytest.mark.parametrize(
    ("case_of", "name"),
    [
        (StepCase, "a"),
        (StepCase, "c"),
        (LayerCase, "x"),
        (LayerCase, "h_0"),
        (LayerCase, "c_0"),
        (LayerCase, "w_hh"),
        (LayerCase, "b_ih"),
        (DecoderCase, "x"),
        (DecoderCase, "h_0"),
        (DecoderCase, "c_0"),
        (DecoderCase, "feed_0"),
    ],
)
def test_nan_and_infinities_come_out_where_the_references_do(case_of, name, mode, value, dtype):
    case = case_of(mode=MODES[mode], dtype=dtype)
    tensors = case.tensors()
    tensors[name] = spoil(tensors[name], value)
    found, expected = (case.call(function, tensors) for function in (case.operator, case.reference))
    for key, output in found.items():
        assert_near(output, expected[key], FORWARD_BOUND[dtype], key)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("value", ODD_NUMBERS.values(), ids=ODD_NUMBERS)
def test_nan_and_infinities_in_the_padding_stay_there(value, reverse, dtype):
    case = LayerCase(lengths="ragged", reverse=reverse, dtype=dtype)
    tensors = case.tensors()
    clean = case.call(case.operator, tensors)
    padding = (~case.valid()).expand_as(tensors["x"])
    spoiled = {**tensors, "x": torch.where(padding, value.to(dtype), tensors["x"]).requires_grad_()}
    found = case.call(case.operator, spoiled)
    for name, output in found.items():
        assert torch.equal(output, clean[name]), name
    # And what the padding holds gives no gradient to what comes before.
    (gradient,) = torch.autograd.grad(found["outputs"].sum() + found["c_n"].sum(), spoiled["x"])
    assert gradient.isfinite().all() and not gradient[padding].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", ["nan", "nan with a payload", "negative nan"])
def test_nan_in_the_source_come_out_where_the_references_do(value, dtype):
    case = DecoderCase(dtype=dtype)
    for position in (0, 6):  # the second is padding in some rows: a weight of 0 times NaN is NaN there too
        tensors = case.tensors()
        tensors["source"][position, 1:3, 4] = ODD_NUMBERS[value].to(dtype)
        found, expected = (case.call(function, tensors) for function in (case.operator, case.reference))
        assert expected["outputs"][:, 1:3].isnan().all()
        for key, output in found.items():
            assert_near(output, expected[key], FORWARD_BOUND[dtype], key)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", [value for value in ODD_NUMBERS if "nan" in value])
@pytest.mark.parametrize(
    ("case_of", "name"), [(StepCase, "a"), (LayerCase, "x"), (LayerCase, "c_0"), (DecoderCase, "x")]
)
def test_gradients_are_nan_where_the_references_are(case_of, name, value, dtype):
    case = case_of(dtype=dtype)
    tensors = case.tensors()
    tensors[name] = spoil(tensors[name], ODD_NUMBERS[value])

    def gradients(function: Callable) -> tuple[Tensor, ...]:
        given = {k: t.clone().requires_grad_() for k, t in tensors.items()}
        outputs = [v for v in case.call(function, given).values() if v.requires_grad]
        return torch.autograd.grad([out.sum() for out in outputs], list(given.values()))

    found, expected = gradients(case.operator), gradients(case.reference)
    assert any(gradient.isnan().any() for gradient in expected)
    for key, one, other in zip(tensors, found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan()), key
