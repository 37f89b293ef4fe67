"""What the demos share: options, one line of progress, the last line as JSON.

And for RL²: training from a dictionary of settings, and files of trained weights.
"""

import argparse
import codecs
import ctypes
import errno
import json
import multiprocessing
import multiprocessing.pool
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

# The matrices of a recurrent step are small: threads of BLAS would halve its speed. NumPy reads
# this when it is imported, so a demo imports this module before it imports numpy.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Memory that is freed stays with the process: to get a page from the system again costs more than
# to fill it. These are options of glibc's mallopt(3): nothing is given back, and large arrays, too,
# are taken from the heap, where otherwise each of them is mapped anew.
if os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt"):
    M_TRIM_THRESHOLD = -1
    M_MMAP_MAX = -4
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)

# Pictures go to files; no window is needed. A notebook's shell names a backend here that may not be
# installed where the demo runs, and then matplotlib refuses to be imported.
if "matplotlib" not in sys.modules:
    os.environ["MPLBACKEND"] = "Agg"

import matplotlib
import numpy as np

from metarl_np import checkpoint, rl2
from metarl_np.arguments import require
from metarl_np.meta.rl2_training import RecurrentPPO, train_recurrent

# where a notebook has imported it before
matplotlib.use("Agg")
DEMOS = pathlib.Path(__file__).resolve().parent
FIGURES = DEMOS / "figures"
WEIGHTS = DEMOS / "weights"
# What is tuned or tested is drawn from default_rng((seed, TUNING)) or default_rng((seed, TEST)),
# and what a whole family is like from (seed, FAMILY). No training sees those: it draws from
# (seed, TRAINING, stage).
TRAINING = 1
TUNING = 2
TEST = 3
FAMILY = 4
# what clears the line of a terminal that the cursor is on
CLEAR = "\r\033[K"


# ---- the command line


class Parser(argparse.ArgumentParser):
    """Strict with the command line of a demo. Of any other it takes what it knows.

    A notebook's kernel and some editors have a command line of their own. There,
    `sys.argv += ["--quick"]` sets options.

    rules: functions of the parsed options. Each gives what is wrong with them together, or None.
    places: {name of an option: function of its path and of all options, which raises OSError if the
        path cannot be used}.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.rules = []
        self.places = {}

    def parse_args(self, args=None, namespace=None):
        """The options. What cannot be used together or written to ends the program in one line."""
        program = pathlib.Path(sys.argv[0])
        is_a_demo = program.is_file() and program.resolve().parent == DEMOS
        if args is not None or is_a_demo:
            arguments = super().parse_args(args, namespace)
        else:
            arguments, _ = self.parse_known_args(namespace=namespace)
        for rule in self.rules:
            wrong = rule(arguments)
            if wrong:
                self.error(wrong)
        # last, since it makes folders
        for name, require_place in self.places.items():
            path = getattr(arguments, name)
            try:
                if path is not None:
                    require_place(path, arguments)
            except OSError as error:
                option = name.replace("_", "-")
                self.error(f"argument --{option}: {str(path)!r:.300}: {error.strerror}")
        return arguments

    def goes_with(self, option, other, value=None):
        """Refuse an option that would do nothing, since the other is not given, or not as value."""

        def rule(arguments):
            found = getattr(arguments, dest(other))
            useful = found == value if value else found
            if getattr(arguments, dest(option)) is not None and not useful:
                return " ".join(filter(None, [f"{option} goes with {other}", value]))

        self.rules.append(rule)


def dest(option):
    """The attribute that argparse gives to an option: --peers-python is peers_python."""
    return option.removeprefix("--").replace("-", "_")


def parser(claim, trains=False):
    """The options that every demo has, with the demo's claim as the help text.

    --seed, --quick, --json, --out; and --checkpoint if the demo trains.
    """
    p = Parser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--seed",
        type=at_least_0,
        default=0,
        metavar="N",
        help="a whole number of at least 0, from which all random numbers follow (default 0)",
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
        type=some_path,
        default=temporary if "--quick" in sys.argv else FIGURES,
        metavar="DIR",
        help="folder for the pictures (default demos/figures; if quick a temporary one)",
    )
    p.places["out"] = require_folder
    if trains:
        p.add_argument(
            "--checkpoint",
            type=some_path,
            metavar="FILE.npz",
            help="keep the training in files whose names begin with this one, and go on from what "
            "is there (default: nothing is kept)",
        )
        p.places["checkpoint"] = require_file
    return p


# ---- what an option may be, for argparse: it names the option


def at_least_0(text):
    """A whole number of at least 0, of any size."""
    return whole_number(text, 0)


def at_least_1(text):
    """A whole number of at least 1."""
    return whole_number(text, 1)


def whole_number(text, least):
    """The number that is written there."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r:.99} is no whole number of at least {least}")
    return number


def some_text(text):
    """What is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def some_path(text):
    """A path that is not empty: pathlib takes '' for the folder that one is in."""
    return pathlib.Path(some_text(text))


def require_folder(path, arguments):
    """Make the folder if it is not there; OSError unless files can be written into it."""
    path.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path).close()


def require_file(path, arguments):
    """OSError unless files can be written whose names begin with this one; makes their folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder, where a file is meant")
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name).close()


# ---- the job


class Unusable(Exception):
    """A file that the command line names cannot be used; the message begins with its path."""


@contextmanager
def files_of(path):
    """Inside, an error whose message begins with this path (None: no path) becomes Unusable."""
    try:
        yield
    except (ValueError, OSError) as error:
        if path is None or not str(error).startswith(str(path)):
            raise
        raise Unusable(str(error)) from error


def begin(main):
    """Call main(), which Ctrl-C, kill, or a file that cannot be used end with one line.

    Where there are checkpoints or results to go on from, the line tells the command.
    """
    make_printable()
    # what kill sends ends worker processes too, as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except Unusable as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        message = "interrupted"
        words = typed()
        if "--checkpoint" in words or "--folder" in words:
            message += f"; to go on: {command(*words)}"
        print(CLEAR * sys.stderr.isatty() + message, file=sys.stderr)
        sys.exit(130)


# how a sign is written where an encoding lacks it
SPELLED = {
    "∇": "grad ",
    "√": "sqrt ",
    "∞": "inf",
    "−": "-",
    "–": "-",
    "…": "...",
    "±": "+-",
    "×": "x",
    "·": "*",
    "²": "^2",
    "↑": "^",
    "↓": "v",
    "←": "<",
    "→": ">",
    "≤": "<=",
    "≥": ">=",
    "α": "alpha",
    "γ": "gamma",
    "ε": "eps",
    "θ": "theta",
    "λ": "lambda",
    "π": "pi",
}


def spell(error):
    """For `codecs.register_error`: signs that an encoding lacks, in letters that it has."""
    unknown = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign, "?") for sign in unknown), error.end


def make_printable():
    """Output in any encoding: what it lacks (cp1252 on Windows lacks ∇) is spelled."""
    codecs.register_error("spell", spell)
    for stream in (sys.stdout, sys.stderr):
        # a notebook's streams take every sign
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spell")


# options whose value is a path
PATHS = ("--out", "--checkpoint", "--weights", "--folder", "--peers")


def typed():
    """The words of the command line after the program's name, `--option=value` as two of them."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        is_pair = option.startswith("--") and equals
        words += [option, value] if is_pair else [word]
    return words


def command(*words):
    """The command of this demo with these words, to be pasted into a shell in any folder."""
    absolute = [sys.executable, str(DEMOS / pathlib.Path(sys.argv[0]).name)]
    last = None
    for word in words:
        absolute.append(os.path.abspath(word) if last in PATHS else word)
        last = word
    return for_the_shell(absolute)


def for_the_shell(words):
    """One line of a command, with quotes where the shell of this system needs them."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def leave_signals_to_main():
    """What a worker process begins with: Ctrl-C is the main process's, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def workers():
    """A pool of two processes; leaving its `with` block, for any reason, ends them at once.

    They may be in the middle of anything: a checkpoint is whole at any instant. No other process
    can import the functions of a notebook: there the pool is one thread.
    """
    if not hasattr(sys.modules["__main__"], "__file__"):
        return multiprocessing.pool.ThreadPool(1)
    return multiprocessing.Pool(2, leave_signals_to_main)


def checkpointed(train, rng, theta, path, name, **configuration):
    """The records of train(rng, theta, state=…, first=…), going on from a file if there is one.

    path: of the file, to which -name is added; None to keep nothing.
    configuration: what `checkpoint.resumable` compares with the file; Unusable if it differs.
    """
    if path is None:
        yield from train(rng, theta)
        return
    file = path.with_stem(f"{path.stem}-{name}")
    settings = dict(every=10, configuration=configuration)
    with files_of(file):
        yield from checkpoint.resumable(file, train, rng, theta, **settings)


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
            # a line that wraps could not be cleared; the terminal's width may have changed
            width = shutil.get_terminal_size().columns - 1
            print(CLEAR + f"{text}  ({self.seconds:.0f} s)"[:width], end="", flush=True)

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


def require_weights(path, arguments):
    """OSError unless the folder can be written to, or, where nothing is trained, is no file."""
    if arguments.train:
        require_folder(path, arguments)
    elif path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def rl2_parser(claim):
    """`parser` with --train, --iterations and --weights."""
    p = parser(claim, trains=True)
    p.add_argument(
        "--train",
        action="store_true",
        help="train from scratch and write the weights, instead of evaluating; no pictures",
    )
    p.add_argument(
        "--iterations",
        type=at_least_1,
        metavar="N",
        help="of every stage of the training (default: the setting's own)",
    )
    p.add_argument(
        "--weights",
        type=some_path,
        default=WEIGHTS,
        metavar="DIR",
        help="folder of the trained weights (default demos/weights)",
    )
    p.goes_with("--checkpoint", "--train")
    p.goes_with("--iterations", "--train")

    def keeps_good_weights(arguments):
        if arguments.train and arguments.quick and arguments.weights.resolve() == WEIGHTS:
            return (
                "--train --quick would replace the trained weights by almost untrained ones: give "
                "another folder, --weights DIR"
            )

    p.rules.append(keeps_good_weights)
    p.places["weights"] = require_weights
    return p


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
        _, start, _ = read_weights(before, one_of(tasks), *options_for(settings["start"]))
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
    save_weights(path, policy, theta, **made_by, settings=repr(settings))
    print(f"{path}: {seconds:.0f} s, mean score in training {score:.3f}", flush=True)
    return dict(weights=str(path), seconds=seconds, training_score=score, settings=settings)


def options_for(name):
    """The options by which --train makes weights: of bandits_n10_k50 --pulls 10 --arms 50."""
    options = dict(n="--pulls", k="--arms") if name.startswith("bandits") else dict(n="--episodes")
    found = re.findall(r"_([nk])(\d+)", name)
    return [word for size, number in found for word in (options[size], number)]


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
    options = []
    last = None
    for word in typed():
        if not {last, word} & set(PATHS):
            options.append(word)
        last = word
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


def read_weights(path, mdps, *sizes):
    """(policy, θ, facts) from `load_weights`; or a message, and the end of the program.

    sizes: options with which --train makes the file, should there be none: the message tells so.
    """
    try:
        return load_weights(path, mdps)
    except FileNotFoundError:
        folder = [] if path.parent.resolve() == WEIGHTS else ["--weights", str(path.parent)]
        again = command("--train", *sizes, *folder)
        sys.exit(f"{path}: there is no such file of trained weights; make it by\n{again}")
    except ValueError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")


def trained_policy(path, mdps, *sizes):
    """(policy, θ) from `read_weights`, with a printed line on what made them."""
    policy, theta, facts = read_weights(path, mdps, *sizes)
    made = f"{facts['seconds']:.0f} s by `{facts['command']}`, seed {facts['seed']}"
    print(f"{path.name}: {made}")
    return policy, theta
