"""Methods are what is found in the folder."""

from __future__ import annotations

import pytest

from loredit import editors, hparams


def test_an_unknown_editor_is_named_with_its_neighbour():
    with pytest.raises(ValueError, match=r"unknown editor 'roslora'; did you mean 'roselora'\? There are: .*lora"):
        editors.find("roslora")
    with pytest.raises(ValueError, match=r"unknown editor 'xyz'\. There are: "):
        editors.find("xyz")


def test_every_method_says_what_can_be_set():
    assert hparams.methods() == editors.available()


@pytest.mark.parametrize("name", editors.available())
def test_an_editor_class_has_its_modules_name(name):
    cls = editors.find(name)
    assert cls.name() == name
    assert getattr(editors, cls.__name__) is cls
    assert hparams.kind(name) is cls.Hparams
    assert all(field.description for field in cls.Hparams.model_fields.values()), "every field has a line of help"


def test_a_name_that_is_no_editor_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'Rose'"):
        editors.Rose  # noqa: B018
