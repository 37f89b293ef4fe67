"""What the README says is true: its Python runs, its names exist, its pictures are there, its first two commands are one line each."""

import importlib
import pathlib
import re

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_names_in_the_equation_table_exist():
    names = re.findall(
        r"`([a-z_]+\.[A-Za-z_.]+)`",
        README.split("## From equation to function")[1].split("\n## ")[0],
    )
    assert len(names) > 15
    for name in names:
        module, *attributes = name.split(".")
        thing = importlib.import_module(f"metarl_np.{module}")
        for attribute in attributes:
            thing = getattr(thing, attribute)


def test_pictures_exist():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (pathlib.Path(__file__).parents[1] / picture).is_file()


def test_first_two_shell_blocks_are_one_line_each():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)[:2]
    assert len(blocks) == 2 and all(
        block.count("\n") == 1 and block.startswith("python3 -m venv") for block in blocks
    )
