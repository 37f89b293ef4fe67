"""What is masked does not matter: every function that takes records, with garbage in their masks.

Each is run on clean data, and with the same data in which NaN, infinities, −1 or states that do not
exist stand wherever the mask is False. The results are equal, not only close.
"""

import inspect
from dataclasses import fields, replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from helpers import dataclasses_of_the_package, random_tasks, sections

from metarl_np import check
from metarl_np.check.enumeration import (
    enumerate_bandit_trials,
    enumerated_return,
    enumerated_trial_return,
)
from metarl_np.check.records import RecordedEpisodes
from metarl_np.compare.beliefs import DirichletBelief, FiniteBelief, Prior, counts, transitions
from metarl_np.compare.priors import fit_slip
from metarl_np.learner import advantages, returns, surrogates
from metarl_np.learner.policies import ActorCritic, SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import (
    ESTIMATORS,
    FirstOrder,
    RecordedSteps,
    Reinforce,
    reinforce_table,
)
from metarl_np.learner.rollouts import Episodes, rollout
from metarl_np.learner.trpo import TRPO
from metarl_np.meta import rl2, rl2_training, rl2_trpo, values
from metarl_np.meta.maml import meta_gradient, replay
from metarl_np.tasks.gridworld import GridWorld

GAMMA = 0.9
T, N, K, S, A = 4, 2, 6, 4, 2
MDPS = random_tasks(np.random.default_rng(0), N, S, A, 2, horizon=5, discount=GAMMA)
SOFTMAX = SoftmaxPolicy(S, A)
CRITIC = ActorCritic(SOFTMAX)
THETA = np.random.default_rng(1).normal(size=(N, S, A + 1))
LOG_PI = CRITIC.log_pi(THETA)
CLEAN = rollout(np.random.default_rng(4), MDPS, LOG_PI, K, steps=T)
MASK = CLEAN.mask
V = np.random.default_rng(4).normal(size=(N, S))

GARBAGE = {
    "NaN": [np.nan],
    "inf": [np.inf],
    "-inf": [-np.inf],
    "-1": [-1],
    "10**6": [10**6],
    "of every sort": [np.nan, np.inf, -np.inf, -1, 10**6, -(10**6)],
}
EVERY_GARBAGE = pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)


def soiled(x, mask, garbage):
    """x with garbage, one of these numbers at random, where it is masked.

    An array of integers, which holds no NaN, gets −1 instead.
    """
    drawn = np.random.default_rng(0).choice(garbage, x.shape)
    if x.dtype.kind in "iu":
        drawn = np.where(np.isfinite(drawn), drawn, -1)
    if x.ndim > mask.ndim:  # what a policy saw, or answered, in each step of a trial
        mask = mask[:, None]
    return np.where(mask, x, drawn.astype(x.dtype))


def soiled_record(record, names, garbage):
    """The same record with garbage in all that is masked of these fields."""
    arrays = {name: getattr(record, name) for name in names.split()}
    dirty = {name: soiled(x, record.mask, garbage) for name, x in arrays.items()}
    return replace(record, **dirty)


def soiled_episodes(garbage):
    return soiled_record(CLEAN, "states actions rewards", garbage)


def assert_equal(got, want):
    """Two results, arrays or lists of them, are finite and equal."""
    got = got if isinstance(got, (list, tuple)) else [got]
    want = want if isinstance(want, (list, tuple)) else [want]
    assert len(got) == len(want)
    for x, y in zip(got, want):
        assert np.isfinite(y).all()
        np.testing.assert_array_equal(x, y)


def test_the_clean_data_are_masked_truncated_and_terminated():
    assert not MASK.all() and MASK.any()
    assert CLEAN.truncated.any() and not CLEAN.truncated.all()
    assert not TRIALS.mask.all()


# ---- Episodes


def adapted(policy, inner, *, score_factor=None):
    """Episodes → all that MAML makes of them, and its gradient."""

    def run(episodes):
        theta = THETA if policy is CRITIC else THETA[..., :A]
        unknown = replace(episodes, log_pi=None)  # only the first were sampled with these θ
        path = replay(policy, theta, inner, [episodes, unknown, unknown], GAMMA)
        g = meta_gradient(policy, path, inner, score_factor=score_factor)
        return [*path.thetas, path.returns, path.query, g]

    return run


def with_derivative(function, x):
    """Episodes → function(x, episodes), and its derivative by x."""

    def run(episodes):
        def total(x):
            return anp.sum(function(x, episodes))

        return [function(x, episodes), grad(total)(x)]

    return run


def value_objective(v, episodes):
    data = [episodes, episodes]
    return values.meta_value_objective(v, data, step_size=0.1, discount=GAMMA, lam=0.8)


def recorded_surrogate(name):
    def surrogate(log_pi, episodes):
        baseline = np.where(episodes.mask, 0.3, np.nan)
        return RecordedSteps(episodes, baseline, GAMMA).surrogate(name, log_pi)

    return surrogate


def nan_where_masked(returns, episodes):
    """A user's baseline: the mean over the episodes that go on, NaN where there is none."""
    return np.where(episodes.mask, returns.mean(-1, keepdims=True), np.nan)


def finite_belief(episodes):
    copies = MDPS[[0, 0, 1]]  # each of the two tasks is a candidate, one of them twice
    even = np.full((1, 3), 1 / 3)
    return FiniteBelief(copies, even).update(episodes.part(tasks=[0])).weights


def dirichlet_belief(episodes):
    belief = DirichletBelief(Prior(1.0, 0.0, 1.0, 1.0), MDPS).update(episodes)
    return list(belief.posterior())


def ppo_objective(theta, episodes):
    """With garbage in the advantages, too."""
    advantage = np.where(episodes.mask, 0.5, np.nan)
    ppo = PPO(0.1, entropy=0.1)
    return ppo.objective(CRITIC, theta, THETA, episodes, advantage, GAMMA)


def weighed(baseline):
    """Episodes → their REINFORCE weights."""
    return lambda episodes: surrogates.reinforce_weights(episodes, GAMMA, baseline=baseline)


def adapted_with_score(estimator):
    return adapted(SOFTMAX, Reinforce(0.1, estimator=estimator), score_factor=np.ones(N))


def adapted_with_nan(estimator):
    return adapted(SOFTMAX, Reinforce(0.1, nan_where_masked, estimator))


BASELINES = {
    "no": returns.no_baseline,
    "mean over time": returns.time_mean_baseline,
    "leave-one-out": returns.leave_one_out_baseline,
    "linear": returns.linear_baseline(np.eye(S)[:, :2]),
    "NaN": nan_where_masked,
}
OF_EPISODES = {
    **{f"reinforce_weights, {name} baseline": weighed(b) for name, b in BASELINES.items()},
    "reinforce_table": lambda e: reinforce_table(e, GAMMA, S, A),
    "log_likelihood": with_derivative(surrogates.log_likelihood, LOG_PI),
    "td_errors": with_derivative(lambda v, e: advantages.td_errors(v, e, GAMMA, 0.8), V),
    "advantages, critic": lambda e: advantages.advantages(
        CRITIC, THETA, e, GAMMA, baseline=None, lam=0.8
    ),
    "advantages": lambda e: advantages.advantages(
        SOFTMAX, THETA[..., :A], e, GAMMA, baseline=returns.leave_one_out_baseline, lam=0.8
    ),
    "visits": lambda e: advantages.visits(e, S),
    "value_step": with_derivative(
        lambda v, e: values.value_step(v, e, step_size=0.1, discount=GAMMA, lam=0.8), V
    ),
    "value_error": with_derivative(lambda v, e: values.value_error(v, e, GAMMA), V),
    "meta_value_objective": with_derivative(value_objective, V),
    **{
        f"RecordedSteps.surrogate, {name}": with_derivative(recorded_surrogate(name), LOG_PI)
        for name in surrogates.SURROGATES
    },
    **{f"replay, {e}": adapted(SOFTMAX, Reinforce(0.1, estimator=e)) for e in ESTIMATORS},
    **{f"replay, {e}, score": adapted_with_score(e) for e in ESTIMATORS},
    **{f"replay, {e}, NaN baseline": adapted_with_nan(e) for e in ESTIMATORS},
    "replay, first-order PPO": adapted(SOFTMAX, FirstOrder(PPO(0.1))),
    "replay, PPO": adapted(SOFTMAX, PPO(0.1, minibatches=2, target_kl=0.1)),
    "replay, PPO, critic": adapted(CRITIC, PPO(0.1, entropy=0.1)),
    "PPO.objective": with_derivative(ppo_objective, THETA + 0.1),
    "replay, TRPO": adapted(SOFTMAX, TRPO()),
    "replay, TRPO, critic": adapted(CRITIC, TRPO()),
    "FiniteBelief.update": finite_belief,
    "DirichletBelief.update": dirichlet_belief,
    "counts": lambda e: list(counts(MDPS.shape, e)),
    "transitions": lambda e: list(transitions(e)),
    "Episodes.log_probs": lambda e: e.log_probs[e.mask],
    "Episodes.part": lambda e: surrogates.reinforce_weights(e.part([2, 0], [1]), GAMMA),
    "enumerated_return": with_derivative(
        lambda log_pi, e: enumerated_return(log_pi, e, np.full((N, K), 1 / K), GAMMA), LOG_PI
    ),
}


@EVERY_GARBAGE
@pytest.mark.parametrize("name", OF_EPISODES)
def test_what_is_masked_in_episodes_does_not_matter(name, garbage):
    run = OF_EPISODES[name]
    assert_equal(run(soiled_episodes(garbage)), run(CLEAN))


@pytest.mark.parametrize("name", OF_EPISODES)
def test_rewards_that_were_written_into_masked_places_do_not_matter(name):
    """Into what a rollout has recorded: no door sees that."""
    written = replace(CLEAN, rewards=CLEAN.rewards.copy())
    written.rewards[~MASK] = np.nan
    assert_equal(OF_EPISODES[name](written), OF_EPISODES[name](CLEAN))


@EVERY_GARBAGE
def test_slip_is_fitted_to_unmasked_steps_alone(garbage):
    grid = GridWorld.open(3, 3, discount=0.9, horizon=9, slip=0.3)
    mdps = grid.mdps([4, 8])
    clean = rollout(np.random.default_rng(0), mdps, np.full((9, 4), np.log(0.25)), 20)
    assert not clean.mask.all()
    dirty = soiled_record(clean, "states actions rewards", garbage)
    assert fit_slip(grid, [4, 8], dirty) == fit_slip(grid, [4, 8], clean)


@pytest.mark.parametrize("lam", [0.0, 0.8])
def test_a_value_that_is_not_finite_where_no_step_was_taken_does_not_matter(lam):
    """V of a terminal state, as of a critic that was never evaluated there."""
    terminal = np.where(MDPS.terminal, np.nan, V)

    def error(v):
        v = values.value_step(v, CLEAN, step_size=0.1, discount=GAMMA, lam=lam)
        return anp.sum(values.value_error(v, CLEAN, GAMMA))

    assert error(terminal) == error(V)
    np.testing.assert_array_equal(grad(error)(terminal), grad(error)(V))


def test_last_states_matter_only_to_who_asks_for_them():
    """V(s_T) counts where an episode was truncated; elsewhere s_T may be anything."""
    anything = np.where(CLEAN.truncated, CLEAN.last_states, 10**6)
    dirty = replace(CLEAN, last_states=anything)
    want = advantages.td_errors(V, CLEAN, GAMMA, 0.8)
    np.testing.assert_array_equal(advantages.td_errors(V, dirty, GAMMA, 0.8), want)


@pytest.mark.parametrize("garbage", [-1, 10**6])
def test_where_an_episode_ended_is_read_from_its_last_state(garbage):
    states = np.where(MASK, CLEAN.states, garbage)
    np.testing.assert_array_equal(
        transitions(replace(CLEAN, states=states)).after, transitions(CLEAN).after
    )


def test_what_is_harmless_is_left_as_it_is():
    """No copy: a record made anew from a rollout's arrays holds these arrays."""
    again = replace(CLEAN)
    for field in fields(Episodes):
        assert getattr(again, field.name) is getattr(CLEAN, field.name)


# ---- records for `check`


BASELINE = np.random.default_rng(7).normal(size=(T, N, K))
RECORD = check.record(
    CLEAN.states, CLEAN.actions, CLEAN.rewards, MASK, CLEAN.log_probs, baseline=BASELINE
)


def gradients(record):
    free = replace(record, log_probs=None)  # sampled with other parameters
    settings = dict(step_size=0.1, discount=GAMMA, policy=SOFTMAX)
    by_name = check.estimator_gradients(np.zeros((S, A)), [free, free], free, **settings)
    return list(by_name.values())


@EVERY_GARBAGE
def test_what_is_masked_in_a_record_does_not_matter(garbage):
    names = "states actions rewards log_probs"
    arrays = {name: soiled(getattr(CLEAN, name), MASK, garbage) for name in names.split()}
    dirty = check.record(mask=MASK, baseline=soiled(BASELINE, MASK, garbage), **arrays)
    assert_equal(gradients(dirty), gradients(RECORD))
    by_hand = soiled_record(RECORD, names + " baseline", garbage)
    assert_equal(gradients(by_hand), gradients(RECORD))


@EVERY_GARBAGE
@pytest.mark.parametrize("inner", [PPO(0.1, minibatches=2), TRPO()], ids=["PPO", "TRPO"])
def test_what_is_masked_in_a_record_does_not_matter_to_ppo_and_trpo(inner, garbage):
    def run(record):
        free = replace(record, log_probs=None)
        path = replay(SOFTMAX, THETA[..., :A], inner, [free, free], GAMMA)
        return [path.thetas[-1], meta_gradient(SOFTMAX, path, inner)]

    assert_equal(run(soiled_record(RECORD, "states actions rewards", garbage)), run(RECORD))


def test_a_critic_needs_to_know_how_records_ended():
    with pytest.raises(ValueError, match="^episodes: .*last_states and truncated"):
        replay(CRITIC, THETA, PPO(0.1), [RECORD, RECORD], GAMMA)


# ---- arrays with a mask


REWARDS = np.random.default_rng(5).normal(size=MASK.shape)
VALUES = np.random.default_rng(6).normal(size=MASK.shape)


def gae(rewards, state_values, bootstrap):
    return returns.gae(rewards, state_values, MASK, bootstrap, discount=GAMMA, lam=0.8)


@EVERY_GARBAGE
@pytest.mark.parametrize("argnum", [0, 1, 2], ids=["rewards", "values", "bootstrap"])
def test_what_is_masked_does_not_matter_to_gae_and_its_derivatives(argnum, garbage):
    clean = [REWARDS, VALUES, VALUES[0] + 0.0]
    masks = [MASK, MASK, MASK[-1]]
    dirty = [soiled(x, mask, garbage) for x, mask in zip(clean, masks)]

    def total(*arrays):
        return anp.sum(gae(*arrays) ** 2)

    assert_equal(gae(*dirty), gae(*clean))
    assert_equal(grad(total, argnum)(*dirty), grad(total, argnum)(*clean))


@EVERY_GARBAGE
@pytest.mark.parametrize("name", surrogates.SURROGATES)
def test_what_is_masked_does_not_matter_to_surrogates_and_two_derivatives(name, garbage):
    log_probs = -abs(VALUES)
    direction = np.random.default_rng(7).normal(size=MASK.shape)
    scale = {"lam": 0.7} if name == "loaded_dice" else {}

    def run(*arrays):
        def surrogate(log_probs):
            rest = (*arrays[1:], MASK, GAMMA)
            return anp.sum(surrogates.SURROGATES[name](log_probs, *rest, **scale))

        def slope(log_probs):
            return anp.sum(grad(surrogate)(log_probs) * direction)

        first = grad(surrogate)(arrays[0])
        second = first if name == "naive" else grad(slope)(arrays[0])
        return [surrogate(arrays[0]), first, second]

    clean = [log_probs, REWARDS, BASELINE]
    assert_equal(run(*(soiled(x, MASK, garbage) for x in clean)), run(*clean))


@EVERY_GARBAGE
@pytest.mark.parametrize("name", [name for name in BASELINES if name != "NaN"])
def test_masked_returns_do_not_matter_to_a_baseline(name, garbage):
    clean = returns.reward_to_go(np.where(MASK, REWARDS, 0.0), GAMMA)
    dirty = soiled(clean, MASK, garbage)
    got = BASELINES[name](dirty, CLEAN)
    assert_equal(got, BASELINES[name](clean, CLEAN))


# ---- trials of RL²


UNITS = 3
RECURRENT = rl2.RecurrentPolicy(S, A, UNITS)
WEIGHTS = RECURRENT.init(np.random.default_rng(0), float)
WEIGHTS = WEIGHTS + 0.3 * np.random.default_rng(1).normal(size=WEIGHTS.shape)
TASKS = MDPS[[0, 1, 0, 1]]
TRIALS = rl2.sample_trials(np.random.default_rng(3), TASKS, RECURRENT, WEIGHTS, 2)
NEW_OUTPUTS = TRIALS.outputs + 0.1 * np.random.default_rng(3).normal(size=TRIALS.outputs.shape)
STEPS = np.random.default_rng(4).normal(size=(3,) + TRIALS.mask.shape)


def soiled_trials(garbage):
    names = "inputs outputs states actions rewards episode time"
    return soiled_record(TRIALS, names, garbage)


def updated(update):
    """(soil, Trials) → θ after an update, with the payoffs soiled."""

    def run(soil, trials):
        rng = np.random.default_rng(0)
        return update(rng, RECURRENT, WEIGHTS, trials, soil(STEPS[0]), None, 1.0)[0]

    return run


def surrogate_and_derivative(soil, trials):
    advantage, target = soil(STEPS[0]), soil(STEPS[1])

    def loss(outputs):
        settings = dict(entropy_bonus=0.1)
        return rl2_training.trial_surrogate(outputs, trials, advantage, target, **settings)

    outputs = soil(NEW_OUTPUTS)
    return [loss(outputs), grad(loss)(outputs)]


def closed_form_derivative(soil, trials):
    old, advantage, target = (soil(x) for x in STEPS)
    return rl2_training.trial_surrogate_gradient(
        soil(NEW_OUTPUTS), trials, old, advantage, target, steps=9, entropy_bonus=0.1
    )


def trained(soil, trials):
    """θ after an iteration whose payoffs are a user's, soiled."""
    garbage = soil(STEPS[0])[~TRIALS.mask][0]

    def soiled_payoffs(mdps, trials):
        return np.where(trials.mask, rl2.regrets(mdps, trials), garbage)

    (record,) = rl2_training.train_recurrent(
        np.random.default_rng(0),
        lambda rng: TASKS,
        RECURRENT,
        WEIGHTS,
        rl2_training.RecurrentPPO(),
        iterations=1,
        episodes=2,
        payoffs=soiled_payoffs,
    )
    return record.theta


def advantages_of_trials(soil, trials):
    both = rl2_training.trial_advantages(trials, soil(STEPS[0]), discount=0.9, lam=0.8)
    return [x[trials.mask] for x in both]


def fisher_times(soil, trials):
    return rl2_trpo.trial_fisher_vector_product(RECURRENT, WEIGHTS, trials, 0.1 * WEIGHTS)


def derivative_of_outputs(soil, trials):
    def total(theta):
        mask = trials.mask[:, None]
        return anp.sum(anp.where(mask, rl2.outputs(RECURRENT, theta, trials), 0.0) ** 2)

    return [total(WEIGHTS), grad(total)(WEIGHTS)]


def enumerated(soil, trials):
    def total(theta):
        return enumerated_trial_return(RECURRENT, theta, trials, np.full(len(TASKS), 0.25))

    return [total(WEIGHTS), grad(total)(WEIGHTS)]


def kl_and_derivative(soil, trials):
    outputs = soil(NEW_OUTPUTS)
    return [rl2_trpo.trial_kl(outputs, trials), grad(rl2_trpo.trial_kl)(outputs, trials)]


def of_part(soil, trials):
    return derivative_of_outputs(soil, trials.part([2, 0]))


def gradient_of_trials(soil, trials):
    def square(outputs, part, lanes):
        return np.where(part.mask[:, None], outputs, 0.0)

    return rl2_training.trial_gradient(RECURRENT, WEIGHTS, trials, np.arange(4), square)


OF_TRIALS = {
    "expected_rewards": lambda soil, trials: rl2.expected_rewards(TASKS, trials),
    "regrets": lambda soil, trials: rl2.regrets(TASKS, trials),
    "outputs": derivative_of_outputs,
    "Trials.part": of_part,
    "taken_log_probs": lambda soil, trials: rl2_training.taken_log_probs(trials.outputs, trials)[
        trials.mask
    ],
    "trial_advantages": advantages_of_trials,
    "trial_surrogate": surrogate_and_derivative,
    "trial_surrogate_gradient": closed_form_derivative,
    "trial_gradient": gradient_of_trials,
    "trial_kl": kl_and_derivative,
    "trial_fisher_vector_product": fisher_times,
    "RecurrentPPO": updated(rl2_training.RecurrentPPO()),
    "RecurrentTRPO": updated(rl2_trpo.RecurrentTRPO(every=1)),
    "train_recurrent": trained,
    "enumerated_trial_return": enumerated,
}


@EVERY_GARBAGE
@pytest.mark.parametrize("name", OF_TRIALS)
def test_what_is_masked_in_trials_does_not_matter(name, garbage):
    run = OF_TRIALS[name]
    got = run(lambda x: soiled(x, TRIALS.mask, garbage), soiled_trials(garbage))
    assert_equal(got, run(lambda x: soiled(x, TRIALS.mask, [0.0]), TRIALS))


def test_masked_steps_are_no_part_of_an_enumerated_return():
    """With the second pull masked it is the return of one pull, ½ whatever is done."""
    bandit = rl2.RecurrentPolicy(1, 2, 2)
    trials, _ = enumerate_bandit_trials(bandit, 2)
    first = replace(trials, mask=trials.episode == 0)
    theta = bandit.init(np.random.default_rng(0), float)
    # each of the 4 outcomes of the first pull, which has the chance ½ if its arm is pulled, is in 4
    # histories
    probability = np.full(16, 0.5 / 4)
    assert enumerated_trial_return(bandit, theta, first, probability) == pytest.approx(0.5)


# ---- what is a mask


TYPES = {"int": int, "float": float, "float32": np.float32, "uint8": np.uint8}


def gae_of(mask):
    return returns.gae(REWARDS, VALUES, mask, VALUES[0], discount=GAMMA, lam=0.8)


def record_of(mask):
    return check.record(CLEAN.states, CLEAN.actions, CLEAN.rewards, mask).mask


def trials_of(mask):
    shape = mask.shape[0], mask.shape[1] * mask.shape[2]
    zeros = np.zeros(shape, int)
    mask = mask.reshape(shape)
    return rl2.Trials(None, None, zeros, zeros, zeros, zeros, zeros, mask).mask


WHO_TAKES_EPISODES = {
    "Episodes": lambda mask: replace(CLEAN, mask=mask).mask,
    "record": record_of,
    "RecordedEpisodes": lambda mask: replace(RECORD, mask=mask).mask,
    "Trials": trials_of,
    "gae": gae_of,
}
WHO_TAKES_A_MASK = WHO_TAKES_EPISODES | {
    name: lambda mask, f=surrogate: f(VALUES, REWARDS, BASELINE, mask, GAMMA)
    for name, surrogate in surrogates.SURROGATES.items()
}
EVERY_TAKER = pytest.mark.parametrize("name", WHO_TAKES_A_MASK)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@EVERY_TAKER
def test_a_mask_of_numbers_is_a_mask(name, kind):
    got = WHO_TAKES_A_MASK[name](MASK.astype(kind))
    want = WHO_TAKES_A_MASK[name](MASK)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("number", [2, 0.5, -1, np.nan])
@EVERY_TAKER
def test_a_mask_of_other_numbers_is_refused(name, number):
    mask = MASK * np.asarray(1, np.asarray(number).dtype)
    mask[0, 1, 2] = number
    with pytest.raises(ValueError, match="^mask: expected true and false, or 1 and 0"):
        WHO_TAKES_A_MASK[name](mask)


def dones(mask):
    """True once, at the last step of an episode."""
    goes_on = np.pad(mask[1:], ((0, 1), (0, 0), (0, 0)))
    return mask & ~goes_on


def late(mask):
    """All False in the first step, and True later."""
    return np.arange(len(mask))[:, None, None] >= np.ones(mask.shape)


@pytest.mark.parametrize("kind", [bool, int, float])
@pytest.mark.parametrize("wrong", [dones, np.logical_not, late])
@pytest.mark.parametrize("name", WHO_TAKES_EPISODES)
def test_dones_and_inverted_masks_are_refused_with_a_hint(name, wrong, kind):
    with pytest.raises(ValueError, match="^mask: .*True while an episode goes on.*`dones`"):
        WHO_TAKES_EPISODES[name](wrong(MASK).astype(kind))


def test_the_hint_makes_the_mask_of_dones():
    made = np.cumsum(dones(MASK), 0) - dones(MASK) == 0
    np.testing.assert_array_equal(made, MASK)


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_whether_an_episode_was_truncated_may_be_a_number(kind):
    numbers = replace(CLEAN, truncated=CLEAN.truncated.astype(kind))
    assert numbers.truncated.dtype == bool
    np.testing.assert_array_equal(numbers.truncated, CLEAN.truncated)


def test_data_of_another_policy_are_found_by_a_mask_of_numbers():
    """As indices 0 and 1 would look at the first two time steps only."""
    other = LOG_PI[..., ::-1]
    wrong = replace(CLEAN, mask=MASK.astype(int), log_pi=other)
    with pytest.raises(ValueError, match="do not belong to the parameters"):
        replay(SOFTMAX, THETA[..., :A], Reinforce(0.1), [wrong], GAMMA)


# ---- nobody is left out


NUMBERS_OF_EPISODES = """
    adapt train train_multi_task adapt_values train_values sample_trials train_recurrent rollout
    enumerate_adaptations expected_adapted_return expected_adapted_return_gradient
    expected_meta_gradient expected_gradients
    play_mdps act play_bandits tune optimal_returns""".split()
THE_MASK_ITSELF = ["require_mask", "harmless", "unmasked"]
IN_OTHER_ROWS = """
    estimator_gradients replay no_baseline time_mean_baseline leave_one_out_baseline
    naive lvc dice loaded_dice gae record fit_slip meta_objective
    diagnose require_records standardise""".split()
TAKES_RECORDS = {"mask", "episodes", "trials", "recorded", "support"}


def test_every_function_that_takes_records_has_a_row():
    takers = set()
    for section in sections():
        for name, function in inspect.getmembers(section, inspect.isfunction):
            public = function.__module__ == section.__name__ and not name.startswith("_")
            if public and TAKES_RECORDS & set(inspect.signature(function).parameters):
                takers.add(name)
    rows = {row.split(",")[0] for row in (*OF_EPISODES, *OF_TRIALS)}
    missing = takers - rows - {*NUMBERS_OF_EPISODES, *THE_MASK_ITSELF, *IN_OTHER_ROWS}
    assert not missing


def test_every_record_with_a_mask_is_soiled_here():
    masked = {kind for kind in dataclasses_of_the_package() if "mask" in kind.__dataclass_fields__}
    private = {kind for kind in masked if kind.__name__.startswith("_")}
    assert masked - private == {Episodes, RecordedEpisodes, rl2.Trials}


@pytest.mark.parametrize("garbage", [-1, 10**6])
def test_a_state_that_does_not_exist_may_stand_last_and_where_masked(garbage):
    """Who does not ask how an episode ended may have written the same everywhere."""
    mask = np.array([[[True, True]], [[True, False]]])
    states = np.where(mask, 1, garbage)
    numbers = np.zeros(mask.shape)
    log_pi = np.log(np.full((1, 2, 2), 0.5))
    last = np.full((1, 2), garbage)
    episodes = Episodes(states, states * 0, numbers, mask, log_pi, last, last == 7)
    np.testing.assert_array_equal(episodes.states, np.where(mask, 1, 0))


@pytest.mark.parametrize("state", [-1, 3])
def test_a_step_in_a_state_that_does_not_exist_is_not_counted_elsewhere(state):
    states = np.zeros((2, 2, 2), int)
    states[0, 1, 0] = state
    with pytest.raises(ValueError, match="^states: outside 0..2"):
        surrogates.scatter(np.ones(states.shape), states, states * 0, 3, 2)
