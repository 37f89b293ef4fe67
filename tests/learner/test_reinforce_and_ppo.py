"""REINFORCE and PPO against loops over single steps and finite differences. (What is differentiated
through is in test_two_level.)
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from autograd import grad, jacobian
from autograd.test_util import check_grads
from helpers import (
    LEARNERS,
    POLICIES,
    learners,
    named,
    plain_kl,
    plain_log_pi,
    plain_values,
    plain_visits,
    policies,
    random_tasks,
)

from metarl_np.check import finite_differences
from metarl_np.learner.advantages import advantages, mean_kl, visits
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import FirstOrder, Reinforce, reinforce_table
from metarl_np.learner.returns import leave_one_out_baseline, no_baseline, time_mean_baseline
from metarl_np.learner.rollouts import Episodes, rollout

N = 2
S = 4
A = 4
K = 6
GAMMA = 0.8


@pytest.fixture
def batch(rng):
    """(name, policy, θ (N, F, ·), tasks, Episodes, noise shaped like θ); some episodes end, some
    are cut before the horizon.
    """
    mdps = random_tasks(rng, N, S, A, 2, horizon=5, discount=GAMMA)
    cases = []
    for name, policy, theta in learners(rng, N, S, A):
        e = rollout(rng, mdps, policy.log_pi(theta), K, steps=3)
        cases.append((name, policy, theta, mdps, e, rng.normal(size=theta.shape)))
    assert any(
        e.truncated.any() and not e.truncated.all() and not e.mask.all() for *_, e, _ in cases
    )
    return cases


def loop_table(mdps, e, baseline):
    """Σ_t mean_k γᵗ (G_t − b) for one baseline name, written out."""
    steps, n, k = e.rewards.shape
    table = np.zeros(mdps.shape)
    for i in range(n):
        for t in range(steps):
            g = [
                sum(mdps.discount ** (u - t) * float(e.rewards[u, i, j]) for u in range(t, steps))
                for j in range(k)
            ]
            for j in range(k):
                b = {"none": 0, "mean": sum(g) / k, "others": (sum(g) - g[j]) / (k - 1)}[baseline]
                if e.mask[t, i, j]:
                    table[i, e.states[t, i, j], e.actions[t, i, j]] += (
                        mdps.discount**t * (g[j] - b) / k
                    )
    return table


def test_table_against_loops(rng):
    mdps = random_tasks(rng, N, S, A, 2, horizon=5, discount=0.8)
    e = rollout(rng, mdps, np.full((S, A), -np.log(A)), 6)
    assert not e.mask.all()
    np.testing.assert_allclose(
        reinforce_table(e, mdps.discount, *mdps.shape[1:]),
        loop_table(mdps, e, "others"),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        reinforce_table(e, mdps.discount, *mdps.shape[1:], baseline=no_baseline),
        loop_table(mdps, e, "none"),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        reinforce_table(e, mdps.discount, *mdps.shape[1:], baseline=time_mean_baseline),
        loop_table(mdps, e, "mean"),
        atol=1e-12,
    )


def test_one_episode_has_no_others_to_take_a_baseline_from(rng):
    mdps = random_tasks(rng, N, S, A, 2, horizon=5)
    e = rollout(rng, mdps, np.full((S, A), -np.log(A)), 1)
    with pytest.raises(ValueError, match="episodes.*leave-one-out"):
        reinforce_table(e, mdps.discount, *mdps.shape[1:])
    assert np.isfinite(
        reinforce_table(e, mdps.discount, *mdps.shape[1:], baseline=no_baseline)
    ).all()


def test_step_by_hand():
    """One state, two steps, one episode: actions 1 then 0, rewards 2 and 3, γ = .9: W(1) = 2 +
    .9·3, W(0) = .9·3.
    """
    mdps = random_tasks(np.random.default_rng(0), 1, 2, 2, 2, horizon=2)
    actions = np.array([[[1]], [[0]]])
    zeros = np.zeros((2, 1, 1), int)
    e = Episodes(
        zeros,
        actions,
        np.array([[[2.0]], [[3.0]]]),
        zeros == 0,
        np.zeros((1, 2, 2)),
        zeros[0],
        zeros[0] > 0,
    )
    table = reinforce_table(e, mdps.discount, *mdps.shape[1:], baseline=no_baseline)
    np.testing.assert_allclose(table, [[[2.7, 4.7], [0, 0]]], rtol=1e-14)
    # softmax, π = (½, ½): W(a) − ½ ΣW = ∓1; logistic at σ = ½: 4.7·½ − 2.7·½ = 1
    np.testing.assert_allclose(
        Reinforce(0.1)(SoftmaxPolicy(2, 2), np.zeros((2, 2)), table),
        [[[-0.1, 0.1], [0, 0]]],
        atol=1e-14,
    )
    np.testing.assert_allclose(
        Reinforce(0.1)(LogisticPolicy(2), np.zeros((2, 1)), table), [[[0.1], [0]]], atol=1e-14
    )


@pytest.mark.parametrize("name", POLICIES)
def test_step_goes_uphill_on_the_surrogate_by_alpha(rng, name):
    table = rng.normal(size=(N, S, A))
    policy, theta = named(policies(rng, N, S, A), name)

    def surrogate(theta):
        return (policy.log_pi(theta) * table).sum((-2, -1))

    # (N,) + θ; task i has no say in what belongs to task j
    slope = finite_differences(surrogate, theta)
    slope = slope if theta.ndim == 2 else slope[np.arange(N), np.arange(N)]
    np.testing.assert_allclose(
        Reinforce(0.3)(policy, theta, table), theta + 0.3 * slope, atol=1e-8, err_msg=name
    )
    np.testing.assert_array_equal(
        Reinforce(0.0)(policy, theta, table), theta + np.zeros_like(slope)
    )


@pytest.mark.parametrize("name", POLICIES)
def test_step_is_differentiable_twice(rng, name):
    table = rng.normal(size=(N, S, A))
    policy, theta = named(policies(rng, N, S, A), name)
    check_grads(lambda x: Reinforce(0.3)(policy, x, table), modes=["rev"], order=2)(theta)
    by_autograd = jacobian(lambda x: Reinforce(0.3)(policy, x, table))(theta)
    expected = finite_differences(lambda x: Reinforce(0.3)(policy, x, table), theta)
    np.testing.assert_allclose(by_autograd, expected, atol=1e-8, err_msg=name)


# ---- advantages, visits, KL


def plain_advantages(policy, theta, e, lam, i):
    """Â of one task: GAE by recursion over each episode's own steps, or G − the others' mean. (T,
    K).
    """
    out = np.zeros(e.mask[:, i].shape)
    G = np.zeros((len(out) + 1, K))
    for t in reversed(range(len(out))):
        G[t] = e.rewards[t, i] * e.mask[t, i] + GAMMA * G[t + 1]
    for k in range(K):
        following = 0.0
        steps = np.flatnonzero(e.mask[:, i, k])
        for t in reversed(steps):
            if isinstance(policy, ActorCritic):
                v = plain_values(policy, theta)
                after = (
                    v[e.states[t + 1, i, k]]
                    if t < steps[-1]
                    else v[e.last_states[i, k]] * e.truncated[i, k]
                )
                following = out[t, k] = (
                    float(e.rewards[t, i, k])
                    + GAMMA * after
                    - v[e.states[t, i, k]]
                    + GAMMA * lam * following
                )
            else:
                out[t, k] = G[t, k] - (G[t].sum() - G[t, k]) / (K - 1)
    return out


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_against_a_loop(batch, lam):
    for name, policy, theta, mdps, e, _ in batch:
        a = advantages(policy, theta, e, GAMMA, baseline=leave_one_out_baseline, lam=lam)
        expected = np.stack([plain_advantages(policy, theta[i], e, lam, i) for i in range(N)], 1)
        np.testing.assert_allclose(a, expected, atol=1e-12, err_msg=name)
        assert (a[~e.mask] == 0).all() and (a[e.mask] != 0).all()


def test_advantages_are_differentiable_through_the_values(batch):
    for name, policy, theta, mdps, e, _ in batch[2:]:

        def f(theta):
            return advantages(policy, theta, e, GAMMA, baseline=None, lam=0.7)

        check_grads(f, modes=["rev"], order=2)(theta)
        expected = finite_differences(
            lambda x: np.stack([plain_advantages(policy, x[i], e, 0.7, i) for i in range(N)], 1),
            theta,
        )
        np.testing.assert_allclose(jacobian(f)(theta), expected, atol=1e-8, err_msg=name)


def test_visits_and_mean_kl_by_loops(batch):
    for name, policy, theta, mdps, e, noise in batch:
        nu = visits(e, S)
        new = theta + noise
        np.testing.assert_allclose(nu, plain_visits(e, S), rtol=1e-12)
        kl = mean_kl(policy, theta, new, nu)
        np.testing.assert_allclose(
            kl,
            [plain_kl(policy, theta[i], new[i], nu[i]) for i in range(N)],
            rtol=1e-9,
            err_msg=name,
        )
        assert (
            abs(kl - mean_kl(policy, new, theta, nu)) > 0.01 * kl
        ).any()  # the direction matters
        np.testing.assert_allclose(mean_kl(policy, theta, theta, nu), 0, atol=1e-14)
        np.testing.assert_allclose(
            grad(lambda x: mean_kl(policy, theta, x, nu).sum())(theta), 0, atol=1e-14
        )


# ---- PPO's objective


def plain_objective(ppo, policy, theta, old, e, advantage, i, episodes=range(K)):
    """Σ_t γᵗ [min(ρÂ, clip(ρ)Â) + c_H H − c_V ½(V − Â − V_old)²] of one task, a step at a time;
    mean over `episodes`.
    """
    log_pi = plain_log_pi(policy, theta)
    log_old = plain_log_pi(policy, old)
    total = 0.0
    for t, k in ((t, k) for t in range(len(e.mask)) for k in episodes if e.mask[t, i, k]):
        s = e.states[t, i, k]
        a = e.actions[t, i, k]
        adv = advantage[t, k]
        ratio = math.exp(log_pi[s, a] - log_old[s, a])
        step = min(ratio * adv, min(max(ratio, 1 - ppo.clip), 1 + ppo.clip) * adv)
        step -= ppo.entropy * sum(math.exp(x) * x for x in log_pi[s])
        if isinstance(policy, ActorCritic):
            step -= (
                ppo.value
                / 2
                * (plain_values(policy, theta)[s] - adv - plain_values(policy, old)[s]) ** 2
            )
        total += GAMMA**t * step
    return total / len(episodes)


@pytest.mark.parametrize(
    "ppo", [PPO(0.1, clip=0.3, lam=0.7), PPO(0.1, clip=0.1, entropy=0.2, value=0.8, lam=0.7)]
)
def test_objective_and_its_gradient_against_a_loop_over_steps(batch, ppo):
    seen = set()
    for name, policy, theta, mdps, e, noise in batch:
        new = theta + 0.5 * noise
        advantage = advantages(
            policy, theta, e, GAMMA, baseline=leave_one_out_baseline, lam=ppo.lam
        )
        ratio = np.exp(policy.log_pi(new) - policy.log_pi(theta))[
            np.arange(N)[:, None], e.states, e.actions
        ]
        seen |= set(
            zip(
                np.sign(advantage[e.mask]), np.digitize(ratio[e.mask], [1 - ppo.clip, 1 + ppo.clip])
            )
        )
        value = ppo.objective(policy, new, theta, e, advantage, GAMMA)
        g = grad(lambda x: ppo.objective(policy, x, theta, e, advantage, GAMMA).sum())(new)
        for i in range(N):

            def plain(x):
                return plain_objective(ppo, policy, x, theta[i], e, advantage[:, i], i)

            assert value[i] == pytest.approx(plain(new[i]), rel=1e-12), name
            np.testing.assert_allclose(
                g[i], finite_differences(plain, new[i]), atol=1e-8, err_msg=name
            )
    # below, inside and above the clip, whatever the sign
    assert seen == {(sign, side) for sign in (-1, 1) for side in range(3)}


def test_at_the_old_parameters_the_gradient_is_reinforces(batch):
    """Ratio = 1: the surrogate is Σ γᵗ Â itself. λ = 1 and V = 0 make GAE the return."""
    for name, policy, theta, mdps, e, _ in batch:
        critic = hasattr(policy, "values")
        if critic:
            theta = np.where(np.arange(theta.shape[2]) < theta.shape[2] - 1, theta, 0.0)
        baseline = no_baseline if critic else leave_one_out_baseline
        ppo = PPO(0.1, lam=1.0, value=0.0)
        advantage = advantages(policy, theta, e, GAMMA, baseline=baseline, lam=1.0)
        g = grad(lambda x: ppo.objective(policy, x, theta, e, advantage, GAMMA).sum())(theta)
        expected = policy.weighted_score(
            theta, reinforce_table(e, mdps.discount, *mdps.shape[1:], baseline=baseline)
        )
        np.testing.assert_allclose(g, expected, rtol=1e-12, atol=1e-14, err_msg=name)
        total = sum(GAMMA**t * advantage[t].mean(-1) for t in range(len(advantage)))
        np.testing.assert_allclose(
            ppo.objective(policy, theta, theta, e, advantage, GAMMA), total, atol=1e-14
        )
        one_step = replace(ppo, step_size=0.3, epochs=1, baseline=baseline)
        np.testing.assert_allclose(
            one_step(policy, theta, one_step.prepare(policy, theta, e, mdps.discount)),
            theta + 0.3 * expected,
            atol=1e-14,
        )


@pytest.mark.parametrize(
    "advantage, logit, pushed",
    [
        (2.0, 0.6, False),
        (2.0, 0.2, True),
        (2.0, -0.6, True),
        (2.0, -0.2, True),
        (-2.0, 0.6, True),
        (-2.0, 0.2, True),
        (-2.0, -0.6, False),
        (-2.0, -0.2, True),
    ],
)
def test_the_clip_stops_pushing_where_the_ratio_has_gone_far_enough(advantage, logit, pushed):
    """One step, π_old = (½, ½), action 0, ρ = 2σ(logit): 1.29, 1.10, .71 or .90, ε = .2. The
    gradient is ρ(1 − σ)Â or nothing.
    """
    zeros = np.zeros((1, 1, 1), int)
    e = Episodes(zeros, zeros, zeros, zeros == 0, np.zeros((1, 1, 2)), zeros[0], zeros[0] > 0)
    theta = np.array([[[logit, 0.0]]])
    policy = SoftmaxPolicy(1, 2)
    sigma = 1 / (1 + math.exp(-logit))
    g = grad(
        lambda x: PPO(0.1)
        .objective(policy, x, 0 * theta, e, np.full((1, 1, 1), advantage), 1.0)
        .sum()
    )(theta)
    np.testing.assert_allclose(
        g, 2 * sigma * (1 - sigma) * advantage * pushed * np.array([[[1, -1]]]), rtol=1e-12
    )


# ---- PPO's epochs


@pytest.mark.parametrize(
    "options",
    [
        dict(epochs=1),
        dict(epochs=3, clip=0.1),
        dict(epochs=2, minibatches=3, entropy=0.1, value=0.9, lam=0.6),
    ],
)
def test_epochs_and_minibatches_replayed_by_hand(batch, options):
    """Ascent with numerical gradients of the loop above; minibatch m is the m-th cut of the
    episodes, its advantages those of all.
    """
    ppo = PPO(0.2, **options)
    for name, policy, theta, mdps, e, _ in batch:
        new = ppo(policy, theta, ppo.prepare(policy, theta, e, mdps.discount))
        size = K // ppo.minibatches
        for i in range(N):
            x = theta[i]
            advantage = plain_advantages(policy, theta[i], e, ppo.lam, i)
            for _ in range(ppo.epochs):
                for m in range(ppo.minibatches):
                    part = range(m * size, (m + 1) * size)
                    x = x + 0.2 * finite_differences(
                        lambda y: plain_objective(ppo, policy, y, theta[i], e, advantage, i, part),
                        x,
                    )
            np.testing.assert_allclose(new[i], x, atol=1e-7, err_msg=name)
        assert abs(new - theta).max() > 0.01


@pytest.mark.parametrize("name", LEARNERS)
def test_a_task_stops_after_the_epoch_that_took_it_beyond_the_target_kl(rng, name):
    mdps = random_tasks(rng, 5, S, A, 2, horizon=5, discount=GAMMA)
    policy, theta = named(learners(rng, 5, S, A), name)
    e = rollout(rng, mdps, policy.log_pi(theta), K)
    nu = plain_visits(e, S)
    ppo = PPO(0.5, epochs=5, minibatches=2)
    after = []  # every number of epochs, without a target
    for m in range(1, 6):
        fixed = replace(ppo, epochs=m)
        after.append(fixed(policy, theta, fixed.prepare(policy, theta, e, mdps.discount)))
    kl = np.array([[plain_kl(policy, theta[i], new[i], nu[i]) for i in range(5)] for new in after])
    target = np.median(kl[2]) * 0.999
    stopped = replace(ppo, target_kl=target)
    data = stopped.prepare(policy, theta, e, mdps.discount)
    done = [next((m + 1 for m in range(5) if kl[m, i] > target), 5) for i in range(5)]
    assert data.epochs.tolist() == done and len(set(done)) > 1, name
    np.testing.assert_array_equal(
        stopped(policy, theta, data), [after[m - 1][i] for i, m in enumerate(done)]
    )
    assert (replace(ppo, target_kl=1e9).prepare(policy, theta, e, mdps.discount).epochs == 5).all()


def test_nothing_to_gain_is_no_step(batch):
    """All-zero advantages: θ' = θ, and a derivative without a NaN."""
    for name, policy, theta, mdps, e, _ in batch[:2]:
        e = replace(e, rewards=0 * e.rewards)
        for inner in (
            Reinforce(0.5),
            PPO(0.5),
            PPO(0.5, target_kl=0.01, minibatches=2),
            FirstOrder(PPO(0.5)),
        ):
            data = inner.prepare(policy, theta, e, mdps.discount)
            np.testing.assert_array_equal(inner(policy, theta, data), theta)
            np.testing.assert_array_equal(grad(lambda x: inner(policy, x, data).sum())(theta), 1.0)


@pytest.mark.parametrize(
    "inner",
    [Reinforce(0.5), PPO(0.5, minibatches=2, target_kl=0.05, entropy=0.1)],
    ids=["reinforce", "ppo"],
)
def test_first_order_goes_where_the_update_goes_with_the_identity_as_derivative(batch, inner):
    for name, policy, theta, mdps, e, noise in batch:
        first = FirstOrder(inner)
        data = inner.prepare(policy, theta, e, mdps.discount)
        np.testing.assert_allclose(
            first(policy, theta, first.prepare(policy, theta, e, mdps.discount)),
            inner(policy, theta, data),
            atol=1e-15,
        )
        np.testing.assert_array_equal(
            grad(lambda x: (noise * first(policy, x, data)).sum())(theta), noise
        )
        assert (
            abs(grad(lambda x: (noise * inner(policy, x, data)).sum())(theta) - noise).max() > 0.01
        ), name
        assert first.baseline is inner.baseline


@pytest.mark.parametrize(
    "options, name",
    [
        (dict(step_size=np.nan), "step_size"),
        (dict(step_size=np.inf), "step_size"),
        (dict(clip=0.0), "clip"),
        (dict(clip=-0.2), "clip"),
        (dict(clip=np.nan), "clip"),
        (dict(clip=np.inf), "clip"),
        (dict(target_kl=0.0), "target_kl"),
        (dict(target_kl=-1.0), "target_kl"),
        (dict(target_kl=np.nan), "target_kl"),
        (dict(epochs=0), "epochs"),
        (dict(minibatches=0), "minibatches"),
        (dict(lam=1.1), "lam"),
        (dict(epochs=2.5), "epochs"),
        (dict(lam=-0.1), "lam"),
        (dict(entropy=np.nan), "entropy"),
        (dict(value=np.inf), "value"),
    ],
)
def test_ppo_refuses_bad_input(options, name):
    with pytest.raises(ValueError, match=name):
        PPO(**dict(step_size=0.1) | options)


@pytest.mark.parametrize("minibatches", [4, 5, 12])
def test_minibatches_must_divide_the_episodes(batch, minibatches):
    _, policy, theta, mdps, e, _ = batch[0]
    with pytest.raises(ValueError, match=f"minibatches: {minibatches} do not divide {K} episodes"):
        PPO(0.1, minibatches=minibatches).prepare(policy, theta, e, mdps.discount)
