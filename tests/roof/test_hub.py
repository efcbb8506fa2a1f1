"""Edits on the hub, against a stand-in that has the files of repositories in a folder."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import methods
import pytest
import tiny
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

from loredit.bridges.hub import HubError, pull, push
from loredit.data import Fact
from loredit.editors import Edits, load
from loredit.engine.storage.manifest import EditsError


class Hub:
    """The file interface of ``huggingface_hub.HfApi``, on a disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], delete_patterns: list[str]
    ) -> None:
        for old in (self.folder / repo_id).iterdir():
            if any(fnmatch(old.name, pattern) for pattern in delete_patterns):
                old.unlink()
        self._copy(Path(folder_path), self.folder / repo_id, allow_patterns)

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, allow_patterns: list[str], local_dir: Path
    ) -> str:
        if not (self.folder / repo_id).exists():
            raise LocalEntryNotFoundError("there is no such repository")
        self._copy(self.folder / repo_id, Path(local_dir), allow_patterns)
        return str(local_dir)

    def _copy(self, source: Path, target: Path, patterns: list[str]) -> None:
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                shutil.copyfile(path, target / path.name)


@pytest.fixture(scope="module")
def edits(facts: tuple[Fact, ...]) -> Edits:
    editor = methods.editor("lora", tiny.model("llama"), tiny.tokenizer(), steps=4)
    more = facts[1].model_copy(update={"prompt": "a | b <i>", "case_id": "bar"})
    return editor.edit_each([*facts[:2], more])


def test_edits_come_back_as_they_went(edits, tmp_path):
    hub = Hub(tmp_path / "hub")
    edits.save(tmp_path / "edits")
    (tmp_path / "edits" / "secret.txt").write_text("not for the hub")
    push(tmp_path / "edits", "me/mine", api=hub)
    assert {path.suffix for path in (tmp_path / "hub/me/mine").iterdir()} == {".json", ".safetensors", ".md"}
    manifest = pull("me/mine", tmp_path / "back", api=hub)
    assert manifest.facts == edits.facts
    back = load(tmp_path / "back", edits.editor.model, edits.editor.tokenizer)
    for name, tensor in edits.patch.lasting().items():
        assert back.patch.lasting()[name].equal(tensor)


def test_a_store_is_replaced_by_the_next_push(edits, tmp_path):
    hub = Hub(tmp_path / "hub")
    edits.save(tmp_path / "edits")
    push(tmp_path / "edits", "me/mine", api=hub)
    edits["france"].save(tmp_path / "edits")
    push(tmp_path / "edits", "me/mine", api=hub)
    assert len([*(tmp_path / "hub/me/mine").glob("*.safetensors")]) == 1
    assert len(pull("me/mine", tmp_path / "back", api=hub).facts) == 1


def test_the_card_says_what_they_are(edits, tmp_path):
    edits.save(tmp_path / "edits")
    push(tmp_path / "edits", "me/mine", api=Hub(tmp_path / "hub"))
    card = (tmp_path / "hub/me/mine/README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["knowledge-editing", "model-editing", "lora"]
    assert "loredit pull me/mine my-edits" in body
    assert "| The capital of France is | Rome | Paris |" in body
    assert "| a \\| b &lt;i> | dry |" in body
    assert edits.editor.model_identity in body


def test_what_is_no_set_of_edits_is_told(edits, tmp_path):
    hub = Hub(tmp_path / "hub")
    with pytest.raises(EditsError, match="holds no edits"):
        push(tmp_path, "me/mine", api=hub)
    with pytest.raises(HubError, match="me/nothing cannot be used: there is no such repository"):
        pull("me/nothing", tmp_path / "back", api=hub)
    edits.save(tmp_path / "edits")
    push(tmp_path / "edits", "me/mine", api=hub)
    (weights,) = (tmp_path / "hub/me/mine").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EditsError, match="its content is not what its name says"):
        pull("me/mine", tmp_path / "back", api=hub)
