"""Presets and ``--set`` of strangers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import methods
import pytest
import yaml
from hostility import JUNK, NASTY, NUMBER, changed, damaged, examples, rule
from hypothesis import given
from hypothesis import strategies as st

from loredit import editors
from loredit.hparams import HparamsError, parsed

METHODS = st.sampled_from(sorted(methods.METHODS))
WORDS = st.sampled_from(
    [
        *(
            "1e300",
            ".nan",
            ".inf",
            "-.inf",
            "1e-400",
            "0x" + "f" * 5000,
            "1:30",
            "2020-13-45",
            "!!python/name:os.system",
        ),
        *(
            "!!python/object/apply:os.system [ls]",
            "[1",
            "{a: 1",
            "*a",
            "&a [*a]",
            "<<",
            "? x",
            "|",
            "!!binary abc",
            "~",
        ),
        '["{} \\ud800"]',
        *("0-99", "5-2", "-", "all", "[]", "[[]]", "0-100000000", "[0, 0]", "true", "[" * 5000, "9" * 5000, "\t"),
    ]
)
FIELDS = st.sampled_from(
    [
        *("lr", "steps", "layers", "sites", "rank", "alpha", "stop_at", "model", "kl_prompts", "kl_weight", "dropout"),
        *("contexts", "clip_norm", "whiten", "batch_size", "replay", "length", "hidden", "placement", "<<", "", "no"),
    ]
)


def read(method: str, text: bytes, overrides: dict[str, object]) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mine.yaml")
        path.write_bytes(text)
        return editors.settings(method, str(path), overrides)


@examples(500)
@given(method=METHODS, field=FIELDS, value=st.one_of(WORDS, NASTY, JUNK.map(json.dumps)))
def test_any_override_is_taken_or_told(method, field, value):
    with rule():
        overrides = parsed([f"{field}={value}"])
        settings = editors.settings(method, "smollm2", overrides)
        assert type(settings).model_validate(settings.model_dump()) == settings


@examples(300)
@given(drawn=st.data(), method=METHODS)
def test_changed_presets_are_read_or_told(drawn, method):
    values = methods.hparams(method).model_dump(mode="json")
    text = yaml.safe_dump(drawn.draw(st.one_of(changed(values), st.fixed_dictionaries(dict.fromkeys(values, NUMBER)))))
    with rule("mine.yaml"):
        read(method, text.encode(), {})


@examples(200)
@given(drawn=st.data(), method=METHODS)
def test_damaged_presets_are_read_or_told(drawn, method):
    text = (editors.settings(method, "smollm2").model_dump_json()).encode()
    with rule("mine.yaml"):
        read(method, drawn.draw(damaged(text)), {})


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join(['*' + chr(96 + i)] * 9)}]\n" for i in range(1, 12)),
        "a: &a {x: 1}\n"
        + "".join(
            f"b{i}: &b{i} {{<<: [{', '.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 9)}]}}\n" for i in range(12)
        ),
    ],
    ids=["aliases", "merge keys"],
)
def test_what_grows_without_end_is_one_error(text):
    with pytest.raises(HparamsError):
        read("lora", text.encode(), {})


def test_a_key_that_stands_twice_is_told():
    with pytest.raises(HparamsError, match="'lr' stands twice"):
        read("lora", b"lr: 1\nlr: 2\n", {})


@pytest.mark.parametrize("value", ['kl_prompts=["\\ud800 is"]', 'model="\\udfff"', 'statistics_text="\\ud800"'])
def test_half_a_character_is_told(value):
    with pytest.raises(HparamsError, match="holds half of a character"):
        editors.settings("lora", "smollm2", parsed([value]))
