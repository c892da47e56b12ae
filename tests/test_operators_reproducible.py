"""The same bits from run to run; the same noise and, within the bounds, the same numbers for other threads, other
splits of the batch and other instruction sets."""

import os
import platform
from pathlib import Path

import pytest
import torch
from conftest import run_module
from operator_cases import (
    BF16,
    DTYPES,
    F32,
    F64,
    FORWARD_BOUND,
    GRADIENT_BOUND,
    MODES,
    SEED,
    Case,
    DecoderCase,
    LayerCase,
    StepCase,
    assert_identical,
    assert_near,
    assert_same,
    case_name,
    dtype_name,
    gate_bits,
    layer_gates,
    leaves,
    needs_kernels,
    results_of_all_operators,
    run_operator,
    threads,
    with_dtypes,
)
from torch import Tensor

from fairseq_g2lstm import ops
from fairseq_g2lstm.ops import GateMode

pytestmark = needs_kernels

# Sizes at which a second thread gets work: blocks of units beside blocks of rows, and a batch of one block of units.
CASES = with_dtypes(
    [
        StepCase(40, 96),
        StepCase(40, 3),
        LayerCase(6, 30, 20, 96, lengths="ragged", reverse=True),
        LayerCase(6, 30, 20, 5),
        DecoderCase(5, 30, 20, 96),
        DecoderCase(5, 30, 20, 5, n_source=0),
    ],
    [*DTYPES, BF16],
)


def name_of(case: Case) -> str:
    return f"{case_name[type(case)]}-{case.h_size}-{dtype_name(case.dtype)}"


# Run to run


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_outputs_and_gradients_are_bit_identical_from_run_to_run(case, n_threads):
    with threads(n_threads):
        first = run_operator(case)
        for _ in range(3):
            assert_identical(run_operator(case), first)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_nothing_that_was_not_written_is_read(case):
    expected = run_operator(case)
    # torch then fills the memory of new tensors with NaN.
    torch.use_deterministic_algorithms(True)
    try:
        assert_identical(run_operator(case), expected)
    finally:
        torch.use_deterministic_algorithms(False)


# Threads


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_one_thread_and_two_agree_within_the_bounds(case):
    # The products over all steps are a library's, whose sums may be ordered otherwise by other thread counts.
    one = run_operator(case)
    with threads(2):
        assert_same(run_operator(case), one)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_one_thread_and_two_draw_the_same_noise(dtype):
    words = []
    for n_threads in (1, 2, 3):
        with threads(n_threads):
            words.append(torch.ops.g2lstm.noise_words(torch.tensor(SEED), 7, 9, 83, 3, None, dtype))
    assert torch.equal(words[0], words[1]) and torch.equal(words[0], words[2])


@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
def test_one_thread_and_two_put_the_same_noise_into_the_gates(sharing):
    options = {"mode": GateMode(1.0, 0.5, sharing), "seed": torch.tensor(SEED)}
    one = gate_bits(layer_gates("f", F64, 6, 9, 83, **options))
    with threads(2):
        two = gate_bits(layer_gates("f", F64, 6, 9, 83, **options))
    assert torch.equal(one[1], two[1]) and torch.equal(one[0][one[1]], two[0][one[1]])


# Splits of the batch. The products of a part of the rows may be summed in another order than the whole's.


def split_of(tensors: dict[str, Tensor], batch_dims: dict[str, int], part: slice) -> dict[str, Tensor]:
    def cut(name: str, tensor: Tensor) -> Tensor:
        return tensor[(slice(None),) * batch_dims[name] + (part,)] if name in batch_dims else tensor

    return {name: cut(name, tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("boundary", [1, 6, 12])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("mode", ["gumbel", "gumbel, mask", "gumbel, sequence", "gumbel, p = 1"])
def test_layer_of_a_split_batch_is_the_whole_batch_of_rows_with_their_numbers(mode, reverse, dtype, boundary):
    case = LayerCase(4, 13, 5, 19, MODES[mode], dtype, reverse=reverse, layer=1)
    tensors = case.tensors()
    options = {"mode": case.mode, "seed": torch.tensor(SEED), "reverse": reverse, "layer": 1, "need_gates": True}
    whole = ops.lstm_layer(*tensors.values(), **options)
    for part in (slice(boundary), slice(boundary, None)):
        own = split_of(tensors, {"x": 1, "h_0": 0, "c_0": 0}, part)
        outputs, h_n, c_n, z = ops.lstm_layer(*own.values(), rows=torch.arange(13)[part], **options)
        pairs = ((outputs, whole[0][:, part]), (h_n, whole[1][part]), (c_n, whole[2][part]), (z, whole[3][:, part]))
        for found, expected in pairs:
            assert_near(found, expected, FORWARD_BOUND[dtype])


@pytest.mark.parametrize("sharing", ["step", "mask", "sequence"])
def test_layer_of_a_split_batch_has_the_whole_batchs_noise_bits(sharing):
    options = {"mode": GateMode(1.0, 0.5, sharing), "seed": torch.tensor(SEED), "reverse": True}
    u24, m = gate_bits(layer_gates("i", F64, 5, 13, 21, **options))
    for part in (slice(4), slice(4, None), torch.tensor([12, 3, 7])):
        rows = torch.arange(13)[part]
        own_u24, own_m = gate_bits(layer_gates("i", F64, 5, len(rows), 21, rows=rows, **options))
        assert torch.equal(own_m, m[:, part])
        assert torch.equal(own_u24[own_m], u24[:, part][own_m])


def test_weight_gradients_of_a_split_batch_add_up_to_the_whole_batchs():
    case = LayerCase(4, 13, 5, 19, dtype=F64)
    tensors = leaves(case.tensors())
    options = {"mode": case.mode, "seed": torch.tensor(SEED)}

    def gradients(part: slice) -> tuple[Tensor, ...]:
        own = split_of(tensors, {"x": 1, "h_0": 0, "c_0": 0}, part)
        outputs, h_n, c_n, _ = ops.lstm_layer(*own.values(), rows=torch.arange(13)[part], **options)
        weights = [tensor for name, tensor in tensors.items() if name[:2] in ("w_", "b_")]
        return torch.autograd.grad((outputs**2).sum() + (h_n * c_n).sum(), weights)

    parts = [sum(pair) for pair in zip(gradients(slice(5)), gradients(slice(5, None)), strict=True)]
    for found, expected in zip(parts, gradients(slice(None)), strict=True):
        assert_near(found, expected, GRADIENT_BOUND[F64])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_step_of_a_split_batch_is_the_whole_batch_bit_for_bit(dtype):
    case = StepCase(13, 37, dtype=dtype)
    tensors = case.tensors()
    options = {"mode": case.mode, "step": 4}
    whole = ops.lstm_step(tensors["a"], tensors["c"], torch.tensor(SEED), **options)
    for part in (slice(5), slice(5, None)):
        rows = torch.arange(13)[part]
        own = ops.lstm_step(tensors["a"][part], tensors["c"][part], torch.tensor(SEED), rows=rows, **options)
        for found, expected in zip(own, whole, strict=True):
            assert torch.equal(found, expected[part])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_decoder_of_a_split_batch_is_the_whole_batch_of_rows_with_their_numbers(dtype):
    case = DecoderCase(4, 13, 5, 19, dtype=dtype, dropout=False)
    tensors = case.tensors()
    batch_dims = {"x": 1, "h_0": 1, "c_0": 1, "feed_0": 0, "source": 1}

    def decode(given: dict[str, Tensor], part: slice, rows: Tensor | None) -> ops.DecoderOutput:
        args, options = case.arguments(given)
        return ops.decoder(*args[:6], case.source_padding()[:, part], *args[7:], **{**options, "rows": rows})

    whole = decode(tensors, slice(None), None)
    dims = {"outputs": 1, "h": 1, "c": 1, "feed": 0, "attention": 1, "gates": 2}
    for part in (slice(0, 6), slice(6, 13)):
        found = decode(split_of(tensors, batch_dims, part), part, torch.arange(13)[part])
        for name, dim in dims.items():
            expected = getattr(whole, name).narrow(dim, part.start, part.stop - part.start)
            assert_near(getattr(found, name), expected, FORWARD_BOUND[dtype], name)


# Instruction sets, each in a process of its own that reads its name from the environment.

# and what torch calls them
LEVELS: dict[str, str | None] = {"default": None, "avx2": "AVX2"}
LEVELS |= dict.fromkeys(("avx512", "avx512_vnni", "avx512_bf16", "amx"), "AVX512")


@pytest.fixture(scope="module")
def level_and_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """By the instruction set that was asked for the one that was taken, and what it computed."""
    if platform.machine() != "x86_64":
        pytest.skip(f"other instruction sets are chosen on x86-64 alone, this is {platform.machine()}")
    folder, results = tmp_path_factory.mktemp("levels"), {}
    for level in LEVELS:
        path = folder / f"{level}.pt"
        environment = {"G2LSTM_CPU_CAPABILITY": level, "PYTHONPATH": str(Path(__file__).parent)}
        done = run_module("operator_cases", path, env=environment)
        assert done.returncode == 0, done.stderr
        results[level] = torch.load(path)
    return results


@pytest.fixture(scope="module")
def results_by_level(level_and_results) -> dict[str, dict[str, Tensor]]:
    return {level: results for level, (_, results) in level_and_results.items()}


@pytest.mark.slow
def test_every_instruction_set_draws_the_same_words(results_by_level):
    # Dropout is its mask times one number.
    words = [{k: v for k, v in results.items() if k[:5] in ("words", "dropo")} for results in results_by_level.values()]
    assert len(words[0]) == 4
    for other in words[1:]:
        for name, expected in words[0].items():
            assert torch.equal(other[name], expected), name


@pytest.mark.slow
def test_every_instruction_set_computes_the_same_within_the_bounds(results_by_level):
    here = results_of_all_operators()
    for level, results in results_by_level.items():
        assert results.keys() == here.keys()
        for name, found in results.items():
            bound = (GRADIENT_BOUND if "gradient" in name else FORWARD_BOUND).get(found.dtype, 0.0)
            assert_near(found, here[name], bound, f"{name} on {level}")


@pytest.mark.slow
def test_the_environment_chooses_the_instruction_set(level_and_results, results_by_level):
    order = list(LEVELS)
    best_here = level_and_results[order[-1]][0]
    if "G2LSTM_CPU_CAPABILITY" not in os.environ:
        assert best_here == torch.ops.g2lstm.cpu_capability()
    for level, (taken, _) in level_and_results.items():
        assert taken == min(level, best_here, key=order.index)
    has = torch.backends.cpu.get_cpu_capability()
    if has not in LEVELS.values():
        pytest.skip(f"this processor has no instruction set beside the default: {has}")
    # Vectors of another width sum in another order, which shows in the last bits of float32.
    first, best = results_by_level["default"], results_by_level["avx512"]
    assert any(not torch.equal(first[name], best[name]) for name in first if first[name].dtype == F32)
