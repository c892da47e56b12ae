"""The CUDA operators against plain PyTorch on the CPU.

They need a GPU; without one, test_cuda_host.py runs this file on the same code compiled for the CPU.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_on_host import VARIABLE
from operator_cases import (
    BF16,
    DTYPES,
    F16,
    F32,
    F64,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    HALF_TYPES,
    MODES,
    SEED,
    Case,
    DecoderCase,
    LayerCase,
    StepCase,
    assert_identical,
    assert_near,
    case_name,
    dtype_name,
    leaves,
    needs_kernels,
    run,
    run_reference,
)
from torch import Tensor

from fairseq_g2lstm import reference
from fairseq_g2lstm.philox import random_words

ON_HOST = VARIABLE in os.environ
DEVICE = "cpu" if ON_HOST else "cuda"
IS_INTELS = "GenuineIntel" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
pytestmark = [
    needs_kernels,
    pytest.mark.skipif(not (ON_HOST or torch.cuda.is_available()), reason="no CUDA GPU (torch.cuda.is_available())"),
]
needs_gpu = pytest.mark.skipif(ON_HOST, reason="runs on a GPU alone")

LAYER_VARIABLE = "G2LSTM_CUDA_LAYER"
REQUIRED = "G2LSTM_REQUIRE_PERSISTENT"  # in the environment: without that kernel the tests of it fail
ALL_DTYPES = [*DTYPES, *HALF_TYPES]
# On CUDA half types are rounded at every step, as in torch's own LSTM: pre-activations, h and their gradients by half
# an eps each. These errors neither add up over the steps, which forget, nor all point one way: two eps of the largest
# element hold forward, four backward, where errors of both directions meet.
FORWARD = FORWARD_BOUND | {dtype: 2 * torch.finfo(dtype).eps for dtype in HALF_TYPES}
GRADIENT = GRADIENT_BOUND | {dtype: 4 * torch.finfo(dtype).eps for dtype in HALF_TYPES}


@pytest.fixture(autouse=True)
def products_in_full_precision() -> Iterator[None]:
    names = ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    settings = torch.backends.cuda.matmul
    before = [getattr(settings, name) for name in names]
    for name in names:
        setattr(settings, name, False)
    yield
    for name, value in zip(names, before, strict=True):
        setattr(settings, name, value)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The function's results for all tensors but integers, in whatever holds them."""
    if isinstance(value, Tensor):
        return value if value.dtype == torch.int64 else function(value)
    if isinstance(value, tuple):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return [mapped(function, item) for item in value] if isinstance(value, list) else value


def moved(value: Any, device: str) -> Any:
    """Tensors on the device. Integers stay: lengths, seeds and rows belong on the CPU."""
    return mapped(lambda tensor: tensor.to(device), value)


def on_device(function: Callable) -> Callable:
    """The function, computed on the device: takes and returns tensors of the CPU."""
    return lambda *args, **options: moved(function(*moved(args, DEVICE), **options), "cpu")


def run_on_device(case: Case, tensors: dict[str, Tensor] | None = None):
    return run(case, on_device(case.operator), leaves(tensors or case.tensors()))


def assert_equals_reference(case: Case) -> None:
    assert_within_bounds(run_on_device(case), run_reference(case), case.dtype)


def assert_within_bounds(found: Any, expected: Any, dtype: torch.dtype) -> None:
    assert found.outputs.keys() == expected.outputs.keys()
    for name, output in found.outputs.items():
        assert_near(output, expected.outputs[name], FORWARD[dtype], name)
    for name, gradient in found.gradients.items():
        # A gradient that is a sum of large terms is no more accurate than they are.
        assert_near(gradient, expected.gradients[name], GRADIENT[dtype], f"gradient of {name}", floor=0.1)


def assert_same(found: Any, expected: Any, dtype: torch.dtype) -> None:
    """Bits on an Intel host; else within the bounds, since libraries look at strides and at where tensors begin."""
    if ON_HOST and IS_INTELS:
        assert_identical(found, expected)
    else:
        assert_within_bounds(found, expected, dtype)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers with gaps between them."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers, beginning one later in memory."""
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def run_on_changed(case: Case, change: Callable[[Tensor], Tensor]) -> Any:
    """The case with tensors that are changed on the device; moved there afterwards they would lose their gaps."""
    tensors = {name: change(t.to(DEVICE)).requires_grad_() for name, t in case.tensors().items()}
    found = run(case, on_device(case.operator), tensors)
    return found._replace(gradients={name: gradient.cpu() for name, gradient in found.gradients.items()})


def name_of(case: Case) -> str:
    mode = next(name for name, mode in MODES.items() if mode == case.mode)
    return f"{case_name[type(case)]}, {mode}, {dtype_name(case.dtype)}"


CASES = [
    replace(case, mode=mode, dtype=dtype)
    for case in (StepCase(rows=True), LayerCase(rows=True), DecoderCase())
    for mode in MODES.values()
    for dtype in ALL_DTYPES
]


@needs_gpu
def test_the_cuda_kernels_are_built():
    missing = [
        name
        for name in ("noise_words", "step", "layer", "decoder", "decoder_step")
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"g2lstm::{name}", "CUDA")
    ]
    assert not missing, f"no CUDA kernels for {', '.join(missing)}: install nvcc of torch's CUDA version and rebuild"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_equals_the_reference_in_every_mode(case):
    assert_equals_reference(case)


# Blocks have 256 threads, at most 128 side by side.
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize(("n_rows", "h_size"), [(1, 1), (300, 1), (1, 300), (7, 128), (3, 129), (2, 1150)])
def test_step_equals_the_reference_at_every_size(n_rows, h_size, dtype):
    assert_equals_reference(StepCase(n_rows, h_size, dtype=dtype))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lengths", ["none", "ragged", "ones", "full"])
def test_layer_equals_the_reference_at_every_length(lengths, reverse, dtype):
    assert_equals_reference(LayerCase(lengths=lengths, reverse=reverse, dtype=dtype, mode=MODES["gumbel, mask"]))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (1, 4, 3, 5), (6, 1, 2, 3), (4, 7, 5, 129), (6, 9, 256, 256), (3, 20, 400, 1150)], ids=str
)
def test_layer_equals_the_reference_at_every_size(size, dtype):
    assert_equals_reference(LayerCase(*size, lengths="ragged", dtype=dtype, bias=size[0] > 1))


# The kernel that takes a whole sequence in one launch. Its blocks have 8 or 16 units, and 16, 32 or 64 rows.


@pytest.fixture
def persistent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel is asked for; that a device refused to launch it, which is then done without, is an error."""

    def smallest() -> str:
        return torch.ops.g2lstm.cuda_layer(F32, 1, 1, 16)

    monkeypatch.setenv(LAYER_VARIABLE, "persistent")
    before = smallest()
    assert before == "persistent" or not os.environ.get(REQUIRED), "no persistent kernel, or one was refused before"
    yield
    assert smallest() == before, "the device refused a launch"


def assert_is_persistent(case: LayerCase) -> None:
    found = torch.ops.g2lstm.cuda_layer(case.dtype, case.n_steps, case.n_rows, case.h_size)
    if found != "persistent" and not ON_HOST:
        pytest.skip("this GPU has no persistent kernel for it")
    assert found == "persistent"


PERSISTENT_DTYPES = [F32, F16, BF16]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
def test_persistent_layer_equals_the_reference_in_every_mode(mode, dtype, persistent):
    case = LayerCase(h_size=32, rows=True, lengths="ragged", mode=MODES[mode], dtype=dtype)
    assert_is_persistent(case)
    assert_equals_reference(case)


@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lengths", ["none", "ragged", "ones", "full"])
def test_persistent_layer_equals_the_reference_at_every_length(lengths, reverse, dtype, persistent):
    case = LayerCase(n_steps=6, h_size=16, lengths=lengths, reverse=reverse, dtype=dtype, mode=MODES["gumbel, mask"])
    assert_is_persistent(case)
    assert_equals_reference(case)


# One row and one step; rows and units that fill several blocks, and several launches, the last in part. The host has
# 12 blocks at a time, a GPU more.
@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1, 16), (7, 2, 3, 16), (3, 17, 5, 48), (2, 33, 4, 32), (3, 65, 2, 16), (2, 100, 2, 48), (3, 4, 7, 96),
     (2, 130, 2, 96),
     *(pytest.param(size, marks=needs_gpu)
       for size in [(30, 20, 256, 256), (30, 128, 256, 256), (9, 128, 512, 512), (5, 20, 1024, 1024),
                   (4, 300, 1024, 1024)])],
    ids=str,
)  # fmt: skip
def test_persistent_layer_equals_the_reference_at_every_size(size, dtype, persistent):
    case = LayerCase(*size, lengths="ragged" if size[0] > 1 else "none", dtype=dtype, bias=size[0] > 1)
    assert_is_persistent(case)
    assert_equals_reference(case)


# A block fetches the left side in pieces of 16 KiB, four at a time.
@pytest.mark.parametrize(
    ("dtype", "h_size"), [(F32, 96), (F16, 192), (BF16, 192)], ids=["float32", "float16", "bfloat16"]
)
def test_persistent_layer_equals_the_reference_with_more_pieces_than_are_kept(dtype, h_size, persistent):
    case = LayerCase(3, 64, 2, h_size, dtype=dtype)
    assert_is_persistent(case)
    assert_equals_reference(case)


@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
def test_persistent_layer_is_bit_identical_from_run_to_run(dtype, persistent):
    case = LayerCase(n_rows=40, h_size=48, lengths="ragged", dtype=dtype)
    assert_is_persistent(case)
    assert_identical(run_on_device(case), run_on_device(case))


@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("change", [strided, shifted])
def test_persistent_layer_takes_what_does_not_begin_at_16_bytes_or_has_gaps(change, dtype, persistent):
    case = LayerCase(h_size=32, dtype=dtype, reverse=True)
    assert_is_persistent(case)
    assert_same(run_on_changed(case, change), run_on_device(case), dtype)


@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_persistent_layer_keeps_nan_to_its_row(value, dtype, persistent):
    case = LayerCase(n_rows=20, h_size=32, dtype=dtype)
    assert_is_persistent(case)
    tensors = case.tensors()
    tensors["x"][1, 3] = tensors["h_0"][5] = value
    outputs = case.call(on_device(case.operator), tensors)["outputs"]
    expected = case.call(on_device(case.operator), case.tensors())["outputs"]
    clean = [row for row in range(case.n_rows) if row not in (3, 5)]
    assert outputs[1:, 3].isnan().any() and outputs[0:, 5].isnan().any()
    assert torch.equal(outputs[:, clean], expected[:, clean]) and torch.equal(outputs[0, 3], expected[0, 3])


@pytest.mark.parametrize(("dtype", "h_size"), [(F64, 16), (F32, 24), (F16, 1150), (BF16, 2**20)])
def test_persistent_layers_that_do_not_fit_go_step_by_step(dtype, h_size, persistent):
    assert torch.ops.g2lstm.cuda_layer(dtype, 2, 1, h_size) == "steps"
    if h_size < 10_000:
        assert_equals_reference(LayerCase(2, 1, 3, h_size, dtype=dtype))


@pytest.mark.skipif(not ON_HOST, reason="the host is told to refuse the launch")
@pytest.mark.parametrize("dtype", PERSISTENT_DTYPES, ids=dtype_name)
def test_persistent_layers_that_the_device_refuses_go_step_by_step(dtype, monkeypatch):
    case = LayerCase(h_size=32, lengths="ragged", dtype=dtype)
    expected = run_on_device(case)
    monkeypatch.setenv(LAYER_VARIABLE, "persistent")
    assert_is_persistent(case)
    monkeypatch.setenv("G2LSTM_HOST_REFUSES", "1")
    assert_identical(run_on_device(case), expected)


def test_the_layers_kernel_is_chosen_in_the_environment(monkeypatch):
    kernel = {}
    monkeypatch.setenv(LAYER_VARIABLE, "persistent")
    assert_is_persistent(LayerCase(2, 3, 5, 16))
    for choice in ("auto", "steps", "persistent"):
        monkeypatch.setenv(LAYER_VARIABLE, choice)
        kernel[choice] = torch.ops.g2lstm.cuda_layer(F32, 2, 3, 16)
    assert kernel == {"auto": "steps", "steps": "steps", "persistent": "persistent"}
    monkeypatch.setenv(LAYER_VARIABLE, "fast")
    with pytest.raises(ValueError, match="G2LSTM_CUDA_LAYER must be auto, steps or persistent, got fast"):
        torch.ops.g2lstm.cuda_layer(F32, 2, 3, 16)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("dropout", [False, True], ids=["no_dropout", "dropout"])
@pytest.mark.parametrize("padding", [False, True], ids=["no_padding", "padding"])
@pytest.mark.parametrize(("n_layers", "n_source"), [(1, 0), (3, 0), (1, 7), (3, 7)])
def test_decoder_equals_the_reference_with_every_option(n_layers, n_source, padding, dropout, dtype):
    assert_equals_reference(
        DecoderCase(
            n_layers=n_layers, n_source=n_source, padding=padding, dropout=dropout, dtype=dtype, bias=padding,
            rows=dropout,
        )  # fmt: skip
    )


# Blocks have 256 threads: more source positions, and more units, than that; and fewer than the 32 of a warp.
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1, 1, 1, 1, 1), (3, 4, 5, 300, 1, 300, 7), (2, 3, 4, 33, 2, 257, 6), (5, 9, 64, 256, 2, 20, 512)],
    ids=str,
)
def test_decoder_equals_the_reference_at_every_size(size, dtype):
    assert_equals_reference(DecoderCase(*size, dtype=dtype))


@pytest.mark.parametrize("rows", [None, [0, 2**32 - 1, 7]], ids=["own_rows", "numbered_rows"])
@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
@pytest.mark.parametrize(("h_size", "stream"), [(1, 0), (37, 1), (300, 2**32 - 1)])
def test_random_words_are_the_references(h_size, stream, seed, rows):
    given = None if rows is None else torch.tensor(rows)
    words = torch.ops.g2lstm.noise_words(torch.tensor(seed).to(DEVICE), 4, 3, h_size, stream, given)
    assert words.device.type == DEVICE
    numbers = torch.arange(3) if given is None else given
    expected = random_words(seed, torch.arange(4), numbers, h_size, stream // 2, bool(stream % 2))
    assert torch.equal(words.cpu(), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.mode == MODES["gumbel"]], ids=name_of)
def test_outputs_and_gradients_are_bit_identical_from_run_to_run(case):
    assert_identical(run_on_device(case), run_on_device(case))


@pytest.mark.parametrize("case", [StepCase(), LayerCase(lengths="ragged", reverse=True), DecoderCase()], ids=name_of)
def test_arguments_need_not_be_contiguous(case):
    assert_same(run_on_changed(case, strided), run_on_device(case), case.dtype)


def search_step(case: DecoderCase, source_rows: Tensor | None) -> tuple[tuple, tuple]:
    """What the operator returns for the first step of a case, and the reference where it has the rows."""
    t = case.tensors()
    memory = reference.attention_memory(t["source"], case.source_padding(), t["w_query"], t["w_out"])
    states, cells = [t["x"][0], t["h_0"], t["c_0"], t["feed_0"]], case.cells(t)
    weights = [[cell.w_ih for cell in cells], [cell.w_hh for cell in cells], [cell.bias for cell in cells]]
    found = torch.ops.g2lstm.decoder_step(
        *moved([*states, *weights, *memory], DEVICE), source_rows, t["w_out"].to(DEVICE), 0.9, False
    )
    if source_rows is not None and not source_rows.is_cpu:
        return found, ()
    return found, reference.decoder_step(*states, cells, memory, source_rows, t["w_out"], mode=MODES["sharpened"])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=dtype_name)
@pytest.mark.parametrize("rows", [None, [0, 0, 3, 2, 3]], ids=["own_source", "shared_sources"])
def test_search_step_equals_the_reference(rows, dtype):
    found, expected = search_step(DecoderCase(dtype=dtype), None if rows is None else torch.tensor(rows))
    for one, other in zip(found, expected, strict=True):
        # The reference's own half types are as far off.
        assert_near(one.cpu(), other, 2 * FORWARD[dtype])


@needs_gpu
def test_source_rows_on_the_gpu_that_are_none_give_nan():
    (out, _, _, attention), _ = search_step(DecoderCase(n_rows=3), torch.tensor([1, -1, 3], device=DEVICE))
    for values in (out, attention):
        assert values[0].isfinite().all() and values[1:].isnan().all()


@needs_gpu
@pytest.mark.parametrize("kernel", ["steps", "persistent"])
@pytest.mark.parametrize("case", [StepCase(), LayerCase(h_size=32), DecoderCase()], ids=name_of)
def test_operators_run_on_the_current_stream(case, kernel, monkeypatch):
    monkeypatch.setenv(LAYER_VARIABLE, kernel)
    expected = run_on_device(case)

    # What runs on another stream reads what is not there yet. Copies from the CPU, which would wait, come before.
    def late(tensor: Tensor) -> Tensor:
        torch.cuda._sleep(20_000_000)  # clock ticks
        return tensor.clone()

    def late_in_backward(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor.register_hook(late)
        return tensor

    def operator(*args: Any, **options: Any) -> Any:
        there = moved(args, DEVICE)
        torch.cuda.synchronize()
        outputs = case.operator(*mapped(late, there), **options)
        return moved(mapped(late_in_backward, outputs), "cpu")

    with torch.cuda.stream(torch.cuda.Stream()):
        found = run(case, operator, leaves(case.tensors()))
    assert_identical(found, expected)


@pytest.mark.skipif(not ON_HOST, reason="the host is told that a graph is captured")
@pytest.mark.parametrize(
    ("case", "what"),
    [
        (StepCase(), "the noise's seed comes"),
        (LayerCase(), "the noise's seed comes"),
        (DecoderCase(), "the noise's seed comes"),
        (LayerCase(mode=MODES["sigmoid"], lengths="ragged"), "lengths and numbers of rows come"),
        (LayerCase(mode=MODES["sigmoid"]), None),
        (DecoderCase(mode=MODES["sigmoid"]), None),
    ],
    ids=str,
)
def test_what_comes_from_the_cpu_cannot_be_captured_in_a_graph(case, what, monkeypatch):
    expected = None if what else run_on_device(case)
    monkeypatch.setenv("G2LSTM_HOST_CAPTURES", "1")
    if what is None:
        assert_identical(run_on_device(case), expected)
    else:
        with pytest.raises(RuntimeError, match=f"{what} from the CPU.*cannot be captured in a CUDA graph"):
            run_on_device(case)


@needs_gpu
@pytest.mark.parametrize("case", [StepCase(), LayerCase(), DecoderCase()], ids=name_of)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
def test_compiled_without_graph_breaks_equals_eager(case, dtype):
    case = replace(case, dtype=dtype)
    # aot_eager runs the fake kernels too, whose dtypes and shapes must be the kernels' own.
    compiled = torch.compile(case.operator, backend="aot_eager", fullgraph=True)
    found = run(case, on_device(compiled), leaves(case.tensors()))
    assert_identical(found, run_on_device(case))


@needs_gpu
@pytest.mark.parametrize("case", [LayerCase(), DecoderCase()], ids=name_of)
def test_tensors_of_several_devices_get_a_sentence(case):
    for name in case.tensors():
        tensors = {other: t if other == name else t.to(DEVICE) for other, t in case.tensors().items()}
        with pytest.raises((ValueError, RuntimeError), match="cpu"):
            case.call(lambda *args, **options: case.operator(*args, **options), tensors)
