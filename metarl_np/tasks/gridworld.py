"""GridWorld: a text map and its rules; goals turn it into a batch of tasks. State r·W + c is the cell in row r, column c."""

from dataclasses import dataclass

import numpy as np

from metarl_np.arguments import require, require_array, require_memory, validate
from metarl_np.tasks.mdp import MDP

START, GOAL, WALL, PIT, FREE = CELLS = "SG#O."


MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # actions 0..3: up, down, left, right


ARROWS = "↑↓←→"


@dataclass(frozen=True)
class GridWorld:
    """A map of `S` start, `G` goal, `#` wall, `O` pit and `.` free cells, and what moving on it pays.
    A move pays step_reward, plus goal_reward or pit_reward on entering a goal or a pit (both end the episode), less bump_penalty where the
    border or a wall stops it. With probability `slip` it turns by 90°, left or right alike: slip = 2/3 is Gymnasium's FrozenLake.
    """

    layout: tuple  # H strings of W characters; one string is split at white space
    discount: float  # γ
    horizon: int  # T
    slip: float = 0.0
    goal_reward: float = 1.0
    step_reward: float = 0.0
    pit_reward: float = 0.0
    bump_penalty: float = 0.0
    shape = property(lambda self: (len(self.layout), len(self.layout[0])))  # (H, W)
    free_cells = property(
        lambda self: np.flatnonzero(self.kind(FREE, GOAL))
    )  # (F,) where a goal may be put, ascending

    def __post_init__(self):
        validate(
            discount=self.discount,
            horizon=self.horizon,
            slip=self.slip,
            goal_reward=self.goal_reward,
            step_reward=self.step_reward,
            pit_reward=self.pit_reward,
            bump_penalty=self.bump_penalty,
        )
        rows = self.layout.split() if isinstance(self.layout, str) else self.layout
        require(
            isinstance(rows, (list, tuple)) and all(isinstance(row, str) for row in rows),
            "layout",
            f"not strings: {rows!r:.99}",
        )
        require(len(rows) and len(rows[0]), "layout", "an empty map")
        require(
            [len(row) == len(rows[0]) for row in rows],
            "layout",
            f"ragged map, row 0 has {len(rows[0])} cells",
            ("row",),
        )
        require(
            [[cell in CELLS for cell in row] for row in rows],
            "layout",
            "unknown map character",
            ("row", "column"),
        )
        object.__setattr__(self, "layout", tuple(rows))
        require(self.kind(START).any(), "layout", f"the map has no start, {START!r}")

    @classmethod
    def open(cls, height, width, **rules):
        """A field without walls, the start in the upper left corner."""
        validate(height=height, width=width)
        require_memory(500, height, width)  # of one task
        require(
            height * width >= 2,
            "height, width",
            f"{height} x {width} has no room for a start and a goal",
        )
        field = START + FREE * (height * width - 1)
        return cls(tuple(field[i : i + width] for i in range(0, height * width, width)), **rules)

    def kind(self, *kinds):
        """(S,) bool: the cells of these kinds."""
        return np.isin(list("".join(self.layout)), kinds)

    def split_goals(self, rng, n_train, n_held_out):
        """Draw disjoint training and held-out goals from the free cells: (n_train,), (n_held_out,) int."""
        validate(rng=rng, n_train=n_train, n_held_out=n_held_out)
        cells = self.free_cells
        require(
            n_train + n_held_out <= len(cells),
            "n_train, n_held_out",
            f"{n_train} + {n_held_out} goals, {len(cells)} free cells",
        )
        train, held_out = np.split(rng.permutation(cells)[: n_train + n_held_out], [n_train])
        assert not set(train) & set(held_out)
        return train, held_out

    def mdps(self, goals=None):
        """The tasks with a goal each, `goals` (N,) cells, or one task with the goals on the map: MDP. Walls are unreachable: terminal."""
        h, w = self.shape
        goal = self.kind(GOAL)[None]
        require(
            goals is not None or goal.any(),
            "goals",
            f"the map has no goal, {GOAL!r}, and none are given",
        )
        if goals is not None:
            goals = np.atleast_1d(require_array("goals", goals))
            fits = goals.ndim == 1 and goals.size and goals.dtype.kind in "iu"
            require(
                fits,
                "goals",
                f"expected one cell per task, integers of shape (N,), got {goals.dtype} {goals.shape}",
            )
            require(
                np.isin(goals, self.free_cells),
                "goals",
                f"not one of the {len(self.free_cells)} free cells of the map",
            )
            goal = goals[:, None] == np.arange(h * w)
        wall = self.kind(WALL)
        pit = self.kind(PIT)
        n = len(goal)
        cell = np.stack(np.divmod(np.arange(h * w), w), -1)[:, None] + MOVES  # (S, 4, 2)
        inside = np.clip(cell, 0, (h - 1, w - 1))
        bump = (inside != cell).any(-1) | wall[inside @ (w, 1)]
        target = np.where(bump, np.arange(h * w)[:, None], inside @ (w, 1))  # (S, 4)
        turns = np.array([[0, 2, 3], [1, 2, 3], [2, 0, 1], [3, 0, 1]])[
            :, : 3 if self.slip else 1
        ]  # (A, Z)
        require_memory(160, n, h, w, turns.shape[1])
        target = target[:, turns]
        bump = bump[:, turns]  # (S, A, Z)
        chance = (
            np.array([1 - self.slip, self.slip / 2, self.slip / 2]) if self.slip else np.ones(1)
        )
        terminal = goal | pit | wall
        end = terminal[:, :, None, None]
        rewards = (
            self.step_reward
            - self.bump_penalty * bump
            + self.goal_reward * goal[:, target]
            + self.pit_reward * pit[target]
        )
        start = np.broadcast_to(self.kind(START) / self.kind(START).sum(), (n, h * w))
        return MDP(
            np.where(end, np.arange(h * w)[:, None, None], target),
            np.broadcast_to(chance, rewards.shape),
            np.where(end, 0.0, rewards),
            start,
            terminal,
            self.discount,
            self.horizon,
        )

    def render(self, actions=None, goal=None):
        """The map as text, with the goal (a cell), and the greedy policy's actions (S,) as arrows on the free cells."""
        cells = np.array(list("".join(self.layout)))
        if actions is not None:
            actions = require_array("actions", actions, cells.shape, kinds="iu")
            require((actions >= 0) & (actions < len(MOVES)), "actions", "outside 0..3", ("state",))
            cells = np.where(self.kind(START, FREE), np.array(list(ARROWS))[actions], cells)
        if goal is not None:
            require(
                np.ndim(goal) == 0 and goal in range(len(cells)),
                "goal",
                f"{goal!r:.99} is no cell of the map",
            )
            cells[self.kind(GOAL)], cells[goal] = FREE, GOAL
        return "\n".join("".join(row) for row in cells.reshape(self.shape))
