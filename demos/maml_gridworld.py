"""MAML learns to adapt to GridWorld goals that it has never seen; multi-task training of the same policy does not.

Meta-training sees two thirds of the goals on the two far edges of a 7x7 grid; the held-out third is what is shown. Every
number is the exact expected discounted return of the adapted policies, by dynamic programming, as a fraction of the optimum. The second
panel is a family where meta-learning does not pay: goals anywhere on a 5x5 grid, which a random walk finds.
"""

# %% What is compared
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from common import Progress, finish, parser
from metarl_np import exact, maml, plots
from metarl_np.gridworld import GridWorld
from metarl_np.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.updates import Reinforce

STEPS = (0, 1, 2, 3, 5, 10)  # inner steps after which the policies are evaluated
STEP_SIZES = (1, 3, 10, 30, 100, 300, 1000)  # each method fine-tunes with the best of these on training goals, by the mean over STEPS
EPISODES = 20  # per task and inner step
METHODS = dict(maml=("MAML", "blue"), multi_task=("multi-task, fine-tuned", "orange"), scratch=("from scratch", "green"))


def families():
    """{name: (grid, training goals, held-out goals)}: every third goal is held out."""
    edges, anywhere = (GridWorld.open(7, 7, discount=0.95, horizon=14), GridWorld.open(5, 5, discount=0.95, horizon=20))
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
def train(rng, mdps, policy, method, iterations):
    """(θ, curve) after `iterations` outer steps on batches of 40 tasks; MAML and multi-task training see as many episodes. curve
    (iterations, k+1): the sampled return in training after 0..k inner steps; k = 1 for MAML, 0 for multi-task training."""
    def sample_tasks(rng):
        return mdps[rng.integers(len(mdps), size=40)]
    start = rng, sample_tasks, policy, policy.init()
    if method == "maml":
        records = maml.train(*start, Reinforce(10.0), iterations=iterations, steps=1, step_size=0.05, episodes=EPISODES)
    else:
        records = maml.train_multi_task(*start, iterations=iterations, step_size=0.05, episodes=2 * EPISODES)
    curve = []
    for record in records:  # a record an iteration: print it, plot it, or stop when you have seen enough
        curve.append(record.returns)
    return record.theta, np.array(curve)


def evaluate(rng, mdps, policy, theta, step_size, repeats):
    """Fraction of the optimum after each of STEPS inner steps, the mean over tasks and `repeats` adaptations of each: (6,)."""
    mdps = mdps[np.repeat(np.arange(len(mdps)), repeats)]
    path = maml.adapt(rng, mdps, policy, theta, Reinforce(step_size), steps=max(STEPS), episodes=EPISODES)
    best = exact.optimal_return(mdps)
    return np.array([(exact.expected_return(mdps, policy.log_pi(path.thetas[k])) / best).mean() for k in STEPS])


def fine_tuning(rng, train_mdps, policy, theta, repeats):
    """The step size of the grid with the highest mean fraction on training goals."""
    scores = [evaluate(rng, train_mdps, policy, theta, a, repeats).mean() for a in STEP_SIZES]
    return STEP_SIZES[int(np.argmax(scores))]


def experiment(rng, *, family, policy, iterations, repeats):
    """{method: {theta, step_size, held_out and train: fractions (6,), curve: see `train`}} of one family; `demos/study.py` runs it too."""
    grid, goals, held_out = families()[family]
    policy = make_policy(policy, grid)
    train_mdps, held_out_mdps = grid.mdps(goals), grid.mdps(held_out)
    trained = {method: train(rng, train_mdps, policy, method, iterations) for method in ("maml", "multi_task")}
    trained["scratch"] = policy.init(), np.zeros((0, 1))
    result = {}
    for name, (theta, curve) in trained.items():
        step_size = fine_tuning(rng, train_mdps, policy, theta, repeats)
        result[name] = dict(theta=theta, step_size=step_size, held_out=evaluate(rng, held_out_mdps, policy, theta, step_size, repeats),
                            train=evaluate(rng, train_mdps, policy, theta, step_size, repeats), curve=curve)
    return result


def run(job):
    """`experiment` with the seed and settings of a job, a pair."""
    return experiment(np.random.default_rng(job[0]), **job[1])


# %% The pictures
def draw_curves(results, out):
    """Fraction of the optimum against inner steps, one panel a family."""
    fig, axes = plots.figure(10, 4.2, columns=2)
    titles = dict(edges="7x7, goals on the far edges:\nmeta-learning pays", anywhere="5x5, goals anywhere:\na random walk is enough")
    for ax, (family, seeds) in zip(axes, results.items()):
        for name, (label, colour) in METHODS.items():
            held_out = np.array([seed[name]["held_out"] for seed in seeds])
            plots.curve(ax, STEPS, held_out.mean(0), held_out.std(0, ddof=1 if len(seeds) > 1 else 0), label=label, colour=colour)
        ax.axhline(1, color=plots.COLOURS["black"], linestyle="--", linewidth=1, label="optimum")
        ax.set(title=titles[family], xlabel=f"inner steps ({EPISODES} episodes each)", ylim=(-0.03, 1.05), xticks=STEPS,
               ylabel="exact return on held-out goals\n(fraction of the optimum)")
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
        plots.heat_map(ax, grid, visits, vmin=0, vmax=1, label="expected visits per episode" if k == 3 else None)
        plots.arrows(ax, grid, np.exp(log_pi[0]), goal)
        fraction = (exact.expected_return(mdps, log_pi) / exact.optimal_return(mdps))[0]
        ax.set_title(f"{k} step{'s' * (k != 1)}: {fraction:.2f} of the optimum")
    return plots.save(fig, out, "maml_adaptation")


# %% The job
def main():
    p = parser(__doc__)
    p.add_argument("--policy", choices=("softmax", "logistic"), default="softmax",
                   help="softmax table: any distribution over the four moves in each cell; logistic: two sigmoid units, one for the axis "
                        "and one for the direction along it, which hold every deterministic policy but only products as mixtures")
    arguments = p.parse_args()
    n_seeds, iterations, repeats = (2, 10, 1) if arguments.quick else (3, 800, 10)
    progress, results = Progress(), {family: [] for family in families()}
    settings = dict(policy=arguments.policy, iterations=iterations, repeats=repeats)
    jobs = [((arguments.seed, i), dict(settings, family=family)) for family in results for i in range(n_seeds)]
    with ProcessPoolExecutor(2) as pool:
        for i, (job, result) in enumerate(zip(jobs, pool.map(run, jobs))):
            results[job[1]["family"]].append(result)
            progress(f"meta-training: {i + 1} of {len(jobs)} runs done")
    grid, _, held_out = families()["edges"]
    first = results["edges"][0]["maml"]
    pictures = [draw_curves(results, arguments.out),
                draw_adaptation(np.random.default_rng(arguments.seed), grid, held_out[1], make_policy(arguments.policy, grid),
                                first["theta"], first["step_size"], arguments.out)]
    progress.done()

    numbers = dict(steps=STEPS, policy=arguments.policy)
    for family, seeds in results.items():
        grid, goals, held_out = families()[family]
        print(f"\n{family}: {grid.shape[0]}x{grid.shape[1]} grid, horizon {grid.horizon}, {len(goals)} training and {len(held_out)} "
              f"held-out goals, {arguments.policy} policy, mean ± std over {n_seeds} seeds")
        print(f"{'fraction of the optimum after':38s}" + "".join(f"{k:>6d} steps" for k in STEPS) + "   step sizes")
        into = numbers if family == "edges" else numbers.setdefault(family, {})
        for name, (label, _) in METHODS.items():
            for which, suffix, words in (("held_out", "", ", held-out goals"), ("train", "_train", ", training goals")):
                values = np.array([seed[name][which] for seed in seeds])
                mean, std = values.mean(0), values.std(0, ddof=1)
                into[name + "_step_sizes"] = [seed[name]["step_size"] for seed in seeds]
                into[name + suffix], into[name + suffix + "_std"] = mean.tolist(), std.tolist()
                print(f"{label + words:38s}"
                      + "".join(f"{m:7.3f}±{s:.2f}" for m, s in zip(mean, std)).replace("±0.", "±.")
                      + "   " + ", ".join(str(seed[name]["step_size"]) for seed in seeds))
    numbers["seconds"] = progress.seconds
    print(f"\n{progress.seconds:.0f} s. A fraction of 1 is the optimum, known goal and all.")
    finish(arguments, numbers, pictures)


if __name__ == "__main__":
    main()
