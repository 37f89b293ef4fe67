"""Copies keep what the original promises: what is read-only stays so, and no cache goes with them.

NumPy forgets it: an array that was pickled, or copied with `copy.deepcopy`, can be written to.
"""

import copy
import pickle
from dataclasses import fields, replace
from functools import cached_property

import numpy as np
import pytest
from helpers import dataclasses_of_the_package, random_tasks

from metarl_np import check
from metarl_np.arguments import Record
from metarl_np.compare.beliefs import Counts, DirichletBelief, FiniteBelief, Prior
from metarl_np.learner.alias import sampling_tables
from metarl_np.learner.policies import ActorCritic, LogisticPolicy, SoftmaxPolicy
from metarl_np.learner.ppo import PPO
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.rollouts import rollout
from metarl_np.learner.trpo import TRPO
from metarl_np.meta import maml, rl2, rl2_training
from metarl_np.runs.study import Result
from metarl_np.tasks import exact

MDPS = random_tasks(np.random.default_rng(0), 2, 3, 2, 2, horizon=4, reward_noise=0.1)
POLICY = SoftmaxPolicy(3, 2)
FEATURES = np.ones((3, 2))
THETA = np.zeros((2, 3, 2))
LOG_PI = POLICY.log_pi(THETA)
EPISODES = rollout(np.random.default_rng(0), MDPS, LOG_PI, 4)
ENDLESS = rollout(np.random.default_rng(0), MDPS.auto_reset(), LOG_PI, 4)  # its mask is broadcast
RECURRENT = rl2.RecurrentPolicy(3, 2, 2)
RECORDED = check.record(EPISODES.states, EPISODES.actions, EPISODES.rewards, EPISODES.mask)


def iteration():
    sizes = dict(iterations=1, steps=1, episodes=4, step_size=0.1)
    rng = np.random.default_rng(0)
    return next(maml.train(rng, lambda rng: MDPS, POLICY, THETA[0], Reinforce(0.1), **sizes))


def recurrent_iteration():
    theta = RECURRENT.init(np.random.default_rng(0))
    update = rl2_training.RecurrentPPO()
    settings = dict(iterations=1, episodes=2)
    arguments = (np.random.default_rng(0), lambda rng: MDPS, RECURRENT, theta, update)
    return next(rl2_training.train_recurrent(*arguments, **settings))


def trials():
    """With nothing masked, since `replace` puts 0 there."""
    rng = np.random.default_rng(0)
    return rl2.sample_trials(rng, MDPS.auto_reset(), RECURRENT, RECURRENT.init(rng), 2)


NOISELESS = replace(MDPS, reward_noise=0.0)
RECORDS = {
    "MDP": MDPS,
    "MDP of some tasks": MDPS[[1, 0, 1]],
    "MDP of a slice": MDPS[:1],
    "MDP with time": MDPS.with_time(),
    "MDP, auto-reset": MDPS.auto_reset(),
    "SoftmaxPolicy": POLICY,
    "SoftmaxPolicy, features": SoftmaxPolicy(3, 2, FEATURES),
    "LogisticPolicy, features": LogisticPolicy(3, 2, FEATURES),
    "ActorCritic": ActorCritic(LogisticPolicy(3, 2, FEATURES)),
    "Scores": POLICY.scores(THETA),
    "SamplingTables": sampling_tables(MDPS, LOG_PI),
    "AliasTables": sampling_tables(MDPS, LOG_PI).draws[0],
    "Episodes": EPISODES,
    "Episodes that never end": ENDLESS,
    "Episodes, a part": EPISODES.part([0, 2]),
    "RecordedEpisodes": RECORDED,
    "RecordedSteps": Reinforce(0.1, estimator="dice").prepare(POLICY, THETA, EPISODES, 0.9),
    "PPOData": PPO(0.1).prepare(POLICY, THETA, EPISODES, 0.9),
    "TRPOData": TRPO().prepare(POLICY, THETA, EPISODES, 0.9),
    "Adaptation": maml.replay(POLICY, THETA, Reinforce(0.1), [EPISODES], 0.9),
    "Iteration": iteration(),
    "Trials": trials(),
    "RecurrentIteration": recurrent_iteration(),
    "FiniteBelief": FiniteBelief(NOISELESS, [[0.5, 0.5]]),
    "DirichletBelief": DirichletBelief(Prior(1.0, 0.0, 1.0, 1.0), MDPS),
    "Result": Result(0, {}, {"array": np.ones(2)}),
}
COPIES = {
    **{f"pickle {n}": n for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": replace,
}
EVERY_RECORD = pytest.mark.parametrize("name", RECORDS)
EVERY_COPY = pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
# what is read-only in every array that it computes, too
READ_ONLY = [name for name in RECORDS if name.startswith(("MDP", "Softmax", "Logistic", "Actor"))]


def copied(record, way):
    return way(record) if callable(way) else pickle.loads(pickle.dumps(record, protocol=way))


def arrays(x):
    """{place: array} of all that stand in a record, and in the records, tuples and lists in it."""
    if isinstance(x, np.ndarray):
        return {"": x}
    if isinstance(x, Record):
        parts = {field.name: getattr(x, field.name) for field in fields(x)}
    elif isinstance(x, (list, tuple)):
        parts = dict(enumerate(x))
    else:
        return {}
    found = {}
    for name, part in parts.items():
        found |= {f".{name}{place}": array for place, array in arrays(part).items()}
    return found


def computed(record):
    """{place: array} of the cached properties of a record."""
    found = {}
    for name in dir(type(record)):
        if isinstance(getattr(type(record), name), cached_property):
            values = arrays(getattr(record, name))
            found |= {f".{name}{place}": array for place, array in values.items()}
    return found


@EVERY_COPY
@EVERY_RECORD
def test_a_copy_has_the_same_values_and_the_same_is_read_only(name, way):
    record = RECORDS[name]
    before = arrays(record)
    computed(record)  # a cache must not make a difference
    after = arrays(copied(record, way))
    assert after.keys() == before.keys()
    for place, array in before.items():
        np.testing.assert_array_equal(after[place], array)
        assert after[place].dtype == array.dtype
        assert array.flags.writeable or not after[place].flags.writeable, place


@EVERY_COPY
@pytest.mark.parametrize("name", READ_ONLY + ["SamplingTables", "AliasTables", "FiniteBelief"])
def test_nothing_can_be_written_into_what_is_read_only(name, way):
    record = RECORDS[name]
    computed(record)
    again = copied(record, way)
    for place, array in (arrays(again) | computed(again)).items():
        assert not array.flags.writeable, place


@EVERY_RECORD
def test_a_pickle_does_not_hold_what_can_be_computed_again(name):
    record = copied(RECORDS[name], copy.copy)
    before = len(pickle.dumps(record))
    computed(record)
    assert len(pickle.dumps(record)) == before


@EVERY_COPY
def test_a_copy_of_an_mdp_gives_the_same_answers(way):
    again = copied(MDPS, way)
    np.testing.assert_array_equal(exact.optimal_return(again), exact.optimal_return(MDPS))
    one, other = (rollout(np.random.default_rng(1), mdps, LOG_PI, 5) for mdps in (MDPS, again))
    np.testing.assert_array_equal(one.rewards, other.rewards)


def test_copies_are_deep_only_where_that_is_asked_for():
    assert copy.copy(MDPS).rewards is MDPS.rewards
    assert copy.deepcopy(MDPS).rewards is not MDPS.rewards


@pytest.mark.parametrize("policy", [SoftmaxPolicy, LogisticPolicy])
def test_features_are_a_copy_of_the_users_array(policy):
    features = np.ones((3, 2))
    made = policy(3, 2, features)
    features[0, 0] = 7
    assert made.features[0, 0] == 1 and features.flags.writeable


def test_weights_of_a_belief_are_a_copy_of_the_users_array():
    weights = np.array([[0.5, 0.5]])
    belief = FiniteBelief(NOISELESS, weights)
    weights[0] = 0, 1
    assert belief.weights[0, 0] == 0.5


# ---- nobody is left out


def has_arrays(kind):
    return any("ndarray" in str(field.type) for field in fields(kind))


def holds_records(kind):
    names = {"MDP", "Episodes", "Counts"}
    return any(getattr(field.type, "__name__", "") in names for field in fields(kind))


def test_every_dataclass_with_arrays_is_a_record_in_the_table():
    public = {kind for kind in dataclasses_of_the_package() if not kind.__name__.startswith("_")}
    with_arrays = {kind for kind in public if has_arrays(kind) or holds_records(kind)}
    assert all(issubclass(kind, Record) for kind in with_arrays)
    assert with_arrays <= {type(record) for record in RECORDS.values()}


def test_every_record_is_in_the_table():
    records = {kind for kind in dataclasses_of_the_package() if issubclass(kind, Record)}
    assert records == {type(record) for record in RECORDS.values()}


# ---- arrays that stand deeper in a record


def locked(x=1.0):
    array = np.full(2, x)
    array.flags.writeable = False
    return array


DEEPER = {
    "list": maml.Adaptation([np.zeros(2), locked()], [EPISODES], [], locked(), None),
    "tuple": maml.Iteration(0, locked(), locked(), 0.0, (locked(), {"m": [locked()]}, 1)),
    "dictionary": Result(0, {}, {"array": locked(), "free": np.zeros(2)}),
    "Counts": DirichletBelief(
        Prior(1.0, 0.0, 1.0, 1.0), MDPS, Counts(*(locked(x) for x in range(4)))
    ),
}


def all_arrays(x):
    if isinstance(x, Record):
        x = [getattr(x, field.name) for field in fields(x)]
    if isinstance(x, (dict, list, tuple)):
        parts = x.values() if isinstance(x, dict) else x
        return [array for part in parts for array in all_arrays(part)]
    return [x] if isinstance(x, np.ndarray) else []


@EVERY_COPY
@pytest.mark.parametrize("name", DEEPER)
def test_what_is_read_only_deep_in_a_record_stays_so(name, way):
    before = all_arrays(DEEPER[name])
    after = all_arrays(copied(DEEPER[name], way))
    assert [x.flags.writeable for x in after] == [x.flags.writeable for x in before]
