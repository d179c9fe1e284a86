"""Comparisons of models against slow references, and on simulated experiments whose truth is known."""

import math

import pytest
import torch
from scipy import stats

from genrl.metrics import detectable_change, holm, paired_difference, seed_interval, warnings_of
from tests.helpers import assert_same


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class World:
    """Experiments with ours - theirs = effect + user + seed + residual, on users some of whom are easy for both."""

    def __init__(self, seeds, users, effect=0.0, between_users=1.0, between_seeds=0.0, residual=1.0):
        self.shape, self.effect = (seeds, users), effect
        self.between_users, self.between_seeds, self.residual = between_users, between_seeds, residual

    def models(self, seed, count=1):
        """`count` tables of ours [S, R], and theirs [1, R], the start they share."""
        generator = torch.Generator().manual_seed(seed)
        seeds, users = self.shape
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32).double()  # noqa: E731
        easy = 3 + 2 * draw(1, users)
        gain = self.effect + self.between_users * draw(count, 1, users) + self.between_seeds * draw(count, seeds, 1)
        return easy + gain + self.residual * draw(count, seeds, users), easy

    def differences(self, count):
        for seed in range(count):
            ours, theirs = self.models(seed)
            yield paired_difference(ours[0], theirs)


def share(events):
    events = list(events)
    return sum(events) / len(events)


def slow_mean_squares(table):
    """Mean squares of users, seeds and residual of a crossed table, by loops."""
    rows = table.tolist()
    seeds, users = len(rows), len(rows[0])
    grand = sum(map(sum, rows)) / (seeds * users)
    of_seed = [sum(row) / users for row in rows]
    of_user = [sum(row[user] for row in rows) / seeds for user in range(users)]
    by_users = seeds * sum((mean - grand) ** 2 for mean in of_user) / (users - 1)
    by_seeds = users * sum((mean - grand) ** 2 for mean in of_seed) / (seeds - 1)
    residual = 0.0
    for seed in range(seeds):
        for user in range(users):
            residual += (rows[seed][user] - of_seed[seed] - of_user[user] + grand) ** 2
    return by_users, by_seeds, residual / ((seeds - 1) * (users - 1))


@pytest.mark.parametrize("between_users", [0.0, 1.0])
def test_parts_are_those_of_the_textbook_analysis_of_variance(between_users):
    seeds, users = 4, 23
    ours, theirs = World(seeds, users, 0.3, between_users, 0.2).models(3)
    found = paired_difference(ours[0], theirs, confidence=0.9)
    by_users, by_seeds, residual = slow_mean_squares(ours[0] - theirs)
    net = max(by_users - residual, 0.0)
    error = math.sqrt((net + by_seeds) / (seeds * users))
    quantile = lambda p: (  # noqa: E731 (of Cochran and Cox)
        (net * stats.t.ppf(p, users - 1) + by_seeds * stats.t.ppf(p, seeds - 1)) / (net + by_seeds)
    )
    effect = (ours[0] - theirs).mean().item()
    low, high = effect - quantile(0.95) * error, effect + quantile(0.95) * error
    assert_same([found.effect, found.low, found.high], [effect, low, high])
    assert_same(quantile(1 - found.p_value / 2), effect / error)
    assert_same(found.relative, effect / theirs.mean().item())
    assert_same(found.residual, residual / (seeds * users))
    assert (found.by_users.variance > 0) == (between_users > 0)  # without such variance its estimate here is below 0


def test_one_seed_is_the_t_test_over_users():
    ours, theirs = normal(1, 40, seed=0) + 0.4, normal(1, 40, seed=1)
    found, expected = paired_difference(ours, theirs), stats.ttest_rel(ours[0], theirs[0])
    assert_same(found.p_value, float(expected.pvalue))
    assert_same([found.low, found.high], list(expected.confidence_interval(0.95)))
    assert found.seeds == 1
    assert math.isnan(found.seed_noise)


def test_users_who_are_all_alike_leave_the_t_tests_over_seeds():
    ours, theirs = (normal(count, 1, seed=count).expand(-1, 50) for count in (3, 5))
    assert_same(
        paired_difference(ours, theirs).p_value, float(stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False)[1])
    )
    assert_same(paired_difference(ours, theirs[:3]).p_value, float(stats.ttest_rel(ours[:, 0], theirs[:3, 0])[1]))
    assert_same(paired_difference(ours, theirs).seed_noise, float((ours[:, 0].var() + theirs[:, 0].var()).sqrt()))
    assert_same(paired_difference(ours, theirs[:3]).seed_noise, float((ours - theirs[:3])[:, 0].std()))
    assert (paired_difference(ours, theirs).seeds, paired_difference(ours, theirs[:1]).seeds) == (3, 3)


def test_seeds_that_agree_leave_the_interval_over_users():
    ours, theirs = normal(1, 4000, seed=0).expand(3, -1), normal(1, 4000, seed=1)
    found, gains = paired_difference(ours, theirs), ours[0] - theirs[0]
    draws = torch.randint(4000, (1000, 4000), generator=torch.Generator().manual_seed(0))  # bootstrap over users
    low, high = torch.quantile(gains[draws].mean(dim=1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert_same([found.low, found.high], [low, high], tolerance=0.004)


SHAPES = [(3, 500), (5, 500), (3, 5000), (5, 5000)]


@pytest.mark.parametrize(("seeds", "users"), SHAPES)
def test_the_interval_covers_the_truth_95_times_in_100(seeds, users):
    # The noise between seeds adds ten times as much to the variance of the mean as the choice of users.
    world = World(seeds, users, 0.1, between_users=1.0, between_seeds=(10 * seeds / users) ** 0.5)
    assert 0.93 <= share(found.low <= 0.1 <= found.high for found in world.differences(800)) <= 0.97


def test_the_interval_covers_the_truth_for_independent_seeds_and_one_over_users_only_would_not():
    world, covered, over_users = World(3, 500, 0.1, between_seeds=0.1), [], []
    for seed in range(500):
        ours, easy = world.models(seed)
        theirs = easy + 0.05 * normal(5, 1, seed=2 * seed + 10**6) + normal(5, 500, seed=2 * seed + 10**6 + 1)
        found = paired_difference(ours[0], theirs)
        covered.append(found.low <= 0.1 <= found.high)
        if seed < 100:
            found = paired_difference(ours[0].mean(dim=0, keepdim=True), easy)
            over_users.append(found.low <= 0.1 <= found.high)
    assert 0.93 <= share(covered) <= 0.97
    assert share(over_users) < 0.9


def test_placebo_objectives_are_called_different_in_one_report_of_twenty():
    # Five objectives that do nothing against one that has seeds itself, on users who hardly differ: where the noise is
    # that of three seeds most reports err, and pooled degrees of freedom would make it one in ten.
    reports, uncorrected = [], []
    for seed in range(400):
        tables, _ = World(3, 40, between_users=0.3, between_seeds=0.3, residual=0.3).models(seed, count=6)
        p_values = torch.tensor([paired_difference(table, tables[0]).p_value for table in tables[1:]])
        reports.append(bool((holm(p_values) < 0.05).any()))
        uncorrected.append(bool((p_values < 0.05).any()))
    assert 0.02 <= share(reports) <= 0.08
    assert share(uncorrected) > 0.12


def test_one_objective_under_two_names_has_no_difference():
    trained, again = (World(3, 800, 0.2, between_seeds=0.05, residual=0.5).models(0)[0][0] for _ in range(2))
    found = paired_difference(trained, again)
    assert (found.effect, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    users = normal(1, 800, seed=1)
    other_seeds = [users + 0.05 * normal(3, 1, seed=n) + 0.5 * normal(3, 800, seed=n + 2) for n in (2, 3)]
    found = paired_difference(*other_seeds)
    assert found.low < 0 < found.high


def test_a_difference_without_any_noise_is_certain():
    found = paired_difference(torch.ones(2, 8), torch.zeros(1, 8))
    assert (found.effect, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, 0.0)


def test_a_planted_improvement_is_found_as_often_as_promised():
    world = World(3, 500, between_seeds=0.04)
    promised = math.fsum(detectable_change(found, 500) for found in world.differences(200)) / 200
    planted = World(3, 500, effect=promised, between_seeds=0.04)
    assert 0.75 <= share(found.p_value < 0.05 for found in planted.differences(400)) <= 0.9
    large = World(3, 500, effect=2 * promised, between_seeds=0.04)
    assert share(found.p_value < 0.05 and found.effect > 0 for found in large.differences(200)) > 0.97


def test_neither_the_order_of_users_nor_how_easy_they_are_matters():
    ours, theirs = normal(3, 60, seed=0), normal(5, 60, seed=1)
    order, easy = torch.randperm(60, generator=torch.Generator().manual_seed(2)), normal(60, seed=3)
    plain = paired_difference(ours, theirs)
    for found in (paired_difference(ours[:, order], theirs[:, order]), paired_difference(ours + easy, theirs + easy)):
        assert_same([found.effect, found.low, found.high], [plain.effect, plain.low, plain.high])
        assert_same(found.p_value, plain.p_value)


@pytest.mark.parametrize("theirs", [1, 3, 5])
def test_swapped_models_flip_the_sign(theirs):
    ours, theirs = normal(3, 60, seed=0), normal(theirs, 60, seed=1)
    forward, backward = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert_same([forward.effect, forward.low, forward.high], [-backward.effect, -backward.high, -backward.low])
    assert_same(forward.p_value, backward.p_value)
    assert (forward.seeds, forward.seed_noise) == (backward.seeds, pytest.approx(backward.seed_noise))


def test_seed_interval_is_students():
    values = normal(5, seed=0)
    found = seed_interval(values, confidence=0.9)
    expected = stats.t.interval(0.9, 4, loc=values.mean(), scale=values.std() / 5**0.5)
    assert_same([found.low, found.high], [float(end) for end in expected])
    assert (found.seeds, found.has_width) == (5, True)


def test_seed_interval_of_one_seed_has_no_width():
    found = seed_interval(torch.tensor([0.03]))
    assert_same(found.mean, 0.03, tolerance=1e-8)
    assert not found.has_width
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def slow_holm(p_values):
    """Each p-value times the number of those not smaller, and never below the adjusted one of a smaller."""
    adjusted = {}
    worst = 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = worst
    return [adjusted[place] for place in range(len(p_values))]


@pytest.mark.parametrize("p_values", [[], [0.2], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.0], [0.02] * 6])
def test_holm_agrees_with_the_slow_rule(p_values):
    assert_same(
        holm(torch.tensor(p_values, dtype=torch.float64)), torch.tensor(slow_holm(p_values), dtype=torch.float64)
    )


def hits(seeds, users, rate, more, seed):
    """Hits of theirs at `rate`, and of ours where theirs hit or by chance `more`."""
    generator = torch.Generator().manual_seed(seed)
    theirs = torch.rand(1, users, generator=generator) < rate
    return (theirs | (torch.rand(seeds, users, generator=generator) < more)).double(), theirs.double()


def test_a_clear_difference_of_many_rows_needs_no_warning():
    difference = paired_difference(*hits(3, 20_000, 0.05, 0.02, 0))
    assert warnings_of(difference, difference.users) == []


def test_a_plain_difference_of_few_rows_is_not_called_invisible():
    ours, theirs = hits(3, 60, 0.2, 0.9, 0)
    found = paired_difference(ours, theirs)
    assert detectable_change(found, 60) > 0.2 * found.baseline  # a change of 20% would not be seen
    assert warnings_of(found, 60) == []
    assert any("10 rows" in warning for warning in warnings_of(paired_difference(*hits(3, 60, 0.2, 0.05, 0)), 10))


def test_seeds_that_hit_equally_often_by_chance_do_not_make_a_difference_certain():
    # 60 users; every seed finds six targets, each others, and so did the start: the difference is nothing.
    ours, theirs = torch.zeros(3, 60), torch.zeros(1, 60)
    for seed in range(3):
        ours[seed, seed * 6 : seed * 6 + 6] = 1
    theirs[0, 30:36] = 1
    found = paired_difference(ours, theirs)
    assert_same(found.effect, 0.0, tolerance=1e-12)
    assert found.low < -0.03
    assert found.high > 0.03
    assert found.p_value > 0.99
    assert found.by_seeds.degrees == 2
    assert 0 < detectable_change(found, 20) < math.inf
    assert any("20 rows" in warning for warning in warnings_of(found, 20))


def test_few_seeds_are_named_where_models_have_seeds():
    for seeds, words in ((1, "One training seed"), (2, "2 training seeds")):
        found = paired_difference(*hits(seeds, 20_000, 0.05, 0.02, 0))
        assert sum(words in warning for warning in warnings_of(found, 20_000)) == 1
        assert warnings_of(found, 20_000, trained=False) == []
    (warning,) = warnings_of(paired_difference(*hits(1, 20_000, 0.05, 0.02, 0)), 100, trained=False)
    assert warning.startswith("100 rows")


def test_a_difference_within_the_noise_of_seeds_is_named():
    found = paired_difference(1 + torch.tensor([[-0.3], [0.2], [-0.1]]).expand(-1, 9), torch.ones(1, 9))
    words = "The difference (−0.0667) is smaller than the noise between seeds (0.2517)"
    assert any(words in warning for warning in warnings_of(found, 9))
    steady = paired_difference(1 + torch.tensor([[0.3], [0.2], [0.1]]).expand(-1, 9), torch.ones(1, 9))
    assert not any("smaller than the noise" in warning for warning in warnings_of(steady, 9))


def test_the_number_of_rows_that_is_advised_is_enough_and_not_far_too_many():
    difference = paired_difference(*hits(3, 2000, 0.05, 0.01, 0))
    (warning,) = (warning for warning in warnings_of(difference, 100) if "100 rows" in warning)
    advised = int(warning.split("takes about ")[1].split()[0])
    goal = 0.2 * difference.baseline
    assert_same(detectable_change(difference, advised), goal, tolerance=0.05 * goal)
    assert not any("rows" in warning for warning in warnings_of(difference, 2 * advised))


def test_more_rows_are_not_advised_where_seeds_are_the_noise():
    found = paired_difference(1 + torch.tensor([[0.5], [1.5], [0.1]]).expand(-1, 9), torch.ones(1, 9))
    assert any("train more seeds" in warning for warning in warnings_of(found, 9))


def test_rows_that_say_nothing_are_named():
    found = paired_difference(*hits(3, 200, 0.05, 0.01, 0))
    assert any("Only 0 of the rows count" in warning for warning in warnings_of(found, 0))
    nothing = paired_difference(torch.eye(3, 8), torch.zeros(1, 8))
    assert any("scores 0 on all 8 rows" in warning for warning in warnings_of(nothing, 8))
    assert math.isnan(nothing.relative)


def test_an_interval_without_width_is_not_taken_for_certainty():
    same = torch.tensor([[0.0, 1.0, 0.0, 1.0] * 50])
    found = paired_difference(same.expand(3, -1), same)
    assert (found.low, found.effect, found.high) == (0, 0, 0)
    (warning,) = warnings_of(found, 200)
    assert "same outcome on all 200 rows" in warning
    assert "1.5% of users" in warning  # 3 of 200: the rule of three
    shifted = paired_difference(same.expand(3, -1) + 1, same)
    assert warnings_of(shifted, 200) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: paired_difference(torch.zeros(2, 4), torch.zeros(1, 3)), r"\[2, 4\] and \[1, 3\]"),
        (lambda: paired_difference(torch.zeros(2, 4), torch.zeros(4)), r"theirs as \[seeds, users\], got \[4\]"),
        (lambda: paired_difference(torch.zeros(2, 1), torch.zeros(2, 1)), "two or more users"),
        (
            lambda: paired_difference(torch.tensor([[0, math.nan, 1]]), torch.zeros(1, 3)),
            "1 of 3 values of ours",
        ),
        (lambda: paired_difference(torch.eye(2), torch.eye(2), confidence=95), r"must be in \(0, 1\), got 95"),
        (lambda: seed_interval(torch.zeros(0)), r"values as \[seeds\]"),
        (lambda: holm(torch.tensor([0.2, math.nan])), r"p-values in \[0, 1\]"),
        (lambda: detectable_change(paired_difference(torch.eye(2), torch.eye(2)), 1), "two or more rows, got 1"),
    ],
)
def test_bad_tables_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        given()
