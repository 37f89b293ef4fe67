"""Known mistakes in public meta-RL code, each as its authors would have written it, and caught.

This is the whole catalogue, with the file where each is caught: "here" in this one.

     1  the score term of (b) is left out                                here
     2  the naive loss is differentiated twice: "second order"           here
     3  the score term is a product of means, or of the first step only  here
     4  a baseline stands inside DiCE's product                          here
     5  index −1 is taken for the one before 0; divided by K twice       here
     6  the outer step size is used in the inner step                    here
     7  log-probabilities are averaged over units                        here
     8  advantages are divided by their variance                         here
     9  TRPO's line search looks at Σ W log π                            here
    10  conjugate gradient: residual and direction are one array         here
    11  a baseline is fitted on the episodes that it scores              here
    12  held-out tasks are drawn with the training seed                  here
    13  zero observations, biases and ReLU: no unit lives                no such network here
    14  each trajectory is weighted by 1/length                          here
    15  RL²: the last step of an episode is never shown                  meta/test_rl2.py **
    16  RL²: the hidden state is cleared in every episode                meta/test_rl2.py **
        RL²: back-propagation goes through one step only                 meta/test_gru.py
    17  RL²: value targets come from standardised advantages             meta/test_rl2_training.py *
    18  RL²: the first input says "arm 0, reward 0"                      meta/test_rl2.py **
    19  GAE runs across two tasks that are neighbours in a buffer        meta/test_rl2_training.py *
    20  γᵗ is dropped                                                    here
    21  the score term is added to DiCE or LVC                           here
    22  a second inner step does nothing, or has the first one's data    here
    23  `dones`, or an inverted mask, where a mask belongs               here
    24  means over steps in the inner loss, over episodes in the outer   here

    * and in check/test_advantages.py, ** and in check/test_inputs.py

What `check.diagnose` calls 1 to 6, 8, 11, 14 and 20 to 24 in a user's own code of two inner steps,
check/test_diagnose.py has in its table MISTAKES.

Expectations are over every data set of a tiny MDP, so nothing here has a sampling error (but the
random MDPs of 9 and 12). An error is the largest absolute difference over the largest component of
the right answer: at least 1% for a mistake, below 1e-8 for the right version. `pytest -s` prints
the errors, and where a mistake changes nothing.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import autograd.numpy as np
import pytest
from autograd import grad

from metarl_np import check, enumeration, exact, maml, meta_gradients, surrogates
from metarl_np.check.verdict import check_gradient
from metarl_np.learner.optim import conjugate_gradient
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.returns import (
    discounts,
    gae,
    leave_one_out_baseline,
    linear_baseline,
    no_baseline,
    reward_to_go,
)
from metarl_np.learner.trpo import TRPO, fisher_vector_product
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP
from metarl_np.tasks.random_mdps import random_mdps

S = 2
A = 2
T = 2
GAMMA = 0.9
ALPHA = 0.7


def tiny_task(seed, *, n_actions=A, discount=GAMMA, unit=1.0, ending=False):
    """S states, any of which may start and follow any, with a reward for each transition; `ending`
    adds a terminal state.
    """
    rng = np.random.default_rng(seed)
    size = S + ending
    P = rng.dirichlet(np.ones(size), (size, n_actions))
    R = unit * rng.normal(size=(size, n_actions, size))
    start = np.append(rng.dirichlet(np.ones(S)), np.zeros(size - S))
    if ending:
        P[-1] = np.eye(size)[-1]
        R[-1] = 0
    return MDP.from_dense(P, R, start, discount=discount, horizon=T, terminal=np.arange(size) >= S)


TASK = tiny_task(1)
POLICY = SoftmaxPolicy(S, A)
THETA = np.random.default_rng(0).normal(size=(S, A))
# (task, policy, θ) with episodes of 1 or 2 steps
ENDING = (
    tiny_task(2, ending=True),
    SoftmaxPolicy(S + 1, A),
    np.random.default_rng(1).normal(size=(S + 1, A)),
)
HESSIAN = meta_gradients.hessians(TASK, POLICY, THETA)["H"][0]
# k inner steps, K episodes each, baseline of the step
SETTINGS = [(1, 2, leave_one_out_baseline), (2, 1, no_baseline)]
settings = pytest.mark.parametrize("k, K, baseline", SETTINGS, ids=["k=1 K=2", "k=2 K=1"])


# ---- what is compared, and how


def error(wrong, right):
    return np.max(abs(wrong - right)) / np.max(abs(right))


def assert_caught(number, what, wrong, answer, right, *, tolerance=1e-8, among=None, called=()):
    """The mistake is off by 1% at least, the right version is not off; `check` says so, and calls
    the mistake what it is.
    """
    print(f"\nmistake {number:2}: {error(wrong, answer):8.2%}  {what}", end="")
    assert error(wrong, answer) >= 0.01
    assert error(right, answer) < tolerance
    candidates = (among or {}) | {"the answer": np.atleast_1d(answer)}
    assert check_gradient(np.atleast_1d(wrong), candidates).names == called
    assert (
        "the answer" in check_gradient(np.atleast_1d(right), candidates, tolerance=tolerance).names
    )


def assert_unchanged(number, what, wrong, answer):
    """A mistake that changes nothing measurable is reported as such."""
    print(f"\nmistake {number:2}:  nothing  {what}", end="")
    assert error(wrong, answer) < 1e-8


def data_sets(task, policy, theta, K, k=1):
    """Every history of k sets of K episodes: copies of the task (R), k Episodes (T, R, K),
    dynamics' part of the probability (R,).
    """
    every, dynamics = enumeration.enumerate_episodes(task)
    draws = np.array(list(product(range(dynamics.shape[1]), repeat=k * K))).reshape(-1, k, K)
    copies = task[np.zeros(len(draws), int)]
    log_pi = np.broadcast_to(policy.log_pi(theta), copies.shape)
    episodes = [replace(every.part(draws[:, j], 0), log_pi=log_pi) for j in range(k)]
    return copies, episodes, dynamics[0][draws].prod((1, 2))


def with_probability(task, policy, theta, K=2):
    """Every data set of one inner step: θ per data set (D, F, A), Episodes (T, D, K), probability
    (D,).
    """
    copies, (episodes,), dynamics = data_sets(task, policy, theta, K)
    thetas = maml.per_task(theta, len(copies))
    probability = dynamics * np.exp(surrogates.log_likelihood(policy.log_pi(thetas), episodes))
    assert abs(probability.sum() - 1) < 1e-12
    return thetas, episodes, probability


def expected_gradient(
    surrogate,
    baseline=no_baseline,
    task=TASK,
    policy=POLICY,
    theta=THETA,
    *,
    log_pi=None,
    hessian=False,
):
    """E_D of a surrogate's first derivative (F, A), or second (F·A, F·A). surrogate: of the
    arguments that `surrogates.dice` has.
    """
    thetas, e, probability = with_probability(task, policy, theta)
    rewards = e.rewards * e.mask
    log_pi = log_pi or policy.log_pi
    recorded = rewards, baseline(reward_to_go(rewards, task.discount), e), e.mask, task.discount
    first = grad(
        lambda th: np.sum(
            surrogate(surrogates.gather_log_probs(log_pi(th), e.states, e.actions), *recorded)
        )
    )
    if not hessian:
        return np.tensordot(probability, first(thetas), 1)
    rows = [grad(lambda th: np.sum(first(th)[:, i, j]))(thetas) for i, j in np.ndindex(theta.shape)]
    return np.stack([np.tensordot(probability, row, 1).ravel() for row in rows])


def return_gradient(task=TASK, policy=POLICY, theta=THETA):
    """∇J by dynamic programming: (F, A)."""
    return grad(lambda th: np.sum(exact.expected_return(task, policy.log_pi(th))))(theta)


def expected_meta_gradient(inner, k, K, *, objective=maml.meta_objective, with_score=True):
    """E over all histories of the gradient of a meta-objective, with the exact return as its outer
    surrogate: (F, A).
    """
    copies, episodes, probability = data_sets(TASK, POLICY, THETA, K, k)
    thetas = [maml.per_task(THETA, len(copies))]
    data = []
    for e in episodes:
        probability = probability * np.exp(surrogates.log_likelihood(POLICY.log_pi(thetas[-1]), e))
        data.append(inner.prepare(POLICY, None, e, copies.discount))
        thetas.append(inner(POLICY, thetas[-1], data[-1]))
    assert abs(probability.sum() - 1) < 1e-12

    def outer(theta):
        return exact.expected_return(copies, POLICY.log_pi(theta))

    path = maml.Adaptation(thetas, episodes, data, None, None)
    factor = outer(thetas[-1]) if with_score else None
    return np.tensordot(
        probability,
        grad(lambda th: np.sum(objective(POLICY, th, path, inner, outer, factor)))(thetas[0]),
        1,
    )


def answer_b(k, K, baseline):
    """(b): ∇E_D[J(U(θ, D))], (F, A)."""
    return meta_gradients.expected_adapted_return_gradient(
        TASK, POLICY, THETA, Reinforce(ALPHA, baseline), episodes=K, steps=k
    )


@cache
def every_estimator(k, K, baseline):
    """What `check` knows: {name: expectation of each estimator}."""
    return check.expected_gradients(
        TASK, THETA, step_size=ALPHA, episodes=K, steps=k, baseline=baseline, policy=POLICY
    )


def weights(rewards, baseline, mask, discount):
    """γᵗ (G_t − b_t), (T, N, K)."""
    return discounts(discount, T, mask) * (reward_to_go(rewards, discount) - baseline) * mask


def exact_values(task, policy, theta):
    """V_t(s_t), to be called as a baseline is."""
    v = exact.values(task, policy.log_pi(theta))[:, 0]
    return lambda returns, episodes: v[np.arange(T)[:, None, None], episodes.states]


# ---- the mistakes, in order


@settings
def test_01_score_term_left_out(k, K, baseline):
    inner = Reinforce(ALPHA, baseline)
    assert_caught(
        1,
        f"no score term, against (b), k={k} K={K}",
        expected_meta_gradient(inner, k, K, with_score=False),
        answer_b(k, K, baseline),
        expected_meta_gradient(inner, k, K),
        among=every_estimator(k, K, baseline),
        called=("naive",),
    )


def test_02_naive_loss_differentiated_twice():
    """Its first derivative is right, its second is H₂ and not H."""

    def loss(log_probs, *recorded):
        return surrogates.reinforce(log_probs, weights(*recorded))

    assert_unchanged(
        2, "naive loss, differentiated once", expected_gradient(loss), return_gradient()
    )
    assert_caught(
        2,
        "naive loss, its Hessian against (a)'s H",
        expected_gradient(loss, hessian=True),
        HESSIAN,
        expected_gradient(surrogates.dice, hessian=True),
    )


@settings
def test_02_with_the_score_term_the_naive_loss_is_right_for_b(k, K, baseline):
    naive = expected_meta_gradient(Reinforce(ALPHA, baseline, "naive"), k, K)
    assert error(naive, answer_b(k, K, baseline)) < 1e-8


def score_of_means(policy, theta, path, inner, outer, score):
    """Mean return times mean log-likelihood, where the score of the data is a sum."""
    total = 0.0
    for data, e in zip(path.data, path.episodes):
        total = total + score * np.mean(
            surrogates.gather_log_probs(policy.log_pi(theta), e.states, e.actions), (0, 2)
        )
        theta = inner(policy, theta, data)
    return outer(theta) + total


def score_of_first_step(policy, theta, path, inner, outer, score):
    """The initial policy's log-likelihood only: the data of later steps depend on θ as well."""
    log_p = surrogates.log_likelihood(policy.log_pi(theta), path.episodes[0])
    for data in path.data:
        theta = inner(policy, theta, data)
    return outer(theta) + score * log_p


@settings
def test_03_score_term_of_means_or_of_the_first_step_only(k, K, baseline):
    inner = Reinforce(ALPHA, baseline)
    answer = answer_b(k, K, baseline)
    right = expected_meta_gradient(inner, k, K)
    unscored = expected_meta_gradient(inner, k, K, with_score=False)
    means, first = (
        expected_meta_gradient(inner, k, K, objective=wrong)
        for wrong in (score_of_means, score_of_first_step)
    )
    assert_caught(
        3,
        f"mean return times mean log-likelihood, k={k} K={K}",
        means,
        answer,
        right,
        among=every_estimator(k, K, baseline),
    )
    # off by the number of samples, and by nothing else
    assert error(K * T * (means - unscored), right - unscored) < 1e-8
    if k == 1:
        assert_unchanged(
            3, "score of the first of several inner steps, where there is but one", first, answer
        )
    else:
        assert_caught(
            3, f"score of the first of several inner steps, k={k} K={K}", first, answer, right
        )


def test_04_baseline_inside_dice_product():
    def inside(log_probs, rewards, baseline, mask, discount):
        steps = surrogates.magic_box(np.cumsum(log_probs, 0)) * (rewards - baseline)
        return np.sum(np.mean(steps * discounts(discount, T, steps), -1), 0)

    def constant(returns, episodes):
        return np.full(returns.shape, 0.5)

    values = exact_values(TASK, POLICY, THETA)
    assert_caught(
        4,
        "r_t − b(s_t) inside DiCE's product, first derivative",
        expected_gradient(inside, values),
        return_gradient(),
        expected_gradient(surrogates.dice, values),
    )
    assert_unchanged(
        4,
        "the same with one b for all states",
        expected_gradient(inside, constant),
        return_gradient(),
    )


def test_05_loaded_dice_wraps_around():
    """The first derivative, all that is usually tested, stays right."""

    def wrapped(log_probs, *recorded):
        """w = log_probs.copy(); for t in range(T): w[t] += w[t − 1]. At t = 0 that adds the last
        row.
        """
        w = [log_probs[0] + log_probs[-1]]
        for row in log_probs[1:]:
            w.append(row + w[-1])
        w = np.array(w)
        return surrogates.reinforce(
            surrogates.magic_box(w) - surrogates.magic_box(w - log_probs), weights(*recorded)
        )

    assert_unchanged(
        5,
        "Loaded DiCE, w_{−1} = log π_{T−1}, first derivative",
        expected_gradient(wrapped),
        return_gradient(),
    )
    assert_caught(
        5,
        "the same, Hessian",
        expected_gradient(wrapped, hessian=True),
        HESSIAN,
        expected_gradient(surrogates.loaded_dice, hessian=True),
    )


def test_05_gae_wraps_around():
    """What is added to every advantage depends on s_0 alone, hence is a baseline; but not where
    only long episodes get it.
    """

    def wrapped(rewards, values, mask, bootstrap, *, discount, lam):
        return reward_to_go(
            (rewards + discount * np.roll(values, -1, 0) - values) * mask, discount * lam
        )

    def step(advantages):
        def surrogate(log_probs, rewards, values, mask, discount):
            a = advantages(rewards, values * mask, mask, 0.0, discount=discount, lam=0.5)
            return surrogates.reinforce(log_probs, a * mask * discounts(discount, T, mask))

        return surrogate

    assert_unchanged(
        5,
        "GAE, V_0 as the value after the last step, all episodes of length T",
        expected_gradient(step(wrapped), exact_values(TASK, POLICY, THETA)),
        return_gradient(),
    )
    values = exact_values(*ENDING)
    assert_caught(
        5,
        "the same, some episodes end early",
        expected_gradient(step(wrapped), values, *ENDING),
        return_gradient(*ENDING),
        expected_gradient(step(gae), values, *ENDING),
    )


def test_05_divided_by_the_number_of_episodes_twice():
    def twice(log_probs, *recorded):
        return surrogates.reinforce(log_probs, weights(*recorded) / log_probs.shape[-1])

    assert_caught(
        5,
        "a mean over K=2 episodes divided by K",
        expected_gradient(twice),
        return_gradient(),
        expected_gradient(surrogates.naive),
    )


@settings
def test_06_outer_step_size_in_the_inner_step(k, K, baseline, beta=0.1):
    assert_caught(
        6,
        f"inner step of β={beta} instead of α={ALPHA}, k={k} K={K}",
        expected_meta_gradient(Reinforce(beta, baseline), k, K),
        answer_b(k, K, baseline),
        expected_meta_gradient(Reinforce(ALPHA, baseline), k, K),
        among=every_estimator(k, K, baseline),
    )


def test_07_log_probabilities_averaged_over_units():
    policy = LogisticPolicy(S, 2)
    where = tiny_task(3, n_actions=4), policy, THETA

    def averaged(theta):
        x = theta[..., None, :]
        return -np.mean(
            policy.bits * np.logaddexp(0, -x) + (1 - policy.bits) * np.logaddexp(0, x), -1
        )

    g = expected_gradient(surrogates.naive, no_baseline, *where, log_pi=averaged)
    answer = return_gradient(*where)
    assert_caught(
        7,
        "mean over the 2 units of a logistic policy",
        g,
        answer,
        expected_gradient(surrogates.naive, no_baseline, *where),
    )
    assert_unchanged(7, "its direction: the factor is the number of units", 2 * g, answer)


@pytest.mark.parametrize("unit", [1.0, 10.0])
def test_08_advantages_divided_by_the_variance(unit):
    """Measured is the length of the step, which standardised is ∇J/σ, σ over all steps of all
    episodes; the direction is right.
    """
    task = tiny_task(1, unit=unit)
    _, e, probability = with_probability(task, POLICY, THETA)
    returns = reward_to_go(e.rewards, GAMMA)
    share = np.broadcast_to(probability[:, None], returns.shape) / returns[:, 0].size
    mean = np.sum(share * returns)
    std = np.sum(share * (returns - mean) ** 2) ** 0.5

    def scaled(divisor):
        return expected_gradient(
            lambda log_probs, rewards, b, *rest: surrogates.naive(log_probs, rewards, mean, *rest)
            / divisor,
            task=task,
        )

    answer = return_gradient(task) / std
    assert_caught(
        8,
        f"length of the step, rewards × {unit:g}, σ = {std:.3f}",
        scaled(std**2),
        answer,
        scaled(std),
    )
    assert_unchanged(8, "its direction: the factor is 1/σ", scaled(std**2) * std, answer)


def exact_step_data(tasks, policy, theta, *, centred=False):
    """What TRPO's step is made from, without sampling: W(s, a) of returns, or of advantages if
    centred, and ν(s).
    """
    log_pi = policy.log_pi(theta)
    table = exact.policy_gradient_table(tasks, log_pi)
    nu = np.sum(exact.occupancy(tasks, log_pi), 0)
    table = table - centred * np.exp(log_pi) * np.sum(table, -1, keepdims=True)
    return table, nu / np.sum(nu, 1, keepdims=True)


def first_exponent(trpo, policy, theta, table, nu, predicted):
    """A line search as TRPO's, with the gain of a step as predicted(log π, log π_new, W) → (N,)."""
    full = trpo.step(policy, theta, table, nu, np.zeros(len(theta))) - theta
    old = policy.log_pi(theta)
    good = []
    for j in range(trpo.max_backtracks + 1):
        new = policy.log_pi(theta + trpo.shrink**j * full)
        kl = np.sum(nu[..., None] * np.exp(old) * (old - new), (1, 2))
        good.append((predicted(old, new, table) > 0) & (kl <= trpo.radius))
    return np.where(np.any(good, 0), np.argmax(good, 0), -1)


def log_loss(old, new, table):
    """What is differentiated, Σ W log π, mistaken for what the step is worth."""
    return np.sum(table * (new - old), (1, 2))


def expected_advantage(old, new, table):
    """Σ_t d_t(s) Σ_a (π_new − π) Q_t(s, a), as W = Σ_t d_t π Q_t."""
    return np.sum(table / np.exp(old) * (np.exp(new) - np.exp(old)), (1, 2))


def test_09_predicted_gain_by_the_policy_gradient_loss():
    """E_D of what the step is said to be worth. The loss is right to first order only, where π_new
    = π.
    """
    _, e, probability = with_probability(TASK, POLICY, THETA)
    sampled = np.tensordot(
        probability,
        surrogates.fold(surrogates.reinforce_weights(e, GAMMA), e.states, e.actions, S, A),
        1,
    )
    table, nu = exact_step_data(TASK, POLICY, THETA[None])
    old, new = (
        POLICY.log_pi(th)
        for th in (THETA[None], TRPO(0.5).step(POLICY, THETA[None], table, nu, np.zeros(1)))
    )
    assert_caught(
        9,
        "gain that Σ W log π predicts for a step, δ=.5",
        log_loss(old, new, sampled),
        expected_advantage(old, new, table),
        np.sum(sampled * np.expm1(new - old)),
    )


@pytest.mark.parametrize(
    "radius, centred, harmful", [(0.01, False, False), (0.1, False, True), (0.1, True, False)]
)
def test_09_line_search_on_the_policy_gradient_loss(radius, centred, harmful, n=300):
    """Random problems with exact weights, and the gain in J of the steps taken. Σ W log π has an
    optimum of its own, at π ∝ W: where W is that of returns, it is soon passed, and good steps are
    refused; where it is that of advantages the verdicts are the same.
    """
    tasks = random_mdps(np.random.default_rng(0), n, discount=0.95)
    policy = SoftmaxPolicy(10, 5)
    theta = np.random.default_rng(1).normal(size=(n, 10, 5))
    trpo = TRPO(radius)
    table, nu = exact_step_data(tasks, policy, theta, centred=centred)

    def gain(exponent):
        before, after = (
            policy.log_pi(th) for th in (theta, trpo.step(policy, theta, table, nu, exponent))
        )
        return np.mean(exact.expected_return(tasks, after) - exact.expected_return(tasks, before))

    wrong, answer = (
        first_exponent(trpo, policy, theta, table, nu, predicted)
        for predicted in (log_loss, expected_advantage)
    )
    weights = "advantages" if centred else "returns"
    elsewhere = f"{np.sum(wrong != answer)} of {n} searches end elsewhere"
    what = f"gain in J, δ={radius}, W of {weights}: {elsewhere}"
    right = trpo.search(policy, theta, table, nu)
    (assert_caught if harmful else assert_unchanged)(
        9, what, gain(wrong), gain(answer), *[gain(right)] * harmful
    )
    assert (right == answer).all()


def one_array(matvec, b, iterations, *, in_place=True):
    """p = r = b.copy(); x += αp; r −= αAp; p ×= β; p += r. Not in place, p = r + βp parts the two
    after a step, which only loses time.
    """
    x = np.zeros(b.shape)
    p = r = b.copy()
    for _ in range(iterations):
        rr = np.sum(r * r)
        ap = matvec(p)
        step = rr / np.sum(p * ap)
        x += step * p
        r -= step * ap
        beta = np.sum(r * r) / rr
        if in_place:
            p *= beta
            p += r
        else:
            p = r + beta * p
    return x


@pytest.fixture(scope="module")
def natural():
    """(F + λI, ∇J, x = (F + λI)⁻¹∇J by a dense solve) of a random problem."""
    task = random_mdps(np.random.default_rng(0), 1)
    policy = SoftmaxPolicy(10, 5)
    theta = np.random.default_rng(1).normal(size=(1, 10, 5))
    table, nu = exact_step_data(task, policy, theta)
    g = policy.weighted_score(theta, table)

    def matvec(v):
        return fisher_vector_product(policy, theta, nu, v) + 0.01 * v

    dense = np.stack([matvec(e.reshape(g.shape)).ravel() for e in np.eye(g.size)], 1)
    return matvec, g, np.linalg.solve(dense, g.ravel()).reshape(g.shape)


@pytest.mark.parametrize("steps", [10, 50])
def test_10_conjugate_gradient_with_residual_and_direction_in_one_array(natural, steps):
    matvec, g, answer = natural
    wrong = one_array(matvec, g, steps)
    assert_caught(
        10, f"one array, after {steps} steps", wrong, answer, conjugate_gradient(matvec, g)
    )


def test_10_the_first_step_is_right_so_that_a_test_which_takes_one_would_pass(natural):
    matvec, g, _ = natural
    right = conjugate_gradient(matvec, g, max_iterations=1)
    assert_unchanged(10, "one array, after 1 step", one_array(matvec, g, 1), right)


def test_10_one_array_up_to_the_first_step_only_loses_nothing_but_time(natural):
    matvec, g, answer = natural
    parted = one_array(matvec, g, 50, in_place=False)
    assert_unchanged(10, "one array up to the first step only, after 50", parted, answer)


def test_11_baseline_fitted_on_the_episodes_it_scores():
    """With as many features as steps, a linear baseline explains most of the returns away, and of
    the gradient with them.
    """
    assert_caught(
        11,
        "linear baseline, fitted on the K=2 episodes it scores",
        expected_gradient(surrogates.naive, linear_baseline(np.eye(S))),
        return_gradient(),
        expected_gradient(surrogates.naive, leave_one_out_baseline),
    )


def mean_return(tasks, policy, theta):
    return np.mean(exact.expected_return(tasks, policy.log_pi(theta)))


def fit(tasks, policy):
    """θ after 100 exact gradient steps on the mean return of `tasks`."""
    theta = policy.init()
    for _ in range(100):
        theta = theta + grad(lambda th: mean_return(tasks, policy, th))(theta)
    return theta


def test_12_held_out_goals_drawn_with_the_training_seed():
    world = GridWorld.open(3, 3, discount=GAMMA, horizon=4, slip=0.2)
    policy = SoftmaxPolicy(9, 4)
    train, held_out = world.split_goals(np.random.default_rng(7), 4, 4)
    same_seed, _ = world.split_goals(np.random.default_rng(7), 4, 0)
    assert (same_seed == train).all()
    theta = fit(world.mdps(train), policy)
    unseen = [
        mean_return(world.mdps(goal), policy, theta)
        for goal in world.free_cells
        if goal not in train
    ]
    assert_caught(
        12,
        "score on 'held-out' goals of the training seed",
        mean_return(world.mdps(same_seed), policy, theta),
        np.mean(unseen),
        mean_return(world.mdps(held_out), policy, theta),
    )


def test_12_held_out_random_mdps_drawn_with_the_training_seed():
    """Rewards have mean 1: on new tasks *any* policy that has not seen them is worth E J = Σ γᵗ,
    exactly.
    """
    policy = SoftmaxPolicy(4, 3)
    sizes = dict(n_states=4, n_actions=3, horizon=5, discount=GAMMA)
    train, same_seed = (random_mdps(np.random.default_rng(7), 5, **sizes) for _ in range(2))
    theta = fit(train, policy)
    new = exact.expected_return(
        random_mdps(np.random.default_rng(7).spawn(1)[0], 8000, **sizes), policy.log_pi(theta)
    )
    answer = np.sum(GAMMA ** np.arange(5))
    standard_error = np.std(new) / len(new) ** 0.5
    assert_caught(
        12,
        "score on 'held-out' random MDPs of the training seed",
        mean_return(same_seed, policy, theta),
        answer,
        np.mean(new),
        tolerance=4 * standard_error / answer,
    )


def test_14_one_over_length_weights():
    """A factor 1/T where all episodes are as long; where some end early no factor mends it, and the
    best is taken before comparing.
    """

    def one_over_length(log_probs, rewards, baseline, mask, discount):
        return surrogates.reinforce(
            log_probs, weights(rewards, baseline, mask, discount) / mask.sum(0)
        )

    assert_unchanged(
        14,
        "1/length, all episodes of length T, times T",
        T * expected_gradient(one_over_length),
        return_gradient(),
    )
    g = expected_gradient(one_over_length, no_baseline, *ENDING)
    answer = return_gradient(*ENDING)
    assert_caught(
        14,
        "1/length, some episodes end early, best rescaling",
        g * np.sum(g * answer) / np.sum(g * g),
        answer,
        expected_gradient(surrogates.naive, no_baseline, *ENDING),
    )


def test_20_discount_dropped():
    def undiscounted(log_probs, rewards, baseline, mask, discount):
        return surrogates.reinforce(log_probs, (reward_to_go(rewards, discount) - baseline) * mask)

    assert_caught(
        20,
        "γᵗ dropped, T=2",
        expected_gradient(undiscounted),
        return_gradient(),
        expected_gradient(surrogates.naive),
    )
    task = tiny_task(1, discount=1.0)
    assert_unchanged(
        20, "the same at γ = 1", expected_gradient(undiscounted, task=task), return_gradient(task)
    )


@pytest.mark.parametrize("estimator", ["lvc", "dice", "loaded_dice"])
@settings
def test_21_dice_or_lvc_plus_the_score_term(k, K, baseline, estimator):
    """They contain a part of the score already, and count it twice."""
    # one without a baseline
    same = (
        ("dice", "loaded_dice") if baseline is no_baseline and estimator != "lvc" else (estimator,)
    )
    assert_caught(
        21,
        f"{estimator} + score, against (b), k={k} K={K}",
        expected_meta_gradient(Reinforce(ALPHA, baseline, estimator), k, K),
        answer_b(k, K, baseline),
        expected_meta_gradient(Reinforce(ALPHA, baseline, "naive"), k, K),
        among=every_estimator(k, K, baseline),
        called=tuple(name + "+score" for name in same),
    )


def second_step_on_the_data_of_the_first(policy, theta, path, inner, outer, score):
    log_p = surrogates.log_likelihood(policy.log_pi(theta), path.episodes[0])
    for _ in path.data:
        theta = inner(policy, theta, path.data[0])
    return outer(theta) + score * log_p


def second_step_without_effect(policy, theta, path, inner, outer, score):
    log_p = surrogates.log_likelihood(policy.log_pi(theta), path.episodes[0])
    return outer(inner(policy, theta, path.data[0])) + score * log_p


@pytest.mark.parametrize(
    "wrong", [second_step_on_the_data_of_the_first, second_step_without_effect]
)
def test_22_second_inner_step(wrong):
    """(`check` refuses it before: log-probabilities do not belong to the parameters.)"""
    k, K, baseline = SETTINGS[1]
    inner = Reinforce(ALPHA, baseline)
    assert_caught(
        22,
        wrong.__name__.replace("_", " "),
        expected_meta_gradient(inner, k, K, objective=wrong),
        answer_b(k, K, baseline),
        expected_meta_gradient(inner, k, K),
        among=every_estimator(k, K, baseline),
    )


def inverted(mask):
    return ~mask


def dones(mask):
    """The last step that was taken of each episode."""
    goes_on = np.concatenate([mask[1:], np.zeros_like(mask[:1])])
    return mask & ~goes_on


@pytest.mark.parametrize("in_place_of", [inverted, dones])
def test_23_what_is_no_mask_in_the_place_of_a_mask(in_place_of):
    """(`surrogates` refuses it: the loss is written out.)"""

    def masked(log_probs, rewards, baseline, mask, discount):
        wrong = in_place_of(mask)
        with pytest.raises(ValueError, match="^mask: False before True"):
            surrogates.naive(log_probs, rewards, baseline, wrong, discount)
        t = np.arange(len(mask))[:, None, None]
        G = reward_to_go(rewards * wrong, discount)
        return np.sum(np.mean(discount**t * log_probs * wrong * (G - baseline), -1), 0)

    assert_caught(
        23,
        f"{in_place_of.__name__} in the place of a mask, some episodes end early",
        expected_gradient(masked, no_baseline, *ENDING),
        return_gradient(*ENDING),
        expected_gradient(surrogates.naive, no_baseline, *ENDING),
    )


def test_24_means_over_steps_in_the_inner_loss():
    """Measured is the length of the inner step, 1/T of the right one: it depends on the horizon.

    The meta-gradient is a bad witness: here, with one inner step, it is off by .8% only.
    """

    def mean_over_steps(log_probs, *recorded):
        return np.mean(log_probs * weights(*recorded), (0, 2))

    g = expected_gradient(mean_over_steps)
    answer = return_gradient()
    assert_caught(24, f"length of the step, T={T}", g, answer, expected_gradient(surrogates.naive))
    assert_unchanged(24, "its direction: the factor is the number of steps", T * g, answer)
