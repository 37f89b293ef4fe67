"""The sampler against a plain loop over single steps: the same distribution by χ², the same bits
from the same generator, and what is recorded, masked and truncated.
"""

from bisect import bisect
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from helpers import chi2_p, coded, random_log_pi, random_tasks, terminal_state

from metarl_np.learner import alias
from metarl_np.learner.alias import sampling_tables
from metarl_np.learner.rollouts import CHUNK, Episodes, rollout, step, successor_table
from metarl_np.tasks.gridworld import GridWorld
from metarl_np.tasks.mdp import MDP

STATISTICAL = 1e-3  # smallest p-value that passes; the seeds are fixed
ONE_DRAW = alias.JOINT
TWO_DRAWS = 0


@pytest.fixture(params=[ONE_DRAW, TWO_DRAWS], ids=["one draw", "two draws"])
def way(request, monkeypatch):
    """A step draws action and successor together, or one after the other as in large tasks."""
    monkeypatch.setattr(alias, "JOINT", request.param)


def loop_rollout(rng, mdps, log_pi, episodes):
    """The plain sampler: one uniform number for the start, then one for the action and one for the
    successor of each step.
    """
    n, s, a, z = mdps.successors.shape
    pi = np.exp(np.broadcast_to(log_pi, (n, s, a)))
    states = np.zeros((mdps.horizon, n, episodes), int)
    actions = np.zeros((mdps.horizon, n, episodes), int)
    rewards = np.zeros(states.shape)
    mask = np.zeros(states.shape, bool)
    last = np.zeros((n, episodes), int)

    def running(p):
        return [list(accumulate(row)) for row in np.reshape(p, (-1, np.shape(p)[-1]))]

    start = running(mdps.start)
    act = running(pi)
    next_slot = running(mdps.probabilities)
    successors = mdps.successors.tolist()
    paid = mdps.rewards.tolist()
    for i in range(n):
        for k in range(episodes):
            u = rng.random(2 * mdps.horizon + 1).tolist()
            state = bisect(start[i], u[-1] * start[i][-1])
            for t in range(mdps.horizon):
                states[t, i, k] = state
                if mdps.terminal[i, state]:
                    continue
                row = act[i * s + state]
                action = bisect(row, u[2 * t] * row[-1])
                row = next_slot[(i * s + state) * a + action]
                slot = bisect(row, u[2 * t + 1] * row[-1])
                actions[t, i, k] = action
                rewards[t, i, k] = paid[i][state][action][slot]
                mask[t, i, k] = True
                state = successors[i][state][action][slot]
            last[i, k] = state
    return Episodes(states, actions, rewards, mask, pi, last, np.zeros((n, episodes), bool))


def outcome_counts(mdps, e):
    """(N, S, A, Z) how often each outcome came, read from the codes in `rewards`."""
    codes = e.rewards[e.mask].astype(int) - 1
    return np.bincount(codes, minlength=mdps.rewards.size).reshape(mdps.rewards.shape)


# ---- the alias tables


class Stuck(np.random.Generator):
    """A generator whose every random number is the same one: u of 32 bits, or x in [0, 1)."""

    def __new__(cls, u=0, x=0.0):
        return super().__new__(cls, np.random.PCG64())

    def __init__(self, u=0, x=0.0):
        super().__init__(np.random.PCG64())
        self.u, self.x = u, x

    def integers(self, high, size, dtype):
        return np.full(size, self.u << 32 | self.u, dtype)

    def random(self, size):
        return np.full(size, self.x)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_no_number_draws_what_has_probability_zero(rng, width):
    """At the borders of the columns, where one number more or less would."""
    n = 200
    pi = rng.dirichlet(np.ones(width), n) * (rng.random((n, width)) < 0.5)
    pi[pi.sum(1) == 0, 0] = 1
    pi /= pi.sum(1, keepdims=True)
    pi[::4] = np.eye(width)[pi[::4].argmax(1)]
    ones = np.ones((n, 1, width, 1))
    mdps = MDP(0 * ones.astype(int), ones, 0 * ones, np.ones((n, 1)), np.zeros((n, 1)), 1, 1)
    with np.errstate(divide="ignore"):
        tables = sampling_tables(mdps, np.log(pi)[:, None])
    for column in range(width):
        for u in (column * 2**32 // width, (column + 1) * 2**32 // width - 1):
            actions = rollout(Stuck(u), mdps, tables, 1).actions[0, :, 0]
            assert (pi[np.arange(n), actions] > 0).all()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_no_number_draws_an_action_or_a_successor_of_probability_zero(rng, way, width):
    """The same with both: action 1 is impossible, and so are some of the other's successors."""
    n = 200
    p = rng.dirichlet(np.ones(width), n) * (rng.random((n, width)) < 0.5)
    p[p.sum(1) == 0, 0] = 1
    p[::4] = np.eye(width)[p[::4].argmax(1)]
    p /= p.sum(1, keepdims=True)
    P = np.full((n, width, 3, width), 1 / width)
    P[:, :, [0, 2]] = p[:, None, None]
    start = np.eye(width)[np.zeros(n, int)]
    mdps = MDP.from_dense(P, np.zeros(P.shape), start, discount=1, horizon=1)
    with np.errstate(divide="ignore"):
        log_pi = np.log([[0.7, 0, 0.3]] * width)
    tables = sampling_tables(mdps, log_pi)
    for column in range(4 * width):
        for u in (column * 2**30 // width, (column + 1) * 2**30 // width - 1):
            e = rollout(Stuck(u), mdps, tables, 1)
            assert (e.actions != 1).all()
            assert (p[np.arange(n), e.last_states[:, 0]] > 0).all()


@pytest.mark.parametrize("x, pick", [(0.0, 0), (1 - 2.0**-53, -1)])
def test_start_states_at_the_ends_of_the_unit_interval(rng, x, pick):
    """The first that is possible, or the last, of a task's own; the probabilities add up to a bit
    less than one, or more.
    """
    start = rng.dirichlet(np.ones(7), 300) * (rng.random((300, 7)) < 0.6)
    start[start.sum(1) == 0, 3] = 1
    start /= start.sum(1, keepdims=True)
    total = np.cumsum(start / start.sum(1, keepdims=True), 1)[:, -1]
    start = start[np.argsort(total)]  # task 0, where a number resolves most, has the least
    assert total.min() < 1 < total.max()
    mdps = MDP(
        np.zeros((300, 7, 1, 1), int),
        np.ones((300, 7, 1, 1)),
        np.zeros((300, 7, 1, 1)),
        start,
        np.zeros((300, 7)),
        1,
        1,
    )
    first = rollout(Stuck(x=x), mdps, np.zeros((7, 1)), 2).states[0]
    assert first.tolist() == [[np.flatnonzero(row)[pick]] * 2 for row in start]


def test_a_single_sure_outcome():
    mdps = MDP.from_dense(np.ones((1, 1, 1)), np.ones((1, 1)), 0, discount=1, horizon=3)
    e = rollout(np.random.default_rng(0), mdps, np.zeros((1, 1)), 5)
    assert (e.rewards == 1).all() and (e.states == 0).all() and (e.actions == 0).all()


# ---- agreement in distribution


TASKS = 3
STATES = 5
ACTIONS = 3
SLOTS = 3
HORIZON = 6
LIBRARY_EPISODES = 160_000
LOOP_EPISODES = 110_000


@pytest.fixture(scope="module")
def experience():
    rng = np.random.default_rng(8)
    mdps = coded(random_tasks(rng, TASKS, STATES, ACTIONS, SLOTS, horizon=HORIZON))
    log_pi = random_log_pi(rng, TASKS, STATES, ACTIONS)
    samples = {
        "one draw": rollout(rng, mdps, log_pi, LIBRARY_EPISODES),
        "loop": loop_rollout(rng, mdps, log_pi, LOOP_EPISODES),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alias, "JOINT", TWO_DRAWS)
        samples["two draws"] = rollout(rng, mdps, log_pi, LIBRARY_EPISODES)
    return mdps, np.exp(log_pi), samples


@pytest.mark.parametrize("sampler", ["one draw", "two draws", "loop"])
def test_every_state_action_successor_has_its_probability(experience, sampler):
    mdps, pi, samples = experience
    counts = outcome_counts(mdps, samples[sampler])
    assert counts.sum() > 1_000_000
    for i in range(TASKS):
        expected = np.zeros(counts.shape[1:])
        dof = 0
        for s in range(STATES):
            if mdps.terminal[i, s]:
                continue
            visits = counts[i, s].sum()
            for a in range(ACTIONS):
                for z in range(SLOTS):
                    expected[s, a, z] = visits * pi[i, s, a] * mdps.probabilities[i, s, a, z]
            dof += (expected[s] > 0).sum() - 1
        assert chi2_p(counts[i], expected, dof) > STATISTICAL, f"task {i}"


@pytest.mark.parametrize("sampler", ["one draw", "two draws", "loop"])
def test_every_state_is_visited_as_often_as_expected_at_each_step(experience, sampler):
    mdps, pi, samples = experience
    e = samples[sampler]
    path = np.concatenate([e.states, e.last_states[None]])
    for i in range(TASKS):
        p = mdps.start[i]
        for t in range(HORIZON + 1):
            counts = np.bincount(path[t, i], minlength=STATES)
            assert (
                chi2_p(counts, p * path.shape[-1], (p > 0).sum() - 1) > STATISTICAL
            ), f"task {i}, time {t}"
            moved = np.zeros(STATES)
            for s in range(STATES):
                for a in range(ACTIONS):
                    for z in range(SLOTS):
                        moved[mdps.successors[i, s, a, z]] += (
                            p[s] * pi[i, s, a] * mdps.probabilities[i, s, a, z]
                        )
            p = moved


@pytest.mark.parametrize("sampler", ["one draw", "two draws"])
def test_library_and_loop_agree_with_each_other(experience, sampler):
    mdps, _, samples = experience
    a, b = (outcome_counts(mdps, samples[name]) for name in (sampler, "loop"))
    for i in range(TASKS):
        total = (a + b)[i].reshape(STATES, -1)
        share = np.stack([x[i].reshape(STATES, -1).sum(1) for x in (a, b)])  # (2, S)
        share = share / np.maximum(share.sum(0), 1)
        observed = np.stack([a[i], b[i]]).reshape(2, STATES, -1)
        dof = sum(np.maximum((total > 0).sum(1) - 1, 0))
        assert chi2_p(observed, share[:, :, None] * total, dof) > STATISTICAL, f"task {i}"


@pytest.mark.parametrize("sampler", ["one draw", "two draws", "loop"])
def test_each_step_is_a_transition_of_its_own_task(experience, sampler):
    mdps, _, samples = experience
    e = samples[sampler]
    path = np.concatenate([e.states, e.last_states[None]])
    task = np.broadcast_to(np.arange(TASKS)[:, None], e.states[0].shape)
    for t in range(HORIZON):
        on = e.mask[t]
        assert (on == (path[t] != terminal_state(task, STATES))).all()
        assert (e.rewards[t][~on] == 0).all() and (path[t + 1][~on] == path[t][~on]).all()
        i, s, a, z = np.unravel_index(e.rewards[t][on].astype(int) - 1, mdps.rewards.shape)
        assert (i == task[on]).all() and (s == path[t][on]).all() and (a == e.actions[t][on]).all()
        assert (mdps.successors[i, s, a, z] == path[t + 1][on]).all()
    assert not e.truncated.any()


@pytest.mark.parametrize("lanes, steps", [(3, 20_001), (1001, 60), (3 * CHUNK, 4)])
def test_steps_and_lanes_are_independent(lanes, steps):
    """The pairs (a_t, a_{t+1}), and (a, action of the lane next to it, or a chunk away), of a fair
    coin are uniform.
    """
    mdps = MDP.from_dense(np.ones((1, 2, 1)), np.zeros((1, 2)), 0, discount=1, horizon=steps)
    actions = rollout(np.random.default_rng(3), mdps, np.full((1, 2), np.log(0.5)), lanes).actions[
        :, 0
    ]
    even = actions[: steps // 2 * 2, : lanes // 2 * 2]
    pairs = [(even[::2], even[1::2]), (even[:, ::2], even[:, 1::2])]
    if lanes > CHUNK:
        pairs.append((actions[:, :CHUNK], actions[:, CHUNK : 2 * CHUNK]))
    for left, right in pairs:
        counts = np.bincount((2 * left + right).ravel(), minlength=4)
        assert chi2_p(counts, np.full(4, left.size / 4), 3) > STATISTICAL


def test_tasks_are_independent_of_each_other():
    mdps = MDP.from_dense(
        np.full((2, 2, 2, 2), 0.5), np.zeros((2, 2, 2)), [0.5, 0.5], discount=1, horizon=2
    )
    e = rollout(np.random.default_rng(3), mdps, np.full((2, 2), np.log(0.5)), 4000)
    for x in (e.states[0], e.actions[0], e.states[1], e.last_states):
        assert chi2_p(np.bincount(2 * x[0] + x[1], minlength=4), np.full(4, 1000), 3) > STATISTICAL


def test_start_states_of_many_tasks_with_impossible_starts(rng):
    n = 40
    k = 4000
    start = rng.dirichlet(np.ones(6), n)
    start[np.arange(n), np.arange(n) % 6] = 0
    start /= start.sum(1, keepdims=True)
    mdps = MDP.from_dense(
        np.full((n, 6, 1, 6), 1 / 6), np.zeros((n, 6, 1)), start, discount=1, horizon=1
    )
    first = rollout(rng, mdps, np.zeros((6, 1)), k).states[0]
    counts = np.array([np.bincount(row, minlength=6) for row in first])
    assert (counts[np.arange(n), np.arange(n) % 6] == 0).all()
    error = (counts / k - start) / np.sqrt(np.maximum(start * (1 - start), 1e-9) / k)
    assert abs(error[start > 1e-3]).max() < 5


# ---- chunks, seeds, shapes


@pytest.mark.parametrize(
    "n, k",
    [
        (1, CHUNK),
        (1, 2 * CHUNK + 5),
        (3, 5000),
        (2, CHUNK),
        (2, CHUNK + 77),
        (CHUNK + 11, 1),
        (5000, 3),
    ],
)
def test_chunks_keep_tasks_apart(n, k):
    """Task i starts in i mod S and moves by 1 + i mod 3 on a ring; it is paid 10 i + s."""
    ring = 7
    horizon = 5
    task = np.arange(n)
    successors = (np.arange(ring) + 1 + task[:, None] % 3) % ring
    mdps = MDP(
        successors[:, :, None, None],
        np.ones((n, ring, 1, 1)),
        (10.0 * task[:, None] + np.arange(ring))[:, :, None, None],
        np.eye(ring)[task % ring],
        np.zeros((n, ring)),
        1,
        horizon,
    )
    e = rollout(np.random.default_rng(0), mdps, np.zeros((ring, 1)), k)
    assert e.states.shape == (horizon, n, k)
    for t in range(horizon):
        expected = (task % ring + t * (1 + task % 3)) % ring
        assert (e.states[t] == expected[:, None]).all()
        assert (e.rewards[t] == (10 * task + expected)[:, None]).all()
    assert (e.last_states == ((task % ring + horizon * (1 + task % 3)) % ring)[:, None]).all()


@pytest.mark.parametrize("k", [50, CHUNK + 7])
def test_every_step_of_two_draws_is_a_transition_of_its_own_task(rng, k):
    """In tasks that are large enough for them, of different numbers of actions and successors."""
    mdps = coded(random_tasks(rng, 2, 6, 13, 6, horizon=4))
    e = rollout(rng, mdps, random_log_pi(rng, 2, 6, 13), k)
    path = np.concatenate([e.states, e.last_states[None]])
    on = e.mask
    i, s, a, z = np.unravel_index(e.rewards[on].astype(int) - 1, mdps.rewards.shape)
    task = np.broadcast_to(np.arange(2)[:, None], on.shape)[on]
    assert (i == task).all() and (s == e.states[on]).all() and (a == e.actions[on]).all()
    assert (mdps.successors[i, s, a, z] == path[1:][on]).all()
    ends = mdps.terminal[np.arange(2)[:, None], e.states]
    assert (on == ~ends).all() and (path[1:][~on] == e.states[~on]).all()
    assert set(a) == set(range(13)) and not on.all()


def test_chunks_mask_by_the_task_that_they_belong_to():
    """Task i ends in state i + 1 of a chain, so after i + 1 steps."""
    n = 5
    k = CHUNK // 2 - 3
    length = 6
    terminal = np.arange(length) == np.arange(1, n + 1)[:, None]
    successors = np.where(
        terminal, np.arange(length), np.minimum(np.arange(length) + 1, length - 1)
    )
    mdps = MDP(
        successors[:, :, None, None],
        np.ones((n, length, 1, 1)),
        np.where(terminal, 0.0, 1.0)[:, :, None, None],
        np.eye(length)[np.zeros(n, int)],
        terminal,
        1,
        8,
    )
    e = rollout(np.random.default_rng(0), mdps, np.zeros((length, 1)), k)
    assert (e.mask.sum(0) == np.arange(1, n + 1)[:, None]).all()
    assert (e.rewards.sum(0) == np.arange(1, n + 1)[:, None]).all()
    assert (e.mask == (np.arange(8)[:, None, None] <= np.arange(n)[:, None])).all()


def test_same_seed_same_bits(rng, way):
    mdps = random_tasks(rng, 3, 5, 3, 3, horizon=6, reward_noise=[0, 1, 2])
    log_pi = random_log_pi(rng, 3, 5, 3)
    a, b, c, d = (
        rollout(np.random.default_rng(seed), mdps, table, CHUNK)
        for seed, table in (
            (1, log_pi),
            (1, log_pi),
            (2, log_pi),
            (1, sampling_tables(mdps, log_pi)),
        )
    )
    for name in ("states", "actions", "rewards", "mask", "last_states", "log_pi"):
        assert (getattr(a, name) == getattr(b, name)).all() and (
            getattr(a, name) == getattr(d, name)
        ).all()
    assert (a.states != c.states).any() and (a.rewards != c.rewards).any()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_same_bits_whatever_the_number_of_threads(rng, way, threads):
    mdps = random_tasks(rng, 3, 5, 3, 3, horizon=4, reward_noise=[0, 1, 2])
    log_pi = random_log_pi(rng, 3, 5, 3)
    # four chunks
    one, many = (
        rollout(np.random.default_rng(1), mdps, log_pi, CHUNK + 77, threads=n) for n in (1, threads)
    )
    for name in ("states", "actions", "rewards", "mask", "last_states"):
        assert (getattr(one, name) == getattr(many, name)).all(), name


def test_a_threads_error_is_not_lost(rng):
    mdps = random_tasks(rng, 2, 5, 3, 3, horizon=4)
    tables = sampling_tables(mdps, random_log_pi(rng, 2, 5, 3))
    with pytest.raises(AttributeError):
        rollout(rng, mdps, replace(tables, rewards=None), CHUNK, threads=2)


def test_log_probabilities_are_those_at_the_time_of_sampling(rng):
    mdps = random_tasks(rng, 2, 5, 3, 3, horizon=4)
    log_pi = random_log_pi(rng, 2, 5, 3)
    e = rollout(rng, mdps, log_pi, 10)
    before = log_pi.astype(np.float32)
    log_pi[:] = -1  # they are looked up at first use
    for t, i, k in np.ndindex(e.states.shape):
        assert e.log_probs[t, i, k] == before[i, e.states[t, i, k], e.actions[t, i, k]]


def test_one_generator_gives_new_episodes_each_time(rng):
    mdps = random_tasks(rng, 2, 5, 3, 3, horizon=6)
    log_pi = random_log_pi(rng, 2, 5, 3)
    a = rollout(rng, mdps, log_pi, 100)
    b = rollout(rng, mdps, log_pi, 100)
    assert (a.actions != b.actions).any() and (a.states[0] != b.states[0]).any()


@pytest.mark.parametrize("z", [1, 3])
def test_a_shared_table_is_the_same_table_for_every_task(rng, way, z):
    mdps = (
        random_tasks(rng, 2, 5, 3, 3, horizon=6)
        if z > 1
        else GridWorld.open(3, 3, discount=0.9, horizon=6).mdps([4, 8])
    )
    shared = random_log_pi(rng, 1, *mdps.shape[1:])[0]
    a = rollout(np.random.default_rng(4), mdps, shared, 50)
    b = rollout(np.random.default_rng(4), mdps, np.stack([shared, shared]), 50)
    assert (
        (a.states == b.states).all()
        and (a.actions == b.actions).all()
        and (a.log_probs == b.log_probs).all()
    )


@pytest.mark.parametrize("tasks", [[2, 0], [1], slice(1, 3)], ids=str)
@pytest.mark.parametrize("episodes", [[3, 0, 0], slice(2)], ids=str)
def test_a_part_of_the_episodes_has_the_log_probabilities_of_the_whole(rng, tasks, episodes):
    mdps = random_tasks(rng, 3, 5, 3, 3, horizon=6)
    e = rollout(rng, mdps, random_log_pi(rng, 3, 5, 3), 4, steps=3)
    part = e.part(episodes, tasks)
    for name in ("states", "actions", "rewards", "mask", "log_probs", "last_states", "truncated"):
        whole = getattr(e, name)
        np.testing.assert_array_equal(getattr(part, name), whole[..., tasks, :][..., episodes])
    np.testing.assert_array_equal(part.log_pi, e.log_pi[tasks])


def test_the_terminal_state_stays_in_the_record_that_is_made_of_another(rng):
    """In task 0 it is the highest state, which no unmasked step has."""
    mdps = random_tasks(rng, 2, 4, 3, 3, horizon=6)
    e = rollout(rng, mdps, random_log_pi(rng, 2, 4, 3), 20)
    assert e.states[:, 0].max() > e.states[:, 0].max(where=e.mask[:, 0], initial=0)
    part = e.part(tasks=[0])
    np.testing.assert_array_equal(replace(part).states, part.states)


def test_log_probs_are_those_of_the_actions_taken(rng):
    mdps = random_tasks(rng, 2, 5, 3, 3, horizon=6)
    log_pi = random_log_pi(rng, 2, 5, 3)
    e = rollout(rng, mdps, log_pi, 7)
    assert e.log_probs.shape == (6, 2, 7)
    for t, i, k in np.ndindex(6, 2, 7):
        assert e.log_probs[t, i, k] == np.float32(log_pi[i, e.states[t, i, k], e.actions[t, i, k]])


def test_a_deterministic_policy_never_strays(rng, way):
    mdps = random_tasks(rng, 2, 4, 3, 2, horizon=5)
    choice = rng.integers(3, size=(2, 4))
    log_pi = np.where(np.arange(3) == choice[..., None], 0, -np.inf)
    e = rollout(rng, mdps, log_pi, 3000)
    wanted = np.take_along_axis(choice[None], e.states, 2)
    assert (e.actions == wanted)[e.mask].all()


# ---- termination, truncation, noise, auto-reset, memory


def two_chains(horizon):
    """Task 0 walks 0 → 1 → 2 → 3 and ends there; task 1 goes round 0 → 1 → 2 → 3 → 0 for ever."""
    P = np.zeros((2, 4, 1, 4))
    for s in range(4):
        P[0, s, 0, min(s + 1, 3)] = P[1, s, 0, (s + 1) % 4] = 1
    R = np.array([[[1.0], [2], [3], [0]], [[5], [6], [7], [8]]])
    return MDP.from_dense(
        P, R, 0, discount=0.9, horizon=horizon, terminal=[[0, 0, 0, 1], [0, 0, 0, 0]]
    )


def test_truncation_is_not_the_horizon(rng):
    mdps = two_chains(5)
    log_pi = np.zeros((4, 1))
    for steps, last, truncated in (
        (1, (1, 1), (True, True)),
        (2, (2, 2), (True, True)),
        (3, (3, 3), (False, True)),
        (4, (3, 0), (False, True)),
        (5, (3, 1), (False, False)),
    ):
        e = rollout(rng, mdps, log_pi, 2, steps=steps)
        assert e.states.shape == e.mask.shape == e.rewards.shape == (steps, 2, 2)
        assert e.last_states.tolist() == [[last[0]] * 2, [last[1]] * 2]
        assert e.truncated.tolist() == [[truncated[0]] * 2, [truncated[1]] * 2]
    assert rollout(rng, mdps, log_pi, 1).states.shape[0] == 5


def test_masked_after_a_terminal_state_and_paid_nothing(rng):
    e = rollout(rng, two_chains(5), np.zeros((4, 1)), 3)
    for k in range(3):
        assert e.mask[:, 0, k].tolist() == [True, True, True, False, False] and e.mask[:, 1].all()
        assert e.rewards[:, 0, k].tolist() == [1, 2, 3, 0, 0] and e.rewards[:, 1, k].tolist() == [
            5,
            6,
            7,
            8,
            5,
        ]
        assert e.states[:, 0, k].tolist() == [0, 1, 2, 3, 3]


def test_reward_noise_has_its_standard_deviation_in_each_task_and_spares_masked_steps():
    rng = np.random.default_rng(11)
    k = 20_000
    mdps = replace(two_chains(5)[[0, 1, 1]], reward_noise=[0.5, 2, 0])
    e = rollout(rng, mdps, np.zeros((4, 1)), k)
    assert (e.rewards[3:, 0] == 0).all() and (e.rewards[:, 2].T == [5, 6, 7, 8, 5]).all()
    for i, mean, std in ((0, [1, 2, 3], 0.5), (1, [5, 6, 7, 8, 5], 2)):
        noise = (e.rewards[: len(mean), i].T - mean) / std  # (K, t)
        assert abs(noise.mean(0)).max() < 4 / np.sqrt(k)
        covariance = noise.T @ noise / k
        assert abs(covariance - np.eye(len(mean))).max() < 4 * np.sqrt(2 / k)
    pairs = (e.rewards[:3, 0] - [[1], [2], [3]]) * (e.rewards[:3, 1] - [[5], [6], [7]])
    assert abs(pairs.mean()) < 4 / np.sqrt(pairs.size)


def test_auto_reset_runs_on(rng):
    mdps = random_tasks(rng, 3, 5, 3, 3, horizon=40).auto_reset()
    e = rollout(rng, mdps, random_log_pi(rng, 3, 5, 3), 200)
    assert e.mask.all() and not e.truncated.any() and (e.rewards != 0).all()
    for i in range(3):
        assert (
            not (e.states[:, i] == terminal_state(i, 5)).any()
            and not (e.last_states[i] == terminal_state(i, 5)).any()
        )
    cut = rollout(rng, mdps, np.full((5, 3), -np.log(3)), 4, steps=39)
    assert cut.truncated.all()


def test_a_stored_step_takes_at_most_20_bytes(rng):
    for mdps in (
        random_tasks(rng, 2, 5, 3, 3, horizon=6),
        random_tasks(rng, 2, 5, 3, 3, horizon=6, reward_noise=1).auto_reset(),
    ):
        e = rollout(rng, mdps, np.full((5, 3), -np.log(3)), 10)
        assert sum(x.nbytes for x in (e.states, e.actions, e.rewards, e.mask)) <= 20 * 6 * 2 * 10
        assert (
            e.rewards.dtype == np.float32
            and e.states.dtype == e.actions.dtype == np.int32
            and e.mask.dtype == bool
        )


# ---- one step at a time


class Fixed:
    """A generator whose every uniform number is u."""

    def __init__(self, u):
        self.u = u

    def random(self, size):
        return np.full(size, self.u)


def every_row(mdps, copies):
    """A task for each (task, state, action) of `mdps`, times `copies`: the tasks, s and a (M,)."""
    n, s, a = mdps.shape
    task, state, action = (np.repeat(x.ravel(), copies) for x in np.indices((n, s, a)))
    return mdps[task], state, action


def test_step_draws_successors_as_the_table_says(rng):
    base = coded(random_tasks(rng, 2, 4, 2, 3, horizon=2))
    copies = 4000
    mdps, states, actions = every_row(base, copies)
    rewards, after = step(rng, mdps, successor_table(mdps), states, actions)
    on = rewards > 0
    task = np.repeat(np.arange(2), len(mdps) // 2)
    assert (on == ~base.terminal[task, states]).all()
    codes = rewards[on].astype(int) - 1
    # its own task, state and action
    np.testing.assert_array_equal(codes // 3, (task * 8 + states * 2 + actions)[on])
    np.testing.assert_array_equal(after[on], base.successors.ravel()[codes])
    expected = copies * base.probabilities * ~base.terminal[:, :, None, None]
    rows = (~base.terminal).sum() * 2
    possible = (expected > 0).sum()
    assert (expected == 0)[~base.terminal].any()
    assert (
        chi2_p(np.bincount(codes, minlength=expected.size), expected, possible - rows) > STATISTICAL
    )


def test_step_by_inversion_at_the_ends_of_the_unit_interval(rng):
    """No successor of probability 0, neither at u = 0 nor at the largest u below 1, and the first
    that is possible or the last.
    """
    mdps, states, actions = every_row(random_tasks(rng, 3, 4, 3, 4, horizon=2), 1)
    for u, pick in ((0.0, 0), (np.nextafter(1, 0), -1)):
        rewards, after = step(Fixed(u), mdps, successor_table(mdps), states, actions)
        for i, (s, a) in enumerate(zip(states, actions)):
            z = np.flatnonzero(mdps.probabilities[i, s, a])[pick]
            assert (
                rewards[i] == mdps.rewards[i, s, a, z] and after[i] == mdps.successors[i, s, a, z]
            )


def test_step_adds_noise_of_each_tasks_own_size_and_none_in_a_terminal_state():
    rng = np.random.default_rng(5)
    copies = 20_000
    std = np.array([0.5, 2, 0])
    mdps = replace(two_chains(5)[[0, 1, 1]], reward_noise=std)
    mdps = mdps[np.repeat(np.arange(3), copies)]
    table = successor_table(mdps)
    zeros = np.zeros(len(mdps), int)
    drawn = []
    for _ in range(2):
        rewards, after = step(rng, mdps, table, zeros + 1, zeros)
        noise = rewards.reshape(3, copies) - [[2], [6], [6]]
        assert (noise[2] == 0).all() and (after == 2).all()
        drawn.append(noise[:2] / std[:2, None])
        assert (abs(drawn[-1].mean(1)) < 4 / np.sqrt(copies)).all() and (
            abs((drawn[-1] ** 2).mean(1) - 1) < 4 * np.sqrt(2 / copies)
        ).all()
    assert (
        abs((drawn[0] * drawn[1]).mean(1)) < 4 / np.sqrt(copies)
    ).all()  # new noise at every step
    rewards, after = step(rng, mdps, table, zeros + 3, zeros)
    assert (
        (rewards[:copies] == 0).all()
        and (after[:copies] == 3).all()
        and (rewards[copies : 2 * copies] != 0).all()
    )


def test_step_stays_in_a_terminal_state_and_is_paid_exactly_nothing(rng):
    mdps = random_tasks(rng, 4, 5, 3, 3, horizon=2, reward_noise=3)
    ends = np.array([terminal_state(i, 5) for i in range(4)])
    for a in range(3):
        rewards, after = step(rng, mdps, successor_table(mdps), ends, np.full(4, a))
        assert (rewards == 0).all() and (after == ends).all()


def test_step_has_a_seed(rng):
    mdps, states, actions = every_row(random_tasks(rng, 2, 4, 3, 3, horizon=2, reward_noise=1), 20)
    one, again, other = (
        step(np.random.default_rng(seed), mdps, successor_table(mdps), states, actions)
        for seed in (1, 1, 2)
    )
    assert all(x.tobytes() == y.tobytes() for x, y in zip(one, again)) and all(
        (x != y).any() for x, y in zip(one, other)
    )


# ---- bad input


@pytest.mark.parametrize(
    "keywords, message",
    [
        (dict(threads=0), "threads"),
        (dict(episodes=0), "episodes"),
        (dict(episodes=-3), "episodes"),
        (dict(steps=0), "steps"),
        (dict(steps=6), "steps"),
        (dict(log_pi=np.zeros((3, 1))), "log_pi.*shape"),
        (dict(log_pi=np.zeros((4, 2))), "log_pi.*shape"),
        (dict(log_pi=np.zeros((3, 4, 1))), "log_pi.*shape"),
        (dict(log_pi=np.zeros(4)), "log_pi.*shape"),
        (
            dict(log_pi=np.where(np.arange(8).reshape(2, 4, 1) == 6, np.nan, 0)),
            "log_pi.*task 1, state 2",
        ),
        (
            dict(log_pi=np.where(np.arange(8).reshape(2, 4, 1) == 3, -1, 0)),
            "log_pi.*task 0, state 3",
        ),
    ],
)
def test_bad_input_is_named_before_anything_is_sampled(keywords, message):
    rng = np.random.default_rng(0)
    arguments = dict(log_pi=np.zeros((4, 1)), episodes=2, steps=None) | keywords
    with pytest.raises(ValueError, match=message):
        rollout(rng, two_chains(5), **arguments)
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("argument", ["tasks", "episodes"])
@pytest.mark.parametrize("index", [1.0, "x", None, [0, 9], [True], slice(0, 1.0), (0, 1)], ids=repr)
def test_a_bad_index_of_recorded_episodes_is_named(argument, index):
    rng = np.random.default_rng(0)
    mdps = random_tasks(rng, 3, 3, 2, 2, horizon=2)
    e = rollout(rng, mdps, random_log_pi(rng, 3, 3, 2), 4)
    with pytest.raises(ValueError, match=f"^{argument}: "):
        e.part(**{argument: index})


def recorded(**change):
    """Two steps of two episodes in each of two tasks, one of which ended after a step."""
    zeros = np.zeros((2, 2, 2), int)
    mask = np.ones(zeros.shape, bool)
    mask[1, 0, 0] = False
    log_pi = np.log(np.full((2, 3, 2), 0.5))
    last = np.zeros((2, 2), int)
    arguments = dict(states=zeros, actions=zeros, rewards=zeros * 1.0, mask=mask, log_pi=log_pi)
    arguments |= dict(last_states=last, truncated=np.array([[False, True], [True, False]]))
    return Episodes(**arguments | change)


def with_one(x, *shape, at):
    """Zeros of that shape, with x at one place."""
    array = np.zeros(shape, int)
    array[at] = x
    return array


@pytest.mark.parametrize("name, size", [("states", 3), ("actions", 2)])
def test_a_step_in_a_state_or_by_an_action_that_does_not_exist_is_no_record(name, size):
    place = "at time 1, task 1, episode 0"
    for bad in (-1, size):
        array = with_one(bad, 2, 2, 2, at=(1, 1, 0))
        with pytest.raises(ValueError, match=f"^{name}: outside 0..{size - 1} .{place}"):
            recorded(**{name: array})
    recorded(**{name: with_one(size - 1, 2, 2, 2, at=(1, 1, 0))})
    masked = recorded(**{name: with_one(-1, 2, 2, 2, at=(1, 0, 0))})
    assert not getattr(masked, name).any()


@pytest.mark.parametrize("name", ["states", "actions"])
def test_where_the_sizes_are_not_known_negative_ones_are_refused(name):
    recorded(log_pi=None, **{name: with_one(99, 2, 2, 2, at=(1, 1, 0))})
    with pytest.raises(ValueError, match=f"^{name}: outside"):
        recorded(log_pi=None, **{name: with_one(-1, 2, 2, 2, at=(1, 1, 0))})


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_truncated_episode_stands_in_a_state(bad):
    """Of one that ended nobody asks where."""
    recorded(last_states=with_one(bad, 2, 2, at=(0, 0)))
    with pytest.raises(ValueError, match=r"^last_states: outside 0..2 \(at task 0, episode 1"):
        recorded(last_states=with_one(bad, 2, 2, at=(0, 1)))


@pytest.mark.parametrize("shape", [(3, 2), (1, 3, 2), (3, 3, 2), (1, 2, 3, 2), (2,), ()])
def test_log_pi_of_a_record_has_a_row_for_each_task(shape):
    with pytest.raises(ValueError, match=r"^log_pi: expected shape \(N, S, A\) with N = 2"):
        recorded(log_pi=np.zeros(shape))


@pytest.mark.parametrize("name", ["states", "actions"])
@pytest.mark.parametrize("bad", [0, [0], [0, 0, 0], [[0, 0]]])
def test_step_takes_a_state_and_an_action_of_each_task(rng, name, bad):
    mdps = random_tasks(rng, 2, 4, 2, 3, horizon=2)
    arguments = dict(states=[0, 1], actions=[1, 0])
    step(rng, mdps, successor_table(mdps), **arguments)
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        step(rng, mdps, successor_table(mdps), **arguments | {name: bad})
