"""The build is described in pyproject.toml; this file only refuses a checkout that lost its links."""

from pathlib import Path

from setuptools import setup

for room in ("pipelines", "eval", "assets"):
    if not (Path(__file__).parent / "semu_diffusion" / room).is_dir():
        raise SystemExit(
            f"semu_diffusion/{room} must be a link to the folder {room}/, and this checkout has none: run "
            "`git config core.symlinks true && git checkout -- semu_diffusion` (Windows: in developer mode), then install again"
        )

setup()
