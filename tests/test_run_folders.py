"""A run folder is one process's, its status never lies, and nothing is removed that a run did not write."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from saved_models import QUICK, saved_judge, saved_model

from semu_diffusion.erase.loss import ErasureLoss
from semu_diffusion.errors import InputError
from semu_diffusion.pipelines.cli.commands.erase_class import main
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.runs.folder import RunFolder, status_of
from semu_diffusion.pipelines.runs.ownership import LOCK, held
from semu_diffusion.pipelines.runs.places import located

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in(path: Path, **record: Any) -> Path:
    """The folder of a run that is over, with what it writes and with files of others."""
    with RunFolder(path, "") as folder, folder.recorded(about := {"config": {}, **record}):
        about["status"] = "complete"
    for name in ("patch.safetensors", "lora/adapter_config.json", "metrics.json", "images/after/red/00000.png"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("of the run")
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def again(path: Path, *inputs: str) -> None:
    with RunFolder(path, "", overwrite=True, inputs=inputs) as folder, folder.recorded(about := {}):
        about["status"] = "complete"


# ------------------------------------------------------------------ one process


def test_two_runs_at_once_get_two_folders() -> None:
    with RunFolder(None, "cat") as first, RunFolder(None, "cat") as second:
        assert [str(one.path) for one in (first, second)] == ["runs/cat", "runs/cat-2"]
    assert not Path("runs").exists()  # neither has begun anything


def test_without_output_overwrite_means_the_folder_of_that_name() -> None:
    run_in(Path("runs/cat"))
    with RunFolder(None, "cat", overwrite=True) as folder:
        assert folder.path == Path("runs/cat")
        with pytest.raises(InputError, match="another process"), RunFolder(None, "cat", overwrite=True):
            pass
    with RunFolder(None, "cat") as folder:
        assert folder.path == Path("runs/cat-2")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_at_which_a_run_is_at_work_is_refused(overwrite: bool) -> None:
    with RunFolder("run", "") as first:
        with pytest.raises(InputError, match="another process is at work in run"), RunFolder("run", "", overwrite):
            pass
        with first.recorded(about := {}):
            with pytest.raises(InputError, match=r"already holds a run|another process"), RunFolder("run", "", overwrite):
                pass
            about["status"] = "complete"
    assert files(Path("run")) == {"run.json"}
    again(Path("run"))  # the lock went with the run


def test_what_a_killed_process_left_at_its_beginning_is_no_run() -> None:
    Path("run").mkdir()
    for name in (LOCK, ".run.json.1234567.part"):
        Path("run", name).write_text("")
    again(Path("run"))
    assert files(Path("run")) == {"run.json"}


# ------------------------------------------------------------------ what --overwrite takes away


def test_only_what_a_run_writes_is_removed(here: Path) -> None:
    run, pictures = run_in(here / "run"), here / "pictures"
    for name in ("notes.txt", "images/mine.png", "lora/my_own.safetensors", ".photo.1.part"):
        (run / name).write_text("mine")
    (pictures / "red").mkdir(parents=True)
    (pictures / "red" / "00000.png").write_text("mine")
    (run / "images" / "before").symlink_to(pictures)
    (run / ".patch.safetensors.1234567.part").write_text("of a killed run")
    again(run)
    mine = {"notes.txt", "images/mine.png", "lora/my_own.safetensors", ".photo.1.part", "images/before"}
    assert files(run) == {"run.json", *mine}
    assert (pictures / "red" / "00000.png").read_text() == "mine"


def test_a_place_that_cannot_be_is_said_to_be_what_it_is(here: Path) -> None:
    Path("full").mkdir()
    Path("full", "mine.txt").touch()
    Path("gone").symlink_to("nowhere")
    said = {"full": "is not empty and holds no run of this program: choose", "gone": "is a link to nowhere, which is not there"}
    for output, why in {**said, "": "--output is empty: name a folder"}.items():
        with pytest.raises(InputError, match=why), RunFolder(output, "cat"):
            pass
    with pytest.raises(InputError, match="already holds a run"), RunFolder(run_in(here / "run"), "cat"):
        pass
    assert files(here / "full") == {"mine.txt"}


@pytest.mark.parametrize("content", ["{}", "no json", '{"status": "complete", "config": {}}', '["written_by"]', "[" * 10**5])
def test_a_folder_with_a_run_json_of_another_program_is_never_overwritten(content: str) -> None:
    Path("theirs").mkdir()
    Path("theirs", "run.json").write_text(content)
    with pytest.raises(InputError, match="holds no run of this program"):
        again(Path("theirs"))
    assert Path("theirs", "run.json").read_text() == content
    assert files(Path("theirs")) == {"run.json"}


def test_the_folder_one_is_in_is_never_emptied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(here / "run")
    (run / "below").mkdir()
    for place in (run, run / "below"):
        monkeypatch.chdir(place)
        for output in (run, Path(os.path.relpath(run))):
            with pytest.raises(InputError, match="the folder you are in"):
                again(output)
    assert (run / "patch.safetensors").exists()


def test_other_runs_below_are_seen(here: Path) -> None:
    runs = run_in(here / "runs")
    run_in(runs / "deep" / "cat")
    with pytest.raises(InputError, match=r"another run lies in it, .*deep.cat"):
        again(runs)


@pytest.mark.parametrize("form", ["{}", "timm:local-dir:{}", "clip:ViT-B-32:{}/open_clip.safetensors"])
def test_what_the_run_reads_is_seen_in_whatever_form_it_is_given(here: Path, form: str) -> None:
    run = run_in(here / "run")
    (run / "judge").mkdir()
    (run / "judge" / "open_clip.safetensors").write_text("")
    (here / "link").symlink_to(run / "judge")
    for place in (run / "judge", Path("run/judge"), Path("link")):
        with pytest.raises(InputError, match=r"would delete .*, which this run reads"):
            again(run, form.format(place))
    again(run, "auto", "timm:resnet18", "owner/name", form.format("elsewhere"))


@pytest.mark.parametrize("name", ["..", ".", "../above", "a/b", "/", "", "C:\\x", "~", ".lock", "x" * 300, "\x1b[2J\n"])
def test_a_class_of_any_name_gets_a_folder_below_runs(name: str, here: Path) -> None:
    with RunFolder(None, name) as folder:
        assert folder.path.resolve().parent == here / "runs"
        assert folder.path.name.isprintable()


# ------------------------------------------------------------------ what run.json says


def test_the_status_is_written_before_anything_is_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = run_in(here / "run"), []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "patch.safetensors":
            seen.append(json.loads((run / "run.json").read_text())["status"])

    monkeypatch.setattr(Path, "unlink", killed)
    again(run)
    assert seen == ["running"]


def test_a_run_whose_process_is_gone_is_said_to_be(here: Path, capsys: Capture) -> None:
    run = run_in(here / "run")
    assert status_of(run) == "complete"
    (run / "run.json").write_text(json.dumps({"written_by": "semu_diffusion", "status": "running"}))
    with held(run):
        assert status_of(run) == "running"
    (run / LOCK).write_text("")  # what a killed process leaves of its lock
    (run / "patch.safetensors").unlink()
    assert semu(["info", str(run)]) == 0
    said = capsys.readouterr().out
    assert "running when its process went without a word" in said
    assert "no patch.safetensors" in said
    again(run)
    assert status_of(run) == "complete"
    assert status_of(here) is None


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_said_and_leaves_interrupted(
    here: Path, number: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ErasureLoss, "draw", lambda _: os.kill(os.getpid(), number))
    former = signal.getsignal(number)
    flags = ("--model", saved_model(here / "model"), "--classifier", "none", *QUICK, "--output", "run")
    assert main([*flags, "red"]) == 128 + number
    name = {signal.SIGINT: "Ctrl-C"}.get(number, signal.Signals(number).name)
    assert f"erase-class: stopped by {name}. run keeps" in capsys.readouterr().err
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    assert not list(Path("run").glob(".*"))
    assert signal.getsignal(number) == former


@pytest.mark.usefixtures("heard")
def test_a_signal_while_the_status_is_written_waits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def interrupted(source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    def finish() -> None:
        with RunFolder("run", "") as folder, folder.recorded(about := {}):
            about["status"] = "complete"
            monkeypatch.setattr(os, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt, match=r"keeps run\.json"):
        finish()
    assert json.loads(Path("run/run.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("written", range(1, 9))
def test_a_disk_that_is_full_at_any_time_is_one_line_and_no_half_file(
    here: Path, written: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = os.replace, [0]

    def full(source: Path, target: Path) -> None:
        count[0] += 1
        if count[0] >= written:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    model = saved_model(here / "model")
    monkeypatch.setattr(os, "replace", full)
    code = main(["red", "--model", model, "--classifier", "none", *QUICK, "--output", "run"])
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert "no space left on the device" in err
    assert not list(here.rglob("*.part"))
    assert status_of(here / "run") != "complete"


# ------------------------------------------------------------------ a run that is done again elsewhere


def test_a_run_of_relative_paths_is_replayed_from_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_model(here / "work" / "model")
    saved_judge(here / "work" / "judge")
    monkeypatch.chdir(here / "work")
    assert main(["red", "--model", "model", "--classifier", "judge", *QUICK, "--output", str(here / "first")]) == 0
    monkeypatch.chdir(here)
    assert main(["--config", "first/run.json", "--output", "second"]) == 0
    one, other = (load_file(here / name / "patch.safetensors") for name in ("first", "second"))
    assert all(value.equal(other[key]) for key, value in one.items())


def test_words_that_a_folder_happens_to_have_stay_words(here: Path) -> None:
    for name in ("auto", "self", "resnet18", "mine", "owner"):
        Path(name).mkdir()
    for word in ("auto", "self", "timm:resnet18", "owner/name", "clip:ViT-B-32:mine", None, 3):
        assert located(word) == word
    assert located("mine") == str(here / "mine")
    assert located("timm:local-dir:mine") == f"timm:local-dir:{here / 'mine'}"
