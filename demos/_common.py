"""What the demos share: options, one line of progress, the last line as JSON.

And for RL²: training from a dictionary of settings, files of trained weights, and how a method is
tuned and measured.
"""

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

# The matrices of a recurrent step are small: threads of BLAS would halve its speed. NumPy reads
# this when it is imported, so a demo imports this module before it imports numpy.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Memory that is freed stays with the process: to get a page from the system again costs more than
# to fill it. These are options of glibc's mallopt(3).
if os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt"):
    M_TRIM_THRESHOLD = -1
    M_MMAP_THRESHOLD = -3
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**25)

import matplotlib
import numpy as np

from metarl_np import checkpoint, rl2
from metarl_np.arguments import require
from metarl_np.compare.strategies import tune
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent

# pictures go to files; no window is needed
matplotlib.use("Agg")
DEMOS = pathlib.Path(__file__).resolve().parent
FIGURES = DEMOS / "figures"
WEIGHTS = DEMOS / "weights"
# What is tuned or tested is drawn from default_rng((seed, TUNING)) or default_rng((seed, TEST)).
# No training sees those: it draws from (seed, TRAINING, stage).
TRAINING = 1
TUNING = 2
TEST = 3
# what clears the line of a terminal that the cursor is on
CLEAR = "\r\033[K"


# ---- the command line


class Parser(argparse.ArgumentParser):
    """Strict with the command line of a demo. Of any other it takes what it knows.

    A notebook's kernel and some editors have a command line of their own. There,
    `sys.argv += ["--quick"]` sets options.
    """

    def parse_args(self, args=None, namespace=None):
        program = pathlib.Path(sys.argv[0])
        is_a_demo = program.is_file() and program.resolve().parent == DEMOS
        if args is not None or is_a_demo:
            return super().parse_args(args, namespace)
        known, _ = self.parse_known_args(namespace=namespace)
        return known


def parser(claim, trains=False):
    """The options that every demo has, with the demo's claim as the help text.

    --seed, --quick, --json, --out; and --checkpoint if the demo trains.
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
            help="keep the training in files whose names begin with this one, and go on from what "
            "is there",
        )
    return p


# ---- the job


def begin(main):
    """Call main(), which Ctrl-C ends with one line.

    Where there are checkpoints or results to go on from, the line tells the command.
    """
    try:
        main()
    except KeyboardInterrupt:
        message = "interrupted"
        if any(x.split("=")[0] in ("--checkpoint", "--folder") for x in sys.argv):
            message += f"; to go on: {shlex.join(['python', *sys.argv])}"
        print(CLEAR * sys.stderr.isatty() + message, file=sys.stderr)
        sys.exit(130)


def workers():
    """A pool of two processes; leaving its `with` block, for any reason, ends them at once.

    They may be in the middle of anything: a checkpoint is whole at any instant. Ctrl-C is left to
    the main process. No other process can import the functions of a notebook: there the pool is
    one thread.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        return multiprocessing.pool.ThreadPool(1)
    return multiprocessing.Pool(2, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def checkpointed(train, rng, theta, path, name, **configuration):
    """The records of train(rng, theta, state=…, first=…), going on from a file if there is one.

    path: of the file, to which -name is added; None to keep nothing.
    configuration: what `checkpoint.resumable` compares with the file.
    """
    if path is None:
        return train(rng, theta)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_stem(f"{path.stem}-{name}")
    return checkpoint.resumable(file, train, rng, theta, every=10, configuration=configuration)


class Progress:
    """One line that redraws in place on a terminal, and nothing when output is redirected."""

    def __init__(self):
        self.started = time.perf_counter()
        self.shown = 0.0

    @property
    def seconds(self):
        """Since the start."""
        return time.perf_counter() - self.started

    def __call__(self, text):
        """Show the text, unless another one was shown within the last tenth of a second."""
        if sys.stdout.isatty() and self.seconds - self.shown > 0.1:
            self.shown = self.seconds
            print(f"{CLEAR}{text}  ({self.seconds:.0f} s)", end="", flush=True)

    def done(self):
        """Clear the line."""
        if sys.stdout.isatty():
            print(CLEAR, end="")


def finish(arguments, numbers, pictures):
    """Name the pictures (paths); with --json, print the numbers as the last line."""
    for picture in pictures:
        print("picture:", picture)
    if arguments.json:
        print(json.dumps(numbers))


# ---- RL²: its options


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
    """Refuse --checkpoint without --train, and --quick weights in place of the good ones."""
    if arguments.checkpoint and not arguments.train:
        p.error("--checkpoint goes with --train")
    if arguments.train and arguments.quick and arguments.weights.resolve() == WEIGHTS:
        p.error(
            "--train --quick would replace the trained weights by almost untrained ones: give "
            "another folder, --weights DIR"
        )


# ---- RL²: training from a dictionary of settings


# settings that are not options of `RecurrentPPO`
OF_THE_TRAINING = ("units", "memory", "trials", "iterations", "then", "start")


def train_rl2(
    tasks, episodes, settings, seed, show=lambda text: None, start=None, path=None, name="rl2"
):
    """(policy, θ, mean score of the last iterations) of RL², trained on trials of n episodes.

    The loss counts `rl2.regrets` and not sampled rewards. The policy sees the rewards and never
    the regrets.

    tasks: tasks(rng, N) gives an MDP of N tasks.
    episodes: n.
    settings: units, memory, trials (how many in a batch), iterations, options of `RecurrentPPO`;
        and `then`, a list of changes of these. Each change is one more stage of training, which
        starts from where the one before ended, with its full step size.
    show: a function that is given progress, a string.
    start: θ to start from; None for new parameters.
    path, name: of the checkpoints, one file a stage; None to keep nothing. What is in the files is
        not done again, and is not in the mean.
    """
    policy = rl2.RecurrentPolicy(*one_of(tasks).shape[1:], settings["units"])
    theta = start
    scores = []
    for stage, change in enumerate([{}, *settings.get("then", [])]):
        now = settings | change
        rng = np.random.default_rng((seed, TRAINING, stage))
        if theta is None:
            theta = policy.init(rng, memory=now["memory"])
        train = training_stage(tasks, episodes, policy, now)
        facts = dict(now, seed=seed, episodes=episodes)
        for record in checkpointed(train, rng, theta, path, f"{name}-{stage}", **facts):
            theta = record.theta
            scores.append(record.mean_return)
            score = np.mean(scores[-20:])
            show(f"stage {stage + 1}, iteration {record.iteration + 1}, mean score {score:.3f}")
    return policy, theta, float(np.mean(scores[-20:]))


def training_stage(tasks, episodes, policy, settings):
    """train(rng, theta, state=…, first=…), the generator of the records of one stage."""
    options = {name: x for name, x in settings.items() if name not in OF_THE_TRAINING}
    update = RecurrentPPO(**options)
    length = dict(iterations=settings["iterations"], episodes=episodes)

    def sample_tasks(rng):
        return tasks(rng, settings["trials"])

    def train(rng, theta, **going_on):
        return train_recurrent(rng, sample_tasks, policy, theta, update, **length, **going_on)

    return train


def one_of(tasks):
    """One task (an MDP with N = 1), from which the sizes of all are known."""
    return tasks(np.random.default_rng(0), 1)


# ---- RL²: files of trained weights


def make_weights(path, tasks, episodes, settings, arguments):
    """Train, and write the weights with the command, seed, seconds and settings that made them.

    Returns a row of numbers about it. A setting `start` names the weights, in the same folder, to
    start from.
    """
    settings = shortened(settings, arguments)
    program = f"demos/{pathlib.Path(sys.argv[0]).name}"
    start = None
    if "start" in settings:
        before = path.with_stem(settings["start"])
        _, start, _ = read_weights(before, one_of(tasks), f"python {program} --train")
    progress = Progress()
    policy, theta, score = train_rl2(
        tasks,
        episodes,
        settings,
        arguments.seed,
        show=lambda text: progress(f"{path.stem}: {text}"),
        start=start,
        path=arguments.checkpoint,
        name=path.stem,
    )
    progress.done()
    seconds = progress.seconds
    made_by = dict(command=command_line(program), seed=arguments.seed, seconds=seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, policy, theta, **made_by, settings=repr(settings))
    print(f"{path}: {seconds:.0f} s, mean score in training {score:.3f}", flush=True)
    return dict(weights=str(path), seconds=seconds, training_score=score, settings=settings)


def shortened(settings, arguments):
    """The settings, with the iterations that the command line asks for; very few if quick."""
    settings = dict(settings)
    iterations = arguments.iterations or (3 if arguments.quick else None)
    if iterations:
        settings["iterations"] = iterations
        settings["then"] = [
            dict(change, iterations=iterations) for change in settings.get("then", [])
        ]
    if arguments.quick:
        settings["trials"] = 64
    return settings


def command_line(program):
    """The command that is running, without the folders, which are this machine's own."""
    folders = {"--weights", "--checkpoint"}
    before = sys.argv[:-1]
    options = [x for last, x in zip(before, sys.argv[1:]) if not {last, x} & folders]
    return shlex.join(["python", program, *options])


def save_weights(path, policy, theta, **facts):
    """Write θ (P,), the sizes of its policy, and any facts about their making to one file."""
    sizes = [policy.n_states, policy.n_actions, policy.units]
    checkpoint.save(path, "weights", theta=theta, sizes=sizes, facts=facts)


def load_weights(path, mdps):
    """(policy, θ, facts) from `save_weights`; nothing is unpickled.

    ValueError names the file if it is no such file, or was made for tasks of another size than
    those of `mdps`.
    """
    found = checkpoint.load(path, "weights")
    try:
        policy = rl2.RecurrentPolicy(*found["sizes"])
        theta = found["theta"]
        facts = found["facts"]
        policy.net.split(theta)
        require(theta.dtype.kind == "f", "theta", f"{theta.dtype} are no floating-point numbers")
    # entries of another making may be anything
    except Exception as error:
        raise ValueError(f"{path}: not a file of trained weights ({error})") from error
    sizes = policy.n_states, policy.n_actions
    wanted = mdps.shape[1:]
    require(
        sizes == wanted, str(path), f"weights for S, A = {sizes}, where the tasks have {wanted}"
    )
    return policy, theta, facts


def read_weights(path, mdps, command):
    """(policy, θ, facts) from `load_weights`; or a message, and the end of the program.

    Where there is no file, the message tells the command that makes it.
    """
    try:
        return load_weights(path, mdps)
    except FileNotFoundError:
        if path.parent.resolve() != WEIGHTS:
            command += f" --weights {path.parent}"
        sys.exit(f"{path}: there is no such file of trained weights; make it by `{command}`")
    except ValueError as error:
        sys.exit(str(error))


# ---- any method: tuned on some tasks and measured on others, which no training saw


def measure(tasks, play, grid, best, seed, *, n_tuning, n_test, chunk=4096):
    """Tune one method, and test it. Every method is given the same tasks.

    tasks: tasks(rng, N) gives an MDP of N tasks.
    play: play(rng, mdps, value) gives the scores (n, N) of n episodes, `value` being from `grid`.
    grid: the values to tune; if there is only one, nothing is tuned.
    best: best(mdps) gives the score (N,) of an episode when the task is known.
    n_tuning, n_test: numbers of tasks; the test tasks are played `chunk` at a time.

    Returns {value; tuning: {value: mean total}; mean and sem of the total over tasks; episode: the
    means of the n episodes; tasks: their number; best and best_sem: the same of the best total}.
    """
    value = grid[0]
    tuning = {}
    if len(grid) > 1:

        def trial(rng, value):
            return play(rng, tasks(rng, n_tuning), value)

        value, tuning = tune(np.random.default_rng((seed, TUNING)), trial, grid)
    rng = np.random.default_rng((seed, TEST))
    task_rng = np.random.default_rng(rng.integers(2**64, size=2, dtype=np.uint64))
    totals = []
    bests = []
    episode = 0.0
    for first in range(0, n_test, chunk):
        mdps = tasks(task_rng, min(chunk, n_test - first))
        scores = play(rng, mdps, value)
        totals.append(scores.sum(0))
        bests.append(best(mdps) * len(scores))
        episode = episode + scores.sum(1) / n_test
    mean, sem = mean_and_error(np.concatenate(totals))
    best_mean, best_sem = mean_and_error(np.concatenate(bests))
    row = dict(value=value, tuning=tuning, mean=mean, sem=sem, episode=episode.tolist())
    return row | dict(tasks=n_test, best=best_mean, best_sem=best_sem)


def mean_and_error(totals):
    """Mean over tasks and its standard error: (N,) → two floats."""
    return float(totals.mean()), float(totals.std() / np.sqrt(len(totals)))


def number(mean, sem):
    """6.6441 ± 0.0031 as 6.644±.003, with one to three decimals."""
    digits = int(np.clip(np.ceil(-np.log10(max(sem, 1e-9))), 1, 3))
    text = f"{mean:.{digits}f}"
    if sem:
        text += f"±{sem:.{digits}f}".replace("±0.", "±.")
    return text


def tuning_of_rl2(rows):
    """Lines on how RL² acts: its mean total on tuning tasks, both ways, in each setting."""
    lines = ["RL² takes its likeliest action (greedy) or samples, as was better on tuning tasks:"]
    for row in rows:
        if row["method"] == "rl2":
            tuning = row["tuning"]
            lines.append(f"  {row['setting']}: {tuning['greedy']:.3f}, {tuning['sampled']:.3f}")
    return "\n".join(lines)
