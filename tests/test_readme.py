"""What README.md and demos/README.md say is true: their Python runs, their names and pictures
exist, and the two commands that CI reads are one line each.
"""

import pathlib
import re

import pytest

import metarl_np

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {name: ROOT / name for name in ("README.md", "demos/README.md")}
FRONT = PAGES["README.md"].read_text(encoding="utf8")


def python_blocks():
    """(page and number, code) of each block of Python."""
    for name, path in PAGES.items():
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf8"), re.S)
        for i, block in enumerate(blocks):
            yield pytest.param(block, id=f"{name} {i}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_the_python_runs_and_prints(block, capsys):
    exec(compile(block, "a block of Python", "exec"), {})
    assert capsys.readouterr().out


def test_names_in_the_map_exist():
    table = FRONT.split("## From equation to function")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z_0-9]+\.[A-Za-z_.0-9]+)`", table)
    assert len(names) > 50
    for name in names:
        thing = metarl_np
        for attribute in name.split("."):
            thing = getattr(thing, attribute)


def test_the_table_of_contents_names_every_section():
    table = FRONT.split("## The package, chapter by chapter")[1].split("\n## ")[0]
    sections = {path.stem for path in (ROOT / "metarl_np").glob("*/*.py")} - {"__init__"}
    assert sections <= set(re.findall(r"`([a-z_0-9]+)`", table))


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_links_exist(name):
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf8")):
        assert (page.parent / target).is_file(), target


def test_the_page_of_demos_has_a_section_for_each():
    page = PAGES["demos/README.md"].read_text(encoding="utf8")
    for demo in (ROOT / "demos").glob("*.py"):
        assert demo.stem.startswith("_") or f"\n## {demo.name}\n" in page


def test_the_first_two_shell_blocks_are_one_line_each():
    blocks = re.findall(r"```sh\n(.*?)```", FRONT, re.S)[:2]
    assert len(blocks) == 2
    for block in blocks:
        assert block.count("\n") == 1 and block.startswith("python3 -m venv")
