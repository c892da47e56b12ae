"""Dropout and the cross-entropy: the compiled operators against plain PyTorch."""

import math
from threading import Event, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_table import WORD, philox4x32_10
from operator_cases import (
    BF16,
    DTYPES,
    F32,
    F64,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    HALF_TYPES,
    assert_near,
    dtype_name,
    needs_kernels,
    threads,
)
from torch import Tensor

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.philox import draw_seed

pytestmark = needs_kernels

ALL_DTYPES = [*DTYPES, *HALF_TYPES]
SEEDS = [0, -1, 2**63 - 1, -(2**63), 20180606]


def dropout(x: Tensor, p: float, seed: int = 5) -> Tensor:
    return torch.ops.g2lstm.dropout(x, torch.tensor(seed), p)


# Dropout. The operator's mask is made of blocks of 64 elements, whatever the vectors' width.


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("p", [0.0, 1e-10, 0.3, 0.5, 1 - 2.0**-32, 1.0])
@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 63, 64, 65, 129, 1000])
def test_dropout_is_the_references_bit_for_bit(size, p, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(dropout(x, p), reference.dropout(x, p, torch.tensor(5)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("seed", SEEDS)
def test_dropout_drops_what_the_generator_says(seed, dtype):
    p, unsigned = 0.4, seed % 2**64
    found = dropout(torch.ones(200, dtype=dtype), p, seed)
    for element in range(200):
        counter = element // 64 * 16 + element % 16
        words = philox4x32_10([counter, 0, 0, WORD - 1], (unsigned % WORD, unsigned // WORD))
        dropped = words[element % 64 // 16] < math.floor(p * WORD)
        assert (found[element] == 0) == dropped, element


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
def test_gradient_of_dropout_has_its_mask(dtype):
    torch.manual_seed(0)
    x = torch.randn(7, 5, 33, dtype=F64).to(dtype).requires_grad_()
    grad = torch.randn_like(x)
    (found,) = torch.autograd.grad(dropout(x, 0.3), x, grad)
    assert torch.equal(found, dropout(grad, 0.3))
    (of_a_sum,) = torch.autograd.grad(dropout(x, 0.3).sum(), x)
    assert torch.equal(of_a_sum, dropout(torch.ones_like(x), 0.3))


def test_dropout_of_other_layouts_goes_by_rows():
    torch.manual_seed(0)
    base = torch.randn(9, 4, 5)
    for x in (base.transpose(0, 2), base[:, ::2], base[:1].expand(6, 4, 5), base.flatten()[1:]):
        assert torch.equal(dropout(x, 0.4), dropout(x.contiguous(), 0.4))
        assert torch.equal(dropout(x, 0.4), reference.dropout(x, 0.4, torch.tensor(5)))


def test_dropout_changes_neither_its_input_nor_shares_its_memory():
    x = torch.randn(100)
    before = x.clone()
    for p in (0.0, 0.5):
        y = dropout(x, p)
        y.zero_()
        assert torch.equal(x, before)


def test_dropout_draws_one_seed_a_call_and_none_without_dropping():
    x = torch.ones(1000)
    torch.manual_seed(4)
    first, second = ops.dropout(x, 0.5), ops.dropout(x, 0.5)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    seeds = draw_seed(), draw_seed()
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(y, dropout(x, 0.5, int(seed))) for y, seed in zip((first, second), seeds, strict=True))
    assert not torch.equal(first, second)
    assert ops.dropout(x, 0.0) is x
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dropout_is_the_same_with_two_threads(dtype):
    # More blocks than a thread takes at a time.
    x = torch.randn(64 * 1500 + 7, dtype=dtype)
    one = dropout(x, 0.3)
    with threads(2):
        assert torch.equal(dropout(x, 0.3), one)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="p must be a probability between 0 and 1, got"):
        dropout(torch.ones(3), p)


def test_dropout_refuses_integers_and_wrong_seeds():
    with pytest.raises(TypeError, match="g2lstm operators take float32, float64, float16 and bfloat16, got"):
        dropout(torch.ones(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="seed must be one int64 number on the CPU, got"):
        torch.ops.g2lstm.dropout(torch.ones(3), torch.tensor(1.0), 0.5)


# Cross-entropy

IGNORED = 1
# Classes: one, beside the vectors' lanes, and a vocabulary.
SIZES = [(1, 1), (3, 2), (5, 7), (4, 8), (2, 15), (6, 16), (3, 17), (9, 33), (40, 1000), (7, 32003)]


def problem(n_rows: int, n_classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_rows * n_classes)
    logits = (torch.randn(n_rows, n_classes, generator=generator, dtype=F64) * scale).to(dtype)
    targets = torch.randint(0, n_classes, (n_rows,), generator=generator)
    return logits, targets


def losses_and_gradient(function, logits: Tensor, targets: Tensor, weights=(0.7, 0.01), ignored: int = IGNORED):
    logits = logits.detach().requires_grad_()
    nll, smooth = function(logits, targets, ignored)
    (gradient,) = torch.autograd.grad(weights[0] * nll + weights[1] * smooth, logits)
    return nll.detach(), smooth.detach(), gradient


def assert_equals_reference(logits: Tensor, targets: Tensor, **options) -> None:
    dtype = logits.dtype
    half = dtype in HALF_TYPES
    found = losses_and_gradient(ops.cross_entropy, logits, targets, **options)
    given = logits.float() if half else logits
    expected = losses_and_gradient(reference.cross_entropy, given, targets, **options)
    assert found[0].dtype == found[1].dtype == (F32 if half else dtype) and found[2].dtype == dtype
    for name, one, other in zip(("nll", "smooth"), found, expected, strict=False):
        assert_near(one, other, FORWARD_BOUND[one.dtype], name)
    # Where every row is ignored, or there is one class, there is no gradient but rounding.
    assert_near(found[2], expected[2], GRADIENT_BOUND[dtype], "gradient", floor=1e-3)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cross_entropy_equals_the_reference(size, dtype):
    assert_equals_reference(*problem(*size, dtype))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["nll", "smooth"])
def test_gradient_of_one_loss_alone(weights, dtype):
    logits, targets = problem(6, 37, dtype)
    assert_equals_reference(logits, targets, weights=weights)
    # And where the other is not part of the graph at all.
    leaf = logits.requires_grad_()
    losses = ops.cross_entropy(leaf, targets, IGNORED)
    (found,) = torch.autograd.grad(losses[0 if weights[0] else 1], leaf)
    assert torch.equal(found, losses_and_gradient(ops.cross_entropy, leaf, targets, weights)[2])


@pytest.mark.parametrize("offset", [100.0, -2000.0, 20_000.0])
def test_the_gradient_keeps_its_digits_where_all_logits_are_far_from_0(offset):
    logits, targets = problem(6, 37, F32)
    logits = logits + offset
    found = losses_and_gradient(ops.cross_entropy, logits, targets)[2]
    expected = losses_and_gradient(reference.cross_entropy, logits.double(), targets)[2]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ignored", [-100, -1, 0, 4])
def test_ignored_rows_count_for_nothing(ignored):
    logits, targets = problem(8, 9, F64)
    targets[::3] = ignored
    assert_equals_reference(logits, targets, ignored=ignored)
    kept = targets != ignored
    found = losses_and_gradient(ops.cross_entropy, logits, targets, ignored=ignored)
    alone = losses_and_gradient(ops.cross_entropy, logits[kept], targets[kept], ignored=ignored)
    for one, other in zip(found[:2], alone[:2], strict=True):
        assert_near(one, other, 1e-13)
    assert torch.equal(found[2][kept], alone[2]) and not found[2][~kept].any()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
def test_no_rows_and_ignored_rows_alone_give_zero(dtype):
    for logits, targets in ((torch.zeros(0, 5), torch.zeros(0)), (torch.randn(4, 5), torch.full((4,), IGNORED))):
        nll, smooth, gradient = losses_and_gradient(ops.cross_entropy, logits.to(dtype), targets.long())
        assert nll == smooth == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1000.0])
@pytest.mark.parametrize("shift", [0.0, -500.0, 500.0])
def test_large_and_small_logits_do_not_overflow(shift, scale, dtype):
    logits, targets = problem(6, 50, dtype, scale)
    assert_equals_reference(logits + shift, targets)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 20, 36])  # in a whole vector and in the rest
def test_nan_and_infinite_logits_give_the_references_losses(place, value, dtype):
    logits, targets = problem(4, 37, dtype)
    targets[:] = torch.tensor([2, 3, 4, IGNORED])
    for row in (1, 3):
        spoiled = logits.clone()
        spoiled[row, place] = value
        found, expected = (f(spoiled, targets, IGNORED) for f in (ops.cross_entropy, reference.cross_entropy))
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, FORWARD_BOUND[dtype])
        if value == -math.inf:  # a class that cannot be: no gradient of -log p of the targets
            gradients = [
                losses_and_gradient(function, spoiled, targets, (1.0, 0.0))[2]
                for function in (ops.cross_entropy, reference.cross_entropy)
            ]
            assert_near(*gradients, GRADIENT_BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_cross_entropy_of_other_layouts(dtype):
    logits, targets = problem(6, 20, dtype)
    targets = torch.stack((targets, targets), 1)[:, 0]
    for layout in (logits.t().contiguous().t(), torch.stack((logits, logits), 2)[..., 0], logits[:1].expand(6, 20)):
        assert_equals_reference(layout, targets)


@pytest.mark.parametrize("dtype", [*DTYPES, BF16], ids=dtype_name)
def test_cross_entropy_is_bit_identical_from_run_to_run_and_for_two_threads(dtype):
    logits, targets = problem(50, 333, dtype)
    first = losses_and_gradient(ops.cross_entropy, logits, targets)
    for n_threads in (1, 2, 2):
        with threads(n_threads):
            results = losses_and_gradient(ops.cross_entropy, logits, targets)
        assert all(torch.equal(*pair) for pair in zip(results, first, strict=True))


@given(n_rows=st.integers(1, 20), n_classes=st.integers(1, 100), dtype=st.sampled_from(DTYPES), ignored=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_cross_entropy_equals_the_reference_at_any_size(n_rows, n_classes, dtype, ignored):
    logits, targets = problem(n_rows, n_classes, dtype)
    nll, smooth, gradient = losses_and_gradient(ops.cross_entropy, logits, targets, ignored=0 if ignored else -1)
    expected = losses_and_gradient(reference.cross_entropy, logits, targets, ignored=0 if ignored else -1)
    # A target that is nearly certain leaves a small difference of large terms.
    for name, one, other in zip(("nll", "smooth"), (nll, smooth), expected, strict=False):
        assert_near(one, other, FORWARD_BOUND[dtype], name, floor=1.0)
    assert_near(gradient, expected[2], GRADIENT_BOUND[dtype], "gradient", floor=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": torch.randn(3)},
        {"logits": torch.randn(3, 4, 5)},
        {"logits": torch.randn(3, 0)},
        {"targets": torch.tensor([0, 1])},
        {"targets": torch.tensor([[0], [1], [2]])},
        {"targets": torch.tensor([0, 1, 2], dtype=torch.int32)},
        {"targets": torch.tensor([0.0, 1.0, 2.0])},
    ],
    ids=lambda change: ", ".join(f"{k} {tuple(v.shape)} {v.dtype}" for k, v in change.items()),
)
def test_cross_entropy_refuses_wrong_shapes_and_dtypes(change):
    arguments = {"logits": torch.randn(3, 4), "targets": torch.tensor([0, 1, 2])} | change
    with pytest.raises(ValueError, match="must be .*, got"):
        ops.cross_entropy(*arguments.values(), IGNORED)


@pytest.mark.parametrize("target", [-1, 4, 2**40])
def test_targets_that_are_no_class_are_refused(target):
    with pytest.raises(IndexError, match=f"targets must be between 0 and 3, got {target}"):
        ops.cross_entropy(torch.randn(3, 4), torch.tensor([0, target, 2]), -100)


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match="g2lstm operators take float32, float64, float16 and bfloat16, got"):
        ops.cross_entropy(torch.ones(3, 4, dtype=torch.int64), torch.tensor([0, 1, 2]), IGNORED)


# Both within torch


def cross_entropy_arguments(dtype: torch.dtype, requires_grad: bool) -> tuple:
    logits, targets = problem(4, 9, dtype)
    return logits.requires_grad_(requires_grad), targets, IGNORED


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=dtype_name)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, dtype):
    x = torch.randn(3, 50, dtype=dtype, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.g2lstm.dropout.default, (x, torch.tensor(3), 0.4))
    arguments = cross_entropy_arguments(dtype, requires_grad)
    torch.library.opcheck(torch.ops.g2lstm.cross_entropy.default, arguments)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=dtype_name)
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)], ids=str)
def test_opcheck_of_the_cross_entropys_backward(given, dtype):
    logits, targets, ignored = cross_entropy_arguments(dtype, False)
    nll, smooth, log_normalizer = torch.ops.g2lstm.cross_entropy(logits, targets, ignored)
    grads = [torch.ones_like(t) if there else None for t, there in zip((nll, smooth), given, strict=True)]
    torch.library.opcheck(
        torch.ops.g2lstm.cross_entropy_backward.default, (*grads, logits, targets, log_normalizer, ignored)
    )


def test_gradcheck():
    x = torch.randn(2, 9, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.4), x, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, 0.4) ** 2, x)
    logits, targets = problem(4, 9, F64)
    targets[2] = IGNORED
    assert torch.autograd.gradcheck(lambda x: ops.cross_entropy(x, targets, IGNORED), logits.requires_grad_())


def test_second_derivatives_of_the_cross_entropy_are_refused():
    logits, targets = problem(4, 9, F64)
    nll, _ = ops.cross_entropy(logits.requires_grad_(), targets, IGNORED)
    (gradient,) = torch.autograd.grad(nll**2, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(gradient.sum(), logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_compiled_without_graph_breaks_equals_eager(dtype):
    logits, targets = problem(5, 12, dtype)

    def loss(logits: Tensor, seed: Tensor) -> Tensor:
        nll, smooth = ops.cross_entropy(torch.ops.g2lstm.dropout(logits, seed, 0.2), targets, IGNORED)
        return nll + 0.1 * smooth

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaf = logits.clone().requires_grad_()
        value = function(leaf, torch.tensor(8))
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.compiler.reset()
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_use_reference_serves_plain_pytorch():
    logits, targets = problem(5, 12, F32)
    with ops.use_reference():
        nll, _ = ops.cross_entropy(logits, targets, IGNORED)
        torch.manual_seed(1)
        found = ops.dropout(logits, 0.5)
    assert torch.equal(nll, reference.cross_entropy(logits, targets, IGNORED)[0])
    torch.manual_seed(1)
    assert torch.equal(found, torch.nn.functional.dropout(logits, 0.5))


def test_the_reference_serves_until_the_last_thread_that_asked_for_it_is_done():
    began, ended = Event(), Event()

    def other() -> None:
        with ops.use_reference():
            began.set()
            ended.wait(60)

    thread = Thread(target=other)
    with ops.use_reference():
        thread.start()
        assert began.wait(60)
    assert ops._reference_serves()
    ended.set()
    thread.join()
    assert not ops._reference_serves()


def test_tensors_on_another_device_are_refused():
    logits, targets = problem(5, 12, F32)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        ops.cross_entropy(logits, targets.to("meta"), IGNORED)
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        torch.ops.g2lstm.dropout(logits, torch.tensor(1, device="meta"), 0.5)
