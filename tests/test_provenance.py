"""What a run says of where its numbers come from."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from semu_diffusion.models import precision
from semu_diffusion.pipelines.runs.provenance import environment, peak_memory_bytes

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def test_versions_threads_device_and_command_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/erase-class", "cat"])
    found = environment(CPU)
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["precision"]) == ("cpu", None)
    assert found["command"] == ["erase-class", "cat"]  # not where it is installed


@pytest.mark.parametrize(("has_bf16", "resolved"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_what_the_setting_came_to(has_bf16: bool, resolved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: has_bf16)
    assert environment(CPU, "auto")["precision"] == resolved
    assert environment(CPU, "fp32", "auto")["sampling_precision"] == resolved
    assert [environment(CPU, given)["precision"] for given in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a checkout")
def test_a_checkout_knows_its_commit() -> None:
    assert environment()["git_commit"]


def test_the_memory_of_the_process_is_counted_in_bytes() -> None:
    assert 10**7 < peak_memory_bytes(CPU) < 10**12
