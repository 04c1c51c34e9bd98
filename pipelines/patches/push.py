"""A run folder's patch, LoRA files, card and numbers as a repository of the Hugging Face Hub.

Only tested against a stand-in of the Hub's client: nothing here has been uploaded from a test.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from semu_diffusion.errors import InputError, reason
from semu_diffusion.files import public_name, read_json, write_json, write_text
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.report.card import for_repository, patch_card

__all__ = ["public_record", "push"]

PRIVATE_KEYS = ("command", "platform")  # of run.json: they tell of the machine, not of the patch


def push(run: Path, repo: str, private: bool = False) -> str:
    """Upload a finished run and return the repository's address. InputError for an unfinished run, and if the Hub refuses."""
    from huggingface_hub import HfApi

    record, metrics = (_read(run / name) for name in ("run.json", "metrics.json"))
    if record.get("status") != "complete" or not (run / "patch.safetensors").is_file():
        raise InputError(f"{run} is not a finished run ({record.get('status', 'no status')}): only those are pushed")
    with TemporaryDirectory() as made:
        folder = Path(made)
        _fill(folder, run, record, metrics, repo)
        try:
            api = HfApi()
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Patch, LoRA files, card and numbers")
        except Exception as error:  # the Hub's client raises a dozen unrelated classes; each means that it was not taken
            raise InputError(f"the Hub did not take {repo} ({reason(error)}); log in with: hf auth login") from error
    return address


def _fill(folder: Path, run: Path, record: dict[str, Any], metrics: dict[str, Any], repo: str) -> None:
    """Copy what is uploaded: patch, LoRA files and card name no folder of this machine, and the records do no longer."""
    ErasurePatch.load(run / "patch.safetensors")  # a broken one is not for others
    for path in (run / "patch.safetensors", *sorted((run / "lora").glob("*")), run / "before_after.png"):
        if path.is_file():
            _check_finite(path)
            (folder / path.relative_to(run)).parent.mkdir(exist_ok=True)
            shutil.copy(path, folder / path.relative_to(run))
    record, metrics = public_record(record, run), _without_paths(metrics, run)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "run.json", record)
    card = run / "README.md"
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else patch_card(record, metrics)
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{run} holds no finished run: its run.json lacks what a card says ({error!r})") from error
    write_text(folder / card.name, for_repository(text, repo))


def _check_finite(path: Path) -> None:
    """InputError for a LoRA file that cannot be read or holds numbers that are not finite."""
    if path.parent.name != "lora" or path.suffix != ".safetensors":
        return
    try:
        if not all(tensor.isfinite().all() for tensor in load_file(path).values()):
            raise ValueError("its numbers are not finite")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a LoRA of this run ({reason(error)})") from error


def public_record(record: dict[str, Any], run: Path) -> dict[str, Any]:
    """The content of run.json without what tells of the machine: no command line, and of local paths the last part alone."""
    return {key: _without_paths(value, run) for key, value in record.items() if key not in PRIVATE_KEYS}


def _without_paths(value: Any, run: Path) -> Any:
    """JSON with the last part alone of every path in it; relative ones are looked for here and above the run's folder."""
    if isinstance(value, dict):
        return {key: _without_paths(one, run) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one, run) for one in value]
    return public_name(value, (Path(), *run.resolve().parents)) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, f"{path.parent} holds no finished run: {path.name}")
    if not isinstance(content, dict):
        raise InputError(f"{path.parent} holds no finished run: {path.name} is no JSON object")
    return content
