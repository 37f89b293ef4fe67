"""REINFORCE on a slippery GridWorld: 20 seeds at once, because a seed is an array axis.

The curve is the exact expected return of each seed's policy, by dynamic programming, as a fraction
of the optimum. The picture on the right is the policy that one seed has learned, as arrows over
its exact state values.
"""

# %% The task
# before numpy, whose threads it sets
from _common import Progress, begin, finish, parser

import numpy as np

from metarl_np import exact, plots
from metarl_np.learner.policies import SoftmaxPolicy
from metarl_np.learner.reinforce import Reinforce
from metarl_np.learner.rollouts import rollout
from metarl_np.tasks.gridworld import GridWorld

# S: start, #: wall, O: pit, G: goal
MAP = """
S....
.##..
..O..
.#...
...#G
"""
GRID = GridWorld(MAP, discount=0.95, horizon=30, slip=0.1, step_reward=-0.01, pit_reward=-0.5)
GOAL = 24


# %% Learning
def learn(rng, mdps, policy, iterations, step_size, episodes):
    """One REINFORCE step per iteration in every task; yields θ (N, S, A) before each."""
    theta = np.repeat(policy.init()[None], len(mdps), 0)
    update = Reinforce(step_size)
    for _ in range(iterations):
        yield theta
        data = rollout(rng, mdps, policy.log_pi(theta), episodes)
        theta = update(policy, theta, update.prepare(policy, theta, data, mdps.discount))
    yield theta


def learning_curve(rng, mdps, policy, iterations, episodes, progress):
    """Fraction of the optimum before each iteration and at the end, and the last θ (N, S, A).

    The curve is (iterations + 1, N), a column a seed.
    """
    best = exact.optimal_return(mdps)
    curve = []
    for theta in learn(rng, mdps, policy, iterations, step_size=2.0, episodes=episodes):
        curve.append(exact.expected_return(mdps, policy.log_pi(theta)) / best)
        done = f"iteration {len(curve) - 1} of {iterations}"
        progress(f"{done}: {curve[-1].mean():.3f} of the optimum")
    progress.done()
    return np.array(curve), theta


# %% The table and the picture
def print_table(mean, std, shown):
    """Mean and standard deviation over seeds, in the iterations that are shown."""
    print(f"{'iteration':>10s} {'mean':>8s} {'std':>8s}")
    for i in shown:
        print(f"{i:10d} {mean[i]:8.3f} {std[i]:8.3f}")


def print_maps(theta):
    """The map, and the likeliest moves of a policy θ (S, A) on it."""
    print("the map, and the greedy policy of seed 0:")
    greedy = GRID.render(theta.argmax(-1))
    for left, right in zip(GRID.render().split(), greedy.split()):
        print("   ", left, "  ", right)


def draw(mean, std, values, pi, episodes, out):
    """Left: the curve with its spread. Right: a policy π (S, A) over its values (S,)."""
    fig, (left, right) = plots.figure(10, 4.2, columns=2)
    iterations = np.arange(len(mean))
    plots.curve(left, iterations, mean, std, label="REINFORCE, mean ± std", colour="blue")
    plots.bound(left, 1)
    left.set(
        xlabel=f"iterations ({episodes} episodes each)",
        ylabel="exact return (fraction of the optimum)",
    )
    left.legend(loc="lower right")
    plots.heat_map(right, GRID, values, label="expected discounted return from the cell")
    plots.arrows(right, GRID, pi, goal=GOAL)
    right.set_title("learned policy of one seed")
    return plots.save(fig, out, "reinforce_gridworld")


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    seeds, iterations, episodes = (4, 10, 20) if arguments.quick else (20, 300, 50)
    rng = np.random.default_rng(arguments.seed)
    mdps = GRID.mdps()[np.zeros(seeds, int)]
    policy = SoftmaxPolicy(25, 4)
    progress = Progress()
    curve, theta = learning_curve(rng, mdps, policy, iterations, episodes, progress)
    mean = curve.mean(1)
    std = curve.std(1, ddof=1)

    best = float(exact.optimal_return(mdps)[0])
    shown = [i for i in (0, 1, 3, 10, 30, 100, 300) if i <= iterations]
    print(
        f"exact expected return as a fraction of the optimum {best:.4f}, {seeds} seeds, "
        f"{episodes} episodes an iteration"
    )
    print_table(mean, std, shown)
    print_maps(theta[0])
    log_pi = policy.log_pi(theta)
    values = exact.values(mdps, log_pi)[0, 0]
    picture = draw(mean, std, values, np.exp(log_pi[0]), episodes, arguments.out)
    numbers = dict(
        iteration=shown,
        mean=mean[shown].tolist(),
        std=std[shown].tolist(),
        optimum=best,
        seconds=progress.seconds,
    )
    finish(arguments, numbers, [picture])


if __name__ == "__main__":
    begin(main)
