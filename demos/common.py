"""What every demo shares: its options, one line of progress, and the last line as JSON."""

import argparse
import json
import pathlib
import sys
import time

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no window is needed
FIGURES = pathlib.Path(__file__).resolve().parent / "figures"


def parser(claim):
    """--seed, --quick, --json and --out, with the demo's claim as the help text."""
    p = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="all random numbers follow from it (default 0)")
    p.add_argument("--quick", action="store_true", help="seconds instead of the whole job: shows that it runs, proves nothing")
    p.add_argument("--json", action="store_true", help="the last line of output is one JSON object with every number printed")
    p.add_argument("--out", type=pathlib.Path, default=FIGURES, help="folder for the pictures (default demos/figures)")
    return p


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
