"""Training a recurrent policy (`rl2`) by PPO: a whole trial is one long episode for it."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass

import autograd.numpy as np

from metarl_np.arguments import (
    NotFinite,
    Record,
    require,
    require_finite,
    require_shapes,
    unmasked,
    validate,
)
from metarl_np.learner.optim import adam
from metarl_np.learner.policies import entropy
from metarl_np.learner.returns import gae, reward_to_go
from metarl_np.meta.rl2 import expected_rewards, log_probs, regrets, sample_trials

# trials that are unrolled together; with fewer, threads would wait for Python's lock
LANES = 1000


def taken_log_probs(outputs, trials):
    """log π(a_t) of what was done: outputs (T, A + 1, N) → (T, N)."""
    return np.take_along_axis(log_probs(outputs), trials.actions[..., None], -1)[..., 0]


def trial_advantages(trials, payoffs, *, discount, lam):
    """Â, standardised, and V̂, what V is to learn: (T, N) each, of Trials with payoffs (T, N).

    GAE over the whole trial: across its episodes, and never into another trial. The mean payoff of
    a step is taken off first, where a finished trial counts with 0; at a trial's end also the means
    of the steps that it did not take. Together that is a baseline which depends on time alone, not
    on how long a trial lasts (and, by 1/N, on the payoff itself, as `returns.time_mean_baseline`
    does). V is learned on what is left: V̂ = Â + V before Â is standardised.
    """
    require_shapes(trials.mask.shape, payoffs=payoffs)
    mask = trials.mask
    payoffs = unmasked(payoffs, mask)
    mean = payoffs.mean(1, keepdims=True)
    nothing_follows = np.concatenate([~mask[1:], np.ones_like(mask[:1])])
    last = mask & nothing_follows
    payoffs = payoffs - np.where(last, reward_to_go(mean, discount), mean)
    values = trials.outputs[:, -1]
    at_end = np.zeros(len(values[0]))
    advantage = gae(payoffs, values, mask, at_end, discount=discount, lam=lam)
    taken = advantage[mask]
    standard = (advantage - taken.mean()) / max(taken.std(), 1e-8)
    return standard.astype(values.dtype), (advantage + values).astype(values.dtype)


def trial_surrogate(outputs, trials, advantage, target, *, clip=0.2, entropy_bonus=0.0, value=0.5):
    """PPO's loss, to be maximised: a number. Schulman et al. (2017), eq. 7 and 9.

    The mean over steps of min(ρ Â, clip(ρ, 1 ± ε) Â) + c_H H(π) − c_V ½ (V − V̂)², ρ = π/π_old.
    outputs (T, A + 1, N) are the new ones, those in Trials the old; advantage Â and target V̂ are
    (T, N). To read, and to check `trial_surrogate_gradient` against.
    """
    require_shapes(np.shape(trials.outputs), outputs=outputs)
    require_shapes(trials.mask.shape, (), advantage=advantage, target=target)
    outputs = unmasked(outputs, trials.mask[:, None])
    old = unmasked(trials.outputs, trials.mask[:, None])
    advantage = unmasked(advantage, trials.mask)
    target = unmasked(target, trials.mask)
    log_pi = log_probs(outputs)
    taken = trials.actions[..., None] == np.arange(outputs.shape[1] - 1)
    ratio = np.exp(np.sum((log_pi - log_probs(old)) * taken, -1))
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    policy = np.minimum(ratio * advantage, clipped * advantage)
    errors = outputs[:, -1] - target
    weight = (trials.mask / trials.mask.sum()).astype(outputs.dtype)
    return np.sum(weight * (policy + entropy_bonus * entropy(log_pi) - 0.5 * value * errors**2))


def trial_surrogate_gradient(
    outputs, trials, old, advantage, target, steps, *, clip=0.2, entropy_bonus=0.0, value=0.5
):
    """∇ of `trial_surrogate` with respect to outputs, in closed form: (T, A + 1, N).

    For the logits it is w (1[a = a_t] − π(a)) − w_H π(a) (log π(a) + H), w = ρ Â where the clip
    does not act and else 0; for the value c_V (V̂ − V). old: log π_old(a_t) (T, N). The trials may
    be a part of a batch, which has so many `steps` in all.
    """
    require_shapes(trials.mask.shape, old=old, advantage=advantage, target=target)
    outputs = unmasked(outputs, trials.mask[:, None])
    old = unmasked(old, trials.mask)
    advantage = unmasked(advantage, trials.mask)
    target = unmasked(target, trials.mask)
    log_pi = np.swapaxes(log_probs(outputs), 1, 2)  # (T, A, N)
    pi = np.exp(log_pi)
    action = trials.actions[:, None]
    weight = (trials.mask / steps).astype(outputs.dtype)
    ratio = np.exp(np.take_along_axis(log_pi, action, 1)[:, 0] - old)
    unclipped = np.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    w = weight * advantage * ratio * unclipped
    h = -np.sum(pi * log_pi, 1)
    bonus = entropy_bonus * weight
    g = np.empty_like(outputs)
    g[:, :-1] = pi * (-w - bonus * h)[:, None] - pi * log_pi * bonus[:, None]
    np.put_along_axis(g, action, np.take_along_axis(g, action, 1) + w[:, None], 1)
    g[:, -1] = value * weight * (target - outputs[:, -1])
    return g


def trial_gradient(policy, theta, trials, batch, of_outputs):
    """∂L/∂θ (P,) of the trials whose numbers are `batch`, (B,).

    of_outputs: (outputs, Trials, numbers) of a part of them → ∂L/∂outputs. The parts are unrolled
    in threads; they, and so the bits, do not depend on how many threads there are.
    """

    def of_part(numbers):
        part = trials.part(numbers)
        outputs, pull_back, _ = policy.unroll(theta, part)
        return pull_back(of_outputs(outputs, part, numbers))

    parts = [batch[i : i + LANES] for i in range(0, len(batch), LANES)]
    if len(parts) == 1:
        return of_part(batch)
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(of_part, parts))


@dataclass(frozen=True)
class RecurrentPPO:
    """Adam on minibatches of whole trials, `epochs` times through them.

    Schulman et al. (2017), Algorithm 1.
    """

    step_size: float = 3e-3  # falls linearly to 0 over the run, as the entropy's weight does
    epochs: int = 3
    minibatches: int = 4  # of the trials, no more than there are
    clip: float = 0.2  # ε
    # γ of GAE, per step of the trial: below 1 it lowers the variance, and biases. What is maximised
    # has the task's γ only
    discount: float = 0.995
    lam: float = 0.95  # λ of GAE
    entropy: float = 0.01  # c_H
    value: float = 0.05  # c_V
    max_norm: float = 0.5  # a longer gradient is shortened to this

    def __post_init__(self):
        validate(**vars(self))
        require(self.step_size > 0, "step_size", f"{self.step_size} is not positive")

    def __call__(self, rng, policy, theta, trials, payoffs, state, left):
        """(θ', Adam's state) after one batch of Trials with payoffs (T, N).

        left: the fraction of the run that is left.
        """
        advantage, target = trial_advantages(trials, payoffs, discount=self.discount, lam=self.lam)
        old = taken_log_probs(trials.outputs, trials)
        settings = dict(clip=self.clip, entropy_bonus=self.entropy * left, value=self.value)
        n_trials = len(payoffs[0])
        for _ in range(self.epochs):
            shuffled = rng.permutation(n_trials)
            for batch in np.array_split(shuffled, min(self.minibatches, n_trials)):
                steps = trials.mask[:, batch].sum()

                def of_outputs(outputs, part, lanes):
                    arrays = (x[:, lanes] for x in (old, advantage, target))
                    return trial_surrogate_gradient(outputs, part, *arrays, steps, **settings)

                g = trial_gradient(policy, theta, trials, batch, of_outputs)
                norm = np.linalg.norm(g)
                require_finite(norm, "gradient: components")
                g = g * min(1.0, self.max_norm / max(norm, 1e-30))
                theta, state = adam(theta, g, state, step_size=self.step_size * left)
        return theta, state


@dataclass(frozen=True, eq=False)
class RecurrentIteration(Record):
    """One batch, as `train_recurrent` yields it."""

    iteration: int
    theta: np.ndarray  # (P,) after the batch
    mean_return: float  # Σ γᵗ R̄ of a trial, mean over the batch, which was sampled before
    state: object  # the optimiser's, after the batch


def train_recurrent(
    rng,
    sample_tasks,
    policy,
    theta,
    update,
    *,
    iterations,
    episodes,
    payoffs=regrets,
    state=None,
    first=0,
):
    """Train θ (P,) for `iterations` batches: a generator of RecurrentIteration.

    sample_tasks: rng → MDP, a trial of n = `episodes` episodes in each task. update: a RecurrentPPO
    or what is called alike, as `rl2_trpo.RecurrentTRPO`. payoffs: what the loss counts, `regrets`,
    `expected_rewards`, or a function of (MDP, Trials) → (T, N). state, first: the optimiser's state
    and the iteration, of the same `iterations`, to go on from (`checkpoint.resumable`). NotFinite,
    a FloatingPointError, names the iteration where something is not finite.
    """
    validate(rng=rng, sample_tasks=sample_tasks, policy=policy, update=update, payoffs=payoffs)
    validate(iterations=iterations, episodes=episodes, first=first)
    inner = f"{update!r:.50} is an inner update; here it is a RecurrentPPO"
    require(not hasattr(update, "prepare"), "update", inner)
    require(first <= iterations, "first", f"{first} is outside 0..{iterations}")
    for i in range(first, iterations):
        mdps = sample_tasks(rng)
        left = 1 - i / iterations
        try:
            trials = sample_trials(rng, mdps, policy, theta, episodes)
            with np.errstate(all="ignore"):  # what is not finite raises
                paid = payoffs(mdps, trials)
                require_shapes(trials.mask.shape, payoffs=paid)
                paid = unmasked(paid, trials.mask)
                mean_return = expected_rewards(mdps, trials).sum(0).mean()
                require_finite(paid, "payoffs")
                require_finite(mean_return, "returns")
                # copies: an update that works in place must not change earlier records
                before = deepcopy((theta, state))
                theta, state = update(rng, policy, before[0], trials, paid, before[1], left)
                policy.net.split(theta)  # refuses what is not finite
        except NotFinite as error:
            raise NotFinite(f"iteration {i}: {error}") from error
        yield RecurrentIteration(i, theta, float(mean_return), state)
