"""One policy gradient, six ways: they agree to rounding, and the sampled one approaches them as 1/√episodes.

Two tasks: a random MDP with the logistic-sigmoid policy, and a small slippery GridWorld with the softmax table. The gradient of the
expected discounted return is computed by finite differences, by autograd through dynamic programming, by the policy-gradient
theorem, by enumerating every episode (autograd, and the closed form of the score), and by REINFORCE on sampled episodes.
"""

# %% The two tasks
import autograd.numpy as np
from autograd import grad

from _common import Progress, begin, finish, parser
from metarl_np import enumeration, exact, plots
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.returns import leave_one_out_baseline
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.surrogates import (
    fold,
    gather_log_probs,
    reinforce,
    reinforce_folded,
    reinforce_weights,
)
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP


def tasks(rng):
    """{name: (MDP of one task, policy, θ)}."""
    P = rng.dirichlet(np.ones(4), (4, 2))
    R = rng.normal(size=(4, 2))
    logistic = LogisticPolicy(4, features=rng.normal(size=(4, 3)))
    grid = GridWorld("S.. .#. ..G", discount=0.9, horizon=5, slip=0.2, step_reward=-0.1)
    softmax = SoftmaxPolicy(9, 4)
    return {
        "random MDP, logistic policy": (
            MDP.from_dense(P, R, 0, discount=0.9, horizon=4),
            logistic,
            rng.normal(size=(3, 1)),
        ),
        "GridWorld, softmax table": (grid.mdps(), softmax, rng.normal(size=(9, 4))),
    }


# %% The same gradient, six ways
def finite_differences(f, theta, step=1e-5):
    """Central differences, coordinate by coordinate, without autograd."""
    g = np.zeros(theta.shape)
    for i in np.ndindex(theta.shape):
        e = np.zeros(theta.shape)
        e[i] = step
        g[i] = (f(theta + e) - f(theta - e)) / (2 * step)
    return g


def exact_gradients(mdps, policy, theta):
    """{method: ∇J}, with the policy-gradient theorem first."""

    def by_dynamic_programming(th):
        return exact.expected_return(mdps, policy.log_pi(th))[0]

    episodes, dynamics = enumeration.enumerate_episodes(mdps, max_episodes=3_000_000)

    def by_enumeration(th):
        return enumeration.enumerated_return(policy.log_pi(th), episodes, dynamics, mdps.discount)[
            0
        ]

    log_pi = policy.log_pi(theta)
    log_p = (gather_log_probs(log_pi, episodes.states, episodes.actions) * episodes.mask).sum(0)
    weights = (
        reinforce_weights(episodes, mdps.discount) * dynamics * np.exp(log_p)
    )  # each episode weighted by its probability
    table = (
        fold(weights, episodes.states, episodes.actions, *mdps.shape[1:])
        * episodes.states.shape[-1]
    )
    return {
        "policy-gradient theorem (exact Q and occupancy)": policy.weighted_score(
            theta, exact.policy_gradient_table(mdps, log_pi)[0]
        ),
        "finite differences of J": finite_differences(by_dynamic_programming, theta),
        "autograd through dynamic programming": grad(by_dynamic_programming)(theta),
        "autograd through the enumeration of episodes": grad(by_enumeration)(theta),
        "closed-form score, every episode enumerated": policy.weighted_score(theta, table[0]),
    }, episodes.states.shape[-1]


def sampled_gradients(rng, mdps, policy, theta, n_episodes):
    """REINFORCE on n sampled episodes: by autograd step by step, by autograd on the folded table, and in closed form."""
    data = rollout(rng, mdps, policy.log_pi(theta), n_episodes)
    weights = reinforce_weights(data, mdps.discount, baseline=leave_one_out_baseline)
    table = fold(weights, data.states, data.actions, *mdps.shape[1:])
    return {
        "REINFORCE, autograd, step by step": grad(
            lambda th: reinforce(
                gather_log_probs(policy.log_pi(th), data.states, data.actions), weights
            )[0]
        )(theta),
        "REINFORCE, autograd, folded": grad(
            lambda th: reinforce_folded(policy.log_pi(th), table)[0]
        )(theta),
        "REINFORCE, closed form": policy.weighted_score(theta, table[0]),
    }


def sampling_errors(rng, mdps, policy, theta, truth, counts, repeats):
    """Root-mean-square error of the sampled gradient, ‖ĝ − ∇J‖, over `repeats` replicates, for each number of episodes."""
    copies = mdps[np.zeros(repeats, int)]
    errors = []
    for n in counts:
        data = rollout(rng, copies, policy.log_pi(theta), n)
        weights = reinforce_weights(data, mdps.discount, baseline=leave_one_out_baseline)
        g = policy.weighted_score(theta, fold(weights, data.states, data.actions, *mdps.shape[1:]))
        errors.append(np.sqrt(((g - truth) ** 2).sum((1, 2)).mean()))
    return np.array(errors)


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    numbers = {}
    counts = 2 ** np.arange(1, 9 if arguments.quick else 15)
    n_sampled, repeats = (1_000, 20) if arguments.quick else (200_000, 200)
    fig, axes = plots.figure(10, 4.2, columns=2)
    for ax, (name, (mdps, policy, theta)) in zip(axes, tasks(rng).items()):
        progress(f"{name}: exact gradients")
        gradients, n_episodes = exact_gradients(mdps, policy, theta)
        truth = next(iter(gradients.values()))
        gradients |= sampled_gradients(rng, mdps, policy, theta, n_sampled)
        progress(f"{name}: sampling")
        errors = sampling_errors(rng, mdps, policy, theta, truth, counts, repeats)
        slope = np.polyfit(np.log(counts[2:]), np.log(errors[2:]), 1)[0]
        progress.done()

        print(
            f"\n{name}: {mdps.shape[1]} states, {mdps.shape[2]} actions, horizon {mdps.horizon}, {n_episodes} possible episodes, "
            f"|∇J| = {np.linalg.norm(truth):.4f}"
        )
        print(f"  {'method':50s}  largest difference from the theorem")
        differences = {method: float(abs(g - truth).max()) for method, g in gradients.items()}
        for method, difference in differences.items():
            print(
                f"  {method:50s}  {difference:.1e}"
                + (f"  ({n_sampled} episodes)" if "REINFORCE" in method else "")
            )
        print(f"  error of the sampled gradient falls as episodes^{slope:.3f}")
        numbers[name] = dict(
            differences=differences,
            possible_episodes=n_episodes,
            episodes=counts.tolist(),
            errors=errors.tolist(),
            slope=slope,
            norm=float(np.linalg.norm(truth)),
        )
        ax.loglog(
            counts,
            errors / np.linalg.norm(truth),
            "o",
            color=plots.COLOURS["blue"],
            label="REINFORCE, leave-one-out baseline",
        )
        ax.loglog(
            counts,
            errors[-1] * np.sqrt(counts[-1] / counts) / np.linalg.norm(truth),
            "--",
            color=plots.COLOURS["black"],
            label="1/√episodes",
        )
        ax.set(
            title=name,
            xlabel="sampled episodes",
            ylabel="error of the gradient, relative to its norm",
        )
        ax.legend()
    finish(arguments, numbers, [plots.save(fig, arguments.out, "policy_gradient")])


if __name__ == "__main__":
    begin(main)
