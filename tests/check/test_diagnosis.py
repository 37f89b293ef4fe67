"""`check` names each estimator and each exact answer, sees through wrong gradients, and refuses
what does not fit.
"""

import numpy as np
import pytest

from metarl_np.check import finite_differences
from metarl_np import check, diagnosis
from metarl_np.check.meta_gradients import adapted_return_gradient, expected_adapted_return
from metarl_np.learner.policies import LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.reinforce import ESTIMATORS, Reinforce
from metarl_np.learner.returns import no_baseline
from metarl_np.meta.maml import adapt, centred_returns, meta_gradient
from metarl_np.tasks.random_mdps import random_mdps

S = 3
A = 2
T = 4
K = 6
ALPHA = 0.7
GAMMA = 0.9
NAMES = [e + s for e in ESTIMATORS for s in ("", "+score")]


def experience(rng, n, steps, policy=SoftmaxPolicy(S, A)):
    """(MDPs, θ, the library's path, the same as a user's plain arrays)."""
    mdps = random_mdps(rng, n, S, A, horizon=T, discount=GAMMA)
    theta = rng.normal(size=policy.init().shape)
    path = adapt(rng, mdps, policy, theta, Reinforce(ALPHA), steps=steps, episodes=K)
    records = [
        check.record(e.states, e.actions, e.rewards, e.mask, e.log_probs) for e in path.episodes
    ]
    return mdps, theta, path, records


def candidates(theta, records, **keywords):
    return check.estimator_gradients(
        theta, records[:-1], records[-1], **dict(step_size=ALPHA, discount=GAMMA) | keywords
    )


@pytest.mark.parametrize("n, steps", [(1, 1), (3, 1), (2, 2)])
def test_every_estimator_is_recognised_from_plain_arrays(rng, n, steps):
    mdps, theta, path, records = experience(rng, n, steps)
    known = candidates(theta, records)
    assert sorted(known) == sorted(NAMES)
    for name in NAMES:
        estimator, _, score = name.partition("+")
        inner = Reinforce(ALPHA, estimator=estimator)
        data = [
            inner.prepare(SoftmaxPolicy(*theta.shape), None, e, mdps.discount)
            for e in path.episodes[:-1]
        ]
        mine = type(path)(path.thetas, path.episodes, data, path.returns, path.query)
        g = meta_gradient(
            SoftmaxPolicy(S, A),
            mine,
            inner,
            score_factor=centred_returns(path.returns[-1]) if score else None,
        ).mean(0)
        verdict = check.check_gradient(g, known)
        expected = (
            {name, "dice" + name[11:]}
            if name.startswith("loaded_dice") and "dice" in verdict.names
            else {name}
        )
        assert name in verdict.names and set(verdict.names) <= expected, str(verdict)
        assert name in str(verdict) and diagnosis.MEANING[name] in str(verdict)


def test_naive_by_hand_in_numpy(rng):
    """One task, one inner step: (I + αH)ᵀg with H by finite differences of a softmax score written
    out here.
    """
    _, theta, _, records = experience(rng, 1, 1)

    def gradient(x, r):
        pi = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        g = np.zeros((S, A))
        rewards = r["rewards"][:, 0]
        for k in range(K):
            for t in range(T):
                to_go = [
                    sum(GAMMA ** (u - t) * rewards[u, j] for u in range(t, T)) for j in range(K)
                ]
                weight = GAMMA**t * (to_go[k] - (sum(to_go) - to_go[k]) / (K - 1)) / K
                s = r["states"][t, 0, k]
                a = r["actions"][t, 0, k]
                g[s] += weight * (np.eye(A)[a] - pi[s])
        return g

    g = gradient(theta + ALPHA * gradient(theta, records[0]), records[1]).ravel()
    h = finite_differences(lambda x: gradient(x, records[0]), theta).reshape(S * A, S * A)
    verdict = check.check_gradient((g + ALPHA * h.T @ g).reshape(S, A), candidates(theta, records))
    assert verdict.names == ("naive",)
    assert "lacks H₁ and H₁₂" in str(verdict)


def test_all_that_coincide_are_named(rng):
    _, theta, _, records = experience(rng, 1, 1)
    known = candidates(theta, records, lam=0.0)
    assert np.allclose(known["loaded_dice"], known["lvc"]) and not np.allclose(
        known["loaded_dice"], known["dice"]
    )
    verdict = check.check_gradient(known["lvc"], known)
    assert verdict.names == ("lvc", "loaded_dice") and "each of them" in str(verdict)


def test_a_wrong_gradient_is_none_of_them_and_a_scaled_one_is_seen_through(rng):
    _, theta, _, records = experience(rng, 2, 1)
    known = candidates(theta, records)
    wrong = check.check_gradient(known["dice"] + 0.01 * abs(known["dice"]).max(), known)
    assert wrong.names == () and "none of the candidates" in str(wrong)
    scaled = check.check_gradient(-K * known["lvc"], known)
    assert (
        scaled.names == ()
        and f"This is {-K} times lvc: the opposite sign, as of a loss and a sum where"
        in str(scaled)
    )
    flipped = check.check_gradient(-known["naive"], known)
    assert (
        flipped.names == ()
        and "This is -1 times naive: the opposite sign, as of a loss?" in str(flipped)
    )


@pytest.mark.parametrize(
    "keywords", [dict(discount=1.0), dict(step_size=0.1), dict(baseline=no_baseline)]
)
def test_another_setting_is_another_gradient(rng, keywords):
    _, theta, _, records = experience(rng, 2, 1)
    records = [{k: v for k, v in r.items() if k != "log_probs"} for r in records]
    assert (
        check.check_gradient(
            candidates(theta, records)["naive"], candidates(theta, records, **keywords)
        ).names
        == ()
    )


def test_masked_steps_do_not_count(rng):
    _, theta, _, records = experience(rng, 2, 1)
    for r in records:
        r["mask"] = np.arange(T)[:, None, None] < rng.integers(1, T + 1, r["mask"].shape[1:])
        del r["log_probs"]  # another mask leads to other parameters
    before = candidates(theta, records)
    records = [
        check.record(
            np.where(r["mask"], r["states"], -1),
            np.where(r["mask"], r["actions"], -1),
            np.where(r["mask"], r["rewards"], np.nan),
            r["mask"],
        )
        for r in records
    ]
    after = candidates(theta, records)
    for name in NAMES:
        np.testing.assert_allclose(after[name], before[name], atol=1e-12)


def test_one_task_may_leave_its_axis_out_and_bring_its_own_baseline(rng):
    _, theta, _, records = experience(rng, 1, 1)
    flat = [
        check.record(
            *(r[key][:, 0] for key in ("states", "actions", "rewards", "mask", "log_probs"))
        )
        for r in records
    ]
    for name, g in candidates(theta, records).items():
        np.testing.assert_array_equal(candidates(theta, flat)[name], g)
    brought = [
        check.record(r["states"], r["actions"], r["rewards"], baseline=np.zeros(r["states"].shape))
        for r in records
    ]
    for name, g in candidates(theta, brought).items():
        np.testing.assert_array_equal(
            candidates(
                theta,
                records[:0] + [{k: v for k, v in r.items() if k != "log_probs"} for r in records],
                baseline=no_baseline,
            )[name],
            g,
        )


def test_the_settings_reach_the_expectations(tiny):
    mdps, theta = tiny
    plain = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2)
    other = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2, baseline=no_baseline)
    assert all(
        abs(plain[name] - other[name]).max() > 1e-4
        for name in ("naive", "dice", "naive+score", "(b)")
    )
    half = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2, lam=0.0)
    assert abs(plain["loaded_dice"] - half["loaded_dice"]).max() > 1e-4
    np.testing.assert_allclose(half["loaded_dice"], plain["lvc"], atol=1e-12)


def test_the_largest_component_decides():
    known = {"one": np.ones(100)}
    off = np.ones(100)
    off[3] += 1.5e-6
    assert check.check_gradient(off, known).names == () and check.check_gradient(
        off, known, tolerance=2e-6
    ).names == ("one",)
    # no noise: up to the tolerance
    assert check.check_gradient(np.ones(100), known, standard_error=0.0).names == ("one",)
    assert check.check_gradient(off, known, standard_error=0.0, tolerance=1e-7).names == ()


def test_a_policy_of_the_users_choice(rng):
    policy = LogisticPolicy(S, 1)
    _, theta, path, records = experience(rng, 1, 1, policy)
    g = meta_gradient(policy, path, Reinforce(ALPHA)).mean(0)
    assert check.check_gradient(g, candidates(theta, records, policy=policy)).names == ("naive",)


# ---- exact answers, and means of samples


@pytest.fixture
def tiny(rng):
    mdps = random_mdps(
        rng, 1, 2, 2, horizon=2, discount=GAMMA, reward_mean=0.0, reward_std=2.0, reward_noise=0.0
    )
    return mdps, 0.3 * rng.normal(size=(2, 2))


def test_exact_answers_are_the_oracles(tiny):
    mdps, theta = tiny
    policy = SoftmaxPolicy(2, 2)
    answers = check.exact_gradients(mdps, theta, step_size=ALPHA, steps=2)

    def j(x):
        pi = np.exp(policy.log_pi(x))
        v = np.zeros(2)
        for _ in range(2):
            q = [
                [
                    sum(
                        mdps.probabilities[0, s, a, z]
                        * (mdps.rewards[0, s, a, z] + GAMMA * v[mdps.successors[0, s, a, z]])
                        for z in range(2)
                    )
                    for a in range(2)
                ]
                for s in range(2)
            ]
            v = (pi * q).sum(1)
        return v[0]

    g = finite_differences(j, theta)
    np.testing.assert_allclose(answers["policy gradient"], g, atol=1e-9)
    two = finite_differences(lambda x: j(x + ALPHA * finite_differences(j, x, 1e-4)), theta, 1e-4)
    one = check.exact_gradients(mdps[[0, 0]], theta, step_size=ALPHA)["(a)"]  # a mean over tasks
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(
        answers["(a)"], adapted_return_gradient(mdps, policy, theta, step_size=ALPHA, steps=2)[0]
    )


def test_expected_gradients_hold_b_and_naive_with_the_score_is_it(tiny):
    mdps, theta = tiny
    expected = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2)
    inner = Reinforce(ALPHA)
    slope = finite_differences(
        lambda x: expected_adapted_return(mdps, SoftmaxPolicy(2, 2), x, inner, episodes=2), theta
    )
    verdict = check.check_gradient(slope, expected, tolerance=1e-7)
    assert set(verdict.names) == {"naive+score", "(b)"}
    answers = check.exact_gradients(mdps, theta, step_size=ALPHA)
    assert check.check_gradient(slope, expected | answers, tolerance=1e-3).names == verdict.names
    assert check.check_gradient(answers["(a)"], expected | answers).names == ("(a)",)


def test_a_sample_mean_is_told_apart_with_confidence(tiny, rng):
    mdps, theta = tiny
    policy = SoftmaxPolicy(2, 2)
    inner = Reinforce(ALPHA)
    expected = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2)
    path = adapt(rng, mdps[np.zeros(1_000_000, int)], policy, theta, inner, steps=1, episodes=2)
    for score, right in (
        (centred_returns(path.returns[-1]), {"naive+score", "(b)"}),
        (None, {"naive"}),
    ):
        g = meta_gradient(policy, path, inner, score_factor=score)
        verdict = check.check_gradient(
            g.mean(0), expected, standard_error=g.std(0) / np.sqrt(len(g))
        )
        assert set(verdict.names) == right, str(verdict)
        assert "99% confidence" in str(verdict) and all(name in str(verdict) for name in expected)
    nothing = check.check_gradient(np.full((2, 2), 5.0), expected, standard_error=0.01)
    assert nothing.names == () and "none of the candidates" in str(nothing)


def test_the_limit_is_bonferronis():
    """Five components at 99%: |z| up to the normal quantile of 1 − .01/10, 3.0902."""
    zero = {"zero": np.zeros(5)}
    assert check.check_gradient(np.eye(5)[0] * 3.09, zero, standard_error=1.0).names == ("zero",)
    assert check.check_gradient(np.eye(5)[4] * -3.0903, zero, standard_error=1.0).names == ()


# ---- bad input


def test_log_probs_of_other_parameters_are_refused(rng):
    _, theta, _, records = experience(rng, 2, 2)
    candidates(theta, records)
    with pytest.raises(ValueError, match=r"support\[0\]: .*log-prob.* do not belong"):
        candidates(theta + rng.normal(size=theta.shape), records)
    records[1]["log_probs"] = records[1]["log_probs"] + 0.01
    with pytest.raises(ValueError, match=r"support\[1\]: .*log-prob.* do not belong"):
        candidates(theta, records)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(states=np.zeros((T, 0), int)), "states"),
        (dict(actions=np.zeros((T, K + 1), int)), "actions"),
        (dict(rewards=np.full((T, K), np.nan)), "rewards"),
        (dict(mask=np.full((T, K), 2)), "mask"),
        (dict(states=np.zeros((T, K))), "states"),
        (dict(log_probs=np.zeros(T)), "log_probs"),
    ],
)
def test_records_that_are_not(change, message):
    good = dict(
        states=np.zeros((T, K), int), actions=np.zeros((T, K), int), rewards=np.zeros((T, K))
    )
    check.record(**good)
    with pytest.raises(ValueError, match=message):
        check.record(**good | change)


@pytest.mark.parametrize(
    "message, change",
    [
        ("theta", lambda theta, data: dict(theta=theta[None])),
        ("states outside", lambda theta, data: dict(theta=theta[:2])),
        ("states outside", lambda theta, data: dict(support=[shifted(data[0], -S)])),
        ("actions outside", lambda theta, data: dict(theta=theta[:, :1])),
        ("query: 1 tasks", lambda theta, data: dict(query=first_task(data[1]))),
        ("step_size", lambda theta, data: dict(step_size=np.inf)),
        ("discount", lambda theta, data: dict(discount=2.0)),
        ("discount", lambda theta, data: dict(discount=np.nan)),
        ("support, query", lambda theta, data: dict(support=data[0])),
    ],
)
def test_data_that_do_not_fit_are_named(rng, message, change):
    _, theta, _, data = experience(rng, 2, 1)
    good = dict(theta=theta, support=data[:1], query=data[1], step_size=ALPHA, discount=GAMMA)
    assert check.estimator_gradients(**good)
    with pytest.raises(ValueError, match=message):
        check.estimator_gradients(**good | change(theta, data))


def shifted(record, by):
    return record | dict(states=record["states"] + by)


def first_task(record):
    return {name: x[:, :1] for name, x in record.items()}


def test_log_probabilities_that_are_not_finite_are_named(rng):
    _, _, _, (data, _) = experience(rng, 2, 1)
    arrays = [data[name] for name in ("states", "actions", "rewards")]
    with pytest.raises(ValueError, match="log_probs: not finite"):
        check.record(*arrays, log_probs=data["rewards"] * np.nan)


@pytest.mark.parametrize(
    "message, change",
    [
        ("gradient: shape", dict(gradient=np.zeros(3))),
        ("gradient: not finite", dict(gradient=np.full((S, A), np.nan))),
        ("confidence", dict(standard_error=1.0, confidence=99)),
        ("candidates", dict(candidates={})),
        ("candidates: naive is not finite", dict(candidates={"naive": np.full((S, A), np.nan)})),
        ("standard_error", dict(standard_error=-1.0)),
    ],
)
def test_gradients_that_do_not_fit_are_named(message, change):
    good = dict(gradient=np.ones((S, A)), candidates={"naive": np.ones((S, A))})
    assert check.check_gradient(**good).names == ("naive",)
    with pytest.raises(ValueError, match=message):
        check.check_gradient(**good | change)


def test_too_many_data_sets_are_refused_with_what_to_lower(rng):
    mdps = random_mdps(rng, 1, 3, 3, horizon=4, reward_noise=0.0)
    with pytest.raises(ValueError, match="max_datasets.*lower"):
        check.expected_gradients(mdps, np.zeros((3, 3)), step_size=1.0, episodes=2)


@pytest.mark.parametrize("dtype, names", [(np.float32, ("naive",)), (float, ())])
def test_a_right_gradient_in_single_precision_is_right(rng, dtype, names):
    """6e-5 of the largest component is rounding in float32, and an error in float64."""
    right = rng.normal(size=(S, A))
    off = right + 6e-5 * abs(right).max()
    assert check.check_gradient(off.astype(dtype), {"naive": right}).names == names
