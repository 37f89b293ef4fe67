"""How fast it is: rollout steps per second on FrozenLake and against states, environments and tasks, and an iteration of recurrent RL².

Every number is the median of several runs on this machine now; machines drift, so compare only what ran in one sitting.
"""

# %% What is timed
import time

from common import Progress, finish, parser  # before numpy, whose threads it sets

import numpy as np

from metarl_np import bandits, rl2
from metarl_np.gridworld import GridWorld
from metarl_np.rl2_training import PPO, train
from metarl_np.rollouts import rollout, sampling_tables

FROZEN_LAKE = GridWorld("S... .O.O ...O O..G", discount=0.99, horizon=100, slip=2 / 3)  # Gymnasium's 4x4, slippery
SCALING = [(5, 1, 1_000), (5, 1, 1_000_000), (5, 1_000, 1_000_000), (32, 1, 16_384), (100, 30, 16_384), (1_000, 1, 1_000),
           (1_000, 1, 1_000_000)]  # side of the grid, tasks, environments
QUICK = [(5, 1, 1_000), (5, 10, 10_000), (32, 1, 1_000)]


def median_seconds(run, repeats):
    """Median wall time of `repeats` runs after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


# %% FrozenLake: states, actions and rewards of 16,384 environments x 100 steps, a softmax table's random policy, auto-reset
def frozen_lake(rng, environments=16_384, repeats=15):
    mdps = FROZEN_LAKE.mdps().auto_reset()
    logits = rng.normal(size=(16, 4))
    tables = sampling_tables(mdps, logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    return environments * mdps.horizon / median_seconds(lambda: rollout(rng, mdps, tables, environments), repeats)


# %% GridWorlds: a random walk of 100 steps from the corner
def scaling(rng, side, tasks, environments, repeats=3):
    grid = GridWorld.open(side, side, discount=0.95, horizon=100)
    mdps = grid.mdps(rng.choice(grid.free_cells, tasks))
    log_pi = np.full((side * side, 4), -np.log(4))
    tables = sampling_tables(mdps, log_pi)
    data = rollout(rng, mdps, tables, environments // tasks)
    stored = sum(x.nbytes for x in (data.states, data.actions, data.rewards, data.mask)) / data.states.size
    size = data.states.size
    del data
    seconds = median_seconds(lambda: rollout(rng, mdps, tables, environments // tasks), repeats)
    return dict(states=side * side, tasks=tasks, environments=environments, steps_per_s=size / seconds, bytes_per_step=stored,
                table_ms=1e3 * median_seconds(lambda: sampling_tables(mdps, log_pi), 1))


# %% Recurrent RL² on bandits: sample a trial in each new task, then three epochs of PPO, GRU of 64 units
def rl2_iteration(rng, arms, pulls, trials, minibatches, repeats):
    policy = rl2.RecurrentPolicy(1, arms, 64)
    iterations = train(rng, lambda rng: bandits.independent(rng, trials, arms), policy, policy.init(rng), PPO(minibatches=minibatches),
                       iterations=repeats + 1, episodes=pulls)
    return dict(k=arms, n=pulls, trials=trials, ms_per_iteration=1e3 * median_seconds(lambda: next(iterations), repeats))


# %% The job
def main():
    arguments = parser(__doc__).parse_args()
    rng, progress = np.random.default_rng(arguments.seed), Progress()
    progress("FrozenLake")
    rate = frozen_lake(rng, *((1_000, 2) if arguments.quick else ()))
    print(f"FrozenLake 4x4 slippery, {1_000 if arguments.quick else 16_384} environments x 100 steps: {rate / 1e6:.1f} M steps/s\n")
    print(f"{'states':>9s} {'tasks':>6s} {'environments':>13s} {'M steps/s':>10s} {'bytes/step':>11s} {'tables, ms':>11s}")
    rows = []
    for side, tasks, environments in QUICK if arguments.quick else SCALING:
        progress(f"{side}x{side} GridWorld, {tasks} tasks, {environments} environments")
        rows.append(scaling(rng, side, tasks, environments))
        progress.done()
        print("{states:9d} {tasks:6d} {environments:13d} {:10.1f} {bytes_per_step:11.1f} {table_ms:11.2f}".format(
            rows[-1]["steps_per_s"] / 1e6, **rows[-1]))
    progress("recurrent RL²")
    sizes = ((5, 10, 200, 1, 2),) if arguments.quick else ((5, 10, 2000, 1, 15), (5, 100, 1024, 8, 5))
    iterations = [rl2_iteration(rng, *size) for size in sizes]
    progress.done()
    for row in iterations:
        print("recurrent RL², k={k}, n={n}, {trials} trials: {ms_per_iteration:.0f} ms an iteration".format(**row))
    finish(arguments, dict(rl2=iterations, frozen_lake_steps_per_s=rate, scaling=rows, seconds=progress.seconds), [])


if __name__ == "__main__":
    main()
