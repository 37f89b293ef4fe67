"""To copy into your own suite: is the gradient that your code computes the one that you mean?

Put your own loss, sampler and gradients in the places that say so.
"""

import numpy as np

from metarl_np import check

T, N, K, S, A = 20, 3, 8, 10, 5  # time steps, tasks, episodes, states, actions
rng = np.random.default_rng(0)
theta = rng.normal(size=(S, A))  # a softmax table


def loss(theta):  # yours
    return np.log(np.exp(theta).sum(1)).sum()


def gradient(theta):  # yours
    return np.exp(theta) / np.exp(theta).sum(1, keepdims=True)


def sampled():  # yours: arrays (T, N, K) from your sampler
    states = rng.integers(S, size=(T, N, K))
    actions = rng.integers(A, size=(T, N, K))
    return check.record(states, actions, rewards=rng.normal(size=(T, N, K)))


def test_the_gradient_is_that_of_the_loss():
    np.testing.assert_allclose(gradient(theta), check.finite_differences(loss, theta), atol=1e-8)


def test_the_meta_gradient_is_the_naive_one():
    support, query = sampled(), sampled()
    known = check.estimator_gradients(theta, [support], query, step_size=0.1, discount=0.95)
    yours = known["naive"]  # yours: the mean over tasks of your meta-gradient on these data
    verdict = check.check_gradient(yours, known)
    assert verdict.names == ("naive",), verdict
