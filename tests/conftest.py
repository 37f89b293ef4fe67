import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed_numpy():
    """autograd's check_grads draws from numpy's global state."""
    np.random.seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)
