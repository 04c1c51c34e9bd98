"""Entry points: another package's method, judge, metric and probe are used like ours, and a broken one harms nothing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_model

from semu_diffusion.errors import Notice
from semu_diffusion.eval.judges import JUDGES
from semu_diffusion.eval.metrics import METRICS
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.peers.methods import METHODS
from semu_diffusion.pipelines.cli.main import main as semu

REGISTRIES: tuple[Any, ...] = (METHODS, JUDGES, METRICS, PROBES)
CODE = """
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.metrics import Metric
from semu_diffusion.eval.probes.noise import NoiseProbe
from semu_diffusion.peers.trivial import copy_embedding
from semu_diffusion.peers.methods import METHODS, Method

KNOWN = tuple(METHODS)
METHOD = Method("swap", "a copy by another name", copy_embedding, domains=("class",))
METRIC = Metric("pairs", lambda device: lambda before, after: (before - after).abs().amax((1, 2, 3)))
THIEF = Method("default", "not ours", copy_embedding)


def judge(name, class_names, device):
    def colours(images):
        return 100 * images.mean((2, 3))

    return JudgeNetwork("brightest", "0" * 64, len(class_names), tuple(class_names), 3, 3, 16, colours, colours)


class Shaken(NoiseProbe):
    name = "shaken"
"""
ENTRIES = """
[semu_diffusion.methods]
swap = other_package:METHOD
default = other_package:THIEF
another = other_package:METHOD
gone = other_package:NOTHING
broken = other_package_that_is_not_there:METHOD
[semu_diffusion.judges]
brightest = other_package:judge
[semu_diffusion.metrics]
furthest = other_package:METRIC
[semu_diffusion.probes]
shaken = other_package:Shaken
int8 = other_package:Shaken
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers what it has, as pip leaves one; the registries are as if they had not been read."""
    home = tmp_path / "site"
    about = home / "other_package-1.0.dist-info"
    about.mkdir(parents=True)
    (home / "other_package.py").write_text(CODE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    for registry in REGISTRIES:  # read here, so that nothing of the package stays in them
        monkeypatch.setattr(registry, "_entries", dict(registry))
        monkeypatch.setattr(registry, "_complete", False)
    monkeypatch.syspath_prepend(str(home))


def read(*registries: Any) -> list[str]:
    """What is said while they are read."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for registry in registries:
            assert list(registry)
    return [str(one.message) for one in said if issubclass(one.category, Notice)]


@pytest.mark.usefixtures("installed")
def test_what_another_package_registers_is_measured_beside_ours(tmp_path: Path) -> None:
    given = ["--model", saved_model(tmp_path / "model"), "--classifier", "brightest", "--probes", "shaken", "--no-revival"]
    few = ["--images", "2", "--sampling-steps", "2", "--probe-samples", "2", "--unconditional-samples", "2"]
    where = ["--output", str(tmp_path / "page.md"), "--work", str(tmp_path / "work")]
    assert semu(["benchmark", "red", "--methods", "swap,copy", *given, *few, *where]) == 0
    protocol, *rows = map(json.loads, (tmp_path / "work" / "classes.jsonl").read_text().splitlines())
    assert [row["method"] for row in rows] == ["swap", "copy"]
    assert protocol["protocol"]["judges"]["object"]["name"] == "brightest"
    for row in rows:
        assert "furthest" in row["evaluation"]["side_effects"]["paired"]
        assert set(row["evaluation"]["after"]["probes"]) == {"shaken"}
    assert "a copy by another name" in (tmp_path / "page.md").read_text()


@pytest.mark.usefixtures("installed")
def test_a_broken_entry_is_a_line_and_ours_are_never_replaced() -> None:
    ours = METHODS._entries["default"], PROBES._entries["int8"]
    said = read(METHODS, PROBES)
    assert (METHODS["default"], PROBES["int8"]) == ours
    assert METHODS["swap"].title == "a copy by another name"
    assert not {"another", "gone", "broken"} & set(METHODS)
    reasons = {
        "'default' in semu_diffusion.methods": "the name is taken",
        "'another' in semu_diffusion.methods": "other_package:METHOD is none of its kind, or of another name",
        "'gone' in semu_diffusion.methods": "cannot be loaded (AttributeError: ",
        "'broken' in semu_diffusion.methods": "cannot be loaded (ModuleNotFoundError: ",
        "'int8' in semu_diffusion.probes": "the name is taken",
    }
    for entry, reason in reasons.items():
        (line,) = [one for one in said if entry in one]
        assert line.startswith("other-package registers ")
        assert reason in line
        assert "\n" not in line
    assert len(said) == len(reasons)
    assert read(METHODS, PROBES) == []  # said once


@pytest.mark.usefixtures("installed")
def test_a_command_says_what_is_broken_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--output", str(tmp_path / "page.md"), "--work", str(tmp_path / "work")]
    assert semu(["benchmark", "red", "--methods", "broken", "--model", saved_model(tmp_path / "model"), *where]) == 2
    err = capsys.readouterr().err
    assert "--methods broken: unknown; there are default," in err
    assert "Traceback" not in err
    assert all(line.startswith("semu benchmark: ") for line in err.splitlines())


@pytest.mark.usefixtures("installed")
def test_nothing_of_another_package_is_imported_before_a_registry_is_read() -> None:
    import sys

    sys.modules.pop("other_package", None)
    assert METHODS.group == "semu_diffusion.methods"
    assert "other_package" not in sys.modules
    assert "swap" in METHODS
    assert "default" in sys.modules["other_package"].KNOWN  # what is loaded may read the registry
