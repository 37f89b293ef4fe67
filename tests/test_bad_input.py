"""Bad input, systematically: every public name is called with every kind of wrong value for each of
its arguments, and says which.

A row of CASES: good keyword arguments, which are first seen to work, and the kind of each argument
that is then spoiled. Pure array functions are spoiled by wrong shapes only (kind "shape"). A name
that is in no row stands in EXEMPT with the reason.
"""

import ast
import inspect
import pathlib
import tracemalloc
import warnings
from dataclasses import replace

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from autograd.core import VJPNode
from autograd.tracer import trace

import metarl_np
from metarl_np import (
    advantages,
    alias,
    arguments,
    bandits,
    check,
    checkpoint,
    enumeration,
    exact,
    gridworld,
    gymnasium,
    gru,
    maml,
    mdp,
    meta_gradients,
    optim,
    policies,
    ppo,
    random_mdps,
    reinforce,
    returns,
    rl2,
    rl2_training,
    rollouts,
    surrogates,
    trpo,
)

NAN = np.nan
INF = np.inf
NO_NUMBER = [None, "abc", [], [1.0, 2.0], np.zeros((2, 2, 2, 2, 2)), NAN, INF, -INF, {}, object()]
NO_ARRAY = [
    None,
    "abc",
    {},
    [["a", "b"]],
    [[1.0], [1.0, 2.0]],
    object(),
    np.zeros((0,)),
    np.zeros((2, 0)),
    np.zeros((7, 5, 3, 2, 2, 2)),
]
KINDS = {
    "count": NO_NUMBER + [0, -1, 2.5, 2.0, np.float64(3.0), -INF],
    "count from 0": NO_NUMBER + [-1, 2.5, 2.0],
    "finite": NO_NUMBER,
    "positive": NO_NUMBER + [0, -1.0],
    "not negative": NO_NUMBER + [-1.0],
    "probability": NO_NUMBER + [-0.1, 1.1],
    "between 0 and 1": NO_NUMBER + [0.0, 1.0, -0.1, 1.1],
    "at least 1": NO_NUMBER + [0.5],
    "positive or inf": [x for x in NO_NUMBER if x is not INF] + [0.0, -1.0],
    "rng": [None, 0, "abc", np.random.RandomState(0), np.random],
    "path": [None, 3, [], {}],
    "object": [None, 0, "abc", [], np.zeros((2, 2)), NAN],
    "optional object": [0, "abc", np.ones((2, 2)), NAN],
    "callable": [None, 0, "abc", [], NAN],
    "string": [None, 0, "abc", [], NAN],
    "title": [None, 0, [], NAN],
    "dictionary": [None, 3, "abc", [], {}, NAN],
    "map": [None, 3, "", [], "abc", ["S", "G."], [1, 2], NAN, "G", np.zeros((2, 2))],
    "list": [None, 3, "abc", [], NAN, [None], np.zeros((2, 2))],
    "dtype": [None, "abc", int, bool],
}


def spoiled(kind, good):
    """The bad values of a kind; those of arrays are made from the good one."""
    if kind in KINDS:
        return KINDS[kind]
    good = np.asarray(good)
    shapes = [
        good[None, None, None],
        np.concatenate([good, good[:1]]),
        np.zeros((0,) + good.shape),
        np.concatenate([good] * 2, -1),
    ]
    if kind == "shape":
        return shapes[:2]
    if kind == "integers":
        return NO_ARRAY + shapes + [good + 0.5, good.astype(float), good - 100, good + 100]
    numbers = [
        np.where(np.arange(good.size).reshape(good.shape) == good.size - 1, x, good)
        for x in (NAN, INF, -INF)
    ]
    return NO_ARRAY + shapes + (numbers if kind != "booleans" else [good + 2])


def rng():
    return np.random.default_rng(0)


P = np.array([[[0.5, 0.5, 0], [0, 1, 0]], [[0, 0.5, 0.5], [1, 0, 0]], [[0, 0, 1], [0, 0, 1]]])
R = np.array([[1.0, 2], [3, 4], [0, 0]])
ONE = mdp.MDP.from_dense(P, R, 0, discount=0.9, horizon=2, terminal=[False, False, True])
TASKS = ONE[[0, 0]]
FIELDS = dict(
    successors=ONE.successors,
    probabilities=ONE.probabilities,
    rewards=ONE.rewards,
    start=ONE.start,
    terminal=ONE.terminal,
    discount=0.9,
    horizon=2,
    reward_noise=0.0,
)
TABLE = {0: {0: [(1.0, 1, 1.0, False)]}, 1: {0: [(1.0, 1, 0.0, True)]}}
GRID = dict(layout="S.G", discount=0.9, horizon=5)
RULES = {name: "finite" for name in ("step_reward", "pit_reward")} | dict(
    discount="probability",
    horizon="count",
    slip="probability",
    goal_reward="positive",
    bump_penalty="not negative",
)
SOFTMAX = policies.SoftmaxPolicy(3, 2)
THETA0 = np.arange(6.0).reshape(3, 2) / 5
LOG_PI = SOFTMAX.log_pi(THETA0)
TABLE_2 = SOFTMAX.log_pi(np.array([THETA0, -THETA0]))
RECURRENT = rl2.RecurrentPolicy(3, 2, 2)
INNER = reinforce.Reinforce(0.1)
HIDDEN = RECURRENT.init(rng()).astype(float)
TRIALS = rl2.sample_trials(rng(), TASKS, RECURRENT, HIDDEN, 2)
STEPS = TRIALS.rewards * 0 + 1.0
E = rollouts.rollout(rng(), TASKS, LOG_PI, 3)
ARRAYS = dict(
    log_probs=E.rewards * 0.0 - 1,
    rewards=E.rewards * 1.0,
    baseline=E.rewards * 0.0,
    mask=E.mask,
    discount=0.9,
)
THETA_2 = np.array([THETA0, -THETA0])
PATH = maml.adapt(rng(), TASKS, SOFTMAX, THETA0, INNER, steps=1, episodes=3)
RECORD = check.record(E.states[:, 0], E.actions[:, 0], E.rewards[:, 0])
# with no other episodes there is less to try
ONE_EPISODE = check.record(E.states[:, 0, :1], E.actions[:, 0, :1], E.rewards[:, 0, :1])
NET = gru.GRU(2, 2, 1)
WEIGHTS = NET.init(rng()).astype(float)
X = np.ones((3, 2, 4))
NU = advantages.visits(E, 3)
OPTIONS = dict(rng=rng(), sample_tasks=lambda rng: TASKS, iterations=1, episodes=3)
SHAPES = {name: "shape" for name in ARRAYS if name != "discount"}
V = np.ones((2, 3))
PI = np.exp(TABLE_2)


def case(function, arguments, **kinds):
    return function, arguments, kinds


def by_position(f):
    """autograd's grad takes what it differentiates by position."""

    def call(mdps, policy, theta, inner, **more):
        return f(mdps, policy, theta, inner, **more)

    return call


MDPS = dict(mdps="object")
RNG = dict(rng="rng")
THETA_KIND = dict(theta="array")
EXACT = dict(mdps=TASKS, log_pi=TABLE_2)
EVALUATOR = dict(mdps="object", log_pi="array")
STEP_SIZE = dict(step_size="finite", steps="count from 0")
SMALL = dict(
    mdps=ONE,
    policy=SOFTMAX,
    theta=THETA0,
    inner=reinforce.Reinforce(0.1, returns.no_baseline),
    episodes=1,
)
ENUMERATED = (
    MDPS
    | THETA_KIND
    | dict(policy="object", inner="object", episodes="count", steps="count", max_datasets="count")
)
EVERY, CHANCE = enumeration.enumerate_episodes(ONE)
BANDIT = rl2.RecurrentPolicy(1, 2, 2)

CASES = {
    "mdp.MDP": case(
        mdp.MDP,
        FIELDS,
        successors="successors",
        probabilities="array",
        rewards="array",
        start="array",
        terminal="booleans",
        discount="probability",
        horizon="count",
    ),
    "mdp.MDP.from_dense": case(
        mdp.MDP.from_dense,
        dict(P=P, R=R, start=0, discount=0.9, horizon=2, terminal=[False, False, True]),
        P="array",
        R="array",
        start="count from 0",
        discount="probability",
        horizon="count",
        terminal="booleans",
    ),
    "gymnasium.mdp_from_gymnasium": case(
        gymnasium.mdp_from_gymnasium,
        dict(tables=TABLE, start=0, discount=0.9, horizon=2),
        tables="list",
        start="count from 0",
        discount="probability",
        horizon="count",
    ),
    "mdp.MDP.__getitem__": case(TASKS.__getitem__, dict(tasks=[0, 1])),
    "mdp.require_log_pi": case(
        mdp.require_log_pi, dict(log_pi=LOG_PI, mdps=ONE), log_pi="array", **MDPS
    ),
    "bandits.bernoulli": case(bandits.bernoulli, dict(means=[[0.5, 0.2]]), means="means"),
    "bandits.informative": case(bandits.informative, dict(targets=[1, 2]), targets="targets"),
    "bandits.independent": case(
        bandits.independent,
        dict(rng=rng(), n_tasks=2, arms=2),
        rng="rng",
        n_tasks="count",
        arms="count",
    ),
    "bandits.dependent": case(
        bandits.dependent,
        dict(rng=rng(), n_tasks=2, difficulty="easy"),
        rng="rng",
        n_tasks="count",
        difficulty="string",
    ),
    "random_mdps.random_mdps": case(
        random_mdps.random_mdps,
        dict(rng=rng(), n_tasks=2, n_states=2, n_actions=2),
        rng="rng",
        n_tasks="count",
        n_states="count",
        n_actions="count",
        horizon="count",
        discount="probability",
        reward_mean="finite",
        reward_std="not negative",
    ),
    "gridworld.GridWorld": case(gridworld.GridWorld, GRID, layout="map", **RULES),
    "gridworld.GridWorld.open": case(
        gridworld.GridWorld.open,
        dict(height=2, width=3, discount=1, horizon=3),
        height="count",
        width="count",
        **RULES,
    ),
    "gridworld.GridWorld.split_goals": case(
        gridworld.GridWorld.open(2, 3, discount=1, horizon=3).split_goals,
        dict(rng=rng(), n_train=2, n_held_out=1),
        rng="rng",
        n_train="count",
        n_held_out="count from 0",
    ),
    "gridworld.GridWorld.mdps": case(
        gridworld.GridWorld(**GRID).mdps, dict(goals=[1, 2]), goals="goals"
    ),
    "gridworld.varibad": case(gridworld.varibad, dict(goals=[2, 3]), goals="cells"),
    "gridworld.GridWorld.render": case(
        gridworld.GridWorld(**GRID).render,
        dict(actions=np.zeros(3, int), goal=1),
        actions="actions",
        goal="goal",
    ),
    "alias.sampling_tables": case(alias.sampling_tables, EXACT, **EVALUATOR),
    "rollouts.rollout": case(
        rollouts.rollout,
        dict(EXACT, rng=rng(), episodes=2, steps=1),
        episodes="count",
        steps="optional count",
        threads="count",
        **RNG,
        **EVALUATOR,
    ),
    "exact.expect": case(exact.expect, dict(mdps=TASKS, v=V), v="shape"),
    "exact.push": case(exact.push, dict(mdps=TASKS, mass=PI), mass="shape"),
    "exact.action_values": case(exact.action_values, dict(mdps=TASKS, v=V), v="shape"),
    "exact.backup": case(exact.backup, dict(mdps=TASKS, pi=PI, v=V), pi="shape", v="shape"),
    "exact.optimal_backup": case(exact.optimal_backup, dict(mdps=TASKS, v=V), v="shape"),
    **{
        f"exact.{name}": case(getattr(exact, name), EXACT, **EVALUATOR)
        for name in ("expected_return", "policy_gradient_table")
    },
    **{
        f"exact.{name}": case(getattr(exact, name), EXACT, **EVALUATOR)
        for name in ("values", "occupancy")
    },
    "exact.stationary_values": case(
        exact.stationary_values,
        dict(EXACT, tolerance=1e-6),
        max_sweeps="count",
        tolerance="optional not negative",
        **EVALUATOR,
    ),
    **{
        f"exact.{name}": case(getattr(exact, name), dict(mdps=TASKS), **MDPS)
        for name in ("optimal_values", "optimal_log_pi", "optimal_return")
    },
    "exact.stationary_optimal_values": case(
        exact.stationary_optimal_values,
        dict(mdps=TASKS),
        tolerance="not negative",
        max_sweeps="count",
        **MDPS,
    ),
    "enumeration.enumerate_episodes": case(
        enumeration.enumerate_episodes, dict(mdps=TASKS), max_episodes="count", **MDPS
    ),
    "enumeration.enumerated_return": case(
        enumeration.enumerated_return,
        dict(log_pi=LOG_PI, episodes=EVERY, dynamics=CHANCE, discount=0.9),
        dynamics="shape",
    ),
    **{
        f"meta_gradients.{name}": case(
            getattr(meta_gradients, name),
            dict(mdps=TASKS, policy=SOFTMAX, theta=THETA0, step_size=0.1),
            policy="object",
            **STEP_SIZE,
            **MDPS,
            **THETA_KIND,
        )
        for name in ("adapted_return", "adapted_return_gradient")
    },
    "meta_gradients.hessians": case(
        meta_gradients.hessians,
        dict(mdps=TASKS, policy=SOFTMAX, theta=THETA0),
        policy="object",
        **MDPS,
        **THETA_KIND,
    ),
    **{
        f"{section.__name__.split('.')[-1]}.{name}": case(
            by_position(getattr(section, name)),
            SMALL,
            **ENUMERATED | ({"theta": "traced"} if name.endswith("return_gradient") else {}),
        )
        for section, name in (
            (enumeration, "enumerate_adaptations"),
            (meta_gradients, "expected_adapted_return"),
            (meta_gradients, "expected_adapted_return_gradient"),
            (meta_gradients, "expected_meta_gradient"),
        )
    },
    "records.record": case(
        check.record,
        dict(
            states=E.states[:, 0],
            actions=E.actions[:, 0],
            rewards=E.rewards[:, 0],
            mask=E.mask[:, 0],
            log_probs=E.log_probs[:, 0],
            baseline=E.rewards[:, 0],
            advantages=E.rewards[:, 0],
            values=E.rewards[:, 0],
            last_values=E.rewards[0, 0],
            dones=E.mask[:, 0],
        ),
        states="optional integer steps",
        actions="optional integer steps",
        rewards="steps",
        mask="optional booleans",
        log_probs="optional steps",
        baseline="optional steps",
        advantages="optional steps",
        values="optional values",
        last_values="optional values",
        dones="optional booleans",
    ),
    "estimators.estimator_gradients": case(
        check.estimator_gradients,
        dict(theta=THETA0, support=[RECORD], query=RECORD, step_size=0.1, discount=0.9),
        theta="matrix",
        support="records",
        query="record",
        step_size="finite",
        discount="probability",
        baseline="callable",
        lam="probability",
        policy="optional object",
    ),
    "estimators.exact_gradients": case(
        check.exact_gradients,
        dict(mdps=TASKS, theta=THETA0, step_size=0.1),
        policy="optional object",
        **MDPS,
        **THETA_KIND,
        **STEP_SIZE,
    ),
    "estimators.expected_gradients": case(
        check.expected_gradients,
        dict(mdps=ONE, theta=THETA0, step_size=0.1, episodes=2),
        episodes="count",
        step_size="finite",
        steps="count",
        baseline="callable",
        lam="probability",
        policy="optional object",
        **MDPS,
        **THETA_KIND,
    ),
    "diagnosis.diagnose": case(
        check.diagnose,
        dict(
            gradient=THETA0,
            theta=THETA0,
            support=[RECORD],
            query=RECORD,
            step_size=0.1,
            discount=0.9,
            max_explanations=10,
        ),
        gradient="matrix",
        theta="matrix",
        support="records",
        query="record",
        step_size="finite",
        discount="probability",
        policy="optional object",
        tolerance="optional not negative",
        max_explanations="optional count",
    ),
    "diagnosis.explain_step": case(
        check.explain_step,
        dict(theta=THETA0, adapted=THETA0 + 1, record=ONE_EPISODE, step_size=0.1, discount=0.9),
        theta="matrix",
        adapted="matrix",
        record="record",
        step_size="optional finite",
        discount="probability",
        policy="optional object",
    ),
    "verdict.check_gradient": case(
        check.check_gradient,
        dict(gradient=THETA0, candidates={"a": THETA0}, standard_error=THETA0),
        gradient="array",
        candidates="dictionary",
        tolerance="not negative",
        standard_error="optional array",
        confidence="between 0 and 1",
    ),
    "checkpoint.save": case(
        lambda path, kind: checkpoint.save(path, kind, x=1),
        dict(path="/dev/null/x", kind="training"),
        path="path",
        kind="title",
    ),
    "checkpoint.load": case(checkpoint.load, dict(path="nowhere", kind="training"), path="path"),
    "checkpoint.resumable": case(
        checkpoint.resumable,
        dict(
            path="nowhere", train=lambda rng, theta, state, first: iter(()), rng=rng(), theta=THETA0
        ),
        path="path",
        train="callable",
        rng="rng",
        every="count",
        configuration="options",
    ),
    "gru.GRU": case(
        gru.GRU, dict(inputs=2, units=2, outputs=1), inputs="count", units="count", outputs="count"
    ),
    "gru.GRU.split": case(NET.split, dict(theta=WEIGHTS), theta="array"),
    "gru.GRU.init": case(
        NET.init,
        dict(rng=rng(), dtype=float, memory=2.0),
        rng="rng",
        dtype="dtype",
        memory="at least 1",
    ),
    "gru.forward": case(
        gru.forward, dict(net=NET, theta=WEIGHTS, x=X), theta="array", x="shape in the middle"
    ),
    "gru.unroll": case(
        gru.unroll, dict(net=NET, theta=WEIGHTS, x=X), theta="array", x="shape in the middle"
    ),
    "gru.backward": case(
        gru.backward,
        dict(
            net=NET, theta=WEIGHTS, x=X, trace=gru.forward(NET, WEIGHTS, X)[1], g=np.ones((3, 1, 4))
        ),
        theta="array",
        g="shape",
    ),
    "surrogates.gather": case(
        surrogates.gather,
        dict(table=TABLE_2, states=E.states, actions=E.actions),
        table="shape",
        actions="shape",
    ),
    "surrogates.gather_log_probs": case(
        surrogates.gather_log_probs,
        dict(log_pi=TABLE_2, states=E.states, actions=E.actions),
        actions="shape",
    ),
    **{
        f"surrogates.{name}": case(
            getattr(surrogates, name),
            {
                steps: E.rewards,
                "states": E.states,
                "actions": E.actions,
                "n_states": 3,
                "n_actions": 2,
            },
            states="shape",
            actions="shape",
        )
        for name, steps in (("scatter", "steps"), ("fold", "weights"))
    },
    "surrogates.reinforce": case(
        surrogates.reinforce, dict(log_probs=E.rewards, weights=E.rewards), log_probs="shape"
    ),
    "surrogates.reinforce_folded": case(
        surrogates.reinforce_folded, dict(log_pi=LOG_PI, table=TABLE_2), log_pi="shape"
    ),
    **{
        f"surrogates.{name}": case(
            getattr(surrogates, name), ARRAYS, **{k: v for k, v in SHAPES.items() if k != "mask"}
        )
        for name in ("naive", "lvc", "dice", "loaded_dice")
    },
    "surrogates.reinforce_weights": case(
        surrogates.reinforce_weights,
        dict(episodes=E, discount=0.9, baseline=returns.no_baseline),
        baseline="wrong baseline",
    ),
    "advantages.mean_kl": case(
        advantages.mean_kl, dict(policy=SOFTMAX, old=THETA_2, new=THETA_2, nu=NU), nu="shape"
    ),
    "maml.adapt": case(
        maml.adapt,
        dict(rng=rng(), mdps=TASKS, policy=SOFTMAX, theta=THETA0, inner=INNER, steps=1, episodes=3),
        policy="object",
        inner="object",
        steps="count from 0",
        episodes="count",
        **RNG,
        **MDPS,
        **THETA_KIND,
    ),
    "maml.replay": case(
        maml.replay,
        dict(policy=SOFTMAX, theta=THETA0, inner=INNER, recorded=PATH.episodes, discount=0.9),
        policy="object",
        inner="object",
        recorded="list",
        discount="probability",
        **THETA_KIND,
    ),
    "maml.per_task": case(maml.per_task, dict(theta=THETA_2, n_tasks=2), theta="too many tasks"),
    "maml.meta_gradient": case(
        maml.meta_gradient,
        dict(policy=SOFTMAX, path=PATH, inner=INNER, score_factor=np.ones(2)),
        score_factor="shape",
    ),
    "maml.meta_objective": case(
        maml.meta_objective,
        dict(
            policy=SOFTMAX,
            theta=THETA_2,
            path=PATH,
            inner=INNER,
            score_factor=np.ones(2),
            outer=lambda th: np.zeros(2),
        ),
        score_factor="shape",
    ),
    **{
        f"maml.{name}": case(
            getattr(maml, name),
            OPTIONS | dict(policy=SOFTMAX, theta=THETA0, step_size=0.1) | more,
            sample_tasks="callable",
            policy="object",
            iterations="count from 0",
            episodes="count",
            step_size="finite",
            optimiser="callable",
            first="count from 0",
            **RNG,
            **THETA_KIND,
            **kinds,
        )
        for name, more, kinds in (
            ("train", dict(inner=INNER, steps=1), dict(inner="object", steps="count from 0")),
            ("train_multi_task", {}, {}),
        )
    },
    "optim.ascent": case(
        optim.ascent, dict(theta=THETA0, gradient=THETA0, step_size=0.1), gradient="shape"
    ),
    "optim.adam": case(
        optim.adam, dict(theta=THETA0, gradient=THETA0, step_size=0.1), gradient="shape"
    ),
    "policies.SoftmaxPolicy": case(
        policies.SoftmaxPolicy,
        dict(n_states=3, n_actions=2, features=np.ones((3, 2))),
        n_states="count",
        n_actions="count",
        features="optional features",
    ),
    "policies.LogisticPolicy": case(
        policies.LogisticPolicy,
        dict(n_states=3, units=2, features=np.ones((3, 2))),
        n_states="count",
        units="count",
        features="optional features",
    ),
    "policies.ActorCritic": case(policies.ActorCritic, dict(actor=SOFTMAX), actor="object"),
    "policies.LinearPolicy.log_pi": case(SOFTMAX.log_pi, dict(theta=THETA0), theta="theta"),
    "policies.ActorCritic.values": case(
        policies.ActorCritic(SOFTMAX).values, dict(theta=np.ones((3, 3))), theta="theta"
    ),
    "policies.LinearPolicy.tangent": case(
        SOFTMAX.tangent, dict(theta=THETA0, v=THETA0), theta="theta", v="last axis"
    ),
    "policies.LinearPolicy.weighted_score": case(
        SOFTMAX.weighted_score, dict(theta=THETA0, weights=PI), theta="theta", weights="last axis"
    ),
    "policies.LinearPolicy.scores": case(SOFTMAX.scores, dict(theta=THETA0), theta="theta"),
    "policies.Scores.weighted": case(
        SOFTMAX.scores(THETA0).weighted, dict(weights=PI), weights="last axis"
    ),
    "policies.Scores.along": case(SOFTMAX.scores(THETA0).along, dict(v=THETA0), v="last axis"),
    "policies.kl": case(
        policies.kl, dict(log_p=LOG_PI, log_q=LOG_PI), log_p="last axis", log_q="last axis"
    ),
    "rollouts.Episodes": case(
        rollouts.Episodes,
        {name: getattr(E, name) for name in E.__dataclass_fields__},
        actions="shape",
        rewards="shape",
        mask="shape",
    ),
    "returns.gae": case(
        returns.gae,
        dict(
            rewards=STEPS, values=STEPS, mask=STEPS > 0, bootstrap=STEPS[0], discount=0.9, lam=0.9
        ),
        values="shape",
        mask="shape",
        bootstrap="shape",
    ),
    "returns.leave_one_out_baseline": case(returns.leave_one_out_baseline, dict(returns=STEPS)),
    "returns.linear_baseline": case(
        returns.linear_baseline,
        dict(features=np.ones((3, 2)), ridge=0.1),
        features="table",
        ridge="not negative",
    ),
    "rl2.RecurrentPolicy": case(
        rl2.RecurrentPolicy,
        dict(n_states=2, n_actions=2, units=3),
        n_states="count",
        n_actions="count",
        units="count",
    ),
    "rl2.RecurrentPolicy.init": case(
        RECURRENT.init, dict(rng=rng()), rng="rng", dtype="dtype", memory="at least 1"
    ),
    "rl2.Trials": case(
        rl2.Trials,
        vars(TRIALS),
        **{name: "shape" for name in ("actions", "rewards", "episode", "time", "mask")},
    ),
    "rl2.sample_trials": case(
        rl2.sample_trials,
        dict(rng=rng(), mdps=TASKS, policy=RECURRENT, theta=HIDDEN, episodes=2),
        policy="object",
        episodes="count",
        **RNG,
        **MDPS,
        **THETA_KIND,
    ),
    **{
        f"rl2.{name}": case(
            getattr(rl2, name), dict(mdps=TASKS, trials=TRIALS), trials="object", **MDPS
        )
        for name in ("expected_rewards", "regrets")
    },
    "rl2_training.trial_surrogate": case(
        rl2_training.trial_surrogate,
        dict(outputs=TRIALS.outputs, trials=TRIALS, advantage=STEPS, target=STEPS),
        outputs="shape",
        advantage="shape",
        target="shape",
    ),
    "rl2_training.trial_surrogate_gradient": case(
        rl2_training.trial_surrogate_gradient,
        dict(
            outputs=TRIALS.outputs, trials=TRIALS, old=STEPS, advantage=STEPS, target=STEPS, steps=3
        ),
        old="shape",
        advantage="shape",
        target="shape",
    ),
    "rl2_training.trial_advantages": case(
        rl2_training.trial_advantages,
        dict(trials=TRIALS, payoffs=STEPS, discount=0.9, lam=0.9),
        payoffs="shape",
    ),
    "rl2_training.RecurrentPPO": case(
        rl2_training.RecurrentPPO,
        {},
        step_size="positive",
        epochs="count",
        minibatches="count",
        clip="positive",
        discount="probability",
        lam="probability",
        entropy="not negative",
        value="not negative",
        max_norm="positive",
    ),
    "rl2_training.train_recurrent": case(
        rl2_training.train_recurrent,
        OPTIONS | dict(policy=RECURRENT, theta=HIDDEN, update=rl2_training.RecurrentPPO()),
        sample_tasks="callable",
        policy="object",
        update="callable",
        payoffs="callable",
        iterations="count from 0",
        episodes="count",
        first="count from 0",
        **RNG,
        **THETA_KIND,
    ),
    "reinforce.Reinforce": case(
        reinforce.Reinforce,
        dict(step_size=0.1),
        step_size="finite",
        baseline="callable",
        estimator="string",
        lam="probability",
    ),
    "reinforce.FirstOrder": case(reinforce.FirstOrder, dict(inner=INNER), inner="object"),
    "ppo.PPO": case(
        ppo.PPO,
        dict(step_size=0.1),
        step_size="finite",
        clip="positive",
        epochs="count",
        minibatches="count",
        lam="probability",
        entropy="not negative",
        value="not negative",
        target_kl="positive or inf",
        baseline="callable",
    ),
    "trpo.TRPO": case(
        trpo.TRPO,
        {},
        radius="positive",
        damping="positive",
        lam="probability",
        shrink="between 0 and 1",
        max_backtracks="count from 0",
        baseline="callable",
    ),
    "trpo.fisher_vector_product": case(
        trpo.fisher_vector_product,
        dict(policy=SOFTMAX, theta=THETA_2, nu=NU, v=THETA_2),
        nu="shape",
        v="last axis",
    ),
}

# public names without a row, by the reason
EXEMPT_REASONS = {
    "it is what says so": """
        arguments.misplaced arguments.require_plain arguments.require_index arguments.digits
        arguments.primitive arguments.notrace_primitive arguments.defvjp
        arguments.validate arguments.require arguments.require_array arguments.require_shapes
        arguments.require_floats arguments.plain_number arguments.validate_fields
        arguments.require_finite arguments.require_memory arguments.require_flags
        arguments.require_mask""",
    "it is made by a policy": "policies.Scores",
    "of records": """
        arguments.set_fields arguments.trusted arguments.read_only arguments.Record
        arguments.unmasked arguments.harmless""",
    "an exception": "arguments.NotFinite arguments.OutOfRange",
    "its input is seen to in tests/runs": "study.study study.Result",
    "its input is seen to in tests/compare": """
        beliefs.FiniteBelief beliefs.Prior beliefs.DirichletBelief beliefs.counts
        beliefs.transitions priors.fit_slip priors.fit_goals priors.fit_prior strategies.tune
        strategies.play_bandits strategies.egreedy strategies.ucb1 strategies.thompson
        strategies.gittins_index strategies.gittins planners.sample_plan planners.mean_plan
        planners.act planners.play_mdps planners.planned_values planners.optimistic
        planners.greedy_plan planners.beb planners.opsrl planners.ucrl2 bayes.bayes_optimal
        bayes.dependent_optimal bayes.optimal_returns""",
    "its input is seen to in tests/check": """
        advantages.explain_advantages inputs.explain_inputs clipped.explain_clipped""",
    "its input is seen to in tests/meta": """
        values.value_step values.value_error values.adapt_values values.meta_value_objective
        values.train_values rl2_trpo.RecurrentTRPO enumeration.enumerate_bandit_trials""",
    "a record that a function returns or takes": """
        advantages.AdvantagesExplanation inputs.Column
        inputs.InputsExplanation clipped.ClippedExplanation
        verdict.Verdict diagnosis.Diagnosis diagnosis.Step replays.Alternative
        explanations.Trial explanations.Variation
        replays.Explanation records.RecordedEpisodes maml.Adaptation maml.Iteration
        rl2_training.RecurrentIteration alias.AliasTables alias.SamplingTables
        reinforce.RecordedSteps ppo.PPOData trpo.TRPOData beliefs.Counts beliefs.Transitions
        strategies.Strategy planners.Planner""",
    "the common part of the policies": "policies.LinearPolicy",
    "a room: it takes one array, or a policy and what was sampled with it": """
        explanations.Search explanations.alternatives verdict.fit verdict.rounding
        verdict.relative
        inputs.number_a_step inputs.vector_a_step inputs.compare
        explanations.distinct_averages explanations.listed
        scores.require_records scores.is_own scores.scores_of scores.LinearScores
        scores.OwnScores replays.Recorded replays.average_weights replays.average_ratio
        replays.returns_to_go
        replays.decayed_sum replays.bootstrapped_returns mdp.per_state mdp.rounding
        mdp.for_each_task surrogates.stop surrogates.magic_box policies.sum_last
        policies.log_softmax policies.entropy returns.discounts returns.discounted_return
        returns.reward_to_go returns.no_baseline returns.time_mean_baseline rl2.log_probs
        rl2.outputs surrogates.log_likelihood advantages.td_errors advantages.advantages
        advantages.standardise
        advantages.at_states advantages.fold_states advantages.visits maml.centred_returns
        maml.closed_form rl2_training.taken_log_probs reinforce.reinforce_table
        trpo.natural_direction optim.conjugate_gradient rl2_training.trial_gradient
        rl2_trpo.trial_kl rl2_trpo.trial_fisher_vector_product
        enumeration.enumerated_trial_return differences.finite_differences""",
    "it runs every time step; its callers check": """
        rollouts.step rollouts.successor_table gru.step gru.cell gru.sigmoid""",
}
EXEMPT = {name for names in EXEMPT_REASONS.values() for name in names.split()}
PACKAGE = pathlib.Path(metarl_np.__file__).parent


def public_names():
    """`section.name` of every public function and class, but for what draws."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem in ("__init__", "plots"):
            continue
        for node in ast.parse(path.read_text(encoding="utf8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield f"{path.stem}.{node.name}"


def test_every_public_name_has_a_row_or_a_reason():
    methods = {name for name in CASES if name.count(".") > 1}
    functions = set(CASES) - methods
    assert functions | EXEMPT == set(public_names())
    assert not functions & EXEMPT


def bad_steps(good):
    """Arrays (T, N, K) of other shapes, and with NaN."""
    shapes = [good[:-1], good[None, None], good[..., :-1]]
    return [x for x in NO_ARRAY if x is not None] + shapes + [good + NAN]


def bad_successors(good):
    """No integers, and states that do not exist."""
    return NO_ARRAY + [good + 0.5, good.astype(float), good - 100, good + 100]


def bad_theta(good):
    """Parameters may have any number of leading axes, and autograd may trace them."""
    bad = []
    for x in bad_values("array", good):
        is_empty = isinstance(x, np.ndarray) and len(x) == 0
        if getattr(x, "ndim", 2) < 4 and not is_empty:
            bad.append(x)
    return bad


def bad_features(good):
    shapes = [np.ones((2, 2)), np.ones(3), np.ones((3, 0))]
    return NO_ARRAY + shapes + [np.full((3, 2), NAN), np.full((3, 2), INF)]


def bad_table(good):
    shapes = [np.ones(3), np.ones((3, 2, 2))]
    return NO_ARRAY[:-3] + shapes + [np.full((3, 2), NAN), np.full((3, 2), -INF)]


def bad_baselines(good):
    """Functions whose values would broadcast."""
    return [lambda g, e: g[:-1], lambda g, e: g[..., :1], lambda g, e: g[0, 0]]


NO_RECORD = [None, 3, "abc", NAN, [None], {}, {"states": 1}]
NO_MEANS = [[[NAN, 0.5]], [[-0.1, 0.5]], [[0.5, 1.1]], [[INF, 0.5]], [0.5, 0.5]]
NO_GOALS = ["abc", {}, [1.0], [0], [-1], [3], [], [[1, 2]], 1.5, NAN, [None]]
NO_CELLS = [x for x in NO_GOALS if x != [3]] + [[25]]
NO_TARGETS = [x for x in NO_CELLS if x != [0]] + [[10]]
NO_ACTIONS = ["abc", {}, [1.0, 0, 0], [4, 0, 0], [-1, 0, 0], [0], [], NAN, np.zeros((2, 3), int)]
OTHER_TASKS = [np.ones((3, 3, 2)), np.ones((2, 2, 3, 2)), np.ones(2), np.ones((1, 3, 2))]
SPECIAL = {  # kind: bad values, made from the good one
    "steps": bad_steps,
    "integer steps": bad_steps,
    "values": lambda good: NO_ARRAY + [good[:-1], good[None, None], good + INF],  # NaN: not given
    "successors": bad_successors,
    "theta": bad_theta,
    "traced": lambda good: [x for x in bad_values("array", good) if isinstance(x, np.ndarray)],
    "matrix": lambda good: NO_ARRAY + bad_values("array", good)[-3:],  # of any size
    "means": lambda good: NO_ARRAY[:-1] + NO_MEANS,
    "goals": lambda good: NO_GOALS,
    "cells": lambda good: NO_CELLS,
    "targets": lambda good: NO_TARGETS,
    "actions": lambda good: NO_ACTIONS,
    "goal": lambda good: ["abc", {}, 1.5, -1, 3, NAN, [1, 2], np.zeros(2, int)],
    "records": lambda good: NO_RECORD,
    "record": lambda good: NO_RECORD,
    "options": lambda good: [3, "abc", [1], NAN],
    "features": bad_features,
    "table": bad_table,
    "last axis": lambda good: [np.concatenate([good, good], -1), np.asarray(good)[..., :1]],
    "shape in the middle": lambda good: [good[0], good[:, :1], good[:, None], np.ones(3)],
    "too many tasks": lambda good: ["abc", None, 3, *OTHER_TASKS],
    "wrong baseline": bad_baselines,
}


def bad_values(kind, good):
    """What must be refused in the place of a good value of this kind."""
    if kind.startswith("optional "):  # None is a good value
        return [x for x in bad_values(kind.removeprefix("optional "), good) if x is not None]
    return SPECIAL[kind](good) if kind in SPECIAL else spoiled(kind, good)


def run(function, arguments):
    """The result, of a generator the first record."""
    result = function(**arguments)
    return next(result, None) if inspect.isgenerator(result) else result


ROWS = [(name, argument) for name, (_, _, kinds) in CASES.items() for argument in kinds]


@pytest.mark.parametrize("name", CASES)
def test_the_good_arguments_are_good(name):
    function, good, _ = CASES[name]
    if name.startswith("checkpoint"):  # what is written and read is test_checkpoint's
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(function, good)
    # log 0 = −inf is right
    assert not isinstance(result, (float, np.ndarray)) or not np.isnan(result).any()


@pytest.mark.parametrize("name, argument", ROWS)
def test_what_is_bad_is_named(name, argument):
    function, good, kinds = CASES[name]
    value = good.get(argument)
    for bad in bad_values(kinds[argument], value):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                run(function, good | {argument: bad})
            except (ValueError, TypeError) as error:
                assert argument in str(
                    error
                ), f"{name}({argument}={bad!r}): {type(error).__name__}: {error}"
                continue
        pytest.fail(f"{name}({argument}={bad!r}) did not complain")


# ---- what autograd traces, and a class in an object's place

DIFFERENTIABLE = {  # arguments that autograd does go through
    *(f"exact.{name} log_pi" for name in ("expected_return", "policy_gradient_table")),
    *(f"exact.{name} log_pi" for name in ("values", "occupancy", "stationary_values")),
    "mdp.require_log_pi log_pi",  # a check, which it passes by
    *(f"meta_gradients.{name} theta" for name in ("adapted_return", "adapted_return_gradient")),
    *(f"meta_gradients.expected_{name} theta" for name in ("adapted_return", "meta_gradient")),
    "meta_gradients.expected_adapted_return_gradient theta",
    "meta_gradients.hessians theta",
    "enumeration.enumerate_adaptations theta",
    "estimators.exact_gradients theta",
    "maml.replay theta",
    "gru.unroll theta",
}
NUMBERS = ("array", "matrix", "finite", "positive", "not negative", "probability", "at least 1")
TRACED = [row for row in ROWS if CASES[row[0]][2][row[1]] in NUMBERS]
TRACED = [row for row in TRACED if " ".join(row) not in DIFFERENTIABLE]
OBJECTS = ("object", "callable", "rng", "count", "array", *NUMBERS)
PLACES = [row for row in ROWS if CASES[row[0]][2][row[1]] in OBJECTS]


@pytest.mark.parametrize("name, argument", TRACED)
def test_what_autograd_cannot_go_through_is_named(name, argument):
    function, good, _ = CASES[name]
    value = np.array(good.get(argument, 0.5), float)
    with pytest.raises(ValueError, match=f"^{argument}: autograd cannot go through it"):
        trace(VJPNode.new_root(), lambda x: run(function, good | {argument: x}), value)


@pytest.mark.parametrize("bad", [policies.LogisticPolicy, reinforce.Reinforce, policies])
@pytest.mark.parametrize("name, argument", PLACES)
def test_a_class_or_a_module_in_an_objects_place_is_named(name, argument, bad):
    function, good, _ = CASES[name]
    with pytest.raises(ValueError, match=f"^{argument}: .* is a (class|module), where an object"):
        run(function, good | {argument: bad})


@pytest.mark.parametrize(
    "function, keywords",
    [
        (policies.log_softmax, dict(x=THETA0)),
        (exact.expect, dict(v=V, mdps=TASKS)),
        (exact.backup, dict(v=V, pi=PI, mdps=TASKS)),
        (returns.reward_to_go, dict(discount=0.9, rewards=STEPS)),
        (surrogates.gather, dict(actions=E.actions, table=TABLE_2, states=E.states)),
    ],
)
def test_the_gradient_goes_through_a_keyword(function, keywords):
    first = next(
        name for name, x in keywords.items() if name not in ("mdps", "actions", "discount")
    )

    def total(x):
        return anp.sum(function(**keywords | {first: x}) ** 2)

    g = grad(total)(keywords[first] * 1.0)
    assert abs(g - check.finite_differences(total, keywords[first])).max() < 1e-6


def test_stop_stops_what_it_is_given_by_name():
    assert grad(lambda x: surrogates.stop(x=x) * x)(3.0) == 3.0


def test_the_number_of_episodes_is_counted_beyond_floats():
    with pytest.raises(ValueError, match=r"^max_episodes: at least \d[\d,]* episodes"):
        enumeration.enumerate_episodes(replace(ONE, horizon=600))


def test_the_number_of_data_sets_does_not_wrap_around():
    with pytest.raises(ValueError, match="^max_datasets: "):
        enumeration.enumerate_adaptations(**SMALL | dict(episodes=np.int64(10**12)))


# ---- failure is loud


@pytest.mark.parametrize(
    "call",
    [
        lambda: rollouts.rollout(rng(), TASKS, LOG_PI, 10**13),
        lambda: rollouts.rollout(rng(), TASKS, LOG_PI, np.int64(2**62)),
        lambda: rl2.sample_trials(rng(), TASKS, RECURRENT, HIDDEN, 10**13),
        lambda: exact.values(replace(ONE, horizon=10**14), LOG_PI),
        lambda: exact.occupancy(replace(ONE, horizon=10**14), LOG_PI),
        lambda: enumeration.enumerate_episodes(replace(ONE, horizon=60), max_episodes=10**99),
        lambda: enumeration.enumerate_adaptations(**SMALL | dict(episodes=30), max_datasets=10**99),
        lambda: exact.optimal_return(replace(ONE, horizon=10**14)),
        lambda: replace(ONE, horizon=10**14).with_time(),
        lambda: random_mdps.random_mdps(rng(), 10**5, 10**5),
        lambda: bandits.independent(rng(), 10**8, 10**8),
        lambda: bandits.dependent(rng(), 10**15),
        lambda: policies.LogisticPolicy(2, 60),
        lambda: policies.LogisticPolicy(2, 10**18),
        lambda: policies.SoftmaxPolicy(10**9, 10**9),
        lambda: gru.GRU(2, 10**8, 2),
        lambda: rl2.RecurrentPolicy(10**9, 10**9, 10),
        lambda: gridworld.GridWorld.open(10**9, 10**9, discount=1, horizon=2),
    ],
)
def test_a_petabyte_is_refused_before_it_is_allocated(call):
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError,
            match=r"^arguments.MAX_BYTES: \d[\d,]{12,} bytes asked for, above 8,589,934,592",
        ):
            call()
        assert tracemalloc.get_traced_memory()[1] < 5e5
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "call, size",
    [
        (lambda: rollouts.rollout(rng(), TASKS, LOG_PI, 7), 13 * 2 * 2 * 7),
        (lambda: exact.values(TASKS, LOG_PI), 3 * 2 * 3 * 8),
        (lambda: exact.occupancy(TASKS, LOG_PI), 2 * 2 * 3 * 8),
        (lambda: exact.optimal_values(TASKS), 3 * 2 * 3 * 8),
        (lambda: exact.stationary_values(TASKS, LOG_PI), 2 * 3 * 3 * 8),
        (lambda: meta_gradients.hessians(TASKS, SOFTMAX, THETA0), 2 * 6 * 6 * 8),
    ],
)
def test_the_limit_is_the_number_of_bytes(call, size, monkeypatch):
    """What they return is no larger than the limit says, and one byte less is refused."""
    monkeypatch.setattr(arguments, "MAX_BYTES", size)
    call()
    monkeypatch.setattr(arguments, "MAX_BYTES", size - 1)
    with pytest.raises(
        ValueError, match=f"MAX_BYTES: {size:,} bytes asked for, above {size - 1:,}"
    ):
        call()


def test_the_limit_of_all(monkeypatch):
    monkeypatch.setattr(arguments, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="MAX_BYTES: 144 bytes asked for, above 100"):
        exact.expected_return(TASKS, LOG_PI)


@pytest.mark.parametrize(
    "inner",
    [
        reinforce.Reinforce(1e308),
        reinforce.FirstOrder(reinforce.Reinforce(1e308)),
        ppo.PPO(1e308, epochs=1),
    ],
)
def test_a_diverging_inner_step_is_named_by_training(inner):
    tasks = replace(TASKS, rewards=1e3 * TASKS.rewards)
    run = maml.train(
        rng(),
        lambda rng: tasks,
        SOFTMAX,
        THETA0,
        inner,
        iterations=1,
        steps=1,
        episodes=3,
        step_size=0.1,
    )
    with pytest.raises(
        FloatingPointError,
        match=r"^iteration 0: adapted parameters that are not finite after inner step 1; "
        r"is the inner step_size 1e\+308 too large",
    ):
        next(run)


def test_a_diverging_exact_step_is_named():
    tasks = replace(TASKS, rewards=1e3 * TASKS.rewards)
    for f in (meta_gradients.adapted_return, meta_gradients.adapted_return_gradient):
        with pytest.raises(
            FloatingPointError,
            match=r"^adapted parameters that are not finite after inner step 1; .*size 1e\+308",
        ):
            f(tasks, SOFTMAX, THETA0, step_size=1e308, steps=2)


@pytest.mark.parametrize(
    "optimiser, quantity",
    [
        (lambda th, g, s, step_size: (th * NAN, s), "parameters"),
        (lambda th, g, s, step_size: (th * 1e308 * 1e308, s), "parameters"),
    ],
)
def test_a_diverging_outer_step_is_named(optimiser, quantity):
    run = maml.train(
        rng(),
        lambda rng: TASKS,
        SOFTMAX,
        THETA0,
        INNER,
        iterations=1,
        steps=1,
        episodes=3,
        step_size=0.1,
        optimiser=optimiser,
    )
    with pytest.raises(
        FloatingPointError,
        match=f"^iteration 0: {quantity} that are not finite after a step of size 0.1",
    ):
        next(run)


@pytest.mark.parametrize(
    "factor, quantity", [(NAN, "payoffs"), (INF, "payoffs"), (1e308, "theta|gradient")]
)
def test_recurrent_training_stops_and_names_the_quantity(factor, quantity):
    run = rl2_training.train_recurrent(
        rng(),
        lambda rng: TASKS,
        RECURRENT,
        HIDDEN,
        rl2_training.RecurrentPPO(),
        iterations=2,
        episodes=2,
        payoffs=lambda mdps, trials: np.where(trials.time == 0, factor, trials.rewards),
    )
    with pytest.raises(FloatingPointError, match=f"^iteration 0: ({quantity}).* not finite"):
        next(run)


def test_recurrent_parameters_that_overflow_are_named():
    with pytest.raises(FloatingPointError, match="^theta: .*not finite"):
        theta = HIDDEN.copy()
        *_, V, v = RECURRENT.net.split(theta)
        V[::2], V[1::2], v[:] = 1.7e308, -1.7e308, 1.7e308
        rl2.sample_trials(rng(), TASKS, RECURRENT, theta, 2)
