"""On bandits MAML is the gradient bandit: above what is printed for it, below who counts pulls.

Of a policy of one state, whose arms may change places, the start cannot be meta-learned: at
uniform parameters the meta-gradient is 0 by symmetry (tests/meta/test_maml.py has it exactly). What
is left to learn is the inner step. With one step after every pull it is the gradient bandit of
Sutton & Barto (2018), §2.8, with a constant baseline, and in random MDPs the same with a table and
one step after every episode. Its step size α and baseline b are chosen on tuning tasks. The columns
beside it are in print: MAML in Mishra et al. (2018, SNAIL), Tables 3 and 4, for small n; the others
in Duan et al. (2016).
"""

# %% The settings, and what is printed for them
from itertools import product
from typing import NamedTuple

# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser

import numpy as np
from _scoreboard import (
    PUBLISHED_MAML,
    mean_best_arm,
    mean_optimum,
    measure,
    measure_all,
    number,
    print_table,
    published,
)

from metarl_np import bandits, exact, maml
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.tasks.random_mdps import random_mdps


class Setting(NamedTuple):
    """A trial of n episodes in bandits of k arms, or for arms = None in random MDPs."""

    episodes: int
    arms: int | None = None

    def __str__(self):
        return f"n={self.episodes}" + (f" k={self.arms}" if self.arms else " MDPs")


IN_PRINT = [Setting(*sizes) for sizes in PUBLISHED_MAML]
# the other published sizes, for which no MAML is printed
LONG = [Setting(500, 5), Setting(500, 10), Setting(500, 50), Setting(50), Setting(75), Setting(100)]
METHODS = dict(
    uniform="uniform policy",
    maml="MAML",
    gittins="Gittins",
    psrl="PSRL",
    rl2="RL²",
)


def in_print(setting):
    """{method: the printed mean total}, of the methods of METHODS that are printed."""
    found = published(*setting)
    found["uniform"] = found["random"]
    return {method: found[method] for method in METHODS if method in found}


# %% What is left to learn: the inner step
def step_and_baseline(win, loss):
    """(α, b) of the step that is +win at reward 1 and −loss at reward 0: α (1 − b) and −α b."""
    return win + loss, loss / (win + loss)


def grid_of(setting):
    """The values (α, b) to choose from."""
    if setting.arms is None:
        return tuple(product((0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4), (1.0, 1.3, 1.6)))
    if setting.episodes == 10:
        # so far that an arm which won stays, and one which lost at first never comes back
        wins = (5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
        steps = product(wins, (100.0, 200.0, 300.0, 500.0, 800.0))
    else:
        steps = product((0.1, 0.2, 0.3, 0.6, 1.0, 1.6), (0.7, 1.4, 2.4, 3.6))
    return tuple(step_and_baseline(win, loss) for win, loss in steps)


def constant_baseline(b, horizon):
    """b for each step that is left: at step t the baseline is b (T − t). For bandits it is b."""
    steps_left = np.arange(horizon, 0.0, -1.0)

    def baseline(returns, episodes):
        return np.broadcast_to(b * steps_left[:, None, None], returns.shape)

    return baseline


def maml_play(n):
    """The function that plays MAML from the uniform policy, for `measure`.

    After every episode but the last there is one step: with one state and a pull of arm a,
    θ ← θ + α (r − b) (e_a − π).
    """

    def play(rng, mdps, value):
        step_size, b = value
        policy = SoftmaxPolicy(*mdps.shape[1:])
        inner = Reinforce(step_size, baseline=constant_baseline(b, mdps.horizon))
        length = dict(steps=n - 1, episodes=1)
        path = maml.adapt(rng, mdps, policy, policy.init(), inner, **length)
        return np.array([expected_rewards(mdps, episodes) for episodes in path.episodes])

    return play


def expected_rewards(mdps, episodes):
    """The mean rewards of what was done, summed over the one episode of each task: (N,)."""
    task = np.arange(len(mdps))
    earned = mdps.expected_rewards[task, episodes.states[..., 0], episodes.actions[..., 0]]
    return earned.sum(0)


def uniform_play(n):
    """The function that plays the uniform policy, for `measure`; exactly in each task."""

    def play(rng, mdps, value):
        policy = SoftmaxPolicy(*mdps.shape[1:])
        returns = exact.expected_return(mdps, policy.log_pi(policy.init()))
        return np.broadcast_to(returns, (n, len(mdps)))

    return play


# %% The job
def task_family(setting):
    """tasks(rng, N) → MDP."""
    if setting.arms is None:
        return random_mdps
    return lambda rng, n_tasks: bandits.independent(rng, n_tasks, setting.arms)


def sizes_of(setting):
    """How many tasks to tune on, to test on, and to play at a time."""
    if setting.arms is None:
        return dict(n_tuning=500, n_test=5_000, chunk=500)
    if setting.episodes == 10:
        return dict(n_tuning=20_000, n_test=20_000)
    # a trial keeps what its steps went through
    chunk = 1000 if setting.episodes <= 100 else 500
    return dict(n_tuning=2 * chunk, n_test=20_000, chunk=chunk)


def run(job):
    """`_scoreboard.measure` of one method; mean_best is that of the family's tasks."""
    setting, method, mean_best, seed, quick = job
    n = setting.episodes
    play = maml_play(n) if method == "maml" else uniform_play(n)
    grid = grid_of(setting) if method == "maml" else (None,)
    sizes = sizes_of(setting)
    if quick:
        grid = grid[:2]
        sizes = dict(n_tuning=20, n_test=100)
    best = exact.optimal_return
    return measure(task_family(setting), play, grid, best, mean_best, seed, **sizes)


def rows_of(setting, measured):
    """Rows of the JSON, one a method, of {method: Measured}; and what is printed of others."""
    rows = []
    printed = in_print(setting)
    for method in METHODS:
        row = dict(setting=str(setting), method=method)
        if method in measured:
            row |= measured[method].row() | dict(episode=measured[method].episode.tolist())
        if method == "maml":
            row |= tuned_step(measured[method])
        if method in printed:
            row["published"] = printed[method]
        if method in measured or method in printed:
            rows.append(row)
    return rows


def tuned_step(measured):
    """What a row of the JSON has of MAML's tuning: α, b, and the mean total with each pair."""
    step_size, b = measured.value
    tuning = [
        dict(step_size=step_size, baseline=b, mean=mean)
        for (step_size, b), mean in measured.tuning.items()
    ]
    return dict(hyperparameter=[step_size, b], step_size=step_size, baseline=b, tuning=tuning)


def print_settings(rows):
    """A line a setting: what was measured, what was tuned, and what is printed."""
    lines = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = {row["method"]: row for row in rows if row["setting"] == name}
        ours = mine["maml"]
        measured = [number(mine[m]["mean"], mine[m]["sem"]) for m in ("uniform", "maml")]
        tuned = f"{ours['step_size']:.4g}, {ours['baseline']:.3g}"
        in_print = [str(mine.get(m, {}).get("published", "")) for m in ("maml", "gittins", "psrl")]
        lines.append([name, *measured, tuned, *in_print, str(mine["rl2"]["published"])])
    printed = [f"{name}, printed" for name in ("MAML", "Gittins", "PSRL", "RL²")]
    titles = ["", "uniform", "MAML", "α, b", *printed]
    print_table(titles, lines)


def main():
    p = parser(__doc__)
    p.add_argument(
        "--all",
        action="store_true",
        help="also where no MAML is printed: bandits of 500 pulls, MDPs of 50 to 100 episodes",
    )
    arguments = p.parse_args()
    chosen = [*IN_PRINT, *(LONG if arguments.all else [])]
    progress = Progress()
    progress("what one who knows a random MDP gets")
    of_mdps = mean_optimum(arguments.seed, arguments.quick)
    jobs = []
    for setting in chosen:
        mean_best = mean_best_arm(setting.arms) if setting.arms else of_mdps
        for method in ("uniform", "maml"):
            jobs.append((setting, method, mean_best, arguments.seed, arguments.quick))
    measured = measure_all(run, jobs, progress)
    rows = [row for setting in chosen for row in rows_of(setting, measured[setting])]
    print_settings(rows)
    print(
        "\nMean total reward ± standard error on test tasks, whose luck is taken off; α and b\n"
        "were chosen on others. MAML in print (Mishra et al. 2018) has an error of .05 (n = 10),\n"
        ".2 to .6 (n = 100); Gittins, PSRL and RL² are those of Duan et al. (2016).\n"
        f"{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=rows, seconds=progress.seconds), [])


if __name__ == "__main__":
    begin(main)
