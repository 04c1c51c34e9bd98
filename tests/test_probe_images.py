"""What the probes of a run are shown is made by the original once, however much was erased."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_models import saved_judge, saved_model

from semu_diffusion.pipelines.runs import probe_images
from semu_diffusion.pipelines.runs.config import EraseClassConfig
from semu_diffusion.pipelines.runs.domains import load_classes
from semu_diffusion.pipelines.runs.scorer import make_probes, make_scorer


def test_the_pictures_that_stay_are_made_once_for_all_that_is_erased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, made = ("red", "green", "blue"), []
    model, judge = saved_model(tmp_path / "model", names=names), saved_judge(tmp_path / "judge", names)
    settings: Any = {"revival": False, "probes": ("inversion",), "probe_samples": 3, "sampling_steps": 2}
    subject = load_classes(EraseClassConfig(forget=("red", "green"), model=model, classifier=judge, **settings))
    of_the_model = probe_images.self_made

    def counted(model: Any, rows: Any, *rest: Any) -> Any:
        made.append(sorted(set(rows)))
        return of_the_model(model, rows, *rest)

    monkeypatch.setattr(probe_images, "self_made", counted)
    (probe,) = make_probes(subject, make_scorer(subject))
    assert [one.name for one in probe.shown] == ["red", "green"]
    assert made == [[0], [2], [1]]
    first, second = (one.kept for one in probe.shown)
    assert first is not None
    assert second is not None
    assert first.clean is second.clean
