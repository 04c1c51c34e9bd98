"""No file of weights runs code, whichever library reads it: every loader is listed, and tried with a file that would."""

from __future__ import annotations

import ast
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import saved_model
from test_architecture import ROOMS, ROOT, calls, imports, sources, within
from text_models import tiny_pipeline

from semu_diffusion.errors import InputError
from semu_diffusion.eval.judges.judge import load_judge
from semu_diffusion.eval.metrics.fid import load_fid_extractor
from semu_diffusion.eval.metrics.lpips import load_lpips
from semu_diffusion.files import tensors_only
from semu_diffusion.models.checkpoints import load_class_conditional, load_text_pipeline
from semu_diffusion.pipelines.patches.import_ddpm import import_ddpm
from semu_diffusion.pipelines.train.classifier import Classifier, ClassifierTraining

# calls that may end in torch.load, in whatever library
LOADER = re.compile(
    r"(.*\.)?(from_pretrained|from_single_file|create_model\w*|get_model|load_lora_weights|load_dataset|load_from_disk|\w*_from_url"
    r"|LearnedPerceptualImagePatchSimilarity|FeatureExtractor\w+|\w*InceptionDistance|InceptionScore|jit\.load|hub\.load|read_pickle)"
)
PICKLERS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
LOADERS = {
    ("eval/judges/clip.py", "create_model"),
    ("eval/judges/networks.py", "create_model"),
    ("eval/judges/networks.py", "get_model"),
    ("eval/metrics/dino.py", "from_pretrained"),
    ("eval/metrics/fid.py", "FeatureExtractorInceptionV3"),
    ("eval/metrics/fid.py", "FrechetInceptionDistance"),
    ("eval/metrics/lpips.py", "LearnedPerceptualImagePatchSimilarity"),
    ("pipelines/runs/lora_check.py", "from_pretrained"),
    ("pipelines/runs/lora_check.py", "load_lora_weights"),
    ("pipelines/train/autoencoder.py", "from_pretrained"),
    ("pipelines/train/text_to_image.py", "from_pretrained"),
    ("pipelines/train/text_to_image_parts.py", "from_pretrained"),
    ("semu_diffusion/models/checkpoints.py", "from_pretrained"),
    ("semu_diffusion/models/checkpoints.py", "from_single_file"),
    ("semu_diffusion/models/weight_files.py", "from_pretrained"),
}
HARMLESS = re.compile(
    r".*(Tokenizer|AutoConfig|ImageProcessor)\.from_pretrained|.*\.FrechetInceptionDistance"
)  # JSON; a network that is there already


class Code:
    """What touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_every_loader_of_another_library_is_listed_and_reads_tensors_alone() -> None:
    found, open_ones = set(), []
    for path in (path for path in sources() if path.split("/")[0] in ROOMS):
        for name, call, fenced in calls(ast.parse((ROOT / path).read_text()), fence="tensors_only"):
            if LOADER.fullmatch(name):
                found.add((path, name.rpartition(".")[2]))
                safe = any(word.arg == "use_safetensors" and getattr(word.value, "value", 0) is True for word in call.keywords)
                if not (fenced or safe or HARMLESS.fullmatch(name)):
                    open_ones.append(f"{path}, line {call.lineno}: {name}")
    assert not open_ones
    assert found == LOADERS


def test_no_file_imports_what_unpickles() -> None:
    trees = {path: ast.parse((ROOT / path).read_text()) for path in sources() if path.split("/")[0] in ROOMS}
    assert not [(path, name) for path, tree in trees.items() for name in imports(path, tree) if within(name, *PICKLERS)]


def test_a_switch_makes_every_torch_load_refuse_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Code(tmp_path / "ran"), tmp_path / "a.pt")
    careless = torch.load
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        careless(tmp_path / "a.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# ------------------------------------------------------------------ each with a file that would


def hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def torchvision_judge(folder: Path) -> tuple[Path, Callable[[], Any]]:
    from torchvision.models import ResNet18_Weights

    return hub_file(ResNet18_Weights.DEFAULT.url), lambda: load_judge("torchvision:resnet18", ("cat", "dog"))


def timm_judge(folder: Path) -> tuple[Path, Callable[[], Any]]:
    (folder / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": {}}')
    return folder / "pytorch_model.bin", lambda: load_judge(f"timm:local-dir:{folder}", ("cat", "dog"))


def lpips(folder: Path) -> tuple[Path, Callable[[], Any]]:
    from torchvision.models import AlexNet_Weights

    return hub_file(AlexNet_Weights.DEFAULT.url), load_lpips


def inception(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "weights.pth", lambda: load_fid_extractor(folder / "weights.pth")


def clip_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "clip.pt", lambda: load_judge(f"clip:ViT-B-32:{folder / 'clip.pt'}", ("cat", "dog"))


def class_model(folder: Path) -> tuple[Path, Callable[[], Any]]:
    saved_model(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return folder / "unet" / "diffusion_pytorch_model.bin", lambda: load_class_conditional(folder)


def text_model(folder: Path) -> tuple[Path, Callable[[], Any]]:
    tiny_pipeline().save_pretrained(folder)
    next((folder / "text_encoder").glob("*.safetensors")).unlink()
    return folder / "text_encoder" / "pytorch_model.bin", lambda: load_text_pipeline(str(folder))


def single_file(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "model.ckpt", lambda: load_text_pipeline(str(folder / "model.ckpt"))


def imported(folder: Path) -> tuple[Path, Callable[[], Any]]:
    return folder / "ckpt.pth", lambda: import_ddpm(str(folder / "ckpt.pth"), str(folder / "model"), (), False, None)


def checkpoint(folder: Path) -> tuple[Path, Callable[[], Any]]:
    from PIL import Image

    for name in ("dark", "light"):
        (folder / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "data" / name / "a.png")
    config = ClassifierTraining(str(folder / "data"), str(folder / "run"), steps=1, widths=(4, 8, 8), batch_size=2)
    return folder / "run" / "checkpoint.pt", Classifier(config).train


@pytest.mark.parametrize("how", [lambda code, file: torch.save({"a": code}, file), lambda c, f: f.write_bytes(pickle.dumps(c))])
@pytest.mark.parametrize(
    "place",
    [torchvision_judge, timm_judge, lpips, inception, clip_file, class_model, text_model, single_file, imported, checkpoint],
    ids=lambda place: place.__name__,
)
def test_weights_that_carry_code_are_refused_and_never_run(
    place: Callable[[Path], tuple[Path, Callable[[], Any]]],
    how: Callable[[Code, Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file, load = place(tmp_path)
    file.parent.mkdir(parents=True, exist_ok=True)
    how(Code(tmp_path / "ran"), file)
    with pytest.raises(InputError):
        load()
    assert not (tmp_path / "ran").exists()
