"""The operators with packed weights against the reference, and the reference against its definition."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from operator_cases import needs_kernels, threads
from packed_weights import KINDS, integers, matrix
from torch import Tensor

from fairseq_g2lstm import ops
from fairseq_g2lstm.ops import AttentionMemory, CellWeights
from fairseq_g2lstm.reference import Factor, PackedWeight, linear
from fairseq_g2lstm.settings import GateSettings

MODE = GateSettings("sigmoid").mode(training=False)
KIND = pytest.mark.parametrize("kind", KINDS)
# The integers are the same on both sides; what differs is the order of float32 sums.
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flips(x: Tensor, *weights: Tensor) -> float:
    """What some integers of the left side may differ by whose numbers stand halfway between two, each 1/32767 of the
    largest number times a weight."""
    return 4 * float(x.abs().max() * max(w.abs().max() for w in weights)) / 32767


# The reference


def test_a_product_of_integers_is_the_sum_over_both_sides_integers():
    weights, x = matrix(6, 5), numbers(3, 5)
    ((factor,),) = KINDS["integers"](weights).blocks
    q_x = torch.round(x / x.abs().amax(1, keepdim=True) * 32767)
    sums = q_x.long() @ factor.weights.long().t()
    expected = sums * (x.abs().amax(1, keepdim=True) / 32767) * factor.scales
    found = linear(x, PackedWeight(((factor,),)))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=flips(x, weights))


@KIND
def test_a_packed_product_is_near_that_of_the_unpacked_weights(kind: str):
    packed = KINDS[kind](matrix(12, 9))
    x, bias = numbers(2, 3, 9), numbers(12)
    expected = torch.nn.functional.linear(x, packed.unpacked(), bias)
    # a factor's left side is rounded to steps of 1/32767 of its largest number: at most half a step in each of 9 terms
    bound = 2 * 9 * x.abs().max() * packed.unpacked().abs().max() / 65534 if "integers" in kind else 1e-5
    assert (linear(x, packed, bias) - expected).abs().max() <= bound


def test_two_integers_a_number_are_all_of_it():
    packed, x = KINDS["integers"](matrix(12, 40)), numbers(5, 40).double()
    ((factor,),) = packed.blocks
    expected = x @ (factor.weights.double() * factor.scales.double()[:, None]).t()
    coarse, fine = ((linear(x, packed, fine=fine) - expected).abs().max() for fine in (False, True))
    # half steps of 1/32767 and of 1/65534 of it, times weights of about 0.2, 40 of them a sum
    assert 1e-6 < coarse < 1e-4 and fine < coarse / 10_000


def test_unpacked_weights_are_the_blocks_below_one_another():
    weights = matrix(8, 3)
    packed = KINDS["integers above plain rows"](weights)
    assert packed.unpacked().shape == weights.shape and torch.equal(packed.unpacked()[4:], weights[4:])
    (factor,) = integers(weights[:4])
    assert torch.equal(packed.unpacked()[:4], factor.weights.float() * factor.scales[:, None])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_gives_nan_and_the_others_are_as_they_were(value: float):
    packed, x = KINDS["integers"](matrix(7, 20)), numbers(4, 20)
    whole = linear(x, packed)
    x[2, 3] = value
    for found in (linear(x, packed), ops.linear(x, packed)):
        assert found[2].isnan().all()
        torch.testing.assert_close(found[[0, 1, 3]], whole[[0, 1, 3]], **NEAR)


def test_numbers_too_small_to_be_told_from_0_are_0():
    packed, x = KINDS["integers"](matrix(7, 20)), numbers(4, 20)
    x[1] *= 1e-36  # 32767 divided by it is beyond float32
    for found in (linear(x, packed), ops.linear(x, packed)):
        assert torch.equal(found[1], torch.zeros(7)) and found[[0, 2, 3]].isfinite().all()


# The kernels


@needs_kernels
@KIND
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 9, 8), (5, 16, 83), (40, 83, 12), (3, 256, 512), (530, 1050, 45)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_product_equals_the_references(kind: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype):
    packed, x = KINDS[kind](matrix(outputs, inputs)), numbers(rows, inputs).to(dtype)
    bias = numbers(outputs, seed=2).to(dtype)
    near = {"rtol": 1e-2, "atol": 1e-2}  # bfloat16 is rounded to 8 bits at the end
    if dtype != torch.bfloat16:
        near = {"rtol": 1e-5, "atol": max(1e-5, flips(x, *(factor.unpacked() for factor in packed.blocks[0])))}
    for given in (bias, None):
        found = ops.linear(x, packed, given)
        assert found.dtype == dtype
        torch.testing.assert_close(found, linear(x, packed, given), **near)


@needs_kernels
@pytest.mark.parametrize("fine", [False, True])
def test_wide_matrices_are_multiplied_block_by_block(fine: bool):
    # the weights of 2^18 products at a time: blocks of 6,556 columns of 40 numbers, the last one of 2,992
    packed, x, bias = KINDS["integers"](matrix(9548, 40)), numbers(70, 40), numbers(9548, seed=2)
    bound = 1e-5 if fine else flips(x, packed.unpacked())
    expected = linear(x, packed, bias, fine)
    found = ops.linear(x, packed, bias, fine)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=bound)
    with threads(2):  # whose shares of the columns end within a tile
        assert torch.equal(ops.linear(x, packed, bias, fine), found)


@needs_kernels
@pytest.mark.parametrize("inputs", [512, 513, 1024, 1550, 65536, 65537])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n_rows", [7, 17])
def test_the_largest_sums_do_not_overflow(inputs: int, sign: int, n_rows: int):
    # -128 stands in no packed file, but an int8 has it
    q = torch.tensor([[-128], [127], [1], [-128], [127]], dtype=torch.int8).expand(5, inputs).contiguous()
    packed = PackedWeight(((Factor(q, torch.ones(5)),),))
    x = torch.full((n_rows, inputs), 2.0 * sign)
    torch.testing.assert_close(ops.linear(x, packed), x @ q.float().t(), rtol=1e-6, atol=0.0)  # some float32 roundings


def assert_layer_equals_reference(*arguments: object) -> None:
    with torch.no_grad():
        found = ops.lstm_layer(*arguments, mode=MODE)
        with ops.use_reference():
            expected = ops.lstm_layer(*arguments, mode=MODE)
    for value, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_a_layers_long_products_add_to_what_is_there():
    h_size, n_rows = 96, 1500
    w_ih, w_hh = (KINDS["integers"](matrix(4 * h_size, size)) for size in (5, h_size))
    arguments = numbers(2, n_rows, 5), numbers(n_rows, h_size), numbers(n_rows, h_size, seed=5), w_ih, w_hh
    assert_layer_equals_reference(*arguments)


@needs_kernels
@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
def test_a_layer_has_the_biases_that_are_given(given: tuple[bool, bool]):
    w_ih, w_hh = (KINDS["integers"](matrix(28, size)) for size in (11, 7))
    biases = [numbers(28, seed=6 + i) if there else None for i, there in enumerate(given)]
    arguments = numbers(5, 4, 11), numbers(4, 7), numbers(4, 7, seed=5), w_ih, w_hh, *biases
    assert_layer_equals_reference(*arguments)


@needs_kernels
@pytest.mark.parametrize("reference", [False, True])
def test_with_hard_gates_a_layer_is_the_unpacked_ones(reference: bool):
    # where the sign of a sum decides, left sides of 16 bits would tip gates: of 192,000 some are within 1e-5 of 0, but
    # none within the 1e-9 of 32 bits
    mode = GateSettings("gumbel", eval_mode="hard").mode(training=False)
    w_ih, w_hh = (KINDS["integers"](matrix(4 * 64, size)) for size in (40, 64))
    plain = [factor.weights.double() * factor.scales.double()[:, None] for ((factor,),) in (w_ih.blocks, w_hh.blocks)]
    arguments = [t.double() for t in (numbers(50, 30, 40), numbers(30, 64), numbers(30, 64, seed=5))]
    with torch.no_grad(), ops.use_reference() if reference else nullcontext():
        found = ops.lstm_layer(*arguments, w_ih, w_hh, mode=mode)
        expected = ops.lstm_layer(*arguments, *plain, mode=mode)
    for value, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)  # 1e-9 through 50 steps


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_layer_in_other_dtypes_equals_the_references(dtype: torch.dtype):
    w_ih, w_hh = (KINDS["integers"](matrix(28, size)) for size in (11, 7))
    arguments = [t.to(dtype) for t in (numbers(5, 4, 11), numbers(4, 7), numbers(4, 7, seed=5))]
    bound = 1e-4 if dtype == torch.float64 else 3e-2  # the reference rounds to 8 bits at every step
    with torch.no_grad():
        found = ops.lstm_layer(*arguments, w_ih, w_hh, mode=MODE)
        with ops.use_reference():
            expected = ops.lstm_layer(*arguments, w_ih, w_hh, mode=MODE)
    for value, other in zip(found[:3], expected[:3], strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value, other, rtol=bound, atol=bound)


@needs_kernels
def test_shapes_rows_apart_and_rows_of_zeros_make_no_difference():
    packed, x = KINDS["integers above plain rows"](matrix(10, 6)), numbers(4, 3, 12)
    x[1, 2] = 0
    apart = x[..., ::2]
    torch.testing.assert_close(ops.linear(apart, packed), linear(apart, packed), **NEAR)
    assert torch.equal(ops.linear(apart, packed)[1, 2], torch.zeros(10))
    assert ops.linear(x[:0, :, :6], packed).shape == (0, 3, 10)


@needs_kernels
@KIND
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 1, 3, 5]])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_equals_the_references(kind: str, reverse: bool, lengths: list[int] | None, bias: bool):
    h_size, n_inputs = 7, 11
    w_ih, w_hh = KINDS[kind](matrix(4 * h_size, n_inputs)), KINDS[kind](matrix(4 * h_size, h_size, seed=2))
    biases = (numbers(4 * h_size, seed=3), numbers(4 * h_size, seed=4)) if bias else (None, None)
    arguments = numbers(5, 4, n_inputs), numbers(4, h_size), numbers(4, h_size, seed=5), w_ih, w_hh, *biases
    lengths_given = None if lengths is None else torch.tensor(lengths)
    options = {"mode": MODE, "reverse": reverse, "need_gates": True}
    with torch.no_grad():
        found = ops.lstm_layer(*arguments, lengths_given, **options)
        with ops.use_reference():
            expected = ops.lstm_layer(*arguments, lengths_given, **options)
    valid = torch.ones(5, 4, dtype=torch.bool)
    if lengths_given is not None:
        valid = torch.arange(5)[:, None] < lengths_given
    for value, other in zip(found[:3], expected[:3], strict=True):
        # a difference in the last bits may move an integer by one on its way through the steps: 1/32767 of the largest
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[3][valid], expected[3][valid], rtol=3e-4, atol=3e-4)


@needs_kernels
@KIND
@pytest.mark.parametrize("attention", [True, False])
def test_a_step_of_search_equals_the_references(kind: str, attention: bool):
    h_size, n_inputs, rows = 8, 5, 6
    sizes = (n_inputs + h_size, h_size)
    cells = [
        CellWeights(
            KINDS[kind](matrix(4 * h_size, size)), KINDS[kind](matrix(4 * h_size, h_size, seed=2)),
            numbers(4 * h_size, seed=3), numbers(4 * h_size, seed=4),
        )
        for size in sizes
    ]  # fmt: skip
    x, h, c, feed = numbers(rows, n_inputs), numbers(2, rows, h_size), numbers(2, rows, h_size), numbers(rows, h_size)
    rest: tuple = ()
    if attention:
        memory = AttentionMemory(numbers(2, 3, h_size), numbers(2, 3, h_size, seed=6), None)
        rest = memory, torch.tensor([0, 0, 0, 1, 1, 1]), numbers(h_size, 9 + h_size)
    with torch.no_grad():
        found = ops.decoder_step(x, h, c, feed, cells, *rest, mode=MODE)
        with ops.use_reference():
            expected = ops.decoder_step(x, h, c, feed, cells, *rest, mode=MODE)
    for value, other in zip(found, expected, strict=True):
        assert (value is None) == (other is None)
        if value is not None:
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


@needs_kernels
@KIND
def test_autocast_rounds_what_the_products_read_and_leaves_packed_weights_as_they_are(kind: str):
    x, h, w_ih = numbers(4, 2, 5), numbers(2, 3), KINDS[kind](matrix(12, 5))
    cells = [CellWeights(KINDS[kind](matrix(12, 8)), KINDS[kind](matrix(12, 3)), numbers(12), numbers(12))]

    def compute(x: Tensor, h: Tensor, cells: list[CellWeights]) -> list[Tensor]:
        outputs, *_ = ops.lstm_layer(x, h, h, w_ih, *cells[0][1:], mode=MODE)
        stepped, *_ = ops.decoder_step(x[0], h[None], h[None], h, cells, mode=MODE)
        return [ops.linear(x, w_ih), outputs, stepped]

    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            found = compute(x, h, cells)
        bias = (cells[0].b_ih + cells[0].b_hh).bfloat16()
        rounded = CellWeights(*cells[0][:2], bias, torch.zeros_like(bias))
        expected = compute(x.bfloat16(), h.bfloat16(), [rounded])
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == torch.bfloat16 and torch.equal(value, other)


@needs_kernels
def test_plain_and_packed_matrices_of_one_cell_go_together():
    w_ih, w_hh = matrix(12, 5), KINDS["factors"](matrix(12, 3))
    arguments = numbers(4, 2, 5), numbers(2, 3), numbers(2, 3)
    with torch.no_grad():
        found = ops.lstm_layer(*arguments, w_ih, w_hh, mode=MODE)
        expected = ops.lstm_layer(*arguments, w_ih, w_hh.unpacked(), mode=MODE)
    for value, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(value, other, **NEAR)


def test_teacher_forced_decoding_unpacks():
    cells = [CellWeights(KINDS["integers"](matrix(12, 5)), KINDS["integers"](matrix(12, 3)))]
    plain = [CellWeights(*(w.unpacked() for w in cells[0][:2]))]
    arguments = numbers(4, 2, 2), numbers(1, 2, 3), numbers(1, 2, 3), numbers(2, 3)
    for found, expected in zip(
        ops.decoder(*arguments, cells, mode=MODE)[:4], ops.decoder(*arguments, plain, mode=MODE)[:4], strict=True
    ):
        assert torch.equal(found, expected)


@needs_kernels
@KIND
def test_opcheck(kind: str):
    h_size = 4
    w_ih, w_hh = KINDS[kind](matrix(16, 6)), KINDS[kind](matrix(16, h_size))
    x, h, bias = numbers(3, 2, 6), numbers(2, h_size), numbers(16)
    tensors, layout = w_ih.tensors() + w_hh.tensors(), w_ih.layout() + w_hh.layout()
    check: Callable = torch.library.opcheck
    o = torch.ops.g2lstm
    check(o.packed_linear.default, (x, w_ih.tensors(), w_ih.layout(), bias))
    lengths = torch.tensor([3, 1])
    check(o.packed_layer.default, (x, h, h, tensors, layout, bias, lengths, True, 1.0, False, True))
    attention = numbers(2, 5, h_size), numbers(2, 5, h_size), None, None, numbers(h_size, 2 * h_size)
    step = x[0, :, :2], h[None], h[None], h, tensors, layout, [bias], *attention, 1.0, False
    check(o.packed_decoder_step.default, step)


# Bad input


def packed_linear(
    x: Tensor, weight: PackedWeight, layout: list[int] | None = None, bias: Tensor | None = None
) -> Tensor:
    return torch.ops.g2lstm.packed_linear(x, weight.tensors(), layout or weight.layout(), bias)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": numbers(3, 4)}, "x must have 5 features"),
        ({"x": torch.ones(3, 5, dtype=torch.long)}, "take float32"),
        ({"bias": numbers(7)}, "bias must have shape"),
        ({"layout": [1]}, "lacks the number of factors"),
        ({"layout": [0]}, "must be > 0, got 0"),
        ({"layout": [2, 1, 1]}, "lack a tensor"),
        ({"layout": [1, 1, 1]}, "hold more than their layout names"),
        ({"weight": PackedWeight(((Factor(numbers(6)),),))}, "must be .N, K."),
        ({"weight": PackedWeight(((Factor(numbers(2, 5)), Factor(numbers(6, 3))),))}, "must follow one another"),
        ({"weight": PackedWeight(((Factor(numbers(2, 5)),), (Factor(numbers(2, 4)),)))}, "must take 5 inputs, got 4"),
        (
            {"weight": PackedWeight(((Factor(torch.ones(6, 5, dtype=torch.int8), torch.ones(5)),),))},
            "scales must have shape",
        ),
        (
            {"weight": PackedWeight(((Factor(torch.ones(6, 5, dtype=torch.int8), torch.ones(6).long()),),))},
            "scales must be floating-point",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(change: dict, message: str):
    arguments = {"x": numbers(3, 5), "weight": KINDS["integers"](matrix(6, 5)), **change}
    with pytest.raises((ValueError, TypeError), match=message):
        packed_linear(**arguments)


@needs_kernels
def test_matrices_that_do_not_fit_a_layer_are_refused_with_a_sentence():
    w_ih, w_hh = KINDS["factors"](matrix(16, 6)), KINDS["factors"](matrix(16, 4))
    arguments = numbers(3, 2, 6), numbers(2, 4), numbers(2, 4)
    with torch.no_grad(), pytest.raises(ValueError, match=r"w_ih must have shape \[16, 6\], got \[16, 4\]"):
        ops.lstm_layer(*arguments, w_hh, w_ih, mode=MODE)
    with torch.no_grad(), pytest.raises(ValueError, match="bias must have shape"):
        ops.lstm_layer(*arguments, w_ih, w_hh, numbers(3), numbers(3), mode=MODE)


@needs_kernels
def test_packed_weights_refuse_to_be_differentiated():
    x = numbers(3, 5).requires_grad_()
    with pytest.raises(NotImplementedError, match="nor have the operators of packed weights"):
        packed_linear(x, KINDS["integers"](matrix(6, 5))).sum().backward()
