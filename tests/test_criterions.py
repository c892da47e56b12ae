"""The criterions: fairseq's loss, the schedules in each training forward, and the gates' statistics in the log."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics
from fairseq.tasks.translation import TranslationTask
from omegaconf import OmegaConf
from tiny_runs import batch, build, build_stock, training_config
from torch import Tensor, nn

from fairseq_g2lstm import ops
from fairseq_g2lstm.criterions import G2LSTMCrossEntropyCriterion
from fairseq_g2lstm.models.g2lstm import G2LSTMModel

STOCK = {
    "g2lstm_cross_entropy": "cross_entropy",
    "g2lstm_label_smoothed_cross_entropy": "label_smoothed_cross_entropy",
}
SHARES = ["input_gates_low", "input_gates_high", "forget_gates_low", "forget_gates_high"]
# 15 updates make an epoch of the tiny corpus
TEMPERATURE = ["--gate-temperature-schedule", "linear", "--gate-temperature-start", 1.0]
TEMPERATURE += ["--gate-temperature-end", 0.5, "--gate-temperature-updates", 10]
NOISE = ["--gate-noise-schedule", "cosine", "--gate-noise-end", 0.6, "--gate-noise-updates", 8]


@cache
def criterion_config(name: str, *options: object) -> Any:
    arch = "g2lstm" if name.startswith("g2lstm") else "lstm"
    return training_config("data", "--arch", arch, "--criterion", name, *options).criterion


def criterion_of(task: TranslationTask, name: str, *options: object) -> Any:
    return task.build_criterion(criterion_config(name, *options))


@dataclass
class Forward:
    """One forward of the model in a training, with the modes that reached the operators."""

    training: bool
    num_updates: int
    modes: set[ops.GateMode] = field(default_factory=set)
    measured: bool = False

    @property
    def values(self) -> tuple[float, float]:
        (mode,) = self.modes
        return mode.temperature, mode.noise_prob


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[Forward]:
    """Every forward from here on."""
    seen: list[Forward] = []
    forward = G2LSTMModel.forward

    def watched_forward(model: G2LSTMModel, *inputs, **more):
        seen.append(Forward(model.training, model.num_updates))
        return forward(model, *inputs, **more)

    def watch(operator):
        def watched(*inputs, mode, need_gates, **more):
            seen[-1].modes.add(mode)
            seen[-1].measured |= need_gates
            return operator(*inputs, mode=mode, need_gates=need_gates, **more)

        return watched

    monkeypatch.setattr(G2LSTMModel, "forward", watched_forward)
    monkeypatch.setattr(ops, "lstm_layer", watch(ops.lstm_layer))
    monkeypatch.setattr(ops, "decoder", watch(ops.decoder))
    return seen


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture):
    """`logged(tag)` gives fairseq's log lines with --log-format json, as dictionaries of numbers."""
    caplog.set_level(logging.INFO)

    def lines(tag: str) -> list[dict[str, Any]]:
        found = [json.loads(record.getMessage()) for record in caplog.records if record.name == tag]
        prefix = "" if tag == "train_inner" else f"{tag}_"
        return [{k.removeprefix(prefix): float(v) for k, v in line.items() if v is not None} for line in found]

    return lines


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_are_those_of_fairseqs_criterion_measured_or_not(task, sample, name, training):
    options = ["--label-smoothing", 0.2] if "smoothed" in name else []
    model = build(task, dropout=0.3, gate_noise_prob=0.7).train(training)
    results = []
    for criterion in (
        criterion_of(task, STOCK[name], *options),
        criterion_of(task, name, *options, "--gate-stats-interval", 1),
        criterion_of(task, name, *options, "--gate-stats-interval", 0),
    ):
        torch.manual_seed(5)
        model.zero_grad()
        loss, sample_size, log = criterion.train(training)(model, sample)
        loss.backward()
        results.append((loss, sample_size, log, [weight.grad.clone() for weight in model.parameters()]))
    loss, sample_size, log, gradients = results[0]
    for other_loss, other_size, other_log, other_gradients in results[1:]:
        # The compiled loss sums in another order: some eps of float32 away.
        torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
        assert other_size == sample_size
        assert {key: float(other_log[key]) for key in log} == pytest.approx(
            {key: float(value) for key, value in log.items()}, rel=1e-6
        )
        for found, expected in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    (measured_loss, *_, measured), (unmeasured_loss, *_, unmeasured) = results[1:]
    assert torch.equal(measured_loss, unmeasured_loss)
    assert all(torch.equal(*pair) for pair in zip(measured, unmeasured, strict=True))
    assert "gate_count" in results[1][2]
    assert "gate_count" not in results[2][2]


def stock_arguments(stock: nn.Module, sample: dict) -> Iterator[Tensor]:
    """a (..., 2H) of every input and forget gate of a stock `lstm` on one sentence, step by step."""
    found: list[Tensor] = []

    def of_cell(cell, inputs, _output):
        x, (h, _) = inputs
        a = F.linear(x, cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
        found.append(a.chunk(2, dim=-1)[0])

    def of_lstm(lstm, inputs, _output):
        x = inputs[0].data
        for layer in range(lstm.num_layers):
            outputs = []
            for suffix in ("", "_reverse") if lstm.bidirectional else ("",):
                names = [f"{name}_l{layer}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                w_ih, w_hh, b_ih, b_hh = (getattr(lstm, name) for name in names)
                h = c = x.new_zeros(lstm.hidden_size)
                output = []
                for x_t in x.flip(0) if suffix else x:
                    a = w_ih @ x_t + b_ih + w_hh @ h + b_hh
                    i, f, g, o = a.chunk(4)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                    found.append(torch.cat((i, f)))
                    output.append(h)
                outputs.append(torch.stack(output).flip(0) if suffix else torch.stack(output))
            x = torch.cat(outputs, dim=-1)

    hooks = [cell.register_forward_hook(of_cell) for cell in stock.decoder.layers]
    hooks.append(stock.encoder.lstm.register_forward_hook(of_lstm))
    stock(**sample["net_input"])
    for hook in hooks:
        hook.remove()
    yield from found


def wide(model: nn.Module) -> nn.Module:
    """The model in float64 with weights so large that many gates are below 0.1 and many above 0.9."""
    with torch.no_grad():
        for weight in model.double().parameters():
            weight *= 12
    return model


def sharpen(stock: nn.Module, temperature: float) -> nn.Module:
    """Divides the rows of the input and forget gates, so that a stock model's a is a / tau."""
    with torch.no_grad():
        for module in (stock.encoder.lstm, *stock.decoder.layers):
            for weight in module.parameters():
                weight[: len(weight) // 2] /= temperature
    return stock


# gate type, training or not, evaluation mode, and the temperature of the noise-free gates at tau = 0.6
MEASURED = {
    "gumbel in training": ("gumbel", True, "auto", 0.6),
    "sharpened in training": ("sharpened", True, "auto", 0.6),
    "sigmoid in training": ("sigmoid", True, "auto", 1.0),
    "gumbel in evaluation": ("gumbel", False, "auto", 1.0),
    "sharpened in evaluation": ("sharpened", False, "auto", 0.6),
    "gumbel, tempered": ("gumbel", False, "tempered", 0.6),
}


@pytest.mark.parametrize("case", MEASURED)
def test_the_shares_are_those_of_a_stock_model_sentence_by_sentence(task, sample, case):
    gate_type, training, eval_mode, temperature = MEASURED[case]
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True}
    stock = wide(build_stock(task, **sizes)).eval()
    model = build(
        task, **sizes, gate_type=gate_type, gate_eval_mode=eval_mode, gate_temperature=0.6, gate_noise_prob=0.0
    ).double()
    model.load_state_dict(stock.state_dict())
    _, _, log = criterion_of(task, "g2lstm_cross_entropy", "--gate-stats-interval", 1)(model.train(training), sample)

    sharpen(stock, temperature)
    gates = torch.cat(
        [a.sigmoid().reshape(-1, 2, 9) for i in range(8) for a in stock_arguments(stock, batch(task, [i]))]
    )
    assert log["gate_count"] == gates[:, 0].numel()
    for number, kind in enumerate(("input", "forget")):
        assert log[f"{kind}_gates_low"] == (gates[:, number] < 0.1).sum()
        assert log[f"{kind}_gates_high"] == (gates[:, number] > 0.9).sum()
        assert log["gate_count"] / 20 < log[f"{kind}_gates_low"] < log["gate_count"] / 2


def test_the_shares_in_training_leave_the_noise_out(task, sample):
    model = wide(build(task, encoder_bidirectional=True, gate_noise_prob=1.0, gate_temperature=0.6))
    with torch.no_grad():  # without recurrence no noise reaches a later pre-activation
        for name, weight in model.encoder.lstm.named_parameters():
            if name.startswith("weight_hh"):
                weight.zero_()
        model.decoder.layers[0].weight_hh.zero_()
        model.decoder.layers[0].weight_ih[:, 7:].zero_()
    criterion = criterion_of(task, "g2lstm_cross_entropy", "--gate-stats-interval", 1)
    noisy_loss, _, noisy = criterion(model.train(), sample)
    model.option_settings = model.option_settings.with_values(0.6, 0.0)
    loss, _, noise_free = criterion(model, sample)
    assert not torch.allclose(noisy_loss, loss)
    assert [noisy[key] for key in SHARES] == [noise_free[key] for key in SHARES]
    assert 0 < noisy["input_gates_low"] < noisy["gate_count"]


def test_hard_gates_are_all_counted(task, sample):
    model = build(task, gate_eval_mode="hard").eval()
    _, _, log = criterion_of(task, "g2lstm_cross_entropy")(model, sample)
    assert log["input_gates_low"] + log["input_gates_high"] == log["gate_count"]


def test_logs_of_several_batches_are_pooled_by_their_gates(task):
    def log(count, low, temperature):
        gates = dict.fromkeys(SHARES, low) | {"gate_count": count} if count else {}
        loss = {"loss": torch.tensor(2.0), "ntokens": 3, "sample_size": 3}
        return {**loss, "gate_forwards": 1, "gumbel_temperature": temperature, "gumbel_noise_prob": 0.25, **gates}

    with metrics.aggregate(new_root=True) as aggregator:
        G2LSTMCrossEntropyCriterion.reduce_metrics([log(10, 4.0, 0.5), log(30, 0.0, 0.7), log(0, 0.0, 0.9)])
    values = aggregator.get_smoothed_values()
    assert [values[key] for key in SHARES] == [0.1] * 4
    assert values["gumbel_temperature"] == pytest.approx(0.7)
    assert values["gumbel_noise_prob"] == 0.25
    with metrics.aggregate(new_root=True) as aggregator:
        G2LSTMCrossEntropyCriterion.reduce_metrics([log(0, 0.0, 0.9)])
    assert not set(SHARES) & set(aggregator.get_smoothed_values())


@pytest.mark.parametrize("name", STOCK)
def test_the_log_has_temperature_noise_and_shares(train, logged, name):
    options = [*TEMPERATURE, *NOISE, "--gate-stats-interval", 1, "--log-format", "json"]
    train("run", "--criterion", name, *options, "--max-update", 15)
    for tag in ("train_inner", "train", "valid"):
        for line in logged(tag):
            assert all(0 <= line[key] <= 1 for key in SHARES)
            assert line["input_gates_low"] + line["input_gates_high"] <= 1
    # five updates a line: 1.0, 0.95, ... in the first
    assert [line["gumbel_temperature"] for line in logged("train_inner")] == [0.9, 0.65, 0.5]
    assert [line["gumbel_noise_prob"] for line in logged("train_inner")][2] == 0.6
    assert logged("train")[0]["gumbel_temperature"] == pytest.approx((0.9 + 0.65 + 0.5) / 3, abs=1e-4)
    assert [(line["gumbel_temperature"], line["gumbel_noise_prob"]) for line in logged("valid")] == [(0.5, 0.6)]
    assert logged("valid")[0]["forget_gates_high"] > 0


@pytest.mark.parametrize("update_freq", [1, 2])
def test_every_training_forward_has_its_updates_temperature_and_noise(train, forwards, update_freq):
    train("run", *TEMPERATURE, *NOISE, "--update-freq", update_freq, "--max-update", 12)
    training = [forward for forward in forwards if forward.training]
    assert [forward.num_updates for forward in training[::update_freq]] == list(range(12))
    for forward in training:
        n = forward.num_updates
        temperature, noise_prob = forward.values
        assert temperature == pytest.approx(max(1.0 - 0.05 * n, 0.5))
        # half a cosine from the option, 0.2, to 0.6 in 8 updates, by its values at the quarters
        if n % 2 == 0:
            assert noise_prob == pytest.approx(
                {0: 0.2, 2: 0.4 - 0.2 * 0.5**0.5, 4: 0.4, 6: 0.4 + 0.2 * 0.5**0.5}.get(n, 0.6)
            )
    (validation,) = {forward.values for forward in forwards if not forward.training}
    assert validation == (1.0, 0.0)


def test_validation_is_tempered_by_the_last_updates_temperature(train, forwards):
    train("run", *TEMPERATURE, "--gate-type", "sharpened", "--max-update", 5)
    assert not forwards[-1].training
    assert forwards[-1].values == (pytest.approx(0.8), 0.0)
    assert [forward.values[0] for forward in forwards if forward.training][-1] == pytest.approx(0.8)


def test_the_schedule_is_applied_in_training_forwards_alone(task, sample):
    model = build(task)
    criterion = criterion_of(task, "g2lstm_cross_entropy", *TEMPERATURE)
    model.set_num_updates(4)
    criterion(model.eval(), sample)
    assert model.gate_settings.temperature == 0.9
    criterion(model.train(), sample)
    assert model.gate_settings.temperature == pytest.approx(0.8)


@pytest.mark.parametrize(("interval", "measured"), [(3, [0, 3, 6, 9]), (0, [])])
def test_the_gates_are_measured_every_so_many_updates(train, forwards, interval, measured):
    train("run", "--gate-stats-interval", interval)
    assert [forward.num_updates for forward in forwards if forward.training and forward.measured] == measured
    validations = [forward.measured for forward in forwards if not forward.training]
    assert validations and set(validations) == {interval > 0}


@pytest.mark.parametrize("how", ["finetuned", "resumed"])
def test_under_a_plain_criterion_the_options_hold_whatever_a_schedule_did_before(train, forwards, how):
    before = train("before", *TEMPERATURE, *NOISE, "--max-update", 15) / "checkpoint_last.pt"
    options = ["--finetune-from-model", before]
    if how == "resumed":
        options = ["--restore-file", before, "--reset-optimizer", "--reset-lr-scheduler", "--reset-meters"]
    forwards.clear()
    train("after", "--criterion", "cross_entropy", *options, "--max-update", 18)
    training = [forward for forward in forwards if forward.training]
    assert len(training) > 0
    assert {forward.values for forward in training} == {(0.9, 0.2)}


def test_another_model_under_the_criterion_gets_a_sentence(train):
    with pytest.raises(
        ValueError, match="criterions need a g2lstm or g2lstm_lm model, got LSTMModel: for other models use cross_ent"
    ):
        train("run", "--criterion", "g2lstm_cross_entropy", arch="lstm")


def test_a_model_wrapped_for_distribution_is_found(task, sample):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs, **more):
            return self.module(*inputs, **more)

        def get_normalized_probs(self, *inputs, **more):
            return self.module.get_normalized_probs(*inputs, **more)

        def get_targets(self, *inputs):
            return self.module.get_targets(*inputs)

    model = build(task)
    criterion_of(task, "g2lstm_cross_entropy", *TEMPERATURE)(Wrapper(Wrapper(model)), sample)
    assert model.gate_settings.temperature == 1.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gate-temperature-schedule", "linear"], "--gate-temperature-schedule linear needs --gate-temperature-end"),
        (["--gate-noise-end", 0.1], "--gate-noise-end needs --gate-noise-schedule linear, exponential or cosine"),
        (["--gate-temperature-start", 0], "--gate-temperature-start must be > 0 and finite, got 0.0"),
        (["--gate-noise-start", 1.5], "--gate-noise-start must be a probability between 0 and 1, got 1.5"),
        ([*NOISE, "--gate-noise-updates", 0], "--gate-noise-updates must be > 0, got 0"),
        (["--gate-stats-interval", -1], "--gate-stats-interval must be >= 0 .*, got -1"),
    ],
)
def test_bad_options_get_a_sentence(task, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        criterion_of(task, "g2lstm_label_smoothed_cross_entropy", *options)


@pytest.mark.parametrize(
    ("gate_type", "eval_mode", "without", "logged"),
    [
        ("gumbel", "auto", [], (1.0, 0.2)),
        ("sharpened", "auto", ["noise"], (1.0, 0.0)),
        ("sigmoid", "auto", ["noise", "temperature"], (1.0, 0.0)),
        ("sigmoid", "tempered", ["noise"], (1.0, 0.0)),
    ],
)
def test_a_schedule_of_what_gates_do_not_have_is_said_once(
    task, sample, caplog, gate_type, eval_mode, without, logged
):
    criterion = criterion_of(task, "g2lstm_cross_entropy", *TEMPERATURE, *NOISE)
    model = build(task, gate_type=gate_type, gate_eval_mode=eval_mode)
    for _ in range(2):
        _, _, log = criterion(model, sample)
    said = [record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()]
    assert said == [
        f"the schedule of --gate-{what} changes nothing: gates of type {gate_type} have no {what}" for what in without
    ]
    assert (log["gumbel_temperature"], log["gumbel_noise_prob"]) == pytest.approx(logged)


def test_a_configuration_from_before_the_options_gets_their_defaults(task, sample):
    old = OmegaConf.create({"_name": "g2lstm_cross_entropy", "sentence_avg": False}, flags={"struct": True})
    criterion = G2LSTMCrossEntropyCriterion.build_criterion(old, task)
    model = build(task, gate_temperature=0.7)
    _, _, log = criterion(model, sample)
    assert (log["gumbel_temperature"], log["gumbel_noise_prob"]) == (0.7, 0.2)
    assert criterion.gate_stats_interval == 10


def test_an_adaptive_softmax_trains(train, logged):
    options = ["--adaptive-softmax-cutoff", "8,16", "--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp"]
    train("run", *options, "--max-update", 30, "--log-format", "json")
    first, *_, last = (line["loss"] for line in logged("train_inner"))
    assert last < 0.9 * first < 10


@pytest.mark.usefixtures("own_writers")
def test_tensorboard_gets_the_values(train, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train("run", *TEMPERATURE, "--gate-stats-interval", 1, "--max-update", 15, "--tensorboard-logdir", tmp_path / "tb")

    def scalars(tag: str, key: str) -> list[tuple[int, float]]:
        events = accumulators.EventAccumulator(str(tmp_path / "tb" / tag)).Reload()
        return [(event.step, event.value) for event in events.Scalars(key)]

    assert scalars("train_inner", "gumbel_temperature") == [
        (step, pytest.approx(value)) for step, value in ((5, 0.9), (10, 0.65), (15, 0.5))
    ]
    assert scalars("valid", "gumbel_noise_prob") == [(15, pytest.approx(0.2))]
    for tag in ("train_inner", "train", "valid"):
        for key in SHARES:
            assert all(0 <= value <= 1 for _, value in scalars(tag, key))
