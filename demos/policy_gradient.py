"""One policy gradient, six ways: they agree to rounding.

The error of the sampled one falls as 1/√episodes.

Two tasks: a random MDP with the logistic-sigmoid policy, and a small slippery GridWorld with the
softmax table. The gradient of the expected discounted return is computed by finite differences, by
autograd through dynamic programming, by the policy-gradient theorem, by enumerating every episode
(autograd, and the closed form of the score), and by REINFORCE on sampled episodes.
"""

# %% The two tasks
# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser

import autograd.numpy as np
from autograd import grad

from metarl_np import enumeration, exact, plots
from metarl_np.check import finite_differences
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
    random_mdp = MDP.from_dense(P, R, 0, discount=0.9, horizon=4)
    softmax = SoftmaxPolicy(9, 4)
    grid = GridWorld("S.. .#. ..G", discount=0.9, horizon=5, slip=0.2, step_reward=-0.1)
    return {
        "random MDP, logistic policy": (random_mdp, logistic, rng.normal(size=(3, 1))),
        "GridWorld, softmax table": (grid.mdps(), softmax, rng.normal(size=(9, 4))),
    }


# %% The same gradient, six ways
THEOREM = "policy-gradient theorem (exact Q and occupancy)"


def from_the_model(mdps, policy, theta):
    """{method: ∇J} from the values of all states, which are known exactly."""

    def by_dynamic_programming(th):
        return exact.expected_return(mdps, policy.log_pi(th))[0]

    table = exact.policy_gradient_table(mdps, policy.log_pi(theta))[0]
    return {
        THEOREM: policy.weighted_score(theta, table),
        "finite differences of J": finite_differences(by_dynamic_programming, theta),
        "autograd through dynamic programming": grad(by_dynamic_programming)(theta),
    }


def from_every_episode(mdps, policy, theta):
    """{method: ∇J} from every possible episode with its probability, and how many there are."""
    episodes, dynamics = enumeration.enumerate_episodes(mdps, max_episodes=3_000_000)
    n_episodes = episodes.states.shape[-1]

    def by_enumeration(th):
        log_pi = policy.log_pi(th)
        return enumeration.enumerated_return(log_pi, episodes, dynamics, mdps.discount)[0]

    log_pi = policy.log_pi(theta)
    log_probs = gather_log_probs(log_pi, episodes.states, episodes.actions)
    chosen = np.exp((log_probs * episodes.mask).sum(0))  # ∏ π(a_t|s_t)
    weights = reinforce_weights(episodes, mdps.discount) * dynamics * chosen
    mean = fold(weights, episodes.states, episodes.actions, *mdps.shape[1:])
    # each episode counts by its probability, and not by one in n
    table = mean * n_episodes
    gradients = {
        "autograd through the enumeration of episodes": grad(by_enumeration)(theta),
        "closed-form score, every episode enumerated": policy.weighted_score(theta, table[0]),
    }
    return gradients, n_episodes


def from_samples(rng, mdps, policy, theta, n_episodes):
    """{method: REINFORCE's estimate of ∇J} from the same n sampled episodes, three ways."""
    data = rollout(rng, mdps, policy.log_pi(theta), n_episodes)
    weights = reinforce_weights(data, mdps.discount, baseline=leave_one_out_baseline)
    table = fold(weights, data.states, data.actions, *mdps.shape[1:])

    def step_by_step(th):
        log_probs = gather_log_probs(policy.log_pi(th), data.states, data.actions)
        return reinforce(log_probs, weights)[0]

    def folded(th):
        return reinforce_folded(policy.log_pi(th), table)[0]

    return {
        "REINFORCE, autograd, step by step": grad(step_by_step)(theta),
        "REINFORCE, autograd, folded": grad(folded)(theta),
        "REINFORCE, closed form": policy.weighted_score(theta, table[0]),
    }


def sampling_errors(rng, mdps, policy, theta, truth, counts, repeats):
    """Root-mean-square error ‖ĝ − ∇J‖ of the sampled gradient, for each number of episodes.

    The mean is over `repeats` replicates.
    """
    copies = mdps[np.zeros(repeats, int)]
    errors = []
    for n in counts:
        data = rollout(rng, copies, policy.log_pi(theta), n)
        weights = reinforce_weights(data, mdps.discount, baseline=leave_one_out_baseline)
        table = fold(weights, data.states, data.actions, *mdps.shape[1:])
        g = policy.weighted_score(theta, table)
        squares = ((g - truth) ** 2).sum((1, 2))
        errors.append(np.sqrt(squares.mean()))
    return np.array(errors)


# %% The job
def study_task(rng, name, task, counts, quick, progress):
    """The numbers of one task for the JSON."""
    mdps, policy, theta = task
    n_sampled, repeats = (1_000, 20) if quick else (200_000, 200)
    progress(f"{name}: exact gradients")
    gradients = from_the_model(mdps, policy, theta)
    truth = gradients[THEOREM]
    enumerated, n_episodes = from_every_episode(mdps, policy, theta)
    gradients |= enumerated
    gradients |= from_samples(rng, mdps, policy, theta, n_sampled)
    progress(f"{name}: sampling")
    errors = sampling_errors(rng, mdps, policy, theta, truth, counts, repeats)
    slope = np.polyfit(np.log(counts[2:]), np.log(errors[2:]), 1)[0]
    progress.done()

    norm = float(np.linalg.norm(truth))
    differences = {method: float(abs(g - truth).max()) for method, g in gradients.items()}
    print(
        f"\n{name}: {mdps.shape[1]} states, {mdps.shape[2]} actions, horizon {mdps.horizon}, "
        f"{n_episodes} possible episodes, |∇J| = {norm:.4f}"
    )
    print(f"  {'method':50s}  largest difference from the theorem")
    for method, difference in differences.items():
        sampled = f"  ({n_sampled} episodes)" if "REINFORCE" in method else ""
        print(f"  {method:50s}  {difference:.1e}{sampled}")
    print(f"  error of the sampled gradient falls as episodes^{slope:.3f}")
    return dict(
        differences=differences,
        possible_episodes=n_episodes,
        episodes=counts.tolist(),
        errors=errors.tolist(),
        slope=slope,
        norm=norm,
    )


def draw(numbers, out):
    """The error of the sampled gradient against the number of episodes, a panel a task."""
    fig, axes = plots.figure(10, 4.2, columns=2)
    for ax, (name, row) in zip(axes, numbers.items()):
        counts = np.array(row["episodes"])
        errors = np.array(row["errors"])
        expected = errors[-1] * np.sqrt(counts[-1] / counts)
        blue = plots.COLOURS["blue"]
        black = plots.COLOURS["black"]
        label = "REINFORCE, leave-one-out baseline"
        ax.loglog(counts, errors / row["norm"], "o", color=blue, label=label)
        ax.loglog(counts, expected / row["norm"], "--", color=black, label="1/√episodes")
        ax.set(
            title=name,
            xlabel="sampled episodes",
            ylabel="error of the gradient, relative to its norm",
        )
        ax.legend()
    return plots.save(fig, out, "policy_gradient")


def main():
    arguments = parser(__doc__).parse_args()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    counts = 2 ** np.arange(1, 9 if arguments.quick else 15)
    numbers = {}
    for name, task in tasks(rng).items():
        numbers[name] = study_task(rng, name, task, counts, arguments.quick, progress)
    finish(arguments, numbers, [draw(numbers, arguments.out)])


if __name__ == "__main__":
    begin(main)
