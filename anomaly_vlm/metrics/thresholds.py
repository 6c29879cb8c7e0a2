"""From scores of good parts to a verdict: thresholds with a stated meaning, and how sure the numbers are.

A threshold of the rule `false_alarms` is split-conformal: of n + 1 exchangeable good parts, the score of the last one is
above the k-th smallest of the others with a probability of at most (n + 1 - k) / (n + 1) (Vovk, Gammerman, Shafer,
"Algorithmic Learning in a Random World", 2005; Lei et al., JASA 2018). Given the n parts, the share of good parts that is
rejected in the long run follows a Beta distribution with the parameters n + 1 - k and k (Vovk, "Conditional Validity
of Inductive Conformal Predictors", 2012). Intervals of counts are those of Clopper and Pearson (1934).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from anomaly_vlm.errors import UserError
from anomaly_vlm.options import check_arguments

Rule = Literal["false_alarms", "max_f1", "no_miss", "cost"]
RULES: tuple[str, ...] = get_args(Rule)
OK, NOT_OK = "OK", "NOT OK"
SURE = 0.9  # of the interval of the false-alarm rate


def beta_quantile(above: float, below: float, share: float) -> float:
    """The value that a Beta distribution with these parameters stays below with the probability `share`."""
    from scipy.special import betaincinv  # read where an interval is computed, as it takes its time

    return float(betaincinv(above, below, share))


@dataclass(frozen=True)
class Proportion:
    """A count among a total, with the interval that it leaves for the share in the long run.

    Attributes:
        count: How many.
        total: Of how many.
    """

    count: int
    total: int

    def interval(self, sure: float = 0.95) -> tuple[float, float]:
        """The Clopper-Pearson interval of the share, which holds it with a probability of at least `sure`."""
        tail, missing = (1 - sure) / 2, self.total - self.count
        low = 0.0 if not self.count else beta_quantile(self.count, missing + 1, tail)
        high = 1.0 if not missing else beta_quantile(self.count + 1, missing, 1 - tail)
        return low, high

    def __str__(self) -> str:
        if not self.total:
            return "0 of 0"
        low, high = self.interval()
        return f"{self.count} of {self.total} ({100 * low:.0f} to {100 * high:.0f} %)"


@dataclass(frozen=True)
class Counts:
    """What a threshold makes of labelled images.

    Attributes:
        found: Defective images that are rejected, of all defective ones.
        false_alarms: Good images that are rejected, of all good ones.
    """

    found: Proportion
    false_alarms: Proportion

    @property
    def missed(self) -> Proportion:
        """Defective images that pass."""
        return Proportion(self.found.total - self.found.count, self.found.total)

    def __str__(self) -> str:
        return f"found {self.found}, missed {self.missed.count}, false alarms {self.false_alarms}"


@dataclass(frozen=True)
class Threshold:
    """Where OK ends, for one category: the numbers, and what they were chosen by.

    Attributes:
        rule: How `score` was chosen.
        score: An image with a higher score is NOT OK.
        pixel: A pixel with a higher map value belongs to a region; at most the share `rate` of good parts has any.
        clear: Map values up to this one are usual on good parts, and drawn clear. It is below `pixel`.
        good_scores: Scores of the good parts, ascending, each from a method that has not learned from that part.
        asked: Share of good parts that may be rejected, as the user asked.
        rate: Share of good parts that the threshold rejects at most, on average over draws of the good parts; NaN for rules
            that promise nothing about it.
        rank: Which of `good_scores` the threshold is, from 1; 0 for rules that choose no such one.
        left_out: Whether parts were scored by leaving them out of a memory (`leave one out`), so that the interval of the
            rate is an approximation; without it they had no part in what the method learned.
        num_good: Good images that the threshold was chosen on.
        num_bad: Defective images that the threshold was chosen on.
        cost_ratio: For the rule `cost`: how many false alarms a miss is worth.
    """

    rule: Rule
    score: float
    pixel: float
    clear: float
    good_scores: tuple[float, ...]
    asked: float
    rate: float
    rank: int
    left_out: bool
    num_good: int
    num_bad: int = 0
    cost_ratio: float = 1.0

    def decision(self, score: float) -> str:
        """`OK` or `NOT OK`."""
        return NOT_OK if score > self.score else OK

    def percentile(self, score: float) -> float:
        """Share in percent of the good parts whose score is not higher; 100 for a score as high as any good part's."""
        return 100 * float(np.searchsorted(self.good_scores, score, side="right")) / len(self.good_scores)

    def rate_interval(self, sure: float = SURE) -> tuple[float, float]:
        """Where the share of good parts that are rejected in the long run lies, given these good parts.

        Raises:
            ValueError: The rule promises nothing about it.
        """
        if not self.rank:
            raise ValueError(f"rule {self.rule} promises no rate of false alarms")
        above, tail = len(self.good_scores) + 1 - self.rank, (1 - sure) / 2
        low, high = (beta_quantile(above, self.rank, p) for p in (tail, 1 - tail))
        return low, high

    @property
    def summary(self) -> str:
        """Short, for the line of the counts: `at most 5 % false alarms; calibrated on 20 good parts`."""
        parts = f"{self.num_good} good" + (f" and {self.num_bad} defective" if self.num_bad else "") + " parts"
        meaning = {
            "false_alarms": f"at most {_percent(max(self.rate, self.asked))} % false alarms",
            "max_f1": "best F1",
            "no_miss": "no miss among those seen",
            "cost": f"least cost, a miss worth {self.cost_ratio:g} false alarms",
        }[self.rule]
        return f"{meaning}; calibrated on {parts}"

    def explained(self) -> list[str]:
        """What the threshold promises and what it does not, in sentences."""
        if self.rule != "false_alarms":
            return [
                f"the threshold was chosen on {self.num_good} good and {self.num_bad} defective images by the rule"
                f" {self.rule}; it promises no rate of false alarms"
            ]
        low, high = self.rate_interval()
        about = "about " if self.left_out else ""
        lines = [
            f"with {len(self.good_scores)} good parts at most {_one_in(self.rate)} good parts is rejected on average;"
            f" {about}{round(100 * SURE)} % sure: between {_percent(low)} and {_percent(high)} %"
        ]
        if self.rate > self.asked + 1e-9:
            needed = math.ceil(1 / self.asked - 1 - 1e-9)
            lines.append(
                f"{len(self.good_scores)} good parts cannot promise {_percent(self.asked)} %: the threshold is the highest"
                f" score among them; give {needed} or more"
            )
        return lines

    def to_record(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**dataclasses.asdict(self), "good_scores": list(self.good_scores)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Threshold:
        """The inverse of `to_record`.

        Raises:
            UserError: An entry is missing, surplus, or no value of its kind.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(record, Mapping) or not set(record) <= set(names):
            raise UserError(f"the record of a threshold holds {', '.join(names)}, and nothing else")
        rate = record.get("rate", math.nan)  # NaN where nothing is promised: the one number that may be none
        given = {**record, "rate": 0.0 if isinstance(rate, float) and math.isnan(rate) else rate}
        checked = check_arguments(cls, given, owner="threshold")
        scores = checked.get("good_scores") or ()
        if not scores or list(scores) != sorted(scores) or not 0 <= checked.get("rank", 0) <= len(scores):
            raise UserError("threshold.good_scores: give ascending scores, and a rank among them")
        try:
            return cls(**{**checked, "rate": rate, "good_scores": tuple(scores)})
        except TypeError as error:
            raise UserError(f"threshold: {error}") from error


def conformal_rank(count: int, false_alarms: float) -> int:
    """Which of `count` ascending scores is the threshold that at most the share `false_alarms` of good parts exceeds.

    Returns:
        A number from 1 to `count`; `count` also where so few scores cannot promise the share.
    """
    return min(count, math.ceil((count + 1) * (1 - false_alarms) - 1e-9))


def from_good_parts(
    scores: Sequence[float],
    peaks: Sequence[float],
    usual: Sequence[float],
    *,
    false_alarms: float = 0.05,
    left_out: bool = False,
) -> Threshold:
    """The threshold that at most the share `false_alarms` of good parts exceeds.

    Args:
        scores: Scores of good parts that the method has not learned from.
        peaks: Largest map value of each.
        usual: A high but usual value of each map, such as its 99th percentile; their median is drawn clear.
        false_alarms: Share of good parts that may be rejected, in (0, 1).
        left_out: See `Threshold`.

    Raises:
        ValueError: No score, or another number of peaks.
    """
    if not scores or len(scores) != len(peaks) or len(scores) != len(usual):
        raise ValueError(f"{len(scores)} scores, {len(peaks)} peaks, {len(usual)} usual values")
    rank = conformal_rank(len(scores), false_alarms)
    pixel = sorted(peaks)[rank - 1]
    return Threshold(
        rule="false_alarms",
        score=sorted(scores)[rank - 1],
        pixel=pixel,
        clear=min(float(np.median(usual)), pixel - 1e-6 * max(1.0, abs(pixel))),
        good_scores=tuple(sorted(scores)),
        asked=false_alarms,
        rate=(len(scores) + 1 - rank) / (len(scores) + 1),
        rank=rank,
        left_out=left_out,
        num_good=len(scores),
    )


def with_rule(
    threshold: Threshold, rule: Rule, good: Sequence[float], bad: Sequence[float], *, cost_ratio: float = 1.0
) -> Threshold:
    """A threshold whose score is chosen on labelled images instead; the threshold of the pixels stays.

    Args:
        threshold: That of the good parts.
        rule: `max_f1`, `no_miss` or `cost`.
        good: Scores of good images, at least one.
        bad: Scores of defective images, at least one.
        cost_ratio: How many false alarms a miss is worth.
    """
    good_scores, bad_scores = np.sort(good), np.sort(bad)
    every = np.unique(np.concatenate([good_scores, bad_scores]))
    candidates = np.concatenate([[every[0] - 1e-6 * max(1.0, abs(every[0]))], (every[1:] + every[:-1]) / 2, every[-1:]])
    missed = np.searchsorted(bad_scores, candidates, side="right")
    alarms = len(good_scores) - np.searchsorted(good_scores, candidates, side="right")
    found = len(bad_scores) - missed
    if rule == "max_f1":
        cost = -2 * found / (2 * found + alarms + missed)
    elif rule == "no_miss":
        cost = np.where(missed > 0, np.inf, alarms)
    else:
        cost = cost_ratio * missed + alarms
    best = np.flatnonzero(cost == cost.min())[-1]  # of equals the one with the fewest false alarms
    return dataclasses.replace(
        threshold,
        rule=rule,
        score=float(candidates[best]),
        rate=math.nan,
        rank=0,
        num_good=len(good_scores),
        num_bad=len(bad_scores),
        cost_ratio=cost_ratio,
    )


def counts_at(threshold: float, good: Sequence[float], bad: Sequence[float]) -> Counts:
    """What is found, and what is alarmed about wrongly, where scores above the threshold are rejected."""
    rejected = [sum(score > threshold for score in scores) for scores in (bad, good)]
    return Counts(Proportion(rejected[0], len(bad)), Proportion(rejected[1], len(good)))


def better_than_chance(good: Sequence[float], bad: Sequence[float], *, level: float = 0.05) -> bool:
    """Whether defective images score higher than good ones, by a one-sided Mann-Whitney test at this level."""
    from scipy.stats import mannwhitneyu

    return bool(mannwhitneyu(bad, good, alternative="greater").pvalue <= level)


def split_in_two(count: int, share: float, *, seed: int) -> tuple[list[int], list[int]]:
    """Positions 0 to `count` - 1 in two parts by a seed: the first holds the share, each at least one where there are two.

    Returns:
        Both parts, ascending.
    """
    first = min(max(1, round(share * count)), max(1, count - 1))
    order = np.random.default_rng([seed, count]).permutation(count).tolist()
    return sorted(order[:first]), sorted(order[first:])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _one_in(share: float) -> str:
    return f"1 in {round(1 / share)}"
