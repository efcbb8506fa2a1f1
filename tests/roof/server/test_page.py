"""The page without a browser: what is learned, kept and undone, and what does not harm it."""

from __future__ import annotations

import io
import json
import re
import zipfile

import pytest

from loredit.engine.model.hooks import attached_to
from loredit.engine.storage.manifest import read_manifest
from loredit.server.jobs import JOBS
from loredit.server.proposals import neighbours, rephrasings

FACT = {"prompt": "The capital of France is", "target_new": "Rome", "subject": "France", "ground_truth": "Paris"}


def how(page: str) -> str:
    """The editor that is offered first."""
    return re.findall(r'<option value="([^"]*)"', page)[0]


def events(text: str) -> list[tuple[str, str]]:
    found = re.findall(r"event: ([^\n]*)\n((?:data: [^\n]*\n)*)", text)
    return [(name, "\n".join(line[6:] for line in data.splitlines())) for name, data in found]


def test_a_fact_is_learned_looked_at_kept_asked_and_undone(opened, tmp_path):
    folder = tmp_path / "edits"
    with opened(folder) as shown:
        first = shown.get("/")
        assert "Nothing yet" in first
        more = {"rephrase_prompts": "France's capital:", "neighbours": "Water is\nIce is => cold"}
        running = shown.post("/learn", **FACT, **more, how=how(first))
        assert "/jobs/stream?ids=" in running
        job = shown.job("learned")
        fact = job.task.facts[0]
        assert [probe.prompt for probe in fact.locality["neighbours"]] == ["Ice is", "Water is"]
        card = shown.get("/jobs")
        probe = job.scores()[0].probes[0]
        assert probe.edited.answers[0].log_prob > probe.base.answers[0].log_prob + 5
        assert probe.edited.contrast.log_prob < 0
        assert "France&#39;s capital:" in card
        assert not (folder / "edits.json").exists(), "nothing is kept until it is said"
        assert "The edited prompt" in shown.get(f"/jobs/{job.id}/report")

        assert "Kept" in shown.post(f"/jobs/{job.id}/keep")
        assert [fact.target_new for fact in read_manifest(folder).facts[0]] == ["Rome"]
        (case,) = (fact.case_id for fact in read_manifest(folder).facts[0])
        told = events(shown.get("/ask/stream?prompt=The capital of France is"))
        assert "score 1.000" in dict(told)["about"]
        said = "".join(data for name, data in told if name == "edited")
        assert said.startswith("Rome")
        names = zipfile.ZipFile(io.BytesIO(shown.client.get(f"/facts/{case}/adapter.zip").content)).namelist()
        assert names == ["adapter_config.json", "adapter_model.safetensors"]

        assert "Nothing yet" in shown.post(f"/facts/{case}/undo")
        assert not (folder / "edits.json").exists()
        told = events(shown.get("/ask/stream?prompt=The capital of France is"))
        assert "No edits are kept yet" in dict(told)["about"]
        sides = [[data for name, data in told if name == side] for side in ("without", "edited")]
        assert sides[0] == sides[1]
        assert not attached_to(shown.page.session.model)


def test_asking_goes_on_while_something_is_learned(opened, tmp_path):
    with opened(tmp_path) as shown:
        chosen = how(shown.get("/"))
        alone = events(shown.get("/ask/stream?prompt=Water is"))
        facts = [{"prompt": f"{'very ' * 9}number {i} is", "target_new": f"the answer {i}"} for i in range(8)]
        shown.upload("facts.json", json.dumps(facts).encode(), chosen)
        assert sorted(events(shown.get("/ask/stream?prompt=Water is"))) == sorted(alone)
        assert shown.page.jobs.all()[0].unfinished
        assert "8 facts" in shown.job("learned").task.title


def test_a_restart_in_the_middle_loses_nothing(opened, tmp_path):
    with opened(tmp_path) as shown:
        chosen = how(shown.get("/"))
        shown.post("/learn", **FACT, how=chosen)
        shown.job("learned")
        facts = [{"prompt": f"{'very ' * 9}number {i} is", "target_new": f"the answer {i}"} for i in range(8)]
        shown.upload("facts.json", json.dumps(facts).encode(), chosen)
    with opened(tmp_path) as shown:
        titles = [job.task.title for job in shown.page.jobs.all()]
        assert titles == ["facts.json: 8 facts", "The capital of France is Rome"]
        job = shown.job("learned")
        assert len(job.scores()) == len(shown.page.jobs.edits(job)) == 8
        shown.post(f"/jobs/{job.id}/keep")
        shown.post(f"/jobs/{shown.page.jobs.all()[1].id}/keep")
    with opened(tmp_path) as shown:
        assert len(shown.page.session.store) == 9
        assert [job.state.name for job in shown.page.jobs.all()] == ["kept", "kept"]
        assert shown.get("/").count("<summary>number") == 0
        assert "1 to 50" not in shown.get("/")
        assert shown.get("/facts?q=number 7 is").count("<li>") == 1


def test_the_same_fact_is_replaced_and_other_kinds_stay_out(opened, tmp_path):
    with opened(tmp_path) as shown:
        chosen = how(shown.get("/"))
        for answer in ("Rome", "Oslo"):
            shown.post("/learn", **{**FACT, "target_new": answer}, how=chosen)
            job = shown.job("learned")
            card = shown.post(f"/jobs/{job.id}/keep")
        assert "in place of fact-" in card
        assert [facts[0].target_new for facts in shown.page.session.store.facts] == ["Oslo"]
        task = shown.page.jobs.all()[0].task
        other = shown.page.jobs.add(task.model_copy(update={"hparams": {**task.hparams, "steps": 3}}))
        shown.job("learned")
        assert "cannot be kept here" in shown.get("/jobs")
        assert "a store is for edits of one kind" in shown.post(f"/jobs/{other.id}/keep", status=422)
        assert how(shown.get("/")) == "", "the folder's own editor is offered first"


def test_a_job_can_be_stopped_and_put_away(opened, tmp_path):
    with opened(tmp_path) as shown:
        for _ in range(2):
            shown.post("/learn", **FACT, how=how(shown.get("/")))
        waiting, running = shown.page.jobs.all()
        assert "Stopped" in shown.post(f"/jobs/{waiting.id}/stop")
        shown.post(f"/jobs/{running.id}/drop")
        assert [job.state.name for job in shown.page.jobs.all()] == ["stopped"]
        assert [path.name for path in (tmp_path / JOBS).iterdir()] == [waiting.id]
        assert "gone already" in shown.post(f"/jobs/{running.id}/keep", status=422)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("facts.json", b"{", "facts.json"),
        ("facts.json", b'[{"prompt": "x"}]', "target_new"),
        ("facts.csv", b"prompt,target_new\nWater is,\nIce is,cold\n", "line 2"),
        ("../../evil.json", b"[1, 2]", "evil.json, line 1"),
        ("facts.json", b"", "choose a file"),
    ],
)
def test_a_bad_list_is_told_and_changes_nothing(opened, tmp_path, name, content, told):
    with opened(tmp_path / "edits") as shown:
        said = shown.upload(name, content, how(shown.get("/")), status=422)
        assert told in said
        assert "../" not in said
        assert not shown.page.jobs.all()
    assert [path.name for path in tmp_path.rglob("*.json")] == []


def test_whatever_is_typed_is_text(opened, tmp_path):
    evil = "<script>alert(1)</script>"
    with opened(tmp_path) as shown:
        fact = {"prompt": f"{evil} is", "target_new": evil, "subject": evil, "ground_truth": "x"}
        shown.post("/learn", **fact, how=how(shown.get("/")))
        job = shown.job("learned")
        shown.post(f"/jobs/{job.id}/keep")
        proposed = shown.post("/propose", prompt=evil, subject=evil)
        parts = shown.get("/"), shown.get(f"/facts?q={evil}"), shown.post("/ask", prompt=evil), proposed
        for text in parts:
            assert "<script>alert" not in text
        for name, data in events(shown.get(f"/ask/stream?prompt={evil} is")):
            assert "<script" not in data, name
        assert "script-src 'self'" in shown.client.get("/").headers["content-security-policy"]


def test_only_the_page_itself_may_change_anything(opened, tmp_path):
    with opened(tmp_path) as shown:
        for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "http://localhost:8080"}):
            assert shown.client.post("/learn", data=FACT, headers=headers).status_code == 403
        assert shown.client.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert not shown.page.jobs.all()
        assert shown.client.get("/static/../page.py").status_code == 404
        assert shown.client.get("/static/%2e%2e/page.py").status_code == 404


def test_nothing_is_fetched_from_anywhere_else(opened, tmp_path):
    with opened(tmp_path) as shown:
        page = shown.get("/")
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links
        assert all(link.startswith("/") for link in links)
        assert all(shown.client.get(link).status_code == 200 for link in links)
        assert "url(" not in shown.get("/static/page.css")


def test_proposals_ask_the_same_and_leave_the_subject_out():
    assert rephrasings("The capital of France is", "France")[0] == "France's capital is"
    assert rephrasings("Who wrote Dune?", "Dune") == ["Question: Who wrote Dune? Answer:"]
    others = neighbours("The capital of France is", "France")
    assert len(others) == 4
    assert all("France" not in other and other.startswith("The capital of ") for other in others)
    assert neighbours("Xyzzy frobs", "Xyzzy") == []
