"""The package is a book: imports go down, from a chapter to those before it, and nothing else
than numpy, autograd and, for the pictures, matplotlib is imported."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "metarl_np"
BOOK = """
arguments
tasks.mdp tasks.gymnasium tasks.gridworld tasks.bandits tasks.random_mdps tasks.exact
learner.policies learner.alias learner.rollouts learner.returns learner.surrogates
learner.reinforce learner.optim learner.advantages learner.ppo learner.trpo
meta.maml meta.values meta.gru meta.rl2 meta.rl2_training meta.rl2_trpo
check.differences check.enumeration check.meta_gradients
check.records check.scores check.replays check.estimators check.verdict
check.advantages check.explanations check.diagnosis check.inputs check.clipped
compare.beliefs compare.priors compare.strategies compare.planners compare.bayes
runs.checkpoint runs.study
plots
""".split()
CHAPTERS = {section.split(".")[0] for section in BOOK if "." in section}


def section_of(path):
    """metarl_np/tasks/mdp.py → tasks.mdp."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    """(module, is it inside a function) of every import of a file; `from m import x` may be m.x."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                section = f"{node.module}.{alias.name}".removeprefix("metarl_np.")
                is_section = section in BOOK and node.module.startswith("metarl_np")
                yield f"metarl_np.{section}" if is_section else node.module, id(node) in inside


def test_every_file_has_its_place_in_the_book():
    files = {section_of(path) for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    assert files == set(BOOK)
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == CHAPTERS


@pytest.mark.parametrize("section", BOOK)
def test_imports_go_down(section):
    allowed = {"numpy", "autograd"} | set(sys.stdlib_module_names)
    allowed |= {"matplotlib"} if section == "plots" else set()
    before = BOOK[: BOOK.index(section)]
    for module, inside in imports(PACKAGE / f"{section.replace('.', '/')}.py"):
        assert not inside, f"{section} imports {module} inside a function"
        if module.startswith("metarl_np"):
            assert module.removeprefix("metarl_np.") in before, f"{section} imports {module}"
        else:
            assert module.split(".")[0] in allowed, f"{section} imports {module}"


@pytest.mark.parametrize("chapter", sorted(CHAPTERS))
def test_the_first_page_of_a_chapter_imports_its_own_sections_only(chapter):
    for module, _ in imports(PACKAGE / chapter / "__init__.py"):
        assert module.startswith(f"metarl_np.{chapter}.")


def test_every_section_but_plots_can_be_imported_by_its_name():
    import metarl_np

    for section in BOOK:
        assert section == "plots" or hasattr(metarl_np, section.split(".")[-1])
