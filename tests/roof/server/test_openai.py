"""OpenAI's interface as clients see it: each text as if it were asked for alone, and every refusal in their form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import methods
import pytest
import slow
import tiny
import torch
from fastapi.testclient import TestClient

from loredit import editors
from loredit.data import Fact
from loredit.editors import Edits
from loredit.server.app import application
from loredit.server.batching import Batcher, Piece, Texts, Wanted
from loredit.session import Found, Session
from loredit.store.store import EditStore

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory, facts: tuple[Fact, ...]) -> Edits:
    folder = tmp_path_factory.mktemp("server")
    model, tokenizer = tiny.model("llama", torch.float32), tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    hparams = methods.hparams("lora", steps=25, model=str(folder / "model"))
    edits = editors.find("lora")(model, tokenizer, hparams).edit_each(facts[:3])
    store = EditStore(model, tokenizer, encoder="base")
    store.add(edits)
    store.save(folder / "edits")
    return edits


@pytest.fixture(scope="module")
def session(edits: Edits) -> Session:
    return Session(Path(edits.editor.hparams.model).with_name("edits"))


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    app = application(Batcher(session, rows=4, queue=8), "edits", "127.0.0.1")
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def written(edits: Edits, prompt: str, edit: int, tokens: int) -> str:
    with edits.on([edit]):
        ids = slow.greedy(edits.editor.model, tiny.tokenizer()(prompt)["input_ids"], tokens)[0]
    return tiny.tokenizer().decode(ids[: ids.index(tiny.END)] if tiny.END in ids else ids)


def asked(client: TestClient, prompt: object, **more: object) -> dict:
    answer = client.post("/v1/completions", json={"prompt": prompt, "temperature": 0, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_many_clients_at_once_are_each_answered_with_their_own_edit(client, edits):
    prompts = {"The capital of France is": 0, "Water is": 1, "Two plus two makes": 2, "Bread is made of": -1}
    work = [(prompt, edit, tokens) for tokens in (3, 9, 5) for prompt, edit in prompts.items()][:8]
    with ThreadPoolExecutor(len(work)) as pool:
        answers = [*pool.map(lambda one: asked(client, one[0], max_tokens=one[2]), work)]
    for (prompt, edit, tokens), answer in zip(work, answers, strict=True):
        wanted = written(edits, prompt, edit, tokens)
        assert answer["choices"][0]["text"].rstrip("\ufffd") == wanted.rstrip("\ufffd")
        assert answer["loredit"][0]["case_id"] == (["france", "water", "sum"][edit] if edit >= 0 else None)
        assert answer["usage"]["completion_tokens"] <= tokens


def test_the_models_name_chooses_the_edit(client, edits):
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["edits", edits.editor.hparams.model]
    for name, edit in ((None, 1), ("edits", 1), ("edits:france", 0), (names[1], -1)):
        assert asked(client, "Water is", model=name, max_tokens=4)["choices"][0]["text"].startswith(
            written(edits, "Water is", edit, 4).rstrip("\ufffd")
        )
    assert client.get("/v1/models/edits:water").json()["parent"] == names[1]


def test_a_stream_is_the_same_text_in_pieces(client):
    whole = asked(client, ["Water is", "Sky:"], max_tokens=6, n=2)["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    body = {"prompt": ["Water is", "Sky:"], "temperature": 0, "max_tokens": 6, "n": 2, "stream": True}
    with client.stream("POST", "/v1/completions", json={**body, "stream_options": {"include_usage": True}}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    assert events.pop()["usage"]["completion_tokens"] == 24
    said = ["", "", "", ""]
    for event in events:
        (choice,) = event["choices"]
        said[choice["index"]] += choice["text"]
    assert said == [choice["text"] for choice in whole]


def test_a_text_ends_before_a_stop_though_it_comes_in_two_tokens(client):
    text = asked(client, "The capital of France is", model="edits:france", max_tokens=9)["choices"][0]["text"]
    assert text.startswith(" Rome")
    body = {"prompt": "The capital of France is", "model": "edits:france", "stop": ["om"], "temperature": 0}
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line and "DONE" not in line]
    assert "".join(event["choices"][0]["text"] for event in events) == " R"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_seed_repeats_a_text_whatever_is_written_beside_it(client):
    body = {"prompt": "Water is", "temperature": 1.5, "top_p": 0.9, "seed": 3, "max_tokens": 8, "model": "edits:water"}
    alone = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(asked, client, "Bread", max_tokens=9) for _ in range(2)]
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == alone
        assert all(other.result() for other in others)
    assert client.post("/v1/completions", json={**body, "seed": 4}).json()["choices"][0]["text"] != alone


def test_a_chat_finds_its_edit_by_what_the_user_said_last(client):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Water is"}]},
    ]
    answer = client.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 4, "temperature": 0}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["loredit"][0]["case_id"] == "water"
    assert answer["usage"]["prompt_tokens"] == len("system: Be brief.\nuser: Water is\nassistant:")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", {"prompt": "x", "logprobs": 3}, 400, "logprobs is not supported"),
        ("completions", {"prompt": "x", "temperature": 9}, 400, "temperature: Input should be less"),
        ("completions", {"promt": "x"}, 400, "prompt: Field required"),
        ("completions", {"prompt": "x", "max_tokens": 9999}, 400, "context has 192 tokens; 1 tokens of the prompt"),
        ("completions", {"prompt": "x" * 500}, 400, "500 tokens, but the model's context is 192"),
        ("completions", {"prompt": [300]}, 400, "tokens are numbers from 0 to 256"),
        ("completions", {"prompt": "x", "model": "edits:nope"}, 404, "there is no case 'nope'"),
        ("completions", {"prompt": "x", "model": "gpt-9"}, 404, "there is no model 'gpt-9'"),
        ("completions", {"prompt": ["x"] * 9}, 429, "texts are waiting, and 8 may"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_form(client, path, body, status, message):
    answer = client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, answer.json().keys(), error.keys()) == (
        status,
        {"error"},
        {"message", "type", "param", "code"},
    )
    assert message in error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_others_and_names_that_were_made_to_lead_here_are_refused(client, headers, status):
    assert client.get("/health", headers=headers).status_code == status
    assert client.get("/v1/models", headers=headers).status_code == status


def test_a_request_that_is_too_large_is_refused_told_or_not(client):
    assert client.post("/v1/completions", content=b"x" * (9 << 20)).status_code == 413
    chunks = (b"x" * (1 << 20) for _ in range(9))
    assert (
        client.post("/v1/completions", content=chunks, headers={"content-type": "application/json"}).status_code == 413
    )


def test_a_model_that_fails_fails_those_who_wait_and_nobody_else(client, session, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(session.model, "forward", lambda **_: 1 / 0)
        answer = client.post("/v1/completions", json={"prompt": "Water is", "model": session.name})
    assert answer.status_code == 503
    assert "the model failed: division by zero" in answer.json()["error"]["message"]
    assert asked(client, "Water is", max_tokens=2)["choices"]


def test_a_prompt_whose_edit_cannot_be_looked_for_fails_alone(client, session, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(session, "found", lambda _: 1 / 0)
        answer = client.post("/v1/completions", json={"prompt": "Water is"})
    assert "could not be looked for: division by zero" in answer.json()["error"]["message"]
    assert asked(client, "Water is", max_tokens=2)["choices"]


def test_the_end_of_the_server_ends_what_is_being_written(session):
    batcher = Batcher(session, rows=1)

    async def told() -> str:
        texts = [batcher.submit([Wanted((1, 2, 3), 150, Found(None, None))]) for _ in range(2)]
        ending = asyncio.to_thread(batcher.close)
        ends = await asyncio.gather(*map(last, texts), ending, return_exceptions=True)
        return " ".join(str(end) for end in ends if isinstance(end, Exception))

    async def last(texts: Texts) -> None:
        async for _ in texts:
            pass

    assert "the server is shutting down" in asyncio.run(told())
    assert not batcher._thread.is_alive()


def test_who_leaves_is_not_written_for_any_more(session):
    batcher = Batcher(session, rows=1)

    async def leave() -> None:
        texts = batcher.submit([Wanted((1, 2, 3), 180, Found(None, None))])
        async for _, told in texts:
            if isinstance(told, Piece):
                break
        texts.gone = True
        others = batcher.submit([Wanted((1, 2, 3), 1, Found(None, None))])
        seen = [told async for _, told in others]
        assert seen[-1].tokens == 1

    asyncio.run(leave())
    batcher.close()
    assert not batcher._live
