"""One learner: a step of a standard algorithm on recorded episodes."""

from metarl_np.losses import fold, reinforce_weights
from metarl_np.returns import leave_one_out_baseline


def reinforce_table(mdps, episodes, *, baseline=leave_one_out_baseline):
    """The folded REINFORCE weights W(s, a) = mean_k Σ_t γᵗ (G_t − b_t) [s_t = s, a_t = a] of recorded Episodes: (N, S, A)."""
    weights = reinforce_weights(episodes, mdps.discount, baseline=baseline)
    return fold(weights, episodes.states, episodes.actions, *mdps.shape[1:])


def reinforce_step(policy, theta, table, step_size):
    """θ' = θ + α Σ_{s,a} W(s, a) ∇log π(a|s; θ): θ (…), W (N, S, A) → (N, …). autograd differentiates it at fixed W."""
    return theta + step_size * policy.weighted_score(theta, table)
