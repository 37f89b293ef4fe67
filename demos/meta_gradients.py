"""What each meta-gradient estimator converges to and how noisy it is, against the exact answer.

Bias, standard deviation and cosine on random tabular MDPs (10 states, 5 actions) and on a
GridWorld, one factor at a time around the middle: episodes of an inner step, number of inner
steps, step size. Without the score term the target is (a), the exact gradient of J(θ + α∇J(θ));
with it, it is (b), the gradient of what is trained, E_D[J(U(θ, D))], from a long mean of naive +
score. The query is exact, so that only the inner data make noise.
"""

# %% The tasks and the factors
from dataclasses import replace

# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser

import autograd.numpy as np
from matplotlib.ticker import NullFormatter

from metarl_np import exact, meta_gradients, plots
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.rollouts import rollout
from metarl_np.meta.maml import Adaptation, centred_returns, meta_gradient
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.random_mdps import random_mdps

EPISODES = (2, 4, 8, 16, 20, 32, 64, 128, 256)
STEPS = (1, 2, 3)
MIDDLE = (20, 1)  # episodes and steps where the other factors vary
STEP_SIZES = {"random MDPs": (0.3, 1.0, 3.0), "GridWorld": (1.0, 3.0, 10.0)}  # middle: the second
NAMES = [name + suffix for name in ESTIMATORS for suffix in ("", "+score")]
LOOKS = dict(  # colour and marker
    first_order=("grey", "v"),
    naive=("orange", "s"),
    lvc=("sky", "D"),
    dice=("green", "o"),
    loaded_dice=("purple", "^"),
)


def families(rng, n_random):
    """{name: list of (MDP of one task, θ)}."""
    mdps = random_mdps(rng, n_random, horizon=10, discount=0.95, reward_noise=0.0)
    grid = GridWorld("S.. .#. ..G", discount=0.95, horizon=10, slip=0.1, step_reward=-0.1)
    return {
        "random MDPs": [(mdps[i], rng.normal(size=(10, 5))) for i in range(n_random)],
        "GridWorld": [(grid.mdps(), rng.normal(size=(9, 4)))],
    }


def settings(step_sizes, episodes=EPISODES, steps=STEPS):
    """(inner episodes, inner steps, α), one factor varied at a time."""
    k, j = MIDDLE
    alpha = step_sizes[1]
    rows = [(x, j, alpha) for x in episodes]
    rows += [(k, x, alpha) for x in steps]
    rows += [(k, j, x) for x in step_sizes]
    return list(dict.fromkeys(rows))  # the middle once


# %% Estimates
def first_data_set(rng, mdps, log_pi, k, replicates):
    """K episodes in each of `replicates` copies of one task that all act by the same policy.

    They are sampled as episodes of one task, whose alias tables are built once.
    """
    e = rollout(rng, mdps, log_pi, replicates * k)

    def split(x):
        return x.reshape(x.shape[:-2] + (replicates, k))

    return replace(
        e,
        states=split(e.states),
        actions=split(e.actions),
        rewards=split(e.rewards),
        mask=split(e.mask),
        log_pi=None,
        last_states=split(e.last_states),
        truncated=split(e.truncated),
    )


def inner_steps(rng, mdps, policy, theta, inner, k, steps, replicates):
    """`replicates` independent adaptations, as the task axis: (list of θ, list of Episodes)."""
    copies = mdps[np.zeros(replicates, int)]
    thetas = [np.repeat(theta[None], replicates, 0)]
    recorded = []
    for j in range(steps):
        if j == 0:
            e = first_data_set(rng, mdps, policy.log_pi(theta), k, replicates)
        else:
            e = rollout(rng, copies, policy.log_pi(thetas[-1]), k)
        recorded.append(e)
        thetas.append(inner(policy, thetas[-1], inner.prepare(policy, theta, e, copies.discount)))
    return thetas, recorded


def sample(rng, mdps, policy, theta, setting, replicates, names):
    """{name: (R, F, A)} replicates of each named estimator, all from the same inner data."""
    k, steps, alpha = setting
    thetas, recorded = inner_steps(rng, mdps, policy, theta, Reinforce(alpha), k, steps, replicates)
    copies = mdps[np.zeros(replicates, int)]
    adapted = policy.log_pi(thetas[-1])
    weights = exact.policy_gradient_table(copies, adapted)
    slope = policy.weighted_score(thetas[-1], weights)  # ∇J(θ'), the exact query
    factor = centred_returns(exact.expected_return(copies, adapted))

    def outer(phi):
        return np.sum(phi * slope, (-2, -1))

    result = {}
    for name in names:
        estimator, _, score = name.partition("+")
        inner = Reinforce(alpha, estimator=estimator)
        data = [inner.prepare(policy, theta, e, copies.discount) for e in recorded]
        path = Adaptation(thetas, recorded, data, returns=None, query=None)
        score_factor = factor if score else None
        result[name] = meta_gradient(policy, path, inner, outer=outer, score_factor=score_factor)
    return result


def exact_b(rng, mdps, policy, theta, setting, replicates, long):
    """(the gradient (b), its standard error as a fraction of its norm), from `long` means.

    naive + score is unbiased for it: the tests prove that by enumeration.
    """
    means = []
    for _ in range(long):
        estimates = sample(rng, mdps, policy, theta, setting, replicates, ["naive+score"])
        means.append(estimates["naive+score"].mean(0))
    mean = np.mean(means, 0)
    error = np.linalg.norm(np.std(means, 0, ddof=1)) / np.sqrt(long)
    return mean, error / np.linalg.norm(mean)


def size_of(x, axis=None):
    """The Euclidean norm."""
    return np.linalg.norm(x, axis=axis)


def measure(rng, mdps, policy, theta, setting, replicates, long):
    """{name: (bias, its standard error, standard deviation, cosine)}, over the target's norm.

    Against (b), what an estimator adds to naive + score on the same data is measured, which has
    the same mean and a fraction of the noise; naive + score itself is compared with the long mean.
    """
    k, steps, alpha = setting
    replicates = max(50, min(replicates, 3_000_000 // (k * mdps.horizon)))
    estimates = sample(rng, mdps, policy, theta, setting, replicates, NAMES)
    b, b_error = exact_b(rng, mdps, policy, theta, setting, replicates, long)
    (a,) = meta_gradients.adapted_return_gradient(mdps, policy, theta, step_size=alpha, steps=steps)
    rows = {}
    for name, g in estimates.items():
        target = b if "score" in name else a
        norm = size_of(target)
        near = estimates["naive+score"] if "score" in name and name != "naive+score" else target
        off = g - near
        error = np.sqrt(off.var(0, ddof=1).sum() / replicates) / norm
        if name == "naive+score":
            error = np.hypot(error, b_error)
        lengths = np.maximum(size_of(g, axis=(1, 2)) * norm, 1e-300)
        cosine = ((g * target).sum((1, 2)) / lengths).mean()
        bias = size_of(off.mean(0)) / norm
        std = np.sqrt(g.var(0, ddof=1).sum()) / norm
        rows[name] = (bias, error, std, cosine)
    return rows


# %% The picture
FACTORS = dict(
    inner_episodes="episodes in the inner step",
    inner_steps="inner steps",
    alpha="inner step size α",
)


def draw_factor(top, bottom, rows, factor, labelled):
    """Bias (top) and standard deviation (bottom) of all estimators against one factor."""
    for estimator, (colour, marker) in LOOKS.items():
        for suffix, line in (("", "-"), ("+score", "--")):
            name = estimator + suffix
            mine = [r for r in rows if r["name"] == name]
            mine.sort(key=lambda r: r[factor])
            look = dict(colour=colour, marker=marker, line=line)
            x = [r[factor] for r in mine]
            size = [r["bias"] for r in mine]
            error = [r["bias_se"] for r in mine]
            label = name if labelled else None
            plots.bias(top, x, size, error, label=label, **look)
            plots.bias(bottom, x, [r["std"] for r in mine], **look)


def draw(family, rows, out, name):
    """A column a factor; hollow: a bias within two standard errors of nothing."""
    step_sizes = STEP_SIZES[family]
    middle = dict(zip(FACTORS, (*MIDDLE, step_sizes[1])))
    ticks = dict(inner_episodes=(2, 8, 32, 128), inner_steps=STEPS, alpha=step_sizes)
    fig, axes = plots.figure(12, 7, columns=3, rows=2)
    for column, (factor, label) in enumerate(FACTORS.items()):
        fixed = [f for f in FACTORS if f != factor]
        shown = [r for r in rows if r["family"] == family and all(r[f] == middle[f] for f in fixed)]
        top = axes[column]
        bottom = axes[3 + column]
        draw_factor(top, bottom, shown, factor, labelled=column == 0)
        for ax, quantity in ((top, "bias"), (bottom, "standard deviation")):
            ax.set(xlabel=label, yscale="log", ylabel=f"{quantity} / norm of the target")
            if factor != "inner_steps":
                ax.set_xscale("log")
            ax.set_xticks(ticks[factor], [f"{x:g}" for x in ticks[factor]])
            ax.set_xticks([], minor=True)
            ax.yaxis.set_minor_formatter(NullFormatter())
    title = (
        f"{family}: solid against (a), dashed against (b); "
        "hollow: a bias that cannot be told from none"
    )
    fig.legend(loc="outside upper center", ncols=5, title=title)
    return plots.save(fig, out, name)


# %% The job
def measure_family(rng, family, tasks, chosen, replicates, long, progress):
    """Rows of the JSON: each setting and estimator, the mean over tasks."""
    policy = SoftmaxPolicy(*tasks[0][1].shape)
    rows = []
    for setting in chosen:
        k, steps, alpha = setting
        progress(f"{family}: {k} episodes, {steps} inner steps, α = {alpha}")
        results = [
            measure(rng, mdps, policy, theta, setting, replicates, long) for mdps, theta in tasks
        ]
        for name in NAMES:
            bias, error, std, cosine = np.mean([r[name] for r in results], 0)
            target = "(b)" if "score" in name else "(a)"
            row = dict(family=family, name=name, target=target)
            row |= dict(inner_episodes=k, inner_steps=steps, alpha=alpha)
            row |= dict(bias=bias, bias_se=error, std=std, cosine=cosine)
            rows.append(row)
    progress.done()
    return rows


def print_middle(family, rows):
    """The table in the middle of the factors."""
    k, steps = MIDDLE
    alpha = STEP_SIZES[family][1]
    print(
        f"\n{family}, {k} episodes, {steps} inner step, α = {alpha}; "
        "relative to the norm of the target"
    )
    print(
        f"  {'estimator':20s} {'target':>6s} {'bias':>8s} {'± s.e.':>8s} "
        f"{'std':>8s} {'cosine':>8s}"
    )
    for r in rows:
        if (r["inner_episodes"], r["inner_steps"], r["alpha"]) == (k, steps, alpha):
            print(
                f"  {r['name']:20s} {r['target']:>6s} {r['bias']:8.3f} {r['bias_se']:8.3f} "
                f"{r['std']:8.2f} {r['cosine']:8.3f}"
            )


def main():
    arguments = parser(__doc__).parse_args()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    n_random, replicates, long = (1, 60, 2) if arguments.quick else (3, 1_500, 6)
    fewer = dict(episodes=(4, 20), steps=(1, 2)) if arguments.quick else {}
    rows = []
    for family, tasks in families(rng, n_random).items():
        chosen = settings(STEP_SIZES[family], **fewer)
        mine = measure_family(rng, family, tasks, chosen, replicates, long, progress)
        print_middle(family, mine)
        rows += mine
    pictures = [
        draw("random MDPs", rows, arguments.out, "meta_gradients"),
        draw("GridWorld", rows, arguments.out, "meta_gradients_gridworld"),
    ]
    print(f"\n{progress.seconds:.0f} s.")
    finish(arguments, dict(estimators=rows, seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
