"""Settings: the command line, the config and run.json are one thing, and a wrong one is one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from semu_diffusion.domains.config import PRESETS, ClassErasureConfig
from semu_diffusion.errors import InputError, Notice
from semu_diffusion.options import build_config, option
from semu_diffusion.pipelines.cli.command import Command
from semu_diffusion.pipelines.cli.commands.erase_class import COMMAND, main, parse
from semu_diffusion.pipelines.cli.commands.erase_concept import parse as parse_concept
from semu_diffusion.pipelines.cli.errors import run_guarded
from semu_diffusion.pipelines.cli.main import COMMANDS
from semu_diffusion.pipelines.cli.main import main as semu
from semu_diffusion.pipelines.cli.main import parse as parse_semu
from semu_diffusion.pipelines.runs.config import EraseClassConfig


def write_run(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "run.json"
    path.write_text(json.dumps({"status": "complete", "config": config}))
    return str(path)


def flags_of(command: Command[Any], shown: bool = False) -> set[str]:
    actions = [action for action in command.parser()._actions if not (shown and action.help == argparse.SUPPRESS)]
    return {flag for action in actions for flag in action.option_strings}


def test_flags_are_the_fields_of_the_config() -> None:
    flags = {flag for flag in flags_of(COMMAND) if not flag.startswith("--no-")}
    fields = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(EraseClassConfig)}
    aliases = {flag for f in dataclasses.fields(EraseClassConfig) for flag in f.metadata.get("aliases", ())}
    assert flags == fields | aliases | {"--config", "--version", "--help", "-h"}


@pytest.mark.parametrize("name", COMMANDS.commands)
def test_a_switch_has_one_flag_that_changes_it(name: str) -> None:
    command = COMMANDS.load(name)
    if not isinstance(command, Command):
        return  # a group
    shown = flags_of(command, shown=True)
    for field in dataclasses.fields(command.config):
        if isinstance(field.default, bool):
            dashed = field.name.replace("_", "-")
            assert (f"--{dashed}" in shown, f"--no-{dashed}" in shown) == (not field.default, field.default)


def test_a_switch_of_a_replayed_run_can_be_put_back(tmp_path: Path) -> None:
    saved = write_run(tmp_path, {"forget": ["cat"], "save_images": True, "lr_decay": False})
    found = parse(["--config", saved, "--no-save-images", "--lr-decay"])
    assert (found.save_images, found.lr_decay) == (False, True)


def test_what_is_erased_stands_in_plain_words_or_behind_forget() -> None:
    for line in ("cat dog --steps 3", "--steps 3 cat dog", "cat --steps 3 dog", "cat --steps 3 --forget dog"):
        assert parse(line.split()).forget == ("cat", "dog")
        assert parse_concept(line.split()).concept == ("cat", "dog")
    assert parse(["--forget", "cat", "--forget", "dog"]) == parse(["cat", "dog"])


@dataclasses.dataclass(frozen=True)
class Sampled:
    images: int = option(8, "images of each", aliases=("--images-per-class", "--images-per-prompt"))
    output: str = option("here", "folder")
    names: tuple[str, ...] = option((), "files", positional=True)


def test_an_alias_is_the_same_flag_and_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command = Command("tool", "A tool.", Sampled, lambda config: 0, examples=("tool",))
    for flag in ("--images", "--images-per-class", "--images-per-prompt"):
        assert command.parse([flag, "3"]).images == 3
    assert exit_code(command.main, ["--help"]) == 0
    assert "--images-per-class" not in capsys.readouterr().out


def test_a_tilde_is_the_home_folder_behind_an_equals_sign_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/there")
    command = Command("tool", "A tool.", Sampled, lambda config: 0, examples=("tool",))
    assert command.parse(["--output=~/x", "~/a", "b~/c"]) == Sampled(output="/there/x", names=("/there/a", "b~/c"))


def test_a_command_line_is_a_config() -> None:
    line = (
        "--forget cat --forget dog --class-names a,b --class-names c --layers attention,!*.to_q --steps 7 --lr 3e-4"
        " --no-revival --save-images --max-rank 5 --null-class 3 --protect none"
    )
    found = parse(line.split())
    expected = EraseClassConfig(
        forget=("cat", "dog"),
        class_names=("a", "b", "c"),
        layers=("attention", "!*.to_q"),
        steps=7,
        lr=3e-4,
        save_images=True,
        max_rank=5,
        null_class=3,
        protect="none",
        revival=False,
    )
    assert found == expected


def test_a_class_name_with_a_comma_is_one_class() -> None:
    assert parse(["--forget", "tench, Tinca tinca"]).forget == ("tench, Tinca tinca",)


def test_the_official_preset_is_the_reference_code_and_flags_go_before_it() -> None:
    found = parse(["--forget", "cat", "--preset", "official", "--steps", "3"])
    for name, value in PRESETS["official"].items():
        assert getattr(found, name) == (3 if name == "steps" else value)
    assert (found.projection, found.rank_rule, found.matricisation) == ("official", "official", "per_channel")
    assert (found.moving_target, found.lr, PRESETS["official"]["steps"]) == (True, 1e-3, 1000)
    assert found.lr_decay is False
    assert parse(["--forget", "cat"]) == parse(["--forget", "cat", "--preset", "default"])


def test_a_saved_config_is_replayed_but_not_where_it_was_written(tmp_path: Path) -> None:
    given = "--forget cat --preset official --layers conv --seed 4 --output here --overwrite --json"
    config = parse(given.split())
    saved = write_run(tmp_path, dataclasses.asdict(config))
    replayed = parse(["--config", saved])
    assert replayed == dataclasses.replace(config, output=None, overwrite=False, json=False)
    assert parse(["--config", saved, "--seed", "5", "--output", "there"]) == dataclasses.replace(
        replayed, seed=5, output="there"
    )
    bare = tmp_path / "bare.json"  # the config alone, without the rest of a run.json
    bare.write_text(json.dumps({"forget": ["cat"], "lr": 1}))
    assert parse(["--config", str(bare)]) == EraseClassConfig(forget=("cat",), lr=1)


def test_flags_replace_what_a_saved_config_lists(tmp_path: Path) -> None:
    saved = write_run(tmp_path, {"forget": ["cat", "dog"], "layers": ["conv"]})
    found = parse(["--config", saved, "--forget", "ship"])
    assert (found.forget, found.layers) == (("ship",), ("conv",))


def test_an_unusable_config_file_is_one_line(tmp_path: Path) -> None:
    good = {"forget": ["cat"]}
    cases: list[tuple[Any, str]] = [
        ({**good, "steps": "many"}, 'steps cannot be "many"'),
        ({**good, "steps": 2.5}, "steps cannot be 2.5"),
        ({**good, "steps": True}, "steps cannot be true"),
        ({**good, "steps": None}, "steps cannot be null"),
        ({**good, "revival": 1}, "revival cannot be 1"),
        ({**good, "protect": "some"}, 'protect cannot be "some"'),
        ({"forget": "cat"}, 'forget cannot be "cat"'),
        ({"forget": [1]}, r"forget cannot be \[1\]"),
        ({**good, "speed": 1}, "unknown settings speed"),
        ([1], "holds no config"),
    ]
    for config, said in cases:
        with pytest.raises(InputError, match=said):
            parse(["--config", write_run(tmp_path, config)])
    (tmp_path / "broken.json").write_text("{")
    for path in (tmp_path / "broken.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="is not readable JSON"):
            parse(["--config", str(path)])


def test_a_preset_beside_a_config_of_another_is_refused(tmp_path: Path) -> None:
    saved = write_run(tmp_path, dataclasses.asdict(EraseClassConfig(forget=("cat",))))
    with pytest.raises(InputError, match="--preset contradicts --config"):
        parse(["--config", saved, "--preset", "official"])
    assert parse(["--config", saved, "--preset", "default"]).preset == "default"


WRONG = [
    ("", "nothing to erase: name a class"),
    ("--forget a --explained-variance 0", r"--explained-variance 0.0: must lie in \(0, 1\]"),
    ("--forget a --explained-variance 1.01", "must lie in"),
    ("--forget a --explained-variance -0.5", "must lie in"),
    ("--forget a --explained-variance nan", "must lie in"),
    ("--forget a --protected-energy 0", "--protected-energy 0.0: must lie"),
    ("--forget a --label-drop 1.5", "--label-drop 1.5: must lie"),
    ("--forget a --unlabelled 0.7 --adversarial 0.7", "add up to more than 1"),
    ("--forget a --steps 0", "--steps 0: must be at least 1"),
    ("--forget a --batch-size -1", "--batch-size -1: must be at least 1"),
    ("--forget a --images-per-class 0", "--images-per-condition 0: must be at least 1"),
    ("--forget a --eval-batch-size 0", "--eval-batch-size 0: must be at least 1"),
    ("--forget a --guidance-scale 0.5", "--guidance-scale 0.5: must be at least 1"),
    ("--forget a --guidance-scale inf", "--guidance-scale inf"),
    ("--forget a --lr 0", "--lr 0.0: must be a positive number"),
    ("--forget a --lr inf", "--lr inf: must be a positive number"),
    ("--forget a --lr 1e38", "that float32 can hold"),
    ("--forget a --gradient-clip 0", "--gradient-clip 0.0: must be positive"),
    ("--forget a --retain-weight -1", "--retain-weight -1.0: must not be negative"),
    ("--forget a --min-rank 9 --max-rank 8", "--max-rank 8: must be at least 1 and not below --min-rank 9"),
    ("--forget a --max-rank 0", "--max-rank 0: must be at least 1"),
    ("--forget a --seed -1", "--seed -1: must lie in"),
    ("--forget a --revival --classifier none", "contradicts --classifier none"),
    ("--forget a --anchor b --target random", "--anchor contradicts --target random"),
    ("--forget a --protect everything", "invalid choice: 'everything'"),
    ("--forget a --steps many", "argument --steps: invalid int value: 'many'"),
    ("--forget", "expected one argument"),
    ("--forget a --step=3", "unrecognized arguments: --step=3; did you mean --steps"),
    ("a --step 3", "unrecognized arguments: --step( 3)?; did you mean --steps"),
    ("a --protect null-spce", "did you mean null-space"),
    ("a --zzz 3", r"unrecognized arguments: --zzz( 3)? \(see"),
    ("--forget a --config none.json", "is not readable JSON"),
]


def exit_code(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """As a shell sees it: argparse leaves by SystemExit, our own checks by the return value."""
    try:
        return command(argv)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("erase-class: ")
    assert err.count("\n") == 1
    assert re.search(said, err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["delete"], "invalid choice: 'delete'"),
        (["exprot", "x"], "did you mean export?"),
        (["grid", "x", "--imags", "3"], "did you mean --images?"),
        (["apply"], "the following arguments are required: PATCH"),
        (["push", "run"], "the following arguments are required: OWNER/NAME"),
        (["train"], "the following arguments are required: MODEL"),
        (["train", "vae"], "invalid choice: 'vae'"),
        (["info"], "the following arguments are required: PATCH"),
        (["info", "nothing.safetensors"], "nothing.safetensors: no such patch file"),
        (["merge", "x", "--strength", "much"], "invalid float value: 'much'"),
        (["grid", "x", "--images", "0"], "must be at least 1"),
        (["grid", "x", "--output", "a.jpg"], "--output a.jpg: the picture is a PNG, not a .jpg file"),
        (["benchmark", "--methods", "magic"], "--methods magic: unknown; there are default, "),
        (["benchmark", "--images-per-class", "0"], "must be at least 1"),
    ],
)
def test_wrong_semu_commands_are_one_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(semu, argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("semu")
    assert err.count("\n") == 1


def names_of_all() -> list[list[str]]:
    """Every command as the words that call it, those of groups with the group before them."""
    found = []
    for name in COMMANDS.commands:
        below = getattr(COMMANDS.load(name), "commands", {})
        found += [[name, one] for one in below] or [[name]]
    return found


@pytest.mark.parametrize("words", names_of_all(), ids=" ".join)
def test_every_command_explains_itself_and_ends_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(semu, [*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"usage: (semu )?{' '.join(words)} ", shown)
    assert shown.split("\n\n")[1].strip()  # what it does
    assert shown.split("\n\n")[-1].startswith("examples:\n  ")


@pytest.mark.parametrize("words", [[], ["train"], *names_of_all()], ids=" ".join)
def test_every_example_parses(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cat").mkdir(parents=True)
    shutil.copytree(Path(__file__).parents[1] / "examples", tmp_path / "examples")  # a file of questions is read at once
    write_run(tmp_path / "runs" / "cat", {"concept" if words == ["erase-concept"] else "forget": ["cat"]})
    assert exit_code(semu, [*words, "--help"]) == 0
    _, examples = capsys.readouterr().out.split("examples:\n")
    for line in examples.splitlines():
        program, *rest = shlex.split(line, comments=True)
        given = rest if program == "semu" else [program, *rest]
        assert given[: len(words)] == words
        parse_semu(given)


def test_a_command_is_named_as_it_is_registered() -> None:
    for name in COMMANDS.commands:
        assert COMMANDS.load(name).name in (name, f"semu {name}")


@pytest.mark.parametrize("words", [[], ["erase-class"], ["erase-concept"]], ids=" ".join)
def test_the_version_is_that_of_the_package(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(semu, [*words, "--version"]) == 0
    assert capsys.readouterr().out == f"{words[0] if words else 'semu'} {metadata.version('semu-diffusion')}\n"


def test_semu_parses_without_running(tmp_path: Path) -> None:
    found = parse_semu(["merge", str(tmp_path), "--output", "there", "--strength", "0.5"])
    assert (found.patch, found.output, found.strength) == (str(tmp_path), "there", 0.5)
    assert parse_semu(["apply", "a", "--strength", "2", "b"]).patches == ("a", "b")
    assert parse_semu(["benchmark", "cat", "dog"]).erase == ("cat", "dog")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("two\nlines"), "prog: two lines"),
        (PermissionError(errno.EACCES, "denied", "here"), "prog: no permission to write or read here"),
        (OSError(errno.ENOSPC, "full", "there"), r"prog: no space left on the device \(there\)"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "prog: no space left on the device"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), "prog: No usable temporary directory found"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "prog: a/b: Not a directory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "prog: out of memory; take a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "prog: out of memory"),
    ],
)
def test_trouble_with_files_and_memory_is_one_line_and_exit_code_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> int:
        raise error

    assert run_guarded("prog", job) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(said, err)


def test_an_error_in_the_program_is_not_hidden() -> None:
    for error in (ValueError("a bug"), OSError("no file was named")):

        def job(error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error), match=str(error)):
            run_guarded("prog", job)


def test_ctrl_c_is_one_line_and_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        raise KeyboardInterrupt

    assert run_guarded("prog", job) == 130
    assert capsys.readouterr().err == "\nprog: stopped by Ctrl-C.\n"


GUARDED = """
from semu_diffusion.pipelines.cli.errors import run_guarded
def job():
    for line in range(20_000):
        print("a line, and a · and a – and a …", line)
raise SystemExit(run_guarded("prog", job))
"""


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word() -> None:
    with subprocess.Popen([sys.executable, "-c", GUARDED], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        assert command.stdout.readline().startswith(b"a line")
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 141


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_letter_that_the_terminal_does_not_have_ends_nothing(encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", GUARDED], env=env, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"a line, and a ? and a ?" if encoding == "ascii" else b"a line, and a \xb7")


OBEYED = "a\x1b[31m red\x1b]0;title\x07 and\x9b2J\r\x7f \u202eback\u202c: 猫 é\ttab"


def test_what_a_terminal_would_obey_is_never_printed_raw(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        print(OBEYED)
        warnings.warn(OBEYED, Notice, stacklevel=2)
        raise InputError(OBEYED)

    before = sys.stdout, sys.stderr
    assert run_guarded("prog", job) == 2
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == "a?[31m red?]0;title? and?2J?? ?back?: 猫 é\ttab\n"
    assert err.count("[31m red") == 2
    for text in (out, err.replace("\r", "")):
        assert all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_a_progress_bar_may_go_back_and_up_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        sys.stderr.write("\r50 %\x1b[A\n")
        return 0

    assert run_guarded("prog", job) == 0
    assert capsys.readouterr().err == "\r50 %\x1b[A\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk to write to")
@pytest.mark.parametrize("argv", [["caf\udce9"], ["cat", "--output", "caf\udce9"], ["cat", "--class-names", "a,\udcff"]])
def test_words_that_are_no_text_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, argv) == 2
    assert "is not in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
def test_a_saved_word_that_no_file_can_hold_is_refused(value: str, tmp_path: Path) -> None:
    saved = write_run(tmp_path, {"forget": ["cat"], "retain": value})
    with pytest.raises(InputError, match="retain cannot be"):
        parse(["--config", saved])


def test_a_home_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded("prog", lambda: Path("~nobody-of-this-name/x").expanduser().stat().st_size) == 2
    assert capsys.readouterr().err == "prog: no home folder is known here for a path that begins with ~: write the path out\n"


def test_a_closed_stream_is_no_other_files(tmp_path: Path) -> None:
    """With 2>&- the next file opened would be number 2, and an error line would go to standard output."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from semu_diffusion.pipelines.cli.errors import run_guarded; "
        "from semu_diffusion.errors import InputError; number = lambda: open(sys.argv[2], 'w').fileno()\n"
        "def job():\n if number() < 3: return 7\n raise InputError('wrong')\n"
        "sys.exit(run_guarded('prog', job))"
    )
    root = Path(__file__).parents[1]
    words = shlex.join([sys.executable, "-c", code, str(root), str(tmp_path / "x")])
    ended = subprocess.run(["sh", "-c", f"{words} 2>&-"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")
    assert subprocess.run(["sh", "-c", f"{words} >&- 2>&-"]).returncode == 2


def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", GUARDED], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"prog: no space left on the device")
    assert done.stderr.count(b"\n") == 1


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    from semu_diffusion.pipelines.cli.reference import reference

    page = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
    assert page.read_text(encoding="utf-8") == reference(), "make commands writes it anew"


@pytest.mark.parametrize(("name", "value", "said"), [
    ("steps", 1.5, "whole number"), ("steps", "1", "whole number"), ("steps", True, "whole number"), ("lr", "high", "a number"),
    ("seed", None, "leave it out"), ("steps", np.array([1, 2]), "whole number"),
])  # fmt: skip
def test_a_setting_in_python_that_is_no_number_of_its_kind_is_one_line(name: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"{name} cannot be .*{said}"):
        build_config(ClassErasureConfig, {"forget": ("cat",), name: value})


def test_numbers_of_numpy_are_pythons_own_in_a_config() -> None:
    given = {"steps": np.int64(3), "lr": np.float32(0.5), "max_rank": np.int32(4), "guidance_scale": np.array(2.0)}
    config = build_config(ClassErasureConfig, {"forget": ("cat",), **given})
    found = [getattr(config, name) for name in given]
    assert found == [3, 0.5, 4, 2.0]
    assert [type(value) for value in found] == [int, float, int, float]
