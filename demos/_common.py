"""What the demos share: options, one line of progress, the last line as JSON; and for RL² its
training, its weights, and how any method is tuned and measured."""

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

# A recurrent step's matrices are small: BLAS's own threads would halve its speed.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# What is freed stays with the process, since to fetch a page again costs more than to fill it:
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3).
if os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt"):
    for option, size in ((-1, 2**31 - 1), (-3, 2**25)):
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
# streams of random numbers, default_rng((seed, TUNING)) for one: no training sees what is tuned
# or tested on
TRAINING = 1
TUNING = 2
TEST = 3


class Parser(argparse.ArgumentParser):
    """Strict with a demo's own command line.

    Of any other, as a notebook's kernel or an editor has it, it takes what it knows: there
    `sys.argv += ["--quick"]` sets options.
    """

    def parse_args(self, args=None, namespace=None):
        """The options, as argparse gives them."""
        program = pathlib.Path(sys.argv[0])
        is_demo = program.is_file() and program.resolve().parent == FIGURES.parent
        if args is not None or is_demo:
            return super().parse_args(args, namespace)
        known, _ = self.parse_known_args(namespace=namespace)
        return known


def parser(claim, trains=False):
    """The options that every demo has, with its claim as the help text.

    --seed, --quick, --json, --out, and --checkpoint of one that trains.
    """
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
    temporary = pathlib.Path(tempfile.gettempdir()) / "metarl_np"
    p.add_argument(
        "--out",
        type=pathlib.Path,
        default=temporary if "--quick" in sys.argv else FIGURES,
        help="folder for the pictures (default demos/figures; if quick a temporary one)",
    )
    if trains:
        p.add_argument(
            "--checkpoint",
            type=pathlib.Path,
            metavar="FILE.npz",
            help="keep the training there, in one file each with this name and more, "
            "and go on from what is there",
        )
    return p


def begin(main):
    """main(), which Ctrl-C ends with one line.

    Where there are checkpoints or results, it has the command that goes on from them.
    """
    try:
        main()
    except KeyboardInterrupt:
        kept = any(x.split("=")[0] in ("--checkpoint", "--folder") for x in sys.argv)
        going_on = f"; to go on: {shlex.join(['python', *sys.argv])}" if kept else ""
        clear = "\r\033[K" * sys.stderr.isatty()
        print(f"{clear}interrupted{going_on}", file=sys.stderr)
        sys.exit(130)


def workers():
    """A pool of two processes, which Ctrl-C ends at once, whatever they do.

    A checkpoint is whole at any instant. In a notebook, whose functions no other process can
    import, it is one thread.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        return multiprocessing.pool.ThreadPool(1)
    # they ignore Ctrl-C: leaving the pool's block, for any reason, ends them
    return multiprocessing.Pool(2, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def checkpointed(train, rng, theta, path, name, **configuration):
    """The records of train(rng, theta, state=…, first=…), kept in the file `path` with -name added.

    It goes on from there; nothing is kept if path is None.
    """
    if path is None:
        return train(rng, theta)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_stem(f"{path.stem}-{name}")
    return checkpoint.resumable(path, train, rng, theta, every=10, configuration=configuration)


class Progress:
    """One line that redraws in place on a terminal, and nothing when output is redirected."""

    def __init__(self):
        self.started = time.perf_counter()
        self.shown = 0.0

    @property
    def seconds(self):
        """Since it was made."""
        return time.perf_counter() - self.started

    def __call__(self, text):
        """Show this, but not more than ten times a second."""
        if sys.stdout.isatty() and self.seconds - self.shown > 0.1:
            self.shown = self.seconds
            print(f"\r\033[K{text}  ({self.seconds:.0f} s)", end="", flush=True)

    def done(self):
        """Clear the line."""
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
    """Refuse what would replace the weights in demos/weights by untrained ones.

    And checkpoints where nothing is trained.
    """
    if arguments.checkpoint and not arguments.train:
        p.error("--checkpoint goes with --train")
    if arguments.train and arguments.quick and arguments.weights.resolve() == WEIGHTS:
        p.error(
            "--train --quick would replace the trained weights by almost untrained ones: "
            "give another folder, --weights DIR"
        )


OF_TRAINING = ("units", "memory", "trials", "iterations", "then", "start")  # the rest is PPO's


def train_rl2(
    tasks, episodes, settings, seed, show=lambda text: None, start=None, path=None, name="rl2"
):
    """(policy, θ, mean return in the last iterations) of training on trials of n = `episodes`.

    tasks: (rng, N) → MDP. settings: units, memory, trials (N, a batch), iterations, what
    RecurrentPPO takes, and `then`, a list of changes of these: one more stage of training for each,
    which starts, with its full step size, from where the one before ended. show(text) is given
    progress. start: θ to start from. path: of checkpoints; what is in its files, one a stage, is
    not done again (and is not in the mean). What the loss counts are `rl2.regrets`, not sampled
    rewards; the policy sees the rewards and never the regrets.
    """
    task = tasks(np.random.default_rng(0), 1)
    policy = rl2.RecurrentPolicy(*task.shape[1:], settings["units"])
    theta = start
    returns = []
    for stage, change in enumerate([{}, *settings.get("then", [])]):
        now = settings | change
        rng = np.random.default_rng((seed, TRAINING, stage))
        theta = policy.init(rng, memory=now["memory"]) if theta is None else theta
        update = RecurrentPPO(**{key: now[key] for key in now if key not in OF_TRAINING})

        def sample_tasks(rng):
            return tasks(rng, now["trials"])

        def run(rng, theta, **on):
            sizes = dict(iterations=now["iterations"], episodes=episodes)
            return train_recurrent(rng, sample_tasks, policy, theta, update, **sizes, **on)

        facts = dict(seed=seed, episodes=episodes, **now)
        for record in checkpointed(run, rng, theta, path, f"{name}-{stage}", **facts):
            theta = record.theta
            returns.append(record.mean_return)
            where = f"stage {stage + 1}, iteration {record.iteration + 1}"
            show(f"{where}, mean return {np.mean(returns[-20:]):.3f}")
    return policy, theta, float(np.mean(returns[-20:]))


def make_weights(path, tasks, episodes, settings, arguments):
    """Train and write the weights, with the command, seed, seconds and settings that made them.

    A setting `start` names the weights, in the same folder, to start from. Returns a row of the
    JSON.
    """
    settings = shortened(settings, arguments)
    progress = Progress()
    demo = f"demos/{pathlib.Path(sys.argv[0]).name}"
    start = None
    if "start" in settings:
        task = tasks(np.random.default_rng(0), 1)
        before = path.with_stem(settings["start"])
        _, start, _ = read_weights(before, task, f"python {demo} --train")

    def show(text):
        progress(f"{path.stem}: {text}")

    how = dict(show=show, start=start, path=arguments.checkpoint, name=path.stem)
    policy, theta, mean = train_rl2(tasks, episodes, settings, arguments.seed, **how)
    progress.done()
    path.parent.mkdir(parents=True, exist_ok=True)
    options = []
    for previous, x in zip(sys.argv, sys.argv[1:]):
        if not {previous, x} & {"--weights", "--checkpoint"}:
            options.append(x)
    facts = dict(command=shlex.join(["python", demo, *options]), seed=arguments.seed)
    facts |= dict(seconds=progress.seconds, settings=repr(settings))
    save_weights(path, policy, theta, **facts)
    print(f"{path}: {progress.seconds:.0f} s, mean return in training {mean:.3f}", flush=True)
    row = dict(weights=str(path), seconds=progress.seconds)
    return row | dict(training_score=mean, settings=settings)


def shortened(settings, arguments):
    """The settings of a training, with --iterations and --quick."""
    settings = dict(settings)
    iterations = arguments.iterations or (3 if arguments.quick else None)
    if iterations:
        settings["iterations"] = iterations
        then = settings.get("then", [])
        settings["then"] = [dict(change, iterations=iterations) for change in then]
    if arguments.quick:
        settings["trials"] = 64
    return settings


def save_weights(path, policy, theta, **facts):
    """Write θ (P,), the policy's sizes, and any facts about how they were made, to one file."""
    sizes = [policy.n_states, policy.n_actions, policy.units]
    checkpoint.save(path, "weights", theta=theta, sizes=sizes, facts=facts)


def load_weights(path, mdps):
    """(policy, θ, facts) from `save_weights`, never unpickling.

    Raises ValueError, naming the file, if it is no such file or was made for tasks of another size.
    """
    found = checkpoint.load(path, "weights")
    try:
        policy = rl2.RecurrentPolicy(*found["sizes"])
        theta = found["theta"]
        facts = found["facts"]
        policy.net.split(theta)
        other = f"{theta.dtype}, where floating-point numbers are expected"
        require(theta.dtype.kind == "f", "theta", other)
    except Exception as error:  # entries of another making may be anything
        raise ValueError(f"{path}: not a file of trained weights ({error})") from error
    sizes = policy.n_states, policy.n_actions
    other = f"weights for S, A = {sizes}, where the tasks have {mdps.shape[1:]}"
    require(sizes == mdps.shape[1:], str(path), other)
    return policy, theta, facts


def read_weights(path, mdps, command):
    """(policy, θ, facts), or a message and the end: with the command that makes a missing file."""
    try:
        return load_weights(path, mdps)
    except FileNotFoundError:
        elsewhere = path.parent.resolve() != WEIGHTS
        command += f" --weights {path.parent}" if elsewhere else ""
        sys.exit(f"{path}: there is no such file of trained weights; make it by `{command}`")
    except ValueError as error:
        sys.exit(str(error))


# ---- any method: tuned on tuning tasks, measured on test tasks that no training and no tuning saw


def measure(tasks, play, grid, best, seed, *, n_tuning, n_test, chunk=4096):
    """Tune and test one method; every method is given the same tasks.

    tasks: (rng, N) → MDP. play: (rng, MDP, value) → what is earned in each of n episodes (n, N),
    `value` being from `grid`. best: MDP → (N,), what an episode earns when the task is known.
    Returns a dictionary: value; tuning, {value: mean total}; mean and sem of the total; episode,
    (n,) means; tasks, their number; best and best_sem of n episodes.
    """
    value = grid[0]
    tuning = {}
    if len(grid) > 1:

        def play_tuning_tasks(rng, value):
            return play(rng, tasks(rng, n_tuning), value)

        value, tuning = tune(np.random.default_rng((seed, TUNING)), play_tuning_tasks, grid)
    task_rng, rng = np.random.default_rng((seed, TEST)).spawn(2)
    totals = []
    bests = []
    episode = 0.0
    for start in range(0, n_test, chunk):
        mdps = tasks(task_rng, min(chunk, n_test - start))
        earned = play(rng, mdps, value)
        totals.append(earned.sum(0))
        bests.append(best(mdps) * len(earned))
        episode = episode + earned.sum(1) / n_test
    mean, sem = mean_and_sem(np.concatenate(totals))
    best_mean, best_sem = mean_and_sem(np.concatenate(bests))
    found = dict(value=value, tuning=tuning, mean=mean, sem=sem, best=best_mean, best_sem=best_sem)
    return found | dict(episode=episode.tolist(), tasks=n_test)


def mean_and_sem(x):
    """Mean and standard error of x (N,), two numbers."""
    return float(x.mean()), float(x.std() / np.sqrt(len(x)))


def number(mean, sem):
    """6.6441 ± 0.0031 as 6.644±.003, with one to three decimals."""
    digits = int(np.clip(np.ceil(-np.log10(max(sem, 1e-9))), 1, 3))
    error = f"±{sem:.{digits}f}".replace("±0.", "±.") if sem else ""
    return f"{mean:.{digits}f}{error}"


def tuning_of_rl2(rows):
    """Lines on how RL² acts: its mean total on tuning tasks, likeliest action or sampled."""
    lines = ["RL² takes its likeliest action (greedy) or samples, as was better on tuning tasks:"]
    for r in rows:
        if r["method"] == "rl2":
            greedy, sampled = r["tuning"]["greedy"], r["tuning"]["sampled"]
            lines.append(f"  {r['setting']}: {greedy:.3f}, {sampled:.3f}")
    return "\n".join(lines)
