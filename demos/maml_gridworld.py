"""MAML learns to adapt to GridWorld goals that it has never seen; multi-task training does not.

Meta-training sees two thirds of the goals on the two far edges of a 7x7 grid; the held-out third
is what is shown. Every number is the exact expected discounted return of the adapted policies, by
dynamic programming, as a fraction of the optimum. The second panel is a family where
meta-learning does not pay: goals anywhere on a 5x5 grid, which a random walk finds.
"""

# %% What is compared
# before numpy, whose threads it sets
from _common import Progress, begin, checkpointed, finish, parser, workers

import numpy as np

from metarl_np import exact, maml, plots
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.tasks.gridworld import GridWorld

# inner steps after which the policies are evaluated
STEPS = (0, 1, 2, 3, 5, 10)
# each method fine-tunes with the best of these on training goals, by the mean over STEPS
STEP_SIZES = (1, 3, 10, 30, 100, 300, 1000)
# per task and inner step
EPISODES = 20
# a batch; with 40 tasks the outer gradient is so noisy that in one training of twenty θ settles on
# one half of the goals: what is seen of them makes them likelier, and the others are met no more
TASKS = 160
# {method: (label, colour)}
METHODS = dict(
    maml=("MAML", "blue"),
    multi_task=("multi-task, fine-tuned", "orange"),
    scratch=("from scratch", "green"),
)


def families():
    """{name: (grid, training goals, held-out goals)}: every third goal is held out."""
    edges = GridWorld.open(7, 7, discount=0.95, horizon=14)
    anywhere = GridWorld.open(5, 5, discount=0.95, horizon=20)
    far = np.array([cell for cell in edges.free_cells if cell // 7 == 6 or cell % 7 == 6])
    result = {}
    for name, grid, goals in (("edges", edges, far), ("anywhere", anywhere, anywhere.free_cells)):
        held_out = goals[1::3]
        train = np.setdiff1d(goals, held_out)
        assert not set(train) & set(held_out)
        result[name] = grid, train, held_out
    return result


def make_policy(name, grid):
    """A softmax table, or two logistic units (axis and direction) a cell."""
    n_states = grid.shape[0] * grid.shape[1]
    return SoftmaxPolicy(n_states, 4) if name == "softmax" else LogisticPolicy(n_states, units=2)


# %% Training and evaluation
def train(rng, mdps, actor, method, iterations, checkpoint=None, **facts):
    """(θ, curve) after `iterations` outer steps on batches of TASKS.

    MAML and multi-task training see as many episodes. curve (iterations, k+1): the sampled return
    in training after 0..k inner steps; k = 1 for MAML, 0 for multi-task training.
    """
    outer = dict(iterations=iterations, step_size=0.1)

    def sample_tasks(rng):
        return mdps[rng.integers(len(mdps), size=TASKS)]

    def records(rng, theta, **going_on):
        start = rng, sample_tasks, actor, theta
        options = outer | going_on
        if method == "maml":
            return maml.train(*start, Reinforce(10.0), steps=1, episodes=EPISODES, **options)
        return maml.train_multi_task(*start, episodes=2 * EPISODES, **options)

    curve = []
    facts["iterations"] = iterations
    for record in checkpointed(records, rng, actor.init(), checkpoint, method, **facts):
        # a record an iteration: print it, plot it, or stop when you have seen enough
        curve.append(record.returns)
    return record.theta, np.array(curve)


def evaluate(rng, mdps, policy, theta, step_size, repeats):
    """Fraction of the optimum after each of STEPS inner steps: (6,).

    It is the mean over tasks and over `repeats` adaptations of each.
    """
    mdps = mdps[np.repeat(np.arange(len(mdps)), repeats)]
    inner = Reinforce(step_size)
    most = max(STEPS)
    path = maml.adapt(rng, mdps, policy, theta, inner, steps=most, episodes=EPISODES)
    best = exact.optimal_return(mdps)
    fractions = []
    for k in STEPS:
        value = exact.expected_return(mdps, policy.log_pi(path.thetas[k]))
        fractions.append((value / best).mean())
    return np.array(fractions)


def fine_tuning(rng, train_mdps, policy, theta, repeats):
    """The step size of the grid with the highest mean fraction on training goals."""
    means = [evaluate(rng, train_mdps, policy, theta, a, repeats).mean() for a in STEP_SIZES]
    return STEP_SIZES[int(np.argmax(means))]


def experiment(rng, *, family, policy, iterations, repeats, checkpoint=None, **facts):
    """{method: its numbers} of one family of tasks; `demos/study.py` runs it too.

    The numbers: theta; step_size; held_out and train, fractions of the optimum (6,); curve, as in
    `train`.
    """
    grid, goals, held_out = families()[family]
    actor = make_policy(policy, grid)
    train_mdps = grid.mdps(goals)
    held_out_mdps = grid.mdps(held_out)
    trained = {}
    for method in ("maml", "multi_task"):
        trained[method] = train(
            rng, train_mdps, actor, method, iterations, checkpoint, policy=policy, **facts
        )
    trained["scratch"] = actor.init(), np.zeros((0, 1))
    result = {}
    for name, (theta, curve) in trained.items():
        step_size = fine_tuning(rng, train_mdps, actor, theta, repeats)
        result[name] = dict(
            theta=theta,
            step_size=step_size,
            held_out=evaluate(rng, held_out_mdps, actor, theta, step_size, repeats),
            train=evaluate(rng, train_mdps, actor, theta, step_size, repeats),
            curve=curve,
        )
    return result


# %% The pictures of the curves and of one adaptation
def over_seeds(seeds, method, goals):
    """Mean and standard deviation over seeds, (6,) each; goals: "held_out" or "train"."""
    fractions = np.array([seed[method][goals] for seed in seeds])
    return fractions.mean(0), fractions.std(0, ddof=1)


def draw_curves(results, out):
    """Fraction of the optimum against inner steps, one panel a family."""
    fig, axes = plots.figure(10, 4.2, columns=2)
    titles = dict(
        edges="7x7, goals on the far edges:\nmeta-learning pays",
        anywhere="5x5, goals anywhere:\na random walk is enough",
    )
    for ax, (family, seeds) in zip(axes, results.items()):
        for name, (label, colour) in METHODS.items():
            mean, std = over_seeds(seeds, name, "held_out")
            plots.curve(ax, STEPS, mean, std, label=label, colour=colour)
        plots.bound(ax, 1)
        ax.set(
            title=titles[family],
            xlabel=f"inner steps ({EPISODES} episodes each)",
            ylim=(-0.03, 1.05),
            xticks=STEPS,
            ylabel="exact return on held-out goals\n(fraction of the optimum)",
        )
    axes[1].legend(loc="lower right")
    return plots.save(fig, out, "maml_gridworld")


def expected_visits(mdps, log_pi, goal):
    """How often an episode of one task visits each cell: (S,).

    The goal ends an episode. Its number is the probability of being there at the last step.
    """
    occupancy = exact.occupancy(mdps, log_pi)[:, 0]
    discounts = mdps.discount ** np.arange(mdps.horizon)[:, None]
    times = occupancy / discounts
    visits = (times * ~mdps.terminal[0]).sum(0)
    visits[goal] = times[-1, goal]
    return visits


def draw_adaptation(rng, grid, goal, policy, theta, step_size, out):
    """One held-out task before and after each inner step: visits as colours, arrows as policy."""
    mdps = grid.mdps([goal])
    path = maml.adapt(rng, mdps, policy, theta, Reinforce(step_size), steps=3, episodes=EPISODES)
    fig, axes = plots.figure(12, 3.6, columns=4)
    for k, (ax, adapted) in enumerate(zip(axes, path.thetas)):
        log_pi = policy.log_pi(adapted)
        label = "expected visits per episode" if k == 3 else None
        plots.visits(ax, grid, expected_visits(mdps, log_pi, goal), label=label)
        plots.arrows(ax, grid, np.exp(log_pi[0]), goal)
        fraction = (exact.expected_return(mdps, log_pi) / exact.optimal_return(mdps))[0]
        ax.set_title(f"{k} step{'s' * (k != 1)}: {fraction:.2f} of the optimum")
    return plots.save(fig, out, "maml_adaptation")


# %% The animation
def draw_episodes(ax, grid, episodes, t, apart):
    """The first t steps of K episodes of one task: a dot an episode, and its visits as colours.

    apart (2, K): shifts, so that dots in one cell can be told apart.
    """
    height, width = grid.shape
    on_the_way = np.where(episodes.mask, episodes.states, episodes.last_states)
    cells = np.concatenate([on_the_way, episodes.last_states[None]])
    so_far = cells[: t + 1, 0]  # (t + 1, K)
    was_there = (so_far[..., None] == np.arange(height * width)).any(0)  # (K, S)
    plots.visits(ax, grid, was_there.mean(0))
    y, x = np.divmod(so_far[-1], width) + apart
    look = dict(color=plots.COLOURS["purple"], markeredgecolor="black", markeredgewidth=0.6)
    ax.plot(x, y, "o", markersize=6, **look)


def draw_returns(ax, returns, steps):
    """The mean returns so far, {method: (k,)}, against inner steps, up to `steps`."""
    for name, so_far in returns.items():
        label, colour = METHODS[name]
        plots.curve(ax, np.arange(len(so_far)), so_far, label=label, colour=colour)
    plots.bound(ax, 1)
    ax.set(
        xlim=(-0.2, steps + 0.2),
        ylim=(-0.03, 1.08),
        xticks=range(steps + 1),
        ylabel="fraction of the optimum",
        xlabel=f"inner steps ({EPISODES} episodes each)",
        title=f"sampled return,\nmean of {EPISODES} episodes",
    )
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.3), fontsize=9)


def animate(rng, grid, goal, policy, starts, steps, stride, held, out):
    """Twenty episodes of one held-out task, step by step, before and after each inner step.

    starts: {method: (θ, step size)}, a panel each: a dot an episode, its visits as colours, the
        policy as arrows. Beside them stands the mean return.
    steps: inner steps.
    stride: time steps from one frame to the next.
    held: for how many frames the end of an episode is shown.
    """
    mdps = grid.mdps([goal])
    best = exact.optimal_return(mdps)[0]
    paths = {}
    for name, (theta, step_size) in starts.items():
        inner = Reinforce(step_size)
        paths[name] = maml.adapt(rng, mdps, policy, theta, inner, steps=steps, episodes=EPISODES)
    apart = rng.uniform(-0.3, 0.3, (2, EPISODES))
    discounts = grid.discount ** np.arange(grid.horizon)
    fig, axes = plots.figure(10, 3.9, columns=len(paths) + 1)

    def draw(frame):
        k, t = frame  # after k inner steps, t time steps of an episode
        returns = {}
        for ax in axes:
            ax.clear()
        for ax, (name, path) in zip(axes, paths.items()):
            episodes = path.episodes[k]
            draw_episodes(ax, grid, episodes, t, apart)
            log_pi = policy.log_pi(path.thetas[k])
            plots.arrows(ax, grid, np.exp(log_pi[0]), goal)
            rewards = (episodes.rewards * episodes.mask)[:t, 0].mean(-1)
            so_far = (rewards @ discounts[:t]) / best
            ax.set_title(f"{METHODS[name][0]}\nafter {k} inner step{'s' * (k != 1)}")
            ax.set_xlabel(f"step {t} of {grid.horizon}, return so far {so_far:.2f}")
            finished = k + (t == grid.horizon)
            returns[name] = path.returns[:finished, 0] / best
        draw_returns(axes[-1], returns, steps)

    times = [*range(0, grid.horizon, stride), *[grid.horizon] * held]
    frames = [(k, t) for k in range(steps + 1) for t in times]
    return plots.animate(fig, draw, frames, out, "adaptation", fps=4, dpi=70)


def draw_pictures(arguments, results):
    """The pictures' names; one adaptation is that of the first seed to the second held-out goal."""
    grid, _, held_out = families()["edges"]
    goal = held_out[1]
    policy = make_policy(arguments.policy, grid)
    starts = {}
    for name in ("maml", "multi_task"):
        first = results["edges"][0][name]
        starts[name] = first["theta"], first["step_size"]
    task = grid, goal, policy
    rng = np.random.default_rng(arguments.seed)
    adaptation = draw_adaptation(rng, *task, *starts["maml"], arguments.out)
    rng = np.random.default_rng(arguments.seed)
    # the end of an episode is shown for more than a second, at four frames a second
    steps, stride, held = (1, 7, 1) if arguments.quick else (3, 2, 5)
    shown = dict(steps=steps, stride=stride, held=held)
    animation = animate(rng, *task, starts, **shown, out=arguments.out)
    return [draw_curves(results, arguments.out), adaptation, animation]


# %% The job
def options():
    """The command line."""
    p = parser(__doc__, trains=True)
    p.add_argument(
        "--policy",
        choices=("softmax", "logistic"),
        default="softmax",
        help="softmax table: any distribution over the four moves in each cell; logistic: two "
        "sigmoid units, one for the axis and one for the direction along it, which hold every "
        "deterministic policy but only products as mixtures",
    )
    return p.parse_args()


def run(job):
    """`experiment` with a seed, in a process of its own.

    Its checkpoints are files of the name that --checkpoint gives, the family, seed and method.
    """
    seed, settings, checkpoint = job
    if checkpoint:
        number = seed[1]
        checkpoint = checkpoint.with_stem(f"{checkpoint.stem}-{settings['family']}{number}")
    return experiment(np.random.default_rng(seed), **settings, checkpoint=checkpoint, seed=seed)


def run_all(arguments, progress):
    """{family: [what `experiment` gives, for each seed]}."""
    n_seeds, iterations, repeats = (2, 10, 1) if arguments.quick else (3, 200, 10)
    settings = dict(policy=arguments.policy, iterations=iterations, repeats=repeats)
    results = {family: [] for family in families()}
    jobs = []
    for family in results:
        for i in range(n_seeds):
            seed = arguments.seed, i
            jobs.append((seed, dict(settings, family=family), arguments.checkpoint))
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            results[job[1]["family"]].append(result)
            progress(f"meta-training: {i + 1} of {len(jobs)} runs done")
    return results


def print_family(family, seeds, policy):
    """The table of one family; returns its numbers for the JSON."""
    grid, goals, held_out = families()[family]
    print(
        f"\n{family}: {grid.shape[0]}x{grid.shape[1]} grid, horizon {grid.horizon}, "
        f"{len(goals)} training and {len(held_out)} held-out goals, {policy} policy, "
        f"mean ± std over {len(seeds)} seeds"
    )
    steps = "".join(f"{k:>6d} steps" for k in STEPS)
    print(f"{'fraction of the optimum after':38s}{steps}   step sizes")
    numbers = {}
    for name, (label, _) in METHODS.items():
        step_sizes = [seed[name]["step_size"] for seed in seeds]
        numbers[f"{name}_step_sizes"] = step_sizes
        for goals, key, words in (
            ("held_out", name, ", held-out goals"),
            ("train", f"{name}_train", ", training goals"),
        ):
            mean, std = over_seeds(seeds, name, goals)
            numbers[key] = mean.tolist()
            numbers[f"{key}_std"] = std.tolist()
            cells = "".join(f"{m:7.3f}±{s:.2f}" for m, s in zip(mean, std)).replace("±0.", "±.")
            print(f"{label + words:38s}{cells}   {', '.join(map(str, step_sizes))}")
    return numbers


def main():
    arguments = options()
    progress = Progress()
    results = run_all(arguments, progress)
    pictures = draw_pictures(arguments, results)
    progress.done()
    numbers = dict(steps=STEPS, policy=arguments.policy)
    numbers |= print_family("edges", results["edges"], arguments.policy)
    numbers["anywhere"] = print_family("anywhere", results["anywhere"], arguments.policy)
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
