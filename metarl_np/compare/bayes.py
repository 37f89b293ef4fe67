"""The Bayes-optimal return, exactly: what no learner can surpass.

`optimal_returns` is for any prior over finitely many tasks, `bayes_optimal` for independent
Bernoulli arms whose means are drawn from U[0, 1], of which there are endlessly many.
"""

from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from metarl_np import arguments
from metarl_np.arguments import require, require_floats, require_memory, validate
from metarl_np.tasks.bandits import DEPENDENT, bernoulli
from metarl_np.tasks.mdp import rounding


def optimal_returns(mdps, episodes, prior=None, *, max_posteriors=5_000_000):
    """The expected return of each of n = `episodes` episodes, played Bayes-optimally: (n,).

    mdps: an MDP of the C tasks that are possible. prior: their probabilities (C,), by default all
    alike. The task is drawn from it, stays the same for the trial, and is not told. Optimal is the
    policy that makes the trial's return, the sum over its episodes of E Σ_t γᵗ r_t with the tasks'
    own γ, as large as possible; it may depend on all that has been seen: where episodes start, and
    each step's state, action, reward, next state, and whether that is terminal. If several policies
    are optimal, one of them is followed. Exact but for rounding: by dynamic programming over
    (posterior, state, time, episode).

    Raises ValueError where more than max_posteriors posteriors would have to be kept, and on tasks
    with Gaussian noise, whose posteriors are endless.
    """
    validate(mdps=mdps)
    episodes, max_posteriors = validate(episodes=episodes, max_posteriors=max_posteriors)
    n_tasks = len(mdps)
    noisy = "rewards with Gaussian noise, which has endlessly many posteriors"
    require(not mdps.reward_noise.any(), "mdps", noisy)
    if prior is None:
        prior = np.full(n_tasks, 1 / n_tasks)
    weights = require_floats("prior", prior, (n_tasks,), traced=False)
    is_distribution = (weights >= 0).all() and abs(weights.sum() - 1) < rounding(prior)
    require(is_distribution, "prior", "no probabilities that sum to one")

    met = _meet(
        _family(mdps),
        weights / weights.sum(),
        episodes=episodes,
        horizon=mdps.horizon,
        max_posteriors=max_posteriors,
    )
    return _play(met, _plan(met, mdps.discount), mdps.discount)


# ---- how that is found
#
# A learner knows where it is, how many steps and episodes have passed, and the posterior, how
# probable each task is after all that it has seen. Nothing else that it has seen matters, so the
# optimum is a function of (posterior, state, time, episode): Martin (1967), Duff (2002). `_meet`
# goes forward through the posteriors that can be met, each of which is kept once; `_plan` goes
# backward through the values; `_play` goes forward once more, along what the plan does.

DECIMALS = 12  # of a probability: posteriors that agree so far are taken for one
TIE = 1e-12  # an action is preferred to one before it only if it is better by more than this
BLOCK = 16_384  # posteriors whose values stay in a core's cache until all actions are compared


class _Outcome(NamedTuple):
    """What may be seen after an action, or when an episode starts."""

    evidence: int  # the row of `_Family.likelihoods`
    state: int  # s', or the start
    reward: float
    ends: bool  # the episode, since s' is terminal


@dataclass(frozen=True, eq=False)
class _Family:
    """What may be seen in C possible tasks."""

    likelihoods: np.ndarray  # (E, C) how probable each kind of evidence is in each task
    starts: list  # of Outcome
    moves: list  # moves[s][a] is a list of Outcome; moves[s] is empty if s is terminal everywhere


def _family(mdps):
    """Family of the C tasks of an MDP.

    Outcomes of (s, a) are told apart by s', by whether s' is terminal, and by the reward as the
    sampler gives it, in float32.
    """
    n_states, n_actions = mdps.shape[1:]
    numbers = {}  # of the kinds of evidence, by the bytes of their likelihoods

    def evidence(likelihood):
        return numbers.setdefault(likelihood.astype(float).tobytes(), len(numbers))

    starts = []
    for s in np.flatnonzero(mdps.start.any(0)):
        starts.append(_Outcome(evidence(mdps.start[:, s]), int(s), reward=0.0, ends=False))
    moves = []
    for s in range(n_states):
        actions = [] if mdps.terminal[:, s].all() else range(n_actions)
        moves.append([_outcomes(mdps, s, a, evidence) for a in actions])
    likelihoods = np.array([np.frombuffer(likelihood) for likelihood in numbers])
    return _Family(likelihoods, starts, moves)


def _outcomes(mdps, s, a, evidence):
    """The Outcomes of action a in state s; evidence: likelihood (C,) → its number."""
    states = mdps.successors[:, s, a]  # (C, Z)
    ends = np.take_along_axis(mdps.terminal, states, 1)
    rewards = mdps.rewards[:, s, a]
    p = mdps.probabilities[:, s, a] * ~mdps.terminal[:, s, None]  # nobody acts in a terminal state
    seen = np.stack([states, ends, rewards.astype(np.float32)], -1)
    outcomes = []
    for state, is_end, reward in np.unique(seen[p > 0], axis=0):
        is_this = (seen == (state, is_end, reward)).all(-1)
        likelihood = (p * is_this).sum(-1)
        exact_reward = rewards[is_this][0]  # in float64
        number = evidence(likelihood)
        outcomes.append(_Outcome(number, int(state), float(exact_reward), bool(is_end)))
    return outcomes


class _Posteriors:
    """The M posteriors that have been met, by number. Number 0 is the prior."""

    def __init__(self, prior, likelihoods):
        self.weights = prior[None]  # (M, C) how probable each task is
        self.likelihoods = likelihoods
        # where nothing is left to chance a posterior is known by the set of tasks that are left
        self.are_sets = np.isin(likelihoods, (0, 1)).all()
        self.keys = self._keys(self.weights)

    def __len__(self):
        return len(self.weights)

    def _keys(self, weights):
        """What tells posteriors (B, C) apart: (B,)."""
        if self.are_sets:
            bits = np.packbits(weights > 0, axis=1)
            width = 8 * -(-bits.shape[1] // 8)
            rows = np.pad(bits, ((0, 0), (0, width - bits.shape[1])))
        else:
            rows = np.round(weights, DECIMALS) + 0.0  # which makes 0 of −0
            rows = rows.view(np.uint8)
            width = rows.shape[1]
        return rows.view(np.uint64 if width == 8 else f"V{width}")[:, 0]

    def update(self, wanted):
        """Bayes' rule: {evidence: numbers} → {evidence: (how probable it is, what they become)}.

        All are (B,). Where evidence is impossible or certain a posterior stays what it is.
        """
        updates = sum(map(len, wanted.values()))
        fits = 3 * updates * self.keys.itemsize <= arguments.MAX_BYTES
        _require(fits, self, f"and {updates:,} updates of them to be compared, too many")
        became = {}
        tell = {}  # where the evidence tells something
        keys = [self.keys]
        pairs = []
        for e, numbers in wanted.items():
            chance = self.chance(e, numbers)
            became[e] = chance, numbers.astype(np.int32)
            tell[e] = (chance > 0) & (chance < 1 - 0.1**DECIMALS)
            before = numbers[tell[e]]
            pairs.append(np.stack([np.full(len(before), e), before]))
            keys.append(self._keys(self._bayes(e, before)))
        keys = np.concatenate(keys)
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        is_new = first >= len(self)
        number_of = first.copy()
        number_of[is_new] = len(self) + np.arange(is_new.sum())
        after = number_of[which[len(self) :]]
        for e, (_, numbers) in became.items():
            here, after = np.split(after, [tell[e].sum()])
            numbers[tell[e]] = here

        made = first[is_new]
        evidence, before = np.concatenate(pairs, 1)[:, made - len(self)]
        self.keys = np.concatenate([self.keys, keys[made]])
        self.weights = np.concatenate([self.weights, self._bayes(evidence, before)])
        return became

    def chance(self, evidence, numbers):
        """How probable it is in B posteriors: (B,)."""
        return self.weights[numbers] @ self.likelihoods[evidence]

    def _bayes(self, evidence, numbers):
        """P(task | posterior, evidence) of B posteriors, for the same evidence or one each."""
        joint = self.weights[numbers] * self.likelihoods[evidence]
        return joint / joint.sum(1, keepdims=True)


class _Link:
    """What comes of an Outcome at each of the B pairs of posterior and state where it may be met.

    While pairs are being met both are lists of parts.
    """

    def __init__(self, outcome):
        self.outcome = outcome
        self.chance = []  # (B,) how probable it is
        self.after = []  # (B,) the number of what the posterior becomes


@dataclass(frozen=True, eq=False)
class _Meeting:
    """All M posteriors, and all B pairs of a posterior and a state s, that can be met.

    Pairs are in the order in which they are met.
    """

    n_posteriors: int  # M
    started: np.ndarray  # (n,) how many posteriors have been met before episode e starts
    starts: list  # of Link, for each posterior
    posteriors: list  # of each state's pairs: (B,)
    moves: list  # moves[s][a] is a list of Link, for each of the state's pairs
    sizes: np.ndarray  # (n, T, S) how many of the pairs have been met when step t is taken


def _meet(seen, prior, *, episodes, horizon, max_posteriors):
    """The Meeting of a Family in n episodes, by following each pair up when it is first met.

    It may be met again at any later step. So when an episode ends all posteriors met so far are
    followed to the next start, be it possible to have them just then or not; and what comes of the
    pairs at the horizon is met in the next episode, where these may be met before the horizon.
    """
    n_states = len(seen.moves)
    starts = [_Link(outcome) for outcome in seen.starts]
    moves = []
    for actions in seen.moves:
        moves.append([[_Link(outcome) for outcome in outcomes] for outcomes in actions])
    of_state_links = [[link for links in actions for link in links] for actions in moves]
    known = _Posteriors(prior, seen.likelihoods)
    posteriors = [[] for _ in range(n_states)]
    is_met = np.zeros((n_states, 1), bool)
    started = np.zeros(episodes, int)
    sizes = np.zeros((episodes, horizon, n_states), int)
    followed = 0
    at_horizon = np.zeros((n_states, 0), bool)
    for e in range(episodes):
        started[e] = len(known)
        reached = _follow(known, [np.arange(followed, len(known))], [starts], n_states)
        followed = started[e]
        for t in range(horizon):
            when = f"step {t} of episode {e}"
            _require_room(known, moves, sizes, when, max_posteriors)
            if t == 1:
                reached[:, : at_horizon.shape[1]] |= at_horizon
            is_met = np.pad(is_met, ((0, 0), (0, len(known) - is_met.shape[1])))
            new = reached & ~is_met
            is_met |= reached
            here = [np.flatnonzero(row) for row in new]
            for numbers, of_state in zip(here, posteriors):
                of_state.append(numbers)
            sizes[e, t] = is_met.sum(1)
            last = e == episodes - 1 and t == horizon - 1
            reached = _follow(known, here, of_state_links, n_states, last=last)
        at_horizon = reached
    for link in starts + sum(of_state_links, []):
        link.chance = np.concatenate(link.chance)
        link.after = np.concatenate(link.after)
    posteriors = [np.concatenate(numbers) for numbers in posteriors]
    return _Meeting(len(known), started, starts, posteriors, moves, sizes)


def _follow(known, here, links, n_states, last=False):
    """Add what comes next to the links: which pairs it leads to, (S, M) bool.

    here: numbers of posteriors (B,), new ones, for each list of links. last: nothing comes next.
    """
    parts = {}
    for numbers, of_state in zip(here, links):
        for link in of_state:
            parts.setdefault(link.outcome.evidence, []).append(numbers)
    wanted = {e: _union(several, len(known)) for e, several in parts.items()}
    if last:
        became = {e: (known.chance(e, numbers), numbers) for e, numbers in wanted.items()}
    else:
        became = known.update(wanted)
    reached = np.zeros((n_states, len(known)), bool)
    for numbers, of_state in zip(here, links):
        for link in of_state:
            e = link.outcome.evidence
            chance, after = (x[np.searchsorted(wanted[e], numbers)] for x in became[e])
            link.chance.append(chance)
            link.after.append(after)
            if not link.outcome.ends:
                reached[link.outcome.state, after[chance > 0]] = True
    return reached


def _union(several, size):
    """The numbers below `size` that stand in one of several arrays, ascending: (B,)."""
    is_there = np.zeros(size, bool)  # np.unique would take four times as long
    for numbers in several:
        is_there[numbers] = True
    return np.flatnonzero(is_there)


def _require_room(known, moves, sizes, when, max_posteriors):
    """ValueError, telling what to lower, if too much has been met.

    moves and sizes are those of a Meeting, up to now.
    """
    pairs = sizes.max((0, 1))  # of each state
    links = [sum(map(len, actions)) for actions in moves]
    planned = pairs.sum() * sizes.shape[0] * sizes.shape[1]
    values = len(known) * (known.weights.shape[1] + 2 * len(moves))
    needed = 12 * (pairs @ links) + planned + 8 * values
    too_many = f"above max_posteriors = {max_posteriors:,}"
    too_large = f"which take {needed:,} bytes, above arguments.MAX_BYTES"
    _require(len(known) <= max_posteriors, known, f"by {when}, {too_many}")
    _require(needed <= arguments.MAX_BYTES, known, f"by {when}, {too_large}")


def _require(good, known, why):
    """ValueError if too many posteriors are known."""
    lower = "lower episodes, or the horizon or the number of the tasks"
    require(good, "episodes", f"{len(known):,} posteriors met {why}: {lower}")


def _plan(met, discount):
    """The best action at each episode and step in each state: actions[e][t][s] (B,).

    Q(b, s, a) = Σ_o P(o|b, s, a) (γᵗ r_o + V(b_o, s_o)) and V = max_a Q, by backward induction from
    the end of the last episode. Where an episode ends the next one's start follows.
    """
    episodes, horizon, n_states = met.sizes.shape
    actions = [[None] * horizon for _ in range(episodes)]
    at_start = np.zeros(met.n_posteriors)  # V as the next episode starts
    for e in reversed(range(episodes)):
        v = [at_start] * n_states  # V (M,) in each state, at the horizon
        for t in reversed(range(horizon)):
            v, actions[e][t] = _backup(met, met.sizes[e, t], discount**t, v, at_start)
        part = slice(met.started[e])
        of_posteriors = _expected(met.starts, part, 1.0, v, at_start)
        at_start = np.zeros(met.n_posteriors)
        at_start[part] = of_posteriors
    return actions


def _backup(met, sizes, discount, v, at_start):
    """V one step earlier (M,) and the best actions (B,), for each state.

    Of the pairs only those that have been met by then, sizes (S,); at others V is 0 and not read.
    """
    before = []
    actions = []
    for numbers, choices, size in zip(met.posteriors, met.moves, sizes):
        v_s = np.zeros(met.n_posteriors)
        action = np.zeros(size, np.min_scalar_type(len(choices)))
        for low in range(0, size, BLOCK):
            part = slice(low, min(low + BLOCK, size))
            best = -np.inf
            for a, links in enumerate(choices):
                q = _expected(links, part, discount, v, at_start)
                action[part][q > best + TIE] = a
                best = np.maximum(best, q)
            v_s[numbers[part]] = best
        before.append(v_s)
        actions.append(action)
    return before, actions


def _expected(links, part, discount, v, at_start):
    """Σ_o P(o) (γᵗ r_o + V(b_o, s_o)) for a slice of the pairs: (B,)."""
    total = 0.0
    for link in links:
        following = at_start if link.outcome.ends else v[link.outcome.state]
        worth = following.take(link.after[part])
        worth += discount * link.outcome.reward
        worth *= link.chance[part]
        total = total + worth
    return total


def _play(met, actions, discount):
    """The expected return of each episode under the plan, by following it forward: (n,)."""
    episodes, horizon, n_states = met.sizes.shape
    returns = np.zeros(episodes)
    at_start = np.zeros(met.n_posteriors)  # how probable each posterior is there
    at_start[0] = 1.0
    for e in range(episodes):
        mass = np.zeros((n_states, met.n_posteriors))  # how probable each pair is
        for link in met.starts:
            _move(at_start[: len(link.after)], link, to=mass[link.outcome.state])
        at_start = np.zeros(met.n_posteriors)
        for t in range(horizon):
            now = mass
            mass = np.zeros_like(now)
            for s, best in enumerate(actions[e][t]):
                here = now[s, met.posteriors[s][: len(best)]]
                for a, links in enumerate(met.moves[s]):
                    acting = here * (best == a)
                    for link in links:
                        to = at_start if link.outcome.ends else mass[link.outcome.state]
                        probability = _move(acting, link, to)
                        returns[e] += probability * discount**t * link.outcome.reward
        at_start += mass.sum(0)  # the horizon ends the episode
    return returns


def _move(mass, link, to):
    """Add to `to` the part of the mass that takes this link; returns how much that is."""
    pairs = np.flatnonzero(mass)
    moved = mass[pairs] * link.chance[pairs]
    np.add.at(to, link.after[pairs], moved)
    return moved.sum()


# ---- Bernoulli arms


def bayes_optimal(arms, pulls, *, max_states=1_000_000):
    """max E Σ r over `pulls` pulls of k = `arms` arms with means from U[0, 1]: a number.

    By dynamic programming over sorted lists of (s, f), the successes and failures of each arm.
    Raises ValueError, with the number of states and how far one gets, if that is above max_states:
    k = 2, 5, 10 go to n = 81, 23, 20.
    """
    arms, pulls, max_states = validate(arms=arms, pulls=pulls, max_states=max_states)
    counted = min(pulls, 16)  # only as many as are needed: the numbers grow beyond floats
    states = _number_of_states(min(arms, counted), counted)
    while counted < pulls and states[-1] <= max_states:
        counted = min(2 * counted, pulls)
        states = _number_of_states(min(arms, counted), counted)
    most = (states <= max_states).sum()
    at_least = "" if counted == pulls else "more than "
    needs = f"{arms}, {pulls} need {at_least}{states[-1]:.4g} states"
    why = f"{needs}, above max_states = {max_states}; {arms} arms can be solved for {most} pulls"
    require(states[-1] <= max_states, "arms, pulls", why)
    k = min(arms, pulls)  # more arms than pulls are all the same
    require_memory(16, k, k, states[-1])  # every outcome of every arm

    # An arm's (s, f) is the code s·n + f, a state a sorted list of codes. Forward: the states that
    # are reached after each pull, and which state follows each pull and outcome.
    s = np.arange(pulls)[:, None]
    f = np.arange(pulls)
    mean = ((s + 1) / (s + f + 2)).ravel()  # by code
    success_or_failure = np.array([pulls, 1])[:, None] * np.eye(k, dtype=int)[:, None]
    layer = np.zeros((1, k), int)
    steps = []
    for _ in range(pulls - 1):
        p = mean[layer]  # (states, k)
        after = layer[:, None, None] + success_or_failure  # (states, arm, outcome, k)
        every = np.sort(after).reshape(-1, k)
        layer, link = np.unique(every, axis=0, return_inverse=True)
        steps.append((p, link.reshape(after.shape[:3])))

    v = mean[layer].max(1)  # backward
    for p, link in reversed(steps):
        q = p * (1 + v[link[..., 0]]) + (1 - p) * v[link[..., 1]]
        v = q.max(1)
    return float(v[0])


def _number_of_states(k, pulls):
    """How many states can be met in the first n pulls, n = 1 … `pulls`: (pulls,).

    ways[j, t] counts the sorted lists of j arms with t pulls in all. Arms of m pulls each, which
    have m + 1 codes, are added for one m after the other: r of them in comb(m + r, r) ways.
    """
    ways = np.pad([[1.0]], ((0, k), (0, pulls - 1)))
    for m in range(1, pulls):
        total = 0
        for r in range(min(k, pulls // m) + 1):
            shifted = np.pad(ways, ((r, 0), (r * m, 0)))[: k + 1, :pulls]
            total = total + comb(m + r, r) * shifted
        ways = total
    return ways.sum(0).cumsum()


def dependent_optimal(difficulty, pulls):
    """The best expected reward of each pull of `bandits.dependent` arms: (n,).

    The arms' means are p and 1 − p. What n pulls bring is a polynomial in p of degree n, so for
    p ~ U[0, 1] the n/2 + 1 points of Gauss and Legendre, with their weights as the prior, are
    exact. Raises ValueError for another difficulty, and as `optimal_returns` does.
    """
    pulls = validate(pulls=pulls)
    require_memory(8, pulls, pulls)
    known = ("uniform", *DEPENDENT)
    is_known = isinstance(difficulty, str) and difficulty in known
    require(is_known, "difficulty", f"{difficulty!r:.99} is not one of {', '.join(known)}")
    if difficulty == "uniform":
        x, weights = np.polynomial.legendre.leggauss(pulls // 2 + 1)  # on [−1, 1]
    else:
        x = np.array([1, -1]) * (1 - 2 * DEPENDENT[difficulty])
        weights = np.ones(2)
    p = (1 + x) / 2
    return optimal_returns(bernoulli(np.stack([p, 1 - p], -1)), pulls, weights / 2)
