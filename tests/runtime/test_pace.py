"""Rates and times left, with a clock that the tests turn."""

from itertools import pairwise

import pytest

from stasc_ray.runtime.pace import Pace, rest_of_tokens, words


def test_a_start_that_takes_minutes_is_no_part_of_the_rate() -> None:
    pace = Pace()
    assert pace.rate is None and pace.left(400.0) is None
    for second in range(11):  # the first tokens come after 400 s
        pace.saw(400.0 + second, 1000 + 94 * second)
    assert pace.rate == pytest.approx(94)


def test_one_look_is_no_rate_and_neither_is_a_moment() -> None:
    pace = Pace()
    pace.saw(0.0, 5000)
    assert pace.rate is None
    pace.saw(1.0, 7233)  # what said 2,233 tokens/s
    assert pace.rate is None


def test_the_rate_is_the_last_minutes() -> None:
    pace, work = Pace(), 0
    for second in range(600):
        work += 1000 if second < 300 else 10
        pace.saw(float(second), work)
    assert pace.rate == pytest.approx(10, rel=0.02)


def test_steps_longer_than_the_window_have_a_rate() -> None:
    pace = Pace()
    for step in range(1, 4):
        pace.saw(100.0 * step, step)
    assert pace.rate == pytest.approx(0.01)


def test_the_time_left_only_falls_while_a_step_runs() -> None:
    pace = Pace()
    for step in (1, 2, 3):
        pace.saw(100.0 * step, step)
        pace.expect(100.0 * step, 10 - step)
    left = [pace.left(300.0 + second) or 0.0 for second in range(0, 400, 7)]
    assert left[0] == pytest.approx(700)
    assert all(later <= earlier for earlier, later in pairwise(left))
    assert pace.left(350.0) == pytest.approx(650)
    assert left[-1] == pytest.approx(600)  # the steps that have not begun take what they take
    assert not pace.saw(690.0, 3) and pace.rate == pytest.approx(0.01)
    pace.saw(700.0, 4)  # four times as long as the others
    pace.expect(700.0, 6)
    assert pace.left(700.0) == pytest.approx(6 * 200)


def test_work_that_was_lost_begins_a_new_measurement() -> None:
    pace = Pace()
    for second in range(10):
        pace.saw(float(second), 1000 * second)
    pace.saw(10.0, 100)  # an engine died with its unfinished texts
    assert pace.rate is None
    pace.saw(14.0, 500)
    assert pace.rate == pytest.approx(100)


@pytest.mark.parametrize(
    ("tokens", "done", "true_rest", "factor"),
    [
        (
            25_600,
            5,
            149_400,
            2.1,
        ),  # the first wave: five short ones are done, the others have 100 tokens so far
        (38_400, 256, 136_600, 1.01),
        (160_800, 1480, 14_200, 1.05),
        (174_950, 1749, 50, 1.05),
    ],
)
def test_questions_in_flight_count_as_half_done(
    tokens: int, done: int, true_rest: int, factor: float
) -> None:
    found = rest_of_tokens(tokens, done, 1750, 256)
    assert found is not None and true_rest / factor <= found <= true_rest * factor


def test_how_long_texts_are_is_not_known_before_one_ends() -> None:
    assert rest_of_tokens(5000, 0, 1750, 256) is None
    assert rest_of_tokens(900, 10, 10, 64) == 0


def test_times_in_words() -> None:
    assert [words(seconds) for seconds in (-1, 8.4, 400, 9000)] == ["0 s", "8 s", "7 min", "2.5 h"]
