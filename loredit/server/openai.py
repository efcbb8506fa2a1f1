"""OpenAI's interface: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``.

The model's name says with which edits a text is written: the folder's name, each prompt with the edit that it is about
or none; the folder's name, a colon and a case id, that edit; the base model's name, none. What is asked for and not
done here is refused, never passed over.
"""

from __future__ import annotations

import json
import time
import uuid
from asyncio import FIRST_COMPLETED, create_task, wait
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..session import Found, Session
from .batching import Batcher, Piece, QueueFullError, StoppedError, Texts, Wanted

# Fields that change no text.
_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"),
}
_NOTHING = ({"best_of": 1}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}})


class ApiError(Exception):
    """What is answered in OpenAI's form, in place of a text."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, {"Retry-After": "1"} if self.status == 429 else None)

    def body(self) -> dict[str, object]:
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _nothing_else(self) -> Asked:
        for name, value in (self.model_extra or {}).items():
            if name not in _HARMLESS and value and {name: value} not in _NOTHING:
                raise ValueError(f"{name} is not supported; leave it out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)


class CompletionAsked(Asked):
    """``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] = 16


class Part(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatAsked(Asked):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None


def router(batcher: Batcher, edited: str) -> APIRouter:
    """The interface's routes. ``edited``: the name of the model with its edits."""
    routes, session, born = APIRouter(prefix="/v1"), batcher.session, int(time.time())

    def described(name: str) -> dict[str, object]:
        about = {"id": name, "object": "model", "created": born, "owned_by": "loredit"}
        return about | {"parent": None if name == session.name else session.name, "max_model_len": session.context}

    @routes.get("/models")
    def models() -> dict[str, object]:
        return {"object": "list", "data": [described(edited), described(session.name)]}

    @routes.get("/models/{name:path}")
    def model(name: str) -> dict[str, object]:
        _named(session, edited, name)
        return described(name)

    @routes.post("/completions")
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        found = _named(session, edited, asked.model)
        wanted = []
        for prompt in _prompts(asked.prompt):
            text = prompt if isinstance(prompt, str) else str(session.tokenizer.decode([*prompt]))
            ids = _ids(session, prompt)
            room = _room(session, ids, asked.max_tokens, "max_tokens")
            wanted += _several(asked, ids, room, found or text)
        return await _answered(batcher, asked, wanted, _Form(edited, asked.model, chat=False), request)

    @routes.post("/chat/completions")
    async def chat(asked: ChatAsked, request: Request) -> Response:
        found = _named(session, edited, asked.model)
        turns = [{"role": m.role.replace("developer", "system"), "content": m.text} for m in asked.messages]
        try:
            ids = session.chat(turns)
        except ValueError as error:
            raise ApiError(400, str(error).replace(" (--raw)", ""), param="messages") from None
        last = next((m.text for m in reversed(asked.messages) if m.role == "user"), asked.messages[-1].text)
        tokens = asked.max_completion_tokens or asked.max_tokens
        room = _room(session, ids, tokens, "max_tokens")
        wanted = _several(asked, ids, room, found or last)
        return await _answered(batcher, asked, wanted, _Form(edited, asked.model, chat=True), request)

    return routes


def _named(session: Session, edited: str, name: str | None) -> Found | None:
    """The edit that a model's name asks for; None where each prompt gets its own."""
    folder, colon, case = (name or edited).partition(":")
    if name is None or name == edited:
        return None
    if name == session.name:
        return Found(None, None)
    if folder != edited or not colon:
        there = (
            f"there are {edited!r} (with edits), {session.name!r} (without) and {edited + ':CASE'!r} (with one edit)"
        )
        raise ApiError(404, f"there is no model {name!r}; {there}", param="model", code="model_not_found")
    try:
        return Found(session.edit(case), None)
    except ValueError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from None


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> Iterator[str | list[int]]:
    """Each prompt, as a text or as tokens."""
    if isinstance(given, str):
        yield given
    elif given and isinstance(given[0], int):
        yield [token for token in given if isinstance(token, int)]
    else:
        yield from (prompt for prompt in given if not isinstance(prompt, int))
    if given == []:
        raise ApiError(400, "there is no prompt in the list", param="prompt")


def _ids(session: Session, prompt: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        try:
            return session.ids(prompt)
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt") from None
    if not prompt or not all(0 <= token < session.model.config.vocab_size for token in prompt):
        raise ApiError(400, f"tokens are numbers from 0 to {session.model.config.vocab_size - 1}", param="prompt")
    return tuple(prompt)


def _room(session: Session, ids: Sequence[int], tokens: int | None, param: str) -> int:
    """How long a text may become: as long as is asked for, or as there is room."""
    left = session.context - len(ids)
    if left < (tokens or 1):
        said = f"{len(ids)} tokens of the prompt" + (f" and {tokens} of the answer" if tokens else "")
        raise ApiError(
            400,
            f"the model's context has {session.context} tokens; {said} are too many",
            param=param,
            code="context_length_exceeded",
        )
    return tokens or left


def _several(asked: Asked, ids: tuple[int, ...], tokens: int, found: Found | str) -> list[Wanted]:
    seeds = [None if asked.seed is None else asked.seed + i for i in range(asked.n)]
    return [Wanted(ids, tokens, found, asked.temperature, asked.top_p, seed, asked.stops) for seed in seeds]


class _Form:
    """How answers are written down, of chats and of completions."""

    def __init__(self, edited: str, model: str | None, *, chat: bool) -> None:
        kind = "chat.completion" if chat else "text_completion"
        self.chat, self.part = chat, "chat.completion.chunk" if chat else kind
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model or edited,
        }
        self.kind = kind

    def choice(self, place: int, text: str, ended: str | None) -> dict[str, object]:
        content = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        return {"index": place, **content, "logprobs": None, "finish_reason": ended}

    def change(self, place: int, piece: Piece, first: bool) -> dict[str, object]:
        """As :meth:`choice`, of one piece."""
        role = {"role": "assistant"} if first else {}
        content = {"delta": {**role, "content": piece.text}} if self.chat else {"text": piece.text}
        return {"index": place, **content, "logprobs": None, "finish_reason": piece.ended}


def used(found: Found) -> dict[str, object]:
    """Which edit a text was written with, and how it was found."""
    route = found.route
    return {
        "case_id": route.fact.case_id if route and route.fact else found.facts[0].case_id if found.facts else None,
        "score": round(route.score, 6) if route else None,
        "nearest": route.nearest.case_id if route and route.nearest else None,
    }


async def _answered(
    batcher: Batcher, asked: Asked, wanted: Sequence[Wanted], form: _Form, request: Request
) -> Response:
    try:
        texts = batcher.submit(wanted)
    except QueueFullError as error:
        raise ApiError(429, str(error), code="queue_full") from None
    except StoppedError as error:
        raise ApiError(503, str(error)) from None
    prompts = sum(len(one.ids) for one in wanted[:: asked.n])
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(
            _streamed(texts, form, prompts, usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )
    collecting, leaving = create_task(_collected(texts, form, len(wanted), prompts)), create_task(_gone(request))
    await wait((collecting, leaving), return_when=FIRST_COMPLETED)
    if not collecting.done():
        texts.gone = True
        collecting.cancel()
        return Response(status_code=499)  # nobody reads it
    leaving.cancel()
    return JSONResponse(collecting.result())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collected(texts: Texts, form: _Form, count: int, prompts: int) -> dict[str, object]:
    said, ends, found, tokens = [""] * count, [""] * count, [dict[str, object]()] * count, [0] * count
    try:
        async for place, told in texts:
            if isinstance(told, Found):
                found[place] = used(told)
            else:
                said[place] += told.text
                ends[place], tokens[place] = told.ended or "", told.tokens
    except StoppedError as error:
        raise ApiError(503, str(error)) from None
    choices = [form.choice(place, text, ends[place]) for place, text in enumerate(said)]
    return {**form.head, "object": form.kind, "choices": choices, "usage": _usage(prompts, tokens), "loredit": found}


async def _streamed(texts: Texts, form: _Form, prompts: int, usage: bool) -> AsyncIterator[str]:
    head = {**form.head, "object": form.part}
    tokens: dict[int, int] = {}
    found: dict[int, dict[str, object]] = {}
    try:
        async for place, told in texts:
            if isinstance(told, Found):
                found[place] = used(told)
                continue
            choice = form.change(place, told, place not in tokens)
            more = {} if place in tokens else {"loredit": [found[place]]}
            tokens[place] = told.tokens
            yield event({**head, "choices": [choice], **more})
        if usage:
            yield event({**head, "choices": [], "usage": _usage(prompts, [*tokens.values()])})
        yield "data: [DONE]\n\n"
    except StoppedError as error:
        yield event(ApiError(503, str(error)).body())


def event(data: Mapping[str, object]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(prompt: int, completion: Sequence[int]) -> dict[str, int]:
    tokens = sum(completion)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def said(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The faults of a request's fields as one error."""
    told, fields = dict[str, None](), list[str]()
    for error in errors:
        place = [str(part) for part in error["loc"] if part != "body" and not isinstance(part, int)]
        message = str(error["msg"]).removeprefix("Value error, ")
        told[f"{'.'.join(place)}: {message}" if place else message] = None
        fields += place[:1]
    return ApiError(400, "; ".join(told), param=fields[0] if fields else None)
