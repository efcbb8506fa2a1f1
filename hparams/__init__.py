"""What can be set of each method, and presets of it: ``<editor>.py``, ``<editor>/<model>.yaml``, and
``<editor>/default.yaml`` for any model.

A file may say ``like: OTHER.yaml``: it then has that one's values where it has none of its own. Every fault of a file
is reported at once, with its key and what is allowed. Nothing here imports torch, so that a slip of the pen is told
within a second.
"""

from __future__ import annotations

import importlib
import pkgutil
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..data.messages import unknown
from .base import Hparams

_FOLDER = Path(__file__).parent
_SHOWN = 200  # characters of a value in a message
_MOST_FAULTS = 20  # in a message
_brief = reprlib.Repr()  # what is beyond a message is not written out, be it as large or as deep as a file
_brief.maxlevel, _brief.maxstring, _brief.maxother = 3, _SHOWN, _SHOWN

M = TypeVar("M", bound=BaseModel)


class HparamsError(ValueError):
    """A hyper-parameter file that cannot be used; the message names file, keys and remedy."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml is untyped
    """YAML of which nothing is lost or multiplied: no key stands twice, and no mapping is merged into another."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))


def methods() -> list[str]:
    """The names of all methods.

    Returns:
        Those that have a module here, in order.

    Example:
        >>> "lora" in methods()
        True
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def kind(editor: str) -> type[Hparams]:
    """The class of a method's hyper-parameters.

    Args:
        editor: the name of a method.

    Returns:
        The class of the method's module here that is called as the method is.

    Raises:
        HparamsError: an unknown method; the message names those there are.

    Example:
        >>> kind("lora").__name__
        'LoRAHparams'
    """
    if editor not in methods():
        raise HparamsError(unknown("editor", editor, methods()))
    members = vars(importlib.import_module(f"{__name__}.{editor}"))
    (name,) = (name for name in members if name.lower() == f"{editor}hparams")
    found: type[Hparams] = members[name]
    return found


def settings(editor: str, preset: str, overrides: Mapping[str, object] | None = None) -> Hparams:
    """A method's hyper-parameters.

    Args:
        editor: the name of a method.
        preset: a YAML file, or the name of a preset of the method, with or without ".yaml".
        overrides: values in place of the file's.

    Returns:
        What was read and found valid.

    Raises:
        HparamsError: an unknown method or preset, or faulty values; the message lists every fault.

    Example:
        >>> settings("lora", "smollm2", {"lr": 2e-3}).lr
        0.002
    """
    return read(kind(editor), editor, preset, overrides or {})


def presets(editor: str) -> list[str]:
    """Names of the presets that come with an editor.

    Args:
        editor: the name of a method, or of what methods are trained for ("classification").

    Returns:
        File names, in order; none where nothing is called so.

    Example:
        >>> "smollm2.yaml" in presets("lora")
        True
    """
    return sorted(path.name for path in (_FOLDER / editor).glob("*.yaml"))


def find(editor: str, name: str) -> Path:
    """The file that a name means.

    Args:
        editor: whose presets are looked through.
        name: a path, or a preset of the editor, with or without ".yaml".

    Returns:
        The file.

    Raises:
        HparamsError: there is none; the message names the presets.

    Example:
        >>> find("lora", "smollm2").name
        'smollm2.yaml'
    """
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


def read(cls: type[M], folder: str, name: str, overrides: Mapping[str, object]) -> M:
    """Hyper-parameters from a YAML file.

    Args:
        cls: what they are validated as.
        folder: where the presets are that come with this package ("lora", "classification").
        name: a file, or the name of a preset in ``folder``, with or without ".yaml".
        overrides: values in place of the file's.

    Returns:
        What was read and found valid.

    Raises:
        HparamsError: no such file, or one with faults; the message lists them all.

    Example:
        >>> read(kind("lora"), "lora", "smollm2", {"rank": 8}).rank
        8
    """
    source = find(folder, name)
    values = _values(source)
    if (like := values.pop("like", None)) is not None:
        values = _values(find(folder, str(like))) | values
    return validated(cls, values | dict(overrides), str(source))


def _values(source: Path) -> dict[str, object]:
    """What a file says."""
    try:
        values = _yaml(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # not UTF-8 is a ValueError too
        said = str(error)[:_SHOWN] or type(error).__name__
        raise HparamsError(f"{source}: not valid YAML in UTF-8: {said}") from None
    except OSError as error:
        raise HparamsError(f"{source} cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise HparamsError(f"{source}: expected `key: value` lines")
    return values


def parsed(texts: Iterable[str]) -> dict[str, object]:
    """``key=value`` texts, the values written as in YAML, as a dictionary.

    Args:
        texts: what follows each ``--set``.

    Returns:
        Values by key.

    Raises:
        HparamsError: a text without a key, or a value that is no YAML.

    Example:
        >>> parsed(["lr=1e-3", "layers=[1, 2]"])
        {'lr': '1e-3', 'layers': [1, 2]}
    """
    return dict(map(_override, texts))


def validated(cls: type[M], values: Mapping[str, object], source: str) -> M:
    """Values as hyper-parameters.

    Args:
        cls: what they are validated as.
        values: by key.
        source: where they are from, for the message.

    Returns:
        An object of the class.

    Raises:
        HparamsError: there are faults; the message lists all of them.

    Example:
        >>> validated(kind("lora"), {"lr": "abc"}, "mine.yaml")
        Traceback (most recent call last):
        ...
        loredit.hparams.HparamsError: mine.yaml: 6 fault(s)...
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        faults = [_fault(cls, e) for e in error.errors()]
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise HparamsError("\n  ".join([f"{source}: {len(faults)} fault(s)", *faults[:_MOST_FAULTS], *more])) from None


def _override(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise HparamsError(f"--set {text[:_SHOWN]!r}: expected key=value, for example --set lr=1e-3")
    try:
        return key.strip(), _yaml(value)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise HparamsError(
            f"--set {text[:_SHOWN]!r}: its value is not valid YAML, such as 1e-3, [1, 2] or name"
        ) from None


def _yaml(text: str) -> object:
    found: object = yaml.load(text, Loader=_Loader)  # a SafeLoader
    return found


def _shown(value: object) -> str:
    try:
        text = _brief.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _fault(cls: type[BaseModel], error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))[:_SHOWN]
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown; there are {', '.join(cls.model_fields)}"
    if error["type"] == "missing":
        return f"{key}: missing ({cls.model_fields[key].description})"
    message = error["msg"].removeprefix("Value error, ")
    if not key:  # of several values together, which the message names
        return message
    return f"{key}: {message}, got {_shown(error['input'])}"
