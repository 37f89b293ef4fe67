"""What several test files need. Nothing here uses autograd or the dynamic programming that it
checks.
"""

import importlib
import pkgutil
import re
from dataclasses import is_dataclass, replace
from itertools import product
from math import erfc, sqrt

import numpy as np

import metarl_np
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.tasks.mdp import MDP


def random_tasks(rng, n, s, a, z, *, horizon, discount=0.9, reward_noise=0.0):
    """N different tasks: random start, one terminal state at another place in each, some impossible
    successors.

    Slot 0 of a terminal state is impossible, yet points elsewhere and pays: nobody may look there.
    """
    successors = rng.integers(s, size=(n, s, a, z))
    probabilities = rng.dirichlet(np.ones(z), (n, s, a))
    if z > 2:
        probabilities[:, 0, 0] = np.eye(z)[1]
        probabilities[:, 1, 0, 0] += probabilities[:, 1, 0, 2]
        probabilities[:, 1, 0, 2] = 0
    rewards = rng.normal(size=(n, s, a, z))
    terminal = np.zeros((n, s), bool)
    start = rng.dirichlet(np.ones(s), n)
    for i in range(n):
        end = terminal_state(i, s)
        terminal[i, end] = True
        start[i, end] = 0
        successors[i, end, :, 1:] = end
        rewards[i, end, :, 1:] = 0
        probabilities[i, end] = np.eye(z)[-1]
        successors[i, end, :, 0] = (end + 1) % s
        successors[i, (end + 1) % s, 0, 0] = end
    return MDP(
        successors,
        probabilities,
        rewards,
        start / start.sum(1, keepdims=True),
        terminal,
        discount,
        horizon,
        reward_noise,
    )


def tiny_mdp(rng, horizon, *, ends=False):
    """One task to enumerate, its last state terminal: 13 episodes at T = 2, 40 at T = 3; if action
    1 always ends, 7 and 15.
    """
    successors = np.array([[[[0, 1], [1, 2]], [[0, 2], [0, 1]], [[2, 2], [2, 2]]]])
    probabilities = rng.dirichlet((2, 2), (1, 3, 2))
    rewards = rng.normal(0, 2, (1, 3, 2, 2))
    probabilities[:, 2] = (1, 0)
    rewards[:, 2] = 0
    if ends:
        successors[0, :2] = [[0, 1], [2, 2]]
        probabilities[0, :, 1] = 1, 0
    return MDP(
        successors, probabilities, rewards, [[1, 0, 0]], [[False, False, True]], 0.9, horizon
    )


def terminal_state(task, n_states):
    return (n_states - 1 + task) % n_states


SHARED = ("softmax", "softmax features", "logistic", "logistic features")
POLICIES = tuple(name + suffix for name in SHARED for suffix in ("", ", per task"))
LEARNERS = ("softmax", "logistic features", "softmax, critic", "logistic features, critic")


def named(cases, name):
    """(policy, θ) of that name, from what `policies` or `learners` give."""
    for case, policy, theta in cases:
        if case == name:
            return policy, theta
    raise KeyError(name)


def policies(rng, n, s, a):
    """(name, policy, θ) of each of POLICIES.

    Softmax and logistic, tabular and with features, θ shared and per task.
    """
    features = rng.normal(size=(s, 2))
    units = a.bit_length() - 1
    cases = [
        ("softmax", SoftmaxPolicy(s, a)),
        ("softmax features", SoftmaxPolicy(s, a, features)),
        ("logistic", LogisticPolicy(s, units)),
        ("logistic features", LogisticPolicy(s, units, features)),
    ]
    for name, policy in cases:
        yield name, policy, rng.normal(size=policy.init().shape)
        yield name + ", per task", policy, rng.normal(size=(n,) + policy.init().shape)


def learners(rng, n, s, a):
    """(name, policy, θ (N, F, ·)): what PPO and TRPO improve, policies with and without a critic,
    every task with a θ of its own.
    """
    features = rng.normal(size=(s, 3))
    units = a.bit_length() - 1
    softmax = SoftmaxPolicy(s, a)
    logistic = LogisticPolicy(s, units, features)
    for name, policy in (
        ("softmax", softmax),
        ("logistic features", logistic),
        ("softmax, critic", ActorCritic(softmax)),
        ("logistic features, critic", ActorCritic(logistic)),
    ):
        yield name, policy, 0.7 * rng.normal(size=(n,) + policy.init().shape)


def plain_log_pi(policy, theta):
    """log π(a|s), (S, A), of one task: both policies are ∝ exp(φ(s)ᵀ θ f(a)), f(a) one-hot or the
    bits of a.
    """
    if isinstance(policy, ActorCritic):
        return plain_log_pi(policy.actor, theta[:, :-1])
    phi, f = _features(policy)
    x = phi @ theta @ f.T
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def plain_score(policy, theta):
    """∇log π(a|s) = φ(s) (f(a) − E f)ᵀ of one task, derived by hand: (S, A) + shape of θ."""
    if isinstance(policy, ActorCritic):
        return np.pad(plain_score(policy.actor, theta[:, :-1]), [(0, 0)] * 3 + [(0, 1)])
    phi, f = _features(policy)
    pi = np.exp(plain_log_pi(policy, theta))
    return np.einsum("sf,sau->safu", phi, f - (pi @ f)[:, None])


def plain_values(policy, theta):
    """V(s) = φ(s)ᵀw of one task, w the last column of an ActorCritic's θ: (S,)."""
    return _features(policy.actor)[0] @ theta[:, -1]


def plain_visits(e, n_states):
    """ν(s) of recorded Episodes by counting: (N, S)."""
    count = np.zeros((e.mask.shape[1], n_states))
    for t, i, k in zip(*np.nonzero(e.mask)):
        count[i, e.states[t, i, k]] += 1
    return count / count.sum(1, keepdims=True)


def plain_kl(policy, p, q, nu):
    """Σ_s ν(s) KL(π_p(·|s)‖π_q(·|s)) of one task: the expectation is under the first."""
    log_p = plain_log_pi(policy, p)
    log_q = plain_log_pi(policy, q)
    return sum(
        nu[s] * np.exp(log_p[s, a]) * (log_p[s, a] - log_q[s, a])
        for s, a in np.ndindex(log_p.shape)
    )


def _features(policy):
    phi = np.eye(policy.n_states) if policy.features is None else policy.features
    if isinstance(policy, SoftmaxPolicy):
        return phi, np.eye(policy.n_actions)
    return phi, np.array(
        [[a >> u & 1 for u in range(policy.units)] for a in range(policy.n_actions)], float
    )


def all_episodes(mdps, task, pi):
    """Every (probability, [(state, action, reward), …], last state) of a task under pi (S, A), by
    plain recursion.
    """
    s_axis, a_axis, z_axis = mdps.successors.shape[1:]

    def follow(p, state, t, path):
        if t == mdps.horizon or mdps.terminal[task, state]:
            yield p, path, state
            return
        for a, z in product(range(a_axis), range(z_axis)):
            q = mdps.probabilities[task, state, a, z]
            if q > 0:
                step = (state, a, mdps.rewards[task, state, a, z])
                yield from follow(
                    p * pi[state, a] * q, mdps.successors[task, state, a, z], t + 1, path + [step]
                )

    for state in range(s_axis):
        if mdps.start[task, state] > 0:
            yield from follow(mdps.start[task, state], state, 0, [])


def plain_return(mdps, task):
    """The function (policy, θ) → (J, ∇J) of one task by enumeration: ∇J = E[R Σ_t ∇log π_t], with
    no Q and no γᵗ to get wrong.
    """
    # π = 1: what is left is the dynamics
    episodes = list(all_episodes(mdps, task, np.ones(mdps.shape[1:])))
    returns = np.array([return_of(path, mdps.discount) for _, path, _ in episodes])
    dynamics = np.array([p for p, _, _ in episodes])
    visits = np.zeros((len(episodes),) + mdps.shape[1:])
    for m, (_, path, _) in enumerate(episodes):
        for s, a, _ in path:
            visits[m, s, a] += 1

    def value_and_gradient(policy, theta):
        p = dynamics * np.exp(np.tensordot(visits, plain_log_pi(policy, theta), 2))
        return p @ returns, np.tensordot(
            np.tensordot(p * returns, visits, 1), plain_score(policy, theta), 2
        )

    return value_and_gradient


def return_of(path, discount):
    return sum(discount**t * r for t, (_, _, r) in enumerate(path))


def chi2_p(observed, expected, dof):
    """p-value of Σ (o − e)²/e over the cells with e > 0, by Wilson & Hilferty (1931); impossible
    cells must be empty.
    """
    observed = np.ravel(observed)
    expected = np.ravel(expected)
    assert (observed[expected == 0] == 0).all()
    possible = expected > 0
    assert expected[possible].min() > 5
    x = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    z = ((x / dof) ** (1 / 3) - (1 - 2 / (9 * dof))) / sqrt(2 / (9 * dof))
    return erfc(z / sqrt(2)) / 2


class Shuffled:
    """Draws that are those of another generator, task by task in another order."""

    def __init__(self, seed, order):
        self.rng, self.order = np.random.default_rng(seed), order

    def __getattr__(self, name):
        def take(x, order):
            return (
                np.take(x, order, np.shape(x).index(len(order)))
                if isinstance(x, np.ndarray) and x.ndim
                else x
            )

        def draw(*arguments):
            return take(
                getattr(self.rng, name)(*(take(x, np.argsort(self.order)) for x in arguments)),
                self.order,
            )

        return draw


ORDER = np.array([3, 0, 6, 1, 5, 2, 4])


def dense(mdps):
    """P(s'|s,a) and E[r; s'|s,a], both (N, S, A, S), entry by entry."""
    n, s, a = mdps.shape
    P, PR = np.zeros((2, n, s, a, s))
    for place in np.ndindex(mdps.successors.shape):
        to = place[:3] + (mdps.successors[place],)
        P[to] += mdps.probabilities[place]
        PR[to] += mdps.probabilities[place] * mdps.rewards[place]
    return P, PR


def pattern(why):
    """'argument: words (at place)' as a regular expression: the message starts with the argument
    and ends in the place.
    """
    argument, _, rest = why.partition(":")
    words, _, place = rest.strip().partition("(")
    return f"^{argument}: .*{re.escape(words.strip())}.*{re.escape('(' + place) if place else ''}"


def coded(mdps):
    """The same tasks with rewards that name the outcome, 1 + its index in (N, S, A, Z); float32
    holds them exactly.
    """
    codes = 1.0 + np.arange(mdps.rewards.size).reshape(mdps.rewards.shape)
    return replace(mdps, rewards=np.where(mdps.terminal[:, :, None, None], 0.0, codes))


def random_log_pi(rng, n, s, a):
    return np.log(rng.dirichlet(np.ones(a), (n, s)))


def sections():
    """Every section of the package, as a module; importing plots needs matplotlib."""
    for module in pkgutil.walk_packages(metarl_np.__path__, "metarl_np."):
        if not module.ispkg:
            yield importlib.import_module(module.name)


def dataclasses_of_the_package():
    """Every dataclass of the package, the private ones too."""
    kinds = set()
    for section in sections():
        own = [x for x in vars(section).values() if isinstance(x, type) and is_dataclass(x)]
        kinds |= {kind for kind in own if kind.__module__ == section.__name__}
    return kinds
