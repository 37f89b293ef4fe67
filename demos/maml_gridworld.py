"""MAML learns to adapt to GridWorld goals that it has never seen; multi-task training does not.

Meta-training sees two thirds of the goals on the two far edges of a 7x7 grid; the held-out third is
what is shown. Every number is the exact expected discounted return of the adapted policies, by
dynamic programming, as a fraction of the optimum. The second panel is a family where meta-learning
does not pay: goals anywhere on a 5x5 grid, which a random walk finds.
"""

# %% What is compared
import numpy as np

from _common import Progress, begin, checkpointed, finish, parser, workers
from metarl_np import exact, maml, plots
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.tasks.gridworld import GridWorld

STEPS = (0, 1, 2, 3, 5, 10)  # inner steps after which the policies are evaluated
# each method fine-tunes with the best of these on training goals, by the mean over STEPS
STEP_SIZES = (1, 3, 10, 30, 100, 300, 1000)
EPISODES = 20  # per task and inner step
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
    """(θ, curve) after `iterations` outer steps on batches of 40 tasks.

    MAML and multi-task training see as many episodes. curve: (iterations, k + 1), the sampled
    return in training after 0..k inner steps; k = 1 for MAML, 0 for multi-task training.
    """

    def sample_tasks(rng):
        return mdps[rng.integers(len(mdps), size=40)]

    outer = dict(iterations=iterations, step_size=0.05)

    def records(rng, theta, **on):
        start = (rng, sample_tasks, actor, theta)
        if method == "maml":
            inner = Reinforce(10.0)
            return maml.train(*start, inner, steps=1, episodes=EPISODES, **outer, **on)
        return maml.train_multi_task(*start, episodes=2 * EPISODES, **outer, **on)

    start = actor.init()
    facts = dict(facts, iterations=iterations)
    curve = []
    for record in checkpointed(records, rng, start, checkpoint, method, **facts):
        # a record an iteration: print it, plot it, or stop when you have seen enough
        curve.append(record.returns)
    return record.theta, np.array(curve)


def evaluate(rng, mdps, policy, theta, step_size, repeats):
    """Fraction of the optimum after each of STEPS inner steps: (6,).

    The mean over tasks and `repeats` adaptations of each.
    """
    mdps = mdps[np.repeat(np.arange(len(mdps)), repeats)]
    inner = Reinforce(step_size)
    path = maml.adapt(rng, mdps, policy, theta, inner, steps=max(STEPS), episodes=EPISODES)
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


def run(job):
    """`experiment` with a seed; checkpoints are named by the family, the seed and the method."""
    seed, settings, checkpoint = job
    if checkpoint:
        name = f"{checkpoint.stem}-{settings['family']}{seed[1]}"
        checkpoint = checkpoint.with_stem(name)
    return experiment(np.random.default_rng(seed), **settings, checkpoint=checkpoint, seed=seed)


def experiment(rng, *, family, policy, iterations, repeats, checkpoint=None, **facts):
    """{method: what it reached} in one family; `demos/study.py` runs it too.

    That is theta, step_size, the fractions held_out and train (6,), and the curve of `train`.
    """
    grid, goals, held_out = families()[family]
    actor = make_policy(policy, grid)
    train_mdps = grid.mdps(goals)
    held_out_mdps = grid.mdps(held_out)
    facts = dict(facts, policy=policy)
    trained = {}
    for method in ("maml", "multi_task"):
        trained[method] = train(rng, train_mdps, actor, method, iterations, checkpoint, **facts)
    trained["scratch"] = actor.init(), np.zeros((0, 1))
    result = {}
    for name, (theta, curve) in trained.items():
        step_size = fine_tuning(rng, train_mdps, actor, theta, repeats)
        start = (actor, theta, step_size, repeats)
        result[name] = dict(
            theta=theta,
            step_size=step_size,
            held_out=evaluate(rng, held_out_mdps, *start),
            train=evaluate(rng, train_mdps, *start),
            curve=curve,
        )
    return result


# %% The pictures
def steps_taken(k):
    """0 steps, 1 step, 2 steps …"""
    return f"{k} step{'s' * (k != 1)}"


def draw_curves(results, out):
    """Fraction of the optimum against inner steps, one panel a family."""
    fig, axes = plots.figure(10, 4.2, columns=2)
    titles = dict(
        edges="7x7, goals on the far edges:\nmeta-learning pays",
        anywhere="5x5, goals anywhere:\na random walk is enough",
    )
    for ax, (family, seeds) in zip(axes, results.items()):
        for name, (label, colour) in METHODS.items():
            held_out = np.array([seed[name]["held_out"] for seed in seeds])
            std = held_out.std(0, ddof=1 if len(seeds) > 1 else 0)
            plots.curve(ax, STEPS, held_out.mean(0), std, label=label, colour=colour)
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


def draw_adaptation(rng, grid, goal, policy, theta, step_size, out):
    """One held-out task before and after each inner step: visits are colours, moves are arrows."""
    mdps = grid.mdps([goal])
    inner = Reinforce(step_size)
    path = maml.adapt(rng, mdps, policy, theta, inner, steps=3, episodes=EPISODES)
    gamma = mdps.discount ** np.arange(mdps.horizon)[:, None, None]
    best = exact.optimal_return(mdps)[0]
    fig, axes = plots.figure(12, 3.6, columns=4)
    for k, (ax, adapted) in enumerate(zip(axes, path.thetas)):
        log_pi = policy.log_pi(adapted)
        chances = exact.occupancy(mdps, log_pi) / gamma
        visits = (chances * ~mdps.terminal).sum(0)[0]
        visits[goal] = chances[-1, 0, goal]
        plots.visits(ax, grid, visits, label="expected visits per episode" if k == 3 else None)
        plots.arrows(ax, grid, np.exp(log_pi[0]), goal)
        fraction = exact.expected_return(mdps, log_pi)[0] / best
        ax.set_title(f"{steps_taken(k)}: {fraction:.2f} of the optimum")
    return plots.save(fig, out, "maml_adaptation")


class Animation:
    """Twenty episodes of one held-out task, step by step, before and after each inner step.

    A dot an episode, its visits as colours, the policy as arrows; beside them the mean return.
    starts: {method: (θ, step size)}, a panel each.
    """

    def __init__(self, rng, grid, goal, policy, starts, steps):
        self.grid = grid
        self.goal = goal
        self.policy = policy
        self.steps = steps
        mdps = grid.mdps([goal])
        self.best = exact.optimal_return(mdps)[0]
        self.paths = {}
        for name, (theta, step_size) in starts.items():
            inner = Reinforce(step_size)
            self.paths[name] = maml.adapt(
                rng, mdps, policy, theta, inner, steps=steps, episodes=EPISODES
            )
        # so that dots in one cell can be told apart
        self.apart = rng.uniform(-0.3, 0.3, (2, EPISODES))
        self.fig, self.axes = plots.figure(10, 3.9, columns=len(starts) + 1)

    def write(self, stride, out):
        """Every `stride`-th time step, the last one for more than a second: the GIF's name."""
        times = [*range(0, self.grid.horizon, stride), *[self.grid.horizon] * 5]
        frames = [(k, t) for k in range(self.steps + 1) for t in times]
        return plots.animate(self.fig, self.draw, frames, out, "adaptation", fps=4, dpi=70)

    def draw(self, frame):
        """frame: (k, t), after k inner steps, t time steps of an episode."""
        k, t = frame
        for ax in self.axes:
            ax.clear()
        *maps, returns = self.axes
        for ax, (name, path) in zip(maps, self.paths.items()):
            self.draw_map(ax, name, path, k, t)
            label, colour = METHODS[name]
            done = path.returns[: k + (t == self.grid.horizon), 0] / self.best
            plots.curve(returns, np.arange(len(done)), done, label=label, colour=colour)
        plots.bound(returns, 1)
        returns.set(
            xlim=(-0.2, self.steps + 0.2),
            ylim=(-0.03, 1.08),
            xticks=range(self.steps + 1),
            ylabel="fraction of the optimum",
            xlabel=f"inner steps ({EPISODES} episodes each)",
            title=f"sampled return,\nmean of {EPISODES} episodes",
        )
        returns.legend(loc="center right", bbox_to_anchor=(1, 0.3), fontsize=9)

    def draw_map(self, ax, name, path, k, t):
        """One method's episodes at time t."""
        e = path.episodes[k]
        states = np.where(e.mask, e.states, e.last_states)
        cells = np.concatenate([states, e.last_states[None]])[: t + 1, 0]  # (t + 1, K)
        every_cell = np.arange(self.policy.n_states)
        visited = (cells[..., None] == every_cell).any(0).mean(0)
        plots.visits(ax, self.grid, visited)
        y, x = np.divmod(cells[-1], self.grid.shape[1]) + self.apart
        dots = dict(markersize=6, markeredgecolor="black", markeredgewidth=0.6)
        ax.plot(x, y, "o", color=plots.COLOURS["purple"], **dots)
        pi = np.exp(self.policy.log_pi(path.thetas[k])[0])
        plots.arrows(ax, self.grid, pi, self.goal)
        gamma = self.grid.discount ** np.arange(t)
        mean_rewards = (e.rewards * e.mask)[:t, 0].mean(-1)
        so_far = (mean_rewards @ gamma) / self.best
        after = f"after {k} inner step{'s' * (k != 1)}"
        ax.set_title(f"{METHODS[name][0]}\n{after}")
        ax.set_xlabel(f"step {t} of {self.grid.horizon}, return so far {so_far:.2f}")


def draw_all(results, arguments):
    """The three pictures' names; the last two show the first seed on one held-out goal."""
    quick = arguments.quick
    out = arguments.out
    grid, _, held_out = families()["edges"]
    goal = held_out[1]
    policy = make_policy(arguments.policy, grid)
    first = results["edges"][0]
    starts = {}
    for name in ("maml", "multi_task"):
        starts[name] = first[name]["theta"], first[name]["step_size"]
    rng = np.random.default_rng(arguments.seed)
    curves = draw_curves(results, out)
    adaptation = draw_adaptation(rng, grid, goal, policy, *starts["maml"], out)
    rng = np.random.default_rng(arguments.seed)
    animation = Animation(rng, grid, goal, policy, starts, steps=1 if quick else 3)
    return [curves, adaptation, animation.write(7 if quick else 2, out)]


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


def print_family(family, seeds, policy):
    """The table of one family; returns its numbers for the JSON."""
    grid, goals, held_out = families()[family]
    height, width = grid.shape
    print(
        f"\n{family}: {height}x{width} grid, horizon {grid.horizon}, {len(goals)} training and "
        f"{len(held_out)} held-out goals, {policy} policy, mean ± std over {len(seeds)} seeds"
    )
    columns = "".join(f"{k:>6d} steps" for k in STEPS)
    print(f"{'fraction of the optimum after':38s}{columns}   step sizes")
    kinds = (("held_out", "", ", held-out goals"), ("train", "_train", ", training goals"))
    numbers = {}
    for name, (label, _) in METHODS.items():
        step_sizes = [seed[name]["step_size"] for seed in seeds]
        numbers[name + "_step_sizes"] = step_sizes
        for kind, suffix, words in kinds:
            fractions = np.array([seed[name][kind] for seed in seeds])
            mean = fractions.mean(0)
            std = fractions.std(0, ddof=1)
            numbers[name + suffix] = mean.tolist()
            numbers[name + suffix + "_std"] = std.tolist()
            cells = "".join(f"{m:7.3f}±{s:.2f}" for m, s in zip(mean, std)).replace("±0.", "±.")
            print(f"{label + words:38s}{cells}   {', '.join(map(str, step_sizes))}")
    return numbers


def main():
    arguments = options()
    n_seeds, iterations, repeats = (2, 10, 1) if arguments.quick else (3, 800, 10)
    common = dict(policy=arguments.policy, iterations=iterations, repeats=repeats)
    progress = Progress()
    results = {family: [] for family in families()}
    jobs = []
    for family in results:
        for i in range(n_seeds):
            settings = dict(common, family=family)
            jobs.append(((arguments.seed, i), settings, arguments.checkpoint))
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            results[job[1]["family"]].append(result)
            progress(f"meta-training: {i + 1} of {len(jobs)} runs done")
    pictures = draw_all(results, arguments)
    progress.done()

    numbers = dict(steps=STEPS, policy=arguments.policy)
    for family, seeds in results.items():
        of_family = print_family(family, seeds, arguments.policy)
        numbers |= of_family if family == "edges" else {family: of_family}
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
