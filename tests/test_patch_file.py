"""A patch survives the disk, and its reader takes nothing on trust."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from patches import random_patch, weight_bytes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from semu_diffusion.errors import InputError
from semu_diffusion.patch import ErasurePatch


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("matricisation", ["full", "per_channel"])
def test_a_saved_patch_is_the_same_to_the_last_bit(matricisation, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = net()
    patch = dataclasses.replace(random_patch(model, matricisation=matricisation).scale(0.7), metadata={"forget": ["ü"], "n": 3})
    path = patch.save(tmp_path / "deep" / "patch.safetensors")
    loaded = ErasurePatch.load(path)
    assert path == tmp_path / "deep" / "patch.safetensors"
    assert list(path.parent.iterdir()) == [path]
    assert loaded.layers.keys() == patch.layers.keys()
    assert all(torch.equal(loaded.delta(name), patch.delta(name)) for name in patch.layers)
    assert (loaded.metadata, loaded.strength) == (patch.metadata, 0.7)
    assert (loaded.trained_parameters, loaded.nbytes) == (patch.trained_parameters, patch.nbytes)
    one, two = net(), net()
    patch.apply(one)
    loaded.apply(two)
    assert weight_bytes(one) == weight_bytes(two)


@pytest.mark.parametrize("content", [b"", b"just some text\nin two lines\n", b"\x10\0\0\0\0\0\0\0{broken", b"{}"])
def test_files_that_are_no_safetensors_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    one_line_refusal(path, "not a readable safetensors")


def one_line_refusal(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        ErasurePatch.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_truncated_foreign_missing_and_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = random_patch(net()).save(tmp_path / "whole.safetensors")
    path = tmp_path / "p.safetensors"
    for share in (0.1, 0.5, 0.999):
        path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        one_line_refusal(path, "not a readable safetensors")
    save_file({"weight": torch.ones(2)}, path)
    one_line_refusal(path, "not a patch")
    one_line_refusal(tmp_path / "absent.safetensors", "no such patch file")
    one_line_refusal(tmp_path, "no such patch file")
    tensors = load_file(whole)
    with safe_open(whole, "pt") as file:
        header = json.loads(file.metadata()["semu"])
    counted = {**header, "metadata": {**header["metadata"], "closed_form": 3}}
    for text in (
        "no json",
        "[]",
        "{}",
        json.dumps(counted),
        json.dumps({**header, "layers": {"0": 3}}),
        json.dumps({**header, "strength": None}),
    ):
        save_file(tensors, path, metadata={"semu": text})
        one_line_refusal(path, "damaged patch")
    none = {"fingerprint": torch.zeros(0, 5)}
    save_file(none, path, metadata={"semu": json.dumps({**header, "layers": {}})})
    one_line_refusal(path, "damaged patch")
    save_file({name: t for name, t in tensors.items() if name != "2.core"}, path, metadata={"semu": json.dumps(header)})
    one_line_refusal(path, r"damaged patch .*2\.core")
    save_file(tensors, path, metadata={"semu": json.dumps({**header, "format": "semu-patch-9"})})
    one_line_refusal(path, "semu-patch-9")


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random_patch(net()).save(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def full(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        random_patch(net(), 1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["semu"])


def test_what_was_changed_since_it_was_written_is_refused(tmp_path: Path) -> None:
    tensors, header = parts_of(random_patch(net()).save(tmp_path / "whole.safetensors"))
    path = tmp_path / "p.safetensors"
    for key, value in {"strength": 0.5, "metadata": {"forget": ["dog"]}, "overlap": 0.1, "structure": "0" * 16}.items():
        save_file(tensors, path, metadata={"semu": json.dumps({**header, key: value})})
        one_line_refusal(path, "checksum does not match")
    for name in tensors:
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        changed[name].flatten()[0] = changed[name].flatten()[0] * 0.5 + 1
        save_file(changed, path, metadata={"semu": json.dumps(header)})
        one_line_refusal(path, "checksum does not match")


def test_a_file_from_before_checksum_and_overlap_is_read_and_still_checked(tmp_path: Path) -> None:
    model = net()
    patch = random_patch(model)
    tensors, header = parts_of(patch.save(tmp_path / "whole.safetensors"))
    path = tmp_path / "p.safetensors"
    old = {key: value for key, value in header.items() if key not in ("sha256", "overlap")}
    save_file(tensors, path, metadata={"semu": json.dumps(old)})
    loaded = ErasurePatch.load(path)
    assert loaded.same_as(patch)
    assert loaded.overlap is None
    before = weight_bytes(model)
    loaded.apply(model)
    loaded.remove(model)
    assert weight_bytes(model) == before
    for value, said in (
        (float("nan"), "2.core is not finite"),
        (-float("inf"), "2.core is not finite"),
        (1e38, "beyond measure"),
    ):
        changed = copy.deepcopy(tensors)
        changed["2.core"][0, 0, 0] = value
        save_file(changed, path, metadata={"semu": json.dumps(old)})
        one_line_refusal(path, said)
    for strength in (float("nan"), float("inf"), 1e38, 10**400, True, "1"):
        save_file(tensors, path, metadata={"semu": json.dumps({**old, "strength": strength})})
        one_line_refusal(path, "damaged patch \\(strength")
    deep = json.dumps(old)[:-1] + ', "more": ' + "[" * 50 + "]" * 50 + "}"
    save_file(tensors, path, metadata={"semu": deep})
    one_line_refusal(path, "no header of a patch")
    save_file({**tensors, "5.core": tensors["2.core"].clone()}, path, metadata={"semu": json.dumps(old)})
    one_line_refusal(path, "tensors that belong to no layer")
    save_file({**tensors, "2.left": tensors["2.left"][:, :-1].clone()}, path, metadata={"semu": json.dumps(old)})
    one_line_refusal(path, r"shape of 2\.left")
