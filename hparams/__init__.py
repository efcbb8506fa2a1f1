"""Presets: ``<editor>/<model>.yaml``, and ``<editor>/default.yaml`` for any model.

A file may say ``like: OTHER.yaml``: it then has that one's values where it has none of its own. Every fault of a file
is reported at once, with its key and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

_FOLDER = Path(__file__).parent
_SHOWN = 200  # characters of a value in a message

M = TypeVar("M", bound=BaseModel)


class HparamsError(ValueError):
    """A hyper-parameter file that cannot be used; the message names file, keys and remedy."""


def presets(editor: str) -> list[str]:
    """Names of the presets that come with an editor.

    Example:
        >>> "smollm2.yaml" in presets("lora")
        True
    """
    return sorted(path.name for path in (_FOLDER / editor).glob("*.yaml"))


def find(editor: str, name: str) -> Path:
    """The file that ``name`` means: a path, or a preset of the editor. Raises HparamsError."""
    # A name's own ending is not cut off: "gpt2.xl" is not "gpt2".
    preset = _FOLDER / editor / (name if name.endswith(".yaml") else f"{name}.yaml")
    try:
        if Path(name).is_file():
            return Path(name)
        if preset.is_file() and preset.parent == _FOLDER / editor:
            return preset
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise HparamsError(
        f"no file {name[:_SHOWN]!r}, and no such preset for {editor}; presets: {', '.join(presets(editor)) or 'none'}"
    )


def read(cls: type[M], folder: str, name: str, overrides: Mapping[str, Any]) -> M:
    """Hyper-parameters from a YAML file.

    Args:
        cls: what they are validated as.
        folder: where the presets are that come with this package ("lora", "classification").
        name: a file, or the name of a preset in ``folder``, with or without ".yaml".
        overrides: values in place of the file's.

    Raises:
        HparamsError: no such file, or one with faults; the message lists them all.
    """
    source = find(folder, name)
    values = _values(source)
    if (like := values.pop("like", None)) is not None:
        values = _values(find(folder, str(like))) | values
    return validated(cls, values | dict(overrides), str(source))


def _values(source: Path) -> dict[str, Any]:
    """What a file says."""
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # not UTF-8 is a ValueError too
        raise HparamsError(f"{source}: not valid YAML in UTF-8: {error or type(error).__name__}") from None
    except OSError as error:
        raise HparamsError(f"{source} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise HparamsError(f"{source}: expected `key: value` lines")
    return values


def parsed(texts: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts, the values written as in YAML, as a dictionary. Raises HparamsError.

    Example:
        >>> parsed(["lr=1e-3", "layers=[1, 2]"])
        {'lr': '1e-3', 'layers': [1, 2]}
    """
    return dict(map(_override, texts))


def validated(cls: type[M], values: Mapping[str, Any], source: str) -> M:
    """The values as hyper-parameters, or one HparamsError that lists every fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        faults = [_fault(cls, e) for e in error.errors()]
        raise HparamsError("\n  ".join([f"{source}: {len(faults)} fault(s)", *faults])) from None


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise HparamsError(f"--set {text!r}: expected key=value, for example --set lr=1e-3")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise HparamsError(
            f"--set {text[:_SHOWN]!r}: its value is not valid YAML, such as 1e-3, [1, 2] or name"
        ) from None


def _fault(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown; there are {', '.join(cls.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing ({cls.model_fields[key].description})"
    found = repr(error["input"])
    return f"{key}: {error['msg']}, got {found[:_SHOWN]}{'...' if len(found) > _SHOWN else ''}"
