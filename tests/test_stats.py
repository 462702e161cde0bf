"""Statistics, compared with values computed by hand or by brute force."""

import numpy as np
import pytest

from support.stats import bootstrap_interval, iqm, paired_comparison, signed, wilson_interval


def test_wilson_interval_equals_published_values():
    low, high = wilson_interval(8, 10)  # Newcombe 1998, the score interval of 8/10
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(20, 20)[1] == 1
    assert wilson_interval(0, 20)[1] > 0.1, '20 failures do not imply a rate of zero'


def test_iqm_drops_the_outer_quarters():
    assert iqm([0, 1, 2, 99]) == 1.5
    assert iqm([5.0]) == 5.0
    assert iqm([1, 2]) == 1.5
    five = iqm([0, 10, 20, 60, 1000])  # a quarter of five is 1.25: 10 and 60 count three quarters each
    assert five == pytest.approx((0.75 * 10 + 20 + 0.75 * 60) / 2.5)
    np.testing.assert_allclose(iqm([[0, 1, 2, 99], [4, 4, 4, 4]]), [1.5, 4])
    np.testing.assert_allclose(iqm([[0, 4], [1, 4], [2, 4], [99, 4]], axis=0), [1.5, 4])


def test_bootstrap_interval_covers_the_mean():
    values = np.random.default_rng(1).normal(3, 2, (200, 30))
    low, high = bootstrap_interval(values)
    assert low.shape == (200,) and 0.88 < np.mean((low < 3) & (high > 3)) < 0.98
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    outlier = [0, 1, 2, 3, 4, 5, 6, 99]
    assert bootstrap_interval(outlier, iqm)[1] < bootstrap_interval(outlier)[1]


def test_paired_comparison_counts_discordant_episodes():
    ours, theirs = np.array([1] * 9 + [0] * 11), np.array([1] * 1 + [0] * 19)
    result = paired_comparison(ours, theirs)
    assert result['difference'] == pytest.approx(0.4)
    assert (result['only_ours'], result['only_theirs']) == (8, 0)
    assert result['p_value'] == pytest.approx(2 / 2**8)
    assert 0.1 < result['low'] < 0.4 < result['high'] < 0.7
    assert paired_comparison([1, 0], [0, 1])['p_value'] == 1
    assert paired_comparison([1, 1], [1, 1])['low'] == 0
    with pytest.raises(ValueError, match='same length'):
        paired_comparison([1, 0], [1])


def test_signed_has_no_negative_zero():
    assert [signed(value, 1) for value in (-0.04, 0.0, 0.04, -0.06, 3)] == ['+0.0', '+0.0', '+0.0', '-0.1', '+3.0']
    assert signed(np.float64(-0.4), 0) == '+0'
