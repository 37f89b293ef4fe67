"""Random MDPs: the distribution they are drawn from, within five standard errors, and what is
refused.
"""

import numpy as np
import pytest

from metarl_np.tasks.random_mdps import random_mdps


def test_what_they_are(rng):
    mdps = random_mdps(rng, 3, 4, 2, horizon=6, discount=0.9, reward_noise=0.5)
    assert mdps.shape == (3, 4, 2) and (mdps.horizon, mdps.discount) == (6, 0.9)
    assert mdps.reward_noise.tolist() == [0.5] * 3 and not mdps.terminal.any()
    assert mdps.start.tolist() == [[1, 0, 0, 0]] * 3
    assert (np.sort(mdps.successors, -1) == np.arange(4)).all()  # from everywhere to everywhere
    assert (mdps.rewards == mdps.rewards[..., :1]).all()  # the mean reward depends on (s, a) only
    assert (
        len(np.unique(mdps.rewards)) == 3 * 4 * 2
        and len(np.unique(mdps.probabilities)) == 3 * 4 * 2 * 4
    )


def test_defaults_are_those_of_the_paper(rng):
    mdps = random_mdps(rng, 2)
    assert (
        mdps.shape == (2, 10, 5)
        and (mdps.horizon, mdps.discount) == (10, 1.0)
        and (mdps.reward_noise == 1).all()
    )


def test_distribution(rng):
    n = 4000
    s = 4
    a = 3
    mdps = random_mdps(rng, n, s, a, reward_mean=2.0, reward_std=0.5)
    P = np.zeros((n, s, a, s))
    np.put_along_axis(P, mdps.successors, mdps.probabilities, -1)
    # a flat Dirichlet's margins are Beta(1, S − 1): mean 1/S, E p² = 2/(S(S + 1)), E p³ = 6/(S(S +
    # 1)(S + 2))
    for power, moment in (1, 1 / s), (2, 2 / (s * (s + 1))), (3, 6 / (s * (s + 1) * (s + 2))):
        error = (P**power).std(0) / np.sqrt(n)
        assert (abs((P**power).mean(0) - moment) < 5 * error).all()
    r = mdps.rewards[..., 0].ravel()
    assert abs(r.mean() - 2.0) < 5 * 0.5 / np.sqrt(r.size)
    assert abs(r.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * r.size)


def test_seeds():
    first, again, other = (random_mdps(np.random.default_rng(seed), 2) for seed in (1, 1, 2))
    for name in ("probabilities", "rewards"):
        assert (getattr(first, name) == getattr(again, name)).all() and (
            getattr(first, name) != getattr(other, name)
        ).all()


@pytest.mark.parametrize(
    "name, args",
    [
        ("n_tasks", dict(n_tasks=0)),
        ("n_states", dict(n_tasks=1, n_states=0)),
        ("n_actions", dict(n_tasks=1, n_actions=-1)),
        ("horizon", dict(n_tasks=1, horizon=0)),
        ("discount", dict(n_tasks=1, discount=1.5)),
        ("reward_noise", dict(n_tasks=1, reward_noise=-1.0)),
        ("reward_mean", dict(n_tasks=1, reward_mean=np.nan)),
    ],
)
def test_bad_input(rng, name, args):
    with pytest.raises(ValueError, match=name):
        random_mdps(rng, **args)
