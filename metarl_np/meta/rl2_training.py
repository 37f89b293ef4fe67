"""Training a recurrent policy (`rl2`) by PPO, for which a trial, from its first episode to its last, is one long episode."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import autograd.numpy as np

from metarl_np.arguments import NotFinite, require, require_finite, require_shapes, validate
from metarl_np.learner.optim import adam
from metarl_np.learner.policies import entropy
from metarl_np.learner.returns import gae, reward_to_go
from metarl_np.meta.rl2 import expected_rewards, log_probs, regrets, sample_trials

LANES = 1000  # trials that are unrolled together: with fewer, threads would wait for Python's lock more than they work


def trial_surrogate(outputs, trials, advantage, target, *, clip=0.2, entropy_bonus=0.0, value=0.5):
    """Mean over steps of min(ρ Â, clip(ρ, 1 ± ε) Â) + c_H H(π) − c_V ½ (V − V̂)², ρ = π/π_old. Schulman et al. (2017), eq. 7 and 9.
    outputs (T, A + 1, N) are the new ones, those in Trials the old; advantage Â and target V̂ are (T, N).
    """
    require_shapes(np.shape(trials.outputs), outputs=outputs)
    require_shapes(trials.mask.shape, (), advantage=advantage, target=target)
    log_pi = log_probs(outputs)
    chosen = trials.actions[..., None] == np.arange(outputs.shape[1] - 1)
    ratio = np.exp(np.sum((log_pi - log_probs(trials.outputs)) * chosen, -1))
    policy = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
    weight = (trials.mask / trials.mask.sum()).astype(outputs.dtype)
    return np.sum(
        weight
        * (policy + entropy_bonus * entropy(log_pi) - 0.5 * value * (outputs[:, -1] - target) ** 2)
    )


def trial_surrogate_gradient(
    outputs, trials, old, advantage, target, steps, *, clip=0.2, entropy_bonus=0.0, value=0.5
):
    """∇ of `surrogate` with respect to outputs, in closed form, old = log π_old(a_t) (T, N), for a part of the trials, of `steps` in all:
    w (1[a = a_t] − π(a)) − w_H π(a) (log π(a) + H) for the logits, w = ρ Â where the clip does not act and else 0, and c_V (V̂ − V).
    """
    require_shapes(trials.mask.shape, old=old, advantage=advantage, target=target)
    log_pi = np.swapaxes(log_probs(outputs), 1, 2)
    action = trials.actions[:, None]
    pi = np.exp(log_pi)
    weight = (trials.mask / steps).astype(outputs.dtype)
    ratio = np.exp(np.take_along_axis(log_pi, action, 1)[:, 0] - old)
    w = weight * advantage * ratio * np.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    g = np.empty_like(outputs)
    h = -np.sum(pi * log_pi, 1)
    g[:, :-1] = (
        pi * (-w - entropy_bonus * weight * h)[:, None]
        - pi * log_pi * (entropy_bonus * weight)[:, None]
    )
    np.put_along_axis(g, action, np.take_along_axis(g, action, 1) + w[:, None], 1)
    g[:, -1] = value * weight * (target - outputs[:, -1])
    return g


def trial_gradient(policy, theta, trials, batch, of_outputs):
    """Σ ∂L/∂θ (P,) over the trials whose numbers are `batch`, with ∂L/∂outputs = of_outputs(outputs, part, numbers).
    They are unrolled in parts, each in a thread of its own; the parts, and so the bits, do not depend on how many threads there are.
    """

    def one(numbers):
        part = trials.part(numbers)
        y, pull_back, _ = policy.unroll(theta, part)
        return pull_back(of_outputs(y, part, numbers))

    parts = [batch[i : i + LANES] for i in range(0, len(batch), LANES)]
    if len(parts) == 1:
        return one(batch)
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(one, parts))


def taken_log_probs(outputs, trials):
    """log π(a_t) of what was done: outputs (T, A + 1, N) → (T, N)."""
    return np.take_along_axis(log_probs(outputs), trials.actions[..., None], -1)[..., 0]


def trial_advantages(trials, payoffs, *, discount, lam):
    """GAE over the whole trial, across its episodes and never into another trial: payoffs (T, N) → (Â, V̂), (T, N) each.
    The mean payoff of a step, where a finished trial counts with 0, is taken off first, and at the end of a trial the means of the steps
    that it did not take: together a baseline that depends on time alone, not on how long a trial lasts (and on the payoff itself by 1/N,
    as in `returns.time_mean_baseline`). V is learned on what is left, and V̂ = Â + V before Â is standardised.
    """
    require_shapes(trials.mask.shape, payoffs=payoffs)
    mean = (payoffs * trials.mask).mean(1, keepdims=True)
    ends = trials.mask & ~np.concatenate([trials.mask[1:], np.zeros_like(trials.mask[:1])])
    payoffs = (payoffs - np.where(ends, reward_to_go(mean, discount), mean)) * trials.mask
    values = trials.outputs[:, -1]
    advantage = gae(
        payoffs, values, trials.mask, np.zeros(len(values[0])), discount=discount, lam=lam
    )
    taken = advantage[trials.mask]
    standard = (advantage - taken.mean()) / max(taken.std(), 1e-8)
    return standard.astype(values.dtype), (advantage + values).astype(values.dtype)


@dataclass(frozen=True)
class RecurrentPPO:
    """Adam on minibatches of whole trials, `epochs` times through them. Schulman et al. (2017), Algorithm 1."""

    step_size: float = 3e-3  # falls linearly to 0 over the run, as the entropy's weight does
    epochs: int = 3
    minibatches: int = 4  # of the trials, no more than there are
    clip: float = 0.2  # ε
    discount: float = (
        0.995  # of GAE, per step of the trial, to lower variance; what is maximised has the task's γ only
    )
    lam: float = 0.95
    entropy: float = 0.01  # c_H
    value: float = 0.05  # c_V
    max_norm: float = 0.5  # a longer gradient is shortened to this

    def __post_init__(self):
        validate(
            step_size=self.step_size,
            epochs=self.epochs,
            minibatches=self.minibatches,
            clip=self.clip,
            discount=self.discount,
            lam=self.lam,
            entropy=self.entropy,
            value=self.value,
            max_norm=self.max_norm,
        )
        require(self.step_size > 0, "step_size", f"{self.step_size} is not positive")

    def __call__(self, rng, policy, theta, trials, payoffs, state, left):
        """(θ', Adam's state) after one batch of Trials with payoffs (T, N); `left` is the fraction of the run that is left."""
        advantage, target = trial_advantages(trials, payoffs, discount=self.discount, lam=self.lam)
        old = taken_log_probs(trials.outputs, trials)
        settings = dict(clip=self.clip, entropy_bonus=self.entropy * left, value=self.value)
        for _ in range(self.epochs):
            for batch in np.array_split(
                rng.permutation(len(payoffs[0])), min(self.minibatches, len(payoffs[0]))
            ):
                steps = trials.mask[:, batch].sum()
                g = trial_gradient(
                    policy,
                    theta,
                    trials,
                    batch,
                    lambda y, part, lanes: trial_surrogate_gradient(
                        y, part, *(x[:, lanes] for x in (old, advantage, target)), steps, **settings
                    ),
                )
                norm = np.linalg.norm(g)
                require_finite(norm, "gradient: components")
                theta, state = adam(
                    theta,
                    g * min(1.0, self.max_norm / max(norm, 1e-30)),
                    state,
                    step_size=self.step_size * left,
                )
        return theta, state


@dataclass(frozen=True, eq=False)
class RecurrentIteration:
    """One batch, as `train` yields it."""

    iteration: int
    theta: np.ndarray  # (P,) after the batch
    mean_return: float  # Σ γᵗ R̄, mean over the batch's trials, which were sampled before
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
    """Train for `iterations` batches: a generator of Iteration. sample_tasks(rng) → MDP, a trial of n episodes in each task. update: PPO(…)
    or what is called alike (demos/rl2_trpo.py). payoffs: what the loss counts, `regrets`, `expected_rewards`, or a function of (MDP,
    Trials) → (T, N). state, first: the optimiser's state and the iteration, of the same `iterations`, to go on from
    (`checkpoint.resumable`). FloatingPointError names the iteration where parameters are not finite.
    """
    validate(
        rng=rng,
        sample_tasks=sample_tasks,
        policy=policy,
        update=update,
        iterations=iterations,
        episodes=episodes,
        payoffs=payoffs,
        first=first,
    )
    require(
        not hasattr(update, "prepare"),
        "update",
        f"{update!r:.50} is an inner update, of updates; here it is rl2_training.PPO",
    )
    require(first <= iterations, "first", f"{first} is outside 0..{iterations}")
    for i in range(first, iterations):
        mdps = sample_tasks(rng)
        try:
            trials = sample_trials(rng, mdps, policy, theta, episodes)
            with np.errstate(all="ignore"):  # what is not finite raises
                payoff = payoffs(mdps, trials)
                mean_return = expected_rewards(mdps, trials).sum(0).mean()
                require_finite(payoff, "payoffs")
                require_finite(mean_return, "returns")
                theta, state = update(rng, policy, theta, trials, payoff, state, 1 - i / iterations)
                policy.net.split(
                    theta
                )  # refuses what is not finite, as the update itself does half-way
        except NotFinite as error:
            raise NotFinite(f"iteration {i}: {error}") from error
        yield RecurrentIteration(i, theta, float(mean_return), state)
