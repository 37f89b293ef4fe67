"""What is drawn follows from the generator's state alone, in this process or another.

Run as a program, this file reads states from its input and prints what training draws from them.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.rollouts import CHUNK, rollout
from metarl_np.meta.maml import train
from metarl_np.tasks.gridworld import GridWorld

NAMES = ["PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"]
MDPS = GridWorld.open(2, 2, discount=0.9, horizon=3).mdps([1, 3])
POLICY = SoftmaxPolicy(4, 4)


def moved_on(name):
    """A generator that no seed leads to: it has drawn, and half of a number is left."""
    rng = np.random.Generator(getattr(np.random, name)(5))
    rng.random(3)
    rng.integers(9, dtype=np.int32)
    return rng


def restored(state):
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def plain(x):
    """A state as JSON can hold it, and as `.state` takes it back."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    return x.tolist() if isinstance(x, np.ndarray) else x


def drawn(rng, threads):
    """Bits of a MAML training, and of a rollout in three chunks, as text; where rng is then."""
    settings = dict(iterations=2, steps=1, episodes=5, step_size=0.1)
    *_, record = train(rng, lambda rng: MDPS, POLICY, POLICY.init(), Reinforce(0.5), **settings)
    episodes = rollout(rng, MDPS, POLICY.log_pi(record.theta), CHUNK + 5, threads=threads)
    actions = int(np.dot(episodes.actions.ravel(), np.arange(episodes.actions.size) % 9973))
    return [record.theta.tobytes().hex(), actions, rng.random()]


@pytest.fixture(scope="module")
def elsewhere():
    """What another process draws from these states, with 1 and with 2 threads."""
    states = [plain(moved_on(name).bit_generator.state) for name in NAMES]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    options = dict(capture_output=True, text=True, check=True, env=environment)
    done = subprocess.run(command, input=json.dumps(states), **options)
    return dict(zip(NAMES, json.loads(done.stdout)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_gives_the_same_training_in_another_process(name, threads, elsewhere):
    assert elsewhere[name][threads - 1] == drawn(moved_on(name), threads)


def actions(rng, episodes=500):
    return rollout(rng, MDPS, POLICY.log_pi(POLICY.init()), episodes).actions


@pytest.mark.parametrize("episodes", [500, CHUNK + 5], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "Philox"])
def test_generators_of_one_seed_that_are_moved_apart_differ(name, episodes):
    one = np.random.Generator(getattr(np.random, name)(0))
    two = np.random.Generator(getattr(np.random, name)(0))
    two.bit_generator.advance(10**12)
    assert (actions(one, episodes) != actions(two, episodes)).any()


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "Philox", "MT19937"])
def test_a_jumped_generator_gives_the_same_each_time(name):
    one, two = (np.random.Generator(getattr(np.random, name)(0).jumped()) for _ in "12")
    assert (actions(one) == actions(two)).all()
    assert one.random() == two.random()


@pytest.mark.parametrize("episodes", [50, CHUNK + 5], ids=["one chunk", "three chunks"])
def test_a_generator_on_a_legacy_bit_generator_will_do(episodes):
    one, two = (np.random.Generator(np.random.RandomState(3)._bit_generator) for _ in "12")
    before = actions(one, episodes)
    assert (before == actions(two, episodes)).all()
    assert (before != actions(one, episodes)).any()


if __name__ == "__main__":
    STATES = json.load(sys.stdin)
    print(json.dumps([[drawn(restored(state), threads) for threads in (1, 2)] for state in STATES]))
