"""Thresholds: ranks and rates by hand, coverage by simulation, intervals against scipy, rules against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from anomaly_vlm.metrics.thresholds import (
    NOT_OK,
    OK,
    Proportion,
    Threshold,
    better_than_chance,
    conformal_rank,
    counts_at,
    from_good_parts,
    split_in_two,
    with_rule,
)


def of(scores: list[float], **options: float) -> Threshold:
    return from_good_parts(scores, scores, [0.0] * len(scores), **options)


@pytest.mark.parametrize(
    ("count", "false_alarms", "rank"),
    [(20, 0.05, 20), (19, 0.05, 19), (39, 0.05, 38), (99, 0.1, 90), (5, 0.05, 5), (1, 0.5, 1), (100, 0.05, 96)],
)
def test_rank_by_hand(count: int, false_alarms: float, rank: int) -> None:
    assert conformal_rank(count, false_alarms) == rank


def test_threshold_of_good_parts() -> None:
    found = of([i / 39 for i in range(39)], false_alarms=0.05)
    assert found.score == pytest.approx(37 / 39) and found.rate == pytest.approx(0.05)
    assert found.decision(found.score) == OK and found.decision(found.score + 1e-6) == NOT_OK
    assert found.percentile(-1) == 0 and found.percentile(1) == 100
    assert found.percentile(19.5 / 39) == pytest.approx(100 * 20 / 39)
    assert found.clear < found.pixel == found.score
    low, high = found.rate_interval()
    assert (low, high) == pytest.approx(beta(2, 38).ppf([0.05, 0.95]))


def test_too_few_good_parts_are_said() -> None:
    found = of([0.1, 0.2, 0.3], false_alarms=0.05)
    assert found.score == 0.3 and found.rate == 0.25
    promise, missing = found.explained()
    assert "with 3 good parts at most 1 in 4" in promise
    assert "cannot promise 5 %" in missing and "give 19 or more" in missing
    assert found.summary == "at most 25 % false alarms; calibrated on 3 good parts"


def test_the_promise_of_twenty_parts_in_words() -> None:
    (line,) = of(list(np.linspace(0, 1, 20)), false_alarms=0.05).explained()
    assert line == (
        "with 20 good parts at most 1 in 21 good parts is rejected on average; 90 % sure: between 0.3 and 13.9 %"
    )


@pytest.mark.parametrize(("count", "false_alarms"), [(20, 0.05), (30, 0.1), (7, 0.25)])
def test_the_rate_is_kept_by_simulation(count: int, false_alarms: float) -> None:
    """Uniform scores: the rate of a threshold is 1 minus itself; mean and 90 % interval over 4,000 draws."""
    random = np.random.default_rng(0)
    found = [of(random.random(count).tolist(), false_alarms=false_alarms) for _ in range(4000)]
    rates = np.array([1 - one.score for one in found])
    assert rates.mean() == pytest.approx(found[0].rate, abs=4 * rates.std() / 4000**0.5)
    assert rates.mean() <= false_alarms + 0.003
    low, high = found[0].rate_interval()
    assert ((rates >= low) & (rates <= high)).mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("count", "total"), [(0, 5), (5, 5), (3, 24), (1, 1)])
def test_intervals_of_counts(count: int, total: int) -> None:
    expected = binomtest(count, total).proportion_ci(method="exact")
    assert Proportion(count, total).interval() == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("rule", ["max_f1", "no_miss", "cost"])
def test_rules_against_brute_force(rule: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        good = random.normal(0, 1, 9).round(1).tolist()
        bad = random.normal(1, 1, 7).round(1).tolist()
        found = with_rule(of(good), rule, good, bad, cost_ratio=4.0)  # type: ignore[arg-type]

        def cost(threshold: float, good: list[float] = good, bad: list[float] = bad) -> float:
            counts = counts_at(threshold, good, bad)
            missed, alarms = counts.missed.count, counts.false_alarms.count
            if rule == "max_f1":
                hits = counts.found.count
                return -2 * hits / (2 * hits + missed + alarms)
            return math.inf if rule == "no_miss" and missed else 4.0 * missed * (rule == "cost") + alarms

        everywhere = [cost(t) for t in np.arange(-5, 6, 0.05)]
        assert cost(found.score) == pytest.approx(min(everywhere))
        assert math.isnan(found.rate) and "promises no rate" in found.explained()[0]
        with pytest.raises(ValueError, match="promises no rate"):
            found.rate_interval()


def test_counts_in_words() -> None:
    counts = counts_at(0.5, [0.1, 0.6], [0.4, 0.6, 0.9])
    assert str(counts) == "found 2 of 3 (9 to 99 %), missed 1, false alarms 1 of 2 (1 to 99 %)"
    assert str(counts_at(0.5, [], [0.9]).false_alarms) == "0 of 0"


def test_chance() -> None:
    assert better_than_chance([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7])
    assert not better_than_chance([0.1, 0.6, 0.3], [0.2, 0.5])


def test_parts_of_a_split() -> None:
    first, second = split_in_two(10, 0.7, seed=1)
    assert len(first) == 7 and sorted(first + second) == list(range(10))
    assert split_in_two(10, 0.7, seed=1) == (first, second) != split_in_two(10, 0.7, seed=2)
    assert [len(part) for part in split_in_two(2, 0.99, seed=0)] == [1, 1]


def test_a_record_is_read_back() -> None:
    found = of([0.1, 0.2, 0.3])
    assert Threshold.from_record(found.to_record()) == found
    with pytest.raises(ValueError, match="0 scores"):
        of([])
