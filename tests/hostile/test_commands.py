"""Every command, as strangers call it: it ends with 0, 1, 2 or 130, in one error, and the terminal obeys nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from hostility import JUNK, NASTY, TEXT, examples
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import loredit.commands.common as common
from loredit.cli import app

COMMANDS = sorted(command.callback.__name__ for command in app.registered_commands)
SERVERS = ("serve", "ui")  # what they take they keep, until they are stopped
ESCAPES = "\x1b]0;owned\x07\x1b[2J"
PRESET = "model: {model}\nsites: [mlp_down]\nlayers: 1-2\nrank: 2\nalpha: 4\nlr: 1.0e-2\nsteps: 2\n"


@pytest.fixture(scope="module")
def place(model_folder, folders, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.yaml").write_text(PRESET.format(model=model_folder))
    shutil.copytree(folders["lora"], folder / "edits")
    (folder / "facts.json").write_text(json.dumps([{"case_id": "a", "prompt": "Water is", "target_new": "dry"}]))
    return folder


def call(*args: object) -> Result:
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"}, input="")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, common.FAILED, common.BAD_INPUT, common.INTERRUPTED), done.output
    assert "\x1b" not in done.output
    assert "Traceback" not in done.output
    return done


def learn(place: Path, data: Path, *more: object, command: str = "apply") -> Result:
    shutil.rmtree(place / "out", ignore_errors=True)
    given_ = ("--editor", "lora", "--hparams", place / "tiny.yaml", "--data", data, "--dtype", "float32", *more)
    if command == "apply":
        return call("apply", place / "out", *given_)
    return call("run", *given_, "--output", place / "out", "--no-fluency")


@examples(40)
@given(
    texts=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=2),
    command=st.sampled_from(["apply", "run"]),
    mode=st.sampled_from(["single", "batch"]),
)
def test_facts_of_any_texts_are_learned_or_told(texts, command, mode, place):
    records = [{"case_id": case, "prompt": prompt, "target_new": target} for case, prompt, target in texts]
    (place / "any.json").write_text(json.dumps(records))
    done = learn(place, place / "any.json", "--mode", mode, command=command)
    if done.exit_code == common.BAD_INPUT:
        assert "error: " in done.output
    elif command == "apply":
        call("show", place / "out")


@examples(150)
@given(
    command=st.sampled_from([name for name in COMMANDS if name not in SERVERS]),
    args=st.lists(st.one_of(NASTY, st.just("--case"), st.just("edits")), max_size=3),
)
def test_any_arguments_are_taken_or_told(command, args, place):
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        if command in ("apply", "run", "bench", "ability", "classify", "generate", "tune"):
            args = ["--data", "facts.json", *args, "--device", "nowhere"]  # or the default would be learned
        call(command, *[arg.replace("\0", "") for arg in args])


@examples(40)
@given(name=TEXT, prompt=TEXT)
def test_any_case_and_prompt_are_asked_or_told(name, prompt, place):
    call("show", "--fact", name, place / "edits")
    call("remove", place / "edits", "--", name)
    call("ask", "--case", "water", "--tokens", 2, place / "edits", "--", prompt)


@examples(60)
@given(
    value=st.one_of(NASTY, JUNK.map(json.dumps)), key=st.sampled_from(["lr", "rank", "layers", "model", "sites", "x"])
)
def test_any_setting_is_taken_or_told(key, value, place):
    done = learn(place, place / "facts.json", "--set", f"{key}={value}")
    assert done.exit_code == common.BAD_INPUT or done.exit_code in (0, common.FAILED)


def test_a_terminal_obeys_nothing_of_a_fact(place):
    record = {"case_id": f"x{ESCAPES}", "prompt": f"Sky{ESCAPES} is", "target_new": f"blue{ESCAPES}"}
    (place / "escapes.json").write_text(json.dumps([record, record | {"case_id": "y", "prompt": "so " * 200}]))
    for command in ("run", "apply"):
        done = learn(place, place / "escapes.json", command=command)
        assert done.exit_code == common.FAILED
        assert "failed: y" in done.output
    for args in (("show", "out"), ("show", "out", "--fact", "y"), ("ask", "out", f"a{ESCAPES}", "--case", "y")):
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(place)
            call(*args)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ValueError("told"), 2),
        (OSError(28, "No space left on device", "x"), 2),
        (KeyboardInterrupt(), 130),
        (typer.Exit(1), 1),
    ],
)
def test_each_command_tells_its_errors_by_the_same_codes(raised, code):
    """All of them do their work inside of `explained`."""
    with pytest.raises(typer.Exit) as caught, common.explained():
        raise raised
    assert caught.value.exit_code == code


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_works_inside_of_explained(command, monkeypatch):
    """What a command does first, it does there: an interrupt of it ends with 130."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    callback = next(c.callback for c in app.registered_commands if c.callback.__name__ == command)
    entered = []
    module = callback.__globals__

    class Entered(Exception):  # noqa: N818 - a way out
        pass

    def explained(resumable: str = "") -> None:
        entered.append(command)
        raise Entered

    monkeypatch.setitem(module, "explained", explained)
    required = [
        p.name
        for p in typer.main.get_command_from_info(
            next(c for c in app.registered_commands if c.callback is callback),
            pretty_exceptions_short=False,
            rich_markup_mode=None,
        ).params
        if p.required
    ]
    values = {"folder": "x", "folders": ["x"], "target": "y", "prompts": ["p"]}
    with pytest.raises(Entered):
        callback(**{name: values.get(name, "lora") for name in required})
    assert entered == [command]


def test_a_disk_that_is_full_is_told_with_the_file(place, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = learn(place, place / "facts.json")
    assert done.exit_code == common.BAD_INPUT
    assert "safetensors: No space left on device" in done.output


def test_documented_codes_are_those_of_the_commands():
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    for code in (0, common.FAILED, common.BAD_INPUT, common.INTERRUPTED):
        assert f"| {code} |" in text
