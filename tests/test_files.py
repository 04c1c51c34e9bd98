"""What is written appears complete or not at all, and with the permissions that any new file has."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from semu_diffusion.eval.images import save_images
from semu_diffusion.files import (
    ENDING,
    atomic_file,
    atomic_folder,
    public_name,
    save_tensors,
    strip_local_paths,
    write_text,
)
from semu_diffusion.pipelines.report.grid import save_png

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

    with atomic_folder(tmp_path / "exported") as beside:
        fill(beside)
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model", overwrite=True) as beside:
        fill(beside)
    for name in ("exported", "model"):
        assert permissions(tmp_path / name / "unet" / "weights.safetensors") == new_file
        assert os.access(tmp_path / name / "unet", os.X_OK)  # folders keep theirs
    assert {path.name for path in tmp_path.iterdir()} == {"exported", "model"}


def test_tensors_that_cannot_be_written_leave_the_last_file(tmp_path: Path) -> None:
    path = save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match="invalid"):
        save_tensors({"a": "no tensor"}, path, {})  # type: ignore[dict-item]
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def half(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError


def test_a_file_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with atomic_file(path) as beside:
            beside.write_text(text)
            assert not path.is_file() or path.read_text() == "first"
    with pytest.raises(RuntimeError), atomic_file(path) as beside:
        half(beside)
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "below" / "model"
    for text in ("first", "second"):
        with atomic_folder(path, overwrite=True) as beside:
            (beside / "a.txt").write_text(text)
            assert not path.is_dir() or (path / "a.txt").read_text() == "first"
    with pytest.raises(RuntimeError), atomic_folder(path, overwrite=True) as beside:
        half(beside / "a.txt")
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as beside:
        (beside / "a.txt").write_text("unasked")
    real = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == path and (source / "a.txt").read_text() == "third":
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"), atomic_folder(path, overwrite=True) as beside:
        (beside / "a.txt").write_text("third")
    assert (path / "a.txt").read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_what_killed_processes_left_goes_and_what_live_ones_write_stays(tmp_path: Path) -> None:
    path, gone = tmp_path / "a.txt", 1234567
    left = [tmp_path / f".a.txt.{number}.part" for number in (gone, os.getppid())]
    for one in (*left, tmp_path / f".b.txt.{gone}.part"):
        one.write_text("half")
    write_text(path, "whole")
    assert {one.name for one in tmp_path.iterdir()} == {"a.txt", left[1].name, f".b.txt.{gone}.part"}
    away = tmp_path / f".a.txt.{gone}-0123abcd.part"  # on another machine this number may be alive
    away.write_text("half")
    write_text(path, "whole")
    assert away.exists()
    os.utime(away, (0, 0))
    write_text(path, "whole")
    assert not away.exists()
    (tmp_path / f".model.{gone}.last").mkdir()
    (tmp_path / f".model.{gone}.last" / "weights").write_text("the only ones")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model", overwrite=True) as beside:
        half(beside / "weights")
    assert (tmp_path / "model" / "weights").read_text() == "the only ones"


def test_a_saved_model_does_not_say_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    told = {"_name_or_path": "somewhere", "width": 8}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(told))
    (tmp_path / "model_index.json").write_text(json.dumps({**told, "local_files_only": True, "is_local": True}))
    strip_local_paths(tmp_path)
    for name in ("unet/config.json", "model_index.json"):
        assert json.loads((tmp_path / name).read_text()) == {"width": 8}


def test_a_public_name_has_no_folder_of_this_machine_and_leaves_other_words_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = {
        "/home" + "/jane/sd": "sd", "~/models/sd": "sd", "./sd": "sd", "../other/sd": "sd", "a/b/sd": "sd", ".": tmp_path.name,
        "models/mine": "mine", "clip:ViT-B-32:/data/w.safetensors": "clip:ViT-B-32:w.safetensors",
    }  # fmt: skip
    assert {given: public_name(given) for given in told} == told
    words = (
        "owner/name",
        "embedded",
        "",
        "/",
        "a photo of a cat/dog/bird",
        "https://a.org/b/c",
        "timm:hf-hub:owner/name",
        "0:1",
    )
    assert tuple(map(public_name, words)) == words


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_while_the_former_folder_goes_waits_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    real = shutil.rmtree

    def ended(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(number)
        real(*arguments, **options)

    def stop(got: int, frame: Any) -> None:
        raise KeyboardInterrupt(got)

    monkeypatch.setattr(shutil, "rmtree", ended)
    former = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model", overwrite=True) as beside:
            (beside / "new").touch()
    finally:
        signal.signal(number, former)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "new"]
