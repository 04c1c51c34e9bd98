"""Ends commands in the middle, at random, and looks at what they leave: ``python tests/kills.py COUNT SEED FOLDER``.

A run is a fork of this process, in which everything is imported, so that it takes a moment. It ends itself at one of its file
operations (an audit hook counts them), or is ended from outside at a random time: by SIGKILL, SIGTERM, SIGINT, or by a disk
that is full at a random size of a file. Prints a JSON list of what was not as promised, and how often each way was tried.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from saved_models import QUICK, saved_model

from semu_diffusion.files import TEMPORARY
from semu_diffusion.patch import ErasurePatch
from semu_diffusion.pipelines.cli.commands import erase_class
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.runs.folder import status_of

COUNTED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir", "os.scandir"}
ENDS = {"KILL": -signal.SIGKILL, "TERM": 128 + signal.SIGTERM, "INT": 128 + signal.SIGINT, "FULL": 2}
AT_WORK = ("running", "unchecked")


@dataclass(frozen=True)
class Ended:
    """How a fork ended: its exit code (or minus the signal), its standard error, file operations, seconds."""

    code: int
    err: str
    operations: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """A command, what stands there before it, and what must be there when it has run to its end."""

    name: str
    run: Callable[[], int]
    output: str
    before: str | None = None  # what is copied to ``output`` first
    again: Callable[[], int] | None = None  # after an early end, if it is not the same command

    def prepare(self) -> None:
        remove(Path(self.output))
        if self.before is not None:
            shutil.copytree(self.before, self.output)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def fork(run: Callable[[], int], end: str = "", operation: int = -1, seconds: float = -1.0, size: int = -1) -> Ended:
    """Run in a fork that is ended at one of its file operations, after some seconds or at a size of a file; -1: not at all."""
    (err, write), start = os.pipe(), time.monotonic()
    number = os.fork()
    if number == 0:
        os.close(err)
        _child(run, write, end, operation, size)
    os.close(write)
    timer = threading.Timer(seconds, os.kill, (number, getattr(signal, f"SIG{end}", 0))) if seconds >= 0 else None
    if timer is not None:
        timer.start()
    with os.fdopen(err, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    _, status = os.waitpid(number, 0)
    if timer is not None:
        timer.cancel()
        timer.join()
    said, _, count = said.partition("\0")
    return Ended(os.waitstatus_to_exitcode(status), said, int(count or -1), time.monotonic() - start)


def _child(run: Callable[[], int], write: int, end: str, operation: int, size: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(write, 2)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    here, found = os.getcwd(), [0]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event not in COUNTED or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.path.abspath(arguments[0]).startswith(here):
            found[0] += 1
            if found[0] == operation + 1:
                os.kill(os.getpid(), getattr(signal, f"SIG{end}"))

    sys.addaudithook(count)
    if size >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process behind & ignores it
    code = 99
    try:
        code = run()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        with_count = f"\0{found[0]}"
        os.write(2, with_count.encode())
        os._exit(code)


# ------------------------------------------------------------------ what must be true


def temporaries(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob(".*") if TEMPORARY.fullmatch(p.name) or p.name == ".lock"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def lies_of_run(folder: Path, whole: Path, ended: Ended, end: str) -> Iterator[str]:
    """What run.json says against what is there."""
    if not (folder / "run.json").exists():
        if files(folder) - {".lock"} and not all(TEMPORARY.fullmatch(Path(name).name) for name in files(folder) - {".lock"}):
            yield f"no run.json beside {sorted(files(folder))}"
        return
    status = json.loads((folder / "run.json").read_text())["status"]
    if status == "complete":
        if missing := files(whole) - files(folder):
            yield f"complete without {sorted(missing)}"
        json.loads((folder / "metrics.json").read_text())
        if "patch.safetensors" in files(whole):
            ErasurePatch.load(folder / "patch.safetensors")
    elif status in AT_WORK and "without a word" not in str(status_of(folder)):
        yield f"its process is gone and it says {status_of(folder)}"
    if status in AT_WORK and end in ("TERM", "INT") and ended.code == ENDS[end]:
        yield f"it says {status} after SIG{end}"
    if status == "failed" and end != "FULL":
        yield f"it says failed after SIG{end}"


def lies_of_training(folder: Path) -> Iterator[str]:
    if (folder / "checkpoint.pt").exists():
        torch.load(folder / "checkpoint.pt", weights_only=True)
    if (folder / "model").exists() and not (folder / "model" / "README.md").exists():
        yield "half a model/"


def lies(job: Job, whole: Path, ended: Ended, end: str) -> Iterator[str]:
    """What an early end must not leave or say."""
    output = Path(job.output)
    if ended.code not in (0, ENDS[end]) and not (ended.code < 0 and "stopped by" not in ended.err):
        yield f"exit code {ended.code}"
    if "Traceback" in ended.err:
        yield f"a traceback: {ended.err[-600:]}"
    if end == "FULL" and ended.code == 2 and "no space left" not in ended.err:
        yield f"a full disk is called {ended.err!r}"
    if end != "KILL" and (left := temporaries(Path())):
        yield f"left {left}"
    if job.name == "train":
        yield from lies_of_training(output)
    elif job.name == "merge" and output.exists() and files(output) != files(whole):
        yield "half a model"
    elif job.name == "grid" and output.exists():
        Image.open(output).load()
    elif (whole / "run.json").is_file():
        yield from lies_of_run(output, whole, ended, end)


def after_rerun(job: Job, whole: Path, ended: Ended) -> Iterator[str]:
    """What the next run must have put in order."""
    output = Path(job.output)
    if ended.code != 0:
        yield f"the next run ends with {ended.code}: {ended.err[-300:]}"
        return
    if left := temporaries(Path()):
        yield f"after the next run there is {left}"
    if job.name != "grid" and files(output) != files(whole):
        yield f"after the next run {sorted(files(output) ^ files(whole))} differ"
    if (whole / "run.json").is_file() and json.loads((output / "run.json").read_text())["status"] != "complete":
        yield "the next run is not complete"
    for name in ("patch.safetensors", "model/unet/diffusion_pytorch_model.safetensors"):
        if (whole / name).is_file():
            one, other = load_file(output / name), load_file(whole / name)
            if not all(torch.equal(value, other[key]) for key, value in one.items()):
                yield f"after the next run {name} is another"


# ------------------------------------------------------------------ the commands


def jobs() -> list[Job]:
    """Commands of every kind that writes, on tiny models in the working folder."""
    model = saved_model(Path("model").absolute())
    rng = np.random.default_rng(0)
    for name in ("train/dark", "train/light"):
        Path("data", name).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(f"data/{name}/{index}.png")
    erase = ["--model", model, "--classifier", "none", *QUICK, "--save-images", "--overwrite", "red"]
    assert fork(lambda: erase_class.main([*erase, "--output", "done"])).code == 0
    score = ["evaluate", "done", "--classifier", "none", *QUICK[:4], "--overwrite", "--output", "scored"]
    train = [
        "train", "ddpm", "--data", "data", "--output", "trained", "--steps", "3", "--batch-size", "4", "--save-every", "0",
        "--channels", "8,16", "--attention-levels", "1", "--head-dim", "8", "--norm-groups", "4",
    ]  # fmt: skip
    merge, grid = ["merge", "done", "--output", "merged"], ["grid", "done", "--sampling-steps", "2", "--output", "grid.png"]
    return [
        Job("erase", lambda: erase_class.main([*erase, "--output", "run"]), "run"),
        Job("overwrite", lambda: erase_class.main([*erase, "--output", "run"]), "run", before="done"),
        Job("evaluate", lambda: semu(score), "scored"),
        Job("train", lambda: semu(train), "trained"),
        Job("merge", lambda: semu(merge), "merged", again=lambda: 0 if Path("merged").exists() else semu(merge)),
        Job("grid", lambda: semu(grid), "grid.png"),
    ]


def two_at_once() -> Iterator[str]:
    """Two runs without --output, started together, are in two folders."""
    command = ["--model", str(Path("model").absolute()), "--classifier", "none", *QUICK, "red"]
    ended: list[Ended] = []
    threads = [threading.Thread(target=lambda: ended.append(fork(lambda: erase_class.main(command)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if [one.code for one in ended] != [0, 0]:
        yield f"two at once end with {ended}"
    folders = sorted(path.name for path in Path("runs").iterdir())
    if folders != ["red", "red-2"] or files(Path("runs/red")) != files(Path("runs/red-2")):
        yield f"two at once are in {folders}"
    shutil.rmtree("runs")


def main(count: int, seed: int, folder: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    rng, wrong, tried = random.Random(seed), [], Counter[str]()
    whole, plain = {}, {}
    every = jobs()
    for job in every:
        job.prepare()
        plain[job.name] = fork(job.run)
        assert plain[job.name].code == 0, plain[job.name].err
        whole[job.name] = Path("whole", job.name)
        whole[job.name].parent.mkdir(exist_ok=True)
        Path(job.output).rename(whole[job.name])
    sizes = [path.stat().st_size for folder in whole.values() for path in folder.rglob("*") if path.is_file()]
    wrong += list(two_at_once())
    for number in range(count):
        job = every[(seed + number) % len(every)]
        end = rng.choice(list(ENDS)) if count > 20 else list(ENDS)[number % len(ENDS)]
        when: dict[str, float | int] = {"size": rng.randrange(1, max(sizes))}
        if end != "FULL" and rng.random() < 0.7:
            when = {"operation": rng.randrange(plain[job.name].operations)}
        elif end != "FULL":
            when = {"seconds": rng.uniform(0, plain[job.name].seconds)}
        job.prepare()
        ended = fork(job.run, end, **when)  # type: ignore[arg-type]
        tried[f"{end}: {'too late' if ended.code == 0 else 'ended'}"] += 1
        found = list(lies(job, whole[job.name], ended, end))
        found += after_rerun(job, whole[job.name], fork(job.again or job.run))
        wrong += [f"{job.name}, {end} at {when}: {one}" for one in found]
        remove(Path(job.output))
    print(json.dumps({"wrong": wrong, "tried": tried}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
