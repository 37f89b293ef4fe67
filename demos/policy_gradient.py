"""One policy gradient, six ways: they agree to rounding, and the sampled one approaches them.

Its error falls as 1/√episodes. There are two tasks: a random MDP with the logistic-sigmoid policy,
and a small slippery GridWorld with the softmax table. The gradient of the expected discounted
return is computed by finite differences, by autograd through dynamic programming, by the
policy-gradient theorem, by enumerating every episode (autograd, and the closed form of the score),
and by REINFORCE on sampled episodes.
"""

# %% The two tasks
import autograd.numpy as np
from autograd import grad

from _common import Progress, begin, finish, parser
from metarl_np import check, enumeration, exact, plots
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
    random_mdp = MDP.from_dense(P, R, start=0, discount=0.9, horizon=4)
    grid = GridWorld("S.. .#. ..G", discount=0.9, horizon=5, slip=0.2, step_reward=-0.1)
    softmax = SoftmaxPolicy(9, 4)
    return {
        "random MDP, logistic policy": (random_mdp, logistic, rng.normal(size=(3, 1))),
        "GridWorld, softmax table": (grid.mdps(), softmax, rng.normal(size=(9, 4))),
    }


# %% The same gradient, six ways
def exact_gradients(mdps, policy, theta):
    """{method: ∇J}, the policy-gradient theorem first, and the number of possible episodes."""
    episodes, dynamics = enumeration.enumerate_episodes(mdps, max_episodes=3_000_000)
    n_episodes = episodes.states.shape[-1]

    def by_dynamic_programming(th):
        return exact.expected_return(mdps, policy.log_pi(th))[0]

    def by_enumeration(th):
        log_pi = policy.log_pi(th)
        return enumeration.enumerated_return(log_pi, episodes, dynamics, mdps.discount)[0]

    log_pi = policy.log_pi(theta)
    log_probs = gather_log_probs(log_pi, episodes.states, episodes.actions)
    log_p = (log_probs * episodes.mask).sum(0)
    # each episode weighted by its probability
    weights = reinforce_weights(episodes, mdps.discount) * dynamics * np.exp(log_p)
    mean_table = fold(weights, episodes.states, episodes.actions, *mdps.shape[1:])
    table = mean_table * n_episodes
    theorem = exact.policy_gradient_table(mdps, log_pi)
    gradients = {
        "policy-gradient theorem (exact Q and occupancy)": policy.weighted_score(theta, theorem[0]),
        "finite differences of J": check.finite_differences(by_dynamic_programming, theta),
        "autograd through dynamic programming": grad(by_dynamic_programming)(theta),
        "autograd through the enumeration of episodes": grad(by_enumeration)(theta),
        "closed-form score, every episode enumerated": policy.weighted_score(theta, table[0]),
    }
    return gradients, n_episodes


def sampled_gradients(rng, mdps, policy, theta, n_episodes):
    """{method: REINFORCE's estimate} on n sampled episodes."""
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
    """√E‖ĝ − ∇J‖² over `repeats` sampled gradients, for each number of episodes."""
    copies = mdps[np.zeros(repeats, int)]
    errors = []
    for n in counts:
        data = rollout(rng, copies, policy.log_pi(theta), n)
        weights = reinforce_weights(data, mdps.discount, baseline=leave_one_out_baseline)
        table = fold(weights, data.states, data.actions, *mdps.shape[1:])
        off = policy.weighted_score(theta, table) - truth
        errors.append(np.sqrt((off**2).sum((1, 2)).mean()))
    return np.array(errors)


# %% The picture and the table
def draw(ax, name, counts, relative_errors):
    """Error against the number of episodes, beside a line of slope −1/2 through the last point."""
    blue = plots.COLOURS["blue"]
    black = plots.COLOURS["black"]
    label = "REINFORCE, leave-one-out baseline"
    ax.loglog(counts, relative_errors, "o", color=blue, label=label)
    line = relative_errors[-1] * np.sqrt(counts[-1] / counts)
    ax.loglog(counts, line, "--", color=black, label="1/√episodes")
    ylabel = "error of the gradient, relative to its norm"
    ax.set(title=name, xlabel="sampled episodes", ylabel=ylabel)
    ax.legend()


def print_differences(differences, n_sampled):
    """A line a method."""
    print(f"  {'method':50s}  largest difference from the theorem")
    for method, difference in differences.items():
        sampled = f"  ({n_sampled} episodes)" if "REINFORCE" in method else ""
        print(f"  {method:50s}  {difference:.1e}{sampled}")


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    rng = np.random.default_rng(arguments.seed)
    progress = Progress()
    numbers = {}
    counts = 2 ** np.arange(1, 9 if arguments.quick else 15)
    n_sampled, repeats = (1_000, 20) if arguments.quick else (200_000, 200)
    fig, axes = plots.figure(10, 4.2, columns=2)
    for ax, (name, task) in zip(axes, tasks(rng).items()):
        progress(f"{name}: exact gradients")
        gradients, n_episodes = exact_gradients(*task)
        truth = next(iter(gradients.values()))
        norm = np.linalg.norm(truth)
        gradients |= sampled_gradients(rng, *task, n_sampled)
        progress(f"{name}: sampling")
        errors = sampling_errors(rng, *task, truth, counts, repeats)
        slope = np.polyfit(np.log(counts[2:]), np.log(errors[2:]), 1)[0]
        progress.done()

        mdps = task[0]
        _, n_states, n_actions = mdps.shape
        print(
            f"\n{name}: {n_states} states, {n_actions} actions, horizon {mdps.horizon}, "
            f"{n_episodes} possible episodes, |∇J| = {norm:.4f}"
        )
        differences = {method: float(abs(g - truth).max()) for method, g in gradients.items()}
        print_differences(differences, n_sampled)
        print(f"  error of the sampled gradient falls as episodes^{slope:.3f}")
        numbers[name] = dict(differences=differences, possible_episodes=n_episodes)
        numbers[name] |= dict(episodes=counts.tolist(), errors=errors.tolist())
        numbers[name] |= dict(slope=slope, norm=float(norm))
        draw(ax, name, counts, errors / norm)
    finish(arguments, numbers, [plots.save(fig, arguments.out, "policy_gradient")])


if __name__ == "__main__":
    begin(main)
