"""Every command, target, import and link of the README exists; so does every command that `make` runs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SHELL = ("bash", "sh", "shell", "console")
FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""(?:\]\(|(?:src|href|srcset)=")([^)\s"#]+)""")
Parse = Callable[[Sequence[str]], Any]


def parsers() -> dict[str, Parse]:
    """Console command -> the function that reads its arguments and runs nothing."""
    from semu_diffusion.pipelines.cli import main as cli
    from semu_diffusion.pipelines.cli.commands import erase_class, erase_concept

    return {"erase-class": erase_class.parse, "erase-concept": erase_concept.parse, "semu": cli.parse}


def fences(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in one of the languages."""
    return [
        re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        for indent, _, language, body in FENCE.findall(text)
        if language in languages
    ]


def command_lines(text: str) -> Iterator[list[str]]:
    """The simple commands of every shell fence, as words: no prompts, comments, redirections or output."""
    for fence in fences(text, *SHELL):
        lines = fence.replace("\\\n", " ").splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            yield from simple_commands(line)


def simple_commands(line: str) -> Iterator[list[str]]:
    """``FOO=1 a b > c && d | e  # f`` holds the commands ``a b``, ``d`` and ``e``."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|&;<>()"):
            command.append(word)
            continue
        while command and re.match(r"\w+=", command[0]):
            command.pop(0)
        if command and command[0] != ">":
            yield command
        command = [">"] if set(word) <= set("<>") else []


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


def broken_commands(commands: Iterator[list[str]], targets: set[str], read: dict[str, Parse]) -> list[str]:
    """The commands that would not run: unknown targets and modules, arguments that their parser refuses."""
    broken = []
    for program, *arguments in commands:
        name = Path(program).name
        if name == "make":
            wanted = {word for word in arguments if "=" not in word and not word.startswith("-")}
            broken += [f"make {word}: no such target" for word in sorted(wanted - targets)]
        elif name.startswith("python") and arguments[:1] == ["-m"]:
            broken += [] if _module_is_there(arguments[1]) else [f"{name} -m {arguments[1]}: no such module"]
        elif name in read:
            try:
                give_config_file(arguments)
                read[name](arguments)
            except (SystemExit, ValueError) as refusal:
                broken.append(f"{shlex.join([name, *arguments])}: {refusal}")
    return broken


def _module_is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def give_config_file(arguments: Sequence[str]) -> None:
    """A ``--config FILE`` of an example is read while parsing: put a run.json there, under this folder."""
    for flag, value in pairwise(arguments):
        if flag == "--config":
            assert not Path(value).is_absolute()
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            Path(value).write_text(json.dumps({"config": {"forget": ["cat"]}}))


def broken_python(source: str) -> list[str]:
    """Imports of ``source`` that do not resolve, and attributes that a module of ours does not have."""
    tree, broken, ours = ast.parse(source), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = _module(node.module or "")
            missing = [a.name for a in node.names if not (_has(module, a.name) or _module(f"{node.module}.{a.name}"))]
            broken += [f"from {node.module} import {name}" for name in missing]
        elif isinstance(node, ast.Import):
            broken += [f"import {alias.name}" for alias in node.names if _module(alias.name) is None]
            ours.update({a.asname or a.name: a.name for a in node.names if a.name.startswith("semu_diffusion")})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ours:
            module = _module(ours[ast.unparse(node.value)])
            broken += [] if module is None or _has(module, node.attr) else [ast.unparse(node)]
    return broken


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _has(module: Any, name: str) -> bool:
    return module is not None and hasattr(module, name)


def broken_links(text: str) -> list[str]:
    """Links and pictures that point to a file which is not in the checkout."""
    local = (target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target))
    return [target for target in local if not (ROOT / target).exists()]


def test_the_commands_of_the_readme_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = list(command_lines(README.read_text()))
    shown = {shlex.join([Path(program).name, *rest]) for program, *rest in commands}
    assert {"make demo", "make test"} <= shown
    assert any(command.startswith("erase-class cat") for command in shown)
    monkeypatch.chdir(tmp_path)
    assert not broken_commands(iter(commands), make_targets((ROOT / "Makefile").read_text()), parsers())


def test_the_python_of_the_readme_imports_what_exists() -> None:
    examples = fences(README.read_text(), "python", "py")
    assert any("semu_diffusion" in example for example in examples)
    assert not [broken for example in examples for broken in broken_python(example)]


def test_the_links_and_pictures_of_the_readme_are_there() -> None:
    assert not broken_links(README.read_text())


@pytest.mark.parametrize("target", ["demo", "demo-concept", "ui", "bench", "figures"])
def test_make_runs_commands_that_parse(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    dry = ["make", "--dry-run", "--always-make", "VENV=.venv", target]
    printed = subprocess.run(dry, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    lines = (line for line in printed.splitlines() if line.startswith(".venv/bin/"))
    commands = [command for line in lines for command in simple_commands(line)]
    read = parsers()
    ours = ("erase-class ", "erase-concept ", "semu ", "python -m semu_diffusion.")
    assert any(shlex.join(command).removeprefix(".venv/bin/").startswith(ours) for command in commands)
    monkeypatch.chdir(tmp_path)
    assert not broken_commands(iter(commands), set(), read)


SAMPLE = """\
# A page
[a file](LICENSE), [the web](https://example.org/a) and [nothing](docs/nothing.png#top)
```bash
make demo   # the picture
FOO=1 tool --forget cat \\
    --steps 5 | head > out.txt && make nowhere
```
1. in a list, with a module that is not there
   ```console
   $ tool --forgotten cat
   $ python -m semu_diffusion.nowhere
   erased: cat | 0.99
   ```
```python
import semu_diffusion.errors as semu
from semu_diffusion.errors import InputError, Nothing
from nowhere import something
semu.InputError, semu.Absent
```
"""


def sample_parser(arguments: Sequence[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="tool", allow_abbrev=False, exit_on_error=True)
    parser.add_argument("--forget", required=True)
    parser.add_argument("--steps", type=int)
    parser.parse_args(arguments)


def test_the_checker_finds_what_is_wrong_with_a_sample() -> None:
    commands = list(command_lines(SAMPLE))
    assert commands == [
        ["make", "demo"],
        ["tool", "--forget", "cat", "--steps", "5"],
        ["head"],
        ["make", "nowhere"],
        ["tool", "--forgotten", "cat"],
        ["python", "-m", "semu_diffusion.nowhere"],
    ]
    found = broken_commands(iter(commands), make_targets("demo: x\nVENV := a\n"), {"tool": sample_parser})
    broken = ["make nowhere", "tool --forgotten cat", "python -m semu_diffusion.nowhere"]
    assert [line.split(":")[0] for line in found] == broken
    (example,) = fences(SAMPLE, "python")
    assert sorted(broken_python(example)) == [
        "from nowhere import something",
        "from semu_diffusion.errors import Nothing",
        "semu.Absent",
    ]
    assert broken_links(SAMPLE) == ["docs/nothing.png"]
