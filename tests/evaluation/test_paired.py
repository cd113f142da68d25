"""Two ways to answer the same questions, compared question by question."""

from statistics import NormalDist

import pytest

from stasc_ray.evaluation.paired import mcnemar, p_value, paired


def test_mcnemar_is_the_exact_binomial_test():
    """Expected values: two-sided binomial tests by hand, 2 * sum C(n, k) / 2^n."""
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar(2, 10) == mcnemar(10, 2)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(0, 0) == 1 and mcnemar(3, 3) == 1, "never above 1"
    assert 0 < mcnemar(900, 700) < 1e-5, "large counts are no trouble"


def test_a_difference_on_every_question_is_sure_though_the_questions_differ_widely():
    first = [0.0, 0.5] * 100
    found = paired(first, [reward + 0.1 for reward in first], 1.0, 500, 0)
    assert found.difference == pytest.approx(0.1) and (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert (found.gained, found.lost, found.p) == (0, 0, 1.0), "none of them is right"
    assert found.probability == 1 and paired(first, first, 1.0, 500, 0).probability == 0


def test_the_probability_of_a_gain_is_that_of_the_normal_distribution():
    """20 questions of 400 gained and 12 lost: a z of 8 / sqrt(32 - 64/400), about 1.42."""
    first = [1.0] * 12 + [0.0] * 388
    second = [0.0] * 12 + [1.0] * 20 + [0.0] * 368
    expected = NormalDist().cdf(8 / (32 - 64 / 400) ** 0.5)
    assert paired(first, second, 1.0, 5000, 0).probability == pytest.approx(expected, abs=0.03)


def test_the_interval_is_that_of_the_pairs():
    first, second = [0.0, 0.0, 1.0, 1.0] * 25, [1.0, 0.0, 1.0, 0.0] * 25
    found = paired(first, second, 1.0, 2000, 0)
    assert found.difference == 0 and (found.gained, found.lost) == (25, 25)
    half = 1.96 * (0.5 / 100) ** 0.5  # the differences +1, 0, 0, -1 have variance 0.5
    assert found.low == pytest.approx(-half, abs=0.02) and found.high == pytest.approx(half, abs=0.02)
    assert paired(first, second, 1.0, 2000, 0) == found, "the same seed, the same interval"


def test_a_tiny_p_is_not_told_as_zero():
    assert [p_value(p) for p in (0.0004, 0.001, 0.0625, 1.0)] == ["< 0.001", "0.001", "0.062", "1.000"]


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 0.0])])
def test_other_questions_are_refused(first: list[float], second: list[float]):
    with pytest.raises(ValueError, match="expected rewards of the same questions, found"):
        paired(first, second, 1.0, 10, 0)
