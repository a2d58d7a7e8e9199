"""The server of `hindsight view`: static files and documents, to this machine's browser and nobody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hindsight.cluster.report.export import STATIC, listing
from hindsight.cluster.report.pages import NoSuchPage, Pages, as_script
from hindsight.cluster.report.run_folder import RunFolderError

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]  # any other name in a request comes from a page that rebound its own name to us
HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
OURS = ("same-origin", "none")  # the page itself, or the address bar


class PortTaken(RuntimeError):
    """Another process listens there; the message says what to do."""


def application(runs: Sequence[tuple[str, Pages]], about: Mapping[str, Any]) -> Starlette:
    """The server's application for runs (name and pages each)."""
    lock = asyncio.Lock()  # parsed stages are shared

    async def data(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            async with lock:
                script = await asyncio.to_thread(_script, path, runs, about)
        except NoSuchPage as error:
            return PlainTextResponse(f"nothing was recorded for {error}", status_code=404)
        except RunFolderError as error:
            script = as_script(path, {"error": str(error)})
        return Response(script, media_type="text/javascript")

    return Starlette(
        routes=[
            Route("/data/{path:path}.js", data),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(Guard)],
    )


def _script(path: str, runs: Sequence[tuple[str, Pages]], about: Mapping[str, Any]) -> str:
    if path == "runs":
        return as_script(path, listing(runs, about))
    number, *address = path.split("/")
    if not number.isdecimal() or int(number) >= len(runs) or not address:
        raise NoSuchPage(path)
    return as_script(path, runs[int(number)][1].document(*address))


class Guard:
    """Refuses what another site's page asks for, and adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        site = Request(scope).headers.get("sec-fetch-site", "none")
        if scope["path"].startswith("/data/") and site not in OURS:
            refusal = PlainTextResponse("only this server's own page may read the run", status_code=403)
            await refusal(scope, receive, sealed)
        else:
            await self.app(scope, receive, sealed)


def listen(port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one.

    Raises:
        PortTaken: another process listens on this port.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise PortTaken(
            f"cannot listen on {HOST}:{port} ({error.strerror}): choose another --port"
        ) from error
    return listening


def serve(runs: Sequence[tuple[str, Pages]], about: Mapping[str, Any], listening: socket.socket) -> None:
    """Answer on `listening` until a signal ends it."""
    config = uvicorn.Config(application(runs, about), log_level="warning", lifespan="off", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
