"""What the user can set of the commands that begin with a patch; light, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semu_diffusion.options import option

__all__ = ["BaseModel", "PatchFile"]


@dataclass(frozen=True)
class PatchFile:
    """One patch."""

    patch: str = option(
        "", "patch.safetensors, or the run folder that holds it", metavar="PATCH", positional=True, required=True
    )
    strength: float = option(1.0, "factor on the update, beside the strength that the patch was saved with", metavar="S")


@dataclass(frozen=True)
class BaseModel:
    """The model that a patch goes on; what is None or empty, the patch or the model says."""

    model: str | None = option(None, "base model (default: the one the patch was made for)", metavar="MODEL", group="model")
    class_names: tuple[str, ...] = option(
        (), "names of the model's classes, in order (default: the patch's)", metavar="A,B,…", comma="names", group="model"
    )
    null_class: int | None = option(
        None, "index of 'no class' (default: the last, if there is one more than names)", metavar="INDEX", group="model"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, if the base model is a single file that does not say so (SD 2.x)", group="model"
    )
