"""explain_advantages on advantages as public code computes them, each written as its authors do."""

import numpy as np
import pytest

from metarl_np.check.advantages import explain_advantages
from metarl_np.check.records import record

T = 24
K = 4
GAMMA = 0.97
LAM = 0.9


@pytest.fixture
def lanes():
    """Rewards, V(s_t), V(s_T) and dones of K lanes that hold several episodes each."""
    rng = np.random.default_rng(0)
    dones = rng.random((T, K)) < 0.25
    dones[-1] = False, True, False, False
    return dict(
        states=rng.integers(5, size=(T, K)),
        actions=rng.integers(2, size=(T, K)),
        rewards=rng.normal(size=(T, K)),
        values=rng.normal(size=(T, K)),
        last_values=rng.normal(size=K),
        dones=dones,
    )


@pytest.fixture
def tasks():
    """The same of 3 tasks with 5 episodes of unequal length each, and their mask."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(6, T + 1, size=(3, 5))
    lengths[:, :2] = T
    shape = (T, 3, 5)
    return dict(
        states=rng.integers(4, size=shape),
        actions=rng.integers(2, size=shape),
        rewards=rng.normal(size=shape) + np.arange(3)[:, None],
        values=rng.normal(size=shape),
        last_values=rng.normal(size=shape[1:]),
        mask=np.arange(T)[:, None, None] < lengths,
    )


# ---- GAE as public code has it: rewards, values, last_values and dones of lanes → (T, K)


def cleanrl(rewards, values, last_values, dones):
    """ppo.py: nextnonterminal, with the done flags shifted by one step."""
    advantages = np.zeros_like(rewards)
    lastgaelam = 0
    for t in reversed(range(T)):
        nextnonterminal = 1.0 - dones[t]
        nextvalues = last_values if t == T - 1 else values[t + 1]
        delta = rewards[t] + GAMMA * nextvalues * nextnonterminal - values[t]
        advantages[t] = lastgaelam = delta + GAMMA * LAM * nextnonterminal * lastgaelam
    return advantages


def stable_baselines3(rewards, values, last_values, dones):
    """RolloutBuffer.compute_returns_and_advantage: episode_starts, and the last dones apart."""
    starts = np.concatenate([np.ones((1, K)), dones[:-1]])
    advantages = np.zeros_like(rewards)
    last_gae_lam = 0
    for step in reversed(range(T)):
        if step == T - 1:
            next_non_terminal = 1.0 - dones[-1]
            next_values = last_values
        else:
            next_non_terminal = 1.0 - starts[step + 1]
            next_values = values[step + 1]
        delta = rewards[step] + GAMMA * next_values * next_non_terminal - values[step]
        last_gae_lam = delta + GAMMA * LAM * next_non_terminal * last_gae_lam
        advantages[step] = last_gae_lam
    return advantages


def spinning_up(rewards, values, last_values, dones):
    """core.discount_cumsum of each path, with last_val appended: 0 where it is done."""
    advantages = np.zeros_like(rewards)
    for k in range(K):
        cuts = [0, *(np.flatnonzero(dones[:, k]) + 1), T]
        for begin, end in zip(cuts, cuts[1:]):
            if begin == end:
                continue
            last_val = 0 if dones[end - 1, k] else last_values[k]
            vals = np.append(values[begin:end, k], last_val)
            deltas = rewards[begin:end, k] + GAMMA * vals[1:] - vals[:-1]
            for i in range(end - begin):
                powers = (GAMMA * LAM) ** np.arange(end - begin - i)
                advantages[begin + i, k] = np.sum(powers * deltas[i:])
    return advantages


def rlax(rewards, values, last_values, dones):
    """λ-returns less the values: G_t = r_t + γ_t [(1 − λ) V_{t+1} + λ G_{t+1}], γ_t = 0 if done."""
    following = np.concatenate([values[1:], last_values[None]])
    discount_t = GAMMA * (1 - dones)
    g = last_values
    returns = np.zeros_like(rewards)
    for t in reversed(range(T)):
        g = rewards[t] + discount_t[t] * ((1 - LAM) * following[t] + LAM * g)
        returns[t] = g
    return returns - values


def no_bootstrap(rewards, values, last_values, dones):
    """rllab and ProMP: np.append(path_baselines, 0), also where a path was cut."""
    return cleanrl(rewards, values, 0 * last_values, dones)


def across_dones(rewards, values, last_values, dones):
    return cleanrl(rewards, values, last_values, 0 * dones)


def values_across_dones(rewards, values, last_values, dones):
    """δ_t bootstraps with the value of the state after the reset; the sum of δ is masked."""
    following = np.concatenate([values[1:], last_values[None]])
    following[-1] *= 1 - dones[-1]
    deltas = rewards + GAMMA * following - values
    advantages = np.zeros_like(rewards)
    a = 0
    for t in reversed(range(T)):
        advantages[t] = a = deltas[t] + GAMMA * LAM * (1 - dones[t]) * a
    return advantages


def advantages_across_dones(rewards, values, last_values, dones):
    """The value that follows is masked, the sum of δ is not."""
    following = np.concatenate([values[1:], last_values[None]])
    deltas = rewards + GAMMA * following * (1 - dones) - values
    return np.array(
        [np.tensordot((GAMMA * LAM) ** np.arange(T - t), deltas[t:], 1) for t in range(T)]
    )


def time_limits(rewards, values, last_values, dones):
    """stable-baselines3 where a time limit cut: γ V of the last observation, which nobody kept."""
    kept_nowhere = np.random.default_rng(9).normal(size=(T, K))
    return cleanrl(rewards + GAMMA * kept_nowhere * dones, values, last_values, dones)


def last_value_twice(rewards, values, last_values, dones):
    return cleanrl(rewards, values, values[-1], dones)


def one_buffer(rewards, values, last_values, dones):
    """Lanes laid end to end, the last of which is bootstrapped with nothing."""
    r, v, d = (x.T.ravel() for x in (rewards, values, dones))
    advantages = np.zeros(T * K)
    a = 0
    for t in reversed(range(T * K)):
        following = v[t + 1] if t + 1 < T * K else 0
        delta = r[t] + GAMMA * following * (1 - d[t]) - v[t]
        advantages[t] = a = delta + GAMMA * LAM * (1 - d[t]) * a
    return advantages.reshape(K, T).T


@pytest.mark.parametrize(
    "code, at_dones, at_cuts",
    [
        (cleanrl, "stopped", "bootstrapped"),
        (stable_baselines3, "stopped", "bootstrapped"),
        (spinning_up, "stopped", "bootstrapped"),
        (rlax, "stopped", "bootstrapped"),
        (no_bootstrap, "stopped", "stopped"),
        (last_value_twice, "stopped", "last value twice"),
        (values_across_dones, "next value", "bootstrapped"),
        (advantages_across_dones, "next advantage", "bootstrapped"),
        (time_limits, "unknown", "bootstrapped"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "standardised"])
def test_gae_of_lanes_is_called_what_it_is(lanes, code, at_dones, at_cuts, dtype, scaled):
    dones = lanes["dones"]
    dones[-1] &= code not in (values_across_dones, advantages_across_dones)
    a = code(lanes["rewards"], lanes["values"], lanes["last_values"], dones)
    a = (a - a.mean()) / (a.std() + 1e-8) if scaled else a
    e = explain_advantages(record(**lanes, advantages=a.astype(dtype)))
    assert (e.kind, e.discount, e.lam, e.baseline) == ("GAE", GAMMA, LAM, "values")
    assert (e.at_dones, e.at_cuts) == (at_dones, at_cuts)
    assert e.standardised == ("std" if scaled else "no")
    assert e.bootstrapped == (at_cuts == "bootstrapped")
    str(e).encode("cp1252")


def test_advantages_that_run_across_dones_are_right_in_a_trial_of_rl2_only(lanes):
    lanes["dones"][-1] = False
    a = across_dones(lanes["rewards"], lanes["values"], lanes["last_values"], lanes["dones"])
    e = explain_advantages(record(**lanes, advantages=a))
    assert (e.kind, e.discount, e.lam) == ("GAE", GAMMA, LAM)
    assert (e.at_dones, e.at_cuts) == ("runs on", "bootstrapped")
    assert e.across_dones
    assert "right within a trial of RL2" in str(e)


@pytest.mark.parametrize("lam", [0.95, 1.0])
def test_rl2_whose_advantages_cross_episodes_and_not_trials(lanes, lam):
    """A trial is a lane, and ends with its last episode; γ = 1."""
    lanes["dones"][-1] = True
    a = reward_sums(
        lanes["rewards"] - lanes["values"], np.append(lanes["values"][1:], [[0] * K], 0), lam
    )
    a = (a - a.mean()) / a.std()
    e = explain_advantages(record(**lanes, advantages=a))
    assert (e.discount, e.lam, e.at_dones, e.at_cuts) == (1, lam, "runs on", "stopped")


def reward_sums(now, following, lam):
    """Σ_u λ^(u−t) (now_u + following_u)."""
    deltas = now + following
    rows = [np.tensordot(lam ** np.arange(T - t), deltas[t:], 1) for t in range(T)]
    return np.array(rows)


def test_mistake_19_gae_runs_across_lanes_that_are_neighbours_in_a_buffer(lanes):
    lanes["dones"][-1] = False
    a = one_buffer(lanes["rewards"], lanes["values"], lanes["last_values"], lanes["dones"])
    a[-1, -1] = lanes["rewards"][-1, -1] - lanes["values"][-1, -1]
    e = explain_advantages(record(**lanes, advantages=a))
    assert (e.discount, e.lam, e.at_dones, e.at_cuts) == (GAMMA, LAM, "stopped", "runs on")
    assert "across trials or tasks" in str(e)


def test_an_index_that_wraps_around_to_the_first_value_is_a_mistake(tasks):
    tasks = {name: tasks[name][..., :2] for name in ("states", "actions", "rewards", "values")}
    deltas = tasks["rewards"] + GAMMA * np.roll(tasks["values"], -1, 0) - tasks["values"]
    a = [np.tensordot((GAMMA * LAM) ** np.arange(T - t), deltas[t:], 1) for t in range(T)]
    e = explain_advantages(np.array(a), record(**tasks))
    assert (e.discount, e.lam, e.at_cuts) == (GAMMA, LAM, "wraps around")


def test_the_lane_of_the_next_task_is_another_lane():
    """Of tasks with one lane each the last episode is cut, and does not go on in the next task."""
    rng = np.random.default_rng(4)
    shape = (T, 6, 1)
    dones = rng.random(shape) < 0.2
    dones[-1] = False
    x = dict(rewards=rng.normal(size=shape), values=rng.normal(size=shape))
    last_values = rng.normal(size=shape[1:])
    a = np.zeros(shape)
    for task in (slice(0, K), slice(2, 6)):
        lanes = [y[:, task, 0] for y in (x["rewards"], x["values"])]
        a[:, task, 0] = cleanrl(*lanes, last_values[task, 0], dones[:, task, 0])
    nothing = np.zeros(shape, int)
    data = record(nothing, nothing, **x, last_values=last_values, dones=dones, advantages=a)
    e = explain_advantages(data)
    assert (e.at_dones, e.at_cuts) == ("stopped", "bootstrapped")


def test_a_bootstrap_of_a_small_value_is_told_from_none(lanes):
    lanes["last_values"] *= 3e-4
    a = cleanrl(lanes["rewards"], lanes["values"], lanes["last_values"], lanes["dones"])
    e = explain_advantages(record(**lanes, advantages=a))
    assert (e.at_dones, e.at_cuts) == ("stopped", "bootstrapped")


def test_one_last_step_alone_tells_no_constant():
    """With γ = λ = 1, standardised, whatever is added to the only last step may be the mean."""
    rng = np.random.default_rng(6)
    x = dict(rewards=rng.normal(size=(T, 1)), values=rng.normal(size=(T, 1)))
    a = reward_sums(x["rewards"] - x["values"], np.append(x["values"][1:], [[3.0]], 0), 1.0)
    nothing = np.zeros((T, 1), int)
    data = record(nothing, nothing, **x, last_values=[3.0])
    assert explain_advantages(a, data).at_cuts == "bootstrapped"
    e = explain_advantages(std_ddof_0(a), data)
    assert (e.discount, e.lam, e.at_cuts, e.standardised) == (1, 1, "unknown", "std")


def test_without_lambda_a_next_advantage_is_not_told_from_none(lanes, monkeypatch):
    monkeypatch.setattr(f"{__name__}.LAM", 0.0)
    for seed in range(5):
        lanes["rewards"] = np.random.default_rng(seed).normal(size=(T, K))
        a = no_bootstrap(lanes["rewards"], lanes["values"], lanes["last_values"], lanes["dones"])
        e = explain_advantages(record(**lanes, advantages=std_ddof_0(a).astype(np.float32)))
        assert (e.lam, e.at_dones, e.at_cuts) == (0, "stopped", "stopped")


# ---- how they were standardised, of tasks whose episodes differ in length


def gae_of_tasks(rewards, values, last_values, mask, lam=LAM):
    """By a loop over steps; where an episode ended before the last row it terminated."""
    advantages = np.zeros(rewards.shape)
    for n in range(3):
        for k in range(5):
            length = mask[:, n, k].sum()
            a = 0.0
            following = last_values[n, k] if length == T else 0.0
            for t in reversed(range(length)):
                delta = rewards[t, n, k] + GAMMA * following - values[t, n, k]
                advantages[t, n, k] = a = delta + GAMMA * lam * a
                following = values[t, n, k]
    return advantages


def each_task(change):
    """The change of the unmasked advantages, task by task."""

    def changed(advantages, mask):
        result = np.zeros(advantages.shape)
        for n in range(advantages.shape[1]):
            taken = mask[:, n]
            result[:, n][taken] = change(advantages[:, n][taken])
        return result

    return changed


def whole_batch(change):
    def changed(advantages, mask):
        result = np.zeros(advantages.shape)
        result[mask] = change(advantages[mask])
        return result

    return changed


def std_ddof_0(a):
    return (a - a.mean()) / (a.std() + 1e-8)


def std_ddof_1(a):
    return (a - a.mean()) / (a.std(ddof=1) + 1e-8)


def variance_ddof_1(a):
    return (a - a.mean()) / (a.var(ddof=1) + 1e-8)


def with_padding(advantages, mask):
    mean = advantages.mean((0, 2), keepdims=True)
    return (advantages - mean) / advantages.std((0, 2), keepdims=True) * mask


def weighted_normalize(advantages, mask):
    """pytorch-maml-rl: a mean over the episodes' own means."""
    lengths = mask.sum(0)
    mean = (advantages.sum(0) / lengths).mean(1)
    centred = (advantages - mean[:, None]) * mask
    variance = ((centred**2).sum(0) / lengths).mean(1)
    return centred / np.sqrt(variance)[:, None]


STANDARDISED = {
    "std of a task, ddof 0": (each_task(std_ddof_0), "std", "steps", 0, "task"),
    "std of a task, ddof 1": (each_task(std_ddof_1), "std", "steps", 1, "task"),
    "std of the batch, ddof 0": (whole_batch(std_ddof_0), "std", "steps", 0, "batch"),
    "variance of a task": (each_task(variance_ddof_1), "variance", "steps", 1, "task"),
    "variance of the batch": (whole_batch(variance_ddof_1), "variance", "steps", 1, "batch"),
    "centred in a task": (each_task(lambda a: a - a.mean()), "centred", "steps", 0, "task"),
    "padding counted": (with_padding, "std", "padding", 0, "task"),
    "weights 1/length": (weighted_normalize, "std", "lengths", 0, "task"),
}


@pytest.mark.parametrize("case", STANDARDISED)
@pytest.mark.parametrize("lam", [LAM, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_they_were_divided_by_is_named(tasks, case, lam, dtype):
    change, *expected = STANDARDISED[case]
    a = gae_of_tasks(*(tasks[x] for x in ("rewards", "values", "last_values", "mask")), lam)
    e = explain_advantages(change(a, tasks["mask"]).astype(dtype), record(**tasks))
    assert [e.standardised, e.over, e.ddof, e.scope] == expected
    assert (e.kind, e.discount, e.lam) == ("G" if lam == 1 else "GAE", GAMMA, lam)
    assert (e.at_dones, e.at_cuts) == ("stopped", "bootstrapped")
    is_mistake = expected[0] == "variance" or expected[1] == "padding"
    assert any("a mistake: " in x for x in e.findings[2:4]) == is_mistake


def test_centred_sums_without_discount_are_told_by_their_ends(tasks, monkeypatch):
    """With γ = λ = 1 nothing but the last steps tells a constant that was taken away."""
    monkeypatch.setattr(f"{__name__}.GAMMA", 1.0)
    a = gae_of_tasks(*(tasks[x] for x in ("rewards", "values", "last_values", "mask")), lam=1.0)
    centred = each_task(lambda a: a - a.mean())(a, tasks["mask"])
    e = explain_advantages(centred, record(**tasks))
    assert (e.discount, e.lam, e.standardised, e.scope) == (1, 1, "centred", "task")
    assert (e.at_dones, e.at_cuts) == ("stopped", "bootstrapped")


@pytest.mark.parametrize("ddof", [0, 1])
def test_ddof_is_told_of_thousands_of_steps(ddof):
    rewards = np.random.default_rng(7).normal(size=(T, 200))
    nothing = np.zeros((T, 200), int)
    g = rewards_to_go(rewards, True)
    a = (g - g.mean()) / g.std(ddof=ddof)
    assert explain_advantages(a, record(nothing, nothing, rewards)).ddof == ddof


# ---- baselines that were not given


def rewards_to_go(rewards, mask):
    g = np.zeros(rewards.shape)
    for t in range(T):
        powers = GAMMA ** np.arange(T - t)
        g[t] = np.tensordot(powers, (rewards * mask)[t:], 1)
    return g


def leave_one_out(g, tasks):
    others = [np.delete(g, k, -1).mean(-1) for k in range(5)]
    return g - np.stack(others, -1)


def mean_over_time(g, tasks):
    return g - g.mean(-1, keepdims=True)


def linear(g, tasks):
    """rllab's LinearFeatureBaseline, with the state's one-hot vector for an observation."""
    result = np.zeros(g.shape)
    time = np.broadcast_to(np.arange(T)[:, None] / 100, (T, 5))
    for n in range(3):
        taken = tasks["mask"][:, n]
        al = time[taken]
        one_hot = np.eye(4)[tasks["states"][:, n][taken]]
        x = np.column_stack([one_hot, one_hot**2, al, al**2, al**3, np.ones(len(al))])
        y = g[:, n][taken]
        w = np.linalg.lstsq(x.T @ x + 1e-5 * np.eye(x.shape[1]), x.T @ y, rcond=None)[0]
        result[:, n][taken] = y - x @ w
    return result


def no_baseline(g, tasks):
    return g


@pytest.mark.parametrize(
    "less, name",
    [
        (no_baseline, "none"),
        (leave_one_out, "leave_one_out"),
        (mean_over_time, "time_mean"),
        (linear, "linear"),
    ],
)
@pytest.mark.parametrize("discount", [None, GAMMA])
def test_a_baseline_that_was_not_given_is_found(tasks, less, name, discount):
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    a = less(rewards_to_go(tasks["rewards"], tasks["mask"]), tasks) * tasks["mask"]
    e = explain_advantages(a, data, discount=discount)
    assert (e.kind, e.discount, e.lam, e.baseline) == ("G", GAMMA, 1, name)
    assert e.standardised == "no"


def test_values_that_were_not_given_and_are_none_of_these_cannot_be_told(tasks):
    given = [tasks[x] for x in ("rewards", "values", "last_values", "mask")]
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    e = explain_advantages(gae_of_tasks(*given), data)
    assert e.kind == "unknown"
    assert "cannot be told" in str(e)
    assert "Values were not given, or had a NaN" in str(e)
    given = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")), values=data.mask)
    noise = explain_advantages(np.random.default_rng(0).normal(size=data.mask.shape), given)
    assert noise.kind == "unknown" and "not given, or had" not in str(noise)


def test_without_dones_it_is_not_said_that_an_episode_terminated(tasks, lanes):
    values = [tasks[x] for x in ("rewards", "values", "last_values", "mask")]
    e = explain_advantages(record(**tasks, advantages=gae_of_tasks(*values)))
    assert e.at_dones == "stopped"
    assert "Where an episode ends before the arrays do, nothing is added" in str(e)
    assert "Where an episode terminated" not in str(e)
    values = [lanes[x] for x in ("rewards", "values", "last_values", "dones")]
    e = explain_advantages(record(**lanes, advantages=cleanrl(*values)))
    assert "Where an episode terminated, nothing is added" in str(e)


def test_a_task_without_rewards_is_no_obstacle(tasks):
    tasks["rewards"][:, 1] = 0
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    a = rewards_to_go(tasks["rewards"], tasks["mask"]) * tasks["mask"]
    e = explain_advantages(whole_batch(std_ddof_0)(a, tasks["mask"]), data)
    assert (e.discount, e.baseline, e.standardised, e.scope) == (GAMMA, "none", "std", "batch")


def test_a_task_of_few_steps_is_no_obstacle(tasks):
    tasks["mask"][2:, 1] = False
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    a = rewards_to_go(tasks["rewards"], tasks["mask"]) * tasks["mask"]
    e = explain_advantages(whole_batch(std_ddof_0)(a, tasks["mask"]), data)
    assert (e.discount, e.baseline, e.standardised, e.scope) == (GAMMA, "none", "std", "batch")


def test_a_bandits_advantages_tell_no_discount():
    rng = np.random.default_rng(5)
    rewards = rng.random((1, 30))
    nothing = np.zeros((1, 30), int)
    e = explain_advantages(std_ddof_1(rewards), record(nothing, nothing, rewards))
    assert (e.kind, e.discount, e.baseline, e.standardised) == ("G", None, "none", "std")
    assert "do not tell" in str(e)
    values = rng.random((1, 30))
    e = explain_advantages(rewards - values, record(nothing, nothing, rewards, values=values))
    assert (e.kind, e.discount, e.baseline, e.standardised) == ("G", None, "values", "no")


@pytest.mark.parametrize("lam", [LAM, 1.0])
def test_gae_of_a_table_of_values_that_were_not_given_is_found(tasks, lam):
    is_last = tasks["mask"] & ~np.append(tasks["mask"][1:], np.zeros((1, 3, 5), bool), 0)
    tasks["states"][is_last] = 4  # a state that no step follows
    tasks["values"] = np.array([0.0, 1.0, -1.0, 3.0, 7.0])[tasks["states"]]
    given = [tasks[x] for x in ("rewards", "values", "last_values", "mask")]
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    e = explain_advantages(std_ddof_0(gae_of_tasks(*given, lam)) * tasks["mask"], data)
    assert (e.discount, e.lam, e.baseline) == (GAMMA, lam, "linear")


def test_another_discount_than_the_one_given_is_a_mistake(tasks):
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    a = rewards_to_go(tasks["rewards"], tasks["mask"]) * tasks["mask"]
    e = explain_advantages(a, data, discount=0.9)
    assert e.discount == GAMMA
    assert "not the 0.9 that you gave: a mistake" in str(e)


@pytest.mark.parametrize("standardised", [False, True], ids=["plain", "standardised"])
def test_mistake_17_value_targets_from_standardised_advantages(tasks, standardised):
    a = gae_of_tasks(*(tasks[x] for x in ("rewards", "values", "last_values", "mask")))
    scaled = whole_batch(std_ddof_0)(a, tasks["mask"])
    targets = (scaled if standardised else a) + tasks["values"]
    e = explain_advantages(scaled, record(**tasks), targets=targets)
    assert ("which is a mistake: add V" in str(e)) == standardised


def discounted(a, mask):
    return GAMMA ** np.arange(T)[:, None, None] * a


def next_ones(a, mask):
    return np.append(a[1:], 0 * a[:1], 0)


def ones_before(a, mask):
    return np.append(0 * a[:1], a[:-1], 0) * mask


CHANGED = {
    "gamma^t": (discounted, "gamma^t", 1, "gamma^t stands in them already"),
    "shifted to earlier": (next_ones, "early", 1, r"A_(t+1) in the place of A_t: a mistake"),
    "shifted to later": (ones_before, "late", 1, r"A_(t-1) in the place of A_t: a mistake"),
    "negated": (lambda a, mask: -a, None, -1, "They are negated: a mistake, unless"),
    "scaled": (lambda a, mask: 0.1 * a, None, 0.1, "multiplied with 0.1: harmless"),
}


@pytest.mark.parametrize("standardised", [False, True], ids=["plain", "standardised"])
@pytest.mark.parametrize("lam", [LAM, 1.0])
@pytest.mark.parametrize("change", CHANGED)
def test_what_was_done_to_them_is_named(tasks, change, lam, standardised):
    of, changed, times, said = CHANGED[change]
    mask = tasks["mask"]
    a = gae_of_tasks(*(tasks[x] for x in ("rewards", "values", "last_values", "mask")), lam)
    a = each_task(std_ddof_0)(a, mask) if standardised else a
    e = explain_advantages(of(a, mask), record(**tasks), discount=GAMMA)
    assert (e.kind, e.discount, e.lam) == ("G" if lam == 1 else "GAE", GAMMA, lam)
    assert e.changed == changed and said in str(e)
    if changed in (None, "gamma^t"):  # what is shifted has lost the steps by which it was scaled
        assert e.times == pytest.approx(times)
        assert e.standardised == ("std" if standardised else "no")


@pytest.mark.parametrize("discount", [GAMMA, 1.0])
def test_the_whole_return_at_each_step_is_named(tasks, discount):
    powers = discount ** np.arange(T)[:, None, None]
    whole = (powers * tasks["rewards"] * tasks["mask"]).sum(0) * tasks["mask"]
    e = explain_advantages(whole, record(**tasks), discount=discount if discount < 1 else None)
    assert (e.kind, e.discount, e.baseline, e.times) == ("G_0", discount, "none", 1)
    assert "the whole return G_0 at each step" in str(e)


def test_the_mean_over_time_negated_is_told_from_the_mean_of_the_others(tasks):
    g = rewards_to_go(tasks["rewards"], tasks["mask"])
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    e = explain_advantages(-mean_over_time(g, tasks) * tasks["mask"], data)
    assert (e.baseline, e.times) == ("time_mean", -1)
    assert "equal to the baseline" not in str(e)


# ---- bad input


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a[:-1], "advantages: expected shape"),
        (lambda a: a[:, 0], "advantages: expected shape"),
        (lambda a: np.full(a.shape, np.nan), "advantages: not finite"),
        (lambda a: None, "advantages: the record has none"),
    ],
    ids=["shape", "no task", "nan", "none"],
)
def test_bad_advantages_are_named(tasks, change, message):
    with pytest.raises(ValueError, match=message):
        explain_advantages(change(tasks["rewards"]), record(**tasks))


def test_a_discount_that_is_none_is_named(tasks):
    with pytest.raises(ValueError, match="discount: 2"):
        explain_advantages(tasks["rewards"], record(**tasks), discount=2)


def test_targets_without_values_are_refused(tasks):
    data = record(*(tasks[x] for x in ("states", "actions", "rewards", "mask")))
    with pytest.raises(ValueError, match="values: the record has none"):
        explain_advantages(tasks["rewards"], data, targets=tasks["rewards"])


def test_what_is_no_record_is_named(tasks):
    with pytest.raises(ValueError, match="record: expected a `record`"):
        explain_advantages(tasks["rewards"])
