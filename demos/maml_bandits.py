"""On bandits MAML is the gradient bandit: above what is printed for it, below who counts pulls.

Of a policy of one state, whose arms may change places, the start cannot be meta-learned: at
uniform parameters the meta-gradient is 0 by symmetry (tests/meta/test_maml.py has it exactly). What
is left to learn is the inner step. With one step after every pull it is the gradient bandit of
Sutton & Barto (2018), §2.8, with a constant baseline, and in random MDPs the same with a table and
one step after every episode. Its step size α and baseline b are chosen on tuning tasks. The columns
beside it are those of Mishra et al. (2018, SNAIL), Tables 3 and 4, which print MAML for small n.
"""

# %% The settings, and what is printed for them
from itertools import product
from typing import NamedTuple

# before numpy, whose threads it sets
from _common import Progress, begin, finish, measure, number, parser, workers

import numpy as np

from metarl_np import bandits, exact, maml
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.tasks.random_mdps import random_mdps
from rl2_bandits import COLUMNS as BANDIT_COLUMNS
from rl2_bandits import PUBLISHED as PUBLISHED_BANDITS
from rl2_mdps import COLUMNS as MDP_COLUMNS
from rl2_mdps import PUBLISHED as PUBLISHED_MDPS


class Setting(NamedTuple):
    """A trial of n episodes in bandits of k arms, or for arms = None in random MDPs."""

    episodes: int
    arms: int | None = None

    def __str__(self):
        return f"n={self.episodes}" + (f" k={self.arms}" if self.arms else " MDPs")


# Mishra et al. (2018); ± there is a 95% interval. Of MDPs they print .563 and .591 of what value
# iteration gets, which is 20.76 an episode.
PUBLISHED_MAML = {
    Setting(10, 5): 6.5,
    Setting(10, 10): 6.6,
    Setting(10, 50): 6.6,
    Setting(100, 5): 67.1,
    Setting(100, 10): 70.1,
    Setting(100, 50): 70.3,
    Setting(10): 116.9,
    Setting(25): 306.7,
}
# the other published sizes, for which no MAML is printed
LONG = [Setting(500, 5), Setting(500, 10), Setting(500, 50), Setting(50), Setting(75), Setting(100)]
METHODS = dict(
    uniform="uniform policy",
    maml="MAML",
    gittins="Gittins",
    psrl="PSRL",
    rl2="RL²",
)


def published(setting):
    """{method: the printed mean total}, of the methods of METHODS that are printed."""
    if setting.arms:
        found = dict(zip(BANDIT_COLUMNS, PUBLISHED_BANDITS[setting]))
    else:
        found = dict(zip(MDP_COLUMNS, PUBLISHED_MDPS[setting.episodes]))
    found["uniform"] = found["random"]
    found["maml"] = PUBLISHED_MAML.get(setting)
    return {method: found[method] for method in METHODS if found.get(method)}


# %% What is left to learn: the inner step
def step_and_baseline(win, loss):
    """(α, b) of the step that is +win at reward 1 and −loss at reward 0: α (1 − b) and −α b."""
    return win + loss, loss / (win + loss)


def grid_of(setting):
    """The values (α, b) to choose from."""
    if setting.arms is None:
        return tuple(product((0.4, 0.8, 1.6, 3.2), (1.0, 1.3, 1.6)))
    if setting.episodes == 10:
        # so far that an arm which won stays, and one which lost at first never comes back
        steps = product((5.0, 6.0, 7.5), (100.0, 150.0, 200.0, 300.0))
    else:
        steps = product((0.3, 0.6, 1.0, 1.6), (1.4, 2.4, 3.6))
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
    """How many tasks to tune on, and to test on at a time; and the latter's number."""
    n_test = 20_000 if setting.arms else 5_000
    if setting.episodes == 10 and setting.arms:
        return dict(n_tuning=20_000, n_test=n_test)
    if setting.episodes <= 100 and setting.arms:
        return dict(n_tuning=2_000, n_test=n_test, chunk=1000)
    # a trial keeps what its steps went through
    return dict(n_tuning=500, n_test=n_test, chunk=500)


def run(job):
    """`_common.measure` of one method."""
    setting, method, seed, quick = job
    n = setting.episodes
    play = maml_play(n) if method == "maml" else uniform_play(n)
    grid = grid_of(setting) if method == "maml" else (None,)
    sizes = sizes_of(setting)
    if quick:
        grid = grid[:2]
        sizes = dict(n_tuning=20, n_test=100)
    return measure(task_family(setting), play, grid, exact.optimal_return, seed, **sizes)


def rows_of(setting, results):
    """Rows of the JSON, one a method: what was measured, and what is printed."""
    rows = []
    printed = published(setting)
    for method in METHODS:
        row = dict(setting=str(setting), method=method)
        if method in results:
            result = results[method]
            row |= {key: result[key] for key in ("mean", "sem", "tasks", "episode")}
            if result["tuning"]:
                step_size, b = result["value"]
                row |= dict(step_size=step_size, baseline=b)
                row["tuning"] = [
                    dict(step_size=step_size, baseline=b, mean=mean)
                    for (step_size, b), mean in result["tuning"].items()
                ]
        if method in printed:
            row["published"] = printed[method]
        if method in results or method in printed:
            rows.append(row)
    return rows


def print_settings(rows):
    """A line a setting: what was measured, what is printed, and what was tuned."""
    titles = ["uniform", "MAML", "in print:", "MAML", "Gittins", "PSRL", "RL²", "α", "b"]
    print(f"\n{'':12s}" + "".join(f"{title:>12s}" for title in titles))
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = {row["method"]: row for row in rows if row["setting"] == name}
        ours = mine["maml"]
        cells = [number(mine[m]["mean"], mine[m]["sem"]) for m in ("uniform", "maml")]
        cells.append("")
        cells += [mine.get(m, {}).get("published", "") for m in ("maml", "gittins", "psrl", "rl2")]
        cells += [f"{ours['step_size']:.4g}", f"{ours['baseline']:.3g}"]
        print(f"{name:12s}" + "".join(f"{cell:>12}" for cell in cells))


def main():
    p = parser(__doc__)
    p.add_argument(
        "--all",
        action="store_true",
        help="also where no MAML is printed: bandits of 500 pulls, MDPs of 50 to 100 episodes",
    )
    arguments = p.parse_args()
    chosen = [*PUBLISHED_MAML, *(LONG if arguments.all else [])]
    progress = Progress()
    jobs = [
        (setting, method, arguments.seed, arguments.quick)
        for setting in chosen
        for method in ("uniform", "maml")
    ]
    results = {setting: {} for setting in chosen}
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            progress(f"{i + 1} of {len(jobs)} methods measured")
            setting, method = job[:2]
            results[setting][method] = result
    progress.done()
    rows = [row for setting in chosen for row in rows_of(setting, results[setting])]
    print_settings(rows)
    print(
        "\nMean total reward ± standard error on test tasks; α and b were chosen on others.\n"
        "The printed MAML has an error of about .05 (n = 10), .2 to .6 (n = 100).\n"
        f"{progress.seconds:.0f} s."
    )
    finish(arguments, dict(rows=rows, seconds=progress.seconds), [])


if __name__ == "__main__":
    begin(main)
