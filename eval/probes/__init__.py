"""What is tried against an erased model. A new probe is a class in a file and a line in `PROBES`.

Those that learn search a vector and cost a training; the others only enter the sampler elsewhere.
"""

from __future__ import annotations

from typing import Any

from semu_diffusion.eval.probes.class_vector import ClassVectorProbe
from semu_diffusion.eval.probes.completion import CompletionProbe
from semu_diffusion.eval.probes.inversion import InversionProbe
from semu_diffusion.eval.probes.noise import NoiseProbe
from semu_diffusion.eval.probes.pseudo_word import PseudoWordProbe
from semu_diffusion.eval.probes.quantised import Fp8Probe, Int8Probe
from semu_diffusion.eval.probes.recovery import RecoveryProbe, UnlabelledRecoveryProbe
from semu_diffusion.plugins import Registry

__all__ = ["PROBES"]

OWN: dict[str, Any] = {
    probe.name: probe
    for probe in (
        ClassVectorProbe,
        PseudoWordProbe,
        CompletionProbe,
        RecoveryProbe,
        UnlabelledRecoveryProbe,
        NoiseProbe,
        InversionProbe,
        Int8Probe,
        Fp8Probe,
    )
}
PARTS = ("default", "learns", "seeded", "needs", "applies", "run")


def _is_probe(name: str, found: Any) -> bool:
    return isinstance(found, type) and getattr(found, "name", None) == name and all(hasattr(found, part) for part in PARTS)


PROBES = Registry("semu_diffusion.probes", OWN, _is_probe)
