import pathlib
import sys

import numpy as np
import pytest

sys.path.append(
    str(pathlib.Path(__file__).parents[1] / "demos")
)  # what a demo defines is tested too


@pytest.fixture(autouse=True)
def _seed_numpy():
    """autograd's check_grads draws from numpy's global state."""
    np.random.seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)
