"""METHODS: everything that users compare, one line a method. Each takes a task and ends in an `EditResult`.

A method is our default with other settings (``overrides``), or another ``run``. ``expected`` holds the numbers that it is known
to reach on the embedded models, as lower bounds: a benchmark says where it falls below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semu_diffusion.domains.config import DEEP, PRESETS
from semu_diffusion.erase.config import ErasureConfig
from semu_diffusion.erase.run import run_erasure, run_to_end
from semu_diffusion.erase.task import EditResult, Progress, Task
from semu_diffusion.erasure import Step
from semu_diffusion.errors import InputError
from semu_diffusion.files import read_json
from semu_diffusion.peers.concept_ablation import concept_ablation
from semu_diffusion.peers.erasediff import erasediff
from semu_diffusion.peers.esd import esd_u, esd_x
from semu_diffusion.peers.fine_tuning import fine_tuned
from semu_diffusion.peers.leco import leco
from semu_diffusion.peers.rece import rece, uce
from semu_diffusion.peers.salun import salun
from semu_diffusion.peers.sfr_on import sfr_on
from semu_diffusion.peers.speed import speed
from semu_diffusion.peers.spm import spm
from semu_diffusion.peers.trivial import copy_embedding, remapped
from semu_diffusion.plugins import Registry

__all__ = ["METHODS", "Method", "read_methods", "semu"]

Run = Callable[[Task[Any], ErasureConfig, Progress | None], EditResult]


@dataclass(frozen=True)
class Method:
    """A row of the comparison: its name and title, how it runs, the settings that differ, the domains that it serves.

    ``knob``: its main setting, and the factors on its own value of it that ``semu benchmark --tune`` tries, as many for every
    method; None where nothing is trained.
    """

    name: str
    title: str
    run: Run
    overrides: Mapping[str, Any] = field(default_factory=dict)
    domains: tuple[str, ...] = ("class", "concept")
    expected: Mapping[str, float] = field(default_factory=dict)
    knob: tuple[str, tuple[float, ...]] | None = ("lr", (0.3, 1.0, 3.0))


def semu(task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
    """This package's own erasure, with the settings of ``config``."""

    def watch(step: Step) -> None:
        if progress is not None:
            progress("training R", step.index, config.steps)

    return run_to_end(run_erasure(task, config, progress), watch)


UNPROTECTED = {"protect": "none", "retain": "none"}
# what the papers of the peers have in common: the error as it is, no overshoot, no vectors, plain Adam
PLAIN = {
    "retain": "none", "unlabelled": 0.0, "adversarial": 0.0, "overshoot": 0.0, "weighting": "noise", "lr_decay": False,
    "warmup": 0.0, "adam_beta2": 0.999, "lr": 1e-4,
}  # fmt: skip
ESD = {**PLAIN, "target": "unconditional", "overshoot": 1.0}
ABLATION = {**PLAIN, "moving_target": True, "lr": 3e-4}
LECO = {**ESD, "max_rank": 4, "layers": ("attention", "conv", "!*.conv_depth"), "lr": 1e-3}
SPM = {**ESD, "max_rank": 1, "layers": ("all",), "retain_weight": 1000.0, "lr": 1e-3}
SALUN = {**PLAIN, "moving_target": True, "retain": "self", "retain_weight": 1.0}
KEEPING = {**PLAIN, "target": "ascent", "retain": "self", "retain_weight": 1.0}
OWN = {
    method.name: method
    for method in (
        Method("default", "SEMU, the default", semu, expected={"unlearning_accuracy": 0.9}),
        Method(
            "closed-form", "the name alone, in closed form", semu, {"method": "closed-form"},
            expected={"unlearning_accuracy": 0.85}, knob=None,
        ),
        Method("deep", "SEMU, the deep preset", semu, DEEP),
        Method("trained", "SEMU, R alone", semu, {"method": "trained"}),
        Method("random", "SEMU, random directions of the same size", semu, {"gradient": "random"}),
        Method("no-adversary", "SEMU, no learned vectors", semu, {"adversarial": 0.0}),
        Method("null-space", "SEMU, null space only", semu, {"retain": "none"}),
        Method("retain", "SEMU, retain term only", semu, {"protect": "none"}),
        Method("unprotected", "SEMU, nothing protected", semu, UNPROTECTED),
        Method("official", "SEMU, the reference code's choices", semu, PRESETS["official"], ("class",)),
        Method("copy", "class-embedding copy (trivial)", copy_embedding, {}, ("class",), {"unlearning_accuracy": 0.85}, None),
        Method("remap", "token remap (trivial)", remapped, {}, ("concept",), {"unlearning_accuracy": 0.9}, None),
        Method("fine-tune", "all weights, same objective", fine_tuned, {"lr": 1e-4, "retain": "none"}),
        Method("fine-tune-retain", "all weights, self-made retain term", fine_tuned, {"lr": 1e-4}),
        Method("esd-x", "ESD-x (cross-attention)", esd_x, {**ESD, "lr": 5e-4}, ("concept",)),
        Method("esd-u", "ESD-u (all but cross-attention)", esd_u, {**ESD, "lr": 2e-4, "steps": 200}),
        Method("concept-ablation", "concept ablation", concept_ablation, ABLATION, ("concept",)),
        Method("salun", "SalUn", salun, SALUN),
        Method("leco", "LECO (free LoRA)", leco, LECO),
        Method("spm", "SPM (rank 1, latent anchoring)", spm, SPM),
        Method("uce", "UCE", uce, {}, expected={"unlearning_accuracy": 0.85}, knob=None),
        Method("rece", "RECE", rece, {"steps": 5}, knob=None),
        Method("speed", "SPEED", speed, {}, ("concept",), {"unlearning_accuracy": 0.85}, None),
        Method("erasediff", "EraseDiff", erasediff, KEEPING),
        Method("sfr-on", "SFR-on", sfr_on, KEEPING),
        Method("ascent", "gradient ascent, all weights", fine_tuned, {**PLAIN, "target": "ascent", "lr": 2e-6}),
    )
}  # fmt: skip
METHODS = Registry("semu_diffusion.methods", OWN, lambda name, found: isinstance(found, Method) and found.name == name)


def read_methods(path: str | Path) -> dict[str, Method]:
    """Variants of known methods from a JSON file: ``{"rank-4": {"base": "default", "title": "rank 4", "max_rank": 4}}``.

    Everything beside ``base``, ``title`` and ``expected`` is a setting. Raises InputError for a file that holds none.
    """
    try:
        content = read_json(path, f"--methods {path}")
        found = {}
        for name, settings in content.items():
            settings = dict(settings)
            base = METHODS[settings.pop("base", "default")]
            title, expected = str(settings.pop("title", name)), dict(settings.pop("expected", {}))
            overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
            knob = None if base.knob is not None and base.knob[0] in overrides else base.knob  # it has been decided on
            settings = {**base.overrides, **overrides}
            found[name] = replace(base, name=name, title=title, overrides=settings, expected=expected, knob=knob)
        if not found:
            raise ValueError("it names none")
        return found
    except KeyError as error:
        raise InputError(f"--methods {path}: no method {error}; there are {', '.join(METHODS)}") from error
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'--methods {path}: needs {{"name": {{"base": "default", "max_rank": 4}}}} ({error})') from error
