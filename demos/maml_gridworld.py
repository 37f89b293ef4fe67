"""MAML learns to adapt to GridWorld goals that it has never seen; multi-task training of the same policy does not.

Meta-training sees two thirds of the goals on the two far edges of a 7x7 grid; the held-out third is what is shown. Every
number is the exact expected discounted return of the adapted policies, by dynamic programming, as a fraction of the optimum. The second
panel is a family where meta-learning does not pay: goals anywhere on a 5x5 grid, which a random walk finds.
"""

# %% What is compared
import numpy as np

from _common import Progress, begin, checkpointed, finish, parser, workers
from metarl_np import exact, maml, plots
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.tasks.gridworld import GridWorld

STEPS = (0, 1, 2, 3, 5, 10)  # inner steps after which the policies are evaluated
STEP_SIZES = (
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
)  # each method fine-tunes with the best of these on training goals, by the mean over STEPS
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
    """(θ, curve) after `iterations` outer steps on batches of 40 tasks; MAML and multi-task training see as many episodes. curve
    (iterations, k+1): the sampled return in training after 0..k inner steps; k = 1 for MAML, 0 for multi-task training.
    """

    def sample_tasks(rng):
        return mdps[rng.integers(len(mdps), size=40)]

    def records(rng, theta, **on):
        if method == "maml":
            return maml.train(
                rng,
                sample_tasks,
                actor,
                theta,
                Reinforce(10.0),
                iterations=iterations,
                steps=1,
                step_size=0.05,
                episodes=EPISODES,
                **on,
            )
        return maml.train_multi_task(
            rng,
            sample_tasks,
            actor,
            theta,
            iterations=iterations,
            step_size=0.05,
            episodes=2 * EPISODES,
            **on,
        )

    curve = []
    for record in checkpointed(
        records, rng, actor.init(), checkpoint, method, iterations=iterations, **facts
    ):
        curve.append(
            record.returns
        )  # a record an iteration: print it, plot it, or stop when you have seen enough
    return record.theta, np.array(curve)


def evaluate(rng, mdps, policy, theta, step_size, repeats):
    """Fraction of the optimum after each of STEPS inner steps, the mean over tasks and `repeats` adaptations of each: (6,)."""
    mdps = mdps[np.repeat(np.arange(len(mdps)), repeats)]
    path = maml.adapt(
        rng, mdps, policy, theta, Reinforce(step_size), steps=max(STEPS), episodes=EPISODES
    )
    best = exact.optimal_return(mdps)
    return np.array(
        [(exact.expected_return(mdps, policy.log_pi(path.thetas[k])) / best).mean() for k in STEPS]
    )


def fine_tuning(rng, train_mdps, policy, theta, repeats):
    """The step size of the grid with the highest mean fraction on training goals."""
    scores = [evaluate(rng, train_mdps, policy, theta, a, repeats).mean() for a in STEP_SIZES]
    return STEP_SIZES[int(np.argmax(scores))]


def run(job):
    """`experiment` with a seed, keeping checkpoints in files of this name, the family, the seed and the method."""
    seed, settings, checkpoint = job
    checkpoint = checkpoint and checkpoint.with_stem(
        f"{checkpoint.stem}-{settings['family']}{seed[1]}"
    )
    return experiment(np.random.default_rng(seed), **settings, checkpoint=checkpoint, seed=seed)


def experiment(rng, *, family, policy, iterations, repeats, checkpoint=None, **facts):
    """{method: {theta, step_size, held_out and train: fractions (6,), curve: see `train`}} of one family; `demos/study.py` runs it too."""
    grid, goals, held_out = families()[family]
    actor = make_policy(policy, grid)
    train_mdps = grid.mdps(goals)
    held_out_mdps = grid.mdps(held_out)
    trained = {
        method: train(
            rng, train_mdps, actor, method, iterations, checkpoint, policy=policy, **facts
        )
        for method in ("maml", "multi_task")
    }
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


# %% The pictures
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
            plots.curve(
                ax,
                STEPS,
                held_out.mean(0),
                held_out.std(0, ddof=1 if len(seeds) > 1 else 0),
                label=label,
                colour=colour,
            )
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
    """One held-out task before and after each inner step: visits as colours, the policy as arrows."""
    mdps = grid.mdps([goal])
    path = maml.adapt(rng, mdps, policy, theta, Reinforce(step_size), steps=3, episodes=EPISODES)
    fig, axes = plots.figure(12, 3.6, columns=4)
    gamma = mdps.discount ** np.arange(mdps.horizon)[:, None, None]
    for k, (ax, adapted) in enumerate(zip(axes, path.thetas)):
        log_pi = policy.log_pi(adapted)
        visits = (exact.occupancy(mdps, log_pi) / gamma * ~mdps.terminal).sum(0)[0]
        visits[goal] = exact.occupancy(mdps, log_pi)[-1, 0, goal] / gamma[-1, 0, 0]
        plots.visits(ax, grid, visits, label="expected visits per episode" if k == 3 else None)
        plots.arrows(ax, grid, np.exp(log_pi[0]), goal)
        fraction = (exact.expected_return(mdps, log_pi) / exact.optimal_return(mdps))[0]
        ax.set_title(f"{k} step{'s' * (k != 1)}: {fraction:.2f} of the optimum")
    return plots.save(fig, out, "maml_adaptation")


def animate(rng, grid, goal, policy, starts, steps, stride, out):
    """Twenty episodes of one held-out task, step by step, before and after each of `steps` inner steps, of the methods in `starts`, {name:
    (θ, step size)}: a dot an episode, its visits as colours, the policy as arrows, and beside them the mean return.
    """
    mdps, best = grid.mdps([goal]), exact.optimal_return(grid.mdps([goal]))[0]
    paths = {
        name: maml.adapt(
            rng, mdps, policy, theta, Reinforce(step_size), steps=steps, episodes=EPISODES
        )
        for name, (theta, step_size) in starts.items()
    }
    apart = rng.uniform(-0.3, 0.3, (2, EPISODES))  # so that dots in one cell can be told apart
    discounts = grid.discount ** np.arange(grid.horizon)
    fig, axes = plots.figure(10, 3.9, columns=len(paths) + 1)

    def draw(frame):
        k, t = frame  # after k inner steps, t time steps of an episode
        for ax in axes:
            ax.clear()
        for ax, (name, path) in zip(axes, paths.items()):
            e = path.episodes[k]
            cells = np.concatenate(
                [np.where(e.mask, e.states, e.last_states), e.last_states[None]]
            )[
                : t + 1, 0
            ]  # (t + 1, K)
            so_far = ((e.rewards * e.mask)[:t, 0].mean(-1) @ discounts[:t]) / best
            plots.visits(ax, grid, (cells[..., None] == np.arange(mdps.shape[1])).any(0).mean(0))
            y, x = np.divmod(cells[-1], grid.shape[1]) + apart
            ax.plot(
                x,
                y,
                "o",
                markersize=6,
                color=plots.COLOURS["purple"],
                markeredgecolor="black",
                markeredgewidth=0.6,
            )
            plots.arrows(ax, grid, np.exp(policy.log_pi(path.thetas[k])[0]), goal)
            ax.set_title(f"{METHODS[name][0]}\nafter {k} inner step{'s' * (k != 1)}")
            ax.set_xlabel(f"step {t} of {grid.horizon}, return so far {so_far:.2f}")
            done = path.returns[: k + (t == grid.horizon), 0] / best
            plots.curve(
                axes[-1],
                np.arange(len(done)),
                done,
                label=METHODS[name][0],
                colour=METHODS[name][1],
            )
        plots.bound(axes[-1], 1)
        axes[-1].set(
            xlim=(-0.2, steps + 0.2),
            ylim=(-0.03, 1.08),
            xticks=range(steps + 1),
            ylabel="fraction of the optimum",
            xlabel=f"inner steps ({EPISODES} episodes each)",
            title=f"sampled return,\nmean of {EPISODES} episodes",
        )
        axes[-1].legend(loc="center right", bbox_to_anchor=(1, 0.3), fontsize=9)

    times = [
        *range(0, grid.horizon, stride),
        *[grid.horizon] * 5,
    ]  # the last is shown for more than a second
    return plots.animate(
        fig,
        draw,
        [(k, t) for k in range(steps + 1) for t in times],
        out,
        "adaptation",
        fps=4,
        dpi=70,
    )


# %% The job
def main():
    p = parser(__doc__, trains=True)
    p.add_argument(
        "--policy",
        choices=("softmax", "logistic"),
        default="softmax",
        help="softmax table: any distribution over the four moves in each cell; logistic: two sigmoid units, one for the axis "
        "and one for the direction along it, which hold every deterministic policy but only products as mixtures",
    )
    arguments = p.parse_args()
    n_seeds, iterations, repeats = (2, 10, 1) if arguments.quick else (3, 800, 10)
    progress = Progress()
    results = {family: [] for family in families()}
    settings = dict(policy=arguments.policy, iterations=iterations, repeats=repeats)
    jobs = [
        ((arguments.seed, i), dict(settings, family=family), arguments.checkpoint)
        for family in results
        for i in range(n_seeds)
    ]
    with workers() as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.imap(run, jobs))):
            results[job[1]["family"]].append(result)
            progress(f"meta-training: {i + 1} of {len(jobs)} runs done")
    grid, _, held_out = families()["edges"]
    first = results["edges"][0]
    policy = make_policy(arguments.policy, grid)
    starts = {
        name: (first[name]["theta"], first[name]["step_size"]) for name in ("maml", "multi_task")
    }
    pictures = [
        draw_curves(results, arguments.out),
        draw_adaptation(
            np.random.default_rng(arguments.seed),
            grid,
            held_out[1],
            policy,
            *starts["maml"],
            arguments.out,
        ),
        animate(
            np.random.default_rng(arguments.seed),
            grid,
            held_out[1],
            policy,
            starts,
            steps=1 if arguments.quick else 3,
            stride=7 if arguments.quick else 2,
            out=arguments.out,
        ),
    ]
    progress.done()

    numbers = dict(steps=STEPS, policy=arguments.policy)
    for family, seeds in results.items():
        grid, goals, held_out = families()[family]
        print(
            f"\n{family}: {grid.shape[0]}x{grid.shape[1]} grid, horizon {grid.horizon}, {len(goals)} training and {len(held_out)} "
            f"held-out goals, {arguments.policy} policy, mean ± std over {n_seeds} seeds"
        )
        print(
            f"{'fraction of the optimum after':38s}"
            + "".join(f"{k:>6d} steps" for k in STEPS)
            + "   step sizes"
        )
        into = numbers if family == "edges" else numbers.setdefault(family, {})
        for name, (label, _) in METHODS.items():
            for which, suffix, words in (
                ("held_out", "", ", held-out goals"),
                ("train", "_train", ", training goals"),
            ):
                values = np.array([seed[name][which] for seed in seeds])
                mean = values.mean(0)
                std = values.std(0, ddof=1)
                into[name + "_step_sizes"] = [seed[name]["step_size"] for seed in seeds]
                into[name + suffix], into[name + suffix + "_std"] = mean.tolist(), std.tolist()
                print(
                    f"{label + words:38s}"
                    + "".join(f"{m:7.3f}±{s:.2f}" for m, s in zip(mean, std)).replace("±0.", "±.")
                    + "   "
                    + ", ".join(str(seed[name]["step_size"]) for seed in seeds)
                )
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    begin(main)
