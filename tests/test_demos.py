"""Every demo runs with --quick, writes its pictures, and ends with the JSON that was promised.

The JSON is compared with itself (rows are complete, nothing is above the optimum), with a second
way to compute it, or with printed tables. Training is interrupted, and must go on to the same bits.
"""

import ast
import importlib
import io
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import cache
from types import SimpleNamespace

import _common
import _scoreboard
import maml_bandits
import numpy as np
import pytest
import rl2_bandits
import rl2_mdps
import your_own_task
from PIL import Image
from study import interval, student_t
from compare.published import BANDIT_LINES, MDP_LINES, printed

from metarl_np import checkpoint, exact
from metarl_np.meta.rl2 import RecurrentPolicy
from metarl_np.compare.planners import MDPS, TRUE
from metarl_np.compare.strategies import BANDITS
from metarl_np.tasks.bandits import bernoulli, independent
from metarl_np.tasks.random_mdps import random_mdps

ROOT = pathlib.Path(__file__).parents[1]
DEMOS = ROOT / "demos"
# warnings are errors, but those of matplotlib 3.8 about pyparsing (see setup.cfg)
STRICT = [sys.executable, "-W", "error"]
for module in ("matplotlib._fontconfig_pattern", "matplotlib._mathtext", "pyparsing.util"):
    STRICT += ["-W", f"ignore::UserWarning:{module}"]
LEARNERS = ("maml", "multi_task", "scratch")
CURVES = {name + end for name in LEARNERS for end in ("", "_std", "_train", "_train_std")}
PROMISED = {
    "maml_gridworld": {"steps", "seconds"} | CURVES,
    "policy_gradient": {"random MDP, logistic policy", "GridWorld, softmax table"},
    "reinforce_gridworld": {"iteration", "mean", "std"},
    "meta_gradients": {"estimators"},
    "compare_methods": {"methods", "trpo_kl", "values"},
    "maml_bandits": {"rows"},
    "rl2_bandits": {"rows", "regret"},
    "rl2_mdps": {"rows"},
    "rl2_gridworld": {"rows", "actions"},
    "rl2_solved": {"rows"},
    "study": {"steps", "seeds", "edges", "anywhere", "executor", "seconds"},
    "benchmark": {
        "frozen_lake_steps_per_s",
        "frozen_lake_steps_per_s_threads",
        "dense",
        "scaling",
        "exponents",
        "maml",
        "rl2",
        "oracle",
    },
    "your_own_task": {"curves", "source"},
}
# the others are started in .ci/run
WITH_PROCESSES = [
    "maml_gridworld",
    "compare_methods",
    "maml_bandits",
    "rl2_bandits",
    "rl2_mdps",
    "rl2_gridworld",
    "benchmark",
]


def started(command):
    """The output of a demo in a process of its own, as a user starts it."""
    done = subprocess.run([*STRICT, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def called(command):
    """The output of a demo in this process, which has imported what a demo needs.

    Its workers are then one thread, as in a notebook.
    """
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(sys, "argv", [str(word) for word in command])
        patch.delattr(sys.modules["__main__"], "__file__", raising=False)
        importlib.import_module(pathlib.Path(command[0]).stem).main()
    return output.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run a demo once: (its JSON, all of its output, the folder of its pictures).

    It is started as a user does where it has worker processes, or measures itself. With options of
    its own it is only called, but for the study, which is about processes.
    """

    @cache
    def run(name, *options):
        folder = tmp_path_factory.mktemp(name)
        command = [DEMOS / f"{name}.py", "--quick", "--json", "--out", folder, *options]
        starts = name == "study" or (name in WITH_PROCESSES and not options)
        output = started(command) if starts else called(command)
        return json.loads(output.splitlines()[-1]), output, folder

    return run


def test_every_demo_is_promised():
    scripts = [
        p for p in DEMOS.glob("*.py") if 'if __name__ == "__main__"' in p.read_text(encoding="utf8")
    ]
    assert set(PROMISED) == {p.stem for p in scripts}


@pytest.mark.parametrize("name", PROMISED)
def test_demo(name, demo):
    numbers, output, folder = demo(name)
    assert PROMISED[name] <= set(numbers)
    # no progress line when output is redirected
    assert "\r" not in output
    pictures = re.findall("^picture: (.*)$", output, re.M)
    assert {str(p) for p in folder.iterdir()} == set(pictures)


def cells(name):
    """The code between the marks `# %%`; what stands before the first is the first cell."""
    text = (DEMOS / f"{name}.py").read_text(encoding="utf8")
    parts = re.split(r"^\s*# ?%%.*$", text, flags=re.M)
    assert len(parts) >= 4, f"{name} has {len(parts) - 1} marked cells"
    return parts


@pytest.mark.parametrize("name", PROMISED)
def test_every_demo_is_written_in_cells(name):
    for cell in cells(name):
        # a cut through a function or a bracket would not compile
        compile(cell, name, "exec")


@pytest.mark.parametrize(
    "name, argv",
    [
        ("reinforce_gridworld", ["reinforce_gridworld.py"]),  # as an editor runs it
        ("your_own_task", ["ipykernel_launcher.py", "-f", "kernel.json"]),
        ("maml_gridworld", ["/somewhere/ipykernel_launcher.py", "--f=kernel.json"]),
    ],
)
def test_cells_run_one_after_the_other(name, argv, tmp_path):
    """In one namespace without a file, in the folder demos/.

    The command line is that of a notebook's kernel, to which options are added. Processes start as
    they do on macOS and Windows: what a notebook defines they could not import.
    """
    program = (
        "import multiprocessing, sys; multiprocessing.set_start_method('spawn'); "
        f"sys.argv = {argv + ['--quick', '--json', '--out', str(tmp_path)]}\n"
        f"for cell in {cells(name)}: exec(compile(cell, '<cell>', 'exec'), globals())"
    )
    command = [*STRICT, "-c", program]
    done = subprocess.run(command, cwd=DEMOS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert PROMISED[name] <= set(json.loads(done.stdout.splitlines()[-1]))
    assert list(tmp_path.iterdir())


def test_options_are_strict_on_a_demo_s_own_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(DEMOS / "benchmark.py"), "--quik"])
    with pytest.raises(SystemExit):
        _common.parser("").parse_args()


def test_options_that_a_notebook_adds_are_found_among_others(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json", "--seed", "3"])
    arguments = _common.parser("").parse_args()
    assert arguments.seed == 3
    assert not arguments.quick


def test_adaptation_is_animated(demo):
    _, output, folder = demo("maml_gridworld")
    with Image.open(folder / "adaptation.gif") as gif:
        # 0, 7 and 14 steps, before and after one inner step
        assert gif.n_frames == 6
        assert gif.info["loop"] == 0
    assert (DEMOS / "figures" / "adaptation.gif").stat().st_size < 500_000


def generate_random_map(size, seed):
    """A map as Gymnasium has them: rows of S, F, H, G for start, frozen, hole, goal."""
    lake = np.random.default_rng(seed).choice(list("FH"), (size, size), p=(0.8, 0.2))
    lake[0, 0] = "S"
    lake[-1, -1] = "G"
    return ["".join(row) for row in lake]


def make_frozen_lake(name, desc, is_slippery):
    """FrozenLake's rules, written out here once more: its table {s: {a: [(p, s', r, done)]}}."""
    assert name == "FrozenLake-v1"
    assert not is_slippery
    size = len(desc)
    table = {}
    for r, c in np.ndindex(size, size):
        s = r * size + c
        table[s] = {}
        # left, down, right, up
        for action, (down, right) in enumerate([(0, -1), (1, 0), (0, 1), (-1, 0)]):
            over = desc[r][c] in "GH"
            i = r if over else min(max(r + down, 0), size - 1)
            j = c if over else min(max(c + right, 0), size - 1)
            paid = float(desc[i][j] == "G" and not over)
            table[s][action] = [(1.0, i * size + j, paid, desc[i][j] in "GH")]
    return SimpleNamespace(unwrapped=SimpleNamespace(P=table))


class Holes:
    """A generator that draws the holes of these maps."""

    def __init__(self, lakes):
        holes = [[cell == "H" for cell in "".join(lake)] for lake in lakes]
        self.uniform = np.where(holes, 0.1, 0.9)

    def random(self, shape):
        assert self.uniform.shape == shape
        return self.uniform


@pytest.fixture
def own_tasks(monkeypatch):
    """Tasks from arrays and the same from tables."""
    gymnasium = SimpleNamespace(make=make_frozen_lake)
    monkeypatch.setattr(your_own_task, "generate_random_map", generate_random_map, raising=False)
    monkeypatch.setattr(your_own_task, "gymnasium", gymnasium)
    # for seed 2 and 8 maps: the maps' own seeds
    lakes = [generate_random_map(8, 2 * 8 + i) for i in range(8)]
    arrays = your_own_task.from_arrays(Holes(lakes), 8)
    tables = your_own_task.from_gymnasium(2, 8)
    assert 1 < len(arrays) == len(tables)
    return arrays, tables


@pytest.mark.parametrize("what", ["values of a policy", "optimum"])
def test_own_tasks_as_arrays_and_as_tables_are_the_same(what, own_tasks):
    arrays, tables = own_tasks
    assert arrays.horizon == tables.horizon == 20
    log_pi = np.log(np.random.default_rng(0).dirichlet(np.ones(4), 64))
    if what == "optimum":
        found = [exact.optimal_return(mdps) for mdps in own_tasks]
    else:
        found = [exact.values(mdps, log_pi) for mdps in own_tasks]
    np.testing.assert_allclose(*found, atol=1e-12)


def test_own_task_rows_are_complete(demo):
    rows = demo("your_own_task")[0]["curves"]
    lengths = dict(maml=3, rl2=2, uniform=1, optimum=1)
    expected = [(method, i) for method, n in lengths.items() for i in range(n)]
    assert [(row["method"], row["after"]) for row in rows] == expected
    optimum = rows[-1]["mean"]
    assert all(0 <= row["mean"] <= optimum for row in rows)


def simple_statements(code):
    """All but docstrings and what heads a block."""
    for node in ast.walk(ast.parse(code)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_docstring and not hasattr(node, "body"):
            yield node


def test_what_a_user_types_is_below_forty_statements():
    """What is imported, and the cells with Gymnasium's tables, MAML and RL²."""
    first, *rest = cells("your_own_task")[1:-1]
    imports = (ast.Import, ast.ImportFrom)
    typed = [node for node in simple_statements(first) if isinstance(node, imports)]
    for cell in rest:
        typed += simple_statements(cell)
    assert 20 < len(typed) < 40


def test_maml_demo_with_the_logistic_policy(demo):
    numbers = demo("maml_gridworld", "--policy", "logistic")[0]
    assert numbers["policy"] == "logistic"
    assert len(numbers["maml"]) == len(numbers["steps"]) == 6
    assert all(0 <= x <= 1 for key in CURVES for x in numbers[key])


def test_study_demo_goes_on_from_its_folder(demo, tmp_path):
    def times():
        return {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}

    folder = "--folder", str(tmp_path)
    without, output, _ = demo("study")
    assert "not computed again" not in output
    first, output, _ = demo("study", "--executor", "serial", *folder)
    assert "not computed again" not in output
    files = times()
    assert len(files) == 4
    again, output, _ = demo("study", "--executor", "dask", *folder)
    assert f"4 results are from {tmp_path}, and were not computed again" in output
    assert times() == files
    for family in ("edges", "anywhere"):
        assert without[family] == first[family] == again[family]


def test_study_demo_names_what_it_lacks():
    program = (
        "import sys; sys.modules['mpi4py'] = None; "
        "import study; study.needed('mpi4py.futures', 'mpi4py')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=DEMOS)
    assert done.returncode
    assert "pip install 'mpi4py'" in done.stderr
    assert "Traceback" not in done.stderr


# printed tables
@pytest.mark.parametrize(
    "dof, quantile", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (19, 2.09302), (100, 1.98397)]
)
def test_student_t_is_the_printed_table(dof, quantile):
    assert student_t(dof) == pytest.approx(quantile, rel=1e-4)


def test_interval_by_hand():
    mean, half = interval(np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    assert mean.tolist() == [3, 2]
    assert half[0] == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-4)
    assert half[1] == 0


@pytest.mark.parametrize("task", ["random MDP, logistic policy", "GridWorld, softmax table"])
def test_policy_gradient_demo_agrees_with_itself(task, demo):
    differences = demo("policy_gradient")[0][task]["differences"]
    sampled = [x for method, x in differences.items() if "REINFORCE" in method]
    exactly = [x for method, x in differences.items() if "REINFORCE" not in method]
    assert len(exactly) == 5
    assert max(exactly) < 1e-9
    # the same episodes, three ways
    assert len(sampled) == 3
    assert max(sampled) - min(sampled) < 1e-12


COLUMNS = "family name target inner_episodes inner_steps alpha bias bias_se std cosine"


@pytest.mark.parametrize("family", ["random MDPs", "GridWorld"])
def test_meta_gradient_rows_are_complete(family, demo):
    rows = demo("meta_gradients")[0]["estimators"]
    mine = [row for row in rows if row["family"] == family]
    estimators = ("first_order", "naive", "lvc", "dice", "loaded_dice")
    with_score = [f"{name}+score" for name in estimators]
    assert {row["name"] for row in mine} == {*estimators, *with_score}
    for row in mine:
        assert set(row) == set(COLUMNS.split())
        assert row["target"] == ("(b)" if "score" in row["name"] else "(a)")


def test_every_method_is_compared(demo):
    numbers = demo("compare_methods")[0]
    rl2 = {"rl2_ppo", "rl2_trpo"}
    first_order = {f"{name}_first_order" for name in rl2 | {"maml"}}
    planners = {"posterior_sampling", "posterior_mean", "true_prior"}
    methods = numbers["methods"]
    expected = {*LEARNERS, "optimum"} | rl2 | first_order | planners
    assert {row["name"] for row in methods} == expected
    optimum = next(row["return"] for row in methods if row["name"] == "optimum")
    for row in methods:
        assert set(row) == {"name", "env_steps", "return", "std"}
        assert row["return"] <= optimum + 1e-9
    assert numbers["trpo_kl"]["largest"] <= numbers["trpo_kl"]["radius"]


def by_method(rows):
    """{setting: {method: row}}."""
    settings = {row["setting"]: {} for row in rows}
    for row in rows:
        assert row["method"] not in settings[row["setting"]]
        settings[row["setting"]][row["method"]] = row
    return settings


TABLE = {"random", "egreedy", "greedy", "rl2"}


OPTIMA = {"optimum", "known"}
INDEPENDENT = {f"n={n} k={k}" for n in (10, 100) for k in (5, 10, 50)}
DEPENDENT = {f"n=100 dependent {x}" for x in ("uniform", "easy", "medium", "hard")}


def test_every_bandit_is_there(demo):
    assert set(by_method(demo("rl2_bandits")[0]["rows"])) == INDEPENDENT | DEPENDENT


@pytest.mark.parametrize("name", sorted(INDEPENDENT))
def test_independent_bandits_have_the_published_columns(name, demo):
    rows = by_method(demo("rl2_bandits")[0]["rows"])[name]
    assert set(rows) - OPTIMA == TABLE | {"gittins", "ts", "ots", "ucb1", "maml"}
    assert all("published" in rows[method] for method in set(rows) - OPTIMA)


@pytest.mark.parametrize("name", sorted(INDEPENDENT | DEPENDENT))
def test_bandit_rows_are_complete(name, demo):
    numbers = demo("rl2_bandits")[0]
    rows = by_method(numbers["rows"])[name]
    assert ("optimum" in rows) == (name.startswith("n=10 ") or name.endswith("uniform"))
    assert rows["rl2"]["hyperparameter"] in ("greedy", "sampled")
    of = "optimum" if "optimum" in rows else "known"
    for method, row in rows.items():
        assert row["share_of"] == of
        assert row["share"] == row["mean"] / rows[of]["mean"]
        assert row["mean"] <= rows["known"]["mean"] + 4 * row["sem"]
        if method not in ("maml", *OPTIMA):
            grid = ("greedy", "sampled") if method == "rl2" else BANDITS[method].grid[:3]
            assert set(row.get("tuning", {})) == set(map(str, grid if len(grid) > 1 else ()))
        # regret grows
        regret = numbers["regret"][name].get(method, [])
        assert all(before < after + 1e-9 for before, after in zip(regret, regret[1:]))


@pytest.mark.parametrize("name", ["n=10", "n=25"])
def test_mdp_rows_are_complete(name, demo):
    settings = by_method(demo("rl2_mdps")[0]["rows"])
    assert set(settings) == {"n=10", "n=25"}
    rows = settings[name]
    models = {"psrl", "opsrl", "ucrl2", "beb", "egreedy", "greedy"}
    told = {m + " true prior" for m in models}
    assert set(rows) == TABLE | models | told | {"maml", "optimum"}
    optimum = rows["optimum"]
    for method, row in rows.items():
        assert row["mean"] <= optimum["mean"] + 4 * (row["sem"] + optimum["sem"])
        assert row["share"] == row["mean"] / optimum["mean"]
        if method != "optimum":
            assert len(row["episode"]) == int(name[2:])
            assert sum(row["episode"]) == pytest.approx(row["mean"])
    other = settings["n=10"]["optimum"]
    assert optimum["sem"] / optimum["mean"] == pytest.approx(other["sem"] / other["mean"])


@pytest.mark.parametrize("name", ["rl2_bandits", "rl2_mdps"])
def test_every_two_methods_are_compared(name, demo):
    numbers = demo(name)[0]
    settings = by_method(numbers["rows"])
    compared = {setting: [] for setting in settings}
    for row in numbers["pairs"]:
        compared[row["setting"]].append(set(row["methods"]))
        one, other = (settings[row["setting"]][method] for method in row["methods"])
        # RL² and some others play more tasks than they have in common
        error = 5 * np.hypot(one["sem"], other["sem"])
        assert row["difference"] == pytest.approx(one["mean"] - other["mean"], abs=error)
        assert row["apart"] == (abs(row["difference"]) > 2 * row["sem"])
    for setting, rows in settings.items():
        methods = len(set(rows) - OPTIMA)
        assert len(compared[setting]) == methods * (methods - 1) / 2


MAML_SETTINGS = {"n=10 MDPs", "n=25 MDPs"} | {
    f"n={n} k={k}" for n in (10, 100) for k in (5, 10, 50)
}
NO_MAML_IN_PRINT = {"n=50 MDPs", "n=75 MDPs", "n=100 MDPs"} | {f"n=500 k={k}" for k in (5, 10, 50)}


@pytest.mark.parametrize("name", sorted(MAML_SETTINGS))
def test_rows_of_the_gradient_bandit_are_complete(name, demo):
    settings = by_method(demo("maml_bandits")[0]["rows"])
    assert set(settings) == MAML_SETTINGS
    rows = settings[name]
    assert set(rows) == {"uniform", "maml", "rl2", "psrl" if "MDPs" in name else "gittins"}
    assert all("published" in row for row in rows.values())
    measured = rows["uniform"], rows["maml"]
    for row in measured:
        assert sum(row["episode"]) == pytest.approx(row["mean"])
    uniform, maml = measured
    # in print the uniform policy has an error, too
    error = 4 * uniform["sem"] + 0.01 * uniform["mean"]
    assert uniform["mean"] == pytest.approx(uniform["published"], abs=error)
    # both start uniform
    assert maml["episode"][0] == pytest.approx(uniform["episode"][0], rel=0.25)
    assert maml["mean"] > uniform["mean"] + 3 * maml["sem"]
    best = max(maml["tuning"], key=lambda tuned: tuned["mean"])
    assert (best["step_size"], best["baseline"]) == (maml["step_size"], maml["baseline"])


def test_all_published_settings_are_there_if_asked_for(demo):
    settings = by_method(demo("maml_bandits", "--all")[0]["rows"])
    assert set(settings) == MAML_SETTINGS | NO_MAML_IN_PRINT
    for name in NO_MAML_IN_PRINT:
        assert "published" not in settings[name]["maml"]


def test_the_second_pull_of_the_gradient_bandit_by_hand():
    """Three arms that pay 1, 0, 0; a step parts an arm that won from the others by w, one that
    lost by −l.

    So the first arm, which pays, is pulled with probability eʷ / (eʷ + 2) if it was the first one,
    and with 1 / (2 + e⁻ˡ) if it was not.
    """
    win, loss = 2.4, 0.6
    arms = bernoulli(np.tile([1.0, 0.0, 0.0], (20_000, 1)))
    play = maml_bandits.maml_play(2)
    value = maml_bandits.step_and_baseline(win, loss)
    first, second = play(np.random.default_rng(0), arms, value)
    won = np.exp(win) / (np.exp(win) + 2)
    lost = 1 / (2 + np.exp(-loss))
    for earned, expected in ((first, 1 / 3), (second, won / 3 + 2 * lost / 3)):
        assert earned.mean() == pytest.approx(expected, abs=5 * earned.std() / 20_000**0.5)
    assert second[first == 1].mean() == pytest.approx(won, abs=0.03)


def test_the_constant_baseline_is_one_for_each_step_that_is_left():
    baseline = maml_bandits.constant_baseline(0.5, horizon=3)
    found = baseline(np.zeros((3, 2, 1)), None)
    np.testing.assert_array_equal(found[..., 0], [[1.5, 1.5], [1, 1], [0.5, 0.5]])


@pytest.mark.parametrize(
    "setting, value",
    [((100, 5), (2, 0.7)), ((100, 10), (3, 0.9)), ((100, 50), (4, 0.6)), ((25,), (0.4, 1.3))],
)
def test_the_gradient_bandit_is_above_the_printed_maml(setting, value):
    """Six standard errors above, and three below the index or the planner."""
    setting = maml_bandits.Setting(*setting)
    rng = np.random.default_rng(0)
    tasks = maml_bandits.task_family(setting)(rng, 500)
    totals = maml_bandits.maml_play(setting.episodes)(rng, tasks, value).sum(0)
    printed = maml_bandits.in_print(setting)
    margin = 6 * totals.std() / 500**0.5
    assert printed["maml"] + margin < totals.mean()
    assert totals.mean() + margin / 2 < printed["gittins" if setting.arms else "psrl"]


def test_the_printed_maml_of_mdps_is_a_share_of_value_iteration():
    """Mishra et al. (2018), Table 4; value iteration gets 20.76 an episode."""
    for episodes, share in ((10, 0.563), (25, 0.591)):
        maml = _scoreboard.published(episodes)["maml"]
        assert maml == pytest.approx(share * 20.76 * episodes, 1e-3)


@pytest.mark.parametrize("name", ["episode 1", "episode 2", "episode 3", "trial"])
def test_gridworld_trials_stay_below_their_bounds(name, demo):
    """In the first episode nobody can do better than to enter a new cell at each step."""
    settings = by_method(demo("rl2_gridworld")[0]["rows"])
    assert set(settings) == {"episode 1", "episode 2", "episode 3", "trial"}
    rows = settings[name]
    new_cells = (0.95 ** np.arange(15)).sum() / 24
    if name == "episode 1":
        assert rows["bayes"]["mean"] == pytest.approx(new_cells, abs=1e-12)
    assert set(rows) - {"bayes"} == {"rl2", "posterior_sampling", "posterior_mean", "optimum"}
    for method, row in rows.items():
        searching = name == "episode 1" and method != "optimum"
        bound = new_cells if searching else rows["optimum"]["mean"]
        assert row["mean"] <= bound + 4 * row["sem"] + 1e-9


@pytest.mark.parametrize("name, episodes", [("informative", 5), ("varibad", 4)])
def test_nobody_gets_more_than_all_of_a_solved_family(name, episodes, demo):
    rows = by_method(demo("rl2_solved")[0]["rows"])[name]
    assert set(rows) == {"optimum", "rl2", "thompson", "posterior_mean", "known"}
    best = rows["optimum"]["mean"]
    for method, row in rows.items():
        assert len(row["episodes"]) == episodes
        assert sum(row["episodes"]) == pytest.approx(row["mean"])
        assert row["share"] == pytest.approx(row["mean"] / best)
        assert method == "known" or row["mean"] <= best + 4 * row["sem"] + 1e-9
    assert rows["known"]["mean"] > best


# one small setting of each demo
SMALL = dict(
    rl2_bandits=("--pulls", "4", "--arms", "3"),
    rl2_mdps=("--episodes", "2"),
    rl2_solved=("--family", "informative"),
)


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_trained_and_then_evaluated(name, demo, tmp_path):
    options = "--weights", str(tmp_path), *SMALL[name]
    trained = demo(name, "--train", *options)[0]["trained"]
    assert [row["weights"] for row in trained] == [str(p) for p in tmp_path.glob("*.npz")]
    rows = demo(name, *options)[0]["rows"]
    assert {row["method"] for row in rows} >= ({"rl2", "thompson"} if "solved" in name else TABLE)


@pytest.mark.parametrize("mistake", ["no weights", "weights lost"])
@pytest.mark.parametrize("name", SMALL)
def test_a_mistake_with_weights_is_one_message(name, mistake, tmp_path, capsys):
    if mistake == "no weights":
        options = "--weights", tmp_path / "none", *SMALL[name]
        make = shlex.join([sys.executable, str(DEMOS / f"{name}.py"), "--train", *SMALL[name]])
        message = f"make it by\n{make} --weights {tmp_path / 'none'}\n"
    else:
        options = ("--train",)
        message = "would replace the trained weights"
    with pytest.raises(SystemExit) as end:
        called([DEMOS / f"{name}.py", "--quick", *options])
    # Python prints what sys.exit is given; the message of argparse is printed already
    assert message in f"{end.value}\n{capsys.readouterr().err}"


# ---- what users type


def refusal(name, options, monkeypatch, capsys):
    """What a demo says to options before its work, which is replaced by an error."""

    def work():
        pytest.fail("the work began")

    demo = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [str(DEMOS / f"{name}.py"), "--quick", *map(str, options)])
    monkeypatch.setattr(demo, "Progress", work)
    if hasattr(demo, "make_weights"):
        monkeypatch.setattr(demo, "make_weights", lambda *_: work())
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"{name}.py: error: ")
    return message


NO_NUMBERS = ["-1", "1.5", "", "x", "nan"]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("name", PROMISED)
def test_a_seed_that_is_none_is_refused_in_every_demo(name, text, monkeypatch, capsys):
    assert "--seed" in refusal(name, [f"--seed={text}"], monkeypatch, capsys)


COUNTS = dict(rl2_bandits=["--pulls", "--arms", "--iterations"], rl2_mdps=["--episodes"])


@pytest.mark.parametrize("text", ["0", *NO_NUMBERS])
@pytest.mark.parametrize("name, option", [(name, x) for name in COUNTS for x in COUNTS[name]])
def test_a_count_below_one_is_refused(name, option, text, monkeypatch, capsys):
    assert option in refusal(name, [f"{option}={text}"], monkeypatch, capsys)


def test_a_seed_may_have_more_than_64_bits(demo):
    demo("policy_gradient", "--seed", str(2**70))


WEIGHTED = ["rl2_bandits", "rl2_mdps", "rl2_solved"]
TRAINS = ["maml_gridworld", "rl2_gridworld", *(f"{name} --train" for name in WEIGHTED)]
PLACES = [f"{name} --out" for name in PROMISED] + ["study --folder"]
PLACES += [f"{name} --checkpoint" for name in TRAINS]
PLACES += [f"{name} {train}--weights" for name in WEIGHTED for train in ("", "--train ")]


@pytest.mark.parametrize("where", ["empty", "a file", "below a file"])
@pytest.mark.parametrize("line", PLACES)
def test_a_path_that_cannot_be_used_is_refused(line, where, tmp_path, monkeypatch, capsys):
    name, *options = line.split()
    file = tmp_path / "file"
    file.touch()
    is_file = options[-1] == "--checkpoint"
    a_file = "/" if is_file else file
    path = {"empty": "", "a file": a_file, "below a file": file / "deeper"}[where]
    if options == ["--weights"] and where == "below a file":
        pytest.skip("nothing is written there: that no weights are there is said")
    others = ["--out", tmp_path / "pictures"]
    if "--train" in options:
        others += ["--weights", tmp_path / "weights"]
    assert options[-1] in refusal(name, [*others, *options, path], monkeypatch, capsys)


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name} --iterations 5" for name in WEIGHTED),
        *(f"{name} --checkpoint x.npz" for name in WEIGHTED),
        "study --executor serial --scheduler tcp://nope:1",
        "study --scheduler tcp://nope:1",
        "benchmark --peers-python python3",
    ],
)
def test_an_option_that_does_nothing_is_refused(line, monkeypatch, capsys):
    name, *options = line.split()
    assert f"{options[-2]} goes with" in refusal(name, options, monkeypatch, capsys)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize("name", PROMISED)
def test_the_text_of_a_demo_can_be_printed_in_any_encoding(name, encoding, monkeypatch):
    text = (DEMOS / f"{name}.py").read_text(encoding="utf8") + "\udcff"
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    _common.make_printable()
    stream.write(text)
    stream.flush()
    # a sign may become several, and none is lost
    assert len(stream.buffer.getvalue().decode(encoding)) >= len(text)


def test_a_demo_runs_in_a_windows_code_page_and_a_notebook_s_shell(tmp_path):
    environment = dict(
        PYTHONIOENCODING="cp1252", MPLBACKEND="module://matplotlib_inline.backend_inline"
    )
    script = DEMOS / "policy_gradient.py"
    command = [*STRICT, script, "--quick", "--json", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    output = done.stdout.decode("cp1252")
    assert "|grad J| = " in output
    json.loads(output.splitlines()[-1])


def test_plots_can_be_imported_in_a_notebook_s_shell():
    backend = dict(MPLBACKEND="module://no_such_package.backend")
    command = [*STRICT, "-c", "from metarl_np import plots; plots.figure(3, 3)"]
    done = subprocess.run(command, capture_output=True, env=os.environ | backend, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [10, 30, 80])
def test_the_line_of_progress_fits_the_terminal(columns, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = _common.Progress()
    progress.shown = -1
    progress("x" * 100)
    shown = stream.getvalue().removeprefix(_common.CLEAR)
    assert shown == "x" * (columns - 1)


def test_a_hint_can_be_pasted_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["maml_gridworld.py", "--checkpoint=my run.npz", "--quick"])
    hint = _common.command(*_common.typed())
    script = str(DEMOS / "maml_gridworld.py")
    checkpoint = str(tmp_path / "my run.npz")
    assert shlex.split(hint) == [sys.executable, script, "--checkpoint", checkpoint, "--quick"]


@pytest.mark.parametrize("name", PROMISED)
def test_every_option_has_a_help(name, monkeypatch):
    seen = []

    def parse_args(self):
        seen.extend(self._actions)
        raise SystemExit

    monkeypatch.setattr(_common.Parser, "parse_args", parse_args)
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    assert len(seen) >= 5
    assert all(action.help for action in seen)


STUDY = """
import pathlib, sys, time
sys.path.insert(0, {demos!r})
from study import engine, study

def experiment(rng):
    pathlib.Path({folder!r}, str(time.time_ns())).touch()
    time.sleep(30)

if __name__ == "__main__":
    with engine("processes") as executor:
        list(study(experiment, range(40), executor=executor))
"""


# ---- Ctrl-C


def interrupted(ready, *command):
    """Start a demo and press Ctrl-C once `ready` is true: its exit status, and what it said.

    It is in a group of processes of its own. (What a shell starts in the background inherits that
    it ignores Ctrl-C.)
    """
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as demo:
        while demo.poll() is None and not ready():
            time.sleep(0.01)
        os.killpg(demo.pid, signal.SIGINT)
        started = time.perf_counter()
        output, errors = demo.communicate(timeout=60)
    assert time.perf_counter() - started < 10
    assert output == ""
    return demo.returncode, errors


def to_go_on(command):
    """What is said on Ctrl-C."""
    script, *options = map(str, command)
    return f"interrupted; to go on: {shlex.join([sys.executable, str(ROOT / script), *options])}\n"


def python(*command):
    """A demo that is not interrupted."""
    whole = [sys.executable, *command]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_training_of_weights_goes_on_after_ctrl_c(tmp_path):
    options = "--train --quick --pulls 4 --arms 3 --iterations 60 --weights".split()
    command = ["demos/rl2_bandits.py", *options]
    assert python(*command, tmp_path / "undisturbed").returncode == 0

    checkpoints = tmp_path / "folder"
    again = [*command, tmp_path / "in parts", "--checkpoint", checkpoints / "run.npz"]
    file = checkpoints / "run-bandits_n4_k3-0.npz"
    assert interrupted(file.exists, *again) == (130, to_go_on(again))
    assert 9 <= checkpoint.load(file, "training")["iteration"] < 59
    done = python(*again)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(file, "training")["iteration"] == 59

    task = independent(np.random.default_rng(0), 1, 3)
    whole = _common.load_weights(tmp_path / "undisturbed" / "bandits_n4_k3.npz", task)
    parts = _common.load_weights(tmp_path / "in parts" / "bandits_n4_k3.npz", task)
    assert whole[1].tobytes() == parts[1].tobytes()
    facts = parts[2]
    assert str(tmp_path) not in facts["command"]

    other = python(*again, "--seed", "1")
    assert other.returncode == 1
    assert other.stderr.endswith(f"{file}: made with seed = 0, not 1\n")


def test_meta_training_goes_on_after_ctrl_c(tmp_path, demo):
    """And what is finished is not trained again."""
    file = tmp_path / "run.npz"
    command = ["demos/maml_gridworld.py", "--checkpoint", file]
    ready = (tmp_path / "run-edges1-maml.npz").exists
    assert interrupted(ready, *command) == (130, to_go_on(command))
    for left in tmp_path.glob("*.npz"):
        assert checkpoint.load(left, "training")["iteration"] < 799
        left.unlink()
    kept = "--checkpoint", str(file)
    runs = [demo("maml_gridworld", *options)[0] for options in ((), kept, (*kept, "--seed", "0"))]
    without, first, second = [dict(numbers, seconds=None) for numbers in runs]
    assert without == first == second
    assert len(list(tmp_path.glob("*.npz"))) == 8


def test_ctrl_c_begins_no_queued_run_of_a_study(tmp_path):
    """And ends those that have begun."""
    script = tmp_path / "script.py"
    folder = tmp_path / "began"
    folder.mkdir()
    script.write_text(STUDY.format(demos=str(DEMOS), folder=str(folder)))
    running = os.cpu_count()
    status, _ = interrupted(lambda: len(list(folder.iterdir())) >= running, script)
    assert status
    assert len(list(folder.iterdir())) == running


def test_ctrl_c_without_a_checkpoint_is_one_line(tmp_path):
    """A second after it has made its folder, when it has imported all and is at work."""
    folder = tmp_path / "pictures"

    def at_work():
        return folder.exists() and time.time() > folder.stat().st_mtime + 1

    assert interrupted(at_work, "demos/maml_gridworld.py", "--out", folder) == (
        130,
        "interrupted\n",
    )


# ---- what the demos of RL² share


SETTINGS = dict(units=4, memory=2, trials=8, iterations=1, minibatches=1)


def two_arms(rng, n):
    return independent(rng, n, 2)


@pytest.fixture
def keys(monkeypatch):
    """The tuples that `default_rng` was called with."""
    keys = []
    real = np.random.default_rng

    def default_rng(key=None):
        if isinstance(key, tuple):
            keys.append(key)
        return real(key)

    monkeypatch.setattr(np.random, "default_rng", default_rng)
    return keys


def test_training_tuning_and_test_never_share_a_stream(keys):
    """No test task may be one that training or tuning saw."""
    settings = SETTINGS | dict(step_size=1e-9, then=[{}, {}])
    _common.train_rl2(two_arms, 3, settings, seed=5)
    assert {key[:2] for key in keys} == {(5, 1)}
    keys.clear()
    seen = []

    def play(rng, mdps, value):
        """Two episodes, in each of which task i scores value + i mod 2."""
        seen.append(mdps.expected_rewards.copy())
        return np.full((2, len(mdps)), float(value)) + np.arange(len(mdps)) % 2

    def best(mdps):
        return np.ones(len(mdps))

    sizes = dict(n_tuning=6, n_test=10, chunk=5)
    result = _scoreboard.measure(two_arms, play, (1, 2), best, (1.0, 0.0), 5, **sizes)
    assert keys == [(5, 2), (5, 3)]
    # two values are tuned, and then there are two chunks of test tasks
    assert len(seen) == 4
    tuned = set(np.concatenate(seen[:2]).ravel())
    tested = set(np.concatenate(seen[2:]).ravel())
    assert not tuned & tested
    assert result.value == 2
    # the totals are 4 and 6: 4, 6, 4, 6, 4 twice
    row = result.row()
    # the totals of the tuning tasks are 2 and 4, or 4 and 6
    assert row.pop("tuning") == {1: 3, 2: 5}
    expected = dict(mean=4.8, sem=np.sqrt(0.96 / 10), tasks=10, hyperparameter=2)
    assert row == pytest.approx(expected)


def lucky(rng, mdps, value):
    """Two episodes, which score the task's best arm and three times it, and noise `value` long."""
    best = mdps.expected_rewards.max((1, 2))
    return np.stack([best, 3 * best]) + value * rng.standard_normal((2, len(mdps)))


def measured_luck(value, mean_best, n_test=400, play=lucky):
    best = exact.optimal_return
    sizes = dict(n_tuning=1, n_test=n_test, chunk=100)
    return _scoreboard.measure(two_arms, play, (value,), best, mean_best, 0, **sizes)


def test_the_luck_of_the_tasks_is_taken_off():
    """What is the task's luck and nothing else comes out exactly: E best is 2/3 of two arms."""
    result = measured_luck(0.0, (2 / 3, 0.0))
    assert result.mean == pytest.approx(8 / 3, abs=1e-12)
    assert result.sem == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(result.episode, [2 / 3, 2], atol=1e-12)


def test_what_is_left_of_a_mean_is_its_noise_and_the_error_of_the_mean_best():
    noise = measured_luck(1.0, (2 / 3, 0.0))
    assert noise.mean == pytest.approx(8 / 3, abs=4 * noise.sem)
    assert noise.sem == pytest.approx(np.sqrt(2 / 400), rel=0.15)
    assert sum(noise.episode) == pytest.approx(noise.mean)
    both = measured_luck(0.0, (2 / 3, 0.01))
    # the slope is 1 + 3
    assert both.sem == pytest.approx(0.04)


def test_tasks_do_not_depend_on_what_a_method_draws():
    def silent(rng, mdps, value):
        return np.ones((2, len(mdps)))

    one = measured_luck(1.0, (2 / 3, 0.0))
    other = measured_luck(1.0, (2 / 3, 0.0), play=silent)
    np.testing.assert_array_equal(one.luck, other.luck)


def test_all_methods_of_random_mdps_play_the_same_tasks(monkeypatch):
    """Their tasks depend on how many are drawn at a time."""
    chunks = set()
    monkeypatch.setattr(rl2_mdps, "measure", lambda *_, chunk, **sizes: chunks.add(chunk))
    for method in (*rl2_mdps.METHODS, "beb true prior"):
        rl2_mdps.run((10, method, (None, None), (20.0, 0.1), 0, False))
    assert len(chunks) == 1


def test_planners_are_told_the_prior_only_where_it_says_so(monkeypatch):
    priors = []
    monkeypatch.setattr(rl2_mdps, "play_mdps", lambda *_: None)
    monkeypatch.setattr(rl2_mdps, "DirichletBelief", lambda prior, mdps: priors.append(prior))
    for true_prior in (False, True):
        rl2_mdps.planner_play(10, "beb", true_prior)(None, None, 1)
    assert priors == [MDPS["beb"].prior, TRUE] and MDPS["beb"].prior != TRUE


@pytest.mark.parametrize("demo_of", [rl2_bandits, rl2_mdps])
def test_rl2_is_scored_by_what_is_expected(demo_of):
    """With equal means that is the same for every action, though the rewards are drawn."""
    if demo_of is rl2_bandits:
        tasks = bernoulli(np.full((3, 2), 0.25))
    else:
        rng = np.random.default_rng(0)
        tasks = random_mdps(rng, 3, reward_mean=0.25, reward_std=0.0)
    policy = RecurrentPolicy(*tasks.shape[1:], 4)
    theta = policy.init(np.random.default_rng(0))
    play = demo_of.rl2_play(2, policy, theta)
    for value in ("greedy", "sampled"):
        scores = play(np.random.default_rng(1), tasks, value)
        np.testing.assert_allclose(scores, np.full((2, 3), 0.25 * tasks.horizon), rtol=1e-6)


def test_the_steps_of_an_episode_of_rl2_are_added_up(monkeypatch):
    """Step t of the trial of task n earns 100 n + t: two episodes of three steps."""
    earned = np.arange(6.0)[:, None] + [0, 100]
    monkeypatch.setattr(rl2_mdps.rl2, "sample_trials", lambda *_, greedy: None)
    monkeypatch.setattr(rl2_mdps.rl2, "expected_rewards", lambda *_: earned)
    scores = rl2_mdps.rl2_play(2, None, None)(None, SimpleNamespace(horizon=3), "greedy")
    np.testing.assert_array_equal(scores, [[3, 303], [12, 312]])


@pytest.mark.parametrize("value", ["greedy", "sampled"])
@pytest.mark.parametrize("demo_of", [rl2_bandits, rl2_mdps])
def test_rl2_acts_as_its_label_says(demo_of, value, monkeypatch):
    acted = []
    monkeypatch.setattr(demo_of.rl2, "sample_trials", lambda *_, greedy: acted.append(greedy))
    monkeypatch.setattr(demo_of.rl2, "expected_rewards", lambda *_: np.zeros((20, 3)))
    tasks = SimpleNamespace(horizon=10)
    demo_of.rl2_play(2, None, None)(None, tasks, value)
    assert acted == [value == "greedy"]


@pytest.mark.parametrize(
    "size, starts", [((100, 50), True), ((100, 40), False), ((500, 3), False), ((1000, 50), True)]
)
def test_weights_are_started_from_only_if_they_play_as_many_arms(size, starts):
    assert ("start" in rl2_bandits.training_settings(*size)) == starts


@pytest.mark.parametrize(
    "name, options",
    [
        ("bandits_n10_k50", ["--pulls", "10", "--arms", "50"]),
        ("mdps_n25", ["--episodes", "25"]),
    ],
)
def test_the_options_that_make_weights_follow_from_their_name(name, options):
    assert _common.options_for(name) == options


def test_weights_of_fifty_episodes_play_longer_trials(tmp_path):
    assert rl2_mdps.weights_for(75, tmp_path).name == "mdps_n50.npz"
    assert rl2_mdps.weights_for(25, tmp_path).name == "mdps_n25.npz"
    (tmp_path / "mdps_n75.npz").touch()
    assert rl2_mdps.weights_for(75, tmp_path).name == "mdps_n75.npz"


@pytest.mark.parametrize(
    "path", sorted(_common.WEIGHTS.glob("*_n*.npz")), ids=lambda path: path.stem
)
def test_weights_were_made_with_the_settings_that_the_demo_has(path):
    """Nobody could make them again otherwise."""
    facts = checkpoint.load(path, "weights")["facts"]
    sizes = [int(word) for word in _common.options_for(path.stem)[1::2]]
    demo_of = rl2_bandits if path.stem.startswith("bandits") else rl2_mdps
    made = ast.literal_eval(facts["settings"])
    assert made == demo_of.training_settings(*sizes)
    assert facts["command"].split()[2:] == ["--train", *_common.options_for(path.stem)]


def test_lines_of_a_setting_by_hand():
    rows = dict(ts=dict(mean=4.0, sem=0.1, share=0.5), rl2=dict(mean=6.0, sem=0.1, share=0.75))
    compared = [
        dict(setting="n=1", methods=["rl2", "ts"], difference=2.0, sem=0.1),
        dict(setting="n=2", methods=["rl2", "ts"], difference=9.0, sem=0.1),
        dict(setting="n=1", methods=["ucb1", "ts"], difference=9.0, sem=0.1),
    ]
    minus = _scoreboard.rl2_minus(compared, "n=1")
    assert _scoreboard.lines_of("1", rows, minus, ["ts", "ucb1", "rl2"]) == [
        ["1", "mean", "4.0±.1", "", "6.0±.1"],
        ["", "of the optimum", "50.0%", "", "75.0%"],
        ["", "RL² minus it", "+2.0±.1", "", ""],
    ]
    tuning = dict(greedy=2.0, sampled=1.0)
    text = _scoreboard.tuning_of_rl2([dict(method="rl2", setting="n=1", tuning=tuning)])
    assert text.splitlines()[1] == "  n=1: 2.000, 1.000"


def test_a_difference_is_paired_on_the_tasks_that_both_played():
    """The same noise, which each method draws alike, and a shift by .1."""

    def shifted(rng, mdps, value):
        return lucky(rng, mdps, value) + 0.05

    one = measured_luck(1.0, (2 / 3, 0.0), play=shifted)
    other = measured_luck(1.0, (2 / 3, 0.0), n_test=300)
    mean, sem = _scoreboard.difference(one, other)
    assert mean == pytest.approx(0.1, abs=3 * sem + 1e-9)
    assert sem < other.sem / 3
    rows = _scoreboard.pairs("here", dict(one=one, other=other, again=other))
    assert [row["methods"] for row in rows] == [
        ["one", "other"],
        ["one", "again"],
        ["other", "again"],
    ]
    assert [row["apart"] for row in rows] == [True, True, False]
    elsewhere = measured_luck(1.0, (0.5, 0.0))
    with pytest.raises(ValueError, match="not of the same tasks"):
        _scoreboard.difference(one, elsewhere)


def test_the_mean_best_of_a_family_is_that_of_many_tasks(keys):
    rng = np.random.default_rng(0)
    for arms, family in ((5, None), (None, "uniform"), (None, "hard")):
        best = exact.optimal_return(rl2_bandits.task_family(arms, family)(rng, 40_000))
        mean, error = _scoreboard.mean_best_arm(arms, family)
        assert error == 0
        assert best.mean() == pytest.approx(mean, abs=5 * best.std() / 200 + 1e-12)
    keys.clear()
    mean, sem = _scoreboard.mean_optimum(0, quick=True)
    assert keys == [(0, 4)]
    other, other_sem = _scoreboard.mean_optimum(1, quick=True)
    assert mean == pytest.approx(other, abs=5 * np.hypot(sem, other_sem))


def test_the_table_says_where_two_cannot_be_told_apart(capsys):
    assert _scoreboard.compared(0.02, 0.004) == "+0.020±.004"
    assert _scoreboard.compared(-0.006, 0.004) == "-0.006±.004 ?"
    rows = [
        dict(setting="n=1", methods=["rl2", "ucb1"], apart=False),
        dict(setting="n=1", methods=["rl2", "ts"], apart=True),
        dict(setting="n=2", methods=["rl2", "ts"], apart=True),
    ]
    _scoreboard.print_ties(rows)
    assert capsys.readouterr().out.splitlines()[-2:] == ["  n=1: rl2 and ucb1", "  n=2: none"]


def test_a_stage_starts_from_where_the_one_before_ended():
    still = SETTINGS | dict(step_size=1e-9)
    one = _common.train_rl2(two_arms, 3, still, seed=5)[1]
    three = _common.train_rl2(two_arms, 3, still | dict(then=[{}, {}]), seed=5)[1]
    np.testing.assert_allclose(one, three, atol=1e-6)


def test_stages_apply_their_changes():
    settings = SETTINGS | dict(step_size=1e-9, then=[dict(step_size=0.1)])
    changed = _common.train_rl2(two_arms, 3, settings, seed=5)[1]
    start = RecurrentPolicy(1, 2, 4).init(np.random.default_rng((5, 1)), memory=2)
    assert abs(changed - start).max() > 0.05


@pytest.mark.parametrize(
    "mean, sem, text",
    [(6.6441, 0.0031, "6.644±.003"), (81.37, 0.4, "81.4±.4"), (433.9, 1.2, "433.9±1.2")],
)
def test_a_number_has_as_many_digits_as_its_error(mean, sem, text):
    assert _scoreboard.number(mean, sem) == text


@pytest.mark.parametrize("row", printed(BANDIT_LINES), ids=lambda row: f"n={row['n']} k={row['k']}")
def test_published_bandits_are_the_same_in_demos_and_tests(row):
    assert _scoreboard.published(row.pop("n"), row.pop("k")) == row


@pytest.mark.parametrize("row", printed(MDP_LINES), ids=lambda row: f"n={row['n']}")
def test_published_mdps_are_the_same_in_demos_and_tests(row):
    found = _scoreboard.published(row.pop("n"))
    found.pop("maml", None)
    assert found == row
