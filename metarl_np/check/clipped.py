"""What the gradient of PPO's clipped surrogate is, step by step."""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import require, require_array, validate
from metarl_np.check.inputs import compare, number_a_step, vector_a_step
from metarl_np.learner.policies import log_softmax

# (power, pushed, other, sentence): is ρ a factor, ρ¹, or not, ρ⁰; is the gradient cut where ρ has
# gone past the clip the way that Â pushes it; is it cut past the other end, too; what that is
CLIPS = {
    "ppo": (1, True, False, "This is PPO's clipped surrogate, as it should be."),
    "unclipped": (
        1,
        False,
        False,
        "The ratio is not clipped: a mistake, if it is meant to be PPO.",
    ),
    "clipped on both sides": (
        1,
        True,
        True,
        "It is clipped on both sides whatever the advantage's sign, a mistake: take the minimum of "
        "the clipped and the unclipped term.",
    ),
    "clipped on the wrong side": (
        1,
        False,
        True,
        "It is clipped on the wrong side, a mistake: take the minimum of the two terms where they "
        "are maximised, the maximum of their negatives in a loss.",
    ),
    "no ratio": (
        0,
        False,
        False,
        "The ratio is missing, a mistake: the gradient of log_pi has to be multiplied by "
        "exp(log_pi - old_log_probs).",
    ),
    "no ratio, clipped": (0, True, False, "The clip acts, but the ratio is missing, a mistake."),
}


@dataclass(frozen=True, eq=False)
class ClippedExplanation:
    """What the gradient of a clipped surrogate is; `str` says it in whole sentences."""

    name: str  # one of CLIPS, or "unknown"; the first of those that coincide
    factor: float  # the gradient is factor × that of the sum over steps
    differs: object  # (T, N) bool: the steps where it is not PPO's
    findings: tuple  # sentences

    def __str__(self):
        return " ".join(self.findings)


def explain_clipped(gradient, logits, actions, advantages, old_log_probs, *, clip):
    """Whether a gradient with respect to the logits is PPO's, step by step, and what else it is.

    Where several of CLIPS are one and the same on these data, all are named, as at the first update
    of a batch: all ratios are 1 then, and none is clipped.

    PPO's is w (1[a = a_t] − π(a)), with w = ρ Â where the clip does not act and 0 elsewhere, and
    ρ = π(a_t)/π_old(a_t). Schulman et al. (2017), eq. 7. gradient, logits: (T, A, N), or (T, A).
    actions, advantages, old_log_probs: (T, N), or (T,). clip: ε. Bonuses for entropy must be off.
    Returns a ClippedExplanation. Raises ValueError on other shapes and on what is not finite.
    """
    validate(clip=clip)
    given = dict(actions=actions, advantages=advantages, old_log_probs=old_log_probs)
    shape = require_array("actions", actions, kinds="iu").shape
    actions, advantages, old = (number_a_step(name, x, shape) for name, x in given.items())
    logits = vector_a_step("logits", logits, actions)
    gradient = vector_a_step("gradient", gradient, actions)
    require(gradient.shape == logits.shape, "gradient", "not the shape of logits")
    n_actions = logits.shape[2]
    taken = actions[..., None] == np.arange(n_actions)
    require(taken.any(2), "actions", f"not in 0..{n_actions - 1}", ("step", "trial"))

    log_pi = log_softmax(logits)
    score = taken - np.exp(log_pi)
    ratio = np.exp((log_pi * taken).sum(2) - old)
    above = ratio >= 1 + clip
    below = ratio <= 1 - clip
    beyond = np.where(advantages > 0, above, below)
    behind = np.where(advantages > 0, below, above)
    right = ratio * advantages * ~beyond
    lost = "zero everywhere: does the loss reach the logits?"
    require(gradient.any() or not right.any(), "gradient", lost)
    compared = {}
    for name, (power, pushed, other, _) in CLIPS.items():
        cut = (beyond & pushed) | (behind & other)
        weight = ratio**power * advantages * ~cut
        compared[name] = compare(gradient, weight[..., None] * score)
    name = min(CLIPS, key=lambda name: compared[name][1].sum())
    factor, misfit = compared[name]
    said = CLIPS[name][-1]
    alike = [other for other in CLIPS if not compared[other][1].any()]
    if misfit.any():
        said = f"At {misfit.sum()} steps it is none of what was tried; nearest: {name}."
        name = "unknown"
    elif len(alike) > 1:
        said = f"On these data the following are equal, and it is one of them: {', '.join(alike)}. "
        said += "Take those of a later update, where ratios differ from 1 and pass the clip."
    _, wrong = compared["ppo"]
    findings = (
        said,
        f"It differs from PPO's at {wrong.sum()} of {wrong.size} steps.",
        f"It is {factor:.6g} times the sum's over steps, where a mean's is {1 / wrong.size:.6g}: a "
        "convention, as the minus sign of a loss is.",
    )
    return ClippedExplanation(name, factor, wrong, findings)
