"""What each meta-gradient estimator converges to and how noisy it is: bias, standard deviation and cosine against the exact answer.

On random tabular MDPs (10 states, 5 actions) and on a GridWorld, one factor at a time around the middle: episodes of an inner step,
number of inner steps, step size. Without the score term the target is (a), the exact gradient of J(θ + α∇J(θ)); with it, it is (b), the
gradient of what is trained, E_D[J(U(θ, D))], from a long mean of naive + score. The query is exact, so that only the inner data make
noise.
"""

# %% The tasks and the factors
import autograd.numpy as np
from matplotlib.ticker import NullFormatter

from _common import Progress, begin, finish, parser
from metarl_np import exact, meta_gradients, plots
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.meta.maml import Adaptation, centred_returns, meta_gradient
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.random_mdps import random_mdps

EPISODES = (2, 4, 8, 16, 20, 32, 64, 128, 256)
STEPS = (1, 2, 3)
MIDDLE = (20, 1)
STYLE = dict(
    first_order=("grey", "v"),
    naive=("orange", "s"),
    lvc=("sky", "D"),
    dice=("green", "o"),
    loaded_dice=("purple", "^"),
)


def families(rng, n_random):
    """{name: (list of (MDP of one task, θ), three step sizes)}."""
    mdps = random_mdps(rng, n_random, horizon=10, discount=0.95, reward_noise=0.0)
    grid = GridWorld("S.. .#. ..G", discount=0.95, horizon=10, slip=0.1, step_reward=-0.1)
    return {
        "random MDPs": (
            [(mdps[i], rng.normal(size=(10, 5))) for i in range(n_random)],
            (0.3, 1.0, 3.0),
        ),
        "GridWorld": ([(grid.mdps(), rng.normal(size=(9, 4)))], (1.0, 3.0, 10.0)),
    }


def settings(step_sizes, episodes=EPISODES, steps=STEPS):
    """(inner episodes, inner steps, α), one factor varied at a time."""
    middle = MIDDLE + (step_sizes[1],)
    rows = [(k, MIDDLE[1], middle[2]) for k in episodes] + [
        (MIDDLE[0], j, middle[2]) for j in steps
    ]
    return list(dict.fromkeys(rows + [MIDDLE + (alpha,) for alpha in step_sizes]))


# %% Estimates
def inner_steps(rng, mdps, policy, theta, inner, k, steps, replicates):
    """`replicates` independent adaptations, as the task axis: (copies of the MDP, the list of θ, the list of Episodes)."""
    copies = mdps[np.zeros(replicates, int)]
    thetas = [np.repeat(theta[None], replicates, 0)]
    recorded = []
    for j in range(steps):
        if (
            j == 0
        ):  # all replicates act with θ: sample them as episodes of one task, whose tables are built once
            e = rollout(rng, mdps, policy.log_pi(theta), replicates * k)
            steps_of = [
                x.reshape(len(x), replicates, k) for x in (e.states, e.actions, e.rewards, e.mask)
            ]
            e = Episodes(
                *steps_of,
                None,
                e.last_states.reshape(replicates, k),
                e.truncated.reshape(replicates, k),
            )
        else:
            e = rollout(rng, copies, policy.log_pi(thetas[-1]), k)
        recorded.append(e)
        thetas.append(inner(policy, thetas[-1], inner.prepare(policy, theta, e, copies.discount)))
    return copies, thetas, recorded


def sample(rng, mdps, policy, theta, k, steps, alpha, replicates, estimators):
    """{name: (R, F, A)} replicates of each named estimator, all from the same inner data."""
    copies, thetas, recorded = inner_steps(
        rng, mdps, policy, theta, Reinforce(alpha), k, steps, replicates
    )
    adapted = policy.log_pi(thetas[-1])
    slope = policy.weighted_score(
        thetas[-1], exact.policy_gradient_table(copies, adapted)
    )  # ∇J(θ'), the exact query
    score = centred_returns(exact.expected_return(copies, adapted))
    result = {}
    for name in estimators:
        estimator, _, with_score = name.partition("+")
        inner = Reinforce(alpha, estimator=estimator)
        path = Adaptation(
            thetas,
            recorded,
            [inner.prepare(policy, theta, e, copies.discount) for e in recorded],
            None,
            None,
        )
        result[name] = meta_gradient(
            policy,
            path,
            inner,
            outer=lambda phi: np.sum(phi * slope, (-2, -1)),
            score_factor=score if with_score else None,
        )
    return result


def measure(rng, mdps, policy, theta, setting, replicates, long):
    """{name: (bias, bias_se, std, cosine)} relative to the target's norm.

    Against (b), what an estimator adds to naive + score on the same data is measured, which has the same mean (that one is unbiased,
    the tests prove it by enumeration) and a fraction of the noise; naive + score itself is compared with the long mean.
    """
    k, steps, alpha = setting
    names = [name + suffix for name in ESTIMATORS for suffix in ("", "+score")]
    replicates = max(50, min(replicates, 3_000_000 // (k * mdps.horizon)))
    estimates = sample(rng, mdps, policy, theta, k, steps, alpha, replicates, names)
    means = [
        sample(rng, mdps, policy, theta, k, steps, alpha, replicates, ["naive+score"])[
            "naive+score"
        ]
        for _ in range(long)
    ]
    means = np.array([m.mean(0) for m in means])
    target = {
        "(a)": meta_gradients.adapted_return_gradient(
            mdps, policy, theta, step_size=alpha, steps=steps
        )[0],
        "(b)": means.mean(0),
    }
    target_se = np.linalg.norm(means.std(0, ddof=1)) / np.sqrt(long) / np.linalg.norm(target["(b)"])
    rows = {}
    for name, g in estimates.items():
        t = target["(b)" if "score" in name else "(a)"]
        norm = np.linalg.norm(t)
        cosine = (g * t).sum((1, 2)) / np.maximum(np.linalg.norm(g, axis=(1, 2)) * norm, 1e-300)
        off = g - (estimates["naive+score"] if "score" in name and name != "naive+score" else t)
        error = np.sqrt(off.var(0, ddof=1).sum() / replicates) / norm
        if name == "naive+score":
            error = np.hypot(error, target_se)
        rows[name] = (
            np.linalg.norm(off.mean(0)) / norm,
            error,
            np.sqrt(g.var(0, ddof=1).sum()) / norm,
            cosine.mean(),
        )
    return rows


# %% The picture
def draw(family, rows, step_sizes, out, name):
    """Bias (top) and standard deviation (bottom) against each factor; hollow: bias within two standard errors of nothing."""
    fig, axes = plots.figure(12, 7, columns=3, rows=2)
    factors = (
        ("inner_episodes", "episodes in the inner step"),
        ("inner_steps", "inner steps"),
        ("alpha", "inner step size α"),
    )
    middle = dict(inner_episodes=MIDDLE[0], inner_steps=MIDDLE[1], alpha=step_sizes[1])
    for column, (factor, label) in enumerate(factors):
        shown = [
            r
            for r in rows
            if r["family"] == family and all(r[f] == middle[f] for f in middle if f != factor)
        ]
        for estimator, (colour, marker) in STYLE.items():
            for suffix, line in (("", "-"), ("+score", "--")):
                mine = sorted(
                    (r for r in shown if r["name"] == estimator + suffix), key=lambda r: r[factor]
                )
                for row, quantity in enumerate(("bias", "std")):
                    x, size, error = (
                        [r[key] for r in mine] for key in (factor, quantity, "bias_se")
                    )
                    plots.bias(
                        axes[3 * row + column],
                        x,
                        size,
                        error if quantity == "bias" else 0.0,
                        colour=colour,
                        marker=marker,
                        line=line,
                        label=estimator + suffix if column == row == 0 else None,
                    )
        for ax, quantity in ((axes[column], "bias"), (axes[3 + column], "standard deviation")):
            ax.set(xlabel=label, yscale="log", ylabel=f"{quantity} / norm of the target")
            if factor != "inner_steps":
                ax.set_xscale("log")
            ticks = dict(inner_episodes=(2, 8, 32, 128), inner_steps=STEPS, alpha=step_sizes)[
                factor
            ]
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.set_xticks([], minor=True)
            ax.yaxis.set_minor_formatter(NullFormatter())
    fig.legend(
        loc="outside upper center",
        ncols=5,
        title=f"{family}: solid against (a), dashed against (b); "
        "hollow: a bias that cannot be told from none",
    )
    return plots.save(fig, out, name)


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    rows = []
    n_random, replicates, long = (1, 60, 2) if arguments.quick else (3, 1_500, 6)
    for family, (tasks, step_sizes) in families(rng, n_random).items():
        policy = SoftmaxPolicy(*tasks[0][1].shape)
        for setting in settings(step_sizes, *(((4, 20), (1, 2)) if arguments.quick else ())):
            progress(f"{family}: {setting[0]} episodes, {setting[1]} inner steps, α = {setting[2]}")
            results = [
                measure(rng, mdps, policy, theta, setting, replicates, long)
                for mdps, theta in tasks
            ]
            for name in results[0]:
                bias, error, std, cosine = np.mean([r[name] for r in results], 0)
                rows.append(
                    dict(
                        family=family,
                        name=name,
                        target="(b)" if "score" in name else "(a)",
                        inner_episodes=setting[0],
                        inner_steps=setting[1],
                        alpha=setting[2],
                        bias=bias,
                        bias_se=error,
                        std=std,
                        cosine=cosine,
                    )
                )
        progress.done()
        middle = [
            r
            for r in rows
            if r["family"] == family
            and (r["inner_episodes"], r["inner_steps"], r["alpha"]) == MIDDLE + (step_sizes[1],)
        ]
        print(
            f"\n{family}, {MIDDLE[0]} episodes, {MIDDLE[1]} inner step, α = {step_sizes[1]}; relative to the norm of the target"
        )
        print(
            f"  {'estimator':20s} {'target':>6s} {'bias':>8s} {'± s.e.':>8s} {'std':>8s} {'cosine':>8s}"
        )
        for r in middle:
            print(
                "  {name:20s} {target:>6s} {bias:8.3f} {bias_se:8.3f} {std:8.2f} {cosine:8.3f}".format(
                    **r
                )
            )
    pictures = [
        draw("random MDPs", rows, (0.3, 1.0, 3.0), arguments.out, "meta_gradients"),
        draw("GridWorld", rows, (1.0, 3.0, 10.0), arguments.out, "meta_gradients_gridworld"),
    ]
    print(f"\n{progress.seconds:.0f} s.")
    finish(arguments, dict(estimators=rows, seconds=progress.seconds), pictures)


if __name__ == "__main__":
    begin(main)
