"""What is written appears complete or not at all, and with the permissions that any new file has."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from semu_diffusion.eval.images import save_images
from semu_diffusion.files import as_new_files, save_tensors
from semu_diffusion.pipelines.report.grid import save_png
from semu_diffusion.pipelines.runs.folder import written_beside
from semu_diffusion.pipelines.train.run import replace_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX")


@pytest.fixture(params=[0o022, 0o027])
def new_file(request: pytest.FixtureRequest) -> Iterator[int]:
    """The permissions of a new file, under two masks."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_of_tensors_may_be_read_by_whom_a_new_file_may(tmp_path: Path, new_file: int) -> None:
    path = save_tensors({"a": torch.ones(2)}, tmp_path / "new" / "patch.safetensors", {"semu": "{}"})
    assert permissions(path) == new_file
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert list(path.parent.iterdir()) == [path]


def test_pictures_too(tmp_path: Path, new_file: int) -> None:
    assert permissions(save_png(Image.new("RGB", (2, 2)), tmp_path / "grid.png")) == new_file
    folder = save_images(torch.zeros(1, 3, 4, 4), tmp_path / "images")
    assert permissions(folder / "00000.png") == new_file
    (tmp_path / "new").mkdir()
    assert permissions(folder) == permissions(tmp_path / "new")


def test_exported_and_trained_folders_hold_no_private_files(tmp_path: Path, new_file: int) -> None:
    def fill(folder: Path) -> None:
        (folder / "unet").mkdir(parents=True)
        save_file({"a": torch.ones(2)}, folder / "unet" / "weights.safetensors")
        (folder / "unet" / "weights.safetensors").chmod(0o600)

    with written_beside(tmp_path / "exported") as beside:
        fill(beside)
    fill(tmp_path / "model.part")
    replace_folder(tmp_path / "model.part", tmp_path / "model")
    for name in ("exported", "model"):
        assert permissions(tmp_path / name / "unet" / "weights.safetensors") == new_file
        assert os.access(tmp_path / name / "unet", os.X_OK)  # folders keep theirs
    assert {path.name for path in tmp_path.iterdir()} == {"exported", "model"}


def test_tensors_that_cannot_be_written_leave_the_last_file(tmp_path: Path) -> None:
    path = save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match="invalid"):
        save_tensors({"a": "no tensor"}, path, {})  # type: ignore[dict-item]
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    as_new_files(path)
    assert list(tmp_path.iterdir()) == [path]
