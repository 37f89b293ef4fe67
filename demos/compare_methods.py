"""What each way to learn from other tasks is worth in a new one: return against experience there.

Held-out goals on the far edges of a slippery 7x7 grid. Compared are MAML and two-level RL² (inner
PPO and TRPO; the outer gradient first or second order), multi-task training with fine-tuning,
learning from scratch, and planning with a learned model: posterior sampling, the posterior mean,
and sampling with the true prior. Then TRPO's KL per step inside its radius, and a meta-learned
value function.
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
# multi-task and scratch fine-tune with the best of these on training goals
STEP_SIZES = (1, 3, 10, 30, 100, 300, 1000)
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
    """(environment steps spent, exact return) before and after each inner step.

    Means over tasks: (STEPS + 1,) each.
    """
    mdps = GRID.mdps(goals)
    path = maml.adapt(rng, mdps, POLICY, theta, inner, steps=STEPS, episodes=EPISODES)
    lengths = [e.mask.sum((0, 2)).mean() for e in path.episodes[:-1]]
    returns = [exact.expected_return(mdps, POLICY.log_pi(th)).mean() for th in path.thetas]
    return np.cumsum([0] + lengths), np.array(returns)


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
        returns = [adapted_returns(rng, TRAIN, theta, Reinforce(a))[1].mean() for a in STEP_SIZES]
        inner = Reinforce(STEP_SIZES[int(np.argmax(returns))])
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
    # planning depends on luck more than learning does, and costs less
    mdps = GRID.mdps(np.repeat(HELD_OUT, 12))
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
    """{start: |V − V^π| / |V^π| after 0..5 steps}, π being random: means over held-out goals."""
    log_pi = np.full((49, 4), -np.log(4))
    long = replace(GRID, horizon=10_000)  # rollouts are cut far before the horizon, so V has none
    settings = dict(episodes=EPISODES, length=40)

    def tasks(rng):
        return long.mdps(rng.choice(TRAIN, 40))

    training = dict(iterations=iterations, steps=1, inner_step_size=VALUE_STEP, step_size=0.01)
    for learned, _ in values.train_values(rng, tasks, log_pi, np.zeros(49), **training, **settings):
        pass
    new = long.mdps(np.repeat(HELD_OUT, 5))
    known = long.mdps(TRAIN)
    truth = exact.stationary_values(new, log_pi)
    starts = dict(
        meta_learned=learned,
        mean_of_training_tasks=exact.stationary_values(known, log_pi).mean(0),
        zero=np.zeros(49),
    )
    result = {}
    for name, start in starts.items():
        adapted, _ = values.adapt_values(
            rng, new, log_pi, start, steps=5, step_size=VALUE_STEP, **settings
        )
        distances = [np.linalg.norm(v - truth, axis=1) for v in adapted]
        size = np.linalg.norm(truth, axis=1)
        result[name] = np.array([(distance / size).mean() for distance in distances])
    return result


# %% The pictures
def draw_methods(curves, optimum, out):
    """Return against environment steps; curves: {name: (steps, mean, std), (P,) each}."""
    fig, (ax,) = plots.figure(9, 5.2)
    for name, (steps, mean, std) in curves.items():
        colour, line = LEARNERS[name][3:] if name in LEARNERS else PLANNERS[name]
        marker = "." if name in PLANNERS else None
        look = dict(label=name, colour=colour, line=line, marker=marker)
        plots.curve(ax, steps, mean, std, **look)
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
    return plots.save(fig, out, "compare_methods")


def draw_details(kls, distances, out):
    """Left: TRPO's KL (iterations, N). Right: {start: distance of V (6,)}."""
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
    for (name, d), colour in zip(distances.items(), ("blue", "orange", "grey")):
        plots.curve(right, np.arange(6), d, 0 * d, label=name.replace("_", " "), colour=colour)
    right.set(
        xlabel="value steps in the new task",
        ylabel="|V − $V^π$| / |$V^π$|",
        ylim=(0, None),
        title="where the value function starts\n(exact values of a random walk)",
    )
    right.legend()
    return plots.save(fig, out, "compare_details")


# %% The job
def run(job):
    """One method with one seed, in a process of its own."""
    return run_learner(job) if job[0] in LEARNERS else run_planner(job)


def compare(seed, n_seeds, shorten, progress):
    """{name: (environment steps, mean and standard deviation of the return over seeds)}."""
    names = [*LEARNERS, *PLANNERS]
    jobs = [(name, (seed, i), shorten) for i in range(n_seeds) for name in names]
    jobs.sort(key=lambda job: "trpo" not in job[0])  # the longest first
    results = {}
    with workers() as pool:
        runs = [pool.apply_async(run, (job,)) for job in jobs]
        for i, (job, result) in enumerate(zip(jobs, runs)):
            results.setdefault(job[0], []).append(result.get())
            progress(f"{i + 1} of {len(jobs)} runs done")
    curves = {}
    for name in names:
        spent, returns = (np.array(x) for x in zip(*results[name]))
        curves[name] = spent.mean(0), returns.mean(0), returns.std(0, ddof=1)
    return curves


def print_methods(curves, optimum, n_seeds):
    """The table, read at MILESTONES."""
    print(
        f"exact return on {len(HELD_OUT)} held-out goals, mean ± std over {n_seeds} seeds; "
        f"the optimum is {optimum:.3f}"
    )
    columns = "".join(f"{n:>12d}" for n in MILESTONES)
    print(f"{'after about this many environment steps':40s}" + columns)
    for name, (steps, mean, std) in curves.items():
        shown = [np.flatnonzero(steps <= n)[-1] for n in MILESTONES]
        print(f"{name:40s}" + "".join(f"{mean[i]:7.3f}±{std[i]:.2f}" for i in shown))


def print_details(kls, distances):
    """The largest KL, and a line for each start of V."""
    print(f"largest KL of {kls.size} TRPO steps: {kls.max():.4f}, radius {TRPO_STEP.radius}")
    print("relative distance of V to the exact one after 0..5 steps:")
    for name, d in distances.items():
        print(f"  {name:38s}" + "".join(f"{x:7.3f}" for x in d))


def rows_of(curves, optimum):
    """The curves as rows of the JSON."""
    rows = [dict(name="optimum", env_steps=0.0, std=0.0, **{"return": optimum})]
    for name, points in curves.items():
        for x, mean, std in zip(*points):
            row = dict(name=name, env_steps=float(x), std=float(std), **{"return": float(mean)})
            rows.append(row)
    return rows


def main():
    arguments = parser(__doc__).parse_args()
    n_seeds, shorten, iterations = (2, 30, 5) if arguments.quick else (3, 1, 300)
    progress = Progress()
    curves = compare(arguments.seed, n_seeds, shorten, progress)
    rng = np.random.default_rng(arguments.seed)
    kls = trpo_kl(rng, min(iterations, 50))
    distances = value_distances(rng, iterations)
    optimum = float(exact.optimal_return(GRID.mdps(HELD_OUT)).mean())
    progress.done()

    print_methods(curves, optimum, n_seeds)
    pictures = [
        draw_methods(curves, optimum, arguments.out),
        draw_details(kls, distances, arguments.out),
    ]
    print_details(kls, distances)
    print(f"{progress.seconds:.0f} s.")
    numbers = dict(
        methods=rows_of(curves, optimum),
        trpo_kl=dict(largest=float(kls.max()), radius=TRPO_STEP.radius),
        values={name: d.tolist() for name, d in distances.items()},
        seconds=progress.seconds,
    )
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
