"""``semu push``: a run folder's patch, LoRA files, card and numbers as a repository of the Hugging Face Hub.

Only tested against a stand-in of the Hub's client: nothing here has been uploaded from a test.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from semu_diffusion.errors import InputError
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.flags import Parser, add_config_flags, epilog

__all__ = ["PushConfig", "main", "parse", "public_record", "push"]

EXAMPLES = ("semu push runs/cat me/without-cat --private",)
SENT = ("patch.safetensors", "README.md", "before_after.png", "metrics.json")
PEFT_CONFIG = "adapter_config.json"  # beside the LoRA of a class model, which PEFT loads
UNTOLD = ("command", "platform")  # of run.json: they tell of the machine, not of the patch


@dataclass(frozen=True)
class PushConfig:
    private: bool = option(False, "make the repository private")


def parse(argv: Sequence[str]) -> tuple[Path, str, PushConfig]:
    parser = Parser(prog="semu push", description=(__doc__ or "").replace("``", ""), epilog=epilog(EXAMPLES))
    parser.add_argument("run", metavar="RUN_FOLDER", help="a finished run of erase-concept or erase-class")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the Hub; made if it is not there")
    add_config_flags(parser, PushConfig)
    flags = vars(parser.parse_args(argv))
    return Path(flags.pop("run")), str(flags.pop("repo")), build_config(PushConfig, flags)


def main(argv: Sequence[str]) -> int:
    def job() -> int:
        run, repo, config = parse(argv)
        print(push(run, repo, config.private))
        return 0

    return run_guarded("semu push", job)


def push(run: Path, repo: str, private: bool = False) -> str:
    """Upload a finished run and return the repository's address. InputError for an unfinished run, and if the Hub refuses."""
    from huggingface_hub import HfApi

    from semu_diffusion.pipelines.report.card import patch_card

    record, metrics = (_read(run / name) for name in ("run.json", "metrics.json"))
    if record.get("status") != "complete" or not (run / "patch.safetensors").is_file():
        raise InputError(f"{run} is not a finished run ({record.get('status', 'no status')}): only those are pushed")
    with TemporaryDirectory() as made:
        folder = Path(made)
        for name in SENT:
            if (run / name).is_file() and name.endswith(".safetensors"):
                _copy_without_paths(run / name, folder / name)
            elif name == "metrics.json":
                _write(folder / name, _without_paths(metrics))
            elif (run / name).is_file():
                shutil.copy(run / name, folder / name)
        for path in sorted((run / "lora").glob("*.safetensors")):
            (folder / "lora").mkdir(exist_ok=True)
            _copy_without_paths(path, folder / "lora" / path.name)
        if (run / "lora" / PEFT_CONFIG).is_file():
            _write(folder / "lora" / PEFT_CONFIG, _without_paths(_read(run / "lora" / PEFT_CONFIG)))
        _write(folder / "run.json", public_record(record))
        if not (folder / "README.md").is_file():
            card = patch_card(public_record(record), _without_paths(metrics))
            (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi()
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Patch, LoRA files, card and numbers")
        except Exception as error:  # the Hub's client raises a dozen unrelated classes; each means that it was not taken
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"the Hub did not take {repo} ({reason}); log in with: hf auth login") from error
    return address


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_without_paths(source: Path, target: Path) -> None:
    """Copy a safetensors file whose header names no folder of this machine."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(source, "pt") as content:
        header = dict(content.metadata() or {})
    told = {key: json.dumps(_without_paths(json.loads(text))) if text[:1] == "{" else text for key, text in header.items()}
    save_file(load_file(source), target, metadata=told)


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """run.json without what tells of the machine: no command line, and of local paths the last part alone."""
    return {key: _without_paths(value) for key, value in record.items() if key not in UNTOLD}


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
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.parent} holds no finished run ({path.name} cannot be read)") from error
    return content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
