"""A command that is ended in the middle, anywhere, tells no lie, and the next one puts everything in order.

``SEMU_KILLS=120`` makes the test that much longer (`make stress`), ``SEMU_SEED`` another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS, SEED = (int(os.environ.get(name, default)) for name, default in (("SEMU_KILLS", "6"), ("SEMU_SEED", "0")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks")
def test_commands_that_are_ended_anywhere_leave_what_they_promise(tmp_path: Path) -> None:
    given = [sys.executable, str(Path(__file__).with_name("kills.py")), str(KILLS), str(SEED), str(tmp_path)]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["tried"].values()) == KILLS
