"""PPO and TRPO on whole trials, against loops over steps, dense matrices and exact gradients."""

from dataclasses import fields, replace

import numpy as np
import pytest
from autograd import grad
from helpers import random_tasks, tiny_mdp
from meta.test_rl2 import (
    PAYOFFS,
    bandit_return,
    case,
    cell,
    grid_tasks,
    plain_outputs,
    scrambled,
    softmax,
    unpack,
)

from metarl_np.check import finite_differences
from metarl_np import ppo, rl2, rl2_training
from metarl_np.meta.rl2 import RecurrentPolicy, Trials, sample_trials
from metarl_np.meta.rl2_training import (
    RecurrentPPO,
    taken_log_probs,
    train_recurrent,
    trial_advantages,
    trial_gradient,
    trial_surrogate,
    trial_surrogate_gradient,
)
from metarl_np.meta.rl2_trpo import RecurrentTRPO, trial_fisher_vector_product, trial_kl
from metarl_np.tasks.bandits import independent

assert case  # a fixture


def steps_of(trials):
    """(t, lane) of every step that was taken."""
    return list(zip(*np.nonzero(trials.mask)))


def plain_surrogate(y, trials, advantage, target, *, clip, entropy_bonus, value):
    total = 0.0
    for t, n in steps_of(trials):
        pi = softmax(y[t, :-1, n])
        old = softmax(trials.outputs[t, :-1, n])
        a = trials.actions[t, n]
        ratio = pi[a] / old[a]
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        total += min(ratio * advantage[t, n], bounded * advantage[t, n])
        total += (
            entropy_bonus * sum(-p * np.log(p) for p in pi)
            - value * 0.5 * (y[t, -1, n] - target[t, n]) ** 2
        )
    return total / len(steps_of(trials))


def plain_advantages(trials, payoffs, discount, lam, centred=True):
    """(Â before it is standardised, Â, V̂): one trial at a time, one step at a time, with the
    baseline V + B, B_t = Σ_{u≥t} γᵘ⁻ᵗ of the mean payoff of step u over all trials, those that are
    over counting with 0.
    """
    steps, lanes = trials.mask.shape
    mean = [
        sum(payoffs[t, n] for n in range(lanes) if trials.mask[t, n]) / lanes for t in range(steps)
    ]
    B = [
        centred * sum(discount ** (u - t) * mean[u] for u in range(t, steps)) for t in range(steps)
    ]
    raw = np.zeros((steps, lanes))
    for n in range(lanes):
        last = max(t for t in range(steps) if trials.mask[t, n])
        following = 0.0
        for t in range(last, -1, -1):
            after = trials.outputs[t + 1, -1, n] + B[t + 1] if t < last else 0.0
            delta = payoffs[t, n] + discount * after - trials.outputs[t, -1, n] - B[t]
            raw[t, n] = following = delta + discount * lam * following
    taken = [raw[t, n] for t, n in steps_of(trials)]
    middle = sum(taken) / len(taken)
    spread = np.sqrt(sum((x - middle) ** 2 for x in taken) / len(taken))
    return raw, (raw - middle) / spread, raw + trials.outputs[:, -1]


# ---- advantages: across the episodes of a trial, never across trials


@pytest.mark.parametrize("discount, lam", [(1.0, 1.0), (0.9, 0.7), (0.95, 0.0), (0.0, 0.5)])
def test_advantages_by_loops(case, discount, lam):
    mdps, _, _, trials = case
    for payoffs in (rl2.regrets(mdps, trials), trials.rewards, -1.0 * trials.mask):
        ours, target = trial_advantages(trials, payoffs, discount=discount, lam=lam)
        _, expected, expected_target = plain_advantages(trials, payoffs, discount, lam)
        np.testing.assert_allclose(ours[trials.mask], expected[trials.mask], atol=1e-11)
        np.testing.assert_allclose(target[trials.mask], expected_target[trials.mask], atol=1e-11)
        assert ours[trials.mask].mean() == pytest.approx(0, abs=1e-12) and ours[
            trials.mask
        ].std() == pytest.approx(1)


def test_a_later_episodes_payoff_counts_in_earlier_ones_of_the_same_trial(case):
    mdps, _, _, trials = case
    payoffs = rl2.expected_rewards(mdps, trials)
    gamma = 0.95
    lam = 0.8
    lanes = trials.mask.shape[1]
    later = int(np.flatnonzero((trials.episode[:, 2] == 2) & trials.mask[:, 2])[0])
    bumped = payoffs.copy()
    bumped[later, 2] += 1

    def raw(payoffs):
        return trial_advantages(trials, payoffs, discount=gamma, lam=lam)[1] - trials.outputs[:, -1]

    change = raw(bumped) - raw(payoffs)
    earlier = np.arange(later + 1)
    assert (trials.episode[:later, 2] < 2).all() and later >= 2
    np.testing.assert_allclose(
        change[: later + 1, 2], (1 - 1 / lanes) * (gamma * lam) ** (later - earlier), atol=1e-11
    )
    assert abs(change[later + 1 :]).max() < 1e-11  # nor later steps, of any trial
    others = np.delete(change, 2, 1)
    assert others.max() < 1e-12 and others.min() >= -1 / lanes - 1e-12  # through the baseline only
    expected = (
        plain_advantages(trials, bumped, gamma, lam)[0]
        - plain_advantages(trials, payoffs, gamma, lam)[0]
    )
    np.testing.assert_allclose(change[trials.mask], expected[trials.mask], atol=1e-11)


def test_mistake_19_trials_laid_end_to_end(case):
    """GAE run on from one trial into the next in a buffer is clearly something else."""
    mdps, _, _, trials = case
    payoffs = rl2.expected_rewards(mdps, trials)
    gamma = 0.95
    lam = 0.9
    raw, *_ = plain_advantages(trials, payoffs, gamma, lam, centred=False)
    wrong = np.zeros_like(raw)
    following = 0.0
    after = 0.0
    for n in reversed(range(raw.shape[1])):
        for t in reversed(range(len(raw))):
            if trials.mask[t, n]:
                delta = payoffs[t, n] + gamma * after - trials.outputs[t, -1, n]
                wrong[t, n] = following = delta + gamma * lam * following
                after = trials.outputs[t, -1, n]
    assert abs(wrong - raw)[:, :-1].max() > 0.1 and abs(wrong - raw)[:, -1].max() < 1e-12
    centred = trial_advantages(trials, payoffs, discount=gamma, lam=lam)[1] - trials.outputs[:, -1]
    np.testing.assert_allclose(
        centred[trials.mask],
        plain_advantages(trials, payoffs, gamma, lam)[0][trials.mask],
        atol=1e-11,
    )
    one = np.array(
        [
            trial_advantages(trials.part([n]), payoffs[:, [n]], discount=gamma, lam=1.0)[1][:, 0]
            for n in range(raw.shape[1])
        ]
    ).T
    # N = 1, λ = 1: B is all there is, Â = −V
    assert abs(one - trials.outputs[:, -1] * (1 - trials.mask))[trials.mask].max() < 1e-11


def test_mistakes_8_and_17_standardised_advantages(case):
    """8: divided by the variance; 17: value targets made of standardised advantages."""
    mdps, _, _, trials = case
    payoffs = 3 * rl2.expected_rewards(mdps, trials)
    ours, target = trial_advantages(trials, payoffs, discount=0.95, lam=0.9)
    raw, standard, _ = plain_advantages(trials, payoffs, 0.95, 0.9)
    on = trials.mask
    values = trials.outputs[:, -1]
    np.testing.assert_allclose(target[on], (raw + values)[on], atol=1e-11)
    assert abs(target - (standard + values))[on].max() > 0.1
    assert abs(ours - (raw - raw[on].mean()) / raw[on].var())[on].max() > 0.1


def test_equal_payoffs_have_no_advantage(rng):
    trials = sample_trials(
        rng,
        independent(rng, 6, 2),
        RecurrentPolicy(1, 2, 3),
        np.zeros(RecurrentPolicy(1, 2, 3).net.size),
        4,
    )
    ours, target = trial_advantages(
        trials, np.tile([[1.0], [5.0], [-2.0], [0.0]], 6), discount=0.9, lam=0.8
    )
    assert (ours == 0).all() and (target == 0).all()


def test_float32_in_float32_out(rng):
    policy = RecurrentPolicy(1, 2, 3)
    trials = sample_trials(rng, independent(rng, 6, 2), policy, policy.init(rng), 4)
    assert all(
        x.dtype == np.float32
        for x in trial_advantages(trials, trials.rewards, discount=0.9, lam=0.8)
    )


# ---- the surrogate


@pytest.mark.parametrize(
    "advantage, ratio, expected",
    [
        (2.0, 1.5, 2.4),
        (2.0, 0.5, 1.0),
        (-2.0, 1.5, -3.0),
        (-2.0, 0.5, -1.6),
        (2.0, 1.1, 2.2),
        (-2.0, 0.9, -1.8),
    ],
)
def test_clipping_by_hand(advantage, ratio, expected):
    """ε = .2, π_old(0) = .4: a good action's ratio counts up to 1.2 and a bad one's down to .8;
    what makes things worse counts in full.
    """
    zero = np.zeros((1, 1), int)
    old, new = (np.log([[[p], [1 - p], [1.0]]]) for p in (0.4, 0.4 * ratio))
    trials = Trials(None, old, zero, zero, zero, zero, zero, zero == 0)
    A = np.array([[advantage]])
    V = np.zeros((1, 1))
    assert trial_surrogate(new, trials, A, V, clip=0.2, value=0.0) == pytest.approx(
        expected, abs=1e-12
    )
    slope = finite_differences(lambda y: trial_surrogate(y, trials, A, V, clip=0.2, value=0.0), new)
    assert (abs(slope[0, 0]) < 1e-9).all() == (
        abs(expected) < abs(advantage * ratio) or expected == -1.6
    )
    log_old = np.log([[0.4]])
    np.testing.assert_allclose(
        trial_surrogate_gradient(new, trials, log_old, A, V, 1, clip=0.2, value=0.0),
        slope,
        atol=1e-8,
    )


def test_entropy_and_value_terms_by_hand():
    zero = np.zeros((1, 1), int)
    y = np.array([[[np.log(0.25)], [np.log(0.75)], [3.0]]])
    trials = Trials(None, y, zero, zero, zero, zero, zero, zero == 0)
    none = np.zeros((1, 1))
    assert trial_surrogate(y, trials, none, none, entropy_bonus=2.0, value=0.0) == pytest.approx(
        2 * (0.25 * np.log(4) + 0.75 * np.log(4 / 3))
    )
    assert trial_surrogate(y, trials, none, none + 5, value=0.5) == pytest.approx(-0.5 * 0.5 * 4)


@pytest.fixture
def moved(case, rng):
    """(trials, new outputs, Â, V̂), no ratio on a kink."""
    _, _, _, trials = case
    y = trials.outputs + 0.3 * rng.normal(size=trials.outputs.shape)
    advantage = rng.normal(size=trials.mask.shape)
    target = rng.normal(size=trials.mask.shape)
    ratios = [
        softmax(y[t, :-1, n])[a] / softmax(trials.outputs[t, :-1, n])[a]
        for t, n in steps_of(trials)
        for a in [trials.actions[t, n]]
    ]
    assert min(abs(abs(np.array(ratios) - 1) - 0.2)) > 1e-4 and np.ptp(ratios) > 0.6
    return trials, y, advantage, target


SETTINGS = dict(clip=0.2, entropy_bonus=0.3, value=0.7)


def test_surrogate_by_loops(moved):
    trials, y, advantage, target = moved
    for settings in (
        SETTINGS,
        dict(clip=np.inf, entropy_bonus=0.0, value=0.0),
        dict(clip=0.05, entropy_bonus=0.0, value=1.0),
    ):
        expected = plain_surrogate(y, trials, advantage, target, **settings)
        assert trial_surrogate(y, trials, advantage, target, **settings) == pytest.approx(
            expected, abs=1e-12
        )


def test_surrogate_gradient_by_finite_differences_and_autograd(moved):
    trials, y, advantage, target = moved
    old = np.array(
        [
            [
                np.log(softmax(trials.outputs[t, :-1, n])[trials.actions[t, n]])
                for n in range(y.shape[2])
            ]
            for t in range(len(y))
        ]
    )
    np.testing.assert_allclose(taken_log_probs(trials.outputs, trials), old, atol=1e-13)
    for settings in (SETTINGS, dict(clip=np.inf, entropy_bonus=0.0, value=0.0)):

        def ours(y):
            return trial_surrogate(y, trials, advantage, target, **settings)

        slope = finite_differences(ours, y, 1e-6)
        closed = trial_surrogate_gradient(
            y, trials, old, advantage, target, trials.mask.sum(), **settings
        )
        np.testing.assert_allclose(closed, slope, atol=1e-8)
        np.testing.assert_allclose(closed, grad(ours)(y), atol=1e-14)
        assert (
            not closed[~trials.mask[:, None] & (closed == closed)].any()
            and abs(closed).max() > 1e-3
        )


def test_gradient_of_parts_is_that_of_the_whole(rng, monkeypatch):
    """150 trials, three parts: the same as one unroll, with a batch in any order."""
    monkeypatch.setattr(rl2_training, "LANES", 64)
    policy = RecurrentPolicy(1, 2, 3)
    theta = policy.init(rng, np.float64) + 0.5 * rng.normal(size=policy.net.size)
    trials = sample_trials(rng, independent(rng, 150, 2), policy, theta, 4)
    weight = rng.normal(size=trials.outputs.shape)

    def of_outputs(y, part, numbers):
        np.testing.assert_allclose(y, trials.outputs[..., numbers], atol=1e-12)
        np.testing.assert_array_equal(part.actions, trials.actions[:, numbers])
        return weight[..., numbers]

    chosen = rng.permutation(150)[:140]
    one = trial_gradient(policy, theta, trials, chosen, of_outputs)
    mask = np.isin(np.arange(150), chosen)
    np.testing.assert_allclose(one, policy.unroll(theta, trials)[1](weight * mask), atol=1e-11)


def test_mean_kl_is_of_the_old_from_the_new(moved):
    trials, y, *_ = moved
    forward = reverse = 0.0
    for t, n in steps_of(trials):
        p = softmax(trials.outputs[t, :-1, n])
        q = softmax(y[t, :-1, n])
        forward += sum(p * np.log(p / q)) / trials.mask.sum()
        reverse += sum(q * np.log(q / p)) / trials.mask.sum()
    assert (
        trial_kl(y, trials) == pytest.approx(forward, abs=1e-13) and abs(forward - reverse) > 1e-4
    )
    assert trial_kl(trials.outputs, trials) == 0


def test_mean_kl_by_hand():
    zero = np.zeros((1, 1), int)
    old, new = (np.log([[[p], [1 - p], [1.0]]]) for p in (0.5, 0.25))
    assert trial_kl(
        new, Trials(None, old, zero, zero, zero, zero, zero, zero == 0)
    ) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_masked_steps_add_nothing(case, rng):
    """Nonsense where the mask is False: the same advantages, surrogate, KL, gradients,
    Fisher-vector products and steps.
    """
    mdps, policy, theta, trials = case
    other = scrambled(rng, trials)
    payoffs = rl2.regrets(mdps, trials)
    nonsense = np.where(trials.mask, payoffs, 50 * rng.normal(size=payoffs.shape))
    y = trials.outputs + 0.2 * rng.normal(size=trials.outputs.shape)
    z = np.where(trials.mask[:, None], y, rng.normal(size=y.shape))
    a, b = (
        trial_advantages(x, p, discount=0.95, lam=0.9)
        for x, p in ((trials, payoffs), (other, nonsense))
    )
    for ours, same in zip(a, b):
        np.testing.assert_allclose(ours[trials.mask], same[trials.mask], atol=1e-11)
    assert trial_surrogate(y, trials, *a, **SETTINGS) == pytest.approx(
        trial_surrogate(z, other, *b, **SETTINGS), abs=1e-12
    )
    assert trial_kl(y, trials) == pytest.approx(trial_kl(z, other), abs=1e-13)
    v = rng.normal(size=len(theta))
    np.testing.assert_allclose(
        trial_fisher_vector_product(policy, theta, trials, v),
        trial_fisher_vector_product(policy, theta, other, v),
        atol=1e-10,
    )
    for update in (RecurrentPPO(epochs=1, minibatches=2), RecurrentTRPO(every=1)):
        one, two = (
            update(np.random.default_rng(0), policy, theta, x, p, None, 1.0)[0]
            for x, p in ((trials, payoffs), (other, nonsense))
        )
        np.testing.assert_allclose(one, two, atol=1e-6)
        assert abs(one - theta).max() > 1e-3


# ---- exact gradients


def exact_bandit_gradient(policy, theta, pulls):
    return finite_differences(lambda th: bandit_return(policy, th, pulls), theta)


@pytest.mark.parametrize("payoffs", PAYOFFS)
def test_ppo_gradient_at_ratio_one_is_the_exact_one(rng, payoffs):
    """∇ of the surrogate at the old outputs with Â the undiscounted payoff-to-go, times the n steps
    over which it takes the mean.
    """
    policy = RecurrentPolicy(1, 2, 3)
    batches = 120
    pulls = 3
    theta = policy.init(rng, np.float64) + 0.7 * rng.normal(size=policy.net.size)
    exact = exact_bandit_gradient(policy, theta, pulls)
    sampled = []
    for _ in range(batches):
        mdps = independent(rng, 300, 2)
        trials = sample_trials(rng, mdps, policy, theta, pulls)
        to_go = np.cumsum(PAYOFFS[payoffs](mdps, trials)[::-1], 0)[::-1]
        g = grad(trial_surrogate)(trials.outputs, trials, to_go, 0.0, value=0.0)
        sampled.append(pulls * policy.unroll(theta, trials)[1](g))
    error = np.std(sampled, 0, ddof=1) / np.sqrt(batches)
    assert (abs(np.mean(sampled, 0) - exact) <= 4 * error + 1e-9).all()
    assert abs(exact / np.maximum(error, 1e-9))[error > 1e-9].max() > 12


def trial_return(mdps, policy, theta, episodes):
    """E Σ γᵗ r over a trial of the one task, by recursion over everything that can happen."""
    parts = unpack(policy, theta)
    _, S, A, Z = mdps.successors.shape

    def begin(h, episode, last):
        return (
            sum(p * follow(h, s, 0, episode, last, True) for s, p in enumerate(mdps.start[0]) if p)
            if episode < episodes
            else 0.0
        )

    def follow(h, s, t, episode, last, begins):
        x = np.zeros((S + A + 3, 1))
        x[s] = 1
        if last is None:
            x[S] = 1
        else:
            x[S + 1 + last[0]], x[-2], x[-1] = 1, last[1], begins
        h = cell(np, parts, h, x)
        pi = softmax((parts[3][s] @ h + parts[4][s])[:-1, 0])
        total = 0.0
        for a in range(A):
            for z in range(Z):
                p, r, after = (
                    y[0, s, a, z] for y in (mdps.probabilities, mdps.rewards, mdps.successors)
                )
                if p:
                    ends = mdps.terminal[0, after] or t + 1 == mdps.horizon
                    rest = (
                        begin(h, episode + 1, (a, r))
                        if ends
                        else follow(h, after, t + 1, episode, (a, r), False)
                    )
                    total += pi[a] * p * (mdps.discount**t * r + rest)
        return total

    return begin(np.zeros((policy.units, 1)), 0, None)


@pytest.fixture(scope="module")
def uneven():
    """A task whose episodes end early or late as the policy chooses, 2 a trial: (task, policy, θ,
    exact ∇J by differences, 150 batches).
    """
    rng = np.random.default_rng(8)
    mdps = tiny_mdp(rng, 3, ends=True)
    # each step costs: it pays to end early
    rewards = mdps.rewards - 2 * ~mdps.terminal[:, :, None, None]
    mdps = replace(mdps, rewards=rewards)
    policy = RecurrentPolicy(3, 2, 2)
    theta = policy.init(rng, np.float64) + 0.5 * rng.normal(size=policy.net.size)
    exact = finite_differences(lambda th: trial_return(mdps, policy, th, 2), theta)
    many = mdps[np.zeros(300, int)]
    return (
        mdps,
        policy,
        theta,
        exact,
        [(many, sample_trials(rng, many, policy, theta, 2)) for _ in range(150)],
    )


def test_trial_return_is_what_is_sampled(uneven):
    mdps, policy, theta, _, batches = uneven
    sampled = np.concatenate(
        [(x.rewards * mdps.discount**x.time * x.mask).sum(0) for _, x in batches]
    )
    assert abs(sampled.mean() - trial_return(mdps, policy, theta, 2)) < 4 * sampled.std() / np.sqrt(
        len(sampled)
    )


def standard_errors_off(uneven, of_batch):
    """Per component, how far the mean over batches is from the exact gradient, and how far the
    exact one is from 0, in standard errors.
    """
    _, policy, theta, exact, batches = uneven
    sampled = np.array(
        [policy.unroll(theta, trials)[1](of_batch(mdps, trials)) for mdps, trials in batches]
    )
    error = sampled.std(0, ddof=1) / np.sqrt(len(batches))
    on = error > 1e-9
    assert abs(exact[~on]).max(initial=0) < 1e-8
    return abs(sampled.mean(0) - exact)[on] / error[on], abs(exact)[on] / error[on]


@pytest.mark.parametrize("payoffs", PAYOFFS)
def test_the_gradient_that_training_takes_is_exact_where_trials_differ_in_length(uneven, payoffs):
    """Through `advantages` at γ = λ = 1 and the surrogate: ∇J, times the spread that Â was divided
    by, over the steps of a trial.
    """

    def of_batch(mdps, trials):
        paid = (
            PAYOFFS[payoffs](mdps, trials)
            if payoffs != "rewards"
            else trials.rewards * mdps.discount**trials.time
        )
        advantage, target = trial_advantages(trials, paid, discount=1.0, lam=1.0)
        spread = (target - trials.outputs[:, -1])[trials.mask].std()
        y = trials.outputs
        steps = trials.mask.sum()
        g = trial_surrogate_gradient(
            y, trials, taken_log_probs(y, trials), advantage, target, steps, value=0.0
        )
        return g * spread * steps / trials.mask.shape[1]

    off, size = standard_errors_off(uneven, of_batch)
    assert off.max() < 4 and size.max() > 15


def test_a_baseline_of_the_living_only_would_be_wrong(uneven):
    """The mean payoff taken off each step that was taken, and nothing at a trial's end, pays for
    lasting long: another gradient.
    """

    def of_batch(mdps, trials):
        paid = rl2.expected_rewards(mdps, trials)
        paid = (paid - paid.sum(1, keepdims=True) / trials.mask.sum(1, keepdims=True)) * trials.mask
        g = grad(trial_surrogate)(
            trials.outputs, trials, np.cumsum(paid[::-1], 0)[::-1], 0.0, value=0.0
        )
        return g * trials.mask.sum() / trials.mask.shape[1]

    off, _ = standard_errors_off(uneven, of_batch)
    assert off.max() > 12


# ---- PPO


def surrogate_slope(trials, advantage, target, **settings):
    """∂/∂outputs of the plain surrogate, mean over steps, by a difference at every number."""
    slope = np.zeros_like(trials.outputs)
    for t, n in steps_of(trials):
        one = Trials(*(getattr(trials, f.name)[..., [n]][t : t + 1] for f in fields(trials)))
        given = (one, advantage[t : t + 1, [n]], target[t : t + 1, [n]])
        for row in range(slope.shape[1]):
            moved = []
            for step in (1e-5, -1e-5):
                outputs = trials.outputs[t : t + 1, :, [n]].copy()
                outputs[0, row] += step
                moved.append(plain_surrogate(outputs, *given, **settings))
            slope[t, row, n] = (moved[0] - moved[1]) / 2e-5 / trials.mask.sum()
    return slope


@pytest.mark.parametrize("max_norm", [0.05, 1e6])
def test_one_ppo_step_by_hand(case, rng, max_norm):
    """One epoch, one minibatch: Adam's first moment is .1 of the shortened gradient, its first step
    β·left uphill in every component.
    """
    mdps, policy, theta, trials = case
    payoffs = rl2.regrets(mdps, trials)
    left = 0.25
    advantage, target = plain_advantages(trials, payoffs, 0.9, 0.8)[1:]
    weights = dict(entropy=0.4, value=0.6, max_norm=max_norm)
    once = dict(step_size=0.01, epochs=1, minibatches=1, discount=0.9, lam=0.8)
    update = RecurrentPPO(**once, **weights)
    settings = dict(clip=0.2, entropy_bonus=0.4 * left, value=0.6)
    slope = surrogate_slope(trials, advantage, target, **settings)
    _, pull_back, _ = policy.unroll(theta, trials)
    g = pull_back(slope)
    norm = np.sqrt((g**2).sum())
    assert norm > 0.1
    new, (m, v, count) = update(rng, policy, theta, trials, payoffs, None, left)
    np.testing.assert_allclose(m / 0.1, g * min(1, max_norm / norm), atol=1e-7 * max(1, norm))
    assert count == 1
    big = abs(g) > 1e-4
    np.testing.assert_allclose((new - theta)[big], 0.01 * left * np.sign(g[big]), rtol=1e-2)


def test_the_surrogate_of_the_package_is_the_plain_one(case):
    mdps, _, _, trials = case
    advantage, target = plain_advantages(trials, rl2.regrets(mdps, trials), 0.9, 0.8)[1:]
    given = (trials.outputs, trials, advantage, target)
    settings = dict(clip=0.2, entropy_bonus=0.1, value=0.6)
    assert np.isclose(plain_surrogate(*given, **settings), trial_surrogate(*given, **settings))


def test_ppo_shows_every_trial_once_an_epoch(rng, monkeypatch):
    policy = RecurrentPolicy(1, 2, 3)
    shown = []
    part = Trials.part
    trials = sample_trials(rng, independent(rng, 23, 2), policy, policy.init(rng), 3)
    monkeypatch.setattr(
        Trials, "part", lambda self, lanes: shown.append(lanes) or part(self, lanes)
    )
    _, (_, _, count) = RecurrentPPO(epochs=2, minibatches=4)(
        rng, policy, policy.init(rng), trials, trials.rewards, None, 1.0
    )
    assert count == 8 and len(shown) == 8
    for epoch in (shown[:4], shown[4:]):
        assert sorted(np.concatenate(epoch)) == list(range(23)) and max(map(len, epoch)) == 6
    assert (np.concatenate(shown[:4]) != np.concatenate(shown[4:])).any()


def test_no_minibatch_is_empty(rng):
    """Two trials in seven minibatches are two: Adam takes no step without a gradient."""
    policy = RecurrentPolicy(1, 2, 3)
    trials = sample_trials(rng, independent(rng, 2, 2), policy, policy.init(rng), 3)
    assert (
        RecurrentPPO(epochs=3, minibatches=7)(
            rng, policy, policy.init(rng), trials, trials.rewards, None, 1.0
        )[1][2]
        == 6
    )


def test_a_minibatch_is_a_mean_over_its_own_steps(case):
    """Two minibatches, and steps too short to matter: Adam's first moment is .9·.1 of one's
    gradient and .1 of the other's.
    """
    mdps, policy, theta, trials = case
    payoffs = rl2.regrets(mdps, trials)
    update = RecurrentPPO(step_size=1e-12, epochs=1, minibatches=2, max_norm=1e6)
    _, (m, _, _) = update(np.random.default_rng(4), policy, theta, trials, payoffs, None, 1.0)
    advantage, target = trial_advantages(trials, payoffs, discount=update.discount, lam=update.lam)
    halves = np.array_split(np.random.default_rng(4).permutation(trials.mask.shape[1]), 2)
    gradients = []
    for lanes in halves:
        part = trials.part(lanes)
        y, pull_back, _ = policy.unroll(theta, part)
        gradients.append(
            pull_back(
                grad(trial_surrogate)(
                    y,
                    part,
                    advantage[:, lanes],
                    target[:, lanes],
                    clip=update.clip,
                    entropy_bonus=update.entropy,
                    value=update.value,
                )
            )
        )
    np.testing.assert_allclose(m, 0.09 * gradients[0] + 0.1 * gradients[1], atol=1e-7)
    assert abs(m).max() > 1e-3


def test_the_parts_of_a_minibatch_share_its_mean(uneven, monkeypatch):
    """Trials of unequal length in unequal parts: a step counts alike in each, and Adam's first
    moment is that of one part.
    """
    mdps, policy, theta, _, [(many, trials), *_] = uneven
    moments = []
    for lanes in (1000, 70):
        monkeypatch.setattr(rl2_training, "LANES", lanes)
        _, (m, _, _) = RecurrentPPO(max_norm=1e6)(
            np.random.default_rng(4), policy, theta, trials, rl2.regrets(many, trials), None, 1.0
        )
        moments.append(m)
    assert not trials.mask.all() and abs(moments[0]).max() > 1e-3
    np.testing.assert_allclose(*moments, rtol=1e-8, atol=1e-12)


def test_a_parts_error_is_not_lost(rng, monkeypatch):
    monkeypatch.setattr(rl2_training, "LANES", 4)
    policy = RecurrentPolicy(1, 2, 3)
    theta = policy.init(rng)
    trials = sample_trials(rng, independent(rng, 10, 2), policy, theta, 2)

    def of_outputs(y, part, numbers):
        return y * 0 if 9 not in numbers else 1 / 0

    with pytest.raises(ZeroDivisionError):
        trial_gradient(policy, theta, trials, np.arange(10), of_outputs)


def test_ppo_does_not_move_at_the_end_of_the_run(case, rng):
    mdps, policy, theta, trials = case
    new, _ = RecurrentPPO()(rng, policy, theta, trials, rl2.regrets(mdps, trials), None, 0.0)
    np.testing.assert_array_equal(new, theta)


# ---- TRPO


@pytest.fixture
def small(rng):
    """(policy, θ, trials of different length, payoffs, the dense Fisher matrix from differences of
    plain softmaxes).
    """
    mdps = random_tasks(rng, 8, 3, 3, 3, horizon=3, discount=0.9)
    policy = RecurrentPolicy(3, 3, 2)
    theta = policy.init(rng, np.float64) + 0.5 * rng.normal(size=policy.net.size)
    trials = sample_trials(rng, mdps, policy, theta, 2)
    assert not trials.mask.all()
    # (T, A + 1, N, P)
    J = finite_differences(
        lambda th: plain_outputs(np, policy, th, trials.inputs, trials.states)[0], theta
    )
    F = np.zeros((len(theta),) * 2)
    for t, n in steps_of(trials):
        p = softmax(trials.outputs[t, :-1, n])
        j = J[t, :-1, n]
        F += j.T @ (np.diag(p) - np.outer(p, p)) @ j / trials.mask.sum()
    return policy, theta, trials, rl2.regrets(mdps, trials), F


def test_fisher_vector_product_is_the_dense_one(small, rng):
    policy, theta, trials, _, F = small
    low = Trials(
        *(
            x.astype(np.float32) if x.dtype == float else x
            for x in (getattr(trials, f.name) for f in fields(trials))
        )
    )
    for scale in (1e-4, 1.0, 300.0):  # the difference is taken over a length of its own
        for _ in range(5):
            v = scale * rng.normal(size=len(theta))
            exact = F @ v
            size = np.linalg.norm(F @ v)
            assert (
                np.linalg.norm(trial_fisher_vector_product(policy, theta, trials, v) - exact)
                < 1e-4 * size
            )
            ours = trial_fisher_vector_product(
                policy, theta.astype(np.float32), low, v.astype(np.float32)
            )
            assert np.linalg.norm(ours - exact) < 1e-4 * size and ours.dtype == np.float32
    assert not np.asarray(
        trial_fisher_vector_product(policy, theta, trials, np.zeros(len(theta)))
    ).any()


def critic(policy, theta):
    """True where θ is of the critic's rows of the read-out."""
    *_, V, v = policy.net.split(np.arange(policy.net.size))
    rows = np.arange(len(V)) % (policy.n_actions + 1) == policy.n_actions
    return np.isin(np.arange(len(theta)), np.concatenate([V[rows].ravel(), v[rows].ravel()]))


def test_a_trpo_step_is_the_natural_gradient_of_the_right_length(small, rng):
    """All but the critic moves along (F + λI)⁻¹ g by c^j √(2δ / xᵀFx), the first j that keeps KL ≤
    δ and improves the surrogate.
    """
    policy, theta, trials, payoffs, F = small
    update = RecurrentTRPO(radius=0.005, damping=0.02, iterations=300, every=1, shrink=0.6)
    _, standard, _ = plain_advantages(trials, payoffs, update.discount, update.lam)
    steps = trials.mask.sum()
    chosen = trials.actions

    def gain_and_kl(th):
        y = plain_outputs(np, policy, th, trials.inputs, trials.states)[0]
        total = 0.0
        kl = 0.0
        for t, n in steps_of(trials):
            p = softmax(trials.outputs[t, :-1, n])
            q = softmax(y[t, :-1, n])
            total += q[chosen[t, n]] / p[chosen[t, n]] * standard[t, n] / steps
            kl += sum(p * np.log(p / q)) / steps
        return np.array([total, kl])

    g = finite_differences(gain_and_kl, theta)[0]
    x = np.linalg.solve(F + 0.02 * np.eye(len(F)), g)
    full = x * np.sqrt(2 * 0.005 / (x @ F @ x))
    j = 0
    while not (
        gain_and_kl(theta + 0.6**j * full)[0] > gain_and_kl(theta)[0]
        and gain_and_kl(theta + 0.6**j * full)[1] <= 0.005
    ):
        j += 1
    new, none = update(rng, policy, theta, trials, payoffs, None, 1.0)
    actor = ~critic(policy, theta)
    np.testing.assert_allclose(
        (new - theta)[actor], 0.6**j * full[actor], atol=2e-3 * abs(full).max()
    )
    gain, kl = gain_and_kl(new)
    assert none is None and gain > gain_and_kl(theta)[0] + 1e-3 and 0.3 * 0.005 < kl <= 0.005


@pytest.mark.parametrize("radius", [1e-4, 0.01, 0.3, 10.0])
def test_trpo_improves_within_the_radius(case, rng, radius):
    """Whatever the radius: KL(old‖new) ≤ δ and a better surrogate; where the full step is too long,
    it is the largest c^j that is not.
    """
    mdps, policy, theta, trials = case
    payoffs = rl2.regrets(mdps, trials)
    new, _ = RecurrentTRPO(radius=radius, every=2)(rng, policy, theta, trials, payoffs, None, 1.0)
    y = policy.unroll(new, trials)[0]
    old = policy.unroll(theta, trials)[0]
    advantage, target = trial_advantages(trials, payoffs, discount=0.995, lam=0.95)
    gains = [
        trial_surrogate(x, trials, advantage, target, clip=np.inf, value=0.0) for x in (old, y)
    ]
    assert gains[1] > gains[0] and 0 < trial_kl(y, trials) <= radius


def test_trpo_stays_where_the_line_search_fails(case, rng, monkeypatch):
    """Zero payoffs and a zero critic, or a KL that is above the radius however short the step: only
    the critic's rows change.
    """
    mdps, policy, theta, trials = case
    rows = critic(policy, theta)
    flat = np.where(rows, 0, theta)
    silent = sample_trials(rng, mdps, policy, flat, 2)
    assert not silent.outputs[:, -1].any()
    tried = []
    for th, batch, payoffs, kl in (
        (flat, silent, np.zeros(silent.mask.shape), trial_kl),
        (theta, trials, rl2.regrets(mdps, trials), lambda y, trials: tried.append(y) or 1.0),
    ):
        before = th.copy()
        monkeypatch.setattr("metarl_np.meta.rl2_trpo.trial_kl", kl)
        new, _ = RecurrentTRPO(max_backtracks=2)(rng, policy, th, batch, payoffs, None, 1.0)
        np.testing.assert_array_equal(new[~rows], before[~rows])
        np.testing.assert_array_equal(th, before)  # and θ itself is left alone
        assert new is not th
    # c⁰, c¹, c²; and the hidden states are those of θ again:
    assert len(tried) == 3 and abs(tried[-1] - trials.outputs).max() > 0.01
    assert_critic(policy, new, trials, plain_advantages(trials, payoffs, 0.995, 0.95)[2])


def assert_critic(policy, theta, trials, target):
    """At each state min Σ (wᵀh + c − V̂)² + ρ (‖w‖² + c²), h the hidden states at θ of the steps
    taken there: by least squares.
    """
    _, _, _, V, v, _ = unpack(policy, theta)
    _, h = plain_outputs(np, policy, theta, trials.inputs, trials.states)
    visited = 0
    for s in range(policy.n_states):
        here = [(t, n) for t, n in steps_of(trials) if trials.states[t, n] == s]
        ridge = len(here) * 1e-4 + 1e-6
        x = np.array([[*h[t, :, n], 1.0] for t, n in here]).reshape(-1, policy.units + 1)
        x = np.concatenate([x, np.sqrt(ridge) * np.eye(policy.units + 1)])
        wanted = np.array([target[t, n] for t, n in here] + [0.0] * (policy.units + 1))
        w = np.linalg.lstsq(x, wanted, rcond=None)[0]
        np.testing.assert_allclose([*V[s][-1], v[s][-1, 0]], w, atol=1e-6)
        visited += len(here) > 10
    return visited


def test_the_critic_is_the_ridge_solution(case, rng):
    """On the *new* hidden states."""
    mdps, policy, theta, trials = case
    payoffs = rl2.regrets(mdps, trials)
    new, _ = RecurrentTRPO(every=1)(rng, policy, theta, trials, payoffs, None, 1.0)
    assert (
        assert_critic(policy, new, trials, plain_advantages(trials, payoffs, 0.995, 0.95)[2]) >= 3
    )


# ---- training


def fresh_score(policy, theta, pulls, seed):
    """Mean and standard error of the pulled arms' means over 4000 fresh tasks."""
    rng = np.random.default_rng(seed)
    mdps = independent(rng, 4000, 2)
    scores = rl2.expected_rewards(mdps, sample_trials(rng, mdps, policy, theta, pulls)).sum(0)
    return scores.mean(), scores.std() / np.sqrt(4000)


@pytest.mark.parametrize(
    "update, iterations, payoffs",
    [
        (RecurrentPPO(step_size=0.01), 30, rl2.regrets),
        (RecurrentTRPO(radius=0.02), 20, rl2.expected_rewards),
    ],
)
def test_it_learns_to_learn(update, iterations, payoffs):
    """(n, k) = (5, 2): random gets 2.5, the best 2.91; a few seconds bring more than half of the
    difference.
    """
    rng = np.random.default_rng(3)
    policy = RecurrentPolicy(1, 2, 12)
    theta = policy.init(rng, memory=5)
    scores = []
    for record in train_recurrent(
        rng,
        lambda rng: independent(rng, 500, 2),
        policy,
        theta,
        update,
        iterations=iterations,
        episodes=5,
        payoffs=payoffs,
    ):
        assert (
            record.theta.dtype == np.float32
            and isinstance(record.mean_return, float)
            and record.iteration == len(scores)
        )
        scores.append(record.mean_return)
    mean, error = fresh_score(policy, record.theta, 5, 99)
    assert len(scores) == iterations and mean > 2.7 and mean - 2.5 > 10 * error
    assert np.mean(scores[-3:]) > scores[0] + 0.1


@pytest.mark.parametrize(
    "update",
    [
        RecurrentPPO(step_size=0.03, minibatches=2, epochs=2),
        RecurrentTRPO(radius=0.05, every=2, iterations=6),
    ],
)
def test_it_learns_in_a_gridworld_whose_episodes_end(update):
    """Episodes that end sooner are better (each step costs .1), and trials differ in length."""
    rng = np.random.default_rng(3)
    base = grid_tasks()
    policy = RecurrentPolicy(*base.shape[1:], 8)
    run = train_recurrent(
        rng,
        lambda rng: base[rng.integers(len(base), size=100)],
        policy,
        policy.init(rng),
        update,
        iterations=15,
        episodes=3,
        payoffs=rl2.expected_rewards,
    )
    scores = [record.mean_return for record in run]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.5


@pytest.mark.parametrize("update", [RecurrentPPO(minibatches=2), RecurrentTRPO()])
def test_same_seed_same_bits(update):
    policy = RecurrentPolicy(1, 2, 4)

    def run(seed, **more):
        rng = np.random.default_rng(seed)
        theta = policy.init(rng)
        before = theta.copy()
        records = list(
            train_recurrent(
                rng,
                lambda rng: independent(rng, 80, 2),
                policy,
                theta,
                update,
                iterations=3,
                episodes=4,
                **more,
            )
        )
        np.testing.assert_array_equal(theta, before)  # left alone
        return [record.theta.tobytes() for record in records], [
            record.mean_return for record in records
        ]

    assert run(1) == run(1) and len(set(run(1)[0])) == 3
    assert run(1) != run(2) and run(1) != run(1, payoffs=rl2.expected_rewards)


def test_the_score_is_of_trials_sampled_before_the_update():
    policy = RecurrentPolicy(1, 2, 4)
    seen = []

    def tasks(rng):
        seen.append(independent(rng, 60, 2))
        return seen[-1]

    start = policy.init(np.random.default_rng(0))
    (record,) = train_recurrent(
        np.random.default_rng(5), tasks, policy, start, RecurrentPPO(), iterations=1, episodes=6
    )
    rng = np.random.default_rng(5)
    means = independent(rng, 60, 2)
    trials = sample_trials(rng, means, policy, start, 6)
    arms = means.probabilities[:, 0, :, 0]  # of reward 1
    assert record.mean_return == pytest.approx(
        np.mean([sum(arms[n, a] for a in trials.actions[:, n]) for n in range(60)]), abs=1e-12
    )
    assert len(seen) == 1 and (record.theta != start).any()


def test_the_steps_fall_to_zero_over_the_run():
    seen = []

    def update(rng, policy, theta, trials, payoffs, state, left):
        seen.append((state, left))
        return theta, len(seen)

    policy = RecurrentPolicy(1, 2, 3)
    settings = policy, policy.init(np.random.default_rng(0)), update
    records = train_recurrent(
        np.random.default_rng(0),
        lambda rng: independent(rng, 5, 2),
        *settings,
        iterations=4,
        episodes=2,
    )
    assert [(record.iteration, record.state) for record in records] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]
    assert seen == [(None, 1), (1, 0.75), (2, 0.5), (3, 0.25)]
    list(
        train_recurrent(
            np.random.default_rng(0),
            lambda rng: independent(rng, 5, 2),
            *settings,
            iterations=4,
            episodes=2,
            state=9,
            first=3,
        )
    )
    assert seen[4:] == [(9, 0.25)]


@pytest.mark.parametrize(
    "update", [RecurrentPPO(), RecurrentPPO(epochs=1, minibatches=1), RecurrentTRPO()]
)
def test_parameters_that_are_not_finite_stop_the_run(update):
    """At once where they come from, even between two minibatches, with the iteration."""
    policy = RecurrentPolicy(1, 2, 3)
    rng = np.random.default_rng(0)
    calls = []

    def payoffs(mdps, trials):
        calls.append(0)
        return trials.rewards * (np.nan if len(calls) == 3 else 1)

    run = train_recurrent(
        rng,
        lambda rng: independent(rng, 40, 2),
        policy,
        policy.init(rng),
        update,
        iterations=5,
        episodes=3,
        payoffs=payoffs,
    )
    next(run), next(run)
    with pytest.raises(FloatingPointError, match="iteration 2.*not finite"):
        next(run)


BAD_PPO = dict(
    step_size=(0, -1, np.nan, np.inf),
    clip=(0, -0.1),
    max_norm=(0, np.nan),
    entropy=(-0.1, np.nan),
    value=(-1,),
    epochs=(0, 1.5, np.inf, np.nan),
    minibatches=(0, -1),
    discount=(-0.1, 1.1, np.nan),
    lam=(-0.1, 2),
)
BAD_TRPO = dict(
    radius=(0, np.nan, np.inf),
    damping=(0, -1),
    shrink=(0, -0.5, 1, 2),
    iterations=(0, 2.5),
    every=(0,),
    max_backtracks=(0, -1),
    discount=(1.1,),
    lam=(np.nan,),
)
BAD_SETTINGS = [(RecurrentPPO, name, x) for name, values in BAD_PPO.items() for x in values]
BAD_SETTINGS += [(RecurrentTRPO, name, x) for name, values in BAD_TRPO.items() for x in values]


@pytest.mark.parametrize("kind, name, value", BAD_SETTINGS)
def test_bad_settings_are_named(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        kind(**{name: value})


THREE_UNITS = RecurrentPolicy(1, 2, 3)
START = THREE_UNITS.init(np.random.default_rng(0))


@pytest.mark.parametrize(
    "message, change",
    [
        ("episodes", dict(episodes=0)),
        ("theta", dict(theta=START[1:])),
        ("theta", dict(theta=np.full(START.shape, np.nan))),
        ("first: -1 is ", dict(first=-1)),
        ("first: 3 is ", dict(first=3)),
        ("policy: made for", dict(sample_tasks=lambda rng: independent(rng, 5, 3))),
    ],
)
def test_bad_arguments_of_a_training_are_named(rng, message, change):
    good = dict(rng=rng, sample_tasks=lambda rng: independent(rng, 5, 2), policy=THREE_UNITS)
    good |= dict(theta=START, update=RecurrentPPO(), iterations=2, episodes=2)
    assert next(train_recurrent(**good)).iteration == 0
    with pytest.raises(ValueError, match=message):
        next(train_recurrent(**good | change))


def test_an_inner_update_is_told_from_one_of_batches(rng):
    policy = RecurrentPolicy(1, 2, 4)
    with pytest.raises(ValueError, match="^update: .*inner update.*RecurrentPPO"):
        next(
            train_recurrent(
                rng,
                lambda rng: independent(rng, 4, 2),
                policy,
                policy.init(rng),
                ppo.PPO(0.1),
                iterations=1,
                episodes=2,
            )
        )
