"""What every demo shares: its options, one line of progress, the last line as JSON; and for RL² its training and its weights."""

import argparse
import ctypes
import json
import multiprocessing.pool
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import time

if (
    "numpy" not in sys.modules
):  # a recurrent step's matrices are small: BLAS's own threads would halve its speed
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if os.name == "posix" and hasattr(
    ctypes.CDLL(None), "mallopt"
):  # what is freed stays with the process: to fetch a page again costs more
    for option, size in (
        (-1, 2**31 - 1),
        (-3, 2**25),
    ):  # than to fill it. M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
        ctypes.CDLL(None).mallopt(option, size)

import matplotlib
import numpy as np

from metarl_np import checkpoint, rl2
from metarl_np.arguments import require
from metarl_np.compare.strategies import tune
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent

matplotlib.use("Agg")  # pictures go to files; no window is needed
FIGURES = pathlib.Path(__file__).resolve().parent / "figures"
WEIGHTS = FIGURES.parent / "weights"
TRAINING = 1
TUNING = 2
TEST = 3  # what is tuned or tested is drawn from default_rng((seed, TUNING)) or (…, TEST), which no training sees


class Parser(argparse.ArgumentParser):
    """Strict with a demo's own command line; of any other, as a notebook's kernel or an editor has it, it takes what it knows: there
    `sys.argv += ["--quick"]` sets options."""

    def parse_args(self, args=None, namespace=None):
        program = pathlib.Path(sys.argv[0])
        own = args is not None or program.is_file() and program.resolve().parent == FIGURES.parent
        return (
            super().parse_args(args, namespace)
            if own
            else self.parse_known_args(namespace=namespace)[0]
        )


def parser(claim, trains=False):
    """--seed, --quick, --json, --out, and --checkpoint of a demo that trains, with the demo's claim as the help text."""
    p = Parser(
        description=claim, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument(
        "--seed", type=int, default=0, help="all random numbers follow from it (default 0)"
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="seconds instead of the whole job: shows that it runs, proves nothing",
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="the last line of output is one JSON object with every number printed",
    )
    folder = pathlib.Path(tempfile.gettempdir()) / "metarl_np" if "--quick" in sys.argv else FIGURES
    p.add_argument(
        "--out",
        type=pathlib.Path,
        default=folder,
        help="folder for the pictures (default demos/figures; if quick a temporary one)",
    )
    if trains:
        p.add_argument(
            "--checkpoint",
            type=pathlib.Path,
            metavar="FILE.npz",
            help="keep the training there, in one file each with this name and more, and go on from what is there",
        )
    return p


def begin(main):
    """main(), which Ctrl-C ends with one line: where there are checkpoints or results, with the command that goes on from them."""
    try:
        main()
    except KeyboardInterrupt:
        kept = any(x.split("=")[0] in ("--checkpoint", "--folder") for x in sys.argv)
        going_on = f"; to go on: {shlex.join(['python', *sys.argv])}" if kept else ""
        print("\r\033[K" * sys.stderr.isatty() + "interrupted" + going_on, file=sys.stderr)
        sys.exit(130)


def workers():
    """Two processes, which Ctrl-C ends at once, whatever they do: a checkpoint is whole at any instant. In a notebook, whose functions no
    other process can import, one thread."""
    if not hasattr(sys.modules["__main__"], "__file__"):
        return multiprocessing.pool.ThreadPool(1)
    return multiprocessing.Pool(
        2, signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )  # leaving its block, for any reason, ends them


def checkpointed(train, rng, theta, path, name, **configuration):
    """The records of train(rng, theta, state=…, first=…), going on from the file `path` with -name added, unless it is None."""
    if path is None:
        return train(rng, theta)
    path.parent.mkdir(parents=True, exist_ok=True)
    return checkpoint.resumable(
        path.with_stem(f"{path.stem}-{name}"),
        train,
        rng,
        theta,
        every=10,
        configuration=configuration,
    )


class Progress:
    """One line that redraws in place on a terminal, and nothing when output is redirected."""

    def __init__(self):
        self.started, self.shown = time.perf_counter(), 0.0

    @property
    def seconds(self):
        return time.perf_counter() - self.started

    def __call__(self, text):
        if sys.stdout.isatty() and self.seconds - self.shown > 0.1:
            self.shown = self.seconds
            print(f"\r\033[K{text}  ({self.seconds:.0f} s)", end="", flush=True)

    def done(self):
        if sys.stdout.isatty():
            print("\r\033[K", end="")


def finish(arguments, numbers, pictures):
    """Name the pictures; with --json, print the numbers as the last line."""
    for picture in pictures:
        print("picture:", picture)
    if arguments.json:
        print(json.dumps(numbers))


# ---- RL²: training from a dictionary of settings, and files of trained weights


def positive(text):
    """A whole number of at least 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def rl2_parser(claim):
    """`parser` with --train, --iterations and --weights."""
    p = parser(claim, trains=True)
    p.add_argument(
        "--train",
        action="store_true",
        help="train from scratch and write the weights, instead of evaluating",
    )
    p.add_argument("--iterations", type=positive, help="of the training, instead of the setting's")
    p.add_argument(
        "--weights",
        type=pathlib.Path,
        default=WEIGHTS,
        help="folder of the trained weights (default demos/weights)",
    )
    return p


def check_options(p, arguments):
    """Refuse what would replace the weights in demos/weights by untrained ones, and checkpoints where nothing is trained."""
    if arguments.checkpoint and not arguments.train:
        p.error("--checkpoint goes with --train")
    if arguments.train and arguments.quick and arguments.weights.resolve() == WEIGHTS:
        p.error(
            "--train --quick would replace the trained weights by almost untrained ones: give another folder, --weights DIR"
        )


def train_rl2(
    tasks, episodes, settings, seed, show=lambda text: None, start=None, path=None, name="rl2"
):
    """Train on trials of n episodes in tasks(rng, N) → MDP, from θ = start if given: (policy, θ, mean score of the last iterations). With
    `path`, of checkpoints, what is in its files, one a stage, is not done again (and is not in the mean).

    settings: units, memory, trials (N, a batch), iterations, what `PPO` takes, and `then`, a list of changes of these: one more stage of
    training for each, which starts, with its full step size, from where the one before ended. show(text) is given progress. What the loss
    counts are `rl2.regrets`, not sampled rewards; the policy sees the rewards and never the regrets.
    """
    policy = rl2.RecurrentPolicy(*tasks(np.random.default_rng(0), 1).shape[1:], settings["units"])
    theta = start
    scores = []
    for stage, change in enumerate([{}, *settings.get("then", [])]):
        now = settings | change
        rng = np.random.default_rng((seed, TRAINING, stage))
        theta = policy.init(rng, memory=now["memory"]) if theta is None else theta
        update = RecurrentPPO(
            **{
                name: now[name]
                for name in now
                if name not in ("units", "memory", "trials", "iterations", "then", "start")
            }
        )

        def run(rng, theta, **on):
            return train_recurrent(
                rng,
                lambda rng: tasks(rng, now["trials"]),
                policy,
                theta,
                update,
                iterations=now["iterations"],
                episodes=episodes,
                **on,
            )

        for record in checkpointed(
            run, rng, theta, path, f"{name}-{stage}", seed=seed, episodes=episodes, **now
        ):
            theta = record.theta
            scores.append(record.mean_return)
            show(
                f"stage {stage + 1}, iteration {record.iteration + 1}, mean score {np.mean(scores[-20:]):.3f}"
            )
    return policy, theta, float(np.mean(scores[-20:]))


def make_weights(path, tasks, episodes, settings, arguments):
    """Train and write the weights, with the command, seed, seconds and settings that made them; returns a row of numbers about it. A
    setting `start` names the weights, in the same folder, to start from."""
    settings = dict(settings)
    iterations = arguments.iterations or (3 if arguments.quick else None)
    if iterations:
        settings |= dict(
            iterations=iterations,
            then=[dict(change, iterations=iterations) for change in settings.get("then", [])],
        )
    if arguments.quick:
        settings["trials"] = 64
    progress = Progress()
    before = settings.get("start")
    make = f"python demos/{pathlib.Path(sys.argv[0]).name} --train"
    start = (
        read_weights(path.with_stem(before), tasks(np.random.default_rng(0), 1), make)[1]
        if before
        else None
    )
    policy, theta, score = train_rl2(
        tasks,
        episodes,
        settings,
        arguments.seed,
        lambda text: progress(f"{path.stem}: {text}"),
        start,
        arguments.checkpoint,
        path.stem,
    )
    progress.done()
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [
        x
        for i, x in enumerate(sys.argv)
        if i and not {x, sys.argv[i - 1]} & {"--weights", "--checkpoint"}
    ]
    command = shlex.join(["python", f"demos/{pathlib.Path(sys.argv[0]).name}", *options])
    save_weights(
        path,
        policy,
        theta,
        command=command,
        seed=arguments.seed,
        seconds=progress.seconds,
        settings=repr(settings),
    )
    print(f"{path}: {progress.seconds:.0f} s, mean score in training {score:.3f}", flush=True)
    return dict(
        weights=str(path), seconds=progress.seconds, training_score=score, settings=settings
    )


def save_weights(path, policy, theta, **facts):
    """Write θ (P,), the policy's sizes and any facts about their making to one file, as `checkpoint.save` does."""
    checkpoint.save(
        path,
        "weights",
        theta=theta,
        sizes=[policy.n_states, policy.n_actions, policy.units],
        facts=facts,
    )


def load_weights(path, mdps):
    """(policy, θ, facts) from `save_weights`, never unpickling. Raises ValueError, naming the file, if it is no such file or was made for
    tasks of another size."""
    found = checkpoint.load(path, "weights")
    try:
        policy = rl2.RecurrentPolicy(*found["sizes"])
        theta = found["theta"]
        facts = found["facts"]
        policy.net.split(theta)
        require(
            theta.dtype.kind == "f",
            "theta",
            f"{theta.dtype}, where floating-point numbers are expected",
        )
    except Exception as error:  # entries of another making may be anything
        raise ValueError(f"{path}: not a file of trained weights ({error})") from error
    sizes = policy.n_states, policy.n_actions
    require(
        sizes == mdps.shape[1:],
        str(path),
        f"weights for S, A = {sizes}, where the tasks have {mdps.shape[1:]}",
    )
    return policy, theta, facts


def read_weights(path, mdps, command):
    """(policy, θ, facts), or a message and the end: with the command that makes the file where there is none."""
    try:
        return load_weights(path, mdps)
    except FileNotFoundError:
        command += "" if path.parent.resolve() == WEIGHTS else f" --weights {path.parent}"
        sys.exit(f"{path}: there is no such file of trained weights; make it by `{command}`")
    except ValueError as error:
        sys.exit(str(error))


# ---- any method: tuned on tuning tasks, measured on test tasks that no training and no tuning saw


def measure(tasks, play, grid, best, seed, *, n_tuning, n_test, chunk=4096):
    """Tune and test one method; every method is given the same tasks. tasks(rng, N) → MDP; play(rng, MDP, value) → scores (n, N) of n
    episodes, `value` being from `grid`; best(MDP) → (N,), an episode's score when the task is known.
    {value, tuning: {value: mean total}, mean and sem of the total, episode: (n,) means, best: mean and best_sem}.
    """
    value, tuning = (
        (grid[0], {})
        if len(grid) == 1
        else tune(
            np.random.default_rng((seed, TUNING)),
            lambda rng, value: play(rng, tasks(rng, n_tuning), value),
            grid,
        )
    )
    task_rng, rng = np.random.default_rng((seed, TEST)).spawn(2)
    totals = []
    bests = []
    episode = 0.0
    for start in range(0, n_test, chunk):
        mdps = tasks(task_rng, min(chunk, n_test - start))
        scores = play(rng, mdps, value)
        totals.append(scores.sum(0))
        bests.append(best(mdps) * len(scores))
        episode = episode + scores.sum(1) / n_test
    (mean, sem), (best_mean, best_sem) = (
        (x.mean(), x.std() / np.sqrt(n_test)) for x in map(np.concatenate, (totals, bests))
    )
    return dict(
        value=value,
        tuning=tuning,
        mean=float(mean),
        sem=float(sem),
        episode=episode.tolist(),
        tasks=n_test,
        best=float(best_mean),
        best_sem=float(best_sem),
    )


def number(mean, sem):
    """6.6441 ± 0.0031 as 6.644±.003, with one to three decimals."""
    digits = int(np.clip(np.ceil(-np.log10(max(sem, 1e-9))), 1, 3))
    return f"{mean:.{digits}f}" + (f"±{sem:.{digits}f}".replace("±0.", "±.") if sem else "")


def tuning_of_rl2(rows):
    """Lines on how RL² acts: its mean total on tuning tasks, by the likeliest action and by sampling."""
    shown = [
        f"{r['setting']}: {r['tuning']['greedy']:.3f}, {r['tuning']['sampled']:.3f}"
        for r in rows
        if r["method"] == "rl2"
    ]
    return (
        "RL² takes its likeliest action (greedy) or samples, as was better on tuning tasks:\n  "
        + "\n  ".join(shown)
    )
