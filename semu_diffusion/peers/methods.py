"""METHODS: everything that users compare, one line a method. Each takes a task and ends in an `EditResult`.

A method is our default with other settings (``overrides``), or another ``run``. ``expected`` holds what is known of it on the
embedded models; a benchmark sets it beside the rows, and says where they are off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semu_diffusion.domains.config import PRESETS
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
from semu_diffusion.peers.rece import PRESERVE, rece, uce
from semu_diffusion.peers.salun import salun
from semu_diffusion.peers.sfr_on import sfr_on
from semu_diffusion.peers.speed import THRESHOLD, speed
from semu_diffusion.peers.spm import spm
from semu_diffusion.peers.trivial import copy_embedding, remapped
from semu_diffusion.plugins import Registry

__all__ = ["METHODS", "Expected", "Method", "read_methods", "semu"]

FIGURES = (
    "unlearning_accuracy", "paraphrase_accuracy", "in_domain_accuracy", "cross_domain_accuracy", "drift", "revival",
    "unconditional_share",
)  # fmt: skip
Run = Callable[..., EditResult]  # (task, config, progress), and the method's own settings by name


@dataclass(frozen=True)
class Expected:
    """``value`` of a ``figure`` of an evaluation ("drift": of what stays), and who found it, by what (``source``).

    It holds within ``tolerance`` to both sides, on the embedded ``model`` (None: on both) and of the erased ``thing`` (None: of
    the mean over all). ``weights``: the first digits of those that it was measured on; None where they are the present ones.
    """

    figure: str
    value: float
    tolerance: float
    model: str | None = None
    thing: str | None = None
    weights: str | None = None
    source: str = "this package's own rows"

    def __post_init__(self) -> None:
        if self.figure not in FIGURES:
            raise ValueError(f"no figure {self.figure!r}; there are {', '.join(FIGURES)}")
        if not all(isinstance(number, int | float) for number in (self.value, self.tolerance)):
            raise ValueError(f"value and tolerance of {self.figure} must be numbers")


@dataclass(frozen=True)
class Method:
    """A row of the comparison: its name and title, how it runs, the settings that differ, the domains that it serves.

    ``knob``: its main setting, and the factors on its own value of it that ``semu benchmark --tune`` tries, as many for every
    method; None where there is nothing to set. ``own``: settings that no other method has, which ``run`` takes by name.
    """

    name: str
    title: str
    run: Run
    overrides: Mapping[str, Any] = field(default_factory=dict)
    domains: tuple[str, ...] = ("class", "concept")
    expected: tuple[Expected, ...] = ()
    knob: tuple[str, tuple[float, ...]] | None = ("lr", (0.3, 1.0, 3.0))
    own: Mapping[str, float] = field(default_factory=dict)
    note: str = ""  # what there is to say where nothing is known

    @property
    def shared(self) -> dict[str, Any]:
        """The overrides of settings that every method has."""
        return {name: value for name, value in self.overrides.items() if name not in self.own}

    def erase(self, task: Task[Any], config: ErasureConfig, progress: Progress | None = None) -> EditResult:
        """The edit by ``config`` and the method's own settings, overridden or not."""
        return self.run(task, config, progress, **{name: self.overrides.get(name, value) for name, value in self.own.items()})


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
TENFOLD = (0.1, 1.0, 10.0)  # of weights and thresholds, which act by their order of magnitude


# what others' code gave on the embedded models as they were then, one run of each: 20 steps of DDIM in bfloat16, about 60
# images of a group, one vector learned for the revival
AUTHORS = "measured with the authors' code"
EQUATION = "measured with its equation over all tokens, outside this package"
RESTATED = "measured with a restatement outside this package"
ELSEWHERE = "measured outside this package"
NOBODY = "nobody has measured the authors' code on the embedded models"


def known(source: str, thing: str, figures: Mapping[str, float], model: str = "tiny-sd") -> tuple[Expected, ...]:
    """Figures of such a case. The tolerance of a share is two standard errors of the difference of two shares, of 60 images
    there and of 40 here; that of a drift, which another seed alone moves by as much, half of it."""
    weights = {"tiny-sd": "a5500b64f7d3c87d", "ddpm-cifar10": "fed0d800ad41b589"}[model]

    def tolerance(figure: str, value: float) -> float:
        p = min(max(value, 0.05), 0.95)
        return value / 2 if figure == "drift" else round(2 * (p * (1 - p) * (1 / 60 + 1 / 40)) ** 0.5, 2)

    found = {name: (value, tolerance(name, value)) for name, value in figures.items()}
    return tuple(Expected(name, *each, model, thing, weights, source) for name, each in found.items())


def named(accuracy: float, held_out: float, own_kind: float, other_kind: float, drift: float) -> dict[str, float]:
    """The figures that every case of words has."""
    shares = {"unlearning_accuracy": accuracy, "paraphrase_accuracy": held_out}
    return {**shares, "in_domain_accuracy": own_kind, "cross_domain_accuracy": other_kind, "drift": drift}


def at_least(accuracy: float) -> tuple[Expected, ...]:
    """Our own rows: what the name's erasure reaches, on average over whatever is erased."""
    return (Expected("unlearning_accuracy", 1.0, round(1 - accuracy, 3)),)


STYLE: dict[str, float] = {"unlearning_accuracy": 1.0}  # said of all methods together
KNOWN = {
    "uce": (
        *known(EQUATION, "cat", {**named(0.967, 0.054, 0.907, 0.991, 0.0063), "revival": 0.58}),
        *known(f"{AUTHORS}, one token", "cat", {"unlearning_accuracy": 0.867, "drift": 0.1196}),
        *known(EQUATION, "sketch", {**STYLE, "drift": 0.0071, "revival": 0.07, "unconditional_share": 0.083}),
        *known(
            "measured with its equation on the layers of the label, outside this package", "cat",
            {"unlearning_accuracy": 0.90, "in_domain_accuracy": 0.870, "drift": 0.0001, "revival": 0.52}, "ddpm-cifar10",
        ),
    ),
    "speed": (
        *known(f"{AUTHORS}, threshold 0.01", "cat", {**named(0.78, 0.20, 0.91, 1.0, 0.0076), "revival": 0.55}),
        *known(AUTHORS, "sketch", {**STYLE, "drift": 0.0098, "revival": 0.0, "unconditional_share": 0.1}),
    ),
    "esd-x": (
        *known(f"{AUTHORS}, lr 5e-4", "cat", {**named(0.90, 0.04, 0.78, 0.59, 0.10), "revival": 0.32}),
        *known(AUTHORS, "sketch", STYLE),
    ),
    "esd-u": (
        *known(f"{AUTHORS}, lr 2e-4", "cat", named(0.65, 0.46, 0.85, 0.91, 0.141)),
        *known(AUTHORS, "sketch", STYLE),
        *known(
            ELSEWHERE, "cat", {"unlearning_accuracy": 0.55, "drift": 0.030, "unconditional_share": 0.05}, "ddpm-cifar10"
        ),
    ),
    "concept-ablation": (
        *known(RESTATED, "cat", named(0.90, 0.05, 0.78, 0.89, 0.29)),
        *known(RESTATED, "sketch", STYLE),
    ),
    "salun": (
        *known(RESTATED, "cat", named(0.90, 0.07, 0.56, 0.83, 0.28)),
        *known(RESTATED, "sketch", STYLE),
        *known(f"{ELSEWHERE}, lr 1e-4", "cat", {"unlearning_accuracy": 0.10}, "ddpm-cifar10"),
    ),
    "official": known(f"{AUTHORS}, 100 steps", "cat", {"in_domain_accuracy": 0.15}, "ddpm-cifar10"),
}  # fmt: skip
OWN = {
    method.name: method
    for method in (
        Method("default", "SEMU, default", semu, expected=at_least(0.9)),
        Method(
            "closed-form", "SEMU, closed form only", semu, {"method": "closed-form"},
            expected=at_least(0.85), knob=None,
        ),
        Method("trained", "SEMU, R only", semu, {"method": "trained"}),
        Method("random", "SEMU, random directions of the same rank", semu, {"gradient": "random"}),
        Method("no-adversary", "SEMU, no adversarial vectors", semu, {"adversarial": 0.0}),
        Method("null-space", "SEMU, null space only", semu, {"retain": "none"}),
        Method("retain", "SEMU, retain term only", semu, {"protect": "none"}),
        Method("unprotected", "SEMU, nothing protected", semu, UNPROTECTED),
        Method("official", "SEMU, the reference code's choices", semu, PRESETS["official"], ("class",), KNOWN["official"]),
        Method("copy", "class-embedding copy (trivial)", copy_embedding, {}, ("class",), at_least(0.85), None),
        Method("remap", "token remap (trivial)", remapped, {}, ("concept",), at_least(0.9), None),
        Method("fine-tune", "all weights, same objective", fine_tuned, {"lr": 1e-4, "retain": "none"}),
        Method("fine-tune-retain", "all weights, self-made retain term", fine_tuned, {"lr": 1e-4}),
        Method("esd-x", "ESD-x (cross-attention)", esd_x, {**ESD, "lr": 5e-4}, ("concept",), KNOWN["esd-x"]),
        Method(
            "esd-u", "ESD-u (all but cross-attention)", esd_u, {**ESD, "lr": 2e-4, "steps": 200}, expected=KNOWN["esd-u"]
        ),
        Method(
            "concept-ablation", "concept ablation", concept_ablation, ABLATION, ("concept",), KNOWN["concept-ablation"]
        ),
        Method("salun", "SalUn", salun, SALUN, expected=KNOWN["salun"]),
        Method("leco", "LECO (free LoRA)", leco, LECO, note=NOBODY),
        Method("spm", "SPM (rank 1, latent anchoring)", spm, SPM, note=NOBODY),
        Method(
            "uce", "UCE", uce, expected=(*at_least(0.85), *KNOWN["uce"]), knob=("preserve", TENFOLD), own={"preserve": PRESERVE}
        ),
        Method(
            "rece", "RECE", rece, {"steps": 5}, knob=("preserve", TENFOLD), own={"preserve": PRESERVE}, note=NOBODY
        ),
        Method(
            "speed", "SPEED", speed, {}, ("concept",), (*at_least(0.85), *KNOWN["speed"]), ("threshold", TENFOLD),
            {"threshold": THRESHOLD},
        ),
        Method("erasediff", "EraseDiff", erasediff, KEEPING, note=NOBODY),
        Method("sfr-on", "SFR-on", sfr_on, KEEPING, note=NOBODY),
        Method("ascent", "gradient ascent, all weights", fine_tuned, {**PLAIN, "target": "ascent", "lr": 2e-6}),
    )
}  # fmt: skip
METHODS = Registry("semu_diffusion.methods", OWN, lambda name, found: isinstance(found, Method) and found.name == name)


def read_methods(path: str | Path) -> dict[str, Method]:
    """Variants of known methods from a JSON file: ``{"rank-4": {"base": "default", "title": "rank 4", "max_rank": 4}}``.

    Everything beside ``base``, ``title`` and ``expected``, a list of what `Expected` holds, is a setting. Raises InputError for
    a file that holds none.
    """
    try:
        content = read_json(path, f"--methods {path}")
        found = {}
        for name, settings in content.items():
            settings = dict(settings)
            base = METHODS[settings.pop("base", "default")]
            title, expected = str(settings.pop("title", name)), settings.pop("expected", ())
            overrides: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
            }
            wrong = [key for key in base.own if not 0 < float(overrides.get(key, 1.0)) < math.inf]
            if wrong:
                raise ValueError(f"{wrong[0]} must be a positive number")
            knob = None if base.knob is not None and base.knob[0] in overrides else base.knob  # it has been decided on
            settings = {**base.overrides, **overrides}
            found[name] = replace(
                base, name=name, title=title, overrides=settings, expected=tuple(Expected(**one) for one in expected), knob=knob
            )
        if not found:
            raise ValueError("it names none")
        return found
    except KeyError as error:
        raise InputError(f"--methods {path}: no method {error}; there are {', '.join(METHODS)}") from error
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'--methods {path}: needs {{"name": {{"base": "default", "max_rank": 4}}}} ({error})') from error
