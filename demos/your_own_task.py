"""Your own task: MAML and recurrent RL² on environments that you bring.

You bring them as arrays, or as the tables of Gymnasium's toy-text environments. The family here is
FrozenLake 8x8 on maps that a random generator draws, not slippery: who walks into a hole is out,
and 1 is paid once, at the goal. Where the holes are must be found out anew on each map; a uniform
policy reaches the goal once in 30,000 episodes.

Both methods learn what maps have in common, and to do better on a new one from what they meet
there; neither comes near the optimum in two minutes. With Gymnasium installed its environments are
used; else, or with --arrays, the same family is made with NumPy. Every number is measured on maps
that no training saw. (On slippery maps, with 100 steps an episode, MAML had learned next to nothing
after 300 iterations: luck hides what an action is worth.)
"""

# %% What you bring: N tasks of one size, as arrays …
# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser

import numpy as np

from metarl_np import exact, maml, plots, rl2
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent
from metarl_np.tasks.gymnasium import mdp_from_gymnasium
from metarl_np.tasks.mdp import MDP

try:
    import gymnasium
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map
except ModuleNotFoundError:
    gymnasium = None

SIZE = 8
SETTINGS = dict(discount=0.99, horizon=20)


def from_arrays(rng, n):
    """N ≤ n tasks: of n maps with a hole in one of five cells, those whose goal can be reached.

    P (N, S, A, S) is the probability of a successor, R (N, S, A, S) what the transition pays, and
    `ends` (N, S) says which states end an episode. A state is a cell, counted along the rows.
    """
    n_states = SIZE * SIZE
    start = 0
    goal = n_states - 1
    cells = np.arange(n_states)
    row, column = np.divmod(cells, SIZE)
    ends = rng.random((n, n_states)) < 0.2
    ends[:, start] = False
    ends[:, goal] = True

    P = np.zeros((n, n_states, 4, n_states))
    # left, down, right, up
    for action, (down, right) in enumerate([(0, -1), (1, 0), (0, 1), (-1, 0)]):
        to_row = np.clip(row + down, 0, SIZE - 1)
        to_column = np.clip(column + right, 0, SIZE - 1)
        P[:, cells, action, SIZE * to_row + to_column] = 1
    task, end = np.nonzero(ends)
    P[task, end] = 0
    P[task, end, :, end] = 1  # an end leads to itself

    R = np.zeros(P.shape)
    R[..., goal] = 1  # on entering the goal
    R[task, end] = 0
    mdps = MDP.from_dense(P, R, start, terminal=ends, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]


# %% … or as Gymnasium's tables
def from_gymnasium(seed, n):
    """The same from the tables of Gymnasium's FrozenLake, on maps 0..n-1 of this seed."""
    tables = []
    for i in range(n):
        desc = generate_random_map(size=SIZE, seed=n * seed + i)
        environment = gymnasium.make("FrozenLake-v1", desc=desc, is_slippery=False)
        tables.append(environment.unwrapped.P)
    mdps = mdp_from_gymnasium(tables, 0, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]


# %% MAML: train, then adapt
def run_maml(rng, tasks, new, iterations, steps, show):
    """Its returns (steps + 1, N) on new tasks, after 0, 1, … inner steps."""
    policy = SoftmaxPolicy(*tasks.shape[1:])
    inner = Reinforce(50.0)

    def sample_tasks(rng):
        return tasks[rng.integers(len(tasks), size=40)]

    # with the score of the data it learns where to look first
    settings = dict(steps=1, episodes=20, step_size=0.05, with_score=True)
    for record in maml.train(
        rng, sample_tasks, policy, policy.init(), inner, iterations=iterations, **settings
    ):
        before, after = record.returns
        show(f"MAML, iteration {record.iteration}: return {before:.3f}, {after:.3f} after a step")
    path = maml.adapt(rng, new, policy, record.theta, inner, steps=steps, episodes=20)
    return np.array([exact.expected_return(new, policy.log_pi(theta)) for theta in path.thetas])


# %% RL²: train, then play trials
def run_rl2(rng, tasks, new, iterations, episodes, show):
    """Its returns (episodes, N) on new tasks, in each episode of a trial."""
    policy = rl2.RecurrentPolicy(*tasks.shape[1:], units=48)
    # it remembers for some 30 steps to begin with
    theta = policy.init(rng, memory=30)
    # with a discount and a λ of its own: a little biased, and much less noisy
    update = RecurrentPPO(step_size=0.01, discount=0.9, lam=0.5)

    def sample_tasks(rng):
        return tasks[rng.integers(len(tasks), size=128)]

    for record in train_recurrent(
        rng, sample_tasks, policy, theta, update, iterations=iterations, episodes=episodes
    ):
        show(f"RL², mean return of a trial {record.mean_return:.3f}")
    trials = rl2.sample_trials(rng, new, policy, record.theta, episodes)
    rewards = rl2.expected_rewards(new, trials)
    in_episode = trials.episode == np.arange(episodes)[:, None, None]
    return np.where(in_episode, rewards, 0).sum(1)


# %% The job
def options():
    """The command line, and where the tasks come from: "NumPy arrays" or "Gymnasium's tables"."""
    p = parser(__doc__)
    p.add_argument(
        "--arrays",
        action="store_true",
        help="the tasks from NumPy arrays, even where Gymnasium is installed",
    )
    arguments = p.parse_args()
    own = arguments.arrays or gymnasium is None
    return arguments, "NumPy arrays" if own else "Gymnasium's tables"


def make_tasks(rng, arguments, source, n):
    """Tasks to train on, four in five, and new ones."""
    mdps = from_arrays(rng, n) if source == "NumPy arrays" else from_gymnasium(arguments.seed, n)
    n_train = len(mdps) * 4 // 5
    return mdps[:n_train], mdps[n_train:]


def learn(rng, tasks, new, progress, *, maml_iterations, rl2_iterations, steps, episodes):
    """{method: its returns on the new tasks, (steps + 1, N) or (episodes, N)}."""
    returns = dict(
        maml=run_maml(rng, tasks, new, maml_iterations, steps, progress),
        rl2=run_rl2(rng, tasks, new, rl2_iterations, episodes, progress),
    )
    progress.done()
    return returns


def references(new):
    """{name: returns (1, N)} of those that do not learn."""
    n_actions = new.shape[2]
    uniform = np.full(new.shape[1:], -np.log(n_actions))
    optimum = exact.optimal_return(new)
    return dict(uniform=exact.expected_return(new, uniform)[None], optimum=optimum[None])


def rows_of(returns):
    """Mean and standard error over tasks, a row for each method and what it has done before."""
    rows = []
    for name, curve in returns.items():
        for after, x in enumerate(curve):
            sem = float(x.std(ddof=1) / np.sqrt(len(x)))
            rows.append(dict(method=name, after=after, mean=float(x.mean()), sem=sem))
    return rows


def print_table(rows, tasks, new, source):
    """A line a row."""
    print(
        f"FrozenLake 8x8, not slippery, from {source}: {len(tasks)} maps to train on, "
        f"{len(new)} new ones, {new.horizon} steps an episode\n"
        "mean discounted return on the new maps ± standard error over maps"
    )
    labels = dict(
        maml="MAML after {} inner steps (20 episodes each)",
        rl2="RL² after {} episodes",
        uniform="uniform policy",
        optimum="optimum, map known",
    )
    for row in rows:
        label = labels[row["method"]].format(row["after"])
        print(f"  {label:45s}{row['mean']:10.3g} ± {row['sem']:.1g}")


def draw(rows, n_new, out):
    """A panel for each of the two methods, with those that do not learn."""

    def column(name, key):
        return np.array([row[key] for row in rows if row["method"] == name])

    fig, axes = plots.figure(10, 4.2, columns=2)
    looks = (
        ("maml", "MAML", "blue", "inner steps (20 episodes each)"),
        ("rl2", "recurrent RL²", "red", "episodes before this one"),
    )
    for ax, (name, label, colour, unit) in zip(axes, looks):
        mean = column(name, "mean")
        spread = 2 * column(name, "sem")
        after = np.arange(len(mean))
        words = f"{label}, ± 2 standard errors"
        plots.curve(ax, after, mean, spread, label=words, colour=colour)
        level = np.repeat(column("uniform", "mean"), 2)
        ends = [0, len(mean) - 1]
        plots.curve(ax, ends, level, label="uniform policy", colour="grey", marker=None)
        plots.bound(ax, column("optimum", "mean")[0], "optimum, map known")
        ax.set(
            title=f"{label} on {n_new} new maps",
            xlabel=unit,
            ylabel="mean discounted return (the goal pays 1)",
            ylim=(-0.03, 1),
            xticks=range(len(mean)),
        )
        ax.legend(loc="center right", bbox_to_anchor=(1, 0.75), fontsize=9)
    return plots.save(fig, out, "your_own_task")


def main():
    arguments, source = options()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    if arguments.quick:
        n = 60
        size = dict(maml_iterations=3, rl2_iterations=2, steps=2, episodes=2)
    else:
        n = 1500
        size = dict(maml_iterations=2000, rl2_iterations=300, steps=10, episodes=5)
    tasks, new = make_tasks(rng, arguments, source, n)
    returns = learn(rng, tasks, new, progress, **size)
    rows = rows_of(returns | references(new))
    print_table(rows, tasks, new, source)
    print(f"{progress.seconds:.0f} s.")
    picture = draw(rows, len(new), arguments.out)
    finish(arguments, dict(curves=rows, source=source, seconds=progress.seconds), [picture])


if __name__ == "__main__":
    begin(main)
