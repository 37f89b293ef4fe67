"""What the two pages say is true: their Python runs, their pictures, links and names exist.

The pages are README.md and demos/README.md. What one of them names is looked up as a reader would:
a file beside the page, a function through `from metarl_np import section`.
"""

import pathlib
import re

import metarl_np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "demos" / "README.md"]


def found(pattern, *pages):
    """A case for each place in the pages that the pattern matches: the page and the group in it."""
    cases = []
    for page in pages:
        text = page.read_text(encoding="utf8")
        for match in re.finditer(pattern, text, re.S):
            line = text[: match.start()].count("\n") + 1
            where = f"{page.relative_to(ROOT)}, line {line}"
            cases.append(pytest.param(page, match[1], id=where))
    return cases


@pytest.mark.parametrize("page, block", found(r"```python\n(.*?)```", *PAGES))
def test_a_python_block_runs_and_prints(page, block, capsys):
    exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page, picture", found(r"!\[[^\]]*\]\((.*?)\)", *PAGES))
def test_a_picture_is_there(page, picture):
    assert (page.parent / picture).is_file()


@pytest.mark.parametrize("page, link", found(r"(?<!!)\[[^\]]*\]\((?!http)(.*?)\)", *PAGES))
def test_a_link_leads_somewhere(page, link):
    """To a file or folder beside the page, and to a heading of it if one is named."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf8"), re.M)
        assert anchor in [anchor_of(heading) for heading in headings]


def anchor_of(heading):
    """As GitHub makes it: lower case, hyphens for spaces, and no other signs."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_python_block_picture_and_link_was_found():
    """An empty list of cases would be skipped without a word."""
    text = README.read_text(encoding="utf8")
    assert len(found(r"```python\n(.*?)```", README)) == text.count("```python") > 2
    assert len(found(r"!\[[^\]]*\]\((.*?)\)", README)) == text.count("![") > 1


def equation_table():
    """The names `section.function` of the table in README.md."""
    table = (
        README.read_text(encoding="utf8").split("## From equation to function")[1].split("\n## ")[0]
    )
    return re.findall(r"`([a-z_0-9]+\.[A-Za-z_.]+)`", table)


def test_the_equation_table_is_long():
    assert len(equation_table()) > 50


@pytest.mark.parametrize("name", equation_table())
def test_a_name_in_the_equation_table_exists(name):
    thing = metarl_np
    for part in name.split("."):
        thing = getattr(thing, part)
    assert callable(thing)


def test_the_first_two_shell_blocks_are_one_line_each():
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf8"), re.S)[:2]
    assert len(blocks) == 2
    for block in blocks:
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv")
