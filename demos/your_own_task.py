"""Your own task: MAML and recurrent RL² on environments that you bring as arrays, or as the tables of Gymnasium's toy-text environments.

The family is FrozenLake 8x8 on maps that a random generator draws, not slippery: who walks into a hole is out, and 1 is paid once, at the
goal. Where the holes are must be found out anew on each map; a uniform policy reaches the goal once in 30,000 episodes. Both methods learn
what maps have in common, and to do better on a new one from what they meet there; neither comes near the optimum in two minutes. With
Gymnasium installed its environments are used; else, or with --arrays, the same family is made with NumPy. Every number is measured on maps
that no training saw. (On slippery maps, with 100 steps an episode, MAML had learned next to nothing after 300 iterations: luck hides what
an action is worth.)
"""

# %% What you bring: N tasks of one size, as arrays …
from _common import Progress, begin, finish, parser  # before numpy, whose threads it sets

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
    """P (N, S, 4, S), R (N, S, 4, S) and which states are ends: FrozenLake's maps, one cell in five a hole."""
    cells = np.arange(size**2)
    moves = np.clip(
        np.stack(np.divmod(cells, size), -1)[:, None] + [(0, -1), (1, 0), (0, 1), (-1, 0)],
        0,
        size - 1,
    ) @ (size, 1)
    ends = rng.random((n, size**2)) < 0.2
    ends[:, 0], ends[:, -1] = False, True  # start and goal
    P = np.where(
        ends[:, :, None, None], np.eye(size**2)[:, None], np.eye(size**2)[moves]
    )  # an end leads to itself
    R = np.where(
        (cells == cells[-1]) & ~ends[:, :, None, None], 1.0, np.zeros(P.shape)
    )  # paid on entering the goal
    mdps = MDP.from_dense(P, R, 0, terminal=ends, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]  # maps on which the goal can be reached in time


# %% … or as Gymnasium's tables
def from_gymnasium(seed, n):
    """FrozenLake 8x8 on maps 0..n-1 of this seed."""
    maps = [generate_random_map(size=8, seed=n * seed + i) for i in range(n)]
    tables = [
        gymnasium.make("FrozenLake-v1", desc=desc, is_slippery=False).unwrapped.P for desc in maps
    ]
    mdps = mdp_from_gymnasium(tables, 0, **SETTINGS)
    return mdps[exact.optimal_return(mdps) > 0]


# %% MAML: its curve of returns (k + 1, N) on new tasks, after 0..k inner steps
def run_maml(rng, tasks, new, iterations, steps, show):
    policy = SoftmaxPolicy(*tasks.shape[1:])
    for record in maml.train(
        rng,
        lambda rng: tasks[rng.integers(len(tasks), size=40)],
        policy,
        policy.init(),
        Reinforce(50.0),
        iterations=iterations,
        steps=1,
        episodes=20,
        step_size=0.05,
        with_score=True,
    ):  # the score: where to look first
        show(
            f"MAML, iteration {record.iteration}: return {record.returns[0]:.3f} before, {record.returns[1]:.3f} after a step"
        )
    path = maml.adapt(rng, new, policy, record.theta, Reinforce(50.0), steps=steps, episodes=20)
    return np.array([exact.expected_return(new, policy.log_pi(theta)) for theta in path.thetas])


# %% RL²: its curve of returns (n, N) on new tasks, in episodes 1..n of a trial
def run_rl2(rng, tasks, new, iterations, episodes, show):
    policy = rl2.RecurrentPolicy(*tasks.shape[1:], units=48)
    update = RecurrentPPO(step_size=0.01, discount=0.9, lam=0.5)
    for record in train_recurrent(
        rng,
        lambda rng: tasks[rng.integers(len(tasks), size=128)],
        policy,
        policy.init(rng, memory=30),
        update,
        iterations=iterations,
        episodes=episodes,
    ):
        show(f"RL², mean score of a trial {record.mean_return:.3f}")
    trials = rl2.sample_trials(rng, new, policy, record.theta, episodes)
    return np.array(
        [
            (rl2.expected_rewards(new, trials) * (trials.episode == e)).sum(0)
            for e in range(episodes)
        ]
    )


# %% The job
def main():
    p = parser(__doc__)
    p.add_argument(
        "--arrays",
        action="store_true",
        help="the tasks from NumPy arrays, even where Gymnasium is installed",
    )
    arguments = p.parse_args()
    source = "NumPy arrays" if arguments.arrays or gymnasium is None else "Gymnasium's tables"
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    n, maml_iterations, rl2_iterations, steps, episodes = (
        (60, 3, 2, 2, 2) if arguments.quick else (1500, 2000, 300, 10, 5)
    )
    mdps = from_arrays(rng, n) if source == "NumPy arrays" else from_gymnasium(arguments.seed, n)
    tasks = mdps[: len(mdps) * 4 // 5]
    new = mdps[len(mdps) * 4 // 5 :]
    curves = dict(
        maml=run_maml(rng, tasks, new, maml_iterations, steps, progress),
        rl2=run_rl2(rng, tasks, new, rl2_iterations, episodes, progress),
    )
    progress.done()

    uniform = np.full(new.shape[1:], -np.log(new.shape[2]))
    references = dict(
        uniform=exact.expected_return(new, uniform), optimum=exact.optimal_return(new)
    )
    rows = [
        dict(method=name, after=i, mean=float(x.mean()), sem=float(x.std(ddof=1) / np.sqrt(len(x))))
        for name, curve in (curves | {k: v[None] for k, v in references.items()}).items()
        for i, x in enumerate(curve)
    ]
    print(
        f"FrozenLake 8x8, not slippery, from {source}: {len(tasks)} maps to train on, {len(new)} new ones, {new.horizon} steps an "
        "episode\nmean discounted return on the new maps ± standard error over maps"
    )
    labels = dict(
        maml="MAML after {} inner steps (20 episodes each)",
        rl2="RL² after {} episodes",
        uniform="uniform policy",
        optimum="optimum, map known",
    )
    for row in rows:
        print(
            f"  {labels[row['method']].format(row['after']):45s}{row['mean']:10.3g} ± {row['sem']:.1g}"
        )
    print(f"{progress.seconds:.0f} s.")

    fig, axes = plots.figure(10, 4.2, columns=2)
    looks = (
        ("maml", "MAML", "blue", "inner steps (20 episodes each)"),
        ("rl2", "recurrent RL²", "red", "episodes before this one"),
    )
    for ax, (name, label, colour, unit) in zip(axes, looks):
        mean, sem = (
            np.array([r[key] for r in rows if r["method"] == name]) for key in ("mean", "sem")
        )
        plots.curve(
            ax,
            np.arange(len(mean)),
            mean,
            2 * sem,
            label=f"{label}, ± 2 standard errors",
            colour=colour,
        )
        plots.curve(
            ax,
            [0, len(mean) - 1],
            [references["uniform"].mean()] * 2,
            label="uniform policy",
            colour="grey",
            marker=None,
        )
        plots.bound(ax, references["optimum"].mean(), "optimum, map known")
        ax.set(
            title=f"{label} on {len(new)} new maps",
            xlabel=unit,
            ylabel="mean discounted return (the goal pays 1)",
            ylim=(-0.03, 1),
            xticks=range(len(mean)),
        )
        ax.legend(loc="center right", bbox_to_anchor=(1, 0.75), fontsize=9)
    finish(
        arguments,
        dict(curves=rows, source=source, seconds=progress.seconds),
        [plots.save(fig, arguments.out, "your_own_task")],
    )


if __name__ == "__main__":
    begin(main)
