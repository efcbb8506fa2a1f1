"""Presets: ``<editor>/<model>.yaml``. Every fault of a file is reported at once, with its key and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from ..editors.base import Editor, H

_FOLDER = Path(__file__).parent

M = TypeVar("M", bound=BaseModel)


class HparamsError(ValueError):
    """A hyper-parameter file that cannot be used; the message names file, keys and remedy."""


def presets(editor: str) -> list[str]:
    """Names of the presets that come with an editor."""
    return sorted(path.name for path in (_FOLDER / editor).glob("*.yaml"))


def load(editor: type[Editor[H]], name: str, overrides: Sequence[str] = ()) -> H:
    """An editor's hyper-parameters from a YAML file, looked up as a path and then among its presets.

    ``overrides`` are ``key=value`` with the value written as in YAML: ``load(RoseLoRA, "smollm2", ["lr=1e-3"])``.
    """
    return read(editor.Hparams, editor.name(), name, overrides)  # type: ignore[return-value]


def read(cls: type[M], folder: str, name: str, overrides: Sequence[str] = ()) -> M:
    """As :func:`load`, for presets in any folder here and hyper-parameters of any kind."""
    source = _find(folder, name)
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise HparamsError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise HparamsError(f"{source}: expected `key: value` lines")
    return validated(cls, values | dict(map(_override, overrides)), str(source))


def validated(cls: type[M], values: Mapping[str, Any], source: str) -> M:
    """The values as hyper-parameters, or one error that lists every fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        faults = [_fault(cls, e) for e in error.errors()]
        raise HparamsError("\n  ".join([f"{source}: {len(faults)} fault(s)", *faults])) from None


def _find(editor: str, name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    preset = (_FOLDER / editor / name).with_suffix(".yaml")
    if not preset.is_file():
        raise HparamsError(
            f"no file {name!r}, and no such preset for {editor}; presets: {', '.join(presets(editor)) or 'none'}"
        )
    return preset


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise HparamsError(f"--set {text!r}: expected key=value, for example --set lr=1e-3")
    return key.strip(), yaml.safe_load(value)


def _fault(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown; there are {', '.join(cls.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing ({cls.model_fields[key].description})"
    return f"{key}: {error['msg']}, got {error['input']!r}"
