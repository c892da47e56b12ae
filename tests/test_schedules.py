"""Schedules of the temperature and the noise probability: their values, and sentences for what makes no schedule."""

import math

import pytest

from fairseq_g2lstm.schedules import SCHEDULES, Schedule
from fairseq_g2lstm.settings import check_probability, check_temperature


def temperature(kind="constant", start=None, end=None, updates=None) -> Schedule:
    return Schedule("--gate-temperature", kind, start, end, updates, check_temperature)


def noise(kind="constant", start=None, end=None, updates=None) -> Schedule:
    return Schedule("--gate-noise", kind, start, end, updates, check_probability)


# From 0.8 to 0.2 in 12 updates; the middle by hand: the mean for linear and cosine, sqrt(0.8 * 0.2) = 0.4 for
# exponential. A third of the way: 0.8 - 0.6 / 3; 0.8 * 4 ** (-1 / 3); 0.5 + 0.3 * cos(60 degrees).
VALUES = {
    "linear": {0: 0.8, 4: 0.6, 6: 0.5, 12: 0.2, 13: 0.2, 10**6: 0.2},
    "exponential": {0: 0.8, 4: 0.8 * 0.25 ** (1 / 3), 6: 0.4, 12: 0.2, 13: 0.2, 10**6: 0.2},
    "cosine": {0: 0.8, 4: 0.65, 6: 0.5, 12: 0.2, 13: 0.2, 10**6: 0.2},
}


@pytest.mark.parametrize("make", [temperature, noise])
@pytest.mark.parametrize("kind", VALUES)
def test_a_schedule_goes_from_start_to_end_and_stays_there(kind, make):
    schedule = make(kind, 0.8, 0.2, 12)
    for num_updates, value in VALUES[kind].items():
        assert schedule.value(num_updates, option=0.3) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", VALUES)
def test_a_schedule_ends_exactly_at_its_end(kind):
    # 0.7 and 0.1 have no exact halves or differences in binary
    assert temperature(kind, 0.7, 0.1, 7).value(7, option=0.9) == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("kind", VALUES)
def test_a_schedule_may_rise(kind):
    values = [temperature(kind, 0.25, 1.0, 9).value(n, option=0.9) for n in range(10)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.25, 1.0)


def test_a_constant_schedule_is_the_option_or_the_start_given():
    assert [temperature().value(n, option=0.7) for n in (0, 1, 10**6)] == [0.7, 0.7, 0.7]
    assert [temperature(start=0.5).value(n, option=0.7) for n in (0, 10**6)] == [0.5, 0.5]


@pytest.mark.parametrize("kind", VALUES)
def test_without_a_start_a_schedule_starts_at_the_option(kind):
    schedule = temperature(kind, None, 0.2, 12)
    assert schedule.value(0, option=0.8) == 0.8
    assert schedule.value(6, option=0.8) == pytest.approx(VALUES[kind][6])
    assert schedule.value(0, option=0.5) == 0.5


@pytest.mark.parametrize("kind", VALUES)
def test_a_schedule_is_a_pure_function_of_the_update(kind):
    schedule = temperature(kind, 0.8, 0.2, 12)
    forwards = [schedule.value(n, option=0.9) for n in range(20)]
    backwards = [schedule.value(n, option=0.9) for n in reversed(range(20))]
    fresh = [temperature(kind, 0.8, 0.2, 12).value(n, option=0.9) for n in range(20)]
    assert forwards == backwards[::-1] == fresh
    with pytest.raises(AttributeError):
        schedule.end = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_noise_may_fade_to_nothing(kind):
    assert noise(kind, 0.2, 0.0, 4).value(4, option=0.2) == 0.0
    assert noise(kind, 0.0, 1.0, 4).value(4, option=0.2) == 1.0


BAD_SCHEDULES = {
    "unknown kind": (temperature, ("sine", 1.0, 0.5, 9), "--gate-temperature-schedule must be one of constant, linear, "
                     "exponential, cosine, got 'sine'"),
    "no updates": (temperature, ("linear", 1.0, 0.5, 0), "--gate-temperature-updates must be > 0, got 0: the schedule "
                   "would end before it starts"),
    "ends before it starts": (noise, ("cosine", 0.2, 0.5, -3), "--gate-noise-updates must be > 0, got -3"),
    "end of a constant": (temperature, ("constant", 1.0, 0.5, None), "--gate-temperature-end needs "
                          "--gate-temperature-schedule linear, exponential or cosine, got constant"),
    "updates of a constant": (noise, ("constant", None, None, 9), "--gate-noise-updates needs --gate-noise-schedule "
                              "linear, exponential or cosine, got constant"),
    "end missing": (noise, ("linear", 0.2, None, 9), "--gate-noise-schedule linear needs --gate-noise-end, got none"),
    "updates missing": (temperature, ("exponential", 1.0, 0.5, None), "--gate-temperature-schedule exponential needs "
                        "--gate-temperature-updates, got none"),
    "start of 0": (temperature, ("linear", 0.0, 0.5, 9), "--gate-temperature-start must be > 0 and finite, got 0.0"),
    "negative end": (temperature, ("linear", 1.0, -0.5, 9), "--gate-temperature-end must be > 0 and finite, got -0.5"),
    "constant start": (temperature, ("constant", -1.0, None, None), "--gate-temperature-start must be > 0"),
    "infinite": (temperature, ("linear", math.inf, 0.5, 9), "--gate-temperature-start must be > 0 and finite, got inf"),
    "no number": (temperature, ("linear", 1.0, math.nan, 9), "--gate-temperature-end must be > 0 and finite, got nan"),
    "probability above 1": (noise, ("linear", 0.2, 1.5, 9), "--gate-noise-end must be a probability between 0 and 1, "
                            "got 1.5"),
    "negative probability": (noise, ("constant", -0.1, None, None), "--gate-noise-start must be a probability between "
                             "0 and 1, got -0.1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SCHEDULES)
def test_what_makes_no_schedule_gets_a_sentence(case):
    make, arguments, sentence = BAD_SCHEDULES[case]
    with pytest.raises(ValueError) as refusal:
        make(*arguments)
    assert str(refusal.value).startswith(sentence)


NO_EXPONENTIAL = "--gate-noise-schedule exponential needs a start and an end > 0, got start .* use linear or cosine"


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.0), (0.0, 0.2), (None, 0.0)])
def test_an_exponential_schedule_from_or_to_0_gets_a_sentence_before_training(start, end):
    with pytest.raises(ValueError, match=NO_EXPONENTIAL):
        noise("exponential", start, end, 9)


def test_an_exponential_schedule_from_an_option_of_0_gets_a_sentence():
    with pytest.raises(ValueError, match=NO_EXPONENTIAL):
        noise("exponential", None, 0.2, 9).value(0, option=0.0)


def test_every_kind_is_tried_here():
    assert set(VALUES) | {"constant"} == set(SCHEDULES)
