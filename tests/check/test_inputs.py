"""explain_inputs and explain_clipped, on trials that are laid out here a step at a time."""

import numpy as np
import pytest

from metarl_np import rl2
from metarl_np.check.clipped import explain_clipped
from metarl_np.check.inputs import explain_inputs
from metarl_np.tasks.random_mdps import random_mdps

T = 20
N = 4
S = 3
A = 3


@pytest.fixture
def trials():
    """States, actions, rewards and dones of N trials with episodes of unequal length."""
    rng = np.random.default_rng(0)
    dones = rng.random((T, N)) < 0.3
    dones[-1] = True
    actions = rng.integers(A, size=(T, N))
    actions[:A, 0] = range(A)
    states = rng.integers(S, size=(T, N))
    states[:S, 0] = range(S)
    return states, actions, rng.normal(size=(T, N)), dones


def layout(trials, *, delay=1, null=True, reset=False, flag=True):
    """(T, D, N): the state, no action yet, the action, the reward and the flag."""
    states, actions, rewards, dones = trials
    x = np.zeros((T, S + 1 + A + 2, N))
    for t in range(T):
        for n in range(N):
            x[t, states[t, n], n] = 1
            nothing = t < delay
            if reset and t > 0 and dones[t - 1, n]:
                nothing = True
            if nothing:
                x[t, S if null else S + 1, n] = 1
            else:
                before = t - delay
                x[t, S + 1 + actions[before, n], n] = 1
                x[t, -2, n] = rewards[before, n]
                x[t, -1, n] = dones[before, n] * flag
    return x


RIGHT = ["state"] * S + ["start"] + ["action"] * A + ["reward", "end"]


def mistakes(explanation):
    return [x for x in explanation.findings if "mistake" in x]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_right_layout_has_no_mistake(trials, dtype):
    e = explain_inputs(layout(trials).astype(dtype), *trials)
    assert [c.kind for c in e.columns] == RIGHT
    assert [c.delay for c in e.columns] == [0] * (S + 1) + [1] * (A + 2)
    assert all(c.carried for c in e.columns)
    assert e.null_action
    assert not mistakes(e)
    str(e).encode("cp1252")


def test_trials_may_come_before_columns(trials):
    e = explain_inputs(np.swapaxes(layout(trials), 1, 2), *trials)
    assert [c.kind for c in e.columns] == RIGHT


def test_one_trial_needs_no_axis(trials):
    e = explain_inputs(layout(trials)[..., 0], *(x[:, 0] for x in trials))
    assert [c.kind for c in e.columns] == RIGHT


def test_mistake_15_reset_emits_zeros(trials):
    e = explain_inputs(layout(trials, reset=True), *trials)
    lost = {c.kind for c in e.columns if not c.carried}
    assert lost == {"action", "reward"}
    assert [x[:21] for x in mistakes(e)] == ["A mistake: the action", "A mistake: the reward"]
    assert "a reset emits zeros" in str(e)


def test_mistake_18_the_first_input_says_arm_0(trials):
    e = explain_inputs(layout(trials, null=False), *trials)
    assert e.null_action is False
    assert mistakes(e) == [e.findings[-1]]
    assert "says that an action was taken" in str(e)


def test_the_action_of_the_same_step_leaks_in(trials):
    e = explain_inputs(layout(trials, delay=0), *trials)
    assert {c.delay for c in e.columns} == {0}
    assert "is not known yet when the policy acts" in str(e)


def test_what_is_shown_two_steps_late(trials):
    e = explain_inputs(layout(trials, delay=2), *trials)
    assert [c.delay for c in e.columns if c.kind == "reward"] == [2]
    assert "a step too late" in str(e)


@pytest.mark.parametrize("delay", [1, 2])
def test_a_state_that_has_passed(trials, delay):
    shown = np.zeros((T, N))
    shown[delay:] = trials[0][:-delay]
    e = explain_inputs(shown[:, None], *trials)
    assert (e.columns[0].kind, e.columns[0].delay) == ("state", delay)
    assert sum("has passed when the policy acts" in x for x in e.findings) == 1


def test_what_is_wrong_with_two_columns_is_said_once(trials):
    states = np.append(np.zeros((2, N)), trials[0], 0)
    e = explain_inputs(np.stack([states[1:-1], states[:-2]], 1), *trials)
    assert [c.delay for c in e.columns] == [1, 2]
    assert sum("has passed when the policy acts" in x for x in e.findings) == 1


def test_what_is_shown_at_the_first_steps_only_is_not_told(trials):
    starts = np.append(np.ones((1, N), bool), trials[3][:-1], 0)
    column = np.random.default_rng(4).normal(size=(T, N)) * starts
    assert explain_inputs(column[:, None], *trials).columns[0].kind == "unknown"


def test_a_hidden_state_that_is_cleared_at_some_episodes(trials):
    h = hidden_states(trials, trials[3] & (np.arange(T) < T // 2)[:, None])
    assert "is cleared at some of the episodes" in str(
        explain_inputs(layout(trials), *trials, hidden=h)
    )


def test_a_flag_that_is_never_shown(trials):
    e = explain_inputs(layout(trials, flag=False), *trials)
    assert "No column shows that an episode ended" in str(e)


OTHER = {
    "state": lambda s, a, r, d: s / 10,
    "action": lambda s, a, r, d: np.concatenate([0 * a[:1], a[:-1] + 1]),
    "reward": lambda s, a, r, d: np.concatenate([0 * r[:1], 0.1 * r[:-1]]),
    "time": lambda s, a, r, d: np.arange(T)[:, None] / T + 0 * s,
    "constant": lambda s, a, r, d: 0 * s + 1,
    "unknown": lambda s, a, r, d: r**2,
}


@pytest.mark.parametrize("kind", OTHER)
def test_other_columns_are_told(trials, kind):
    column = OTHER[kind](*trials)
    e = explain_inputs(column[:, None], *trials)
    assert [c.kind for c in e.columns] == [kind]


def standardised(r):
    return (r - r.mean()) / r.std()


REWARDS = {
    "clipped": (lambda r: np.clip(r, -0.5, 0.5), "grows with the reward"),
    "their signs": (np.sign, "grows with the reward"),
    "standardised": (standardised, "grows with the reward"),
    "of unknown origin": (lambda r: r**2, "No column shows the reward, unless"),
}


@pytest.mark.parametrize("change", REWARDS)
def test_rewards_that_are_changed_are_not_called_missing(trials, change):
    of, said = REWARDS[change]
    x = layout(trials)
    x[1:, -2] = of(trials[2][:-1])
    e = explain_inputs(x, *trials)
    assert said in str(e)
    assert not mistakes(e)


def test_a_reward_that_grows_with_it_may_be_late_or_lost(trials):
    x = layout(trials, delay=2)
    x[2:, -2] = np.clip(trials[2][:-2], -0.5, 0.5)
    assert "the reward comes a step too late" in str(explain_inputs(x, *trials))


def test_what_grows_while_all_rewards_are_equal_is_no_function_of_them(trials):
    states, actions, rewards, dones = trials
    squares = np.arange(T)[:, None] ** 2 + 0 * states
    e = explain_inputs(squares[:, None], states, actions, 0 * rewards, dones)
    assert e.columns[0].kind == "unknown"


def test_a_flag_that_says_that_an_episode_goes_on_shows_its_end(trials):
    x = layout(trials)
    x[1:, -1] = ~trials[3][:-1]
    e = explain_inputs(x, *trials)
    assert (e.columns[-1].kind, e.columns[-1].delay) == ("end", 1)
    assert "1 - done" in str(e) and not mistakes(e)


def test_a_hidden_state_that_never_changes_is_not_called_cleared(trials):
    e = explain_inputs(layout(trials), *trials, hidden=np.zeros((T, 5, N)))
    assert "The hidden state never changes" in str(e) and "cleared" not in str(e)


def test_a_number_for_the_action_shows_action_0_at_first(trials):
    shown = np.concatenate([np.zeros((1, N)), trials[1][:-1]])
    assert explain_inputs(shown[:, None], *trials).null_action is False


def hidden_states(trials, cleared):
    """h before each step: of a recurrent policy that is cleared where `cleared` says so."""
    rng = np.random.default_rng(1)
    h = np.zeros((T, 5, N))
    for t in range(1, T):
        h[t] = np.tanh(h[t - 1] + rng.normal(size=(5, N))) * ~cleared[t - 1]
    return h


@pytest.mark.parametrize(
    "times, sentence",
    [(0, "lives through all episodes"), (1, "is cleared at each episode, a mistake")],
    ids=["at a trial's start", "at each episode"],
)
def test_mistake_16_where_the_hidden_state_is_cleared(trials, times, sentence):
    h = hidden_states(trials, trials[3] & bool(times))
    assert sentence in str(explain_inputs(layout(trials), *trials, hidden=h))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("inputs", lambda x: x[:-1], "inputs: expected"),
        ("inputs", lambda x: x * np.nan, "inputs: not finite"),
        ("states", lambda x: x[None], "states: expected shape"),
        ("states", lambda x: [[1], [1, 2]], "states: setting an array"),
        ("states", lambda x: x * 1.5, "states: expected integers"),
        ("actions", lambda x: x[:-1], "actions: expected shape"),
        ("rewards", lambda x: x * np.inf, "rewards: not finite"),
        ("dones", lambda x: x + 1, "dones: not booleans"),
        ("hidden", lambda x: x[:-1], "hidden: expected"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_arguments_are_named(trials, name, change, message):
    states, actions, rewards, dones = trials
    given = dict(states=states, actions=actions, rewards=rewards, dones=dones)
    given |= dict(inputs=layout(trials), hidden=hidden_states(trials, dones))
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=message):
        explain_inputs(**given)


# ---- the gradient of the clipped surrogate


@pytest.fixture
def updated():
    """Logits after some steps of an update, actions, advantages and old log-probabilities."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(T, A, N))
    actions = rng.integers(A, size=(T, N))
    taken = np.take_along_axis(log_softmax_of(logits), actions[:, None], 1)[:, 0]
    return logits, actions, rng.normal(size=(T, N)), taken + 0.3 * rng.normal(size=(T, N))


def log_softmax_of(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def numerical_gradient(objective, updated, eps=1e-5):
    """∂ Σ objective(log π, log π_old, Â) / ∂ logits, by differences, one action for all steps."""
    logits, actions, advantages, old = updated

    def of(z):
        taken = np.take_along_axis(log_softmax_of(z), actions[:, None], 1)[:, 0]
        return objective(taken, old, advantages)

    columns = []
    for a in range(A):
        step = np.zeros((1, A, 1))
        step[0, a] = eps
        columns.append((of(logits + step) - of(logits - step)) / (2 * eps))
    return np.stack(columns, 1)


def ppo(new, old, a):
    ratio = np.exp(new - old)
    return np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)


def unclipped(new, old, a):
    return np.exp(new - old) * a


def maximum(new, old, a):
    ratio = np.exp(new - old)
    return np.maximum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)


def clipped_only(new, old, a):
    return np.clip(np.exp(new - old), 0.8, 1.2) * a


def no_ratio(new, old, a):
    return new * a


OBJECTIVES = {
    "ppo": ppo,
    "unclipped": unclipped,
    "clipped on the wrong side": maximum,
    "clipped on both sides": clipped_only,
    "no ratio": no_ratio,
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("factor", [1, -1, 1 / (T * N), -1 / N])
def test_a_clipped_gradient_is_called_what_it_is(updated, name, factor):
    g = factor * numerical_gradient(OBJECTIVES[name], updated)
    e = explain_clipped(g, *updated, clip=0.2)
    assert e.name == name
    assert e.factor == pytest.approx(factor)
    assert e.differs.any() == (name != "ppo")
    assert ("mistake" in e.findings[0]) == (name != "ppo")
    str(e).encode("cp1252")


def test_where_all_steps_are_clipped_the_right_gradient_is_0(updated):
    logits, actions, advantages, old = updated
    given = (logits, actions, abs(advantages), old - 9)  # all ratios are above 1 + ε
    e = explain_clipped(np.zeros(logits.shape), *given, clip=0.2)
    assert (e.name, e.factor) == ("ppo", 0)
    e = explain_clipped(numerical_gradient(unclipped, given), *given, clip=0.2)
    assert e.name == "unclipped"


@pytest.mark.parametrize(
    "moved, objective, alike",
    [
        (0.0, no_ratio, "ppo, unclipped, clipped on both sides, clipped on the wrong side, no "),
        (0.05, unclipped, "ppo, unclipped, clipped on both sides, clipped on the wrong side. Take"),
        (0.05, no_ratio, "no ratio, no ratio, clipped. Take"),
    ],
    ids=["no ratio at ratios of 1", "no clip where none is passed", "no ratio and no clip"],
)
def test_what_the_data_cannot_tell_is_said(updated, moved, objective, alike):
    logits, actions, advantages, old = updated
    taken = np.take_along_axis(log_softmax_of(logits), actions[:, None], 1)[:, 0]
    given = logits, actions, advantages, taken + moved * np.sign(old - taken)
    e = explain_clipped(numerical_gradient(objective, given), *given, clip=0.2)
    assert "the following are equal, and it is one of them: " + alike in str(e)
    assert "as it should be" not in str(e)


def test_it_says_at_which_steps_a_gradient_differs(updated):
    g = numerical_gradient(ppo, updated)
    g[7, :, 2] = [1, -1, 0]
    e = explain_clipped(g, *updated, clip=0.2)
    assert e.name == "unknown"
    assert np.argwhere(e.differs).tolist() == [[7, 2]]


@pytest.mark.parametrize(
    "place, change, message",
    [
        (0, lambda x: x[:-1], "logits: expected"),
        (1, lambda x: x + A, "actions: not in 0..2"),
        (1, lambda x: [[1], [1, 2]], "actions: setting an array"),
        (2, lambda x: x[:-1], "advantages: expected shape"),
        (3, lambda x: x * np.nan, "old_log_probs: not finite"),
    ],
)
def test_bad_arguments_of_a_clipped_gradient_are_named(updated, place, change, message):
    given = list(updated)
    g = np.zeros((T, A, N))
    given[place] = change(given[place])
    with pytest.raises(ValueError, match=message):
        explain_clipped(g, *given, clip=0.2)


# ---- our own trials


def test_the_packages_own_trials_have_no_mistake():
    rng = np.random.default_rng(3)
    tasks = random_mdps(rng, 6, n_states=3, n_actions=2, horizon=4, discount=1.0)
    policy = rl2.RecurrentPolicy(3, 2, 5)
    theta = policy.init(rng)
    trials = rl2.sample_trials(rng, tasks, policy, theta, 5)
    _, _, after = policy.unroll(theta, trials)
    hidden = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    dones = trials.time == 3
    recorded = (trials.states, trials.actions, trials.rewards, dones)
    e = explain_inputs(trials.inputs, *recorded, hidden=hidden)
    kinds = ["state"] * 3 + ["start"] + ["action"] * 2 + ["reward", "end"]
    assert [c.kind for c in e.columns] == kinds
    assert e.null_action
    assert not mistakes(e)
    assert "lives through all episodes" in str(e)


def test_a_clipped_gradient_that_is_zero_everywhere_is_no_gradient():
    logits = np.array([[0.3, -0.2], [0.1, 0.4]])
    arguments = (logits, [0, 1], [1.0, -1.0], [-0.6, -0.6])
    with pytest.raises(ValueError, match="^gradient: zero everywhere: does the loss reach"):
        explain_clipped(0 * logits, *arguments, clip=0.2)
