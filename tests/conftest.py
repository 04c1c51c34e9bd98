"""Fixtures that every test may use; no network, no files outside tmp_path."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tiny_models import tiny_model

from semu_diffusion.models.class_conditional import ClassConditional

torch.set_num_threads(1)  # the models are so small that threads only wait for each other


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    """A layer that a test makes has the same weights in every run, in whatever order the tests run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def model() -> ClassConditional:
    return tiny_model()


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals that end a process do, also where the tests were started so that they are ignored (``nohup``, ``&``)."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
