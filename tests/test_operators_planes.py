"""Products of float32 that are made here: as sums of bfloat16, where the processor multiplies those fast, or in panels.

As accurate as float32, odd numbers included, or as torch is told. Everything here also runs where the library makes
them, but for what only bfloat16 or the panels show; other processors' ways run in processes of their own.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import run_module
from operator_cases import (
    DTYPES,
    F32,
    F64,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    Case,
    DecoderCase,
    LayerCase,
    assert_identical,
    assert_near,
    assert_same,
    case_name,
    coefficients,
    dtype_name,
    needs_kernels,
    run_operator,
    run_reference,
    threads,
)
from torch import Tensor

from fairseq_g2lstm import ops

pytestmark = needs_kernels
CAPABILITY = torch.ops.g2lstm.cpu_capability() if ops.kernels_error() is None else "none"
needs_amx = pytest.mark.skipif(CAPABILITY != "amx", reason="this processor, its system or the compiler has no AMX")
needs_bfloat16 = pytest.mark.skipif(
    CAPABILITY not in ("amx", "avx512_bf16"), reason="this processor or the compiler has no products of bfloat16"
)
needs_own_products = pytest.mark.skipif(
    ops.kernels_error() is not None or torch.ops.g2lstm.cpu_products() != "own",
    reason="this processor's products are the library's",
)
# (M, K, N): edges of tiles on all sides, and several parts of K, of rows and of columns, with the larger side on the
# left and on the right.
SIZES = [(512, 256, 512), (901, 260, 301), (300, 517, 451), (64, 33, 40000), (70, 1601, 640), (640, 1601, 70)]
# a second row tile and a second vector of columns that are not full, in the last of several groups of blocks
SIZES += [(620, 1601, 610), (665, 1601, 659), (659, 1601, 665)]
# rows whose places in memory share the sets of a cache, in parts of K that four does not divide
SIZES += [(300, 1024, 512), (620, 1024, 300)]
# Large enough for planes at every step, with edges of tiles; a second row tile that is not full.
CASES = [
    LayerCase(4, 18, 20, 270),
    LayerCase(4, 50, 20, 270, lengths="ragged", reverse=True),
    DecoderCase(3, 33, 20, 370),
    DecoderCase(3, 20, 20, 270, n_source=0, dropout=False),
    LayerCase(3, 24, 20, 350),  # a left side that is packed without AMX, in tiles that are transposed
]
name_of = [f"{case_name[type(case)]}-{case.n_rows}" for case in CASES].__getitem__


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def matrices(size: tuple[int, int, int], layout: str, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """a (M, K) and b (K, N), each laid out by rows ("n"), by columns ("t") or as every other of more ("s")."""
    n_rows, size_k, n_columns = size
    generator = torch.Generator().manual_seed(sum(size))

    def matrix(rows: int, columns: int, form: str) -> Tensor:
        if form == "t":
            return torch.randn(columns, rows, generator=generator, dtype=F64).to(dtype).t()
        if form == "s":
            return torch.randn(rows, 2 * columns, generator=generator, dtype=F64).to(dtype)[:, ::2]
        return torch.randn(rows, columns, generator=generator, dtype=F64).to(dtype)

    return matrix(n_rows, size_k, layout[0]), matrix(size_k, n_columns, layout[1])


def error_of(found: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None) -> float:
    """Of a product, relative in the Frobenius norm."""
    exact = a.double() @ b.double() + (0 if bias is None else bias.double())
    return ((found.double() - exact).norm() / exact.norm()).item()


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.g2lstm.matmul(a, b, bias)


# Products of matrices


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def n_threads(request) -> Iterator[int]:
    with threads(request.param):
        yield request.param


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt", "ss"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_are_as_near_as_float32s_own(size, layout, n_threads):
    a, b = matrices(size, layout)
    # Summed one after the other, K numbers of 24 bits are off by some sqrt(K) 2^-25 of the sum.
    bound = 2.0**-25 * max(4.0, 1.5 * size[1] ** 0.5)
    assert error_of(matmul(a, b), a, b) < bound
    bias = torch.randn(size[2], generator=torch.Generator().manual_seed(1))
    assert error_of(matmul(a, b, bias), a, b, bias) < bound
    # and no further off than twice what the library is
    assert error_of(matmul(a, b), a, b) < 2 * error_of(torch.mm(a, b), a, b)


@pytest.mark.parametrize("scale", [2.0**-104, 1e-10, 1e10, 1e30])  # 5 bits above where the third plane is lost
def test_products_of_small_and_large_numbers_are_as_near(scale):
    a, b = matrices((300, 517, 451), "nt")
    a, b = a * scale, b / scale**0.5
    assert error_of(matmul(a, b), a, b) < 2.0**-20


@needs_amx
def test_tiny_products_lose_their_later_planes():
    a, b = matrices((300, 517, 451), "nt")
    errors = [error_of(matmul(a * 2.0**-n, b * 2.0**-n), a * 2.0**-n, b * 2.0**-n) for n in (50, 58)]
    assert errors[0] < 2.0**-20 and errors[1] < 2.0**-8


@needs_own_products
@pytest.mark.parametrize(
    "size", [(659, 1601, 665), (901, 260, 301), (300, 517, 451), (70, 300, 4500), (300, 1024, 512)], ids=str
)
@pytest.mark.parametrize("layout", ["nn", "tt"])
def test_products_are_bit_identical_whatever_the_threads(size, layout):
    a, b = matrices(size, layout)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(matmul(a, b))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_products_of_float64_are_float64s():
    a, b = matrices((512, 256, 512), "nt", F64)
    assert_near(matmul(a, b), a @ b, FORWARD_BOUND[F64])


# What two and one bfloat16 for a float32 leave, and at most one of a sequence's outputs.
TWO_PLANES, ONE_PLANE = (1e-6, 2e-5), (1e-3, 5e-3)
MOST_OF_STEPS = 0.1


@needs_bfloat16
@needs_own_products
@pytest.mark.parametrize(
    ("name", "bounds"), [("highest", (0, 1e-6)), ("high", TWO_PLANES), ("medium", ONE_PLANE)], ids=str
)
@pytest.mark.parametrize("size", [(300, 517, 451), (1100, 1601, 620), (620, 1601, 1103)], ids=str)
def test_products_have_the_precision_that_torch_is_told(precision, size, name, bounds):
    precision(name)
    # Two planes are worth their way on AMX alone.
    least, most = (0, 1e-6) if name == "high" and CAPABILITY != "amx" else bounds
    a, b = matrices(size, "nt")
    assert least <= error_of(matmul(a, b), a, b) < most
    assert least <= error_of(matmul(b.t(), a.t()), b.t(), a.t()) < most


def print_products_of_every_size() -> None:
    """Who makes the products, the largest error beside its bound, whether a product is torch's own, and where torch is
    told the least precision the error, torch's own, and those of the steps."""
    worst = 0.0
    for size in SIZES:
        bias = torch.randn(size[2], generator=torch.Generator().manual_seed(1))
        bound = 2.0**-25 * max(4.0, 1.5 * size[1] ** 0.5)
        for layout in ("nn", "nt", "tn", "ss"):
            a, b = matrices(size, layout)
            for given in (None, bias):
                worst = max(worst, error_of(matmul(a, b, given), a, b, given) / bound)
    a, b = matrices((640, 1601, 640), "nt")  # several parts of K, in whose sums libraries differ
    torchs_own = torch.equal(matmul(a, b), torch.mm(a, b))
    exact = [run_operator(case).outputs["outputs"] for case in CASES]
    torch.set_float32_matmul_precision("medium")
    of_steps = [
        ((run_operator(case).outputs["outputs"] - outputs).norm() / outputs.norm()).item()
        for case, outputs in zip(CASES, exact, strict=True)
    ]
    of_torch, medium = (error_of(function(a, b), a, b) for function in (torch.mm, matmul))
    print(CAPABILITY, torch.ops.g2lstm.cpu_products(), worst, torchs_own, medium, of_torch, *of_steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "products"),
    [("default", "own"), ("avx2", "own"), ("avx512", "own"), ("avx512_bf16", "own"), ("avx512", "library")],
)
def test_products_of_other_processors_are_as_near(level, products):
    env = {"G2LSTM_CPU_CAPABILITY": level, "G2LSTM_CPU_PRODUCTS": products, "PYTHONPATH": str(Path(__file__).parent)}
    done = run_module("test_operators_planes", env=env)
    assert done.returncode == 0, done.stderr
    taken, by, worst, is_torchs, medium, of_torch, *of_steps = done.stdout.split()
    if taken != level:
        pytest.skip(f"this processor has no {level}")
    assert by == products and float(worst) < 1
    assert is_torchs == str(products == "library")
    if products == "own":
        least, most = ONE_PLANE if level == "avx512_bf16" else (0, 1e-6)
        assert least <= float(medium) < most
        # torch rounds where the processor has AMX, whatever our level, and makes the steps' small products
        most = MOST_OF_STEPS if level == "avx512_bf16" or float(of_torch) > 1e-5 else 1e-6
        least = 1e-4 if level == "avx512_bf16" else 0
        assert len(of_steps) == len(CASES) and all(least <= float(error) < most for error in of_steps)


@pytest.mark.slow
def test_the_environment_chooses_who_makes_products():
    def maker(**env: str) -> str:
        given = {"G2LSTM_CPU_PRODUCTS": "own", "PYTHONPATH": str(Path(__file__).parent), **env}
        done = run_module("test_operators_planes", "maker", env=given)
        assert done.returncode == 0, done.stderr
        assert ("G2LSTM_CPU_PRODUCTS must be own or library" in done.stderr) == ("mine" in env.values())
        return done.stdout.strip()

    assert maker(G2LSTM_CPU_CAPABILITY="default") == "own"
    assert maker(G2LSTM_CPU_PRODUCTS="mine", G2LSTM_CPU_CAPABILITY="default") == "library"


ODD = [float("nan"), float("inf"), float("-inf"), 3.4028234e38]


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("place", ["a", "b", "bias"])
@pytest.mark.parametrize("size", [(512, 256, 512), (300, 1601, 451), (451, 1601, 300)], ids=str)
def test_odd_numbers_stay_what_they_are(size, place, value):
    a, b = matrices(size, "nt")
    given = {"a": a, "b": b, "bias": torch.zeros(size[2])}
    given[place] = given[place].clone()
    in_panels = torch.ops.g2lstm.cpu_products() == "own"
    if in_panels and value == ODD[3] and place == "b":
        given[place][-2] = value  # once in a sum: of several it is the order that decides whether they overflow
    else:
        given[place][..., -2] = value
    expected = torch.addmm(given["bias"], given["a"], given["b"])
    assert not expected.isfinite().all() or value == ODD[3]
    assert_near(matmul(**given), expected, FORWARD_BOUND[F32])


@pytest.mark.parametrize("value", ODD[:3], ids=str)
@pytest.mark.parametrize("place", ["a", "b"])
@pytest.mark.parametrize("size", [(300, 1601, 451), (451, 1601, 300)], ids=str)
def test_one_odd_number_is_found_wherever_it_lies(size, place, value):
    for layout, where in (("tn", (-1, -1)), ("nt", (-1, -1)), ("tn", (0, 0)), ("ss", (40, 40))):
        given = dict(zip("ab", matrices(size, layout), strict=True))
        given[place] = given[place].clone(memory_format=torch.preserve_format)
        given[place][where] = value
        expected = torch.mm(given["a"], given["b"])
        assert not expected.isfinite().all()
        assert_near(matmul(**given), expected, FORWARD_BOUND[F32])


@needs_bfloat16
@needs_own_products
@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("place", ["a", "b"])
@pytest.mark.parametrize("size", [(300, 1601, 451), (451, 1601, 300)], ids=str)
def test_one_odd_number_is_found_in_the_least_precision_too(precision, size, place, value):
    precision("medium")
    given = {name: matrix * 2.0**-10 for name, matrix in zip("ab", matrices(size, "nt"), strict=True)}
    given[place][-1, -1] = value
    expected, found = given["a"].double() @ given["b"].double(), matmul(**given).double()
    finite = expected.isfinite()
    assert finite.all() == (value == ODD[3])  # which as a bfloat16 is infinite
    assert torch.equal(found[~finite].nan_to_num(), expected[~finite].nan_to_num())
    assert (found[finite] - expected[finite]).norm() < ONE_PLANE[1] * expected[finite].norm()


def test_gradients_of_a_product_are_its_transposes():
    a, b = (t.requires_grad_() for t in matrices((300, 517, 451), "nt"))
    bias = torch.randn(451, requires_grad=True)
    for grad in (torch.randn(300, 451), torch.ones(1).expand(300, 451)):
        found = torch.autograd.grad(matmul(a, b, bias), (a, b, bias), grad)
        expected = torch.autograd.grad(torch.addmm(bias, a, b), (a, b, bias), grad)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, GRADIENT_BOUND[F32])


def test_only_the_gradients_that_are_needed_are_taken_and_lie_as_the_weights_do():
    x, weight = torch.randn(300, 517), torch.randn(451, 517, requires_grad=True)
    matmul(x, weight.t(), torch.zeros(451)).sum().backward()
    assert x.grad is None and weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_opcheck_and_numeric_gradients(dtype):
    a, b = (t.requires_grad_() for t in matrices((3, 4, 5), "nt", dtype))
    bias = torch.randn(5, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.g2lstm.matmul.default, (a, b, bias))
    if dtype == F64:
        torch.autograd.gradcheck(matmul, (a, b, bias))
        torch.autograd.gradgradcheck(matmul, (a, b, bias))


def test_wrong_arguments_are_told_in_a_sentence():
    with pytest.raises(ValueError, match=r"a must be \(M, K\) and b \(K, N\), got \[3, 4\] and \[5, 4\]"):
        matmul(torch.ones(3, 4), torch.ones(5, 4))
    with pytest.raises(ValueError, match="bias must have shape"):
        matmul(torch.ones(3, 4), torch.ones(4, 5), torch.ones(4))
    with pytest.raises(ValueError, match="b has dtype Double and the others Float"):
        matmul(torch.ones(3, 4), torch.ones(4, 5, dtype=F64))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_products_are_torchs(shape):
    a, b, bias = torch.ones(shape), torch.ones(shape[1], 5), torch.arange(5.0)
    assert torch.equal(matmul(a, b, bias), torch.addmm(bias, a, b))


def test_linear_is_torchs_within_the_bounds():
    x, weight, bias = torch.randn(20, 40, 200), torch.randn(1000, 200), torch.randn(1000)
    for given in (x, x[:, :, :100].repeat(1, 1, 2), x.transpose(0, 1), x[0, 0], x[:, :, :0]):
        own = weight[:, : given.size(-1)]
        assert_near(ops.linear(given, own, bias), torch.nn.functional.linear(given, own, bias), FORWARD_BOUND[F32])
    assert_near(ops.linear(x, weight[0]), torch.nn.functional.linear(x, weight[0]), FORWARD_BOUND[F32])
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, weight, bias).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="move all to one device"):
        matmul(x[0], weight.t().to("meta"))


# Products of every step


@pytest.mark.parametrize("case", CASES, ids=map(name_of, range(len(CASES))))
def test_steps_equal_the_reference(case):
    assert_same(run_operator(case), run_reference(case))


@pytest.mark.parametrize("case", CASES, ids=map(name_of, range(len(CASES))))
@pytest.mark.parametrize("name", ["highest", "medium"])
def test_steps_are_bit_identical_from_run_to_run_and_read_nothing_unwritten(precision, case, n_threads, name):
    precision(name)
    expected = run_operator(case)
    assert_identical(run_operator(case), expected)
    torch.use_deterministic_algorithms(True)  # torch then fills the memory of new tensors with NaN
    try:
        assert_identical(run_operator(case), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@needs_bfloat16
@pytest.mark.parametrize("case", CASES, ids=map(name_of, range(len(CASES))))
def test_steps_have_the_precision_that_torch_is_told(precision, case):
    exact = run_operator(case).outputs["outputs"]
    errors = {}
    for name in ("high", "medium"):
        precision(name)
        errors[name] = ((run_operator(case).outputs["outputs"] - exact).norm() / exact.norm()).item()
    assert (1e-7 if CAPABILITY == "amx" else 0) <= errors["high"] < 1e-4 < errors["medium"] < MOST_OF_STEPS


@needs_bfloat16
@pytest.mark.parametrize("value", ODD, ids=str)
def test_rows_beside_an_odd_one_are_float32s_in_a_step_of_the_least_precision(precision, value):
    case, row = CASES[0], 7
    tensors = case.tensors()
    tensors["x"].zero_()  # whose product may be the library's
    even = {key: tensor.clone() for key, tensor in tensors.items()}
    tensors["h_0"][row, 3] = value
    # before torch is told, which may round the reference's products too
    expected, exact = (case.call(case.reference, given)["outputs"][0] for given in (tensors, even))
    precision("medium")
    found, rounded = (case.call(case.operator, given)["outputs"][0] for given in (tensors, even))
    assert_near(found, expected, FORWARD_BOUND[F32])
    assert (rounded - exact).norm() > 1e-4 * exact.norm()  # or this shows nothing


@pytest.mark.parametrize("value", ODD[:3], ids=str)
@pytest.mark.parametrize(
    ("case", "name"),
    [(CASES[0], name) for name in ("x", "h_0", "c_0", "w_ih", "w_hh")]
    + [(CASES[1], name) for name in ("x", "h_0", "w_hh")]
    + [(CASES[3], name) for name in ("x", "h_0", "feed_0")],
)
def test_odd_numbers_come_out_of_steps_where_the_references_do(case: Case, name, value):
    tensors = case.tensors()
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[tensors[name].numel() // 2] = value
    found, expected = (case.call(function, tensors) for function in (case.operator, case.reference))
    for key, output in found.items():
        assert_near(output, expected[key], FORWARD_BOUND[F32], key)


@pytest.mark.parametrize("value", ODD[:3], ids=str)
def test_odd_gradients_go_back_where_the_references_do(value):
    case = CASES[0]
    tensors = case.tensors()

    def gradients(function: Callable) -> tuple[Tensor, ...]:
        given = {k: t.clone().requires_grad_() for k, t in tensors.items()}
        outputs = {k: v for k, v in case.call(function, given).items() if v.requires_grad}
        grads = coefficients(outputs, F32)
        grads[0].view(-1)[grads[0].numel() // 2] = value
        return torch.autograd.grad(list(outputs.values()), [given["x"], given["h_0"]], grads)

    for one, other in zip(gradients(case.operator), gradients(case.reference), strict=True):
        assert not other.isfinite().all()
        assert torch.equal(one.isfinite(), other.isfinite())
        assert_near(one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0), GRADIENT_BOUND[F32])


if __name__ == "__main__":
    # python -m test_operators_planes [maker]: by this processor, or whichever the environment names.
    if sys.argv[1:] == ["maker"]:
        print(torch.ops.g2lstm.cpu_products())
    else:
        print_products_of_every_size()
