"""What all tests share: the import path, the seed of autograd's check_grads, and `rng`."""

import pathlib
import sys

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "demos")]  # tests/helpers.py, and the demos


@pytest.fixture(autouse=True)
def _seed_numpy():
    """autograd's check_grads draws from numpy's global state."""
    np.random.seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)
