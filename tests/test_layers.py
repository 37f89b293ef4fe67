"""The tree is what the README says: imports go strictly downward, nothing else is imported, and it stays small enough to read."""

import ast
import pathlib
import sys

import pytest

MODULES = {p.stem: p for p in (pathlib.Path(__file__).parents[1] / "metarl_np").glob("*.py")}
LAYERS = {
    "arguments": -1,
    "__init__": 0,  # what everybody says to bad input
    "mdp": 0,
    "policies": 0,
    "returns": 0,
    "optim": 0,  # arrays and maths
    "checkpoint": 0,
    "study": 1,  # long runs
    "gridworld": 1,
    "random_mdps": 1,
    "bandits": 1,
    "rollouts": 1,  # tasks and experience
    "losses": 1,
    "exact": 1,  # gradients
    "updates": 2,
    "gru": 2,  # one learner
    "maml": 3,
    "rl2": 3,
    "rl2_training": 4,  # learning to learn
    "exact_meta": 4,
    "check": 5,  # is it right?
}


def imports(name):
    """(module, line is inside a function) of every import in a module."""
    tree = ast.parse(MODULES[name].read_text())
    inside = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for x in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "metarl_np"
                else [node.module]
            )
            yield from ((name, id(node) in inside) for name in names)


def test_every_module_has_a_layer():
    assert set(LAYERS) == set(MODULES)


@pytest.mark.parametrize("name", LAYERS)
def test_imports_go_strictly_downward(name):
    allowed = {"numpy", "autograd"} | set(sys.stdlib_module_names)
    for module, inside in imports(name):
        assert not inside, f"{name} imports {module} inside a function"
        first, *rest = module.split(".")
        if first == "metarl_np":
            assert LAYERS[rest[0]] < LAYERS[name], f"{name} imports {module}"
        else:
            assert first in allowed, f"{name} imports {module}"


