"""`diagnose` says what a gradient is: those of public code, mistakes made on purpose, and networks.

The oracle is a user's own MAML, in `own_maml`.
"""

import pathlib
from dataclasses import dataclass
from functools import cache

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad, jacobian
from own_maml import (
    ALPHA,
    BETA,
    GAMMA,
    A,
    Batch,
    Code,
    K,
    N,
    S,
    T,
    batch,
    constant,
    log_probs,
    meta_gradient,
    objective,
    others,
    to_go,
)

from metarl_np import check
from metarl_np.learner.policies import SoftmaxPolicy

PEERS = pathlib.Path(__file__).parent / "peer_gradients"


# ---- public code


@dataclass(frozen=True)
class Peer:
    """What a file's README says."""

    name: str
    estimators: tuple
    average: str = "steps"
    discounted: bool = False
    factor: float = -1.0
    steps: tuple = (0,)
    said: str = ""
    advantages: str = ""


BOOTSTRAPPED = "V(s_T) is bootstrapped"
DEVIATION = "divided by their standard deviation"
FIFTEEN = [
    Peer("gmrl_naive", ("naive",), "episodes", True, 1.0, advantages=BOOTSTRAPPED),
    Peer("gmrl_loaded_dice", ("loaded_dice",), "episodes", True, 1.0, advantages=BOOTSTRAPPED),
    Peer("loaded_dice", ("loaded_dice",), "episodes", True, 1.0, advantages=BOOTSTRAPPED),
    Peer("loaded_dice_classic", ("naive",), "episodes", False, 1.0, advantages=BOOTSTRAPPED),
    Peer("promp", ("lvc",), advantages=DEVIATION),
    Peer("promp_vpg_log_likelihood", ("first_order", "naive"), advantages=DEVIATION),
    Peer("promp_emaml", ("lvc",), said="score term with the coefficients 0.00121, 0.00389"),
    Peer("learn2learn_trpo", ("naive",), advantages="with ddof 1"),
    Peer("garage_vpg_1", ("naive",), advantages="divided by their variance"),
    Peer("garage_ppo_1", ("lvc",), advantages="divided by their variance"),
    Peer("garage_vpg_2", ("naive",), said="inner step 1 has no effect"),
    Peer("higher_sgd", ("naive",), "episodes", True, advantages="G with"),
    Peer("higher_momentum", ("naive",), "episodes", True, steps=(0, 1), said="momentum of 0.9"),
    Peer("pytorch_maml_rl_1", ("naive",), "lengths", advantages="Steps count 1/length"),
    Peer(
        "torchopt_maml",
        ("naive",),
        factor=-3.0,
        said="N: summed over tasks",
        advantages="GAE with a discount of 0.99, lambda 0.95",
    ),
]


@pytest.mark.parametrize("peer", FIFTEEN, ids=[peer.name for peer in FIFTEEN])
def test_gradients_of_public_code_are_called_what_they_are(peer):
    with np.load(PEERS / f"{peer.name}.npz") as file:
        d = dict(file)
    records = []
    for j in range(int(d["n"])):
        given = dict(mask=d[f"m{j}"], advantages=d[f"A{j}"], values=d[f"V{j}"])
        given["last_values"] = d[f"L{j}"]
        records.append(check.record(d[f"s{j}"], d[f"a{j}"], d[f"r{j}"], **given))
    policy = SoftmaxPolicy(len(d["features"]), d["theta"].shape[1], features=d["features"])
    found = check.diagnose(
        d["g"],
        d["theta"],
        records[:-1],
        records[-1],
        step_size=float(d["alpha"]),
        discount=float(d["gamma"]),
        policy=policy,
    )
    assert found.estimators == peer.estimators, found
    fields = dict(average=peer.average, discounted=peer.discounted, factor=peer.factor)
    found.require(steps=peer.steps, **fields)
    found.require(inner_average=peer.average, inner_discounted=peer.discounted)
    assert peer.said in str(found) and peer.advantages in found.advantages
    assert found.error < 1e-6 and found.runner_up > 1e-3


# ---- a user's own MAML, right and wrong


@pytest.fixture(scope="module")
def theta():
    return np.random.default_rng(5).normal(size=(S, A))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(7)
    return [batch(rng) for _ in range(3)]


def diagnosed(gradient, theta, batches, **keywords):
    records = [check.record(b.states, b.actions, b.rewards, mask=b.mask) for b in batches]
    settings = dict(step_size=ALPHA, discount=GAMMA) | keywords
    return check.diagnose(gradient, theta, records[:-1], records[-1], **settings)


@pytest.fixture(scope="module")
def diagnosis(theta, batches):
    """A row of MISTAKES → what is said of its gradient, found once."""

    @cache
    def found(mistake):
        code = MISTAKES[mistake][0]
        data = batches[: len(code.order)]
        return diagnosed(meta_gradient(code, theta, data), theta, data)

    return found


ALL = (0, 1)
ONE_STEP = (0, 1)  # the order of the data: where it is the advantages, a second step shows no more
OTHERS = "the mean of the other episodes"
MISTAKES = {
    "right": (Code(), dict(), ("add the score of the inner data", "lacks H1 and H12")),
    "lvc": (Code(estimator="lvc"), dict(), ()),
    "dice": (Code(estimator="dice"), dict(), ()),
    "loaded dice": (Code(estimator="loaded_dice"), dict(), ()),
    "first order": (Code(detach=ALL), dict(estimators=("first_order",)), ()),
    "negated and summed": (Code(factor=-N), dict(factor=-N), ("a loss", "summed over tasks")),
    "divided by K twice": (
        Code(factor=1 / K),
        dict(factor=1 / K),
        ("1/K, K being the episodes",),
    ),
    "steps inside": (
        Code(inner_mean="steps"),
        dict(inner_average="steps"),
        ("the inner loss is the mean over all steps",),
    ),
    "steps outside": (Code(outer_mean="steps"), dict(average="steps"), ("the outer one the mean",)),
    "steps in both": (Code(inner_mean="steps", outer_mean="steps"), dict(average="steps"), ()),
    "lengths": (
        Code(inner_mean="lengths", outer_mean="lengths"),
        dict(average="lengths"),
        ("divided by its length",),
    ),
    "sum inside": (Code(inner_mean="sum"), dict(inner_average="sum"), ("the sum over all steps",)),
    "gamma dropped": (
        Code(inner_gamma=False, outer_gamma=False),
        dict(discounted=False, inner_discounted=False),
        ("gamma^t is dropped inside and outside",),
    ),
    "gamma dropped inside": (
        Code(inner_gamma=False),
        dict(discounted=True, inner_discounted=False),
        ("gamma^t is dropped in the inner steps only",),
    ),
    "gamma dropped outside": (
        Code(outer_gamma=False),
        dict(discounted=False, inner_discounted=True),
        ("gamma^t is dropped in the query only",),
    ),
    "gamma is 1": (Code(discount=1.0, order=ONE_STEP), dict(), ("gamma = 1",)),
    "standardised": (
        Code(inner_kind="standardised", outer_kind="standardised"),
        dict(),
        ("standard deviation",),
    ),
    "divided by the variance": (
        Code(inner_kind="variance", outer_kind="variance", order=ONE_STEP),
        dict(),
        ("by the variance",),
    ),
    "no baseline": (Code(inner_kind="none", outer_kind="none"), dict(), ("no baseline",)),
    "mean of the very episodes": (
        Code(inner_kind="own mean", outer_kind="own mean"),
        dict(),
        ("which contains the episode itself",),
    ),
    "none in the query": (
        Code(outer_kind="none", order=ONE_STEP),
        dict(),
        (OTHERS, "of the query G, with no baseline"),
    ),
    "standardised in the query": (
        Code(outer_kind="standardised", order=ONE_STEP),
        dict(),
        ("those of the query", "standard deviation"),
    ),
    "own mean": (
        Code(inner_kind="own mean", outer_kind="own mean"),
        dict(),
        ("Advantages: G less the mean over all episodes",),
    ),
    "own mean inside": (
        Code(inner_kind="own mean"),
        dict(average="episodes"),
        ("the advantages inside are G less the mean over all episodes",),
    ),
    "own mean outside": (
        Code(outer_kind="own mean"),
        dict(average="episodes"),
        ("those of the query G less the mean over all episodes",),
    ),
    "ten times alpha": (Code(step_size=10 * ALPHA), dict(), ("the inner step size is 4, not 0.4",)),
    "alpha / 100": (Code(step_size=ALPHA / 100), dict(), ("step size is 0.004, not 0.4",)),
    "step 0 detached": (
        Code(detach=(0,)),
        dict(differentiated=(1,)),
        ("inner step 0 is not differentiated",),
    ),
    "step 1 detached": (
        Code(detach=(1,)),
        dict(differentiated=(0,)),
        ("inner step 1 is not differentiated",),
    ),
    "beta for alpha": (
        Code(step_size=BETA),
        dict(),
        ("the inner step size is 0.05, not 0.4", "is it the outer one?"),
    ),
    "descent": (Code(sign=-1.0), dict(), ("the inner steps descend",)),
    "the query is support": (
        Code(order=(0, 1, 1)),
        dict(),
        ("the query is the support set of step 1",),
    ),
    "step 1 on data 0": (Code(order=(0, 0, 2)), dict(), ("step 1 takes the data set 0",)),
    "steps swapped": (Code(order=(1, 0, 2)), dict(), ("step 0 takes the data set 1",)),
    "step 0 forgotten": (Code(skip=(0,)), dict(steps=(1,)), ("inner step 0 has no effect",)),
    "step 1 forgotten": (Code(skip=(1,)), dict(steps=(0,)), ("inner step 1 has no effect",)),
    "G_0": (Code(inner_kind="G_0", outer_kind="G_0", order=ONE_STEP), dict(), ("G_0",)),
    "rewards shifted": (
        Code(inner_kind="shifted", outer_kind="shifted", order=ONE_STEP),
        dict(),
        ("shifted",),
    ),
    "momentum": (Code(momentum=0.7), dict(), ("momentum of 0.7",)),
    "weight decay": (Code(decay=0.03), dict(), ("weight decay of 0.03",)),
    "lambda": (Code(estimator="loaded_dice", lam=0.6), dict(), ("lambda is 0.6",)),
    "baseline inside": (
        Code(estimator="inside"),
        dict(estimators=("dice",)),
        ("inside DiCE's product",),
    ),
    "baseline inside, decay 1/K and index -1": (
        Code(estimator="wraps", lam=1 / K),
        dict(estimators=("dice",)),
        ("inside DiCE's product", "index -1 wraps around", "decays with 0.25"),
    ),
    "score": (Code(score="all"), dict(estimators=("naive+score",)), ("unbiased for what is",)),
    "raw score": (
        Code(score="all", centred=False),
        dict(estimators=("naive+score",)),
        ("without the other tasks' mean",),
    ),
    "score of the first step": (
        Code(score="first"),
        dict(estimators=("naive",)),
        ("the score is that of the first inner step only",),
    ),
    "score of means": (
        Code(score="means", factor=-1),
        dict(estimators=("naive",), factor=-1),
        ("a score term with the coefficients",),
    ),
    "lvc with the score": (
        Code(estimator="lvc", score="all"),
        dict(estimators=("lvc+score",)),
        ("counts a part of the score twice",),
    ),
    "dice with the score": (
        Code(estimator="dice", score="all"),
        dict(estimators=("dice+score",)),
        ("counts a part of the score twice",),
    ),
    "dones for the mask": (
        Code(inner_kind="dones", outer_kind="dones"),
        dict(),
        ("dones stand where a mask belongs",),
    ),
}
NAMES = {"loaded_dice": "loaded_dice", "inside": "dice"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_called_what_they_are(mistake, diagnosis):
    """And in the characters that a console of one byte a character has."""
    code, fields, said = MISTAKES[mistake]
    found = diagnosis(mistake)
    steps = tuple(range(len(code.order) - 1))
    name = NAMES.get(code.estimator, code.estimator)
    expected = dict(factor=1.0, steps=steps, estimators=(name,))
    found.require(**expected | fields)
    for words in said:
        assert words in str(found)
    assert str(found).encode("cp1252")
    assert found.error < 1e-6 and found.runner_up > 1e-4


# ---- a network of two layers, continuous states and actions, and derivatives of the user's

UNITS = 4
SHAPES = [(2, UNITS), (UNITS,), (UNITS, 1), (1,), (1,)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]


def log_density(theta, states, actions):
    """log N(a; tanh(s W + b) U + c, exp d) with θ (P,), of s (…, 2) and a (…): (…)."""
    ends = np.cumsum(SIZES)
    w, b, u, c, d = (theta[e - n : e].reshape(x) for e, n, x in zip(ends, SIZES, SHAPES))
    hidden = anp.tanh(anp.dot(states, w) + b)
    center = (anp.dot(hidden, u) + c)[..., 0]
    return -0.5 * ((actions - center) / anp.exp(d)) ** 2 - d


@dataclass(frozen=True)
class Network:
    """The user's two functions, by autograd."""

    batches: list

    def scores(self, j, thetas):
        """∇log π of each step: (T, N, K, P)."""
        b = self.batches[j]
        rows = []
        for n, theta in enumerate(thetas):
            rows.append(jacobian(log_density)(theta, b.states[:, n], b.actions[:, n]))
        return np.stack(rows, 1)

    def hvp(self, j, thetas, weights, v):
        """Σ w ∇²log π v: (N, P)."""
        b = self.batches[j]
        rows = []
        for n, theta in enumerate(thetas):

            def total(x):
                return anp.sum(weights[:, n] * log_density(x, b.states[:, n], b.actions[:, n]))

            rows.append(grad(lambda x: anp.sum(grad(total)(x) * v[n]))(theta))
        return np.stack(rows)


def continuous(rng, shape=(3, 2, 3)):
    return Batch(
        states=rng.normal(size=shape + (2,)),
        actions=rng.normal(size=shape),
        rewards=rng.normal(size=shape),
        mask=np.ones(shape, bool),
    )


def network_gradient(estimator, theta, batches):
    """Of a user's MAML with means over steps, no γᵗ and no baseline, as a loss; task by task."""

    def surrogate(x, b, n):
        weights = to_go(b.rewards, GAMMA)[:, n]
        lp = log_density(x, b.states[:, n], b.actions[:, n])
        if estimator == "lvc":
            lp = anp.exp(lp - constant(lp))
        return anp.mean(weights * lp)

    def adapted(x, n):
        for b in batches[:-1]:
            at = constant(x) if estimator == "first_order" else x
            x = x + ALPHA * grad(surrogate)(at, b, n)
        return surrogate(x, batches[-1], n)

    tasks = range(batches[0].rewards.shape[1])
    return -sum(grad(adapted)(theta, n) for n in tasks) / len(tasks)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("estimator", ["first_order", "naive", "lvc"])
def test_a_network_with_continuous_states_and_actions(rng, estimator, steps):
    theta = 0.3 * rng.normal(size=sum(SIZES))
    batches = [continuous(rng) for _ in range(steps + 1)]
    g = network_gradient(estimator, theta, batches)
    records = [check.record(b.states, None, b.rewards) for b in batches]
    ends = np.cumsum(SIZES)[:-1]

    def as_list(x):
        return [part.reshape(shape) for part, shape in zip(np.split(x, ends), SHAPES)]

    found = check.diagnose(
        as_list(g),
        as_list(theta),
        records[:-1],
        records[-1],
        step_size=ALPHA,
        discount=GAMMA,
        policy=Network(batches),
    )
    assert found.estimators == (estimator,)
    found.require(factor=-1, average="steps", discounted=False, steps=tuple(range(steps)))
    assert "G, with no baseline" in found.advantages
    assert found.error < 1e-6 and found.runner_up > 0.01


# ---- the inner step


def adapted(code, theta, b):
    """θ' (N, S, A) of one inner step of a user's."""
    shared = theta + np.zeros((N, 1, 1))
    inner = code.inner_mean, code.inner_gamma, code.inner_kind
    g = grad(lambda x: objective(code, x, b, *inner))(shared)
    return shared + code.step_size * (code.sign * g - code.decay * shared)


STEPS = {
    "right": (Code(), "episodes", True, ALPHA, OTHERS),
    "steps": (Code(inner_mean="steps"), "steps", True, ALPHA, OTHERS),
    "lengths": (Code(inner_mean="lengths"), "lengths", True, ALPHA, OTHERS),
    "gamma dropped": (Code(inner_gamma=False), "episodes", False, ALPHA, OTHERS),
    "descent": (Code(sign=-1.0), "episodes", True, -ALPHA, "It descends"),
    "beta": (Code(step_size=BETA), "episodes", True, BETA, "The step size is not 0.4"),
    "standardised": (Code(inner_kind="standardised"), "episodes", True, ALPHA, "deviation"),
    "no baseline": (Code(inner_kind="none"), "episodes", True, ALPHA, "no baseline"),
}


@pytest.mark.parametrize("by", ["parameters", "log-probabilities"])
@pytest.mark.parametrize("name", STEPS)
def test_what_leads_to_adapted_parameters_is_said(name, by, theta, batches):
    code, average, discounted, size, said = STEPS[name]
    b = batches[0]
    new = adapted(code, theta, b)
    if by == "log-probabilities":
        after = batches[1]
        lp = log_probs(new, after)
        new = check.record(after.states, after.actions, after.rewards, after.mask, lp)
    data = check.record(b.states, b.actions, b.rewards, mask=b.mask)
    step = check.explain_step(theta, new, data, discount=GAMMA, step_size=ALPHA)
    assert step.average == average and step.discounted == discounted, step
    assert step.step_size == pytest.approx(size) and step.error < 1e-6
    assert said in str(step)


def test_a_step_without_effect_and_one_that_decays(theta, batches):
    b = batches[0]
    data = check.record(b.states, b.actions, b.rewards, mask=b.mask)
    settings = dict(discount=GAMMA, step_size=ALPHA)
    same = theta + np.zeros((N, 1, 1))
    assert "no effect" in str(check.explain_step(theta, same, data, **settings))
    step = check.explain_step(theta, adapted(Code(decay=0.1), theta, b), data, **settings)
    assert step.weight_decay == pytest.approx(0.1)
    other = check.explain_step(theta, same + np.eye(S, A), data, **settings)
    assert other.average is None and "None of the" in str(other)


def test_log_probs_of_other_parameters_are_a_finding(theta, batches):
    """The sampler took another step than the loss differentiates."""
    g = meta_gradient(Code(order=(0, 1)), theta, batches[:2])
    support, query = batches[:2]
    first = check.record(support.states, support.actions, support.rewards, mask=support.mask)
    texts = []
    for step_size in (ALPHA, BETA):
        lp = log_probs(adapted(Code(step_size=step_size), theta, support), query)
        last = check.record(query.states, query.actions, query.rewards, query.mask, lp)
        found = check.diagnose(g, theta, [first], last, step_size=ALPHA, discount=GAMMA)
        assert found.estimators == ("naive",)
        texts.append(str(found))
    assert "log_probs" not in texts[0]
    assert "the log_probs of query are not those" in texts[1]


# ---- a wrong score, advantages that are not used, and policies of the user's


def test_a_wrong_score_has_not_the_name_of_the_right_one(diagnosis):
    found = diagnosis("score of the first step")
    with pytest.raises(AssertionError, match="the score is that of the first inner step only"):
        found.require("naive+score")
    assert "To be unbiased for what is trained, (b), add the score" in str(found)


def test_with_one_inner_step_the_score_of_the_first_step_is_the_score(theta, batches):
    g = meta_gradient(Code(score="first", order=(0, 1)), theta, batches[:2])
    found = diagnosed(g, theta, batches[:2])
    assert found.estimators == ("naive+score",)
    assert "the score is that" not in str(found)


@pytest.mark.parametrize("given", [0, -1])
def test_advantages_that_some_data_sets_lack_are_not_used_and_that_is_said(given, theta, batches):
    records = [check.record(b.states, b.actions, b.rewards, mask=b.mask) for b in batches]
    b = batches[given]
    anything = np.ones(b.rewards.shape)
    records[given] = check.record(b.states, b.actions, b.rewards, b.mask, advantages=anything)
    code = Code(inner_kind="none", outer_kind="none")
    g = meta_gradient(code, theta, batches)
    settings = dict(step_size=ALPHA, discount=GAMMA)
    found = check.diagnose(g, theta, records[:-1], records[-1], **settings)
    assert found.advantages == "G, with no baseline"
    name = {0: "support[0]", -1: "query"}[given]
    assert f"the advantages of {name} were not used" in str(found)
    assert found.tried == diagnosed(g, theta, batches).tried  # all usual ones are in the corner


def of_equal_lengths(batches):
    return [Batch(b.states, b.actions, b.rewards, np.ones_like(b.mask)) for b in batches]


@pytest.mark.parametrize(
    "code", [Code(step_size=ALPHA / T), Code(inner_mean="steps")], ids=["alpha / T", "steps"]
)
def test_a_step_size_and_a_mean_that_coincide_are_both_said(code, theta, batches):
    batches = of_equal_lengths(batches)
    found = diagnosed(meta_gradient(code, theta, batches), theta, batches)
    found.require("naive", factor=1, inner_average="steps")
    assert "which is the same here, both are the latter, and the step size is 0.05714" in str(found)
    b = batches[0]
    new = adapted(code, theta, b) if code.step_size < ALPHA else adapted_by_steps(theta, b)
    data = check.record(b.states, b.actions, b.rewards)
    for known in (dict(), dict(step_size=ALPHA)):
        step = str(check.explain_step(theta, new, data, discount=GAMMA, **known))
        assert "0.4 along the mean over all steps" in step
        assert "0.0571429 along the mean over episodes" in step


def adapted_by_steps(theta, b):
    return adapted(Code(inner_mean="steps"), theta, b)


def test_a_baseline_that_contains_the_episode_is_named_without_inner_steps(theta, batches):
    g = meta_gradient(Code(outer_kind="own mean", order=(0,)), theta, batches[:1])
    found = diagnosed(g, theta, batches[:1])
    found.require("policy gradient", factor=1, findings=())
    assert found.advantages.startswith("G less the mean over all episodes")


def test_without_rewards_nothing_fits_and_nothing_is_divided_by_zero(theta, batches):
    records = [check.record(b.states, b.actions, 0 * b.rewards, mask=b.mask) for b in batches]
    settings = dict(step_size=ALPHA, discount=GAMMA, max_explanations=50)
    found = check.diagnose(theta, theta, records[:-1], records[-1], **settings)
    assert found.estimators == ()


def test_a_mean_over_lanes_has_a_name(rng, theta):
    """Two episodes in each lane: the mean over lanes is twice that over episodes."""
    records = []
    for _ in range(2):
        shape = (2 * T, N, K)
        dones = np.zeros(shape, bool)
        dones[rng.integers(2, T, size=(N, K)), np.arange(N)[:, None], np.arange(K)] = True
        steps = rng.integers(S, size=shape), rng.integers(A, size=shape), rng.normal(size=shape)
        records.append(check.record(*steps, dones=dones))
    settings = dict(step_size=ALPHA, discount=GAMMA)
    twice = check.estimator_gradients(
        theta, records[:1], records[1], step_size=2 * ALPHA, discount=GAMMA
    )["naive"]
    found = check.diagnose(2 * twice, theta, records[:1], records[1], **settings)
    found.require("naive", factor=1, average="lanes", inner_average="lanes", findings=())
    assert "the mean over lanes of sums over time" in str(found)


def test_log_probs_are_looked_at_where_nothing_fits(rng, theta, batches):
    records = []
    for b, off in zip(batches, (np.eye(S, A), 0.0)):
        lp = log_probs(theta + off + np.zeros((N, 1, 1)), b)
        records.append(check.record(b.states, b.actions, b.rewards, b.mask, lp))
    settings = dict(step_size=ALPHA, discount=GAMMA, max_explanations=20)
    noise = rng.normal(size=theta.shape)
    text = str(check.diagnose(noise, theta, records[:1], records[1], **settings))
    assert "the log_probs of support[0] are not those of the path" in text


def test_texts_have_one_full_stop_and_no_error_of_nothing(theta, batches):
    for code in (Code(step_size=BETA), Code(factor=0.7)):
        assert "?." not in str(diagnosed(meta_gradient(code, theta, batches), theta, batches))
    g = meta_gradient(Code(), theta, batches)
    found = diagnosed(g * (1 + 1e-4 * theta), theta, batches, max_explanations=200)
    assert " 0.0% off" not in str(found) and "e-05 off" in str(found)
    assert "fitted" not in str(found)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("in_them", [True, False])
def test_gamma_that_stands_in_the_advantages_is_kept(kept, in_them, theta, batches):
    records = []
    for b in batches:
        gamma = (GAMMA ** np.arange(T))[:, None, None] if in_them else 1.0
        a = gamma * (to_go(b.rewards * b.mask, GAMMA) - others(to_go(b.rewards * b.mask, GAMMA)))
        records.append(check.record(b.states, b.actions, b.rewards, b.mask, advantages=a))
    g = meta_gradient(Code(inner_gamma=kept, outer_gamma=kept), theta, batches)
    found = check.diagnose(
        g, theta, records[:-1], records[-1], step_size=ALPHA, discount=GAMMA, max_explanations=100
    )
    found.require("naive", factor=1, discounted=kept, inner_discounted=kept)
    assert ("gamma^t stands in them" in str(found)) == in_them


def test_gamma_twice_is_a_mistake(theta, batches):
    records = []
    for b in batches:
        gamma = (GAMMA ** np.arange(T))[:, None, None]
        a = gamma * to_go(b.rewards * b.mask, GAMMA) * b.mask
        records.append(check.record(b.states, b.actions, b.rewards, b.mask, advantages=a))
    settings = dict(step_size=ALPHA, discount=GAMMA)
    given = {"baseline": lambda returns, episodes: returns - episodes.advantages}
    g = check.estimator_gradients(theta, records[:-1], records[-1], **settings, **given)["naive"]
    found = check.diagnose(g, theta, records[:-1], records[-1], **settings)
    found.require("naive", factor=1, discounted=True)
    assert "that the loss multiplies with again, a mistake" in found.advantages


def linear_network(rng):
    """θ (P,), three data sets, their Network and their records."""
    batches = [continuous(rng) for _ in range(3)]
    records = [check.record(None, None, b.rewards) for b in batches]
    return 0.3 * rng.normal(size=sum(SIZES)), batches, Network(batches), records


def test_candidates_of_a_policy_of_the_users(rng):
    theta, batches, policy, records = linear_network(rng)
    settings = dict(step_size=ALPHA, discount=GAMMA, policy=policy)
    zero = {"baseline": lambda returns, episodes: 0.0}
    found = check.estimator_gradients(theta, records[:-1], records[-1], **settings, **zero)
    assert found["naive"].shape == theta.shape
    diagnosis = check.diagnose(found["lvc"], theta, records[:-1], records[-1], **settings)
    diagnosis.require("lvc", factor=1)
    with pytest.raises(ValueError, match=r"^theta: expected shape \(P,\)"):
        check.estimator_gradients(np.stack([theta, theta]), records[:-1], records[-1], **settings)


def as_parts(x):
    """θ (P,), or (N, P), as a network's list of arrays, with N in front of each."""
    parts = np.split(x, np.cumsum(SIZES)[:-1], -1)
    return [part.reshape(x.shape[:-1] + shape) for part, shape in zip(parts, SHAPES)]


FORMS = {
    "flat": (lambda x: x, lambda x: x),
    "a table, as long as there are tasks": (lambda x: x.reshape(2, -1), lambda x: x),
    "another table": (lambda x: x.reshape(-1, 2), lambda x: x),
    "a list": (as_parts, as_parts),
    "a list, and one array": (as_parts, lambda x: x),
    "flat, and a list": (lambda x: x, as_parts),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("already", [False, True], ids=["shared", "adapted already"])
def test_theta_of_a_step_of_a_users_policy_may_have_any_shape(form, already, rng):
    theta = 0.3 * rng.normal(size=(2, sum(SIZES)) if already else sum(SIZES))
    b = continuous(rng)
    policy = Network([b])
    data = check.record(None, None, b.rewards)
    starts = theta + np.zeros((2, 1))
    weights = to_go(b.rewards, GAMMA)[..., None] / b.rewards[:, 0].size
    adapted = starts + ALPHA * (weights * policy.scores(0, starts)).sum((0, 2))
    of_theta, of_adapted = FORMS[form]
    settings = dict(discount=GAMMA, step_size=ALPHA, policy=policy)
    step = check.explain_step(of_theta(theta), of_adapted(adapted), data, **settings)
    assert step.average == ("steps", "lengths") and step.discounted is False
    assert step.step_size == pytest.approx(ALPHA) and step.error < 1e-6


def transposed(x):
    return np.swapaxes(x, 1, 2)


@pytest.mark.parametrize(
    "change",
    [
        transposed,
        lambda x: np.moveaxis(x, 0, -1),
        lambda x: [x[:, :2], x[:, 2:]],
        lambda x: x[:-1],
        lambda x: x.ravel()[:-1],
    ],
    ids=["transposed", "tasks last", "in parts", "a task too few", "a number too few"],
)
def test_adapted_parameters_of_another_shape_are_named(change, theta, batches):
    b = batches[0]
    data = check.record(b.states, b.actions, b.rewards, mask=b.mask)
    new = adapted(Code(), theta, b)
    assert check.explain_step(theta, list(new), data, discount=GAMMA).error < 1e-6
    with pytest.raises(ValueError, match="^adapted: "):
        check.explain_step(theta, change(new), data, discount=GAMMA)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: [np.moveaxis(part, 0, -1) for part in as_parts(x)],
        lambda x: [part[0] for part in as_parts(x)],
        lambda x: as_parts(x)[::-1],
        lambda x: x.T,
        lambda x: [as_parts(x)[0], *as_parts(x)[2:]],
    ],
    ids=["tasks last", "no tasks", "another order", "transposed", "a part too few"],
)
def test_adapted_parameters_of_a_network_in_other_shapes_are_named(change, rng):
    theta, batches, policy, records = linear_network(rng)
    new = theta + 0.1 * rng.normal(size=(2, 1))
    settings = dict(discount=GAMMA, policy=policy)
    with pytest.raises(ValueError, match="^adapted: "):
        check.explain_step(as_parts(theta), change(new), records[0], **settings)


# ---- the verdict, the search, and bad input


def test_require_is_an_assertion_that_fails_with_the_diagnosis(theta, batches):
    found = diagnosed(meta_gradient(Code(factor=-1), theta, batches), theta, batches)
    found.require("naive", factor=-1, average="episodes", discounted=True, steps=ALL)
    with pytest.raises(AssertionError, match="expected factor=1.*\nThis is naive") as caught:
        found.require(factor=1)
    assert "the sign is that of a loss" in str(caught.value)
    with pytest.raises(AssertionError, match="expected lvc"):
        found.require("lvc")


def test_the_search_stops_at_its_limit_and_says_so(rng, theta, batches):
    noise = rng.normal(size=theta.shape)
    found = diagnosed(noise, theta, batches, max_explanations=50)
    assert found.estimators == () and found.tried == 50
    assert "None of the 50 explanations" in str(found) and "max_explanations" in str(found)


def test_a_gradient_that_is_none_of_them_is_called_none(rng, theta, batches):
    g = meta_gradient(Code(), theta, batches) * (1 + 0.01 * rng.normal(size=theta.shape))
    found = diagnosed(g, theta, batches, max_explanations=3000)
    assert found.estimators == () and found.error > 1e-3
    assert "The nearest by direction is" in str(found)


@pytest.mark.parametrize("single", [np.float32, float])
def test_a_gradient_in_single_precision_is_right_and_says_how_far_the_next_is(
    single, theta, batches
):
    g = np.float32(meta_gradient(Code(), theta, batches)).astype(single)
    found = diagnosed(g * np.float32(1 - 1e-5) if single is float else g, theta, batches)
    found.require("naive")
    assert "the nearest that does not fit is" in str(found)


@pytest.mark.parametrize(
    "names, fields, message",
    [
        (["naiv"], dict(), "^estimators: naiv; there are first_order, naive"),
        ([], dict(avrage="sum"), "^fields: avrage; there are factor"),
        ([], dict(average="episode"), "^average: episode; there are episodes, steps"),
        ([], dict(inner_average=("sum", "step")), "^inner_average: step; there are episodes"),
    ],
)
def test_what_cannot_be_required_is_named(names, fields, message, theta, batches):
    found = diagnosed(meta_gradient(Code(), theta, batches), theta, batches)
    with pytest.raises(ValueError, match=message):
        found.require(*names, **fields)


def test_with_no_inner_step_it_is_the_policy_gradient(theta, batches):
    g = meta_gradient(Code(order=(0,)), theta, batches[:1])
    found = diagnosed(g, theta, batches[:1])
    assert found.estimators == ("policy gradient",) and found.steps == ()


class Tensor:
    """As a tensor of PyTorch that requires grad answers NumPy."""

    shape = (S, A)

    def __array__(self, *arguments, **keywords):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


@pytest.mark.parametrize(
    "message, changes",
    [
        (r"^gradient: .*x\.detach", dict(gradient=Tensor())),
        (r"^theta: .*x\.detach", dict(theta=[Tensor(), Tensor()])),
        ("^gradient: 3 numbers, where theta has 15", dict(gradient=np.ones(3))),
        (r"^gradient: shape \(3, 5\), where theta has \(5, 3\)", dict(gradient=np.ones((A, S)))),
        ("^theta: it has a task axis", dict.fromkeys(["gradient", "theta"], np.ones((N, S, A)))),
        ("^gradient: not finite", dict(gradient=np.full((S, A), np.nan))),
        ("^gradient: zero everywhere", dict(gradient=np.zeros((S, A)))),
        ("^theta: expected shape", dict(theta=np.ones(S * A))),
        ("^support, query", dict(support=None)),
        ("^support, query", dict(query=np.ones((T, N, K)))),
        ("^policy", dict(policy=object())),
        ("^step_size", dict(step_size=np.nan)),
        ("^discount", dict(discount=1.5)),
        ("^max_explanations", dict(max_explanations=0)),
    ],
)
def test_what_does_not_fit_is_named(message, changes, theta, batches):
    records = [check.record(b.states, b.actions, b.rewards, mask=b.mask) for b in batches]
    good = dict(
        gradient=np.ones((S, A)),
        theta=theta,
        support=records[:-1],
        query=records[-1],
        step_size=ALPHA,
        discount=GAMMA,
    )
    with pytest.raises(ValueError, match=message):
        check.diagnose(**good | changes)


@dataclass(frozen=True)
class WrongShapes:
    """A user's functions that give too little."""

    def scores(self, j, thetas):
        return np.ones((T, N, K))

    def hvp(self, j, thetas, weights, v):
        return v


def test_scores_of_another_shape_are_named(batches):
    records = [check.record(None, None, b.rewards, mask=b.mask) for b in batches]
    arguments = dict(step_size=ALPHA, discount=GAMMA, policy=WrongShapes())
    with pytest.raises(ValueError, match="^policy.scores: expected shape"):
        check.diagnose(np.ones(6), np.ones(6), records[:-1], records[-1], **arguments)


def test_noise_is_no_score_with_coefficients(rng):
    """A table of 5 states and 2 actions has 5 numbers to tell; 6 coefficients would explain any."""

    def episodes():
        states, actions = rng.integers(5, size=(20, 6, 8)), rng.integers(2, size=(20, 6, 8))
        return check.record(states, actions, rng.normal(size=(20, 6, 8)))

    noise = rng.normal(size=(5, 1)) * [1, -1]
    theta = rng.normal(size=(5, 2))
    found = check.diagnose(noise, theta, [episodes()], episodes(), step_size=0.1, discount=0.95)
    assert found.estimators == ()
    with pytest.raises(AssertionError, match="None of the"):
        found.require()


def test_mistakes_can_be_required_to_be_none(diagnosis):
    found = diagnosis("step 1 on data 0")
    (mistake,) = found.mistakes
    assert "step 1 takes the data set 0" in mistake
    found.require("naive")
    with pytest.raises(AssertionError, match="mistakes=()"):
        found.require("naive", mistakes=())


def test_require_compares_names_and_steps_with_numbers(diagnosis):
    found = diagnosis("right")
    found.require(factor=1, steps=(0, 1))
    found.require(steps=1)
    for wrong in (dict(average=1), dict(steps=2), dict(factor=-1)):
        with pytest.raises(AssertionError, match="expected "):
            found.require(**wrong)
