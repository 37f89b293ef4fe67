"""`check` names each estimator and each exact answer, sees through wrong gradients, and refuses
what does not fit.

The oracles are the library's own meta-gradients, one estimator at a time, and for one of them
NumPy written out by hand; exact answers are compared with finite differences of a plain recursion.
"""

from dataclasses import replace

import numpy as np
import pytest

from metarl_np import check
from metarl_np.check import finite_differences
from metarl_np.check.meta_gradients import adapted_return_gradient, expected_adapted_return
from metarl_np.check.verdict import MEANING
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
NAMES = [*ESTIMATORS, *(f"{estimator}+score" for estimator in ESTIMATORS)]
FIELDS = ("states", "actions", "rewards", "mask", "log_probs")


def experience(rng, n, steps, policy=SoftmaxPolicy(S, A)):
    """(MDPs, θ, the library's path, the same as a user's plain arrays)."""
    mdps = random_mdps(rng, n, S, A, horizon=T, discount=GAMMA)
    theta = rng.normal(size=policy.init().shape)
    path = adapt(rng, mdps, policy, theta, Reinforce(ALPHA), steps=steps, episodes=K)
    records = [check.record(*(getattr(e, name) for name in FIELDS)) for e in path.episodes]
    return mdps, theta, path, records


def candidates(theta, records, **keywords):
    settings = dict(step_size=ALPHA, discount=GAMMA) | keywords
    return check.estimator_gradients(theta, records[:-1], records[-1], **settings)


def without_log_probs(records):
    """Data of any parameters."""
    return [replace(r, log_probs=None) for r in records]


# ---- which estimator it is


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n, steps", [(1, 1), (3, 1), (2, 2)])
def test_every_estimator_is_recognised_from_plain_arrays(rng, n, steps, name):
    mdps, theta, path, records = experience(rng, n, steps)
    known = candidates(theta, records)
    assert list(known) == NAMES
    estimator, _, score = name.partition("+")
    policy = SoftmaxPolicy(S, A)
    inner = Reinforce(ALPHA, estimator=estimator)
    data = [inner.prepare(policy, None, e, mdps.discount) for e in path.episodes[:-1]]
    factor = centred_returns(path.returns[-1]) if score else None
    g = meta_gradient(policy, replace(path, data=data), inner, score_factor=factor).mean(0)
    verdict = check.check_gradient(g, known)
    assert verdict.names == (name,)
    assert str(verdict).startswith(f"This is {name} (off by ")
    assert MEANING[name] in str(verdict)


def gradient_by_hand(theta, r):
    """The REINFORCE estimate of ∇J of one task in loops, its baseline leave-one-out: (S, A)."""
    pi = np.exp(theta) / np.exp(theta).sum(1, keepdims=True)
    rewards = r.rewards[:, 0]
    g = np.zeros((S, A))
    for t in range(T):
        to_go = [sum(GAMMA ** (u - t) * rewards[u, k] for u in range(t, T)) for k in range(K)]
        for k in range(K):
            others = (sum(to_go) - to_go[k]) / (K - 1)
            weight = GAMMA**t * (to_go[k] - others) / K
            s = r.states[t, 0, k]
            a = r.actions[t, 0, k]
            g[s] += weight * (np.eye(A)[a] - pi[s])
    return g


def test_naive_by_hand_in_numpy(rng):
    """One task, one inner step: (I + αH)ᵀg, H by finite differences of a softmax's score."""
    _, theta, _, (support, query) = experience(rng, 1, 1)
    adapted = theta + ALPHA * gradient_by_hand(theta, support)
    g = gradient_by_hand(adapted, query).ravel()
    h = finite_differences(lambda x: gradient_by_hand(x, support), theta).reshape(S * A, S * A)
    mine = (g + ALPHA * h.T @ g).reshape(S, A)
    verdict = check.check_gradient(mine, candidates(theta, [support, query]))
    assert verdict.names == ("naive",)
    assert "what usual MAML code computes" in str(verdict)
    assert "lacks H1 and H12" in str(verdict)


def test_all_that_coincide_are_named(rng):
    _, theta, _, records = experience(rng, 1, 1)
    known = candidates(theta, records, lam=0.0)
    assert abs(known["loaded_dice"] - known["dice"]).max() > 1e-3
    verdict = check.check_gradient(known["lvc"], known)
    assert verdict.names == ("lvc", "loaded_dice")
    assert "each of them" in str(verdict)


def test_a_wrong_gradient_is_none_of_them(rng):
    _, theta, _, records = experience(rng, 2, 1)
    known = candidates(theta, records)
    verdict = check.check_gradient(known["dice"] + 0.01 * abs(known["dice"]).max(), known)
    assert verdict.names == ()
    assert "none of the candidates. The nearest is dice, off by 1.0%" in str(verdict)
    assert "leave-one-out" in str(verdict) and "gamma^t" in str(verdict)


@pytest.mark.parametrize(
    "factor, headline",
    [
        (-1, "This is -1 × naive: the gradient of a loss, which is minimised."),
        (K, "This is 6 × naive: a sum where a mean belongs."),
        (1 / K, "This is 0.166667 × naive: a mean where a sum belongs."),
        (
            -K,
            "This is -6 × naive: the gradient of a loss, which is minimised, "
            "and a sum where a mean belongs.",
        ),
    ],
    ids=["negated", "summed", "averaged", "negated and summed"],
)
def test_a_multiple_is_seen_through_in_the_first_line(rng, factor, headline):
    _, theta, _, records = experience(rng, 2, 1)
    known = candidates(theta, records)
    verdict = check.check_gradient(factor * known["naive"], known)
    assert verdict.names == ()
    first, second = str(verdict).splitlines()
    assert first == headline
    assert "naive: what usual MAML code computes" in second


def test_a_multiple_of_several_names_each(rng):
    _, theta, _, records = experience(rng, 1, 1)
    known = candidates(theta, records, lam=0.0)
    text = str(check.check_gradient(-known["lvc"], known))
    assert "-1 × lvc" in text and "-1 × loaded_dice" in text


def test_a_candidate_of_the_users_own_name_has_no_meaning_to_tell():
    verdict = check.check_gradient(np.ones(2), {"mine": np.ones(2)})
    assert str(verdict) == "This is mine (off by 0.0e+00 of its largest component)."


@pytest.mark.parametrize(
    "keywords",
    [dict(discount=1.0), dict(step_size=0.1), dict(baseline=no_baseline)],
    ids=["discount", "step size", "baseline"],
)
def test_another_setting_is_another_gradient(rng, keywords):
    _, theta, _, records = experience(rng, 2, 1)
    records = without_log_probs(records)
    mine = candidates(theta, records)["naive"]
    assert check.check_gradient(mine, candidates(theta, records, **keywords)).names == ()


def test_masked_steps_do_not_count(rng):
    _, theta, _, records = experience(rng, 2, 1)
    clean = []
    dirty = []
    for r in without_log_probs(records):  # another mask leads to other parameters
        mask = np.arange(T)[:, None, None] < rng.integers(1, T + 1, r.mask.shape[1:])
        clean.append(replace(r, mask=mask))
        states = np.where(mask, r.states, -1)
        actions = np.where(mask, r.actions, -1)
        rewards = np.where(mask, r.rewards, np.nan)
        dirty.append(check.record(states, actions, rewards, mask))
    before = candidates(theta, clean)
    after = candidates(theta, dirty)
    for name in NAMES:
        np.testing.assert_allclose(after[name], before[name], atol=1e-12)


def test_one_task_may_leave_its_axis_out(rng):
    _, theta, _, records = experience(rng, 1, 1)
    flat = [check.record(*(getattr(r, name)[:, 0] for name in FIELDS)) for r in records]
    expected = candidates(theta, records)
    for name, g in candidates(theta, flat).items():
        np.testing.assert_array_equal(g, expected[name])


def test_a_recorded_baseline_goes_before_the_default(rng):
    _, theta, _, records = experience(rng, 1, 1)
    records = without_log_probs(records)
    zero = [replace(r, baseline=np.zeros(r.rewards.shape)) for r in records]
    expected = candidates(theta, records, baseline=no_baseline)
    for name, g in candidates(theta, zero).items():
        np.testing.assert_array_equal(g, expected[name])


def test_a_policy_of_the_users_choice(rng):
    policy = LogisticPolicy(S, 1)
    _, theta, path, records = experience(rng, 1, 1, policy)
    g = meta_gradient(policy, path, Reinforce(ALPHA)).mean(0)
    assert check.check_gradient(g, candidates(theta, records, policy=policy)).names == ("naive",)


@pytest.mark.parametrize(
    "options, names",
    [
        (dict(), ()),
        (dict(tolerance=2e-6), ("one",)),
        (dict(standard_error=0.0), ("one",)),  # an error of 0 is taken for rounding: |z| = 1.5
        (dict(standard_error=0.0, tolerance=1e-7), ()),
    ],
)
def test_the_largest_component_decides(options, names):
    known = {"one": np.ones(100)}
    off = np.ones(100)
    off[3] += 1.5e-6
    assert check.check_gradient(off, known, **options).names == names


@pytest.mark.parametrize("dtype, names", [(np.float32, ("naive",)), (float, ())])
def test_a_right_gradient_in_single_precision_is_right(rng, dtype, names):
    """6e-5 of the largest component is rounding in float32, and an error in float64."""
    right = rng.normal(size=(S, A))
    off = right + 6e-5 * abs(right).max()
    assert check.check_gradient(off.astype(dtype), {"naive": right}).names == names


def test_numbers_of_single_precision_are_known_in_an_array_of_double_precision(rng):
    right = rng.normal(size=(S, A))
    off = np.float32(right + 6e-5 * abs(right).max()).astype(float)
    assert check.check_gradient(off, {"naive": right}).names == ("naive",)


def policy_gradient_in_single_precision(theta, states, actions, rewards, discount):
    """Σ γᵗ (G_t − b_t) ∇log π_t, b leave-one-out, mean over episodes and tasks, all in float32."""
    f = np.float32
    steps, n_tasks, k = rewards.shape
    gamma = f(discount) ** np.arange(steps, dtype=f)
    discounted = (rewards * gamma[:, None, None])[::-1]
    to_go = np.cumsum(discounted, 0, dtype=f)[::-1]
    w = to_go - (to_go.sum(-1, keepdims=True, dtype=f) - to_go) / f(k - 1)
    pi = np.exp(theta - theta.max(-1, keepdims=True))
    pi /= pi.sum(-1, keepdims=True)
    g = np.zeros(theta.shape, f)
    np.add.at(g, (states, actions), w / f(n_tasks * k))
    return g - pi * g.sum(-1, keepdims=True)


def test_a_policy_gradient_of_many_steps_in_single_precision_is_right(rng):
    shape = (100, 40, 10)
    states = rng.integers(20, size=shape)
    actions = rng.integers(4, size=shape)
    rewards = np.float32(rng.normal(size=shape))
    theta = np.float32(rng.normal(size=(20, 4)))
    known = candidates(theta, [check.record(states, actions, rewards)], discount=0.99)
    mine = policy_gradient_in_single_precision(theta, states, actions, rewards, 0.99)
    assert mine.dtype == np.float32
    verdict = check.check_gradient(mine, {"naive": known["naive"]})
    assert verdict.names == ("naive",)
    assert 1e-7 < verdict.errors["naive"] < 1e-4


def test_with_no_inner_step_it_is_the_policy_gradient_and_nothing_else(rng):
    _, theta, _, records = experience(rng, 2, 0)
    known = candidates(theta, records)
    assert set(known) == {"policy gradient", *NAMES}
    verdict = check.check_gradient(known["dice+score"], known)
    assert verdict.names == ("policy gradient",)
    assert str(verdict).endswith(": the gradient of J, with no inner step.")
    text = str(check.check_gradient(-2 * known["naive"], known))
    assert text.startswith("This is -2 × policy gradient: ") and text.count("This is") == 1


@pytest.mark.parametrize(
    "gradient, candidate, said",
    [
        (
            1 + 2e-6,
            1.0,
            "The nearest is one, off by 2.0e-06 of its largest component.\n  That is more",
        ),
        (1.1, 1.0, "This is 1.1 × one: another scale."),
        (-1 - 2e-6, 1.0, "This is -1 × one: the gradient of a loss, which is minimised."),
        (1.0, 0.0, "This is none of the candidates: one is zero everywhere"),
        (0.0, 1.0, "This gradient is zero everywhere"),
        (0.0, 0.0, "This is one (off by 0.0e+00 of its largest component)."),
        (1e300, 1e-300, "This is inf × one"),
        (1e300, 2e300, "This is 0.5 × one: a mean where a sum belongs."),
    ],
)
def test_numbers_at_the_edge_have_a_verdict_to_read(gradient, candidate, said):
    shape = np.array([[np.pi, -1 / 3]])
    text = str(check.check_gradient(gradient * shape, {"one": candidate * shape}))
    assert said in text and len(text) < 400
    assert " 1 ×" not in text and "0.0%" not in text


def test_a_candidate_of_zero_stands_beside_others():
    g = np.array([[np.pi, -1 / 3]])
    verdict = check.check_gradient(g, {"zero": 0 * g, "rounding": 1e-17 * g, "right": g})
    assert verdict.names == ("right",)
    assert check.check_gradient(1e-18 * g, {"zero": 0 * g, "right": g}).names == ("zero",)


@pytest.mark.parametrize("off, names", [(0.0, ("one",)), (0.1, ())])
def test_without_errors_and_tolerance_only_the_same_number_is_it(off, names):
    g = np.array([[np.pi, -1 / 3]])
    verdict = check.check_gradient(g + off, {"one": g}, standard_error=0.0, tolerance=0)
    assert verdict.names == names
    assert "nan" not in str(verdict)


@pytest.mark.parametrize("z, names", [(8.3, ("zero",)), (8.5, ())])
def test_confidence_may_come_as_near_to_one_as_numbers_can(z, names):
    """1 − 2⁻⁵³: |z| up to the normal quantile of 2⁻⁵⁴ from the top, 8.29 for one component."""
    almost_one = np.nextafter(1.0, 0.0)
    options = dict(standard_error=1.0, confidence=almost_one)
    verdict = check.check_gradient(np.array([z - 0.1]), {"zero": np.zeros(1)}, **options)
    assert verdict.names == names
    assert "100%" not in str(verdict)


TEXTS = [
    *(dict(gradient=np.full(2, x * np.pi)) for x in (1.0, -1.0, 3.0, 1 + 1e-5, 0.0)),
    dict(gradient=np.array([np.pi, 0])),
    dict(gradient=np.full(2, np.pi), standard_error=0.1),
]


@pytest.mark.parametrize("arguments", TEXTS)
@pytest.mark.parametrize("name", [*MEANING])
def test_a_verdict_can_be_printed_on_a_console_of_one_byte_a_character(arguments, name):
    verdict = check.check_gradient(candidates={name: np.full(2, np.pi)}, **arguments)
    assert str(verdict).encode("cp1252")


# ---- exact answers, and means of samples


def tiny_task(rng):
    """(MDP, θ)."""
    mdps = random_mdps(
        rng, 1, 2, 2, horizon=2, discount=GAMMA, reward_mean=0.0, reward_std=2.0, reward_noise=0.0
    )
    return mdps, 0.3 * rng.normal(size=(2, 2))


@pytest.fixture
def tiny(rng):
    return tiny_task(rng)


@pytest.fixture(scope="module")
def million():
    """A million copies of a tiny task, adapted; and the expectations of their gradients."""
    rng = np.random.default_rng(20261122)
    mdps, theta = tiny_task(rng)
    copies = mdps[np.zeros(1_000_000, int)]
    path = adapt(rng, copies, SoftmaxPolicy(2, 2), theta, Reinforce(ALPHA), steps=1, episodes=2)
    return path, check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2)


@pytest.mark.parametrize("name", ["naive", "dice", "naive+score", "(b)"])
def test_the_baseline_reaches_the_expectations(tiny, name):
    mdps, theta = tiny
    sizes = dict(step_size=ALPHA, episodes=2)
    plain = check.expected_gradients(mdps, theta, **sizes)
    other = check.expected_gradients(mdps, theta, baseline=no_baseline, **sizes)
    assert abs(plain[name] - other[name]).max() > 1e-4


def test_lambda_reaches_the_expectations(tiny):
    """Loaded DiCE at λ = 0 is LVC."""
    mdps, theta = tiny
    sizes = dict(step_size=ALPHA, episodes=2)
    plain = check.expected_gradients(mdps, theta, **sizes)
    zero = check.expected_gradients(mdps, theta, lam=0.0, **sizes)
    assert abs(plain["loaded_dice"] - zero["loaded_dice"]).max() > 1e-4
    np.testing.assert_allclose(zero["loaded_dice"], plain["lvc"], atol=1e-12)


def plain_return_of(mdps, pi):
    """J of the first of the two states by backward recursion in loops, horizon 2."""
    v = np.zeros(2)
    for _ in range(2):
        q = np.zeros((2, 2))
        for s, a, z in np.ndindex(2, 2, 2):
            after = mdps.rewards[0, s, a, z] + GAMMA * v[mdps.successors[0, s, a, z]]
            q[s, a] += mdps.probabilities[0, s, a, z] * after
        v = (pi * q).sum(1)
    return v[0]


def test_exact_answers_are_the_oracles(tiny):
    mdps, theta = tiny
    policy = SoftmaxPolicy(2, 2)

    def j(x):
        return plain_return_of(mdps, np.exp(policy.log_pi(x)))

    answers = check.exact_gradients(mdps, theta, step_size=ALPHA, steps=2)
    np.testing.assert_allclose(answers["policy gradient"], finite_differences(j, theta), atol=1e-9)
    two_steps = adapted_return_gradient(mdps, policy, theta, step_size=ALPHA, steps=2)
    np.testing.assert_allclose(answers["(a)"], two_steps[0])

    def after_a_step(x):
        return j(x + ALPHA * finite_differences(j, x, 1e-4))

    twice = mdps[[0, 0]]  # answers are means over tasks
    one_step = check.exact_gradients(twice, theta, step_size=ALPHA)["(a)"]
    np.testing.assert_allclose(one_step, finite_differences(after_a_step, theta, 1e-4), atol=1e-6)


def test_expected_gradients_hold_b_and_naive_with_the_score_is_it(tiny):
    mdps, theta = tiny
    policy = SoftmaxPolicy(2, 2)

    def trained(x):
        return expected_adapted_return(mdps, policy, x, Reinforce(ALPHA), episodes=2)

    slope = finite_differences(trained, theta)
    expected = check.expected_gradients(mdps, theta, step_size=ALPHA, episodes=2)
    verdict = check.check_gradient(slope, expected, tolerance=1e-7)
    assert set(verdict.names) == {"naive+score", "(b)"}
    known = expected | check.exact_gradients(mdps, theta, step_size=ALPHA)
    assert check.check_gradient(slope, known, tolerance=1e-3).names == verdict.names
    assert check.check_gradient(known["(a)"], known).names == ("(a)",)


@pytest.mark.parametrize(
    "scored, names",
    [(True, {"naive+score", "(b)"}), (False, {"naive"})],
    ids=["with the score", "without"],
)
def test_a_sample_mean_is_told_apart_with_confidence(million, scored, names):
    path, expected = million
    factor = centred_returns(path.returns[-1]) if scored else None
    g = meta_gradient(SoftmaxPolicy(2, 2), path, Reinforce(ALPHA), score_factor=factor)
    standard_error = g.std(0) / np.sqrt(len(g))
    verdict = check.check_gradient(g.mean(0), expected, standard_error=standard_error)
    assert set(verdict.names) == names, str(verdict)
    assert "99% confidence" in str(verdict)
    assert all(name in str(verdict) for name in expected)


@pytest.mark.parametrize(
    "mean, said, not_said",
    [(1.0, "may be one (|z| = 0.00)", "is not"), (5.0, "is none of the candidates", "may be")],
    ids=["all of them", "none of them"],
)
def test_a_mean_that_is_all_of_the_candidates_or_none(mean, said, not_said):
    known = {"one": np.ones(3)}
    text = str(check.check_gradient(np.full(3, mean), known, standard_error=0.01))
    assert said in text and not_said not in text


def test_the_limit_is_bonferronis():
    """Five components at 99%: |z| up to the normal quantile of 1 − .01/10, 3.0902."""
    zero = {"zero": np.zeros(5)}
    assert check.check_gradient(np.eye(5)[0] * 3.09, zero, standard_error=1.0).names == ("zero",)
    assert check.check_gradient(np.eye(5)[4] * -3.0903, zero, standard_error=1.0).names == ()


# ---- bad input


def test_log_probs_of_other_parameters_are_refused_and_causes_named(rng):
    _, theta, _, records = experience(rng, 2, 2)
    assert candidates(theta, records)
    said = r"support\[0\]: .*log-prob.* do not belong.*step size, baseline or γᵗ.*axes"
    with pytest.raises(ValueError, match=said):
        candidates(theta + rng.normal(size=theta.shape), records)


def test_log_probs_of_a_later_step_are_checked_too(rng):
    _, theta, _, records = experience(rng, 2, 2)
    records[1] = replace(records[1], log_probs=records[1].log_probs + 0.01)
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
        (dict(log_probs=np.full((T, K), np.nan)), "log_probs: not finite"),
    ],
)
def test_records_that_are_not(change, message):
    good = dict(
        states=np.zeros((T, K), int), actions=np.zeros((T, K), int), rewards=np.zeros((T, K))
    )
    check.record(**good)
    with pytest.raises(ValueError, match=message):
        check.record(**good | change)


def test_negative_states_and_actions_are_no_indices_and_only_an_own_policy_knows_them():
    zeros = np.zeros((T, K), int)
    good = dict(states=zeros, actions=zeros, rewards=zeros * 1.0)
    assert check.record(**good).discrete
    for name in ("states", "actions"):
        record = check.record(**good | {name: zeros - 1})
        assert not record.discrete
        with pytest.raises(ValueError, match="needs states and actions, and as indices"):
            check.estimator_gradients(
                np.zeros((S, 2)), [record], record, step_size=1.0, discount=GAMMA
            )
        masked = check.record(
            **good | {name: zeros - np.eye(T, K, 1 - T, int)}, mask=1 - np.eye(T, K, 1 - T)
        )
        assert masked.discrete


@pytest.mark.parametrize(
    "message, change",
    [
        ("theta", lambda theta, data: dict(theta=theta[None])),
        ("states outside", lambda theta, data: dict(theta=theta[:2])),
        ("^states: outside", lambda theta, data: dict(support=[shifted(data[0], -S)])),
        ("states outside", lambda theta, data: dict(support=[shifted(data[0], S)])),
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
    return replace(record, states=record.states + by)


def first_task(record):
    return check.record(record.states[:, :1], record.actions[:, :1], record.rewards[:, :1])


@pytest.mark.parametrize(
    "message, change",
    [
        ("gradient: shape", dict(gradient=np.zeros(3))),
        ("gradient: it has no components", dict(gradient=np.zeros((0, A)))),
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


@pytest.mark.parametrize("name", [0, None, ("lvc", 1)])
def test_names_of_candidates_are_strings(name):
    with pytest.raises(ValueError, match="^candidates: .* is no name"):
        check.check_gradient(np.ones(2), {name: np.ones(2)})
