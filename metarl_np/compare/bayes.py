"""The Bayes-optimal return, exactly: what no learner can surpass.

`optimal_returns` is for any prior over finitely many tasks, `bayes_optimal` and
`dependent_optimal` are for Bernoulli arms whose means are drawn from U[0, 1].
"""

from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np

from metarl_np import arguments
from metarl_np.arguments import require, require_floats, require_memory, validate
from metarl_np.tasks.bandits import DEPENDENT
from metarl_np.tasks.mdp import rounding

# ---- any prior over finitely many tasks
#
# A learner knows where it is, how many steps and episodes have passed, and the posterior, how
# probable each task is after all that it has seen. Nothing else that it has seen matters, so the
# optimum is a function of (posterior, state, time, episode): Martin (1967), Duff (2002). `meet`
# goes forward through the posteriors that can be met, each of which is kept once; `plan` goes
# backward through the values; `play` goes forward once more, along what the plan does.

DECIMALS = 12  # of a probability: posteriors that agree so far are taken for one
TIE = 1e-12  # an action is preferred to one before it only if it is better by more than this
BLOCK = 16_384  # posteriors whose values stay in a core's cache until all actions are compared


class Outcome(NamedTuple):
    """What may be seen after an action, or when an episode starts."""

    evidence: int  # the row of `Family.likelihoods`
    state: int  # s', or the start
    reward: float
    ends: bool  # the episode, since s' is terminal


@dataclass(frozen=True, eq=False)
class Family:
    """What may be seen in C possible tasks."""

    likelihoods: np.ndarray  # (E, C) how probable each kind of evidence is in each task
    starts: list  # of Outcome
    moves: list  # moves[s][a] is a list of Outcome; moves[s] is empty if s is terminal everywhere


def family(mdps):
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
        starts.append(Outcome(evidence(mdps.start[:, s]), int(s), reward=0.0, ends=False))
    moves = []
    for s in range(n_states):
        actions = [] if mdps.terminal[:, s].all() else range(n_actions)
        moves.append([_outcomes(mdps, s, a, evidence) for a in actions])
    likelihoods = np.array([np.frombuffer(likelihood) for likelihood in numbers])
    return Family(likelihoods, starts, moves)


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
        outcomes.append(Outcome(number, int(state), float(exact_reward), bool(is_end)))
    return outcomes


class Posteriors:
    """The M posteriors that have been met, by number. Number 0 is the prior."""

    def __init__(self, prior, likelihoods):
        self.weights = prior[None]  # (M, C) how probable each task is
        self.likelihoods = likelihoods
        # where nothing is left to chance a posterior is known by the set of tasks that are left
        self.are_sets = np.isin(likelihoods, (0, 1)).all()
        self.keys = self._keys(self.weights)
        self.links = []  # (evidence, posteriors, how probable it is there, what they become)

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

    def _joint(self, evidence, numbers):
        """P(task | posterior) P(evidence | task): (B, C) for B pairs of the two."""
        return self.weights[numbers] * self.likelihoods[evidence]

    def update(self, wanted):
        """Bayes' rule: {evidence: numbers} → {evidence: (numbers, what they become)}.

        Left out are the posteriors in which the evidence is impossible.
        """
        chances = self.chances(wanted)
        evidence = np.repeat(list(chances), [len(numbers) for numbers, _ in chances.values()])
        before = np.concatenate([numbers for numbers, _ in chances.values()])
        new_keys = []
        for kind, (numbers, chance) in chances.items():
            new_keys.append(self._keys(self._joint(kind, numbers) / chance[:, None]))
        _, first, which = np.unique(
            np.concatenate([self.keys, *new_keys]), return_index=True, return_inverse=True
        )
        is_new = first >= len(self)
        numbers = first.copy()
        numbers[is_new] = len(self) + np.arange(is_new.sum())
        after = numbers[which[len(self) :]].astype(np.int32)

        made = first[is_new] - len(self)
        joint = self._joint(evidence[made], before[made])
        self.keys = np.concatenate([self.keys, np.concatenate(new_keys)[made]])
        self.weights = np.concatenate([self.weights, joint / joint.sum(1, keepdims=True)])
        became = {}
        low = 0
        for kind, (numbers, chance) in chances.items():
            high = low + len(numbers)
            became[kind] = numbers, after[low:high]
            self.links.append((kind, numbers, chance, after[low:high]))
            low = high
        return became

    def foresee(self, wanted):
        """`chances` as links, for a last step: what posteriors become is not asked, and left 0."""
        for kind, (numbers, chance) in self.chances(wanted).items():
            self.links.append((kind, numbers, chance, 0))

    def chances(self, wanted):
        """{evidence: numbers} → {evidence: (numbers, how probable it is)}, where it is possible."""
        possible = {}
        for kind, numbers in wanted.items():
            chance = self.weights[numbers] @ self.likelihoods[kind]
            good = chance > 0
            possible[kind] = numbers[good], chance[good]
        return possible


def meet(seen, prior, *, episodes, horizon, max_posteriors):
    """All Posteriors that can be met, and how many have been met by then: sizes (n, T + 1).

    sizes[e, 0] is the number before episode e starts, sizes[e, t + 1] that before step t. A pair of
    posterior and state is followed up once, when it is first met. It may be met again at a later
    step: so at the end of an episode all that have been met are followed to the next start, be it
    possible to be there just then or not.
    """
    n_states = len(seen.moves)
    starts = [(0, outcome) for outcome in seen.starts]
    moves = []
    for s, actions in enumerate(seen.moves):
        moves += [(s, outcome) for outcomes in actions for outcome in outcomes]
    known = Posteriors(prior, seen.likelihoods)
    met = np.zeros((n_states, 1), bool)
    started = 0
    sizes = np.zeros((episodes, horizon + 1), int)

    def require_few(episode, step):
        numbers = sizes.size * n_states + 8 * n_states + 8 * len(prior) + 12 * len(seen.likelihoods)
        most = min(max_posteriors, arguments.MAX_BYTES // numbers)
        limit = f"max_posteriors = {max_posteriors:,}"
        if most < max_posteriors:
            limit = f"the {most:,} that arguments.MAX_BYTES has room for"
        where = f"{len(known):,} posteriors met by step {step} of episode {episode}"
        lower = "lower episodes, or the horizon or the number of the tasks"
        require(len(known) <= most, "episodes", f"{where}, above {limit}: {lower}")

    for e in range(episodes):
        sizes[e, 0] = len(known)
        here = np.arange(len(known))[None] >= started
        started = len(known)
        uses = starts
        for t in range(horizon):
            reached = _follow(known, here, uses, n_states)
            require_few(e, t)
            met = np.pad(met, ((0, 0), (0, len(known) - met.shape[1])))
            here = reached & ~met
            met |= reached
            sizes[e, t + 1] = len(known)
            uses = moves
        if e < episodes - 1:
            _follow(known, here, uses, n_states)
            require_few(e, horizon)
        else:  # nothing comes of the last step but its reward
            known.foresee(_wanted(here, uses))
    return known, sizes


def _wanted(here, uses):
    """{evidence: the posteriors it may be met in}: here (S, M) bool, uses a list of (s, Outcome)."""
    states = {}
    for s, outcome in uses:
        states.setdefault(outcome.evidence, set()).add(s)
    wanted = {}
    for evidence, where in states.items():
        wanted[evidence] = np.flatnonzero(here[list(where)].any(0))
    return wanted


def _follow(known, here, uses, n_states):
    """The (state, posterior) that come next, but for episodes that end: (S, M) → (S, M') bool."""
    before = len(known)
    became = known.update(_wanted(here, uses))
    reached = np.zeros((n_states, len(known)), bool)
    for evidence, (numbers, after) in became.items():
        next_number = np.full(before, -1)
        next_number[numbers] = after
        for s, outcome in uses:
            if outcome.evidence == evidence and not outcome.ends:
                following = next_number[here[s]]
                reached[outcome.state, following[following >= 0]] = True
    return reached


class Tables(NamedTuple):
    """What evidence does to the M posteriors, where it can be met; elsewhere 0."""

    chance: np.ndarray  # (E, M) how probable it is
    after: np.ndarray  # (E, M) the number of what the posterior becomes


def tables(known):
    """Tables of the links of Posteriors."""
    shape = len(known.likelihoods), len(known)
    chance = np.zeros(shape)
    after = np.zeros(shape, np.int32)
    # of the last step it is not known what posteriors become: what is known from before stays
    for evidence, numbers, probability, became in reversed(known.links):
        chance[evidence, numbers] = probability
        after[evidence, numbers] = became
    return Tables(chance, after)


def plan(seen, links, sizes, discount):
    """The best action at each episode and step, in each state and posterior: actions[e][t] (S, M).

    Q(b, s, a) = Σ_o P(o|b, s, a) (γᵗ r_o + V(b_o, s_o)), V = max_a Q, by backward induction from
    the end of the last episode. Where an episode ends the next one's start follows. What stands at
    pairs of state and posterior that cannot be met means nothing, and is never read at those that
    can be.
    """
    n_episodes, horizon = len(sizes), sizes.shape[1] - 1
    actions = [[None] * horizon for _ in range(n_episodes)]
    at_start = np.zeros(links.after.shape[1])  # V when the next episode starts: (M,)
    for e in reversed(range(n_episodes)):
        v = None
        for t in reversed(range(horizon)):
            size = sizes[e, t + 1]
            last = t == horizon - 1
            v, actions[e][t] = _backup(seen, links, size, discount**t, at_start, None if last else v)
        at_start = _expected(seen.starts, links, slice(sizes[e, 0]), 1.0, at_start, v)
    return actions


def _backup(seen, links, size, discount, at_start, v):
    """(V (S, M), the best actions (S, M)) one step earlier, for the first M = `size` posteriors.

    v: (S, M') of the next step, None where the horizon ends the episode.
    """
    n_states = len(seen.moves)
    n_actions = max(map(len, seen.moves))
    best = np.zeros((n_states, size))
    chosen = np.zeros((n_states, size), np.min_scalar_type(n_actions))
    for low in range(0, size, BLOCK):
        part = slice(low, min(low + BLOCK, size))
        for s, actions in enumerate(seen.moves):
            highest = best[s, part]
            for a, outcomes in enumerate(actions):
                q = _expected(outcomes, links, part, discount, at_start, v)
                if a == 0:
                    highest[:] = q
                else:
                    chosen[s, part][q > highest + TIE] = a
                    np.maximum(highest, q, out=highest)
    return best, chosen


def _expected(outcomes, links, part, discount, at_start, v):
    """Σ_o P(o) (γᵗ r_o + V(b_o, s_o)) of some Outcomes, for the posteriors in the slice: (B,)."""
    total = 0.0
    for outcome in outcomes:
        following = at_start if outcome.ends or v is None else v[outcome.state]
        # numbers that are too high stand only where nothing is read
        worth = following.take(links.after[outcome.evidence, part], mode="clip")
        worth += discount * outcome.reward
        worth *= links.chance[outcome.evidence, part]
        total = total + worth
    return total


def play(seen, links, actions, sizes, discount):
    """The expected return of each episode under the plan, by following it forward: (n,)."""
    n_episodes, horizon = len(sizes), sizes.shape[1] - 1
    size = links.after.shape[1]
    n_states = len(seen.moves)
    returns = np.zeros(n_episodes)
    started = np.zeros(size)  # the probability of each posterior as an episode starts
    started[0] = 1.0
    for e in range(n_episodes):
        mass = np.zeros((n_states, size))  # the probability of each state and posterior
        for outcome in seen.starts:
            _move(started, outcome, links, mass[outcome.state])
        started = np.zeros(size)
        for t in range(horizon):
            now = mass
            mass = np.zeros((n_states, size))
            for s, choices in enumerate(seen.moves):
                chosen = np.pad(actions[e][t][s], (0, size - sizes[e, t + 1]))
                for a, outcomes in enumerate(choices):
                    acting = now[s] * (chosen == a)
                    for outcome in outcomes:
                        ended = outcome.ends or t == horizon - 1
                        to = started if ended else mass[outcome.state]
                        chance = _move(acting, outcome, links, to)
                        returns[e] += chance * discount**t * outcome.reward
    return returns


def _move(mass, outcome, links, to):
    """Add to `to` (M,) the probability that goes there with the Outcome; returns how much it is."""
    numbers = np.flatnonzero(mass)
    moved = mass[numbers] * links.chance[outcome.evidence, numbers]
    np.add.at(to, links.after[outcome.evidence, numbers], moved)
    return moved.sum()


def optimal_returns(mdps, episodes, prior=None, *, max_posteriors=5_000_000):
    """The expected return of each of n = `episodes` episodes, played Bayes-optimally: (n,).

    mdps: an MDP of the C tasks that are possible. prior: their probabilities (C,), by default all
    alike. The task is drawn from it, stays the same for the trial, and is not told. Optimal is the
    policy that makes the trial's return, the sum over its episodes of E Σ_t γᵗ r_t with the tasks'
    own γ, as large as possible; it may depend on all that has been seen: each step's state, action,
    reward, next state, and whether that is terminal. If several policies are optimal, one of them
    is followed. Exact but for rounding: by dynamic programming over (posterior, state, time,
    episode).

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

    seen = family(mdps)
    known, sizes = meet(
        seen,
        weights / weights.sum(),
        episodes=episodes,
        horizon=mdps.horizon,
        max_posteriors=max_posteriors,
    )
    links = tables(known)
    actions = plan(seen, links, sizes, mdps.discount)
    return play(seen, links, actions, sizes, mdps.discount)


# ---- Bernoulli arms whose means are drawn from U[0, 1]


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

    The arms' means are p and 1 − p, so both tell the same of p, and greedy is optimal: it earns
    Σ_s max(E[p; s], E[1 − p; s]), s being how many of t signs are for p. The integral over U[0, 1]
    by Gauss–Legendre is exact. Raises ValueError for another difficulty.
    """
    pulls = validate(pulls=pulls)
    require_memory(8, pulls, pulls)
    known = ("uniform", *DEPENDENT)
    is_known = isinstance(difficulty, str) and difficulty in known
    require(is_known, "difficulty", f"{difficulty!r:.99} is not one of {', '.join(known)}")
    if difficulty == "uniform":
        x, weights = np.polynomial.legendre.leggauss(pulls)  # on [−1, 1]
    else:
        x = np.array([1, -1]) * (1 - 2 * DEPENDENT[difficulty])
        weights = np.ones(2)
    p = (1 + x[:, None]) / 2
    chance = weights[:, None] / 2  # of p and s: (points of p, t + 1)
    best = np.empty(pulls)
    for t in range(pulls):
        best[t] = np.maximum((p * chance).sum(0), ((1 - p) * chance).sum(0)).sum()
        against = np.pad(chance * (1 - p), ((0, 0), (0, 1)))
        in_favour = np.pad(chance * p, ((0, 0), (1, 0)))
        chance = against + in_favour
    return best
