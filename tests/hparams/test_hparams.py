"""Presets and their faults: every one is reported at once, by file and key, with what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import methods
import pytest
import tiny
import yaml

from loredit import editors
from loredit import hparams as presets
from loredit.engine.model.sites import sites
from loredit.hparams import HparamsError, parsed, read

FOLDER = Path(presets.__file__).parent
GOOD = {"model": "tiny", "steps": 3, "lr": 0.1, "rank": 2, "alpha": 4, "sites": ["qkv"], "layers": "0-2"}


def written(folder: Path, values: object) -> str:
    path = folder / "some.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


SHIPPED = sorted(path.relative_to(FOLDER) for name in editors.available() for path in (FOLDER / name).glob("*.yaml"))


@pytest.mark.parametrize("preset", SHIPPED, ids=str)
def test_every_shipped_preset_is_valid_and_opens_with_its_command(preset):
    editor, name = preset.parent.name, preset.name
    assert name in presets.presets(editor)
    assert isinstance(editors.settings(editor, name), editors.find(editor).Hparams)
    first = (FOLDER / preset).read_text().splitlines()[0]
    assert re.fullmatch(rf"# *python run_edit\.py --editor {editor} --hparams {re.escape(name)}.*", first)


def test_lora_and_roselora_have_the_published_values_for_gpt2():
    for editor in ("lora", "roselora"):
        h = editors.settings(editor, "gpt2-published.yaml")
        assert (h.sites, h.layers, h.steps, h.lr, h.stop_at) == (["qkv"], "all", 30, 5e-3, None)
        assert (h.rank, h.alpha, h.dropout) == (4, 16, 0.1)
    assert (h.tau, h.beta, h.t_i, h.t_f) == (0.1, 0.8, 0.1, 0.8)


def test_layers_are_numbers_or_shares_of_the_depth(tmp_path):
    def layers(said):
        return editors.settings("lora", written(tmp_path, GOOD | {"layers": said})).layers

    assert layers("20-22") == [20, 21, 22]
    assert layers("0.66-0.83") == "0.6600-0.8300"
    assert layers(0.7) == layers("0.7") == "0.7000-0.7000"
    assert layers(layers("0.25-0.5")) == layers("0.25-0.5")
    for wrong in ("0.8-0.5", "1.5", "-0.5", "0.5-2.0"):
        with pytest.raises(HparamsError, match=r"layers: (a|layers are) "):
            layers(wrong)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("editor", editors.available())
def test_the_default_preset_has_places_in_every_family(editor, family):
    method = editors.editor(editor, "default", model=tiny.model(family), tokenizer=tiny.tokenizer())
    if hasattr(method.hparams, "layers"):
        assert sites(method.model, getattr(method.hparams, "sites", ["mlp_down"]), method.hparams.layers)


def test_a_file_may_be_like_another(tmp_path):
    h = editors.settings("lora", written(tmp_path, {"like": "default.yaml", "model": "other", "lr": 0.5}))
    assert h == editors.settings("lora", "default", {"model": "other", "lr": 0.5})
    with pytest.raises(HparamsError, match="no file 'none', and no such preset for lora"):
        editors.settings("lora", written(tmp_path, {"like": "none"}))


def test_a_preset_is_found_as_a_path_and_then_by_name(tmp_path):
    assert editors.settings("lora", written(tmp_path, GOOD)).layers == [0, 1, 2]
    assert editors.settings("lora", "gpt2") == editors.settings("lora", "gpt2.yaml")
    with pytest.raises(HparamsError, match=r"no file 'no.yaml', and no such preset for lora; presets: .*gpt2\.yaml"):
        editors.settings("lora", "no.yaml")


def test_a_name_with_a_full_stop_keeps_all_of_it(tmp_path, monkeypatch):
    # "gpt2.xl" is not "gpt2" with an ending that may be cut off.
    with pytest.raises(HparamsError, match=r"no file 'gpt2\.xl', and no such preset for lora"):
        editors.settings("lora", "gpt2.xl")
    assert presets.find("lora", "gpt2") == presets.find("lora", "gpt2.yaml") == FOLDER / "lora" / "gpt2.yaml"
    monkeypatch.chdir(tmp_path)
    Path(written(tmp_path, GOOD)).rename(tmp_path / "gpt2.xl")
    assert editors.settings("lora", "gpt2.xl").model == "tiny"


def test_a_preset_is_not_looked_for_outside_of_its_editors_folder():
    with pytest.raises(HparamsError, match="no such preset for lora"):
        presets.find("lora", "../roselora/gpt2")


def test_settings_that_were_read_are_those_of_the_command_line():
    overrides = parsed(["lr=2e-3", "layers=1-2"])
    assert editors.settings("lora", "gpt2", overrides) == editors.settings(
        "lora", "gpt2", {"lr": 2e-3, "layers": [1, 2]}
    )
    assert read(editors.find("lora").Hparams, "lora", "gpt2", overrides) == editors.settings("lora", "gpt2", overrides)


def test_overrides_are_yaml_and_win(tmp_path):
    h = editors.settings(
        "lora", written(tmp_path, GOOD), parsed(["lr=5e-3", "layers=[0, 2]", " steps = 7", "stop_at=null"])
    )
    assert (h.lr, h.layers, h.steps, h.stop_at) == (5e-3, [0, 2], 7, None)
    with pytest.raises(HparamsError, match=r"--set 'lr': expected key=value"):
        parsed(["lr"])


def test_every_fault_of_a_file_is_reported_at_once(tmp_path):
    bad = GOOD | {"rnk": 3, "lr": -1, "sites": ["qkv", "nose"], "layers": "some", "dropout": "much"}
    del bad["alpha"]
    path = written(tmp_path, bad)
    with pytest.raises(HparamsError) as caught:
        editors.settings("lora", path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 6 fault(s)")
    assert "rnk: unknown; there are " in message
    assert "alpha: missing (The change is scaled by alpha / rank)" in message
    assert "lr: Input should be greater than 0, got -1" in message
    assert "sites.1: Input should be 'query', 'key'" in message
    assert "got 'nose'" in message
    assert 'layers are a list, a range such as "20-24", shares of the depth' in message
    assert "dropout: Input should be a valid number" in message


@pytest.mark.parametrize(("text", "says"), [("a: [1", "not valid YAML"), ("- a", "expected `key: value` lines")])
def test_a_file_that_is_no_mapping_is_refused(text, says, tmp_path):
    with pytest.raises(HparamsError, match=says):
        editors.settings("lora", written(tmp_path, text))


def test_hyper_parameters_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        methods.hparams("lora").lr = 1.0
