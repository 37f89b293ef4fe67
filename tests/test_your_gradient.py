"""Is your gradient right? Copy this into your own suite; your code goes where it says yours."""

import numpy as np

from metarl_np import check

rng = np.random.default_rng(0)
theta = rng.normal(size=(10, 5))  # yours; here a softmax table over 10 states and 5 actions


def loss(theta):  # yours
    return np.log(np.exp(theta).sum())


def gradient(theta):  # yours
    return np.exp(theta) / np.exp(theta).sum()


def data():  # yours: what your sampler recorded, arrays (T, N, K) = (time, task, episode)
    shape = (20, 3, 8)
    states = rng.integers(10, size=shape)
    actions = rng.integers(5, size=shape)
    rewards = rng.normal(size=shape)
    return check.record(states, actions, rewards)


def test_the_gradient_is_that_of_the_loss():
    np.testing.assert_allclose(gradient(theta), check.finite_differences(loss, theta), atol=1e-8)


def test_the_meta_gradient_is_that_of_usual_maml_code():
    support = data()
    query = data()
    known = check.estimator_gradients(theta, [support], query, step_size=0.1, discount=0.95)
    mine = known["naive"]  # yours: your meta-gradient on these data, its mean over the tasks
    verdict = check.check_gradient(mine, known)
    assert verdict.names == ("naive",), verdict


def test_the_meta_gradient_is_what_it_is_meant_to_be():
    """The same in one line, where signs, means and what is dropped need not be those of `check`."""
    support = data()
    query = data()
    settings = dict(step_size=0.1, discount=0.95)
    mine = -check.estimator_gradients(theta, [support], query, **settings)["naive"]  # yours
    found = check.diagnose(mine, theta, [support], query, **settings)
    found.require("naive", factor=-1, average="episodes", discounted=True, steps=(0,), mistakes=())
