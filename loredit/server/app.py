"""The application: its routes, who may call it, how it ends, and the server around it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import openai
from .batching import Batcher

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_ANY = frozenset({"0.0.0.0", "[::]"})
MOST_BYTES = 8 << 20
"""Of a request: room for a context of text, or a list of some ten thousand facts."""
_GRACE = 10  # seconds that running answers have when the server is told to end


class Guard:
    """Lets nobody in but those who have called this server by its own name, and no page but its own.

    A page of another site can make a browser send requests here; it gives itself away by ``Origin``. One whose name was
    made to lead here (DNS rebinding) gives itself away by ``Host``. A request that changes something has to come with
    an ``Origin``, as every browser sends it, unless it is of OpenAI's interface, which programs call.

    Args:
        app: what is guarded.
        host: the name that the server is bound to.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refused := self._refused(scope, headers):
            await refused(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MOST_BYTES:
                raise HTTPException(413, f"a request has {MOST_BYTES >> 20} MB at most")
            return message

        await self._app(scope, counted, send)

    def _refused(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if self._host not in _ANY and name.lower() not in (
            {self._host} | (LOOPBACK if self._host in LOOPBACK else set())
        ):
            return _plain(scope, 403, f"this server is not called {name!r}")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _plain(scope, 403, f"pages of {origin} may not call this server")
        if origin is None and scope["method"] not in ("GET", "HEAD") and not scope["path"].startswith("/v1/"):
            return _plain(scope, 403, "a request that changes something needs an Origin, which browsers send")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return _plain(scope, 413, f"a request has {MOST_BYTES >> 20} MB at most")
        return None


def _plain(scope: Scope, status: int, message: str) -> Response:
    if scope["path"].startswith("/v1/"):
        return openai.ApiError(status, message).response()
    return PlainTextResponse(message, status)


def application(batcher: Batcher, edited: str, host: str, *, ending: Callable[[], None] = lambda: None) -> FastAPI:
    """The application with OpenAI's interface, whose end is the batcher's end.

    Args:
        batcher: what writes all texts.
        edited: the name of the model with its edits.
        host: the name that the server is bound to.
        ending: what else is to end.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()
        ending()

    app = FastAPI(title="loredit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, host=host)
    app.include_router(openai.router(batcher, edited))

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(openai.ApiError)
    def refused(_: Request, error: openai.ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        told = openai.said(error.errors())
        return told.response() if request.url.path.startswith("/v1/") else PlainTextResponse(str(told), told.status)

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> Response:
        return _plain(request.scope, error.status_code, error.detail)

    @app.exception_handler(Exception)
    def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(openai.ApiError(500, f"this should not have happened: {error!r}").body(), 500)

    return app


class Server(uvicorn.Server):
    """uvicorn's, that tells when it is asked to end: streams that would go on for ever end then."""

    def __init__(self, app: FastAPI, ending: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", server_header=False)
        config.timeout_graceful_shutdown = _GRACE
        super().__init__(config)
        self._ending = ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._ending()
        super().handle_exit(sig, frame)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Until it is asked to end, which is no interruption; to be asked twice is one."""
        try:
            super().run(sockets)
        except KeyboardInterrupt:
            if self.force_exit:
                raise


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError, which says where."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None


def url(host: str, listening: socket.socket) -> str:
    """Where a browser finds it."""
    return f"http://{host}:{listening.getsockname()[1]}"
