"""A run folder's patch, LoRA files, card and numbers as a repository of the Hugging Face Hub.

Only tested against a stand-in of the Hub's client: nothing here has been uploaded from a test.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from semu_diffusion.errors import InputError
from semu_diffusion.files import read_json, save_tensors, write_json, write_text
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.report.card import patch_card

__all__ = ["public_record", "push"]

PICTURE_AND_CARD = ("before_after.png", "README.md")
PEFT_CONFIG = "adapter_config.json"  # beside the LoRA of a class model, which PEFT loads
PRIVATE_KEYS = ("command", "platform")  # of run.json: they tell of the machine, not of the patch


def push(run: Path, repo: str, private: bool = False) -> str:
    """Upload a finished run and return the repository's address. InputError for an unfinished run, and if the Hub refuses."""
    from huggingface_hub import HfApi

    record, metrics = (_read(run / name) for name in ("run.json", "metrics.json"))
    if record.get("status") != "complete" or not (run / "patch.safetensors").is_file():
        raise InputError(f"{run} is not a finished run ({record.get('status', 'no status')}): only those are pushed")
    with TemporaryDirectory() as made:
        folder = Path(made)
        _fill(folder, run, record, metrics)
        try:
            api = HfApi()
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Patch, LoRA files, card and numbers")
        except Exception as error:  # the Hub's client raises a dozen unrelated classes; each means that it was not taken
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"the Hub did not take {repo} ({reason}); log in with: hf auth login") from error
    return address


def _fill(folder: Path, run: Path, record: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Copy what is uploaded, nothing of it with a path of this machine in it."""
    try:
        card = patch_card(public_record(record), _without_paths(metrics))
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{run} holds no finished run: its run.json lacks what a card says ({error!r})") from error
    patch = ErasurePatch.load(run / "patch.safetensors")  # saved anew: its checksum covers the header
    replace(patch, metadata=_without_paths(dict(patch.metadata))).save(
        folder / "patch.safetensors"
    )  # its checksum holds the header
    for path in sorted((run / "lora").glob("*.safetensors")):
        _copy_without_paths(path, folder / path.relative_to(run))
    if (run / "lora" / PEFT_CONFIG).is_file():
        write_json(folder / "lora" / PEFT_CONFIG, _without_paths(_read(run / "lora" / PEFT_CONFIG)))
    write_json(folder / "metrics.json", _without_paths(metrics))
    write_json(folder / "run.json", public_record(record))
    for name in PICTURE_AND_CARD:
        if (run / name).is_file():
            shutil.copy(run / name, folder / name)
    if not (run / "README.md").is_file():
        write_text(folder / "README.md", card)


def _copy_without_paths(source: Path, target: Path) -> None:
    """Copy a safetensors file whose header names no folder of this machine."""
    try:
        with safe_open(source, "pt") as content:
            header = dict(content.metadata() or {})
        public = {
            key: json.dumps(_without_paths(json.loads(text))) if text[:1] == "{" else text for key, text in header.items()
        }
        tensors = load_file(source)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("its numbers are not finite")
    except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
        raise InputError(f"{source} is not a LoRA of this run ({' '.join(str(error).split())[:200]})") from error
    save_tensors(tensors, target, public)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """run.json without what tells of the machine: no command line, and of local paths the last part alone."""
    return {key: _without_paths(value) for key, value in record.items() if key not in PRIVATE_KEYS}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, str) and len(value) > 1:
        relative = "/" in value and os.path.exists(value)
        if relative or value.startswith(("/", "~", "./", "../")):
            return Path(value).name
    return value


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, f"{path.parent} holds no finished run: {path.name}")
    if not isinstance(content, dict):
        raise InputError(f"{path.parent} holds no finished run: {path.name} is no JSON object")
    return content
