"""Every demo runs with --quick, writes its pictures and ends with the JSON that its readers were
promised.
"""

import ast
import inspect
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import cache
from types import SimpleNamespace

import _common
import numpy as np
import pytest
import your_own_task
from PIL import Image
from rl2_bandits import PUBLISHED as BANDIT_TABLE
from rl2_mdps import PUBLISHED as MDP_TABLE
from study import interval, student_t
from compare.published import PUBLISHED, PUBLISHED_MDPS

from metarl_np import checkpoint, exact
from metarl_np.meta.rl2 import RecurrentPolicy
from metarl_np.tasks.bandits import independent

ROOT = pathlib.Path(__file__).parents[1]
CURVES = {
    m + s for m in ("maml", "multi_task", "scratch") for s in ("", "_std", "_train", "_train_std")
}
PROMISED = {
    "maml_gridworld": {"steps", "seconds"} | CURVES,
    "policy_gradient": {"random MDP, logistic policy", "GridWorld, softmax table"},
    "reinforce_gridworld": {"iteration", "mean", "std"},
    "meta_gradients": {"estimators"},
    "compare_methods": {"methods", "trpo_kl", "values"},
    "rl2_bandits": {"rows", "regret"},
    "rl2_mdps": {"rows"},
    "rl2_gridworld": {"rows", "bound"},
    "study": {"steps", "seeds", "edges", "anywhere", "executor", "seconds"},
    "benchmark": {
        "frozen_lake_steps_per_s",
        "frozen_lake_steps_per_s_threads",
        "scaling",
        "exponents",
        "maml",
        "rl2",
        "oracle",
    },
    "your_own_task": {"curves", "source"},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run a demo once: (its JSON, all of its output, the folder of its pictures)."""

    @cache
    def run(name, *options):
        folder = tmp_path_factory.mktemp(name)
        command = [
            sys.executable,
            "-W",
            "error",
            ROOT / "demos" / f"{name}.py",
            "--quick",
            "--json",
            "--out",
            folder,
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stdout, folder

    return run


def test_every_demo_is_promised():
    assert set(PROMISED) == {
        p.stem
        for p in (ROOT / "demos").glob("*.py")
        if 'if __name__ == "__main__"' in p.read_text()
    }


@pytest.mark.parametrize("name", PROMISED)
def test_demo(name, demo):
    numbers, output, folder = demo(name)
    assert PROMISED[name] <= set(numbers)
    assert "\r" not in output  # no progress line when redirected
    pictures = [
        line.split(": ", 1)[1] for line in output.splitlines() if line.startswith("picture: ")
    ]
    assert {str(p) for p in folder.iterdir()} == set(pictures)


def cells(name):
    """The code between the marks `# %%`; what stands before the first is the first cell."""
    parts = re.split(r"^\s*# ?%%.*$", (ROOT / "demos" / f"{name}.py").read_text(), flags=re.M)
    assert len(parts) >= 4, f"{name} has {len(parts) - 1} marked cells"
    return parts


@pytest.mark.parametrize("name", PROMISED)
def test_every_demo_is_written_in_cells(name):
    for cell in cells(name):
        compile(cell, name, "exec")  # a cut through a function or a bracket would not compile


@pytest.mark.parametrize(
    "name, argv",
    [
        ("reinforce_gridworld", ["reinforce_gridworld.py"]),  # as an editor runs it
        ("your_own_task", ["ipykernel_launcher.py", "-f", "kernel.json"]),
        ("maml_gridworld", ["/somewhere/ipykernel_launcher.py", "--f=kernel.json"]),
    ],
)
def test_cells_run_one_after_the_other(name, argv, tmp_path):
    """In one namespace without a file, in the folder demos/, with a notebook kernel's command line,
    to which options are added. Processes start as they do on macOS and Windows: what a notebook
    defines they could not import.
    """
    program = (
        "import multiprocessing, sys; multiprocessing.set_start_method('spawn'); "
        f"sys.argv = {argv + ['--quick', '--json', '--out', str(tmp_path)]}\n"
        f"for cell in {cells(name)}: exec(compile(cell, '<cell>', 'exec'), globals())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT / "demos",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert PROMISED[name] <= set(json.loads(done.stdout.splitlines()[-1])) and list(
        tmp_path.iterdir()
    )


def test_options_are_strict_on_a_demo_s_own_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "demos" / "benchmark.py"), "--quik"])
    with pytest.raises(SystemExit):
        _common.parser("").parse_args()
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json", "--seed", "3"])
    assert _common.parser("").parse_args().seed == 3 and not _common.parser("").parse_args().quick


def test_adaptation_is_animated(demo):
    _, output, folder = demo("maml_gridworld")
    with Image.open(folder / "adaptation.gif") as gif:
        # 0, 7 and 14 steps, before and after one inner step
        assert gif.n_frames == 6 and gif.info["loop"] == 0
    assert (ROOT / "demos" / "figures" / "adaptation.gif").stat().st_size < 500_000


def lake_map(size, seed):
    """FrozenLake's random map, one cell in five a hole."""
    lake = np.random.default_rng(seed).choice(list("FH"), (size, size), p=(0.8, 0.2))
    lake[0, 0] = "S"
    lake[-1, -1] = "G"
    return ["".join(row) for row in lake]


def lake_table(desc):
    """FrozenLake's table, its rules being written out here once more."""
    size = len(desc)
    table = {}
    for r, c in np.ndindex(size, size):
        ended = desc[r][c] in "GH"
        table[r * size + c] = rows = {}
        # left, down, right, up
        for action, (dr, dc) in enumerate([(0, -1), (1, 0), (0, 1), (-1, 0)]):
            i = r if ended else min(max(r + dr, 0), size - 1)
            j = c if ended else min(max(c + dc, 0), size - 1)
            paid = float(desc[i][j] == "G" and not ended)
            rows[action] = [(1.0, i * size + j, paid, desc[i][j] in "GH")]
    return table


class Holes:
    """A generator that draws the holes of these maps."""

    def __init__(self, lakes):
        self.hole = [[cell == "H" for cell in "".join(lake)] for lake in lakes]

    def random(self, shape):
        return np.where(self.hole, 0.1, 0.9)


def test_own_tasks_as_arrays_and_as_tables_are_the_same(monkeypatch):
    """What Gymnasium's tables say and what the arrays say, of the same maps."""

    def make(name, desc, is_slippery):
        assert name == "FrozenLake-v1" and not is_slippery
        return SimpleNamespace(unwrapped=SimpleNamespace(P=lake_table(desc)))

    monkeypatch.setattr(your_own_task, "generate_random_map", lake_map, raising=False)
    monkeypatch.setattr(your_own_task, "gymnasium", SimpleNamespace(make=make))
    tables = your_own_task.from_gymnasium(2, 8)
    arrays = your_own_task.from_arrays(Holes([lake_map(8, 16 + i) for i in range(8)]), 8)
    assert 1 < len(tables) == len(arrays) and tables.horizon == arrays.horizon == 20
    log_pi = np.log(np.random.default_rng(0).dirichlet(np.ones(4), 64))
    for value in (lambda mdps: exact.values(mdps, log_pi), exact.optimal_return):
        np.testing.assert_allclose(value(arrays), value(tables), atol=1e-12)


def test_own_task_rows_are_complete(demo):
    rows = demo("your_own_task")[0]["curves"]
    assert [(r["method"], r["after"]) for r in rows] == [
        (m, i)
        for m, n in (("maml", 3), ("rl2", 2), ("uniform", 1), ("optimum", 1))
        for i in range(n)
    ]
    assert all(0 <= r["mean"] <= rows[-1]["mean"] for r in rows)


def test_what_a_user_types_is_below_thirty_statements():
    """MAML and RL² on one's own tasks: no line counts, since lines are there to be read."""
    statements = 0
    for name in ("run_maml", "run_rl2"):
        function = getattr(your_own_task, name)
        tree = ast.parse(inspect.getsource(function))
        statements += sum(isinstance(node, ast.stmt) for node in ast.walk(tree))
    assert statements < 30


def test_maml_demo_with_the_logistic_policy(demo):
    numbers = demo("maml_gridworld", "--policy", "logistic")[0]
    assert numbers["policy"] == "logistic" and len(numbers["maml"]) == len(numbers["steps"]) == 6
    assert all(0 <= x <= 1 for key in CURVES for x in numbers[key])


def test_study_demo_goes_on_and_names_what_it_lacks(demo, tmp_path):
    first = demo("study")[0]
    again = demo("study", "--executor", "serial", "--folder", str(tmp_path))[0]
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}
    assert len(files) == 6
    dask = demo("study", "--executor", "dask", "--folder", str(tmp_path))[0]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")} == files
    assert (
        first["edges"] == again["edges"] == dask["edges"]
        and first["anywhere"] == again["anywhere"] == dask["anywhere"]
    )
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['mpi4py'] = None\n"
        "import study; study.needed('mpi4py.futures', 'mpi4py')",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT / "demos")
    assert (
        done.returncode and "pip install 'mpi4py'" in done.stderr and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "dof, quantile", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (19, 2.09302), (100, 1.98397)]
)  # printed tables
def test_student_t_is_the_printed_table(dof, quantile):
    assert student_t(dof) == pytest.approx(quantile, rel=1e-4)


def test_interval_by_hand():
    mean, half = interval(np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    assert (
        mean.tolist() == [3, 2]
        and half[0] == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-4)
        and half[1] == 0
    )


def test_policy_gradient_demo_agrees_with_itself(demo):
    for task in demo("policy_gradient")[0].values():
        exact = {k: v for k, v in task["differences"].items() if "REINFORCE" not in k}
        assert len(exact) == 5 and max(exact.values()) < 1e-9
        sampled = [v for k, v in task["differences"].items() if "REINFORCE" in k]
        # the same episodes, three ways
        assert len(sampled) == 3 and max(sampled) - min(sampled) < 1e-12


def test_meta_gradient_rows_are_complete(demo):
    rows = demo("meta_gradients")[0]["estimators"]
    names = {
        e + s
        for e in ("first_order", "naive", "lvc", "dice", "loaded_dice")
        for s in ("", "+score")
    }
    for family in ("random MDPs", "GridWorld"):
        assert {r["name"] for r in rows if r["family"] == family} == names
    for r in rows:
        assert set(r) == {
            "family",
            "name",
            "target",
            "inner_episodes",
            "inner_steps",
            "alpha",
            "bias",
            "bias_se",
            "std",
            "cosine",
        }
        assert r["target"] == ("(b)" if "score" in r["name"] else "(a)")


def test_every_method_is_compared(demo):
    numbers = demo("compare_methods")[0]
    rl2 = {"rl2_ppo", "rl2_trpo"}
    learners = (
        {"maml", "multi_task", "scratch"} | rl2 | {name + "_first_order" for name in rl2 | {"maml"}}
    )
    assert {row["name"] for row in numbers["methods"]} == learners | {
        "posterior_sampling",
        "posterior_mean",
        "true_prior",
        "optimum",
    }
    optimum = next(row["return"] for row in numbers["methods"] if row["name"] == "optimum")
    for row in numbers["methods"]:
        assert (
            set(row) == {"name", "env_steps", "return", "std"} and row["return"] <= optimum + 1e-9
        )
    assert numbers["trpo_kl"]["largest"] <= numbers["trpo_kl"]["radius"]


def by_method(rows):
    """{setting: {method: row}}."""
    settings = {row["setting"]: {} for row in rows}
    for row in rows:
        assert row["method"] not in settings[row["setting"]]
        settings[row["setting"]][row["method"]] = row
    return settings


TABLE = {"random", "egreedy", "greedy", "rl2"}


def test_bandit_rows_are_complete(demo):
    numbers = demo("rl2_bandits")[0]
    settings = by_method(numbers["rows"])
    independent = {f"n={n} k={k}" for n in (10, 100) for k in (5, 10)}
    assert set(settings) == independent | {
        f"n=100 dependent {x}" for x in ("uniform", "easy", "medium", "hard")
    }
    for name, rows in settings.items():
        if name in independent:
            assert set(rows) - {"optimum"} == TABLE | {"gittins", "ts", "ots", "ucb1"} and all(
                "published" in rows[m] for m in TABLE
            )
        assert ("optimum" in rows) == (name.startswith("n=10 ") or name.endswith("uniform"))
        assert rows["rl2"]["hyperparameter"] in ("greedy", "sampled")
        for method, row in rows.items():
            regret = numbers["regret"][name].get(method)
            assert regret is None or all(x < y + 1e-9 for x, y in zip(regret, regret[1:]))
            assert row["mean"] <= rows.get("optimum", {"mean": 100})["mean"] + 4 * row["sem"]


def test_mdp_rows_are_complete(demo):
    models = {"psrl", "opsrl", "ucrl2", "beb", "egreedy", "greedy"}
    settings = by_method(demo("rl2_mdps")[0]["rows"])
    assert set(settings) == {"n=10", "n=25"}
    for rows in settings.values():
        assert set(rows) == TABLE | models | {m + " true prior" for m in models} | {"optimum"}
        for method, row in rows.items():
            assert row["mean"] <= rows["optimum"]["mean"] + 4 * (
                row["sem"] + rows["optimum"]["sem"]
            )
            assert method == "optimum" or sum(row["episode"]) == pytest.approx(row["mean"])


def test_gridworld_trials_stay_below_their_bounds(demo):
    numbers = demo("rl2_gridworld")[0]
    settings = by_method(numbers["rows"])
    assert list(settings) == ["episode 1", "episode 2", "episode 3"]
    for name, rows in settings.items():
        assert set(rows) == {"rl2", "posterior_sampling", "posterior_mean", "optimum"}
        for method, row in rows.items():
            bound = (
                numbers["bound"]
                if name == "episode 1" and method != "optimum"
                else rows["optimum"]["mean"]
            )
            assert row["mean"] <= bound + 4 * row["sem"] + 1e-9


@pytest.mark.parametrize(
    "name, one",
    [("rl2_bandits", ("--pulls", "4", "--arms", "3")), ("rl2_mdps", ("--episodes", "2"))],
)
def test_weights_are_trained_and_then_evaluated(name, one, demo, tmp_path):
    numbers = demo(name, "--train", "--weights", str(tmp_path), *one)[0]
    assert [row["weights"] for row in numbers["trained"]] == [
        str(p) for p in tmp_path.glob("*.npz")
    ]
    assert {
        row["method"] for row in demo(name, "--weights", str(tmp_path), *one)[0]["rows"]
    } >= TABLE
    for options, message in (
        (("--weights", tmp_path / "none", *one), f"make it by `python demos/{name}.py --train "),
        (("--train",), "would replace the trained weights"),
    ):
        command = [sys.executable, ROOT / "demos" / f"{name}.py", "--quick", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def interrupted(ready, *command):
    """Start a demo in a group of processes of its own, press Ctrl-C once `ready` is true: its exit
    status, and what it said. (What is started in the background by a shell inherits that it ignores
    Ctrl-C.)
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
    assert time.perf_counter() - started < 10 and output == ""
    return demo.returncode, errors


def test_training_of_weights_goes_on_after_ctrl_c(tmp_path):
    def command(name):
        return [
            "demos/rl2_bandits.py",
            *"--train --quick --pulls 4 --arms 3 --iterations 60 --weights".split(),
            tmp_path / name,
        ]

    subprocess.run(
        [sys.executable, *command("undisturbed")],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    again = [*command("in parts"), "--checkpoint", tmp_path / "folder" / "run.npz"]
    file = tmp_path / "folder" / "run-bandits_n4_k3-0.npz"
    status, errors = interrupted(file.exists, *again)
    assert (
        status == 130 and errors == f"interrupted; to go on: python {shlex.join(map(str, again))}\n"
    )
    assert 9 <= checkpoint.load(file, "training")["iteration"] < 59
    done = subprocess.run(
        [sys.executable, *again], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 0 and checkpoint.load(file, "training")["iteration"] == 59
    ), done.stderr
    tasks = independent(np.random.default_rng(0), 1, 3)
    files = [tmp_path / name / "bandits_n4_k3.npz" for name in ("undisturbed", "in parts")]
    (whole, _), (parts, facts) = (_common.load_weights(file, tasks)[1:] for file in files)
    assert whole.tobytes() == parts.tobytes() and str(tmp_path) not in facts["command"]
    other = subprocess.run(
        [sys.executable, *again, "--seed", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.returncode == 1 and other.stderr.endswith(f"{file}: made with seed = 0, not 1\n")


def test_meta_training_goes_on_after_ctrl_c(tmp_path, demo):
    file = tmp_path / "run.npz"
    command = ["demos/maml_gridworld.py", "--checkpoint", tmp_path / "run.npz"]
    status, errors = interrupted((tmp_path / "run-edges1-maml.npz").exists, *command)
    assert (
        status == 130
        and errors == f"interrupted; to go on: python {shlex.join(map(str, command))}\n"
    )
    for left in tmp_path.glob("*.npz"):
        assert checkpoint.load(left, "training")["iteration"] < 799
        left.unlink()
    # the last one trains nothing
    numbers = [
        {k: v for k, v in demo("maml_gridworld", *options)[0].items() if k != "seconds"}
        for options in ((), ("--checkpoint", str(file)), ("--checkpoint", str(file), "--seed", "0"))
    ]
    assert numbers[0] == numbers[1] == numbers[2] and len(list(tmp_path.glob("*.npz"))) == 8


def test_ctrl_c_without_a_checkpoint_is_one_line():
    before = time.perf_counter()
    assert interrupted(lambda: time.perf_counter() > before + 3, "demos/maml_gridworld.py") == (
        130,
        "interrupted\n",
    )


def test_training_tuning_and_test_never_share_a_stream(monkeypatch):
    """Mistake 12: no test task may be one that training or tuning saw; and each stage of training
    starts from the last one's θ.
    """
    keys = []
    real = np.random.default_rng
    seen = []
    monkeypatch.setattr(np.random, "default_rng", lambda key=None: (keys.append(key), real(key))[1])
    settings = dict(units=4, memory=2, trials=8, iterations=1, minibatches=1, step_size=1e-9)

    def tasks(rng, n):
        return independent(rng, n, 2)

    def train(stages):
        return _common.train_rl2(tasks, 3, settings | dict(then=[{}] * stages), 5)[1]

    one = train(0)
    three = train(2)
    np.testing.assert_allclose(one, three, atol=1e-6)
    training = {key[:2] for key in keys if isinstance(key, tuple)}
    keys.clear()

    def play(rng, mdps, value):
        seen.append(mdps.expected_rewards.copy())
        return np.full((2, len(mdps)), float(value)) + np.arange(len(mdps)) % 2

    result = _common.measure(
        tasks, play, (1, 2), lambda mdps: np.ones(len(mdps)), 5, n_tuning=6, n_test=10, chunk=5
    )
    tuning, test = (key for key in keys if isinstance(key, tuple))
    assert training == {(5, 1)} and tuning == (5, 2) and test == (5, 3)
    assert not set(np.concatenate(seen[:2]).ravel()) & set(np.concatenate(seen[2:]).ravel())
    assert result["value"] == 2 and result["tasks"] == 10 and len(seen) == 4
    # totals 4 and 6: 4, 6, 4, 6, 4 twice
    assert result["mean"] == pytest.approx(4.8) and result["sem"] == pytest.approx(
        np.sqrt(0.96 / 10)
    )


def test_stages_apply_their_changes():
    settings = dict(units=4, memory=2, trials=8, iterations=1, minibatches=1, step_size=1e-9)
    changed = _common.train_rl2(
        lambda rng, n: independent(rng, n, 2), 3, settings | dict(then=[dict(step_size=0.1)]), 5
    )[1]
    start = RecurrentPolicy(1, 2, 4).init(np.random.default_rng((5, 1)), memory=2)
    assert abs(changed - start).max() > 0.05


def test_published_tables_are_the_same_in_demos_and_tests():
    names = ("random", "gittins", "ts", "ots", "ucb1", "egreedy", "greedy")
    for (pulls, arms), row in PUBLISHED.items():
        assert dict(zip(names, BANDIT_TABLE[pulls, arms])) == row
    names = ("random", "psrl", "opsrl", "ucrl2", "beb", "egreedy", "greedy")
    for n, row in PUBLISHED_MDPS.items():
        assert dict(zip(names, MDP_TABLE[n])) == row
