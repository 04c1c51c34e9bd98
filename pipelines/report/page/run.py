"""A run as its report reads it, from the files of its folder; what is not there is None or empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.eval.pictures import Pictures
from semu_diffusion.eval.results import Evaluation
from semu_diffusion.files import read_json
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.report.words import base_name

__all__ = ["Layer", "Run", "read_run"]

STAGES = ("conv_in", "time_", "class_", "add_", "down_", "mid_", "up_", "conv_norm_out", "conv_out")
PATCHES = ("patch.safetensors", "patch.collapsed.safetensors")
TABLES = ("config", "base_model", "anchors", "packages", "protection")  # of run.json


@dataclass(frozen=True)
class Layer:
    """A layer of the patch: its rank, the size ||dW|| of its update, and what the protection says of it, by name."""

    name: str
    shape: tuple[int, ...]
    rank: int
    size: float
    protection: Mapping[str, float | None]


@dataclass(frozen=True)
class Run:
    """``record`` is run.json; ``made`` that of the run which made the patch, the same unless the patch was scored again."""

    folder: Path
    record: Mapping[str, Any]
    made: Mapping[str, Any]
    evaluation: Evaluation
    pictures: Pictures | None
    steps: tuple[Mapping[str, Any], ...]
    layers: tuple[Layer, ...]
    lora: bool

    @property
    def title(self) -> str:
        """What was erased, in words."""
        return ", ".join(self.evaluation.erased) or self.folder.name

    @property
    def base(self) -> str:
        """The model's name, without a path of this machine."""
        return base_name(self.record.get("base_model", {}), self.evaluation.kind)

    @property
    def network(self) -> str:
        """The pipeline's name of the network that the patch goes on."""
        return str(self.record.get("base_model", {}).get("network", "unet"))

    @property
    def strength(self) -> float:
        """That of the patch when it was measured, in units of its own."""
        value = (self.record.get("config") or {}).get("strength")
        return 1.0 if value is None else float(value)

    @property
    def lora_form(self) -> str:
        """kohya, comfyui, diffusers or peft: which tools load the LoRA."""
        return str(self.record.get("base_model", {}).get("lora", "kohya" if self.evaluation.kind == "concept" else "peft"))

    @property
    def anchors(self) -> dict[str, str]:
        return dict(self.made.get("anchors") or {})


def read_run(folder: Path, record: Mapping[str, Any] | None = None) -> Run:
    """The run in a folder; ``record`` instead of its run.json if that is not written yet.

    Raises InputError for a folder that holds no evaluated run.
    """
    record = _record(folder / "run.json") if record is None else record
    scored = Path(str(record["patch"])) if "patch" in record else folder / PATCHES[0]  # elsewhere, or gone
    patch = next((folder / name for name in PATCHES if (folder / name).is_file()), scored)
    home = patch.parent
    made = record if home == folder or not (home / "run.json").is_file() else _record(home / "run.json")
    return Run(
        folder=folder,
        record=record,
        made=made,
        evaluation=Evaluation.from_json(_json(folder / "metrics.json")),
        pictures=_pictures(folder / "pictures.json"),
        steps=_steps(home / "metrics.jsonl"),
        layers=_layers(patch, made),
        lora=any((home / name).is_dir() for name in ("lora", "lora.collapsed")),
    )


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path, f"{path.parent} holds no evaluated run: {path.name}", None)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what a run writes")
    return content


def _record(path: Path) -> dict[str, Any]:
    """What a run.json says, without what it says nothing of."""
    content = {name: value for name, value in _json(path).items() if name not in TABLES or value is not None}
    wrong = [name for name in TABLES if not isinstance(content.get(name, {}), dict)]
    if wrong:
        raise InputError(f"{path} is not what a run writes: its {wrong[0]} is no object")
    return content


def _pictures(path: Path) -> Pictures | None:
    if not path.is_file():  # a run of an earlier version
        return None
    try:
        return Pictures.from_json(_json(path))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not what a run writes ({error!r})") from error


def _steps(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise InputError(f"{path} is not what a run writes ({error})") from error


def _layers(path: Path, made: Mapping[str, Any]) -> tuple[Layer, ...]:
    if not path.is_file():
        return ()
    try:
        patch = ErasurePatch.load(path)
    except InputError:  # a collapsed one may be beyond measure, and its page is still to be written
        if "collapsed" not in path.name:
            raise
        return ()
    known = (made.get("protection") or {}).get("by_layer", {})
    found = (
        Layer(name, layer.shape, int(layer.ranks.max()), abs(patch.strength) * layer.norm_squared() ** 0.5, known.get(name, {}))
        for name, layer in patch.layers.items()
    )
    return tuple(sorted(found, key=lambda layer: _place(layer.name)))


def _place(name: str) -> tuple[Any, ...]:
    """Sorts the layers as a sample passes them: in, down, middle, up, out; numbers as numbers."""
    stage = next((place for place, part in enumerate(STAGES) if name.startswith(part)), len(STAGES) // 2)
    return stage, [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
