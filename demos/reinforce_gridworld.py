"""REINFORCE on a GridWorld with walls, a pit and slippery ground: 20 seeds at once.

A seed is an array axis. The curve is the exact expected return of each seed's policy, by dynamic
programming, as a fraction of the optimum; the picture on the right is the policy that one seed has
learned, as arrows over its exact state values.
"""

# %% The task
import numpy as np

from _common import Progress, begin, finish, parser
from metarl_np import exact, plots
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.rollouts import rollout
from metarl_np.tasks.gridworld import GridWorld

GRID = GridWorld(
    "S.... .##.. ..O.. .#... ...#G",
    discount=0.95,
    horizon=30,
    slip=0.1,
    step_reward=-0.01,
    pit_reward=-0.5,
)
POLICY = SoftmaxPolicy(25, 4)


# %% Learning
def learn(rng, mdps, iterations, step_size, episodes):
    """One REINFORCE step per iteration in every task; yields θ (N, S, A) before each."""
    theta = np.repeat(POLICY.init()[None], len(mdps), 0)
    update = Reinforce(step_size)
    for _ in range(iterations):
        yield theta
        data = rollout(rng, mdps, POLICY.log_pi(theta), episodes)
        theta = update(POLICY, theta, update.prepare(POLICY, theta, data, mdps.discount))
    yield theta


# %% The picture
def draw(mean, std, episodes, mdps, log_pi, out):
    """Left: the learning curve. Right: what the first seed has learned."""
    fig, (left, right) = plots.figure(10, 4.2, columns=2)
    iterations = np.arange(len(mean))
    plots.curve(left, iterations, mean, std, label="REINFORCE, mean ± std", colour="blue")
    plots.bound(left, 1)
    left.set(
        xlabel=f"iterations ({episodes} episodes each)",
        ylabel="exact return (fraction of the optimum)",
    )
    left.legend(loc="lower right")
    values = exact.values(mdps, log_pi)[0, 0]
    plots.heat_map(right, GRID, values, label="expected discounted return from the cell")
    plots.arrows(right, GRID, np.exp(log_pi[0]), goal=24)
    right.set_title("learned policy of one seed")
    return plots.save(fig, out, "reinforce_gridworld")


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    n_seeds, iterations, episodes = (4, 10, 20) if arguments.quick else (20, 300, 50)
    mdps = GRID.mdps()[np.zeros(n_seeds, int)]
    best = exact.optimal_return(mdps)
    progress = Progress()
    rng = np.random.default_rng(arguments.seed)
    curve = []
    for theta in learn(rng, mdps, iterations, 2.0, episodes):
        curve.append(exact.expected_return(mdps, POLICY.log_pi(theta)) / best)
        now = curve[-1].mean()
        progress(f"iteration {len(curve) - 1} of {iterations}: {now:.3f} of the optimum")
    progress.done()
    curve = np.array(curve)
    mean = curve.mean(1)
    std = curve.std(1, ddof=1)

    print(
        f"exact expected return as a fraction of the optimum {best[0]:.4f}, {n_seeds} seeds, "
        f"{episodes} episodes an iteration"
    )
    print(f"{'iteration':>10s} {'mean':>8s} {'std':>8s}")
    shown = [i for i in (0, 1, 3, 10, 30, 100, 300) if i <= iterations]
    for i in shown:
        print(f"{i:10d} {mean[i]:8.3f} {std[i]:8.3f}")
    print("the map, and the greedy policy of seed 0:")
    greedy = GRID.render(theta[0].argmax(-1))
    for left, right in zip(GRID.render().split(), greedy.split()):
        print("   ", left, "  ", right)

    numbers = dict(iteration=shown, optimum=float(best[0]), seconds=progress.seconds)
    numbers |= dict(mean=mean[shown].tolist(), std=std[shown].tolist())
    picture = draw(mean, std, episodes, mdps, POLICY.log_pi(theta), arguments.out)
    finish(arguments, numbers, [picture])


if __name__ == "__main__":
    begin(main)
