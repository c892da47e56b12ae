"""What the tests of the compiled operators share: arguments, calls of operator and reference, and comparisons.

A case names sizes and options; `tensors()` makes its arguments, the same at every call. `run` calls an operator or
its reference and takes gradients with fixed coefficients. Operator and reference get the same rounded numbers; half
types' reference is computed in float32.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fairseq_g2lstm import ops, reference
from fairseq_g2lstm.ops import CellWeights, GateMode
from fairseq_g2lstm.reference import EPS

# Every test of the operators carries this mark.
needs_kernels = pytest.mark.skipif(
    ops.kernels_error() is not None, reason=f"the compiled operators are missing: {ops.kernels_error()}"
)

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
DTYPES = [F32, F64]
HALF_TYPES = [F16, BF16]
dtype_name = {F32: "float32", F64: "float64", F16: "float16", BF16: "bfloat16"}.__getitem__

# What training and evaluation use, by gate type, sharing and p.
MODES = {
    "sigmoid": GateMode(),
    "sharpened": GateMode(0.9),
    "gumbel": GateMode(0.9, 0.2),
    "gumbel, mask": GateMode(0.9, 0.2, "mask"),
    "gumbel, sequence": GateMode(0.7, 0.2, "sequence"),
    "gumbel, p = 1": GateMode(1.3, 1.0),
    "gumbel, mask, p = 1": GateMode(0.9, 1.0, "mask"),
    "hard": GateMode(hard=True),
}
GUMBEL = MODES["gumbel"]
SEED = -0x61C8864680B583EB

# Relative to the largest element of what is compared: the project's promise, forward and backward.
FORWARD_BOUND = {F32: 1e-5, F64: 1e-10}
GRADIENT_BOUND = {F32: 1e-4, F64: 1e-10}
# Half types are computed in float32 and rounded to nearest once, on return: half an eps. Gradients too; those of what
# is multiplied by hidden states that were returned, and so rounded, carry that half an eps of every summand as well.
for _half in HALF_TYPES:
    FORWARD_BOUND[_half] = torch.finfo(_half).eps / 2 + FORWARD_BOUND[F32]
    GRADIENT_BOUND[_half] = torch.finfo(_half).eps + GRADIENT_BOUND[F32]

# Positional and keyword arguments of an operator, or of its reference.
Arguments = tuple[tuple, dict[str, Any]]


class Result(NamedTuple):
    """Outputs and gradients by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


def random_tensor(generator: torch.Generator, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers of the given standard deviation, rounded to the dtype."""
    return (torch.randn(*shape, generator=generator, dtype=F64) * scale).to(dtype)


def bias_tensor(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Biases of about 0.3 that are multiples of 1/64, so that the sum of two is exact in every dtype."""
    return (random_tensor(generator, F64, *shape, scale=0.3 * 64).round() / 64).to(dtype)


def ragged_lengths(n_steps: int, n_rows: int, generator: torch.Generator) -> Tensor:
    """Lengths in no order, with a 1 and a T among them where there is room."""
    lengths = torch.randint(1, n_steps + 1, (n_rows,), generator=generator)
    lengths[n_rows // 2] = n_steps
    lengths[n_rows // 3] = 1
    return lengths


@dataclass(frozen=True)
class StepCase:
    """One call of the step."""

    n_rows: int = 5
    h_size: int = 19
    mode: GateMode = GUMBEL
    dtype: torch.dtype = F32
    step: int = 3
    rows: bool = False
    layer: int = 1
    reverse: bool = False

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        state = F64 if self.dtype == F64 else F32
        return {
            "a": random_tensor(generator, self.dtype, self.n_rows, 4 * self.h_size, scale=2.0),
            "c": random_tensor(generator, state, self.n_rows, self.h_size),
        }

    def arguments(self, tensors: dict[str, Tensor]) -> Arguments:
        rows = torch.arange(self.n_rows).flip(0) * 3 + 1 if self.rows else None
        place = {"step": self.step, "rows": rows, "layer": self.layer, "reverse": self.reverse}
        return (tensors["a"], tensors["c"], torch.tensor(SEED)), {"mode": self.mode, **place}

    def call(self, function: Callable, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        args, options = self.arguments(tensors)
        return dict(zip(("h", "c"), function(*args, **options), strict=True))

    operator = staticmethod(lambda *args, **options: ops.lstm_step(*args, **options))
    reference = staticmethod(reference.lstm_step)


@dataclass(frozen=True)
class LayerCase:
    """One call of the layer. lengths: "none", "ragged", "ones" or "full"."""

    n_steps: int = 5
    n_rows: int = 7
    n_inputs: int = 6
    h_size: int = 19
    mode: GateMode = GUMBEL
    dtype: torch.dtype = F32
    lengths: str = "none"
    bias: bool = True
    rows: bool = False
    layer: int = 0
    reverse: bool = False
    zero_state: bool = False

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        tensor = partial(random_tensor, generator, self.dtype)
        # Weights of a size at which pre-activations are about 1.
        g4, fan = 4 * self.h_size, self.n_inputs + self.h_size
        tensors = {
            "x": tensor(self.n_steps, self.n_rows, self.n_inputs),
            "h_0": tensor(self.n_rows, self.h_size, scale=0.0 if self.zero_state else 0.5),
            "c_0": tensor(self.n_rows, self.h_size, scale=0.0 if self.zero_state else 1.0),
            "w_ih": tensor(g4, self.n_inputs, scale=fan**-0.5),
            "w_hh": tensor(g4, self.h_size, scale=fan**-0.5),
        }
        if self.bias:
            tensors |= {name: bias_tensor(generator, self.dtype, g4) for name in ("b_ih", "b_hh")}
        return tensors

    def given_lengths(self) -> Tensor | None:
        return {
            "none": lambda: None,
            "ragged": lambda: ragged_lengths(self.n_steps, self.n_rows, torch.Generator().manual_seed(3)),
            "ones": lambda: torch.ones(self.n_rows, dtype=torch.int64),
            "full": lambda: torch.full((self.n_rows,), self.n_steps),
        }[self.lengths]()

    def valid(self) -> Tensor:
        """(T, B, 1) bool: what is no padding."""
        lengths = self.given_lengths()
        steps = torch.arange(self.n_steps)[:, None]
        return (steps < (torch.full((self.n_rows,), self.n_steps) if lengths is None else lengths)).unsqueeze(-1)

    def arguments(self, tensors: dict[str, Tensor]) -> Arguments:
        names = ("x", "h_0", "c_0", "w_ih", "w_hh", "b_ih", "b_hh")
        return (*(tensors.get(name) for name in names), self.given_lengths()), {
            "mode": self.mode,
            "seed": torch.tensor(SEED),
            "rows": torch.arange(self.n_rows).flip(0) * 3 + 1 if self.rows else None,
            "layer": self.layer,
            "reverse": self.reverse,
            "need_gates": True,
        }

    def call(self, function: Callable, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        args, options = self.arguments(tensors)
        outputs, h_n, c_n, z = function(*args, **options)
        # What z holds in the padding is nobody's business.
        return {"outputs": outputs, "h_n": h_n, "c_n": c_n, "z": torch.where(self.valid(), z, 0.0)}

    operator = staticmethod(lambda *args, **options: ops.lstm_layer(*args, **options))
    reference = staticmethod(reference.lstm_layer)


@dataclass(frozen=True)
class DecoderCase:
    """One call of the decoder. n_source 0: no attention. padding and dropout: whether there are masks."""

    n_steps: int = 4
    n_rows: int = 5
    n_inputs: int = 6
    h_size: int = 19
    n_layers: int = 2
    n_source: int = 7
    source_size: int = 11
    mode: GateMode = GUMBEL
    dtype: torch.dtype = F32
    bias: bool = True
    padding: bool = True
    dropout: bool = True
    need_attention: bool = True
    rows: bool = False

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(4)
        tensor = partial(random_tensor, generator, self.dtype)
        h_size, state = self.h_size, (self.n_layers, self.n_rows, self.h_size)
        tensors = {
            "x": tensor(self.n_steps, self.n_rows, self.n_inputs),
            "h_0": tensor(*state, scale=0.5),
            "c_0": tensor(*state),
            "feed_0": tensor(self.n_rows, h_size, scale=0.5),
        }
        for layer in range(self.n_layers):
            n_inputs = self.n_inputs + h_size if layer == 0 else h_size
            scale = (n_inputs + h_size) ** -0.5
            tensors[f"w_ih_{layer}"] = tensor(4 * h_size, n_inputs, scale=scale)
            tensors[f"w_hh_{layer}"] = tensor(4 * h_size, h_size, scale=scale)
            if self.bias:
                for name in ("b_ih", "b_hh"):
                    tensors[f"{name}_{layer}"] = bias_tensor(generator, self.dtype, 4 * h_size)
        if self.n_source:
            e_size = self.source_size
            tensors["source"] = tensor(self.n_source, self.n_rows, e_size)
            # Scores of about 1, so that no position takes all of the attention.
            tensors["w_query"] = tensor(e_size, h_size, scale=2 * (e_size * h_size) ** -0.5)
            tensors["w_out"] = tensor(h_size, e_size + h_size, scale=(e_size + h_size) ** -0.5)
        return tensors

    def source_padding(self) -> Tensor | None:
        if not (self.padding and self.n_source):
            return None
        lengths = ragged_lengths(self.n_source, self.n_rows, torch.Generator().manual_seed(5))
        return torch.arange(self.n_source)[:, None] >= lengths

    def dropout_mask(self) -> Tensor | None:
        if not self.dropout:
            return None
        shape = (self.n_steps, self.n_layers, self.n_rows, self.h_size)
        # Zeros beside factors of which no two are alike, so that none can stand in for another.
        factors = torch.rand(shape, generator=torch.Generator().manual_seed(6), dtype=F64)
        return torch.where(factors < 0.3, 0.0, 1 + factors).to(self.dtype)

    def cells(self, tensors: dict[str, Tensor]) -> list[CellWeights]:
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        return [CellWeights(*(tensors.get(f"{name}_{layer}") for name in names)) for layer in range(self.n_layers)]

    def arguments(self, tensors: dict[str, Tensor]) -> Arguments:
        mask = self.dropout_mask()
        return (
            *(tensors[name] for name in ("x", "h_0", "c_0", "feed_0")),
            self.cells(tensors),
            tensors.get("source"),
            self.source_padding(),
            tensors.get("w_query"),
            tensors.get("w_out"),
            None if mask is None else mask.to(tensors["x"].dtype),
        ), {
            "mode": self.mode,
            "seed": torch.tensor(SEED),
            "rows": torch.arange(self.n_rows).flip(0) * 3 + 1 if self.rows else None,
            "need_attention": self.need_attention,
            "need_gates": True,
        }

    def call(self, function: Callable, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        args, options = self.arguments(tensors)
        returned = function(*args, **options)
        return {name: value for name, value in returned._asdict().items() if value is not None}

    operator = staticmethod(lambda *args, **options: ops.decoder(*args, **options))
    reference = staticmethod(reference.decoder)


Case = StepCase | LayerCase | DecoderCase
# One of each, small, for what is true of all operators alike.
CASES = [StepCase(), LayerCase(lengths="ragged"), DecoderCase()]
case_name = {StepCase: "step", LayerCase: "layer", DecoderCase: "decoder"}


def each_case(*more: Case) -> pytest.MarkDecorator:
    """Parametrises `case` over the operators."""
    cases = [*CASES, *more]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case_name[type(case)])


def leaves(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies that take gradients; of another dtype where one is given."""
    return {name: t.detach().clone().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()}


def coefficients(outputs: dict[str, Tensor], rounded_to: torch.dtype) -> list[Tensor]:
    """Fixed gradients of the outputs, rounded to a dtype and given in the outputs' own."""
    generator = torch.Generator().manual_seed(7)
    return [random_tensor(generator, rounded_to, *t.shape).to(t.dtype) for t in outputs.values()]


def run(
    case: Case, function: Callable, tensors: dict[str, Tensor], differentiated: Sequence[str] | None = None
) -> Result:
    """Calls operator or reference.

    Args:
        function: case.operator or case.reference.
        tensors: arguments that take gradients.
        differentiated: the outputs that get a gradient; None for all that can have one.
    """
    outputs = case.call(function, tensors)
    chosen = {name: outputs[name] for name in differentiated or outputs if outputs[name].requires_grad}
    found = torch.autograd.grad(
        list(chosen.values()), list(tensors.values()), coefficients(chosen, case.dtype), allow_unused=True
    )
    gradients = {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
    }
    return Result({name: output.detach() for name, output in outputs.items()}, gradients)


def run_operator(case: Case, differentiated: Sequence[str] | None = None) -> Result:
    return run(case, case.operator, leaves(case.tensors()), differentiated)


def run_reference(case: Case, differentiated: Sequence[str] | None = None) -> Result:
    dtype = F32 if case.dtype in HALF_TYPES else None
    return run(case, case.reference, leaves(case.tensors(), dtype), differentiated)


def assert_near(found: Tensor, expected: Tensor, bound: float, name: str = "", floor: float = 0.0) -> None:
    """|found - expected| <= bound times the largest |expected|, or times the floor where that is larger.

    NaN and infinities must stand in the same places.
    """
    assert found.shape == expected.shape, f"{name}: {found.shape} and {expected.shape}"
    found, expected = found.to(F64), expected.to(F64)
    finite = expected.isfinite()
    odd = (found[~finite], expected[~finite])
    torch.testing.assert_close(*odd, rtol=0, atol=0, equal_nan=True, msg=f"{name}: other NaN or infinities")
    assert found[finite].isfinite().all(), f"{name}: not finite where the reference is"
    if not finite.any():
        return
    difference = (found[finite] - expected[finite]).abs().max().item()
    scale = max(expected[finite].abs().max().item(), floor)
    assert difference <= bound * scale, f"{name}: off by {difference:.3g} where {bound * scale:.3g} is allowed"


def assert_same(found: Result, expected: Result, floor: float = 0.0) -> None:
    """Everything returned, and the gradient of everything given, within the bounds of what is found."""
    assert found.outputs.keys() == expected.outputs.keys()
    for name, output in found.outputs.items():
        assert_near(output, expected.outputs[name], FORWARD_BOUND[output.dtype], name, floor)
    for name, gradient in found.gradients.items():
        assert_near(gradient, expected.gradients[name], GRADIENT_BOUND[gradient.dtype], f"gradient of {name}", floor)


def assert_equals_reference(case: Case, differentiated: Sequence[str] | None = None, floor: float = 0.0) -> None:
    found = run_operator(case, differentiated)
    for name, output in found.outputs.items():
        state = F64 if case.dtype == F64 else F32
        in_state = name in ("z", "gates") or (isinstance(case, StepCase) and name == "c")
        assert output.dtype == (state if in_state else case.dtype), name
    assert_same(found, run_reference(case, differentiated), floor)


def assert_identical(found: Result, expected: Result) -> None:
    """The same bits, NaN equal to NaN."""
    for one, other in ((found.outputs, expected.outputs), (found.gradients, expected.gradients)):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


def with_dtypes(cases: Iterable[Case], dtypes: Iterable[torch.dtype] = DTYPES) -> list[Case]:
    """Each case in each dtype."""
    return [replace(case, dtype=dtype) for case in cases for dtype in dtypes]


SHUT = -1e4  # a pre-activation whose sigmoid is 0 under any noise


def gate_bits(gate: Tensor) -> tuple[Tensor, Tensor]:
    """(2^24 u, m) from float64 gates sigmoid(m n): n = log(u + eps) - log(1 - u + eps) solved for u."""
    u = gate * (1 + 2 * EPS) - EPS
    # n is 0 at u = 1/2 alone: 2^-24 of all draws, and none here.
    return (u * 2**24).round().long(), (gate - 0.5).abs() > 1e-9


def layer_gates(gate: str, dtype: torch.dtype, n_steps: int, n_rows: int, h_size: int, **options) -> Tensor:
    """(T, B, H) input or forget gates of a layer whose weights are all 0, told from its outputs.

    Input gates: c' = i from step to step, the forget gate being shut. Forget gates: c' = f c, from c = 1 on.
    """
    bias = torch.zeros(4, h_size, dtype=dtype)
    bias[1 if gate == "i" else 0] = SHUT
    bias[2:] = 100.0  # tanh and sigmoid are 1
    x, w_ih = torch.zeros(n_steps, n_rows, 1, dtype=dtype), torch.zeros(4 * h_size, 1, dtype=dtype)
    h_0, w_hh = torch.zeros(n_rows, h_size, dtype=dtype), torch.zeros(4 * h_size, h_size, dtype=dtype)
    c_0 = torch.full((n_rows, h_size), 0.0 if gate == "i" else 1.0, dtype=dtype)
    outputs, *_ = ops.lstm_layer(x, h_0, c_0, w_ih, w_hh, bias.flatten(), **options)
    cells = torch.atanh(outputs)
    if gate == "i":
        return cells
    order = cells.flip(0) if options.get("reverse") else cells
    gates = order / torch.cat((c_0[None], order[:-1]))
    return gates.flip(0) if options.get("reverse") else gates


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Gives torch so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def results_of_all_operators() -> dict[str, Tensor]:
    """Outputs, gradients and random words of small cases in both dtypes, by name."""
    results = {}
    for dtype in DTYPES:
        name = dtype_name(dtype)
        results[f"words {name}"] = torch.ops.g2lstm.noise_words(torch.tensor(SEED), 3, 5, 83, 7, None, dtype)
        x = random_tensor(torch.Generator().manual_seed(8), dtype, 9, 83).requires_grad_()
        results[f"dropout {name}"] = torch.ops.g2lstm.dropout(x.detach(), torch.tensor(SEED), 0.3)
        nll, smooth = ops.cross_entropy(x, torch.arange(9), 1)
        results |= {f"{name} nll": nll.detach(), f"{name} smooth": smooth.detach()}
        results[f"{name} cross_entropy's gradient"] = torch.autograd.grad(nll + 0.1 * smooth, x)[0]
        for n_inputs, fine in ((83, False), (83, True), (1050, False)):
            q = torch.arange(7 * n_inputs).remainder(255).sub(127).to(torch.int8).view(7, n_inputs)
            left = random_tensor(torch.Generator().manual_seed(9), dtype, 19, n_inputs)
            given = left, [q, torch.ones(7)], [1, 1], torch.ones(7, dtype=dtype), fine
            results[f"packed, {n_inputs} inputs, fine {fine}, {name}"] = torch.ops.g2lstm.packed_linear(*given)
        large = LayerCase(2, 18, 6, 270), DecoderCase(2, 18, 6, 270)  # enough for products on AMX
        for case in (StepCase(5, 83), LayerCase(5, 7, 6, 83, lengths="ragged"), DecoderCase(4, 5, 6, 83), *large):
            result = run_operator(replace(case, dtype=dtype))
            operator = f"{case_name[type(case)]} of {case.h_size} {name}"
            results |= {f"{operator} {key}": value for key, value in result.outputs.items()}
            results |= {f"{operator} gradient of {key}": value for key, value in result.gradients.items()}
    return results


if __name__ == "__main__":
    # python -m operator_cases FILE: what an instruction set computes, to be compared with another's.
    torch.set_num_threads(1)
    torch.save((torch.ops.g2lstm.cpu_capability(), results_of_all_operators()), sys.argv[1])
