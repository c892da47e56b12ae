"""The benchmark's harness: peers compute what they claim, output is complete. No test looks at a time."""

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_module
from tiny_runs import training_config

from benchmarks import (
    comparison,
    end_to_end,
    fairseq_runs,
    gate_log,
    language_model,
    layer,
    peers,
    product,
    profiled,
    run,
)
from benchmarks.bars import CPU_SHAPES, CUDA_SHAPES, END_TO_END_BARS, LANGUAGE_MODEL_BARS, Shape, layer_bar
from benchmarks.tables import end_to_end_markdown, gate_log_markdown, language_model_markdown, layer_markdown
from benchmarks.timing import Spread, in_turns, ratio, set_tf32, time_interleaved
from examples.common.errors import UserError
from fairseq_g2lstm import G2LSTM, ops
from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.gates.training import read_gate_log
from fairseq_g2lstm.philox import draw_seed
from fairseq_g2lstm.reference import gate_noise

# Equality in double precision: sums in another order stray by some 1e-15.
EQUAL = {"rtol": 1e-9, "atol": 1e-9}
PNG = b"\x89PNG\r\n\x1a\n"


def double_layer(**options: float) -> G2LSTM:
    torch.manual_seed(3)
    return G2LSTM(4, 5, dtype=torch.float64, **options)


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    coefficients = torch.linspace(-1, 1.3, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad(output, inputs, coefficients)


@pytest.mark.parametrize("noise_prob", [0.0, 0.2, 1.0])
def test_the_identity_peer_computes_the_gumbel_layer(noise_prob):
    lstm = double_layer(temperature=0.7, noise_prob=noise_prob)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(8)
    seed = draw_seed()
    noise = gate_noise(seed, torch.arange(6), torch.arange(3), 5, noise_prob=noise_prob, dtype=torch.float64)
    output, state = peers.IdentityLSTM(lstm)(x, noise)
    torch.manual_seed(8)
    expected, expected_state = lstm(x)
    torch.testing.assert_close(output, expected, **EQUAL)
    torch.testing.assert_close(state, expected_state, **EQUAL)
    torch.testing.assert_close(gradients(output, x), gradients(expected, x), **EQUAL)


@pytest.mark.parametrize("peer", ["identity", "python-loop", "reference"])
def test_without_noise_peers_compute_what_the_layer_computes(peer):
    lstm = double_layer(temperature=0.7, noise_prob=0.0)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(peers.PEERS[peer](lstm)(x)[0], lstm(x)[0], **EQUAL)


def test_the_plain_peer_computes_the_layer_with_sigmoid_gates():
    lstm = double_layer(gate_type="sigmoid")
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(peers.PEERS["torch.nn.LSTM"](lstm)(x)[0], lstm(x)[0], **EQUAL)


def test_flashrnn_computes_the_layer_with_sigmoid_gates():
    pytest.importorskip("flashrnn", reason="flashrnn is not installed")
    torch.manual_seed(3)
    lstm = G2LSTM(4, 5, gate_type="sigmoid")
    x = torch.randn(6, 3, 4)
    # its plain PyTorch backend, which needs no GPU; float32 rounds at 1e-7
    torch.testing.assert_close(peers.FlashLSTM(lstm, "vanilla")(x)[0], lstm(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["end-to-end", "packed"])
def test_what_is_no_checkpoint_is_found_before_anything_is_trained(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(end_to_end, "compare_training", lambda *_: pytest.fail("trained"))
    given = [mode, "--smoke", "--checkpoint", str(ROOT / "README.md"), "--data", str(tmp_path), "--out", str(tmp_path)]
    with pytest.raises(UserError, match=r"README\.md is truncated or no"):
        run.main(given)


def test_a_training_without_updates_after_the_warm_up_is_refused():
    with pytest.raises(UserError, match="--updates must be more than --warmup, got 10 and 20"):
        run.main(["end-to-end", "--updates", "10"])


@pytest.mark.parametrize("kernel", profiled.KERNELS)
def test_what_is_profiled_runs(kernel):
    assert profiled.run_passes(kernel, ["3,2,4,16"], "cpu", n_passes=1) == len(profiled.DTYPES)


def test_the_persistent_peer_says_where_it_cannot_run():
    with pytest.raises(peers.Unavailable, match="kernel of CUDA's"):
        peers.persistent_workload(lambda: None, double_layer(), torch.empty(6, 3, 4))


class Wrong(G2LSTM):
    """A layer that computes something else in one launch."""

    def forward(self, x, state=None):
        output, state = super().forward(x, state)
        assert not torch.backends.cuda.matmul.allow_tf32
        if os.environ["G2LSTM_CUDA_LAYER"] == "persistent":
            output = output * torch.where(torch.arange(len(x)) == 4, self.factor, 1.0)[:, None, None]
        return output, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_layer_in_one_launch_is_timed_where_it_computes_the_same_alone(dtype):
    torch.manual_seed(3)
    lstm, x = Wrong(4, 5, dtype=dtype), torch.randn(6, 3, 4, dtype=dtype, requires_grad=True)
    lstm.factor = 1.0
    before = torch.backends.cuda.matmul.allow_tf32
    set_tf32(True)
    try:
        peers.check_kernels_agree(lstm, x)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        set_tf32(before)
    for lstm.factor in (2.0, float("nan")):
        with pytest.raises(peers.Unavailable, match="by a launch for every step, outputs differ by"):
            peers.check_kernels_agree(lstm, x)


def test_on_cuda_tf32_has_a_table_of_its_own_without_bars():
    given = ["layer", "--no-sweep"]
    options = run.parse_arguments(given)
    settings = layer.Settings("cuda", 1, CUDA_SHAPES, run.DTYPES["cuda"], ("g2lstm",), 1, 0.1, None, options.out)
    made = list(layer.cases(settings))
    # both passes, in float32 with TF32 off and on, in half types once
    assert len(made) == 18 * 2 * (2 + 2) and len(set(made)) == len(made)
    assert {case.dtype for case in made if case.tf32} == {"float32"}
    shape = CUDA_SHAPES[0]
    assert layer_bar("cuda", shape, True, False, "torch.nn.LSTM") is not None
    assert layer_bar("cuda", shape, True, True, "torch.nn.LSTM") is None


@pytest.mark.parametrize("peer", ["identity", "python-loop"])
def test_peers_draw_their_own_noise(peer):
    peer_layer = peers.PEERS[peer](double_layer(noise_prob=0.5))
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    assert not torch.equal(peer_layer(x)[0], peer_layer(x)[0])


def test_drawn_noise_is_logistic_noise_in_a_share_of_the_gates():
    torch.manual_seed(1)
    noise = peers.draw_noise((200_000,), 0.2, torch.empty(0))
    # standard errors of 200,000 draws: 0.001 of the share, 0.009 of the deviation, that is about 1.8 without eps
    assert (noise != 0).double().mean().item() == pytest.approx(0.2, abs=0.005)
    assert noise[noise != 0].std().item() == pytest.approx(1.8, abs=0.05)


def test_bars_are_those_that_are_promised_at_the_shapes_they_name_and_nowhere_else():
    assert CPU_SHAPES == ((30, 128, 256, 256), (30, 128, 512, 512), (70, 20, 400, 1150))
    sizes = {(shape.n_steps, shape.n_rows, shape.hidden_size) for shape in CUDA_SHAPES}
    assert sizes == set(itertools.product((30, 70), (20, 128, 512), (256, 512, 1024))) and len(CUDA_SHAPES) == 18
    assert all(shape.input_size == shape.hidden_size for shape in CUDA_SHAPES)
    for device, shapes, bars in (
        ("cpu", CPU_SHAPES, {"torch.nn.LSTM": "≤ 1.05", "python-loop": "≤ 0.5", "identity": "None"}),
        ("cuda", CUDA_SHAPES, {"torch.nn.LSTM": "≤ 1", "python-loop": "None"}),
    ):
        for shape in shapes:
            assert {peer: str(layer_bar(device, shape, True, False, peer)) for peer in bars} == bars
    assert layer_bar("cpu", CPU_SHAPES[0], False, False, "torch.nn.LSTM") is None
    assert layer_bar("cpu", Shape(1, 1, 1, 1), True, False, "torch.nn.LSTM") is None
    promised = {device: {what: str(bar) for what, bar in bars.items()} for device, bars in END_TO_END_BARS.items()}
    assert promised == {
        "cpu": {"tokens/s": "≥ 1.4", "sentences/s": "≥ 1.3", "peak memory": "≤ 1"},
        "cuda": {"tokens/s": "≥ 3", "peak memory": "≤ 1"},
    }
    assert {what: str(bar) for what, bar in LANGUAGE_MODEL_BARS["cpu"].items()} == {"evaluation tokens/s": "≥ 1"}
    assert LANGUAGE_MODEL_BARS["cuda"] == {}
    at_most = layer_bar("cpu", CPU_SHAPES[0], True, False, "torch.nn.LSTM")
    at_least = END_TO_END_BARS["cpu"]["tokens/s"]
    assert at_most.met(1.05) and not at_most.met(1.06) and at_least.met(1.4) and not at_least.met(1.39)


def test_spreads_have_median_and_quartiles():
    spread = Spread((4.0, 1.0, 3.0, 2.0, 5.0))
    assert (spread.median, spread.quartiles, spread.iqr) == (3.0, (2.0, 4.0), 2.0)
    assert Spread((7.0,)).iqr == 0.0
    value, by_round = ratio(Spread((1.0, 4.0, 2.0)), Spread((2.0, 4.0, 8.0)))
    assert value == 0.5 and by_round.values == (0.5, 1.0, 0.25)


def test_each_round_begins_with_another_one():
    assert "".join(in_turns("abc", 4)) == "abcbcacababc"
    assert list(in_turns([], 2)) == []


def test_the_product_benchmark_needs_the_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "kernels_error", lambda: "not built")
    with pytest.raises(UserError, match="not built"):
        run.main(["product", "--smoke", "--out", str(tmp_path)])


@pytest.mark.skipif(ops.kernels_error() is not None, reason=f"no compiled operators: {ops.kernels_error()}")
# float32's eps is 1.2e-7; "high" keeps 11 bits or more, and 2^-11 is 4.9e-4
@pytest.mark.parametrize(("options", "bound"), [([], 1e-6), (["--precision", "high"], 5e-4)])
def test_the_product_benchmark_writes_speeds_and_errors(tmp_path, options, bound):
    before = torch.get_float32_matmul_precision()
    run.main(["product", "--smoke", "--threads", "1", *options, "--out", str(tmp_path)])
    assert torch.get_float32_matmul_precision() == before
    result = json.loads((tmp_path / "results.json").read_text())
    (row,) = result["rows"]
    assert result["complete"] and row["sizes"] == {"rows": 3, "depth": 4, "columns": 5}
    assert all(0 < row["errors"][name] < bound and row["times"][name]["median_s"] > 0 for name in product.PRODUCTS)
    assert "| 3 × 4 × 5 |" in (tmp_path / "results.md").read_text()


def test_workloads_take_turns():
    calls = []
    workloads = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(workloads, rounds=3, min_seconds=1e-9, threads=1, device="cpu")
    assert list(times) == ["a", "b"] and all(len(spread.values) == 3 for spread in times.values())
    turns = [name for name, previous in zip(calls, [None, *calls], strict=False) if name != previous]
    assert "".join(turns) == "ababab"  # one before the rounds; a round begins with what ended the one before
    assert time_interleaved({}, rounds=1, min_seconds=0, threads=1, device="cpu") == {}


@pytest.fixture(scope="module")
def layer_results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("layer")
    run.main(["layer", "--smoke", "--threads", "1", "--device", "cpu", "--out", str(out)])
    return out


def test_the_layer_benchmark_writes_every_peer_or_why_not(layer_results):
    result = json.loads((layer_results / "results.json").read_text())
    assert result["complete"]
    for part, names in {
        "machine": ("processor", "cores", "threads", "memory_gib", "gpu"),
        "versions": ("Python", "torch", "fairseq", "commit", "kernels"),
        "settings": ("timer", "rounds", "gates"),
    }.items():
        assert set(names) <= set(result[part])
    assert len(result["rows"]) == 2 * 2 + 6  # shapes times passes, and the points of the picture
    for row in result["rows"]:
        wanted = set(peers.DEFAULT_PEERS["cpu"]) & set(peers.PEERS if row["axis"] is None else peers.SWEEP_PEERS)
        assert {*row["times"], *row["skipped"]} == wanted
        for time in row["times"].values():
            assert len(time["values_s"]) == result["settings"]["rounds"] and time["iqr_s"] >= 0
    skipped = [row["skipped"] for row in result["rows"] if row["skipped"]]
    if ops.kernels_error() is None:
        assert not skipped and "torch.nn.LSTM" in result["rows"][0]["ratios"]
    else:
        assert all("kernels" in reasons["g2lstm"] for reasons in skipped)


def test_the_layer_benchmark_writes_a_table_and_a_picture(layer_results):
    result = json.loads((layer_results / "results.json").read_text())
    table = (layer_results / "results.md").read_text()
    assert table == layer_markdown(result)
    for title in ("**Forward + backward**", "**Forward**", "| (3, 4, 5, 6) | float32 |", "loop in Python"):
        assert title in table
    assert (layer_results / "sweep.png").read_bytes().startswith(PNG)


MACHINE = {"processor": "P", "instructions": "I", "cores": 2, "threads": 2, "memory_gib": 4.0, "gpu": None}
DESCRIBED = {
    "machine": {**MACHINE, "load_average": 0.0},
    "versions": {"torch": "2", "kernels": "compiled"},
    "command": "c",
}


def test_a_ratio_stands_beside_its_bar():
    shape = CPU_SHAPES[0]._asdict()
    time = Spread((0.1, 0.2, 0.3)).as_dict("s")
    ratios = {
        "torch.nn.LSTM": {"ratio": 1.2, "iqr_by_round": 0.01, "bar": "≤ 1.05", "met": False},
        "python-loop": {"ratio": 0.41, "iqr_by_round": 0.02, "bar": "≤ 0.5", "met": True},
    }
    row = {"shape": shape, "dtype": "float32", "passes": "forward + backward", "tf32": False, "axis": None}
    row |= {"times": {"g2lstm": time, **dict.fromkeys(ratios, time)}, "skipped": {}, "ratios": ratios}
    settings = {"timer": "Timer", "rounds": 3, "gates": {"gate_type": "gumbel", "temperature": 0.9, "noise_prob": 0.2}}
    table = layer_markdown({"complete": False, "rows": [row], "settings": settings, **DESCRIBED})
    assert "| 200 (100) | 1.20 (0.01) | ≤ 1.05, **not met** | 0.41 (0.02) | ≤ 0.5, met |" in table
    assert table.startswith("**Unfinished:**")
    row["ratios_in_one_launch"] = {"torch.nn.LSTM": {"ratio": 0.9, "iqr_by_round": 0.03, "bar": "≤ 1", "met": True}}
    table = layer_markdown({"complete": True, "rows": [row], "settings": settings, **DESCRIBED})
    assert "| 0.41 (0.02) | ≤ 0.5, met | 0.90 (0.03) | ≤ 1, met |" in table and "Unfinished" not in table


def small_settings(out: Path, peers: list[str]) -> layer.Settings:
    shapes = [Shape(2, 3, 4, 5), Shape(3, 2, 4, 5)]
    return layer.Settings("cpu", 1, shapes, ["float32"], peers, rounds=1, min_seconds=1e-9, sweep=None, out=out)


def fail_once(monkeypatch: pytest.MonkeyPatch, peer: str, call: int, message: str) -> list[G2LSTM]:
    """Makes the numbered call of a peer's constructor fail; the calls so far."""
    build, calls = peers.PEERS[peer], []

    def sometimes(lstm: G2LSTM):
        calls.append(lstm)
        if len(calls) == call:
            raise RuntimeError(message)
        return build(lstm)

    monkeypatch.setitem(peers.PEERS, peer, sometimes)
    return calls


def test_a_peer_that_fails_at_first_is_not_tried_again(tmp_path, monkeypatch):
    calls = fail_once(monkeypatch, "identity", 1, "no compiler\nat all")
    result = layer.run(small_settings(tmp_path, ["torch.nn.LSTM", "identity"]))
    assert len(result["rows"]) == 4 and len(calls) == 1
    assert all(row["skipped"] == {"identity": "failed: no compiler"} for row in result["rows"])


def test_a_peer_that_ran_and_fails_once_is_tried_again(tmp_path, monkeypatch):
    fail_once(monkeypatch, "identity", 2, "out of memory")
    result = layer.run(small_settings(tmp_path, ["torch.nn.LSTM", "identity"]))
    assert [bool(row["skipped"]) for row in result["rows"]] == [False, True, False, False]


def test_a_layer_that_fails_ends_the_benchmark_and_leaves_a_table(tmp_path, monkeypatch):
    fail_once(monkeypatch, "torch.nn.LSTM", 2, "wrong")
    with pytest.raises(RuntimeError, match="wrong"):
        layer.run(small_settings(tmp_path, ["torch.nn.LSTM"]))
    assert "**Unfinished:**" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("recorded", "markdown", "missing", "kept", "gone"),
    [
        ("end-to-end-cpu-amd-zen5", end_to_end_markdown, {"translation": None}, "target tokens/s", "sentences"),
        ("language-model-cpu", language_model_markdown, {"training": []}, "whole process, s", "target tokens/s"),
    ],
)
def test_what_was_measured_before_an_end_is_in_a_table(recorded, markdown, missing, kept, gone, tmp_path):
    result = json.loads((ROOT / "benchmarks" / "results" / recorded / "results.json").read_text())
    comparison.write_results(result | missing | {"complete": False}, tmp_path, markdown)
    table = (tmp_path / "results.md").read_text()
    assert table.startswith("**Unfinished:**") and kept in table and gone not in table
    whole = markdown(result)
    assert gone in whole and "Unfinished" not in whole


def log_line(updates: int, wpb: float, wps: float) -> str:
    values = {"epoch": 1, "loss": "9", "wps": str(wps), "wpb": str(wpb), "num_updates": str(updates)}
    return f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(values)}\n"


def test_training_speed_is_tokens_over_seconds_after_the_warm_up(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("noise\n" + log_line(5, 99, 1) + log_line(10, 100, 50) + log_line(15, 100, 100))
    intervals = fairseq_runs.read_intervals(log, 5, 5)
    assert [(part.tokens, part.seconds) for part in intervals] == [(500, 10), (500, 5)]
    training = fairseq_runs.Training(tuple(intervals), 1)
    assert training.tokens_per_second == pytest.approx(1000 / 15)
    with pytest.raises(UserError, match="raise --updates"):
        fairseq_runs.read_intervals(log, 5, 15)


def test_translating_speed_is_what_fairseq_says(tmp_path):
    log = tmp_path / "generate.log"
    log.write_text(
        "H-1\t-0.5\tb b\nH-0\t-0.5\ta\n| INFO | fairseq_cli.generate | Translated 1,002 sentences "
        "(13,123 tokens) in 8.6s (116.20 sentences/s, 1524.32 tokens/s)\n"
    )
    done = fairseq_runs.read_translation(log)
    assert (done.sentences, done.sentences_per_second, done.hypotheses) == (1002, 116.2, ("a", "b b"))
    log.write_text("H-0\t-0.5\ta\n")
    with pytest.raises(UserError, match="run again"):
        fairseq_runs.read_translation(log)


def test_evaluating_speed_is_what_fairseq_says(tmp_path):
    log = tmp_path / "eval.log"
    log.write_text(
        "| INFO | fairseq_cli.eval_lm | Evaluated 82,430 tokens in 4.1s (20104.87 tokens/s)\n"
        "| INFO | fairseq_cli.eval_lm | Loss (base 2): 7.1234, Perplexity: 139.41\n"
    )
    assert fairseq_runs.read_evaluation(log, 6.5) == fairseq_runs.Evaluation(82430, 20104.87, 139.41, 6.5)
    log.write_text("| INFO | fairseq_cli.eval_lm | Evaluated 82,430 tokens in 4.1s (20104.87 tokens/s)\n")
    with pytest.raises(UserError, match="run again"):
        fairseq_runs.read_evaluation(log, 6.5)


def test_the_arms_differ_in_model_and_criterion_alone(tiny_data):
    configs = {}
    for arm, options in end_to_end.ARMS.items():
        given = [*options, *end_to_end.RECIPE, "--encoder-bidirectional", "--max-tokens", 400]
        configs[arm] = training_config(tiny_data, "--cpu", *given)
    stock, ours = configs["lstm"], configs["g2lstm"]
    for part in ("dataset", "optimization", "optimizer", "lr_scheduler", "task"):
        assert stock[part] == ours[part], part
    from fairseq_g2lstm.config import resolve

    resolved = resolve(ours.model)
    for name, value in vars(stock.model).items():
        if name.startswith(("encoder_", "decoder_", "dropout", "share_")):
            assert getattr(resolved, name) == value, name


@pytest.mark.parametrize("size", language_model.SIZES.values(), ids=str)
def test_the_language_models_differ_in_model_task_and_criterion_alone(tiny_text, size):
    configs = {}
    for arm, options in language_model.ARMS.items():
        configs[arm] = training_config(tiny_text, "--cpu", *options, *language_model.RECIPE, *size.options)
    stock, ours = configs["lstm_lm"], configs["g2lstm_lm"]
    for part in ("optimization", "lr_scheduler"):
        assert stock[part] == ours[part], part
    for name in ("_name", "lr", "momentum", "weight_decay"):
        assert getattr(stock.optimizer, name) == getattr(ours.optimizer, name), name
    for name, value in stock.task.items():
        assert name == "_name" or ours.task[name] == value, name
    assert {name for name, value in stock.dataset.items() if ours.dataset[name] != value} == {
        "required_batch_size_multiple"  # the plugin's task takes the rows as they are
    }
    from fairseq_g2lstm.config_lm import layer_sizes, resolve

    resolved = resolve(ours.model)
    assert layer_sizes(resolved) == [stock.model.decoder_hidden_size] * stock.model.decoder_layers == [size.units] * 2
    for name, value in vars(stock.model).items():
        if name.startswith(("decoder_embed", "decoder_out", "decoder_dropout", "dropout", "share_")):
            assert getattr(resolved, name) == value, name


@pytest.mark.slow
def test_the_end_to_end_benchmark_trains_and_translates_with_both_arms(tiny_data, train, tmp_path):
    stock = train("stock", "--max-update", 4, "--disable-validation", arch="lstm") / "checkpoint_last.pt"
    out, work = tmp_path / "out", tmp_path / "work"
    done = run_module(
        *("benchmarks.run", "end-to-end", "--smoke", "--device", "cpu", "--threads", 1, "--data", tiny_data),
        *("--checkpoint", stock, "--encoders", "two", "--work", work, "--out", out),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "results.json").read_text())
    assert result["complete"]
    (training,) = result["training"]
    assert (training["encoder"], training["same_batches"]) == ("two", True)
    for arm in ("lstm", "g2lstm"):
        (one,) = training["runs"][arm]
        assert [interval["updates"] for interval in one["intervals"]] == [2, 2]
        assert one["peak_memory"] > 2**20
    translation = result["translation"]
    assert translation["sentences"] == translation["identical"] == 40
    table = (out / "results.md").read_text()
    assert table in done.stdout
    for row in ("| two | float32 | target tokens/s |", "| two | float32 | peak memory, MiB |", "sentences/s, beam 5"):
        assert row in table
    # results are committed: nothing in them tells the machine's folders
    assert str(tmp_path) not in (out / "results.json").read_text() + table


@pytest.mark.slow
def test_the_benchmark_of_the_gates_log_trains_with_and_without_it(tiny_data, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    done = run_module(
        *("benchmarks.run", "gate-log", "--smoke", "--device", "cpu", "--threads", 1, "--data", tiny_data),
        *("--work", work, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "results.json").read_text())
    assert result["complete"] and result["training"][0]["same_batches"]
    assert len(result["training"][0]["record"]["values_updates"]) == 1
    logs = {path.parent.name: read_gate_log(path) for path in (work / "gate-log").glob("*/gates.jsonl")}
    assert {arm: {record["update"] for record in log} for arm, log in logs.items()} == {"2": {0, 2, 4}}
    table = (out / "results.md").read_text()
    assert table in done.stdout and table == gate_log_markdown(result)
    assert str(tmp_path) not in (out / "results.json").read_text() + table


@pytest.mark.parametrize("first", [20, 21])
def test_a_record_of_the_gates_takes_what_recorded_updates_take_longer_than_the_same_without(first):
    def training(after_even: float, after_odd: float) -> fairseq_runs.Training:
        seconds = [after_odd if (first + number) % 2 else after_even for number in range(6)]
        return fairseq_runs.Training(tuple(fairseq_runs.Interval(1, 1.0, part) for part in seconds), 0)

    # Batches after an even number of updates are larger; in the second round the machine is half as fast.
    without = [training(0.3, 0.2), training(0.6, 0.4)]
    recorded = [training(0.36, 0.2), training(0.72, 0.4)]
    found = gate_log.compare({"never": without, "recorded": recorded}, first)
    assert found["record"]["values_updates"] == [pytest.approx(0.2)] * 2
    assert found["share_at_usual"] == pytest.approx(0.002) and found["usual"] == 100
    assert found["update"]["values_s"] == [pytest.approx(0.25), pytest.approx(0.5)]


@pytest.mark.slow
def test_the_language_model_benchmark_evaluates_and_trains_with_all_arms(tiny_text, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    done = run_module(
        *("benchmarks.run", "language-model", "--smoke", "--device", "cpu", "--threads", 1, "--data", tiny_text),
        *("--blocks", "3x7", "--work", work, "--out", out),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "results.json").read_text())
    assert result["complete"] and set(result["settings"]["data"]["sha256"]) == {"train.bin", "test.bin"}
    (evaluation,) = result["evaluation"]
    assert (evaluation["units"], evaluation["n_rows"], evaluation["block_length"]) == (16, 3, 7)
    # all of the text: with so few types fairseq stores a token in two bytes
    assert evaluation["same_tokens"] and evaluation["tokens"] == (tiny_text / "test.bin").stat().st_size // 2
    assert evaluation["same_perplexity"]
    evaluations = [line for line in done.stdout.splitlines() if line.startswith("OMP_NUM_THREADS=1 fairseq-eval-lm")]
    assert ["--task g2lstm_language_modeling" in line for line in evaluations] == [False, False, True]
    for name in ("tokens/s", "process"):
        assert set(evaluation[name]["ratios"]) == {"g2lstm_lm", "g2lstm_lm carried"}
    weights = [
        read_checkpoint(work / "language-model" / f"16-{arm}" / "checkpoint_last.pt")["model"]
        for arm in language_model.ARMS
    ]
    assert set(weights[1]) - set(weights[0]) == {"gates.values"}
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    (training,) = result["training"]
    assert (training["units"], training["n_rows"], training["block_length"]) == (16, 4, 5)
    for arm in ("lstm_lm", "g2lstm_lm"):
        (one,) = training["runs"][arm]
        assert [interval["updates"] for interval in one["intervals"]] == [2, 2]
        assert one["peak_memory"] > 2**20
    table = (out / "results.md").read_text()
    assert table in done.stdout and table == language_model_markdown(result)
    for row in ("3 × 7 | tokens/s", "3 × 7 | whole process, s", "3 × 7 | perplexity"):
        assert f"| 16 | {row} |" in table
    assert "| 16 | 4 × 5 | float32 | peak memory, MiB |" in table
    assert str(tmp_path) not in (out / "results.json").read_text() + table


@pytest.mark.slow
def test_without_data_a_text_is_made_once(tmp_path, capfd):
    pytest.importorskip("babel", reason="babel is not installed")
    pytest.importorskip("num2words", reason="num2words is not installed")
    data = language_model.embedded_text(tmp_path, True, 1)
    assert {"dict.txt", "train.bin", "test.bin"} <= {path.name for path in data.iterdir()}
    capfd.readouterr()
    assert language_model.embedded_text(tmp_path, True, 1) == data
    assert "fairseq-preprocess" not in capfd.readouterr().out


def evaluated(slower: str = "", **more: object) -> dict[str, object]:
    """What stands in results.json of evaluations of two rounds, where one arm may be half as fast as stock."""
    arms = ("lstm_lm", "g2lstm_lm", "g2lstm_lm carried")
    speeds = {arm: Spread((500.0, 500.0) if arm == slower else (1000.0, 1000.0)) for arm in arms}
    bar = LANGUAGE_MODEL_BARS["cpu"]["evaluation tokens/s"]
    found: dict[str, object] = {
        name: {
            **{arm: spread.as_dict(unit) for arm, spread in speeds.items()},
            "ratios": {arm: comparison.against(speeds[arm], speeds["lstm_lm"], limit) for arm in arms[1:]},
        }
        for name, unit, limit in (("tokens/s", "tokens_per_s", bar), ("process", "s", None))
    }
    row = {"units": 200, "n_rows": 20, "block_length": 35, "tokens": 82430, "same_tokens": True}
    row |= {"same_perplexity": True, "perplexity": {"lstm_lm": 99.5, "g2lstm_lm": 99.5, "g2lstm_lm carried": 90.0}}
    settings = {"rounds": 2, "warmup": 2, "updates": 4, "checkpoint_updates": 4, "recipe": "r", "sizes": {"200": "s"}}
    settings["data"] = {"types": {"dict.txt": 9999}}
    rows = {"evaluation": [{**row, **found, **more}], "training": []}
    return {"complete": True, "settings": settings, **rows, **DESCRIBED}


def test_both_arms_speed_of_evaluation_stands_beside_the_bar():
    table = language_model_markdown(evaluated("g2lstm_lm carried"))
    assert (
        "| 200 | 20 × 35 | tokens/s | 1,000 (0) | 1,000 (0) | 1.00 (0.00) | ≥ 1, met "
        "| 500 (0) | 0.50 (0.00) | ≥ 1, **not met** |"
    ) in table
    assert "| 200 | 20 × 35 | perplexity | 99.50 | 99.50 |  |  | 90.00 |  |  |" in table


@pytest.mark.parametrize("missing", ["same_tokens", "same_perplexity"])
def test_an_evaluation_of_something_else_is_marked(missing):
    assert "**not the same**" not in language_model_markdown(evaluated())
    assert "**not the same**" in language_model_markdown(evaluated(**{missing: False}))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["layer", "--shapes", "3,4,5"], "four sizes T,B,I,H"),
        (["layer", "--rounds", "0"], "must be a whole number >= 1"),
        (["layer", "--peers", "haste"], "invalid choice"),
        (["end-to-end", "--encoders", "three"], "invalid choice"),
        (["language-model", "--blocks", "20"], "ROWSxTOKENS"),
        (["language-model", "--blocks", "20x0"], "must be a whole number >= 1"),
        (["language-model", "--units", "100"], "invalid choice"),
    ],
)
def test_a_wrong_option_gets_a_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        run.parse_arguments(arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_cuda_without_a_gpu_gets_a_sentence():
    with pytest.raises(UserError, match="--device cuda needs a GPU"):
        run.parse_arguments(["layer", "--device", "cuda"])


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("end-to-end", "fairseq-preprocess wrote: it lacks dict.*.txt, train.*.bin or test.*.bin"),
        ("gate-log", "fairseq-preprocess wrote: it lacks dict.*.txt or train.*.bin"),
        ("language-model", "fairseq-preprocess --only-source wrote: it lacks dict.txt, train.bin or test.bin"),
    ],
)
def test_a_folder_without_data_gets_a_sentence(mode, sentence, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"is no folder that {sentence}")):
        run.main([mode, "--smoke", "--device", "cpu", "--data", str(tmp_path)])


def test_default_results_go_beside_the_recorded_ones():
    options = run.parse_arguments(["layer", "--device", "cpu"])
    assert options.out == run.ROOT / "benchmarks/results/layer-cpu"
    options = run.parse_arguments(["end-to-end", "--smoke", "--device", "cpu"])
    assert options.out == run.ROOT / "runs/benchmark/end-to-end-cpu"
    assert options.threads == len(os.sched_getaffinity(0))
    options = run.parse_arguments(["language-model", "--device", "cpu"])
    assert options.out == run.ROOT / "benchmarks/results/language-model-cpu"
    assert (options.rounds, options.updates) == (3, 200)
