"""Folders of edits on the Hugging Face hub: pushed with a card that says what they are, and pulled as they were."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, ModelCardData

from ..engine.outcome import Outcome
from ..engine.storage.manifest import MANIFEST, Manifest, read_both, read_manifest

CARD = "README.md"
_FILES = (MANIFEST, "edits-*.safetensors", CARD)
_SHOWN = 100  # facts of a card
_SAID = {True: "yes", False: "no", None: "?"}


class HubError(ValueError):
    """The hub, or what lies there, cannot be used; the message says why."""


class Api(Protocol):
    """What is needed of :class:`huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> object: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: str | Path, allow_patterns: list[str], delete_patterns: list[str]
    ) -> object: ...

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_dir: str | Path
    ) -> str: ...


def push(folder: Path, repo: str, *, private: bool | None = None, api: Api | None = None) -> None:
    """Put a folder of edits, or a store, into a repository of the hub, in place of edits that it holds.

    Args:
        folder: what ``Edits.save`` or a store wrote.
        repo: "user/name"; made if there is none.
        private: whether a repository that is made is private; None for the account's own way.
        api: the hub; that of ``huggingface_hub`` if not given, with the user's login.

    Raises:
        HubError: the hub refuses, or cannot be reached.
        EditsError: the folder holds no edits, or damaged ones.

    Example:
        >>> push(Path("my-edits"), "me/my-edits")  # doctest: +SKIP
    """
    manifest, _ = read_both(folder)
    api = api or HfApi()
    with tempfile.TemporaryDirectory() as made, _explained(repo):
        sent = Path(made)
        for name in (MANIFEST, manifest.weights):
            (sent / name).symlink_to((folder / name).resolve())
        (sent / CARD).write_text(card(manifest, repo), encoding="utf-8")
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=sent, allow_patterns=[*_FILES], delete_patterns=["edits-*.safetensors"]
        )


def pull(repo: str, folder: Path, *, revision: str | None = None, api: Api | None = None) -> Manifest:
    """Fetch edits into a new folder; its tensors are checked against what their manifest says of them.

    Args:
        repo: "user/name".
        folder: must not exist yet, or be empty.
        revision: a branch, tag or commit.
        api: the hub; that of ``huggingface_hub`` if not given.

    Raises:
        HubError: the hub refuses, or cannot be reached.
        EditsError: there are no edits, or damaged ones.

    Example:
        >>> pull("me/my-edits", Path("their-edits"))  # doctest: +SKIP
    """
    with _explained(repo):
        (api or HfApi()).snapshot_download(repo, revision=revision, allow_patterns=[*_FILES], local_dir=folder)
    read_both(folder)
    return read_manifest(folder)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """The hub's errors in few words."""
    try:
        yield
    except Exception as error:  # which ones its client raises, those of httpx among them, changes with its releases
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise HubError(f"{repo} cannot be used: {said[0]} (`hf auth login` says who you are)") from None


def card(manifest: Manifest, repo: str) -> str:
    """What the repository's page says: the model, the method, the facts and whether they were learned."""
    is_hub_id = manifest.model.count("/") == 1 and not manifest.model.startswith(("/", "."))
    data = ModelCardData(
        library_name="loredit",
        tags=["knowledge-editing", "model-editing", manifest.editor],
        base_model=manifest.model if is_hub_id else None,
    )
    rows = [
        (fact.prompt, fact.target_new, ", ".join(fact.ground_truth[:1]), *_went(outcome, place))
        for facts, outcome in zip(manifest.facts, manifest.outcomes, strict=True)
        for place, fact in enumerate(facts)
    ]
    learned = sum(row[3] == "yes" for row in rows)
    table = ["| prompt | new answer | before | learned | probability |", "|---|---|---|---|---|"]
    table += [f"| {' | '.join(map(_cell, row))} |" for row in rows[:_SHOWN]]
    more = f"\nand {len(rows) - _SHOWN} more facts." if len(rows) > _SHOWN else ""
    kind = "a store: each prompt gets the edit that it is about, or none" if manifest.routing else "edits"
    settings = ", ".join(f"`{key}={value}`" for key, value in manifest.hparams.items())
    return f"""---
{data.to_yaml()}
---

# Edits of {manifest.model}

{len(manifest.facts)} edits by {manifest.editor}, in {manifest.precision}, as {kind}.
{learned} of {len(rows)} facts were learned.

    loredit pull {repo} my-edits
    loredit ask my-edits {_quoted(rows[0][0]) if rows else ""}

{chr(10).join(table)}
{more}

Settings: {settings}. Seed: {manifest.seed}. The base model's contents: `{manifest.base_model}`.
"""


def _went(outcome: Outcome, place: int) -> tuple[str, str]:
    check = outcome.checks[place] if outcome.checks else None
    return _SAID[outcome.learned(place)], f"{check.probability:.2f}" if check else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: str) -> str:
    plain = " ".join(text.split()).replace('"', "'")
    return f'"{plain}"'
