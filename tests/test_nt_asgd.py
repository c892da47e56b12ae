"""The optimiser nt_asgd: SGD, its averages, what is saved; and the trigger that starts the averaging."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fairseq_g2lstm.optim.nt_asgd import NTASGD, find_nt_asgd
from fairseq_g2lstm.tasks.averaging import NonMonotonicTrigger


def make(weights: list[Tensor], lr: float = 0.5, weight_decay: float = 0.0) -> NTASGD:
    config = SimpleNamespace(lr=[lr], weight_decay=weight_decay, asgd_nonmono=5)
    return NTASGD(config, [nn.Parameter(weight) for weight in weights])


def take_steps(optimizer: NTASGD, n_steps: int, seed: int = 1) -> list[list[Tensor]]:
    """Steps with random gradients; the weights after each."""
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(n_steps):
        for weight in optimizer.params:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        optimizer.step()
        history.append([weight.detach().clone() for weight in optimizer.params])
    return history


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_before_averaging_it_is_sgd():
    optimizer, sgd = make(start(), weight_decay=0.1), torch.optim.SGD(start(), lr=0.5, weight_decay=0.1)
    history = take_steps(optimizer, 3)
    generator = torch.Generator().manual_seed(1)
    weights = sgd.param_groups[0]["params"]
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        sgd.step()
    for found, expected in zip(history[-1], weights, strict=True):
        torch.testing.assert_close(found, expected)


def test_without_a_task_that_starts_the_averaging_it_says_so_once(caplog: pytest.LogCaptureFixture):
    take_steps(make(start()), 2)
    assert caplog.text.count("this task never starts the averaging") == 1
    watched, never = make(start()), make(start())
    watched.watched, never.cfg.asgd_nonmono = True, 0
    for optimizer in (watched, never):
        take_steps(optimizer, 1)
    assert caplog.text.count("this task never starts the averaging") == 1


def test_averaging_leaves_the_weights_that_sgd_moves_as_they_were():
    plain, averaged = make(start(), weight_decay=0.1), make(start(), weight_decay=0.1)
    averaged.start_averaging()
    for found, expected in zip(take_steps(averaged, 4), take_steps(plain, 4), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_averages_are_the_means_since_averaging_started():
    # torch's ASGD with t0 = 0, as AWD-LSTM uses it, counts from its second step on
    optimizer = make(start())
    take_steps(optimizer, 3)
    optimizer.start_averaging()
    history = take_steps(optimizer, 5, seed=2)
    optimizer.use_averages()
    for number, average in enumerate(optimizer.params):
        expected = torch.stack([weights[number] for weights in history[1:]]).mean(0)
        torch.testing.assert_close(average.detach(), expected)


def test_a_scheduler_of_the_first_optimiser_moves_the_averaging_ones_learning_rate():
    # as fairseq's reduce_lr_on_plateau, which keeps what it found when it was built
    optimizer, resumed = make(start(), lr=1.0), make(start(), lr=1.0)
    scheduler, other = (ReduceLROnPlateau(each.optimizer, factor=0.5, patience=0) for each in (optimizer, resumed))
    scheduler.step(1.0)
    optimizer.start_averaging()
    take_steps(optimizer, 2)
    scheduler.step(2.0)
    assert optimizer.get_lr() == 0.5
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.averaging and resumed.get_lr() == 0.5
    other.step(1.0)
    other.step(2.0)
    assert resumed.get_lr() == 0.25 and optimizer.get_lr() == 0.5


def test_a_learning_rate_holds_from_the_step_it_is_set_for():
    optimizer = make([torch.zeros(1, dtype=torch.float64)])
    optimizer.start_averaging()
    weight = next(iter(optimizer.params))
    for lr in (0.5, 2.0, 0.25):
        before = weight.item()
        optimizer.set_lr(lr)
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        assert before - weight.item() == pytest.approx(lr)


def test_averages_and_weights_change_places_and_back():
    optimizer = make(start())
    optimizer.start_averaging()
    (*_, last) = take_steps(optimizer, 3)
    for _ in range(2):
        optimizer.use_averages()
        optimizer.use_averages()
        assert not torch.equal(next(iter(optimizer.params)), last[0])
        optimizer.use_raw()
        optimizer.use_raw()
        for found, expected in zip(optimizer.params, last, strict=True):
            assert torch.equal(found, expected)


def test_a_step_goes_from_the_weights_even_while_the_averages_are_in_place():
    one, other = make(start()), make(start())
    for optimizer in (one, other):
        optimizer.start_averaging()
        take_steps(optimizer, 2)
    one.use_averages()
    torch.testing.assert_close(take_steps(one, 1, seed=3), take_steps(other, 1, seed=3))


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(averaging: bool, in_place: bool):
    optimizer = make(start())
    if averaging:
        optimizer.start_averaging()
    take_steps(optimizer, 3)
    if in_place:
        optimizer.use_averages()
    saved = copy.deepcopy(optimizer.state_dict())
    weights = [weight.detach().clone() for weight in optimizer.params]
    assert saved["averaging"] is averaging
    if averaging:
        assert ("raw" in saved["state"][0]) == in_place
    resumed = make(weights)
    resumed.load_state_dict(saved)
    expected, found = take_steps(optimizer, 3, seed=4), take_steps(resumed, 3, seed=4)
    optimizer.use_averages()
    resumed.use_averages()
    expected.append([w.detach() for w in optimizer.params])
    found.append([w.detach() for w in resumed.params])
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_state_of_another_optimiser_is_refused():
    other = torch.optim.SGD(start(), lr=0.5).state_dict()
    with pytest.raises(ValueError, match="the state of another optimiser than nt_asgd: give --reset-optimizer"):
        make(start()).load_state_dict(other)


def test_what_was_saved_on_a_gpu_goes_on_without_one():
    optimizer = make(start())
    optimizer.start_averaging()
    take_steps(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    assert [group["capturable"] for group in saved["param_groups"]] == [False]
    saved["param_groups"][0]["capturable"] = True
    resumed = make([weight.detach().clone() for weight in optimizer.params])
    resumed.load_state_dict(saved)
    torch.testing.assert_close(take_steps(resumed, 1, seed=3), take_steps(optimizer, 1, seed=3))


def test_before_the_first_step_there_are_no_averages_to_use():
    optimizer = make(start())
    optimizer.start_averaging()
    optimizer.use_averages()
    assert torch.equal(next(iter(optimizer.params)), start()[0])
    take_steps(optimizer, 1)


def test_it_is_found_inside_a_wrapper_and_not_in_others():
    optimizer = make(start())
    assert find_nt_asgd(optimizer) is optimizer
    assert find_nt_asgd(SimpleNamespace(fp32_optimizer=optimizer)) is optimizer
    assert find_nt_asgd(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("losses", "nonmono", "fires_at"),
    [
        ([5, 4, 3, 2, 1, 0], 2, None),
        ([5, 4, 3, 3.5, 3.2, 3.1], 2, 5),  # 3.1 is above 3, which lies more than two validations before
        ([5, 4, 3, 3.5, 2.9, 2.8], 2, None),
        ([5, 6, 7, 8], 2, 3),
        ([5, 6, 7, 8], 0, None),
        ([5, 6, 7], 1, 2),
    ],
)
def test_the_trigger_fires_when_the_loss_is_above_the_lowest_of_long_ago(losses, nonmono, fires_at):
    trigger, fired = NonMonotonicTrigger(), []
    for loss in losses:
        trigger.see(loss, nonmono)
        fired.append(trigger.fired)
    expected = len(losses) if fires_at is None else fires_at
    assert fired == [number >= expected for number in range(len(losses))]


def test_the_trigger_goes_on_from_a_checkpoint():
    whole, first, second = NonMonotonicTrigger(), NonMonotonicTrigger(), NonMonotonicTrigger()
    for loss in (5, 4, 3):
        whole.see(loss, 2)
        first.see(loss, 2)
    second.load_state_dict(first.state_dict())
    for loss in (3.5, 3.6, 3.7):
        whole.see(loss, 2)
        second.see(loss, 2)
    assert second.state_dict() == whole.state_dict() and second.fired
