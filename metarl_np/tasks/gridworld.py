"""GridWorld: a text map and its rules; goals turn it into a batch of tasks.

State r·W + c is the cell in row r, column c of a map of H rows and W columns.
"""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import (
    require,
    require_array,
    require_memory,
    set_fields,
    validate,
    validate_fields,
)
from metarl_np.tasks.mdp import MDP

START, GOAL, WALL, PIT, FREE = CELLS = "SG#O."
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # actions 0..3: up, down, left, right
ARROWS = np.array(list("↑↓←→"))
# the move that is made, and the two that a slip by 90° makes instead
TURNS = np.array([(0, 2, 3), (1, 2, 3), (2, 0, 1), (3, 0, 1)])
# of VariBAD's 5×5 cells those that are not among the 2×2 at the start
VARIBAD_GOALS = tuple(cell for cell in range(25) if cell not in (0, 1, 5, 6))


@dataclass(frozen=True)
class GridWorld:
    """A map of `S` start, `G` goal, `#` wall, `O` pit and `.` free cells, and what moving pays.

    A move pays step_reward, plus goal_reward or pit_reward on entering a goal or a pit, which both
    end the episode, less bump_penalty where the border or a wall stops it. With probability `slip`
    it turns by 90°, left or right alike: slip = 2/3 is Gymnasium's FrozenLake. Raises ValueError
    if the layout is no map.
    """

    layout: tuple  # H strings of W characters; one string is split at white space
    discount: float  # γ
    horizon: int  # T
    slip: float = 0.0
    goal_reward: float = 1.0
    step_reward: float = 0.0
    pit_reward: float = 0.0
    bump_penalty: float = 0.0

    def __post_init__(self):
        rows = self.layout
        validate_fields(self, *(vars(self).keys() - {"layout"}))
        if isinstance(rows, str):
            rows = rows.split()
        strings = isinstance(rows, (list, tuple)) and all(isinstance(row, str) for row in rows)
        require(strings, "layout", f"not strings: {rows!r:.99}")
        require(len(rows) and len(rows[0]), "layout", "an empty map")
        width = len(rows[0])
        ragged = f"ragged map, row 0 has {width} cells"
        require([len(row) == width for row in rows], "layout", ragged, ("row",))
        known = [[cell in CELLS for cell in row] for row in rows]
        require(known, "layout", "unknown map character", ("row", "column"))
        set_fields(self, layout=tuple(rows))
        require(self.kind(START).any(), "layout", f"the map has no start, {START!r}")

    @classmethod
    def open(cls, height, width, **rules):
        """A GridWorld without walls, the start in the upper left corner."""
        height, width = validate(height=height, width=width)
        require_memory(500, height, width)  # of one task
        no_room = f"{height} x {width} has no room for a start and a goal"
        require(height * width >= 2, "height, width", no_room)
        rows = [FREE * width] * height
        return cls((START + rows[0][1:], *rows[1:]), **rules)

    @property
    def shape(self):
        """(H, W): the numbers of rows and columns."""
        return len(self.layout), len(self.layout[0])

    @property
    def free_cells(self):
        """The cells where a goal may be put, ascending: (F,)."""
        return np.flatnonzero(self.kind(FREE, GOAL))

    def kind(self, *kinds):
        """Which cells are of these kinds: (S,) bool."""
        return np.isin(self._cells(), kinds)

    def _cells(self):
        return np.array(list("".join(self.layout)))

    def split_goals(self, rng, n_train, n_held_out):
        """Disjoint training and held-out goals from the free cells: (n_train,), (n_held_out,)."""
        validate(rng=rng)
        n_train, n_held_out = validate(n_train=n_train, n_held_out=n_held_out)
        cells = rng.permutation(self.free_cells)
        n = n_train + n_held_out
        too_many = f"{n_train} + {n_held_out} goals, {len(cells)} free cells"
        require(n <= len(cells), "n_train, n_held_out", too_many)
        return cells[:n_train], cells[n_train:n]

    def mdps(self, goals=None):
        """MDP of the tasks with a goal each, `goals` (N,), or of one with the map's own goals.

        Walls cannot be entered; as states they are terminal. Raises ValueError unless the goals
        are free cells.
        """
        goal = self._goals(goals)
        n_tasks, n_states = goal.shape
        slots = 3 if self.slip else 1
        require_memory(160, n_tasks, n_states, slots)
        target, bump = self._moves()
        turns = TURNS[:, :slots]
        target = target[:, turns]  # (S, A, Z)
        bump = bump[:, turns]
        straight = 1 - self.slip
        chances = [straight, self.slip / 2, self.slip / 2] if self.slip else [straight]
        pit = self.kind(PIT)
        terminal = goal | pit | self.kind(WALL)
        rewards = (
            self.step_reward
            - self.bump_penalty * bump
            + self.goal_reward * goal[:, target]
            + self.pit_reward * pit[target]
        )
        start = self.kind(START) / self.kind(START).sum()
        end = terminal[:, :, None, None]
        own = np.arange(n_states)[:, None, None]
        return MDP(
            successors=np.where(end, own, target),
            probabilities=np.broadcast_to(chances, rewards.shape),
            rewards=np.where(end, 0.0, rewards),
            start=np.broadcast_to(start, (n_tasks, n_states)),
            terminal=terminal,
            discount=self.discount,
            horizon=self.horizon,
        )

    def _goals(self, goals):
        """Which cells are goals: cells (N,) → (N, S) bool; None: the map's own, as one task."""
        if goals is None:
            own = self.kind(GOAL)
            require(own.any(), "goals", f"the map has no goal, {GOAL!r}, and none are given")
            return own[None]
        goals = np.atleast_1d(require_array("goals", goals))
        whole = goals.ndim == 1 and goals.size and goals.dtype.kind in "iu"
        expected = "expected one cell per task, integers of shape (N,)"
        require(whole, "goals", f"{expected}, got {goals.dtype} {goals.shape}")
        free = self.free_cells
        require(np.isin(goals, free), "goals", f"not one of the {len(free)} free cells of the map")
        height, width = self.shape
        return goals[:, None] == np.arange(height * width)

    def _moves(self):
        """Where each move leads from each cell, and if border or wall stops it: (S, 4) each."""
        height, width = self.shape
        cell = np.arange(height * width)
        row_column = np.stack(np.divmod(cell, width), -1)
        wanted = row_column[:, None] + MOVES  # (S, 4, 2)
        inside = np.clip(wanted, 0, (height - 1, width - 1))
        target = inside @ (width, 1)
        bump = (inside != wanted).any(-1) | self.kind(WALL)[target]
        return np.where(bump, cell[:, None], target), bump

    def render(self, actions=None, goal=None):
        """The map as text.

        actions: (S,) of the greedy policy, shown as arrows on the free cells. goal: a cell, shown
        in place of the map's own goals.
        """
        cells = self._cells()
        if actions is not None:
            actions = require_array("actions", actions, cells.shape, kinds="iu")
            good = (actions >= 0) & (actions < len(MOVES))
            require(good, "actions", "outside 0..3", ("state",))
            cells = np.where(self.kind(START, FREE), ARROWS[actions], cells)
        if goal is not None:
            goal = require_array("goal", goal, (), kinds="iu")
            require(goal in range(len(cells)), "goal", f"{goal} is no cell of the map")
            cells[self.kind(GOAL)] = FREE
            cells[goal] = GOAL
        return "\n".join("".join(row) for row in cells.reshape(self.shape))


def varibad(goals=VARIBAD_GOALS):
    """MDP of N tasks on VariBAD's grid, 4 episodes being a trial. Zintgraf et al. (2020), §5.1.

    5×5 cells, start in the upper left corner, actions up, down, left, right and stay. A step that
    ends on the goal pays 1, every other one −0.1. The goal ends nothing: each episode has 15 steps,
    and γ = 1. goals: cells (N,), any but the start's; by default the 21 of VARIBAD_GOALS. Raises
    ValueError on others.
    """
    grid = GridWorld.open(5, 5, discount=1.0, horizon=15)
    is_goal = grid._goals(goals)  # (N, S)
    target, _ = grid._moves()
    stay = np.arange(25)
    target = np.column_stack([target, stay])[..., None]  # (S, A, Z = 1)
    rewards = np.where(is_goal[:, target], 1.0, -0.1)
    return MDP(
        successors=np.broadcast_to(target, rewards.shape),
        probabilities=np.ones(rewards.shape),
        rewards=rewards,
        start=np.broadcast_to(grid.kind(START), is_goal.shape).astype(float),
        terminal=np.zeros(is_goal.shape, bool),
        discount=grid.discount,
        horizon=grid.horizon,
    )
