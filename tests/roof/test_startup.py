"""What is wrong with the arguments is told before torch and transformers, which take seconds, are imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from where import ROOT

RUN = ["run", "--editor", "lora", "--hparams", "smollm2"]
CLASSIFY, GENERATE = ["classify", "--task", "mrpc", "--editor"], ["generate", "--task", "e2e", "--editor"]
NUMBER = "lr: Input should be a valid number, unable to parse string as a number, got 'abc'"

PROGRAM = """
import json, sys
from loredit.cli import app
try:
    app(json.loads(sys.argv[1]))
except SystemExit as ended:
    print(json.dumps([ended.code, [name for name in ("torch", "transformers") if name in sys.modules]]))
"""


def ended(*arguments: str) -> tuple[int, list[str], str]:
    """Exit status, which of the slow libraries were imported, and what was said."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code, imported = json.loads(done.stdout.splitlines()[-1])
    return code, imported, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*RUN, "--set", "lr=abc"], NUMBER),
        ([*RUN, "--set", "rang=4"], "rang: unknown; there are "),
        ([*RUN, "--set", "lr"], "expected key=value"),
        (["run", "--editor", "lore", "--hparams", "smollm2"], "unknown editor 'lore'; did you mean 'lora'?"),
        (["run", "--editor", "lora", "--hparams", "smollm"], "no such preset for lora; presets: "),
        ([*RUN, "--data", "no-such-list.json"], "no such file: no-such-list.json"),
        ([*RUN, "--checkpoints", "1,b"], "'1,b' is no list of numbers"),
        (["apply", "no-such-folder", "--set", "lr=abc"], NUMBER),
        (["apply", "no-such-folder", "--data", "no-such-list.json"], "no such file: no-such-list.json"),
        (["add", "no-such-folder", "--data", "no-such-list.json"], "no such file: no-such-list.json"),
        ([*CLASSIFY, "lora", "--set", "lr=abc"], NUMBER),
        ([*CLASSIFY, "rome"], "rome solves for facts in closed form"),
        ([*GENERATE, "lore"], "unknown editor 'lore'; did you mean 'lora'?"),
    ],
)
def test_bad_arguments_are_told_before_torch_is_imported(arguments, says):
    code, imported, said = ended(*arguments)
    assert code == 2, said
    assert says in " ".join(said.split())
    assert imported == []


@pytest.mark.parametrize("command", [[], ["run"], ["apply"], ["classify"]])
def test_help_needs_no_torch(command):
    code, imported, said = ended(*command, "--help")
    assert (code, imported) == (0, [])
    assert "Usage" in said
