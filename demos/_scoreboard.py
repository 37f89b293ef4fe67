"""The scoreboard: what each method gets in a family of tasks, how surely, and what is in print.

Every method of a setting plays the same tasks, which no tuning and no training has seen. So two
methods are compared task by task, and what is luck of the tasks is taken off. To add a method, give
`measure` a function play(rng, mdps, value) → scores (n, N) and a grid of values; to add a family,
tasks(rng, N), the optimum of each task, and the mean of that over the family.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from _common import FAMILY, TEST, TUNING, workers

from metarl_np import exact
from metarl_np.arguments import require
from metarl_np.compare.strategies import tune
from metarl_np.tasks.bandits import DEPENDENT
from metarl_np.tasks.random_mdps import random_mdps

# ---- what is printed: mean total rewards of a trial

# Duan et al. (2016), Table 1: bandits, by pulls n and arms k; means over 1,000 tasks. Their
# standard error is about .07 at n = 10; at n = 100 it is .5, .4, .3 for k = 5, 10, 50, and at n =
# 500 2.4, 1.5, 1: the best of many arms is never far from 1.
BANDITS_IN_PRINT = ("random", "gittins", "ts", "ots", "ucb1", "egreedy", "greedy", "rl2")
PUBLISHED_BANDITS = {
    (10, 5): (5.0, 6.6, 5.7, 6.5, 6.7, 6.6, 6.6, 6.7),
    (10, 10): (5.0, 6.6, 5.5, 6.2, 6.7, 6.6, 6.6, 6.7),
    (10, 50): (5.1, 6.5, 5.2, 5.5, 6.6, 6.5, 6.5, 6.8),
    (100, 5): (49.9, 78.3, 74.7, 77.9, 78.0, 75.4, 74.8, 78.7),
    (100, 10): (49.9, 82.8, 76.7, 81.4, 82.4, 77.4, 77.1, 83.5),
    (100, 50): (49.8, 85.2, 64.5, 67.7, 84.3, 78.3, 78.0, 84.9),
    (500, 5): (249.8, 405.8, 402.0, 406.7, 405.8, 388.2, 380.6, 401.6),
    (500, 10): (249.0, 437.8, 429.5, 438.9, 437.1, 408.0, 395.0, 432.5),
    (500, 50): (249.6, 463.7, 427.2, 437.6, 457.6, 413.6, 402.8, 438.9),
}
# the same, Table 2: random MDPs, by the number of episodes n
MDPS_IN_PRINT = ("random", "psrl", "opsrl", "ucrl2", "beb", "egreedy", "greedy", "rl2")
PUBLISHED_MDPS = {
    10: (100.1, 138.1, 144.1, 146.6, 150.2, 132.8, 134.8, 156.2),
    25: (250.2, 408.8, 425.2, 424.1, 427.8, 377.3, 368.8, 445.7),
    50: (499.7, 904.4, 930.7, 918.9, 917.8, 823.3, 769.3, 936.1),
    75: (749.9, 1417.1, 1449.2, 1427.6, 1422.6, 1293.9, 1172.9, 1428.8),
    100: (999.4, 1939.5, 1973.9, 1942.1, 1935.1, 1778.2, 1578.5, 1913.7),
}
# Mishra et al. (2018, SNAIL), Tables 3 and 4, by n and k, which is None for random MDPs. The 95%
# interval of bandits is .1 at n = 10 and .4 to 1.1 at n = 100. Of MDPs they print shares of what
# value iteration gets, .563 and .591; that is not printed: 20.76 an episode is what makes their
# .766 of SNAIL the 159.1 that a public reproduction prints.
PUBLISHED_MAML = {
    (10, 5): 6.5,
    (10, 10): 6.6,
    (10, 50): 6.6,
    (100, 5): 67.1,
    (100, 10): 70.1,
    (100, 50): 70.3,
    (10, None): 116.9,
    (25, None): 306.7,
}


def published(episodes, arms=None):
    """{method: the printed mean total} of bandits, or for arms = None of random MDPs."""
    if arms:
        found = dict(zip(BANDITS_IN_PRINT, PUBLISHED_BANDITS.get((episodes, arms), ())))
    else:
        found = dict(zip(MDPS_IN_PRINT, PUBLISHED_MDPS.get(episodes, ())))
    if (episodes, arms) in PUBLISHED_MAML:
        found["maml"] = PUBLISHED_MAML[episodes, arms]
    return found


# ---- what one who knows the task gets in an episode, on average


def mean_best_arm(arms, family=None):
    """(E max of the arms' means, its error: 0) of a family of `rl2_bandits`.

    arms: independent arms; None for two dependent ones of a `family`.
    """
    if arms:
        return arms / (arms + 1), 0.0  # the largest of k uniform numbers
    if family == "uniform":
        return 0.75, 0.0  # E max(p, 1 − p)
    return 1 - DEPENDENT[family], 0.0


def mean_optimum(seed, quick=False):
    """(E of the optimal return, its standard error) of random MDPs, over 200,000 of their own."""
    rng = np.random.default_rng((seed, FAMILY))
    batches = 1 if quick else 100
    best = [exact.optimal_return(random_mdps(rng, 2000)) for _ in range(batches)]
    best = np.concatenate(best)
    return float(best.mean()), standard_error(best)


# ---- one method: tuned on some tasks and measured on others


@dataclass(frozen=True, eq=False)
class Measured:
    """A method's totals on test tasks, the luck of the tasks taken off."""

    value: object  # of the hyperparameter, the best on tuning tasks
    tuning: dict  # {value: mean total on tuning tasks}; empty if nothing was tuned
    totals: np.ndarray  # (N,) of each test task
    episode: np.ndarray  # (n,) mean of each episode; their sum is the mean total
    luck: np.ndarray  # (N,) each task's optimum in an episode less the family's mean of it
    sem: float  # standard error of the mean total

    @property
    def mean(self):
        """The mean total."""
        return float(self.totals.mean())

    def row(self):
        """What every row of the JSON has of it."""
        row = dict(mean=self.mean, sem=self.sem, tasks=len(self.totals))
        if self.tuning:
            row |= dict(hyperparameter=self.value, tuning=self.tuning)
        return row


def measure(tasks, play, grid, best, mean_best, seed, *, n_tuning, n_test, chunk=1000):
    """Tune one method, and test it: Measured.

    A task's luck is best(task) − E best, whose mean over the family is 0. Good tasks are good for
    everyone: so each episode's scores are regressed on the luck, and slope × luck is taken off each
    score (a control variate; Owen 2013, *Monte Carlo theory*, §8.9). That changes no method's
    expectation, whatever the slope; since the slope is estimated on the same tasks a bias of order
    1/N is left, far below the standard error.

    tasks: tasks(rng, N) gives an MDP of N tasks.
    play: play(rng, mdps, value) gives the scores (n, N) of n episodes, `value` being from `grid`.
    grid: the values to tune; if there is only one, nothing is tuned.
    best: best(mdps) gives the score (N,) of an episode when the task is known.
    mean_best: its mean over the family and the standard error of that, which is 0 if it is exact.
    n_tuning, n_test: numbers of tasks; they are drawn and played `chunk` at a time, and the test
        tasks are the same for all methods that have the same tasks, chunk and seed.
    """
    value = grid[0]
    tuning = {}
    if len(grid) > 1:

        def trial(rng, value):
            return play(rng, tasks(rng, n_tuning), value)

        value, tuning = tune(np.random.default_rng((seed, TUNING)), trial, grid)
    rng = np.random.default_rng((seed, TEST))
    # tasks do not depend on what a method draws: all methods play the same ones
    task_rng = np.random.default_rng(rng.integers(2**64, size=2, dtype=np.uint64))
    expected, error = mean_best
    totals = []
    lucks = []
    episode = 0.0  # mean score of each, (n,)
    with_luck = 0.0  # E[score × luck] of each, (n,)
    for first in range(0, n_test, chunk):
        mdps = tasks(task_rng, min(chunk, n_test - first))
        scores = play(rng, mdps, value)
        luck = best(mdps) - expected
        totals.append(scores.sum(0))
        lucks.append(luck)
        episode = episode + scores.sum(1) / n_test
        with_luck = with_luck + scores @ luck / n_test
    totals = np.concatenate(totals)
    luck = np.concatenate(lucks)
    variance = luck.var()
    slope = np.zeros_like(episode)
    if variance > 1e-12:  # else every task is worth the same
        slope = (with_luck - episode * luck.mean()) / variance
    totals = totals - slope.sum() * luck
    return Measured(
        value=value,
        tuning=tuning,
        totals=totals,
        episode=episode - slope * luck.mean(),
        luck=luck,
        sem=float(np.hypot(standard_error(totals), slope.sum() * error)),
    )


def measure_all(run, jobs, progress):
    """{setting: {method: Measured}} of run(job) for each job, in worker processes.

    jobs: tuples that begin with a setting and the name of a method.
    """
    measured = {}
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            setting, method = job[:2]
            measured.setdefault(setting, {})[method] = result
    progress.done()
    return measured


def standard_error(x):
    """Of the mean of x (N,)."""
    return float(x.std() / np.sqrt(len(x)))


def difference(one, other):
    """(mean, standard error) of one's totals less the other's: two Measured.

    Task by task, on the tasks that both played, the first ones of whoever played more: so it is not
    exactly the difference of their means.
    """
    n = min(len(one.totals), len(other.totals))
    require(np.array_equal(one.luck[:n], other.luck[:n]), "one, other", "not of the same tasks")
    paired = one.totals[:n] - other.totals[:n]
    return float(paired.mean()), standard_error(paired)


# ---- rows of the JSON


def add_shares(rows, of):
    """Give each row of a setting its mean as a share of the row whose method is `of`.

    "optimum" is the Bayes-optimal learner's in bandits, and in random MDPs, where that is out of
    reach, of one who knows the task; "known" is always the latter.
    """
    optimum = next(row["mean"] for row in rows if row["method"] == of)
    for row in rows:
        row["share"] = row["mean"] / optimum
        row["share_of"] = of


def pairs(setting, measured):
    """Rows of the JSON, one for two methods each: measured is {method: Measured}.

    `difference` is the first method's mean less the second's; RL² always stands first. They are
    told apart if it is above two of its standard errors.
    """
    rows = []
    for one, other in combinations(sorted(measured, key=lambda method: method != "rl2"), 2):
        mean, sem = difference(measured[one], measured[other])
        row = dict(setting=setting, methods=[one, other], difference=mean, sem=sem)
        rows.append(row | dict(apart=abs(mean) > 2 * sem))
    return rows


def rl2_minus(compared, setting):
    """{method: (mean, standard error)} of RL² minus it, of the rows that `pairs` gave."""
    found = {}
    for row in compared:
        one, other = row["methods"]
        if row["setting"] == setting and one == "rl2":
            found[other] = row["difference"], row["sem"]
    return found


# ---- the tables


def number(mean, sem):
    """6.6441 ± 0.0031 as 6.644±.003, with one to three decimals."""
    digits = int(np.clip(np.ceil(-np.log10(max(sem, 1e-9))), 1, 3))
    text = f"{mean:.{digits}f}"
    if sem:
        text += f"±{sem:.{digits}f}".replace("±0.", "±.")
    return text


def print_table(head, lines):
    """A table in Markdown whose columns are as wide as their cells: head and lines are lists."""
    table = [head, ["---"] * len(head), *lines]
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")


def lines_of(name, rows, differences, methods, suffix=""):
    """Three lines of the table of one setting: mean, share of the optimum, and RL² minus each.

    rows: {method: row of the JSON}. differences: what `rl2_minus` gave. A column of a method shows
    `method + suffix`, or nothing if there is no such row. A line is a list of strings.
    """
    found = [rows.get(method + suffix) for method in methods]
    means = [number(row["mean"], row["sem"]) if row else "" for row in found]
    shares = [f"{row['share']:.1%}" if row else "" for row in found]
    minus = [differences.get(method + suffix) for method in methods]
    return [
        [name, "mean", *means],
        ["", "of the optimum", *shares],
        ["", "RL² minus it", *[compared(*d) if d else "" for d in minus]],
    ]


def compared(mean, sem):
    """A paired difference, with a question mark where it does not tell the two apart."""
    sign = "+" if mean > 0 else ""
    doubt = "" if abs(mean) > 2 * sem else " ?"
    return f"{sign}{number(mean, sem)}{doubt}"


def print_ties(rows):
    """A line a setting: which two cannot be told apart, of the rows that `pairs` gave."""
    print(
        "\nNot told apart, being within two standard errors of their paired difference (of twenty\n"
        "pairs that are equal one is beyond that by chance; RL² is one trained network, and ± is\n"
        "not of its training):"
    )
    ties = {row["setting"]: [] for row in rows}
    for row in rows:
        if not row["apart"]:
            ties[row["setting"]].append(" and ".join(row["methods"]))
    for setting, found in ties.items():
        print(f"  {setting}: {', '.join(found) or 'none'}")


def tuning_of_rl2(rows):
    """Lines on how RL² acts: its mean total on tuning tasks, both ways, in each setting."""
    lines = ["RL² takes its likeliest action (greedy) or samples, as was better on tuning tasks:"]
    for row in rows:
        if row["method"] == "rl2":
            tuning = row["tuning"]
            lines.append(f"  {row['setting']}: {tuning['greedy']:.3f}, {tuning['sampled']:.3f}")
    return "\n".join(lines)
