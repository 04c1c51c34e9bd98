"""Promises of `semu ui` without a browser: what is drawn, what may be named, who is let in, how an erasure is stopped."""

from __future__ import annotations

import json
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import random_patch
from saved_models import saved_model
from text_models import tiny_pipeline
from tiny_models import tiny_model

from semu_diffusion.errors import InputError
from semu_diffusion.models.checkpoints import load_class_conditional
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.runs.config import EraseClassConfig
from semu_diffusion.pipelines.runs.folder import RunFolder, status_of
from semu_diffusion.pipelines.ui import desk as desk_module
from semu_diffusion.pipelines.ui import server
from semu_diffusion.pipelines.ui.desk import Desk, text
from semu_diffusion.pipelines.ui.jobs import run_told
from semu_diffusion.pipelines.ui.pictures import Asked, Studio
from semu_diffusion.pipelines.ui.shelf import Choice, Shelf

Capture = pytest.CaptureFixture[str]
ASKED = Asked("red", (3, 7), 4, 2.0)


def run_with(patch: Any, folder: Path) -> Path:
    """The folder of a run that left this patch."""
    with RunFolder(folder, "") as held, held.recorded(record := {"config": {}}):
        patch.save(held / "patch.safetensors")
        record["status"] = "complete"
    return folder / "patch.safetensors"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Runs of two patches of the tiny model, and of one of another."""
    saved_model(tmp_path / "my-ddpm")
    for name, seed, network in (("no-red", 1, 0), ("no-blue", 2, 0), ("other", 1, 9)):
        run_with(random_patch(tiny_model(network).denoiser, seed), tmp_path / "runs" / name)
    return Shelf(tmp_path / "runs", (str(tmp_path / "my-ddpm"),))


@pytest.fixture
def choice(shelf: Shelf) -> Choice:
    return shelf.model("my-ddpm")


def by_hand(choice: Choice, asked: Asked, *patches: Any) -> torch.Tensor:
    model = load_class_conditional(choice.location)
    for patch in patches:
        patch.apply(model.denoiser)
    return torch.cat(list(model.sample([model.row(asked.condition)] * len(asked.seeds), asked.seeds, asked.steps, 2.0)))


def weights(studio: Studio, choice: Choice) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in studio.model(choice).denoiser.state_dict().items()}


# ------------------------------------------------------------------ pictures


def test_strength_0_is_the_original_to_the_bit_and_every_other_that_of_the_patch(shelf: Shelf, choice: Choice) -> None:
    studio, path = Studio(), [shelf.patch("no-red")]
    original = by_hand(choice, ASKED)
    before = weights(studio, choice)
    for strength in (1.5, 0.0, 1.0, 0.5):
        first, second = studio.draw(choice, path, strength, ASKED)
        assert torch.equal(first, original)
        assert torch.equal(second, by_hand(choice, ASKED, random_patch(tiny_model().denoiser, 1).scale(strength)))
        assert torch.equal(first, second) == (strength == 0)
    assert weights(studio, choice) == before
    assert torch.equal(studio.draw(choice, [], 1.0, ASKED)[1], original)


def test_several_patches_stack_and_come_off(shelf: Shelf, choice: Choice) -> None:
    studio = Studio()
    before = weights(studio, choice)
    _, erased = studio.draw(choice, [shelf.patch("no-red"), shelf.patch("no-blue")], 1.0, ASKED)
    network = tiny_model().denoiser
    assert torch.equal(erased, by_hand(choice, ASKED, random_patch(network, 1), random_patch(network, 2)))
    assert weights(studio, choice) == before


def test_a_picture_depends_on_its_seed_alone(choice: Choice) -> None:
    alone = [Studio().draw(choice, [], 1.0, Asked("red", (seed,), 4, 2.0))[0] for seed in ASKED.seeds]
    assert torch.equal(torch.cat(alone), Studio().draw(choice, [], 1.0, ASKED)[0])


def test_a_patch_of_another_model_is_not_offered_and_refused_at_any_strength(shelf: Shelf, choice: Choice) -> None:
    desk = Desk(shelf, Studio())
    assert sorted(desk.fitting(choice)) == ["no-blue", "no-red"]
    for strength in (0.0, 1.0):
        with pytest.raises(InputError, match="another model"):
            desk.studio.draw(choice, [shelf.patch("other")], strength, ASKED)
    assert torch.equal(desk.studio.draw(choice, [], 1.0, ASKED)[0], by_hand(choice, ASKED))


def test_a_prompt_is_drawn_and_a_patch_changes_it(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "my-sd")
    path = run_with(random_patch(pipeline.unet, only="conv"), tmp_path / "runs" / "no-cat")
    shelf, studio = Shelf(tmp_path / "runs", (str(tmp_path / "my-sd"),)), Studio()
    asked = Asked("a cat on a dog", (1,), 2, 3.0)
    choice = shelf.model("my-sd")
    assert choice.kind == "concept"
    original, erased = studio.draw(choice, [path], 1.0, asked)
    assert original.shape == (1, 3, 8, 8)
    assert not torch.equal(original, erased)
    assert not torch.equal(original, studio.draw(choice, [], 1.0, Asked("a bird", (1,), 2, 3.0))[0])
    assert torch.equal(*studio.draw(choice, [path], 0.0, asked))


@pytest.mark.parametrize(
    "changes", [{"seeds": ()}, {"seeds": (-1,)}, {"seeds": (0,) * 65}, {"steps": 0}, {"guidance_scale": 0.5}]
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Asked(**{"condition": "red", "seeds": (0,), "steps": 4, "guidance_scale": 1.0, **changes})


@pytest.mark.parametrize(("strength", "asked"), [(1.6, ASKED), (-0.1, ASKED), (1.0, Asked("pink", (0,), 4, 2.0))])
def test_what_cannot_be_drawn_is_refused(choice: Choice, strength: float, asked: Asked) -> None:
    with pytest.raises(InputError):
        Studio().draw(choice, [], strength, asked)


# ------------------------------------------------------------------ the shelf


def test_only_what_lies_in_the_folder_can_be_named(shelf: Shelf, tmp_path: Path) -> None:
    run_with(random_patch(tiny_model().denoiser), tmp_path / "outside")
    (shelf.folder / "link").symlink_to(tmp_path / "outside")
    (shelf.folder / "linked").mkdir()
    for name in ("run.json", "patch.safetensors"):
        (shelf.folder / "linked" / name).symlink_to(tmp_path / "outside" / name)
    (shelf.folder / "deep").mkdir()
    run_with(random_patch(tiny_model().denoiser), shelf.folder / "deep" / "run")
    saved_model(shelf.folder / "merged")
    saved_model(shelf.folder / "linked-model")
    weights = shelf.folder / "linked-model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "my-ddpm" / "unet" / weights.name)
    (shelf.folder / "broken").mkdir()
    (shelf.folder / "broken" / "model_index.json").write_text("no json")
    assert set(shelf.runs()) == {"no-red", "no-blue", "other", "deep/run"}
    assert set(shelf.models()) == {"ddpm-cifar10", "tiny-sd", "my-ddpm", "merged/"}
    for name in ("../outside", "link", "linked", str(tmp_path / "outside"), "", ".", "no-red/../no-red"):
        with pytest.raises(InputError, match="called"):
            shelf.patch(name)
        with pytest.raises(InputError, match="called"):
            shelf.model(name)


def test_a_patch_in_the_folder_of_a_run_that_leads_outside_is_none(shelf: Shelf, tmp_path: Path) -> None:
    run = shelf.folder / "no-red"
    (run / "patch.safetensors").rename(tmp_path / "moved.safetensors")
    (run / "patch.safetensors").symlink_to(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match="no patch"):
        shelf.patch("no-red")


def test_a_new_run_takes_a_folder_of_its_own(shelf: Shelf) -> None:
    assert [shelf.new_run(title).name for title in ("red", "no-red", "a/../b")] == ["red", "no-red-2", "a____b"]


def test_words_of_others_are_shown_and_not_obeyed() -> None:
    shown = text("<b>${1}</b>{{x}}")
    assert not set("<>{}$") & set(shown)


# ------------------------------------------------------------------ who is let in


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_other_hosts_than_this_machine_need_an_explicit_word(host: str, capsys: Capture) -> None:
    assert semu(["ui", "--host", host]) == 2
    said = capsys.readouterr().err
    assert "--share-on-network" in said
    assert len(said.splitlines()) == 1
    server.check_host(host, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_word(host: str) -> None:
    server.check_host(host, False)


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert semu(["ui", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "pip install 'semu-diffusion[ui]'" in said[0]


def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    with server.listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="another --port"):
        server.listen("127.0.0.1", taken.getsockname()[1])


@pytest.fixture
def client(shelf: Shelf) -> Any:
    pytest.importorskip("gradio", reason="gradio is not installed")
    from starlette.testclient import TestClient

    server.require_gradio()
    (shelf.folder / "no-red" / "report.html").write_text("<p>a report</p>")
    (shelf.folder.parent / "report.html").write_text("outside")
    return TestClient(server.application(Desk(shelf, Studio())), base_url="http://127.0.0.1:7860")


def test_a_report_of_the_folder_is_shown_shut_in_for_itself(client: Any) -> None:
    for file, content in (("report.html", "<p>a report</p>"), ("run.json", '"complete"')):  # which the report links to
        found = client.get(f"/report/no-red/{file}")
        assert content in found.text
        policy = found.headers["content-security-policy"]
        assert "sandbox allow-scripts;" in policy
        assert "default-src 'none'" in policy


def test_no_file_is_served_but_the_reports(client: Any, shelf: Shelf) -> None:
    patch = shelf.patch("no-red")
    files = (f"/gradio_api/file={patch}", f"/gradio_api/file/{patch}", f"/file={patch}", "/gradio_api/proxy=http://127.0.0.1/")
    runs = ("other/report.html", "%2e%2e/report.html", "no-red/patch.safetensors", f"{shelf.folder}/no-red/report.html")
    static = (f"/static/{patch}", f"/static/%2e%2e/%2e%2e{patch}", f"/assets/{patch}", "/static/..%2f..%2froutes.py")
    others = ("/gradio_api/info", "/monitoring", "/docs", "/openapi.json", "/gradio_api/runs")
    for path in (*files, *(f"/report/{run}" for run in runs), *static, *others):
        assert client.get(path).status_code in (403, 404), path
    for path in ("/gradio_api/upload", "/gradio_api/run/draw", "/gradio_api/call/draw", "/login", "/gradio_api/vibe-edit"):
        assert client.post(path, files={"files": b"x"}).status_code == 404, path


def test_pages_of_others_and_names_of_others_are_refused(client: Any) -> None:
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "http://evil.example"}, json={}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "null"}, json={}).status_code == 403


# ------------------------------------------------------------------ erasures


def wait(job: Any, until: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not until(job.state):
        assert time.monotonic() < end, job.state
        time.sleep(0.05)


def test_a_stopped_erasure_leaves_what_ctrl_c_leaves(shelf: Shelf) -> None:
    desk = Desk(shelf, Studio())
    desk.start("my-ddpm", ["red"], "default", False, 100000, 2, 2)
    assert desk.job is not None
    with pytest.raises(InputError, match="at work"):
        desk.start("my-ddpm", ["blue"], "default", False, 2, 2, 2)
    wait(desk.job, lambda state: state.stage == "training R" and state.done > 2)
    assert status_of(shelf.folder / "red") == "running"
    desk.stop()
    wait(desk.job, lambda state: state.code is not None)
    assert desk.job.state.code == 130
    assert status_of(shelf.folder / "red") == "interrupted"
    assert json.loads((shelf.folder / "red" / "run.json").read_text())["config"]["steps"] == 100000
    assert "interrupted" in desk.progress()
    assert not desk.running


def test_an_empty_field_is_the_methods_own_number(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(desk_module, "Job", lambda config: begun.append(config))
    desk = Desk(shelf, Studio())
    for method in desk_module.METHODS:
        desk.start("my-ddpm", ["red"], method, False, 0, None, 5)
    assert [(one.steps, one.method, one.sampling_steps) for one in begun] == [
        (60, "semu", 5), (60, "closed-form", 5),
    ]  # fmt: skip


def test_settings_that_mean_nothing_are_said_and_leave_nothing(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to erase"):
        Desk(shelf, Studio()).start("my-ddpm", [" "], "default", False, None, 2, 2)
    config = EraseClassConfig(forget=("pink",), model=str(tmp_path / "my-ddpm"), output=str(shelf.folder / "pink"))
    here, there = Pipe()
    assert run_told(config, there) == 2
    (said,) = here.recv()
    assert "pink" in said
    assert not (shelf.folder / "pink").exists()
