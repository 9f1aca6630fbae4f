"""Learning rates of each schedule, against the course of the rate written out step by step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import ConfigError
from llm.settings.run import OptimizerConfig
from llm.training.schedules import Schedule

KINDS = st.sampled_from(["cosine", "linear", "constant", "wsd"])


def rates(total: int, *, tokens_per_step: int = 1, **settings: object) -> list[float]:
    schedule = Schedule.of(OptimizerConfig(learning_rate=1.0, **settings), total, tokens_per_step)  # type: ignore[arg-type]
    return [schedule.rate(step) for step in range(total)]


def slow_rates(total: int, warmup: int, decay_start: int, lowest: float, curve: str) -> list[float]:
    """The same course as a list that grows one step at a time."""
    course: list[float] = []
    while len(course) < min(warmup, total):
        course.append((len(course) + 1) / min(warmup, total))
    while len(course) < min(decay_start, total):
        course.append(1.0)
    steps = total - len(course)
    for done in range(steps):
        left = {
            "cosine": (1 + math.cos(math.pi * done / steps)) / 2,
            "linear": 1 - done / steps,
            "sqrt": 1 - (done / steps) ** 0.5,
            "constant": 1.0,
        }[curve]
        course.append(lowest + (1 - lowest) * left)
    return course


@given(st.integers(1, 40), st.integers(0, 60), st.floats(0, 1), KINDS)
def test_each_schedule_follows_its_course_at_every_step(total: int, warmup: int, lowest: float, kind: str) -> None:
    got = rates(total, warmup_steps=warmup, min_learning_rate_ratio=lowest, schedule=kind, decay_fraction=0.25)
    start = total - round(0.25 * total) if kind == "wsd" else 0
    curve = "linear" if kind == "wsd" else kind
    assert got == pytest.approx(slow_rates(total, warmup, max(start, warmup), lowest, curve))


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 60))
def test_wsd_decays_along_one_minus_the_root_from_the_step_that_is_named(total: int, warmup: int, start: int) -> None:
    got = rates(
        total, warmup_steps=warmup, schedule="wsd", decay_from=start, decay_shape="sqrt", min_learning_rate_ratio=0
    )
    assert got == pytest.approx(slow_rates(total, warmup, max(start, warmup), 0.0, "sqrt"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 8),
        ({"schedule": "linear"}, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "linear", "decay_shape": "sqrt"}, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "cosine"}, [1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602]),
        ({"schedule": "wsd", "decay_fraction": 0.5}, [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "wsd", "decay_from": 4, "decay_shape": "sqrt"}, [1.0] * 5 + [0.5, 0.2928932, 0.1339746]),
    ],
)
def test_eight_steps_of_each_schedule_have_the_rates_of_its_formula(
    settings: dict[str, object], expected: list[float]
) -> None:
    assert rates(8, warmup_steps=0, min_learning_rate_ratio=0, **settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings", [{"schedule": "linear"}, {"schedule": "cosine"}, {"schedule": "wsd", "decay_from": 4}]
)
def test_steps_after_the_last_keep_the_lowest_rate(settings: dict[str, object]) -> None:
    config = OptimizerConfig(learning_rate=1.0, min_learning_rate_ratio=0.25, warmup_steps=0, **settings)  # type: ignore[arg-type]
    schedule = Schedule.of(config, 5)
    assert [schedule.rate(step) for step in (5, 6, 500)] == pytest.approx([0.25] * 3)


@given(st.integers(1, 300), st.floats(0, 1), KINDS)
def test_no_rate_is_above_the_peak_or_below_the_lowest_after_warm_up(total: int, lowest: float, kind: str) -> None:
    schedule = Schedule.of(
        OptimizerConfig(learning_rate=0.5, min_learning_rate_ratio=lowest, schedule=kind),  # type: ignore[arg-type]
        total,
    )
    after = [schedule.rate(step) for step in range(schedule.warmup_steps, 2 * total)]
    assert all(0.5 * lowest - 1e-12 <= rate <= 0.5 for rate in after)
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (1, 5), (6, 6), (6, 100)])
def test_a_warmup_as_long_as_the_run_or_longer_reaches_the_peak_at_the_last_step(total: int, warmup: int) -> None:
    for kind in ("cosine", "linear", "constant", "wsd"):
        assert rates(total, warmup_steps=warmup, schedule=kind)[-1] == 1.0


def test_a_run_too_short_for_its_schedule_says_so() -> None:
    def notices(total: int = 6, **settings: object) -> list[str]:
        return Schedule.of(OptimizerConfig(**settings), total).notices()  # type: ignore[arg-type]

    assert notices(warmup_steps=9) == ["the warm-up takes all 6 steps, so the learning rate never decays"]
    assert "`optimizer.decay_from` (6) is not before" in notices(schedule="wsd", decay_from=6, warmup_steps=1)[0]
    assert notices() == notices(schedule="wsd", decay_from=3) == []
    # The only step of a run has the peak rate, with or without a warm-up.
    assert (len(notices(2, warmup_steps=2)), notices(1, warmup_steps=1)) == (1, [])


def test_without_a_setting_warm_up_takes_a_tenth_of_the_steps_and_at_most_100() -> None:
    warmups = {total: Schedule.of(OptimizerConfig(), total).warmup_steps for total in (1, 9, 67, 1000, 5000)}
    assert warmups == {1: 0, 9: 0, 67: 6, 1000: 100, 5000: 100}


def test_warm_up_in_tokens_takes_whole_steps() -> None:
    assert rates(8, tokens_per_step=100, warmup_tokens=301, schedule="constant")[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule.of(OptimizerConfig(warmup_tokens=3), 9).warmup_steps == 3
    with pytest.raises(ConfigError, match=r"warmup_steps` must be null where `optimizer.warmup_tokens`"):
        OptimizerConfig(warmup_steps=3, warmup_tokens=10)


def test_a_longer_run_keeps_the_rates_of_the_stable_phase() -> None:
    short, long = (rates(total, warmup_steps=4, schedule="wsd", decay_fraction=0.5) for total in (20, 40))
    assert short[:10] == long[:10]
    assert long[10:20] == [1.0] * 10
    assert min(short[11:]) < 1.0
