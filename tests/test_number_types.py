"""Numbers of every sort at every door: the same result, or an error that names the argument.

Every argument of the table CASES (test_bad_input), and of MORE, that is a number or an array of
numbers is given in each of the types below. The values are those that float16 can hold, so nothing
is rounded, or where these are refused (what sums to one may not) those that float32 can.
"""

import dataclasses
import warnings
from dataclasses import is_dataclass
from functools import lru_cache

import numpy as np
import pytest
from autograd import grad
from helpers import random_tasks
from test_bad_input import (
    CASES,
    E,
    HIDDEN,
    LOG_PI,
    ONE,
    RECURRENT,
    SOFTMAX,
    STEPS,
    TABLE_2,
    TASKS,
    THETA_2,
    P,
    R,
    case,
    run,
)

from metarl_np import (
    bandits,
    bayes,
    beliefs,
    enumeration,
    exact,
    gridworld,
    gru,
    maml,
    mdp,
    optim,
    planners,
    policies,
    ppo,
    priors,
    reinforce,
    returns,
    rl2,
    rl2_training,
    rollouts,
    strategies,
    study,
    surrogates,
    trpo,
    values,
)

ARMS = dict(a=[[1.0, 2.0], [3.0, 1.0]], b=[[1.0, 1.0], [2.0, 2.0]], t=3)
COUNTS = beliefs.counts(TASKS.shape, E)
BELIEF = beliefs.DirichletBelief(planners.BLIND, TASKS)
GRID = gridworld.GridWorld("S.G", discount=0.9, horizon=5)
V = np.array([[0.5, 0.25, 0.0], [1.0, 2.0, 0.0]])
DENSE = np.array([P, P])
EARNED = np.array([R, R])
VALUE_STEPS = dict(step_size=0.125, discount=0.875, lam=0.5)

MORE = {
    "strategies.egreedy": case(strategies.egreedy, ARMS | dict(rng=None, epsilon=0.5)),
    "strategies.ucb1": case(strategies.ucb1, ARMS | dict(rng=None, c=0.5)),
    "strategies.thompson": case(strategies.thompson, ARMS | dict(rng=None, samples=3)),
    "strategies.gittins": case(strategies.gittins, ARMS | dict(rng=None, discount=0.5)),
    "strategies.gittins_index": case(strategies.gittins_index, dict(discount=0.5, pulls=3)),
    "strategies.play_bandits": case(
        strategies.play_bandits,
        dict(rng=None, means=[[0.5, 0.25]], pulls=3, strategy=strategies.ucb1, value=0.5),
    ),
    "planners.planned_values": case(
        planners.planned_values, dict(mdps=TASKS, R=EARNED, P=DENSE, slack=EARNED)
    ),
    "planners.optimistic": case(planners.optimistic, dict(P=DENSE, slack=EARNED, v=V)),
    "planners.greedy_plan": case(
        planners.greedy_plan, dict(rng=None, belief=BELIEF, epsilon=0.5, beta=0.5)
    ),
    "planners.opsrl": case(planners.opsrl, dict(rng=None, belief=BELIEF, samples=2)),
    "planners.ucrl2": case(planners.ucrl2, dict(rng=None, belief=BELIEF, scale=0.5, delta=0.25)),
    "planners.play_mdps": case(
        planners.play_mdps,
        dict(rng=None, mdps=TASKS, belief=BELIEF, episodes=2, plan=planners.beb, value=0.5),
    ),
    "planners.act": case(planners.act, dict(rng=None, mdps=TASKS, belief=BELIEF, episodes=2)),
    "priors.fit_goals": case(priors.fit_goals, dict(grid=GRID, goals=[1, 2])),
    "priors.fit_prior": case(
        priors.fit_prior,
        dict(
            next_counts=COUNTS.next_states,
            visits=COUNTS.visits,
            total=COUNTS.total,
            squares=COUNTS.squares,
            iterations=3,
        ),
    ),
    "beliefs.Prior": case(beliefs.Prior, dict(concentration=1.0, mean=0.5, std=1.0, noise=2.0)),
    "beliefs.FiniteBelief": case(
        beliefs.FiniteBelief, dict(candidates=TASKS, weights=[[0.5, 0.5], [0.25, 0.75]])
    ),
    "bayes.bayes_optimal": case(bayes.bayes_optimal, dict(arms=2, pulls=3, max_states=100)),
    "bayes.optimal_returns": case(
        bayes.optimal_returns,
        dict(mdps=TASKS, episodes=2, prior=[0.5, 0.5], max_posteriors=1000),
    ),
    "bayes.dependent_optimal": case(bayes.dependent_optimal, dict(difficulty="easy", pulls=3)),
    "values.value_step": case(values.value_step, dict(v=V, episodes=E, **VALUE_STEPS)),
    "values.value_error": case(values.value_error, dict(v=V, episodes=E, discount=0.5)),
    "values.adapt_values": case(
        values.adapt_values,
        dict(
            rng=None,
            mdps=TASKS,
            log_pi=LOG_PI,
            v=V,
            steps=1,
            step_size=0.5,
            episodes=2,
            length=1,
            lam=0.5,
        ),
    ),
    "returns.discounts": case(returns.discounts, dict(discount=0.5, steps=3, like=STEPS)),
    "returns.discounted_return": case(returns.discounted_return, dict(rewards=STEPS, discount=0.5)),
    "returns.reward_to_go": case(returns.reward_to_go, dict(rewards=STEPS, discount=0.5)),
    "returns.gae": case(
        returns.gae,
        dict(rewards=STEPS, values=STEPS, mask=STEPS > 0, bootstrap=0.5, discount=0.5, lam=0.5),
    ),
    "returns.time_mean_baseline": case(returns.time_mean_baseline, dict(returns=STEPS)),
    "policies.log_softmax": case(policies.log_softmax, dict(x=V)),
    "policies.entropy": case(policies.entropy, dict(log_p=LOG_PI)),
    "policies.sum_last": case(policies.sum_last, dict(x=V)),
    "surrogates.magic_box": case(surrogates.magic_box, dict(x=V)),
    "surrogates.log_likelihood": case(surrogates.log_likelihood, dict(log_pi=TABLE_2, episodes=E)),
    "trpo.natural_direction": case(
        trpo.natural_direction,
        dict(
            policy=SOFTMAX,
            theta=THETA_2,
            g=THETA_2,
            nu=[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]],
            damping=0.5,
        ),
    ),
}
# Arguments of rooms, which take them from doors, and those that are called by another name there.
ROOMS = {
    ("returns.discounts", "like"),
    ("policies.sum_last", "x"),
    ("rl2_training.trial_surrogate_gradient ", "steps"),
    ("enumeration.enumerated_return ", "dynamics"),
    ("meta_gradients.expected_adapted_return_gradient ", "theta"),
    ("mdp.MDP.__getitem__ ", "tasks"),
    ("checkpoint.resumable ", "theta"),
}
ALL = {f"{name} ": row for name, row in CASES.items()} | MORE


class WithArray:
    """What pandas' objects are to NumPy: no array, but it makes one."""

    def __init__(self, x):
        self.x = np.asarray(x)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.x, dtype)


def as_tuple(x):
    return tuple(map(as_tuple, x)) if np.ndim(x) else np.asarray(x).item()


def strided(x):
    """Every second number of a larger array, in its last axis."""
    return np.repeat(x, 2, -1)[..., ::2]


def reversed_in_memory(x):
    return x[::-1].copy()[::-1]


SCALARS = {
    name: getattr(np, name)
    for name in ("int8", "uint8", "uint64", "float16", "float32", "float64", "longdouble")
} | {"0-d array": np.array, "__array__": WithArray, "masked array": np.ma.array}
ARRAYS = {
    name: lambda x, name=name: x.astype(name)
    for name in "int8 uint8 uint64 bool float16 float32 float64 longdouble >f8 >i4".split()
} | {
    "list": np.ndarray.tolist,
    "tuple": as_tuple,
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": reversed_in_memory,
    "float32, Fortran": lambda x: np.asfortranarray(x.astype(np.float32)),
    "float32, strided": lambda x: strided(x.astype(np.float32)),
    "__array__": WithArray,
    "masked array": np.ma.array,
}


def is_numbers(x):
    try:
        x = np.asarray(x)
    except ValueError:
        return False
    return x.dtype.kind in "biuf" and x.size > 0


def numeric_arguments():
    """(name, argument, type) of all that is to be tried."""
    for name, (_, good, _) in ALL.items():
        for argument, x in good.items():
            if is_numbers(x) and not isinstance(x, bool) and (name, argument) not in ROOMS:
                sampled = (
                    name.startswith("rl2") and argument == "theta"
                )  # rounding is another action
                kinds = SCALARS if np.ndim(x) == 0 else ARRAYS
                for kind in kinds:
                    if not (sampled and "float32" in kind):
                        yield name, argument, kind


def call(name, argument, x):
    """The result of the row's function, with x for that argument and a generator of seed 0."""
    function, good, _ = ALL[name]
    fresh = {"rng": np.random.default_rng(0)} if "rng" in good else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run(function, good | fresh | {argument: x})


@lru_cache(maxsize=None)
def reference(name, argument):
    """(values, result): the values as plain NumPy numbers that fit into narrow types, and what they
    lead to.
    """
    x = np.asarray(ALL[name][1][argument])
    x = x.astype(float) if x.dtype.kind == "f" else x
    for narrow in (np.float16, np.float32):
        rounded = x.astype(narrow).astype(x.dtype)
        try:
            good = rounded.item() if rounded.ndim == 0 else rounded
            return good, call(name, argument, good)
        except ValueError:
            continue
    raise AssertionError("the good value is refused")


def leaves(result):
    """Every number and array in a result."""
    if isinstance(result, (list, tuple)):
        return [leaf for part in result for leaf in leaves(part)]
    if isinstance(result, dict):
        return leaves(list(result.values()))
    if is_dataclass(result) and not isinstance(result, type):
        return leaves(vars(result))
    return [result] if isinstance(result, (bool, int, float, np.generic, np.ndarray)) else []


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("name, argument, kind", list(numeric_arguments()))
def test_the_type_of_a_number_does_not_matter(name, argument, kind):
    good, expected = reference(name, argument)
    if np.ndim(good):
        x = ARRAYS[kind](good)
    else:
        with np.errstate(over="ignore"):
            whole_that_fits = kind not in ("int8", "uint8") or abs(good) < 128
            x = SCALARS[kind](good) if whole_that_fits else good
    if not np.array_equal(np.asarray(x), good, equal_nan=True):
        pytest.skip("this type cannot hold these values")
    try:
        got = call(name, argument, x)
    except ValueError as error:
        floats_for_integers = (
            np.asarray(good).dtype.kind in "iu" and np.asarray(x).dtype.kind in "fb"
        )
        assert floats_for_integers, f"refused: {error}"
        assert argument in str(error)
        return
    single = "float32" in kind and name.startswith(
        ("gru", "rl2", "optim", "policies", "surrogates")
    )
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if single else 1e-12, atol=1e-5 if single else 0)
        same = np.asarray(a).dtype == np.asarray(b).dtype
        assert single or same or name in ("rollouts.Episodes ", "estimators.record ")


def masked_arguments():
    return sorted({row[:2] for row in numeric_arguments() if np.ndim(ALL[row[0]][1][row[1]])})


@pytest.mark.parametrize("name, argument", masked_arguments())
def test_masked_entries_are_refused_by_name(name, argument):
    x = np.ma.array(ALL[name][1][argument])
    x[(0,) * x.ndim] = np.ma.masked
    with pytest.raises(ValueError, match=f"{argument}.*masked"):
        call(name, argument, x)


# ---- an option's type never changes that of the parameters


@pytest.mark.parametrize("step_size", [np.float64(0.5), np.longdouble(0.5), np.float16(0.5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("optimiser", [optim.ascent, optim.adam])
def test_a_step_size_leaves_the_type_of_the_parameters(optimiser, dtype, step_size):
    theta, _ = optimiser(np.ones(3, dtype), np.ones(3, dtype), step_size=step_size)
    assert theta.dtype == dtype


@pytest.mark.parametrize("number", [np.float64, np.longdouble, np.float16])
def test_options_of_recurrent_training_leave_float32_parameters(number):
    options = dict(step_size=number(0.125), entropy=number(0.5), max_norm=number(0.5))
    run = rl2_training.train_recurrent(
        np.random.default_rng(0),
        lambda rng: TASKS,
        RECURRENT,
        HIDDEN.astype(np.float32),
        rl2_training.RecurrentPPO(**options),
        iterations=np.int64(2),
        episodes=np.int8(2),
    )
    assert [record.theta.dtype for record in run] == [np.float32, np.float32]


@pytest.mark.parametrize("true", [True, np.True_, np.array(True)])
@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda true: policies.SoftmaxPolicy(3, true), "n_actions"),
        (lambda true: rollouts.rollout(np.random.default_rng(0), TASKS, LOG_PI, true), "episodes"),
        (lambda true: bandits.independent(np.random.default_rng(0), 2, true), "arms"),
        (lambda true: mdp.MDP.from_dense(P, R, true, discount=1, horizon=2), "start"),
        (lambda true: mdp.MDP.from_dense(P, R, 0, discount=1, horizon=true), "horizon"),
        (lambda true: ppo.PPO(0.1, epochs=true), "epochs"),
        (lambda true: GRID.render(goal=true), "goal"),
    ],
)
def test_true_is_no_number_of_things(call, argument, true):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(true)


def test_float32_probabilities_of_any_layout_are_welcome():
    """In float32, along the strided axis, their sums would be off by 1e-5."""
    s, a = 1000, 2
    dense = np.full((s, s, a), 1 / s, np.float32).transpose(0, 2, 1)
    tasks = mdp.MDP.from_dense(dense, np.zeros((s, a)), 0, discount=0.9, horizon=3)
    np.testing.assert_allclose(tasks.probabilities, 1 / s, rtol=1e-12)


def test_float16_probabilities_are_welcome_and_sum_to_one(rng):
    dense = rng.dirichlet(np.ones(3), (3, 2)).astype(np.float16)
    start = np.array([1 / 3, 1 / 3, 1 / 3], np.float16)
    tasks = mdp.MDP.from_dense(dense, R, start, discount=0.9, horizon=2)
    np.testing.assert_allclose(tasks.probabilities.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(tasks.start.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("dtype, close", [(np.float16, 1e-2), (np.float32, 1e-5)])
def test_narrow_log_probabilities_are_welcome(dtype, close):
    got = exact.expected_return(ONE, LOG_PI.astype(dtype))
    assert got.dtype == float
    np.testing.assert_allclose(got, exact.expected_return(ONE, LOG_PI), rtol=close)


def test_a_list_is_not_joined_to_another():
    theta, _ = optim.ascent([0.0], [1.0], step_size=2)
    assert theta.tolist() == [2.0]


def test_a_number_has_no_time():
    with pytest.raises(ValueError, match="^rewards: expected shape"):
        returns.gae(1.0, 1.0, True, 0.0, discount=1, lam=1)


def test_autograd_goes_through_parameters_of_any_type():
    def total(theta):
        return SOFTMAX.log_pi(theta)[0, 0]

    expected = grad(total)(np.ones((3, 2)))
    np.testing.assert_allclose(grad(total)(np.ones((3, 2), int)), expected)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint64])
def test_sizes_of_narrow_types_do_not_overflow(kind):
    assert gru.GRU(kind(20), kind(30), kind(20)).size == gru.GRU(20, 30, 20).size
    _, probability = enumeration.enumerate_bandit_trials(rl2.RecurrentPolicy(1, 2, 2), kind(5))
    assert probability.shape == (4**5,)


def test_an_array_without_axes_is_no_seed():
    with pytest.raises(ValueError, match="^seeds: .*expected integers"):
        study.study(print, [np.array(4)])


# ---- what the table does not see


@pytest.mark.parametrize("number", [2**63, 2**64 - 2048])
def test_what_only_uint64_can_hold_does_not_become_negative(number):
    assert returns.reward_to_go([number], 1.0) == [float(number)]
    arms = bandits.bernoulli([[0.5]])
    paid = dataclasses.replace(arms, rewards=np.full((1, 1, 1, 2), number, np.uint64))
    assert (paid.rewards == float(number)).all()


def test_the_largest_uint64_is_not_the_last_task():
    with pytest.raises(ValueError, match="tasks: .* is outside 0..1"):
        TASKS[np.uint64(2**64 - 1)]


SORTS = dict(
    list=lambda x: x.tolist(),
    int=lambda x: x.astype(int),
    int8=lambda x: x.astype(np.int8),
    float16=lambda x: x.astype(np.float16),
    float32=lambda x: x.astype(np.float32),
    longdouble=lambda x: x.astype(np.longdouble),
    masked=np.ma.array,
)


@pytest.mark.parametrize("sort", SORTS.values(), ids=SORTS)
@pytest.mark.parametrize("critic", [False, True], ids=["no critic", "critic"])
@pytest.mark.parametrize(
    "inner",
    [
        *(reinforce.Reinforce(0.1, estimator=name) for name in reinforce.ESTIMATORS),
        ppo.PPO(0.1),
        ppo.PPO(0.1, target_kl=0.01, entropy=0.1),
        trpo.TRPO(),
    ],
    ids=lambda inner: getattr(inner, "estimator", type(inner).__name__),
)
def test_an_inner_update_takes_parameters_of_every_sort(inner, critic, sort):
    tasks = random_tasks(np.random.default_rng(0), 2, 3, 2, 2, horizon=4)
    policy = policies.SoftmaxPolicy(3, 2)
    policy = policies.ActorCritic(policy) if critic else policy
    episodes = rollouts.rollout(np.random.default_rng(0), tasks, policy.log_pi(policy.init()), 4)
    theta = np.random.default_rng(1).integers(-2, 3, (2, *policy.shape)) * 1.0

    def updated(theta):
        return inner(policy, theta, inner.prepare(policy, theta, episodes, 0.9))

    np.testing.assert_allclose(updated(sort(theta)), updated(theta), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sort", SORTS.values(), ids=SORTS)
def test_a_fitted_baseline_takes_returns_of_every_sort(sort):
    whole = np.random.default_rng(2).integers(-3, 4, E.rewards.shape) * 1.0
    baseline = returns.linear_baseline(np.eye(E.log_pi.shape[1]))
    np.testing.assert_allclose(baseline(sort(whole), E), baseline(whole, E), rtol=1e-12)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_a_number_of_pulls_does_not_overflow(kind):
    largest = np.iinfo(kind).max
    arms = np.ones((1, 2))
    expected = strategies.ucb1(None, arms, arms, int(largest), 1.0)
    np.testing.assert_array_equal(strategies.ucb1(None, arms, arms, kind(largest), 1.0), expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_a_step_and_what_a_policy_sees_take_indices_of_every_type(kind):
    states = np.array([1, 0], kind)
    table = rollouts.successor_table(TASKS)
    args = (np.random.default_rng(0), TASKS, table)
    rewards, _ = rollouts.step(*args, states, states)
    assert rewards.shape == (2,)
    policy = rl2.RecurrentPolicy(300, 2, 1)
    seen = np.zeros((policy.net.inputs, 2))
    policy.observe(seen, states, states, 0.0, False)
    assert seen[301, 0] == seen[300, 1] == 1


@pytest.mark.parametrize("estimator", ["naive", "dice"])
def test_a_baseline_that_gives_no_numbers_is_named(estimator):
    update = reinforce.Reinforce(0.1, estimator=estimator, baseline=lambda returns, episodes: None)
    with pytest.raises(ValueError, match="^baseline: "):
        update.prepare(SOFTMAX, np.zeros((2, *SOFTMAX.shape)), E, 0.9)


def test_centred_returns_may_be_a_list():
    np.testing.assert_array_equal(maml.centred_returns([1, 3]), [-2, 2])
