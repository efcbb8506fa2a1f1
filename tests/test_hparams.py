"""Presets and their faults: every one is reported at once, by file and key, with what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import methods
import pytest
import yaml

from loredit import editors
from loredit import hparams as presets
from loredit.hparams import HparamsError, load

FOLDER = Path(presets.__file__).parent
LORA = editors.find("lora")
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
    assert isinstance(load(editors.find(editor), name), editors.find(editor).Hparams)
    first = (FOLDER / preset).read_text().splitlines()[0]
    assert re.fullmatch(rf"# *python run_edit\.py --editor {editor} --hparams {re.escape(name)}.*", first)


def test_lora_and_roselora_have_the_published_values_for_gpt2():
    for editor in ("lora", "roselora"):
        h = load(editors.find(editor), "gpt2.yaml")
        assert (h.sites, h.layers, h.steps, h.lr, h.stop_at) == (["qkv"], "all", 30, 5e-3, None)
        assert (h.rank, h.alpha, h.dropout) == (4, 16, 0.1)
    assert (h.tau, h.beta, h.t_i, h.t_f) == (0.1, 0.8, 0.1, 0.8)


def test_a_preset_is_found_as_a_path_and_then_by_name(tmp_path):
    assert load(LORA, written(tmp_path, GOOD)).layers == [0, 1, 2]
    assert load(LORA, "gpt2") == load(LORA, "gpt2.yaml")
    with pytest.raises(HparamsError, match=r"no file 'no.yaml', and no such preset for lora; presets: .*gpt2\.yaml"):
        load(LORA, "no.yaml")


def test_overrides_are_yaml_and_win(tmp_path):
    h = load(LORA, written(tmp_path, GOOD), ["lr=5e-3", "layers=[0, 2]", " steps = 7", "stop_at=null"])
    assert (h.lr, h.layers, h.steps, h.stop_at) == (5e-3, [0, 2], 7, None)
    with pytest.raises(HparamsError, match=r"--set 'lr': expected key=value"):
        load(LORA, written(tmp_path, GOOD), ["lr"])


def test_every_fault_of_a_file_is_reported_at_once(tmp_path):
    bad = GOOD | {"rnk": 3, "lr": -1, "sites": ["qkv", "nose"], "layers": "some", "dropout": "much"}
    del bad["alpha"]
    path = written(tmp_path, bad)
    with pytest.raises(HparamsError) as caught:
        load(LORA, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 6 fault(s)")
    assert "rnk: unknown; there are model, steps, lr" in message
    assert "alpha: missing (The change is scaled by alpha / rank)" in message
    assert "lr: Input should be greater than 0, got -1" in message
    assert "sites.1: Input should be 'query', 'key'" in message
    assert "got 'nose'" in message
    assert 'layers are a list, a range such as "20-24", or "all"' in message
    assert "dropout: Input should be a valid number" in message


@pytest.mark.parametrize(("text", "says"), [("a: [1", "not valid YAML"), ("- a", "expected `key: value` lines")])
def test_a_file_that_is_no_mapping_is_refused(text, says, tmp_path):
    with pytest.raises(HparamsError, match=says):
        load(LORA, written(tmp_path, text))


def test_hyper_parameters_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        methods.hparams("lora").lr = 1.0


def test_an_unknown_editor_is_named_with_its_neighbour():
    with pytest.raises(ValueError, match=r"unknown editor 'roslora'; did you mean 'roselora'\? There are: .*lora"):
        editors.find("roslora")
    with pytest.raises(ValueError, match=r"unknown editor 'xyz'\. There are: "):
        editors.find("xyz")


@pytest.mark.parametrize("name", editors.available())
def test_an_editor_class_has_its_modules_name(name):
    cls = editors.find(name)
    assert cls.name() == name
    assert getattr(editors, cls.__name__) is cls
    assert all(field.description for field in cls.Hparams.model_fields.values()), "every field has a line of help"


def test_a_name_that_is_no_editor_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Rose'"):
        editors.Rose  # noqa: B018
