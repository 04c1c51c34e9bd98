"""The rules of the arrows and of care, on the syntax tree of every file; planted violations try each rule."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("semu_diffusion", "pipelines", "eval", "assets")
MATHS = [
    "layers",
    "gradients",
    "matrices",
    "subspace",
    "protection",
    "patch",
    "patches/lora",
    "patches/patched",
    "sketch",
    "distributed",
    "objectives",
    "erasure",
    "patches/fingerprint",
    "patches/interference",
]
COMMANDS = "pipelines/cli/commands"
FLOORS = (("names",), ("models",), ("domains", "erase"), ("peers",))  # of the method's rooms
FACE = "__init__"  # gathers the public names; every other file directly in semu_diffusion/ is the method
PROSE = {".py", ".md", ".toml", ".cff", ".yaml", ".yml", ".json", ".cfg", ".ini", ".txt", ".html", ".sh", ""}

Rule = Callable[[str, ast.AST], Iterator[str]]


def sources() -> list[str]:
    """Every Python file of the rooms and of the tests, as a path from the root."""
    places = [ROOT / room for room in (*ROOMS, "tests")]
    found = (p for place in places for p in place.rglob("*.py"))
    return sorted(str(p.relative_to(ROOT)) for p in found if p.resolve() == p)  # not twice, through a link


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def module_name(path: str) -> str:
    """``pipelines/cli.py`` is ``semu_diffusion.pipelines.cli.main``."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts[0] in ROOMS[1:]:
        parts.insert(0, "semu_diffusion")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, relative and dynamic ones too; ``from a import b`` is ``a.b``."""
    package = module_name(path).split(".")[: None if path.endswith("__init__.py") else -1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def the_method_knows_no_shell(path: str, tree: ast.AST) -> Iterator[str]:
    parts = PurePosixPath(path)
    if parts.parts[0] != "semu_diffusion":
        return
    forbidden = ["semu_diffusion.pipelines", "semu_diffusion.eval"]
    if str(parts.parent) in ("semu_diffusion", "semu_diffusion/patches") and parts.stem != FACE:
        forbidden += ["semu_diffusion.models", "semu_diffusion.peers", "semu_diffusion.assets"]
        forbidden += ["argparse", "tqdm", "PIL", "torchvision"]
    yield from (f"imports {name}" for name in imports(path, tree) if within(name, *forbidden))


def the_rooms_of_the_method_point_down(path: str, tree: ast.AST) -> Iterator[str]:
    room = PurePosixPath(path).parts[1] if path.startswith("semu_diffusion/") else ""
    floor = next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))
    above = [f"semu_diffusion.{one}" for rooms in FLOORS[floor + 1 :] for one in rooms]
    yield from (f"imports {name}" for name in imports(path, tree) if within(name, *above))


def eval_sees_only_models(path: str, tree: ast.AST) -> Iterator[str]:
    known = ("models", "domains.questions", "errors", "files", "plugins", "assets", "eval")
    allowed = [f"semu_diffusion.{room}" for room in known]
    if path.startswith("eval/"):
        ours = (name for name in imports(path, tree) if within(name, "semu_diffusion"))
        yield from (f"imports {name}" for name in ours if not within(name, *allowed))


def short_names_are_never_imported(path: str, tree: ast.AST) -> Iterator[str]:
    short = (name for name in imports(path, tree) if within(name, *ROOMS[1:]))
    yield from (f"imports {name} by its short name" for name in short)


def calls(tree: ast.AST, fence: str = "fork_rng") -> Iterator[tuple[str, ast.Call, bool]]:
    """(dotted name with import aliases undone, the call, whether a ``with`` of this name is around it)."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            known.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})

    def visit(node: ast.AST, fenced: bool) -> Iterator[tuple[str, ast.Call, bool]]:
        if isinstance(node, ast.With):
            fenced = fenced or any(fence in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield ".".join(filter(None, (known.get(first, first), rest))), node, fenced
        for child in ast.iter_child_nodes(node):
            yield from visit(child, fenced)

    yield from visit(tree, False)


def nothing_is_unpickled(path: str, tree: ast.AST) -> Iterator[str]:
    for name, call, _ in calls(tree):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if name in ("torch.load", "torch.serialization.load") and given.get("weights_only") is not True:
            yield f"line {call.lineno}: torch.load without weights_only=True"
        if given.get("allow_pickle") or name in ("pickle.load", "pickle.loads", "joblib.load"):
            yield f"line {call.lineno}: {name} unpickles"


SEEDING = re.compile(
    r"(torch\.(random\.|cuda\.|mps\.)?(manual_seed|manual_seed_all|seed|seed_all)"
    r"|(np|numpy)\.random\.seed|random\.seed|(transformers|accelerate)(\.\w+)*\.set_seed)"
)


def nothing_seeds_globally(path: str, tree: ast.AST) -> Iterator[str]:
    if PurePosixPath(path).parts[0] in ROOMS:
        for name, call, fenced in calls(tree):
            if SEEDING.fullmatch(name) and not fenced:
                yield f"line {call.lineno}: {name} seeds globally; take a generator"


def bars_are_drawn_in_one_place(path: str, tree: ast.AST) -> Iterator[str]:
    if PurePosixPath(path).parts[0] in ROOMS and path != "pipelines/cli/progress.py":
        yield from (f"imports {name}; take pipelines.cli.progress" for name in imports(path, tree) if within(name, "tqdm"))


RULES: tuple[Rule, ...] = (
    the_method_knows_no_shell,
    the_rooms_of_the_method_point_down,
    eval_sees_only_models,
    short_names_are_never_imported,
    nothing_is_unpickled,
    nothing_seeds_globally,
    bars_are_drawn_in_one_place,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Rule) -> None:
    found = {path: list(rule(path, parsed(path))) for path in sources()}
    assert not {path: violations for path, violations in found.items() if violations}


def test_the_public_face_points_down() -> None:
    import semu_diffusion

    assert not [home for home in semu_diffusion._HOME.values() if within(home, *(f"semu_diffusion.{r}" for r in ROOMS[1:]))]


def test_files_functions_and_folders_stay_small() -> None:
    ours = [path for path in sources() if not path.startswith("tests/")]
    assert not [path for path in ours if len((ROOT / path).read_text().splitlines()) > 300]
    functions = [n for p in ours for n in ast.walk(parsed(p)) if isinstance(n, ast.FunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 60]
    rooms = [str(PurePosixPath(path).parent) for path in ours if not path.endswith("__init__.py")]
    assert not [room for room in set(rooms) - {COMMANDS} if rooms.count(room) > 14]


def test_the_folder_of_commands_holds_a_file_for_each_and_nothing_else() -> None:
    """It may have as many as there are commands: nobody reads it from end to end, each file is opened by its command's name."""
    from semu_diffusion.pipelines.cli.main import COMMANDS as registry

    files = {path.stem for path in (ROOT / COMMANDS).glob("[!_]*.py")}
    assert files == {name.replace("-", "_") for name in registry.commands}


def test_every_file_the_rules_speak_of_is_there() -> None:
    missing = [name for name in MATHS if not (ROOT / "semu_diffusion" / f"{name}.py").is_file()]
    assert not missing
    assert all(any(path.startswith(f"{room}/") for path in sources()) for room in ROOMS)


PLANTED = [
    (the_method_knows_no_shell, "semu_diffusion/patch.py", "from semu_diffusion.models import pipeline"),
    (the_method_knows_no_shell, "semu_diffusion/patch.py", "from .models.pipeline import Pipeline"),
    (the_method_knows_no_shell, "semu_diffusion/erasure.py", "def run():\n    from tqdm import tqdm"),
    (the_method_knows_no_shell, "semu_diffusion/models/adapters/ddpm.py", "from ...eval import metrics"),
    (the_method_knows_no_shell, "semu_diffusion/peers/esd.py", "import semu_diffusion.pipelines.cli.main"),
    (the_method_knows_no_shell, "semu_diffusion/lora.py", "import_module('semu_diffusion.eval')"),
    (the_rooms_of_the_method_point_down, "semu_diffusion/models/class_names.py", "from semu_diffusion.domains import plan"),
    (the_rooms_of_the_method_point_down, "semu_diffusion/names/words.py", "from ..models import hub"),
    (eval_sees_only_models, "eval/fid.py", "from semu_diffusion.patch import ErasurePatch"),
    (eval_sees_only_models, "eval/fid.py", "from semu_diffusion import pipelines"),
    (eval_sees_only_models, "eval/fid.py", "from ..subspace import Subspace"),
    (short_names_are_never_imported, "pipelines/cli.py", "from pipelines.console import Parser"),
    (short_names_are_never_imported, "tests/test_fid.py", "import eval.fid"),
    (short_names_are_never_imported, "eval/fid.py", "from assets import folder"),
    (nothing_is_unpickled, "eval/fid.py", "import torch\ntorch.load('a.pth')"),
    (nothing_is_unpickled, "eval/fid.py", "import torch as t\nt.load('a.pth', weights_only=False)"),
    (nothing_is_unpickled, "eval/fid.py", "from torch import load as read\nread('a.pth')"),
    (nothing_is_unpickled, "eval/fid.py", "import numpy as np\nnp.load('a.npy', allow_pickle=True)"),
    (nothing_seeds_globally, "pipelines/grids.py", "import torch\ntorch.manual_seed(0)"),
    (nothing_seeds_globally, "eval/fid.py", "import torch\ntorch.cuda.manual_seed_all(0)"),
    (nothing_seeds_globally, "eval/fid.py", "import numpy as np\nnp.random.seed(0)"),
    (nothing_seeds_globally, "eval/fid.py", "import random\nrandom.seed(0)"),
    (nothing_seeds_globally, "semu_diffusion/erasure.py", "from torch import manual_seed\nmanual_seed(0)"),
    (bars_are_drawn_in_one_place, "pipelines/train/ddpm.py", "def train():\n    from tqdm import tqdm"),
    (nothing_seeds_globally, "semu_diffusion/patch.py", "from accelerate.utils import set_seed\nset_seed(0)"),
]

ALLOWED = [
    ("semu_diffusion/erasure.py", "from semu_diffusion import patch\nfrom .subspace import Subspace"),
    ("semu_diffusion/models/adapters/ddpm.py", "from semu_diffusion.errors import InputError"),
    ("eval/fid.py", "from semu_diffusion.models import base\nfrom semu_diffusion.eval import judges"),
    ("pipelines/cli/main.py", "from semu_diffusion.pipelines import cli\nimport semu_diffusion.eval.metrics.fid"),
    ("eval/fid.py", "import torch\ntorch.load('a.pth', map_location='cpu', weights_only=True)"),
    ("eval/fid.py", "import torch\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)"),
    ("eval/fid.py", "import torch\ngenerator = torch.Generator().manual_seed(0)"),
    ("tests/test_fid.py", "import torch\ntorch.manual_seed(0)"),
    ("pipelines/cli/progress.py", "def bar():\n    from tqdm import tqdm"),
]


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_violation_is_found(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_what_is_allowed_is_not_reported(path: str, source: str) -> None:
    assert not [found for rule in RULES for found in rule(path, ast.parse(source))]


def import_graph(files: dict[str, ast.AST]) -> dict[str, set[str]]:
    """module -> our modules it imports, of a {path: syntax tree}."""
    modules = {module_name(path) for path in files}
    graph: dict[str, set[str]] = {}
    for path, tree in files.items():
        names = set(imports(path, tree))
        targets = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module_name(path)] = (targets & modules) - {module_name(path)}
    return graph


def test_no_two_files_import_each_other() -> None:
    files: dict[str, ast.AST] = {path: parsed(path) for path in sources()}
    TopologicalSorter(import_graph(files)).prepare()  # raises CycleError, naming the files


def test_a_planted_circle_is_found() -> None:
    circle: dict[str, ast.AST] = {
        "semu_diffusion/patch.py": ast.parse("from semu_diffusion import subspace"),
        "semu_diffusion/subspace.py": ast.parse("def rank():\n    from semu_diffusion.patch import ErasurePatch"),
    }
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(circle)).prepare()


# A path that only exists on one person's machine, or that climbs out of the checkout.
PERSONAL = re.compile(r"(?<![\w.:/~$})-])/(?:home|root|work|workspace|Users|mnt|opt|srv)/\w[^\s\"'`)]*")
CLIMBING = re.compile(r"(?<![\w./])(?:\.\./)+[\w][\w./-]*")


def foreign_paths(path: str, text: str) -> list[str]:
    climbing = (match.group() for match in CLIMBING.finditer(text))
    folder = (ROOT / path).parent
    return PERSONAL.findall(text) + [c for c in climbing if not (folder / c).resolve().is_relative_to(ROOT)]


def test_no_file_names_a_path_outside_the_checkout() -> None:
    top = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
    rooms = [p for room in (*ROOMS, "tests", "docs", ".ci") for p in (ROOT / room).rglob("*") if p.is_file()]
    prose = [p for p in (*top, *rooms) if p.suffix in PROSE and "__pycache__" not in p.parts]
    texts = {str(p.relative_to(ROOT)): p.read_text(errors="replace") for p in prose}
    found = {path: foreign_paths(path, text) for path, text in texts.items()}
    assert not {path: names for path, names in found.items() if names}


def test_a_planted_foreign_path_is_found() -> None:
    up = "../"
    assert foreign_paths("docs/a.md", "see /" + "home/someone/data for it") == ["/" + "home/someone/data"]
    assert foreign_paths("assets/a/config.json", '"_name_or_path": "/' + 'work/model"')
    assert foreign_paths("docs/a.md", f"see {up}{up}notes/plan.md")
    assert foreign_paths("Makefile", f"cp {up}models/a .")
    assert not foreign_paths("docs/a.md", f"see {up}README.md, https://a.org/home/b, ~/data/c, /tmp/run")
