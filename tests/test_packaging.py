"""What an installed copy holds, that its commands answer at once, what `make` says if something lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("semu_diffusion", "pipelines", "eval", "assets")
SHORT_NAMES = ROOMS[1:]
COMMANDS = tuple(sorted(path.stem for path in (ROOT / "pipelines" / "cli" / "commands").glob("[!_]*.py")))
HEAVY = {
    "accelerate", "datasets", "diffusers", "open_clip", "peft", "pyarrow", "scipy", "timm", "torch",
    "torch_fidelity", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip
PLANTED = (
    "assets/planted/README.md",
    "assets/planted/unet/config.json",
    "assets/planted/unet/weights.safetensors",
)


def python(code: str, *flags: str, cwd: Path) -> str:
    """Standard output of ``code`` in a fresh interpreter: the environment's packages, nothing of ``cwd``."""
    done = subprocess.run([sys.executable, "-I", *flags, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkout(folder: Path) -> Path:
    """A copy of the checkout, its links kept as links, with one more embedded model planted in it."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def build(kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import setuptools.build_meta as backend; backend.build_{kind}('dist')"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = checkout(tmp_path_factory.mktemp("checkout"))
    done = build("wheel", copy)
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the unpacked wheel."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_has_one_top_level_package(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"semu_diffusion"}


def test_the_wheel_holds_every_module_and_its_types(names: set[str]) -> None:
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.resolve() == path]
    ours = [path.relative_to(ROOT) for path in found]
    expected = {str(p if p.parts[0] == "semu_diffusion" else Path("semu_diffusion") / p) for p in ours}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "semu_diffusion/py.typed" in names
    others = (path for path in (ROOT / "pipelines").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    templates = {str(path.relative_to(ROOT)) for path in others}
    assert {Path(name).suffix for name in templates} == {".md", ".html", ".css", ".js"}
    assert {f"semu_diffusion/{name}" for name in templates} <= names


def test_the_embedded_models_travel_in_the_wheel(names: set[str]) -> None:
    kinds = (".safetensors", ".json", ".md")
    models = {str(p.relative_to(ROOT)) for p in (ROOT / "assets").glob("*/**/*") if p.suffix in kinds}
    for model in ("ddpm-cifar10", "cifar10-classifier"):
        ours = [name for name in models if name.startswith(f"assets/{model}/")]
        assert any(name.endswith(".safetensors") for name in ours), f"assets/{model} holds no weights"
        assert f"assets/{model}/README.md" in ours, f"assets/{model} has no model card"
    assert {f"semu_diffusion/{name}" for name in (*models, *PLANTED)} <= names


def test_a_wheel_of_the_source_distribution_holds_the_same_files(tmp_path: Path, names: set[str]) -> None:
    copy = checkout(tmp_path / "checkout")
    assert build("sdist", copy).returncode == 0
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert build("wheel", unpacked).returncode == 0
    (built,) = (unpacked / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as again:
        assert set(again.namelist()) == names


def test_a_checkout_without_links_is_refused_in_one_line(tmp_path: Path) -> None:
    copy = checkout(tmp_path)
    for room in SHORT_NAMES:  # as git writes a link where the system has none
        (copy / "semu_diffusion" / room).unlink()
        (copy / "semu_diffusion" / room).write_text(f"../{room}")
    done = build("wheel", copy)
    assert done.returncode != 0
    assert "git config core.symlinks true" in done.stderr.splitlines()[-1]


def test_every_room_at_the_root_is_a_link_inside_the_package() -> None:
    for room in SHORT_NAMES:
        assert os.readlink(ROOT / "semu_diffusion" / room) == f"../{room}"


def test_the_licence_travels_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        text = archive.read(name).decode()
    headings = [rf"\n   {number}\. \w" for number in range(1, 10)]
    assert all(re.search(heading, text) for heading in headings)
    assert "Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")


def test_the_console_commands_are_installed(installed: Path) -> None:
    (file,) = installed.glob("*.dist-info/entry_points.txt")
    commands = dict(re.findall(r"^([\w-]+) = (\S+)$", file.read_text(), re.MULTILINE))
    assert commands == PROJECT["project"]["scripts"]
    assert {"erase-class", "semu"} <= set(commands)


def test_installing_makes_no_global_pipelines_or_eval(installed: Path, tmp_path: Path) -> None:
    look = f"import sys; sys.path.insert(0, {str(installed)!r}); from importlib.util import find_spec;"
    found = python(f"{look} print([n for n in {SHORT_NAMES} if find_spec(n)])", "-S", cwd=tmp_path)
    assert found.strip() == "[]"
    rooms = [f"semu_diffusion.{room}" for room in SHORT_NAMES]
    origins = python(f"{look} print(*[find_spec(n).origin for n in {rooms}], sep=chr(10))", cwd=tmp_path)
    assert all(Path(origin).is_relative_to(installed) for origin in origins.split("\n") if origin)


def test_this_environment_has_no_global_pipelines_or_eval(tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {SHORT_NAMES} if find_spec(n)])"
    assert python(code, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    name = f"semu_diffusion.pipelines.cli.commands.{command}"
    code = f"import sys; from importlib import import_module; import_module({name!r}); print(*{HEAVY} & set(sys.modules))"
    assert python(code, cwd=tmp_path).split() == []


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
@pytest.mark.parametrize(
    ("flag", "shown"), [("--help", ("usage:", "examples:")), ("--version", (PROJECT["project"]["version"],))]
)
def test_help_and_version_answer_without_importing_anything_heavy(
    command: str, flag: str, shown: tuple[str, ...], tmp_path: Path
) -> None:
    module, function = PROJECT["project"]["scripts"][command].split(":")
    code = f"""
import sys, atexit
from {module} import {function} as main
sys.argv = [{command!r}, {flag!r}]
atexit.register(lambda: print("heavy:", *{HEAVY} & set(sys.modules)))
sys.exit(main())
"""
    said = python(code, cwd=tmp_path)
    assert all(words in said for words in shown)
    assert said.splitlines()[-1].split() == ["heavy:"]


def test_the_help_of_every_command_is_light_and_whole_without_docstrings(tmp_path: Path) -> None:
    code = f"""
import io, sys
from contextlib import redirect_stdout, suppress
from semu_diffusion.pipelines.cli.main import COMMANDS
for name in COMMANDS.commands:
    with suppress(SystemExit), redirect_stdout(io.StringIO()) as shown:
        COMMANDS.main([name, "--help"])
    usage, what, *_ = shown.getvalue().split(chr(10) * 2)
    print(name, usage.startswith("usage: "), what[:1].isupper(), *{HEAVY} & set(sys.modules))
"""
    lines = [line.split() for line in python(code, "-OO", cwd=tmp_path).splitlines()]
    assert len(lines) > 10
    assert {tuple(rest) for _, *rest in lines} == {("True", "True")}


def make(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """`make` of this checkout with an environment folder of its own and a search path of one folder more."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    command = ["make", f"VENV={path}/venv", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def interpreter(folder: Path, name: str, *, new_enough: bool, makes_environments: bool) -> str:
    """A stand-in for a Python that answers the Makefile's two questions as told, and makes nothing."""
    answers = f"""#!/bin/sh
case "$2" in
*version_info*) exit {int(not new_enough)} ;;
*ensurepip*) exit {int(not makes_environments)} ;;
*) echo "asked for: $*"; exit 1 ;;
esac
"""
    (folder / name).write_text(answers)
    (folder / name).chmod(0o755)
    return name


@pytest.mark.parametrize("name", ["no-such-python", "old-python"])
def test_make_says_in_one_line_that_python_is_missing_or_too_old(name: str, tmp_path: Path) -> None:
    interpreter(tmp_path, "old-python", new_enough=False, makes_environments=True)
    done = make("demo", f"PYTHON={name}", path=tmp_path)
    said, *rest = done.stderr.splitlines()
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in said
    assert "make PYTHON=" in said
    assert all(line.startswith("make") for line in rest)


def test_make_says_in_one_line_that_the_venv_module_is_missing(tmp_path: Path) -> None:
    name = interpreter(tmp_path, "bare-python", new_enough=True, makes_environments=False)
    done = make("demo", f"PYTHON={name}", path=tmp_path)
    said, *rest = done.stderr.splitlines()
    assert done.returncode != 0
    assert "python3-venv" in said
    assert all(line.startswith("make") for line in rest)


@pytest.mark.parametrize("target", ["demo", "demo-concept"])
def test_the_demos_install_what_checks_their_lora(target: str, tmp_path: Path) -> None:
    steps = make("--dry-run", target, path=tmp_path).stdout
    assert "--editable '.[lora]'" in steps
    assert any(package.startswith("peft") for package in PROJECT["project"]["optional-dependencies"]["lora"])


def test_make_takes_the_first_python_that_is_new_enough(tmp_path: Path) -> None:
    interpreter(tmp_path, "old-python", new_enough=False, makes_environments=True)
    interpreter(tmp_path, "new-python", new_enough=True, makes_environments=True)
    done = make("demo", "PYTHON=no-such-python old-python new-python", path=tmp_path)
    assert f"asked for: -m venv --clear {tmp_path}/venv" in done.stdout
