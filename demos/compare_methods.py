"""What each way to learn from other tasks is worth in a new one: exact return against environment steps spent there.

Held-out goals on the far edges of a slippery 7x7 grid, for MAML and two-level RL² (inner PPO and TRPO; outer gradient first or second
order), multi-task training with fine-tuning, learning from scratch, and planning with a learned model: posterior sampling, posterior
mean, and sampling with the true prior. Then TRPO's KL per step inside its radius, and a meta-learned value function.
"""

# %% The tasks and the methods
from dataclasses import replace

import numpy as np

from _common import Progress, begin, finish, parser, workers
from metarl_np import beliefs, exact, maml, planners, plots, values
from metarl_np.compare.priors import fit_goals, fit_slip
from metarl_np.learner.advantages import mean_kl, visits
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import FirstOrder, Reinforce
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.trpo import TRPO
from metarl_np.tasks.gridworld import GridWorld

GRID = GridWorld.open(7, 7, discount=0.95, horizon=18, slip=0.1)
GOALS = np.array([cell for cell in GRID.free_cells if cell // 7 == 6 or cell % 7 == 6])
HELD_OUT = GOALS[1::3]
TRAIN = np.setdiff1d(GOALS, HELD_OUT)
POLICY = SoftmaxPolicy(49, 4)
STEPS = 10
EPISODES = 20
MILESTONES = (0, 100, 300, 1000, 3000)  # environment steps at which the table is read
STEP_SIZES = (
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
)  # multi-task and scratch fine-tune with the best of these on training goals
PPO_STEP = PPO(5.0, clip=0.5)
TRPO_STEP = TRPO(0.1, damping=0.1)
VALUE_STEP = 0.3
LEARNERS = {  # name: (inner update, inner steps in training, iterations, colour, line)
    "maml": (Reinforce(10.0), 1, 400, "blue", "-"),
    "maml_first_order": (FirstOrder(Reinforce(10.0)), 1, 400, "blue", ":"),
    "rl2_ppo": (PPO_STEP, 1, 250, "green", "-"),
    "rl2_ppo_first_order": (FirstOrder(PPO_STEP), 1, 250, "green", ":"),
    "rl2_trpo": (TRPO_STEP, 1, 120, "red", "-"),
    "rl2_trpo_first_order": (FirstOrder(TRPO_STEP), 1, 120, "red", ":"),
    "multi_task": (None, 0, 400, "orange", "-"),
    "scratch": (None, 0, 0, "grey", "-"),
}
PLANNERS = {
    "posterior_sampling": ("purple", "-"),
    "posterior_mean": ("sky", "-"),
    "true_prior": ("black", "-"),
}


def sample_tasks(rng):
    """Forty training tasks."""
    return GRID.mdps(rng.choice(TRAIN, 40))


# %% Learners: θ from training, then inner steps in the new tasks
def adapted_returns(rng, goals, theta, inner):
    """(environment steps spent, exact return) before and after each inner step, means over tasks: (STEPS + 1,) each."""
    mdps = GRID.mdps(goals)
    path = maml.adapt(rng, mdps, POLICY, theta, inner, steps=STEPS, episodes=EPISODES)
    spent = np.cumsum([0] + [e.mask.sum((0, 2)).mean() for e in path.episodes[:-1]])
    return spent, np.array(
        [exact.expected_return(mdps, POLICY.log_pi(th)).mean() for th in path.thetas]
    )


def run_learner(job):
    """Train one method with one seed and let it adapt to the held-out goals, each five times."""
    name, seed, shorten = job
    inner, steps, iterations, _, _ = LEARNERS[name]
    rng = np.random.default_rng(seed)
    theta = POLICY.init()
    start = (rng, sample_tasks, POLICY, theta)
    settings = dict(iterations=iterations // shorten, step_size=0.05)
    if inner is None:
        records = maml.train_multi_task(*start, episodes=2 * EPISODES, **settings)
    else:
        records = maml.train(*start, inner, steps=steps, episodes=EPISODES, **settings)
    for record in records:
        theta = record.theta
    if inner is None:
        scores = [adapted_returns(rng, TRAIN, theta, Reinforce(a))[1].mean() for a in STEP_SIZES]
        inner = Reinforce(STEP_SIZES[int(np.argmax(scores))])
    return adapted_returns(rng, np.repeat(HELD_OUT, 5), theta, inner)


# %% Planners: what the training tasks have in common, then Bayes' rule and value iteration
def run_planner(job):
    """(environment steps spent, exact return) before each episode in the new tasks."""
    name, seed, shorten = job
    rng = np.random.default_rng(seed)
    if name == "true_prior":
        grid = GRID
        prior = np.isin(GRID.free_cells, GOALS) / len(GOALS)
    else:
        training = rollout(rng, GRID.mdps(TRAIN), np.full((49, 4), -np.log(4)), 50)
        grid = replace(GRID, slip=fit_slip(GRID, TRAIN, training))
        prior = fit_goals(GRID, TRAIN)
    mdps = GRID.mdps(
        np.repeat(HELD_OUT, 12)
    )  # planning depends on luck more than learning does, and costs less
    belief = beliefs.FiniteBelief(grid.mdps(GRID.free_cells), np.repeat(prior[None], len(mdps), 0))
    plan = planners.mean_plan if name == "posterior_mean" else planners.sample_plan
    timed = mdps.with_time()
    returns = []
    lengths = []
    for value, log_pi, _ in planners.act(rng, mdps, belief, episodes=30 // shorten, plan=plan):
        returns.append(value.mean())
        alive = exact.occupancy(replace(timed, discount=1.0), log_pi) * ~timed.terminal
        lengths.append(alive.sum((0, 2)).mean())
    return np.cumsum([0] + lengths[:-1]), np.array(returns)


# %% TRPO's KL, and values
def trpo_kl(rng, iterations):
    """KL̄(π_old‖π_new) of each TRPO step in every training task: (iterations, N)."""
    mdps = GRID.mdps(TRAIN)
    theta = np.zeros((len(TRAIN), 49, 4))
    kls = []
    for _ in range(iterations):
        data = rollout(rng, mdps, POLICY.log_pi(theta), EPISODES)
        new = TRPO_STEP(POLICY, theta, TRPO_STEP.prepare(POLICY, theta, data, mdps.discount))
        kls.append(mean_kl(POLICY, theta, new, visits(data, 49)))
        theta = new
    return np.array(kls)


def value_distances(rng, iterations):
    """{start: distance of V to the exact V^π of a uniformly random policy, after 0..5 steps, as a fraction of |V^π|}: held-out goals."""
    log_pi = np.full((49, 4), -np.log(4))
    long = replace(GRID, horizon=10_000)  # rollouts are cut far before the horizon, so V has none
    settings = dict(episodes=EPISODES, length=40)

    def tasks(rng):
        return long.mdps(rng.choice(TRAIN, 40))

    v = np.zeros(49)
    for v, _ in values.train_values(
        rng,
        tasks,
        log_pi,
        v,
        iterations=iterations,
        steps=1,
        inner_step_size=VALUE_STEP,
        step_size=0.01,
        **settings,
    ):
        pass
    new = long.mdps(np.repeat(HELD_OUT, 5))
    known = long.mdps(TRAIN)
    truth = exact.stationary_values(new, log_pi)
    starts = dict(
        meta_learned=v,
        mean_of_training_tasks=exact.stationary_values(known, log_pi).mean(0),
        zero=np.zeros(49),
    )
    result = {}
    for name, start in starts.items():
        adapted, _ = values.adapt_values(
            rng, new, log_pi, start, steps=5, step_size=VALUE_STEP, **settings
        )
        d = [
            (np.linalg.norm(x - truth, axis=1) / np.linalg.norm(truth, axis=1)).mean()
            for x in adapted
        ]
        result[name] = np.array(d)
    return result


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    seeds, shorten, iterations = (2, 20, 5) if arguments.quick else (3, 1, 300)
    progress = Progress()
    jobs = [
        (name, (arguments.seed, i), shorten)
        for i in range(seeds)
        for name in [*LEARNERS, *PLANNERS]
    ]
    jobs.sort(key=lambda job: "trpo" not in job[0])  # the longest first
    results = {}
    with workers() as pool:
        runs = [
            pool.apply_async(run_learner if job[0] in LEARNERS else run_planner, (job,))
            for job in jobs
        ]
        for i, (job, run) in enumerate(zip(jobs, runs)):
            results.setdefault(job[0], []).append(run.get())
            progress(f"{i + 1} of {len(jobs)} runs done")
    rng = np.random.default_rng(arguments.seed)
    optimum = float(exact.optimal_return(GRID.mdps(HELD_OUT)).mean())
    kls = trpo_kl(rng, min(iterations, 50))
    values = value_distances(rng, iterations)
    progress.done()

    rows = [dict(name="optimum", env_steps=0.0, std=0.0, **{"return": optimum})]
    print(
        f"exact return on {len(HELD_OUT)} held-out goals, mean ± std over {seeds} seeds; the optimum is {optimum:.3f}"
    )
    print(
        f"{'after about this many environment steps':40s}"
        + "".join(f"{n:>12d}" for n in MILESTONES)
    )
    fig, (ax,) = plots.figure(9, 5.2)
    for name in [*LEARNERS, *PLANNERS]:
        spent, returns = (np.array(x) for x in zip(*results[name]))
        mean, std, steps = returns.mean(0), returns.std(0, ddof=1), spent.mean(0)
        rows += [
            dict(name=name, env_steps=float(x), std=float(s), **{"return": float(m)})
            for x, m, s in zip(steps, mean, std)
        ]
        shown = [np.flatnonzero(steps <= n)[-1] for n in MILESTONES]
        print(f"{name:40s}" + "".join(f"{mean[i]:7.3f}±{std[i]:.2f}" for i in shown))
        colour, line = LEARNERS[name][3:] if name in LEARNERS else PLANNERS[name]
        plots.curve(
            ax,
            steps,
            mean,
            std,
            label=name,
            colour=colour,
            line=line,
            marker="." if name in PLANNERS else None,
        )
    plots.bound(ax, optimum)
    ax.set(
        xlabel="environment steps in the new task",
        ylabel="exact expected discounted return",
        xlim=(0, 3000),
        ylim=(-0.02, None),
        title="held-out goals of a slippery 7x7 GridWorld",
    )
    ax.set_xscale("symlog", linthresh=30)
    ax.set_xticks([0, 30, 100, 300, 1000, 3000], ["0", "30", "100", "300", "1000", "3000"])
    ax.set_xticks([], minor=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    pictures = [plots.save(fig, arguments.out, "compare_methods")]

    fig, (left, right) = plots.figure(10, 4, columns=2)
    left.plot(kls, ".", color=plots.COLOURS["blue"], markersize=4, clip_on=False)
    left.axhline(TRPO_STEP.radius, color=plots.COLOURS["red"], linestyle="--", label="radius δ")
    left.set(
        xlabel="TRPO steps",
        ylabel="KL(old‖new), nats",
        title="TRPO stays inside its radius\n(a dot a task; 0: no reward seen yet)",
        ylim=(0, 0.115),
    )
    left.legend(loc="upper left")
    for (name, d), colour in zip(values.items(), ("blue", "orange", "grey")):
        plots.curve(right, np.arange(6), d, 0 * d, label=name.replace("_", " "), colour=colour)
    right.set(
        xlabel="value steps in the new task",
        ylabel="|V − $V^π$| / |$V^π$|",
        ylim=(0, None),
        title="where the value function starts\n(exact values of a random walk)",
    )
    right.legend()
    pictures.append(plots.save(fig, arguments.out, "compare_details"))
    print(f"largest KL of {kls.size} TRPO steps: {kls.max():.4f}, radius {TRPO_STEP.radius}")
    print("relative distance of V to the exact one after 0..5 steps:")
    for name, d in values.items():
        print(f"  {name:38s}" + "".join(f"{x:7.3f}" for x in d))
    print(f"{progress.seconds:.0f} s.")
    finish(
        arguments,
        dict(
            methods=rows,
            trpo_kl=dict(largest=float(kls.max()), radius=TRPO_STEP.radius),
            values={k: d.tolist() for k, d in values.items()},
            seconds=progress.seconds,
        ),
        pictures,
    )


if __name__ == "__main__":
    begin(main)
