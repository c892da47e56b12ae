"""The compiled operators within torch: opcheck, torch.compile, autocast, numeric gradients, second derivatives."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from operator_cases import (
    BF16,
    DTYPES,
    F16,
    F32,
    F64,
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
    coefficients,
    dtype_name,
    each_case,
    leaves,
    needs_kernels,
    run,
    run_operator,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fairseq_g2lstm import G2LSTM, G2LSTMCell, ops
from fairseq_g2lstm.ops import CellWeights

pytestmark = needs_kernels


def test_the_seam_calls_the_compiled_operators_unless_the_reference_is_asked_for():
    case = LayerCase(n_steps=30)
    compiled = run_operator(case)
    plain = run(case, case.reference, leaves(case.tensors()))
    with ops.use_reference():
        assert_identical(run_operator(case), plain)
    # Sums in another order show in the last bits of float32.
    assert not torch.equal(compiled.outputs["outputs"], plain.outputs["outputs"])


# Registration: schema, fake kernel, autograd, and all of it traced by torch.compile's machinery


def gates(case: Case) -> tuple:
    return tuple(case.mode)


def raw_arguments(case: Case, requires_grad: bool) -> tuple:
    """Arguments of the operator itself, torch.ops.g2lstm.NAME."""
    tensors = leaves(case.tensors()) if requires_grad else case.tensors()
    seed = torch.tensor(SEED)
    if isinstance(case, StepCase):
        return tensors["a"], tensors["c"], seed, None, case.step, 2 * case.layer, *gates(case)
    if isinstance(case, LayerCase):
        args, _ = case.arguments(tensors)
        rows = torch.arange(case.n_rows) + 5 if case.rows else None
        return *args, seed, rows, 2 * case.layer + case.reverse, *gates(case), True
    (x, h_0, c_0, feed_0, cells, *rest), _ = case.arguments(tensors)
    biases = [cell.bias.detach().requires_grad_(requires_grad) for cell in cells] if case.bias else []
    w_ih, w_hh = [cell.w_ih for cell in cells], [cell.w_hh for cell in cells]
    rows = torch.arange(case.n_rows) + 5 if case.rows else None
    return x, h_0, c_0, feed_0, w_ih, w_hh, biases, *rest, seed, rows, *gates(case), True


OPERATOR_CASES = [
    StepCase(n_rows=3, h_size=5),
    StepCase(n_rows=3, h_size=5, mode=MODES["hard"], dtype=BF16),
    LayerCase(n_rows=4, h_size=5),
    LayerCase(n_rows=4, h_size=5, lengths="ragged", rows=True, reverse=True, dtype=F64),
    LayerCase(n_rows=4, h_size=5, bias=False, mode=MODES["sharpened"], dtype=BF16),
    DecoderCase(n_rows=3, h_size=5),
    DecoderCase(n_rows=3, h_size=5, n_layers=1, padding=False, dropout=False, rows=True, dtype=F64),
    DecoderCase(n_rows=3, h_size=5, n_source=0, bias=False, dtype=F16),
]


def operator_case_name(case: Case) -> str:
    return f"{case_name[type(case)]}-{dtype_name(case.dtype)}"


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=operator_case_name)
def test_opcheck_of_operators_with_gradients(case):
    operator = getattr(torch.ops.g2lstm, case_name[type(case)]).default
    torch.library.opcheck(operator, raw_arguments(case, requires_grad=True))


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=operator_case_name)
def test_opcheck_of_operators_without_gradients(case):
    operator = getattr(torch.ops.g2lstm, case_name[type(case)]).default
    torch.library.opcheck(operator, raw_arguments(case, requires_grad=False))


def backward_arguments(case: Case) -> tuple:
    args = raw_arguments(case, requires_grad=False)
    outputs = getattr(torch.ops.g2lstm, case_name[type(case)])(*args)
    if isinstance(case, StepCase):
        a, c, *rest = args
        h, c_next, kept = outputs
        return torch.ones_like(h), torch.ones_like(c), kept, c, c_next, *rest
    if isinstance(case, LayerCase):
        x, h_0, c_0, w_ih, w_hh, _, _, *rest, _ = args
        out, h_n, c_n, _, kept, cells = outputs
        grads = (torch.ones_like(out), None, torch.ones_like(c_n))
        return *grads, x, h_0, c_0, w_ih, w_hh, out, kept, cells, *rest, True
    x, h_0, c_0, feed_0, w_ih, w_hh, _, *attention = args[:12]
    out, h_n, _, _, weights, _, *kept = outputs
    grads = (torch.ones_like(out), torch.ones_like(h_n), None, None, torch.ones_like(weights))
    return *grads, x, h_0, c_0, feed_0, w_ih, w_hh, *attention, out, weights, *kept, *args[12:-1]


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=operator_case_name)
def test_opcheck_of_backward_operators(case):
    operator = getattr(torch.ops.g2lstm, f"{case_name[type(case)]}_backward").default
    torch.library.opcheck(operator, backward_arguments(case))


@pytest.mark.parametrize("rows", [None, [4, 0, 9]], ids=["own_rows", "numbered_rows"])
def test_opcheck_of_noise_words(rows):
    rows = None if rows is None else torch.tensor(rows)
    torch.library.opcheck(torch.ops.g2lstm.noise_words.default, (torch.tensor(SEED), 2, 3, 5, 1, rows, F32))


@pytest.mark.parametrize("attention", [False, True], ids=["no_attention", "attention"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
def test_opcheck_of_the_search_step(dtype, attention):
    case = DecoderCase(n_rows=3, h_size=5, dtype=dtype)
    x, h, c, feed, w_ih, w_hh, biases, source, padding, w_query, w_out, *_ = raw_arguments(case, requires_grad=False)
    memory = ops.attention_memory(source, padding, w_query, w_out) if attention else (None, None, None)
    rows = torch.tensor([0, 0, 2]) if attention else None
    torch.library.opcheck(
        torch.ops.g2lstm.decoder_step.default,
        (x[0], h, c, feed, w_ih, w_hh, biases, *memory, rows, w_out if attention else None, 0.9, False),
    )


# torch.compile


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16], ids=lambda kind: kind.__name__)
def test_settings_from_numpy_compile_and_serve_the_reference_too(number):
    # 0.75 and 0.5 are the same in all of them
    given = G2LSTM(3, 4, temperature=number(0.75), noise_prob=number(0.5))
    plain = G2LSTM(3, 4, temperature=0.75, noise_prob=0.5)
    plain.load_state_dict(given.state_dict())
    x, found = torch.randn(5, 2, 3), []
    for lstm in (torch.compile(given, backend="aot_eager", fullgraph=True), plain):
        torch.manual_seed(1)
        found.append(lstm(x)[0])
    with ops.use_reference():
        torch.manual_seed(1)
        torch.testing.assert_close(given(x)[0], found[1])
    assert torch.equal(*found)


def compiled_result(case: Case, **options) -> Callable:
    """The case's operator, called within a compiled function without graph breaks."""

    @torch.compile(fullgraph=True, **options)
    def compiled(*args, **kwargs):
        return case.operator(*args, **kwargs)

    return compiled


@pytest.fixture(autouse=True)
def no_compiled_code_is_left():
    yield
    torch.compiler.reset()


@each_case(LayerCase(reverse=True, bias=False), DecoderCase(n_source=0, n_layers=1))
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_compiled_without_graph_breaks_equals_eager(case, dtype):
    case = replace(case, dtype=dtype)
    found = run(case, compiled_result(case, backend="aot_eager"), leaves(case.tensors()))
    assert_identical(found, run_operator(case))


@pytest.mark.slow
def test_layer_compiled_by_inductor_equals_eager():
    case = LayerCase(lengths="ragged")
    found = run(case, compiled_result(case, backend="inductor"), leaves(case.tensors()))
    assert_same(found, run_operator(case))


@pytest.mark.parametrize("case_of", [LayerCase, DecoderCase], ids=["layer", "decoder"])
def test_compiled_once_for_all_sizes(case_of):
    compiled = None
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n_steps, n_rows in ((3, 4), (5, 6), (9, 2)):
            case = case_of(n_steps=n_steps, n_rows=n_rows, dtype=F64)
            compiled = compiled or compiled_result(case, backend="aot_eager", dynamic=True)
            assert_identical(run(case, compiled, leaves(case.tensors())), run_operator(case))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_module_compiled_without_graph_breaks_equals_eager(training):
    torch.manual_seed(0)
    lstm = G2LSTM(5, 6, 2, bidirectional=True, dropout=0.0).train(training)
    x = torch.randn(4, 3, 5, requires_grad=True)
    results = []
    for function in (lstm, torch.compile(lstm, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)  # of the noise's seed
        output, (h, c) = function(x)
        results.append((output, h, c, *torch.autograd.grad(output.sum() + c.sum(), (x, *lstm.parameters()))))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_packed_sequences_go_through_a_compiled_module(training):
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):  # where we know that it does
        try:
            packed = pack_padded_sequence(torch.randn(3, 2, 5), torch.tensor([3, 1]))
            torch.compile(lambda: pad_packed_sequence(packed), backend="eager")()
        except RuntimeError:
            pytest.skip(f"torch {torch.__version__} compiles no pad_packed_sequence")
    lstm = G2LSTM(5, 6, bidirectional=True).train(training)
    compiled = torch.compile(lstm, backend="eager")
    for lengths, in_order in (((6, 3, 1), True), ((2, 5, 4), False)):
        x = torch.randn(max(lengths), 3, 5)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=in_order)
        results = []
        for function in (lstm, compiled):
            torch.manual_seed(1)
            output, states = function(packed)
            results.append([*output, *states])
        for found, expected in zip(*results, strict=True):
            assert found is expected if expected is None else torch.equal(found, expected)


def test_modules_of_the_reference_are_compiled_in_training_too():
    x = torch.randn(4, 3, 5, requires_grad=True)
    with ops.use_reference():
        for module, given in ((G2LSTM(5, 6, 2), x), (G2LSTMCell(5, 6), x[0])):
            results = []
            for function in (module, torch.compile(module, backend="aot_eager")):
                torch.manual_seed(1)
                output = function(given)[0]
                results.append((output, torch.autograd.grad(output.sum(), x)[0]))
            for found, expected in zip(*results, strict=True):
                assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("by_reference", [False, True], ids=["kernels", "reference"])
def test_vmap_draws_one_noise_for_all(by_reference):
    lstm, x = G2LSTM(5, 6, noise_prob=0.9), torch.randn(4, 3, 5)
    with ops.use_reference() if by_reference else nullcontext(), torch.no_grad():
        first, second = torch.vmap(lambda given: lstm(given)[0], randomness="different")(x.expand(2, 4, 3, 5))
        assert_near(first, second, 1e-6)
        assert (lstm(x)[0] - first).abs().max() > 1e-3  # another call draws another


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_an_exported_module_computes_the_same(training):
    lstm = G2LSTM(5, 6, 2, bidirectional=True).train(training)
    x = torch.randn(4, 3, 5)
    program = torch.export.export(lstm, (x,))
    with torch.no_grad():
        torch.manual_seed(1)
        found, states = program.module()(x)
        torch.manual_seed(1)
        expected, expected_states = lstm(x)
    for one, other in zip((found, *states), (expected, *expected_states), strict=True):
        assert torch.equal(one, other)


def test_a_cell_that_is_given_the_steps_number_is_compiled_once_for_all_steps():
    torch.manual_seed(0)
    cell, seed = G2LSTMCell(5, 6).train(), torch.tensor(SEED)
    x = torch.randn(20, 3, 5)
    counted = CompileCounterWithBackend("aot_eager")
    results = []
    for function in (cell, torch.compile(cell, backend=counted, fullgraph=True)):
        h = c = torch.zeros(3, 6)
        for step, inputs in enumerate(x):
            h, c = function(inputs, (h, c), seed=seed, step=step)
        results.append((h, c, *torch.autograd.grad(h.sum() + c.sum(), list(cell.parameters()))))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, 1e-6)
    # one for the first step, whose states have no gradients, and one for any other
    assert counted.frame_count == 2


def test_operators_run_on_meta_tensors():
    case = DecoderCase()
    tensors = {name: t.to("meta") for name, t in case.tensors().items()}
    args, options = case.arguments(tensors)
    moved = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
    found, real = ops.decoder(*moved, **options), run_operator(case).outputs
    for name, output in real.items():
        one = getattr(found, name)
        assert (one.shape, one.dtype, one.device.type) == (output.shape, output.dtype, "meta"), name


# autocast


@pytest.mark.parametrize("bidirectional", [False, True])
def test_autocast_gives_what_torch_lstm_gives(bidirectional):
    torch.manual_seed(0)
    lstm = G2LSTM(5, 6, 2, bidirectional=bidirectional, gate_type="sigmoid")
    twin = nn.LSTM(5, 6, 2, bidirectional=bidirectional)
    twin.load_state_dict(lstm.state_dict())
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", BF16):
        results = [module(x) for module in (lstm, twin)]
    (output, (h, c)), (twin_output, (twin_h, twin_c)) = results
    for found, expected in ((output, twin_output), (h, twin_h), (c, twin_c)):
        assert found.dtype == expected.dtype == BF16
        # Two layers of four steps, each of which torch rounds to bfloat16 in between: some roundings of half an eps.
        assert_near(found, expected, 4 * torch.finfo(BF16).eps)
    for module, (out, (h_n, c_n)) in zip((lstm, twin), results, strict=True):
        (out.float().sum() + h_n.float().sum() + c_n.float().sum()).backward()
        assert all(p.grad.dtype == F32 for p in module.parameters())
    for (name, p), q in zip(lstm.named_parameters(), twin.parameters(), strict=True):
        # Gradients add up rounding errors of twelve places.
        assert_near(p.grad, q.grad, 8 * torch.finfo(BF16).eps, name)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=dtype_name)
@pytest.mark.parametrize("case", [LayerCase(lengths="ragged"), DecoderCase()], ids=["layer", "decoder"])
def test_autocast_equals_a_call_with_rounded_arguments(case, dtype):
    tensors = leaves(case.tensors())

    def under_autocast(*args, **options):
        with torch.autocast("cpu", dtype):
            return case.operator(*args, **options)

    def gradients(function: Callable, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        outputs = {k: v for k, v in case.call(function, given).items() if v.requires_grad}
        grads = torch.autograd.grad(list(outputs.values()), list(given.values()), coefficients(outputs, dtype))
        return outputs, grads

    found, found_gradients = gradients(under_autocast, tensors)
    expected, expected_gradients = gradients(case.operator, leaves(case.tensors(), dtype))
    for name, output in found.items():
        assert output.dtype == dtype, name
        assert_near(output, expected[name], torch.finfo(dtype).eps, name)
    for name, one, other in zip(tensors, found_gradients, expected_gradients, strict=True):
        assert one.dtype == F32, name
        assert_near(one, other, 2 * torch.finfo(dtype).eps, name)


@pytest.mark.parametrize("case", [LayerCase(dtype=F64), DecoderCase(dtype=F64)], ids=["layer", "decoder"])
def test_autocast_leaves_float64_alone(case):
    with torch.autocast("cpu", BF16):
        found = run_operator(case)
    assert_identical(found, run_operator(case))


def test_autocast_takes_mixed_dtypes():
    torch.manual_seed(0)
    lstm = G2LSTM(5, 6)
    with torch.autocast("cpu", BF16):
        output, _ = lstm(torch.randn(4, 3, 5, dtype=BF16), (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6, dtype=BF16)))
    assert output.dtype == BF16


def test_cell_under_autocast_keeps_its_states_dtype_and_its_gradients():
    torch.manual_seed(0)
    cell = G2LSTMCell(5, 6, gate_type="sigmoid")
    x, c_0 = torch.randn(3, 5), torch.randn(3, 6)
    with torch.autocast("cpu", BF16):
        _, c = cell(x, (torch.zeros(3, 6), c_0))
    c.float().sum().backward()
    assert all(p.grad.dtype == F32 and p.grad.isfinite().all() for p in cell.parameters())
    assert_near(c, cell(x, (torch.zeros(3, 6), c_0))[1], 4 * torch.finfo(BF16).eps)


# Derivatives


SMALL = [
    StepCase(2, 3, dtype=F64),
    LayerCase(3, 2, 2, 3, lengths="ragged", dtype=F64),
    LayerCase(3, 2, 2, 3, lengths="ragged", dtype=F64, reverse=True, mode=MODES["gumbel, mask"]),
    DecoderCase(3, 2, 2, 3, 2, 3, 2, dtype=F64),
    DecoderCase(3, 2, 2, 3, 1, 0, dtype=F64, dropout=False, mode=MODES["gumbel, p = 1"]),
]


@pytest.mark.parametrize("case", SMALL, ids=operator_case_name)
def test_gradcheck(case):
    tensors = leaves(case.tensors())

    def forward(*given: Tensor) -> tuple[Tensor, ...]:
        outputs = case.call(case.operator, dict(zip(tensors, given, strict=True)))
        return tuple(output for output in outputs.values() if output.requires_grad)

    # Bit-identical outputs at each call: no tolerance for differences between them.
    assert torch.autograd.gradcheck(forward, tuple(tensors.values()), nondet_tol=0.0)


@each_case()
def test_second_derivatives_are_refused_in_a_sentence(case):
    tensors = leaves(case.tensors())
    output = next(iter(case.call(case.operator, tensors).values()))
    first = next(iter(tensors.values()))
    (gradient,) = torch.autograd.grad((output**2).sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no second derivatives.*use_reference\(\)"):
        torch.autograd.grad(gradient.sum(), first)


def test_second_derivatives_of_the_reference_are_there():
    case = LayerCase(3, 2, 2, 3, dtype=F64)
    tensors = leaves(case.tensors())
    with ops.use_reference():
        output = case.call(case.operator, tensors)["outputs"]
    (gradient,) = torch.autograd.grad((output**2).sum(), tensors["x"], create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), tensors["x"])
    assert second.any()


def test_cells_with_named_weights_are_what_the_decoder_takes():
    case = DecoderCase(dtype=F64)
    tensors = case.tensors()
    args, options = case.arguments(tensors)
    positional = [CellWeights(*cell) for cell in args[4]]
    found = ops.decoder(*args[:4], tuple(positional), *args[5:], **options)
    assert torch.equal(found.outputs, ops.decoder(*args, **options).outputs)


# What users do under autocast


@needs_kernels
@pytest.mark.parametrize("inside", [True, False], ids=["backward_inside", "backward_outside"])
def test_backward_under_autocast_gives_the_gradients_of_backward_outside_it(inside):
    torch.manual_seed(0)
    lstm = G2LSTM(5, 8, gate_type="sigmoid")
    x, states = torch.randn(4, 3, 5), (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    gradients = []
    for within in (inside, False):
        lstm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = lstm(x, states)[0].float().sum()
            if within:
                loss.backward()
        if not within:
            loss.backward()
        gradients.append([weight.grad.clone() for weight in lstm.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@needs_kernels
@pytest.mark.parametrize("attends", [True, False], ids=["attention", "no_attention"])
def test_the_search_step_runs_under_autocast(attends):
    torch.manual_seed(0)
    cells = [ops.CellWeights(torch.randn(32, 13) / 3, torch.randn(32, 8) / 3, torch.randn(32), torch.randn(32))]
    x, states, feed = torch.randn(3, 5), torch.randn(2, 1, 3, 8), torch.randn(3, 8)
    memory = w_out = None
    if attends:
        w_out = torch.randn(8, 14) / 4
        memory = ops.attention_memory(torch.randn(7, 3, 6), None, torch.randn(6, 8) / 3, w_out)
    with torch.no_grad():
        expected = ops.decoder_step(x, *states, feed, cells, memory, None, w_out, mode=ops.GateMode())
        with torch.autocast("cpu", torch.bfloat16):
            found = ops.decoder_step(x, *states, feed, cells, memory, None, w_out, mode=ops.GateMode())
    assert found[0].dtype == torch.bfloat16
    # some ten roundings to 8 bits of numbers near 1
    torch.testing.assert_close(found[0].float(), expected[0], rtol=0, atol=10 * 2**-8)
