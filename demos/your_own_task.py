"""Your own task: MAML and recurrent RL² on tasks that you bring.

You bring them as arrays, or as the tables of Gymnasium's toy-text environments. The family here is
FrozenLake 8x8 on maps that a random generator draws, not slippery: who walks into a hole is out,
and 1 is paid once, at the goal. Where the holes are must be found out anew on each map; a uniform
policy reaches the goal once in 30,000 episodes. Both methods learn what maps have in common, and to
do better on a new one from what they meet there; neither comes near the optimum in two minutes.
With Gymnasium installed its environments are used; else, or with --arrays, the same family is made
with NumPy. Every number is measured on maps that no training saw. (On slippery maps, with 100 steps
an episode, MAML had learned next to nothing after 300 iterations: luck hides what an action is
worth.)
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
SETTINGS = dict(discount=0.99, horizon=20)


def from_arrays(rng, n, size=8):
    """MDP of FrozenLake's maps, one cell in five a hole, from P[n, s, a, s'] and R[n, s, a, s']."""
    n_states = size * size
    cells = np.arange(n_states)
    row, column = np.divmod(cells, size)
    ends = rng.random((n, n_states)) < 0.2
    ends[:, 0] = False  # start
    ends[:, -1] = True  # goal
    P = np.zeros((n, n_states, 4, n_states))
    for action, (down, right) in enumerate([(0, -1), (1, 0), (0, 1), (-1, 0)]):
        to_row = np.clip(row + down, 0, size - 1)
        to_column = np.clip(column + right, 0, size - 1)
        P[:, cells, action, size * to_row + to_column] = 1
    task, end = np.nonzero(ends)
    P[task, end] = np.eye(n_states)[end, None]  # an end leads to itself
    R = np.zeros(P.shape)
    R[..., -1] = ~ends[..., None]  # 1 on entering the goal
    mdps = MDP.from_dense(P, R, start=0, terminal=ends, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]  # maps on which the goal can be reached in time


# %% … or as Gymnasium's tables
def from_gymnasium(seed, n):
    """MDP of FrozenLake 8x8 on maps 0..n-1 of this seed."""
    tables = []
    for i in range(n):
        desc = generate_random_map(size=8, seed=n * seed + i)
        lake = gymnasium.make("FrozenLake-v1", desc=desc, is_slippery=False)
        tables.append(lake.unwrapped.P)
    mdps = mdp_from_gymnasium(tables, start=0, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]


# %% MAML: its curve of returns (k + 1, N) on new tasks, after 0..k inner steps
def run_maml(rng, tasks, new, iterations, steps, show):
    """Meta-train on `tasks`, then adapt to the new ones."""
    policy = SoftmaxPolicy(*tasks.shape[1:])
    inner = Reinforce(step_size=50.0)

    def sample_tasks(rng):
        return tasks[rng.integers(len(tasks), size=40)]

    sizes = dict(iterations=iterations, steps=1, episodes=20, step_size=0.05)
    # the score of the inner data teaches where to look first
    for record in maml.train(
        rng, sample_tasks, policy, policy.init(), inner, with_score=True, **sizes
    ):
        before, after = record.returns
        show(f"MAML, iteration {record.iteration}: {before:.3f} before, {after:.3f} after a step")
    path = maml.adapt(rng, new, policy, record.theta, inner, steps=steps, episodes=20)
    return np.array([exact.expected_return(new, policy.log_pi(theta)) for theta in path.thetas])


# %% RL²: its curve of returns (n, N) on new tasks, in episodes 1..n of a trial
def run_rl2(rng, tasks, new, iterations, episodes, show):
    """Train on trials in `tasks`, then play a trial in each of the new ones."""
    policy = rl2.RecurrentPolicy(*tasks.shape[1:], units=48)
    start = policy.init(rng, memory=30)  # its units remember for up to 30 steps
    update = RecurrentPPO(step_size=0.01, discount=0.9, lam=0.5)

    def sample_tasks(rng):
        return tasks[rng.integers(len(tasks), size=128)]

    sizes = dict(iterations=iterations, episodes=episodes)
    for record in train_recurrent(rng, sample_tasks, policy, start, update, **sizes):
        show(f"RL², mean return of a trial {record.mean_return:.3f}")
    trials = rl2.sample_trials(rng, new, policy, record.theta, episodes)
    payoffs = rl2.expected_rewards(new, trials)
    return np.array([(payoffs * (trials.episode == e)).sum(0) for e in range(episodes)])


# %% The table and the picture
LABELS = dict(
    maml="MAML after {} inner steps (20 episodes each)",
    rl2="RL² after {} episodes",
    uniform="uniform policy",
    optimum="optimum, map known",
)


def rows_of(curves):
    """A row of the JSON for each point of {method: returns (points, maps)}."""
    rows = []
    for method, curve in curves.items():
        for i, x in enumerate(curve):
            sem = x.std(ddof=1) / np.sqrt(len(x))
            rows.append(dict(method=method, after=i, mean=float(x.mean()), sem=float(sem)))
    return rows


def draw(rows, n_maps, out):
    """A panel for MAML and one for RL², with what a uniform policy and the optimum get."""
    means = {method: [r["mean"] for r in rows if r["method"] == method] for method in LABELS}
    sems = {method: [r["sem"] for r in rows if r["method"] == method] for method in LABELS}
    fig, axes = plots.figure(10, 4.2, columns=2)
    panels = (
        ("maml", "MAML", "blue", "inner steps (20 episodes each)"),
        ("rl2", "recurrent RL²", "red", "episodes before this one"),
    )
    for ax, (method, name, colour, unit) in zip(axes, panels):
        points = np.arange(len(means[method]))
        spread = 2 * np.array(sems[method])
        label = f"{name}, ± 2 standard errors"
        plots.curve(ax, points, means[method], spread, label=label, colour=colour)
        ends = [0, points[-1]]
        look = dict(label="uniform policy", colour="grey", marker=None)
        plots.curve(ax, ends, means["uniform"] * 2, **look)
        plots.bound(ax, means["optimum"][0], LABELS["optimum"])
        ax.set(
            title=f"{name} on {n_maps} new maps",
            xlabel=unit,
            ylabel="mean discounted return (the goal pays 1)",
            ylim=(-0.03, 1),
            xticks=points,
        )
        ax.legend(loc="center right", bbox_to_anchor=(1, 0.75), fontsize=9)
    return plots.save(fig, out, "your_own_task")


# %% The job
def main():
    p = parser(__doc__)
    why = "the tasks from NumPy arrays, even where Gymnasium is installed"
    p.add_argument("--arrays", action="store_true", help=why)
    arguments = p.parse_args()
    source = "NumPy arrays" if arguments.arrays or gymnasium is None else "Gymnasium's tables"
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    n, steps, episodes = (60, 2, 2) if arguments.quick else (1500, 10, 5)
    maml_iterations, rl2_iterations = (3, 2) if arguments.quick else (2000, 300)
    mdps = from_arrays(rng, n) if source == "NumPy arrays" else from_gymnasium(arguments.seed, n)
    n_train = len(mdps) * 4 // 5
    tasks = mdps[:n_train]
    new = mdps[n_train:]
    uniform = np.full(new.shape[1:], -np.log(new.shape[2]))
    curves = dict(
        maml=run_maml(rng, tasks, new, maml_iterations, steps, progress),
        rl2=run_rl2(rng, tasks, new, rl2_iterations, episodes, progress),
        uniform=exact.expected_return(new, uniform)[None],
        optimum=exact.optimal_return(new)[None],
    )
    progress.done()
    rows = rows_of(curves)
    print(
        f"FrozenLake 8x8, not slippery, from {source}: {len(tasks)} maps to train on, "
        f"{len(new)} new ones, {new.horizon} steps an episode\n"
        "mean discounted return on the new maps ± standard error over maps"
    )
    for row in rows:
        label = LABELS[row["method"]].format(row["after"])
        print(f"  {label:45s}{row['mean']:10.3g} ± {row['sem']:.1g}")
    print(f"{progress.seconds:.0f} s.")
    numbers = dict(curves=rows, source=source, seconds=progress.seconds)
    finish(arguments, numbers, [draw(rows, len(new), arguments.out)])


if __name__ == "__main__":
    begin(main)
