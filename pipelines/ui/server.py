"""The server of the page: this machine alone unless told otherwise, few addresses, no file but the reports of the folder."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Any

from semu_diffusion.errors import InputError

__all__ = ["LOOPBACK", "application", "check_host", "listen", "names_of", "require_gradio", "server"]

# All that the page asks for. gradio's other addresses (files, uploads, proxies, its API, its monitoring) are not there.
ADDRESSES = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*|/report/.+"
    r"|/gradio_api/(queue/join|queue/data|heartbeat/\w+|startup-events|cancel|reset|app_id|login_check|theme\.css)/?"
)
# The page runs its own scripts and speaks to its own server; a report may come from anyone and is shut in for itself.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def check_host(host: str, share_on_network: bool) -> None:
    """Raise InputError for an address that others can reach, unless that was asked for."""
    if not share_on_network and not is_loopback(host):
        raise InputError(
            f"--host {host} lets others on the network start erasures and see every run here: if you mean it, "
            "add --share-on-network"
        )


def names_of(host: str) -> tuple[str, ...] | None:
    """The names by which a server at this address is asked; None where others may ask, by whatever they call it."""
    return (*LOOPBACK, host) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one. Raises InputError where that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {host} --port {port}: {error}; choose another --port, 0 for any free one") from error


class Gate:
    """Lets requests through that the page makes: to its `ADDRESSES`, by this machine's own names unless shared, from itself.

    A page elsewhere that a browser also shows can neither send anything here (its ``Origin`` is another) nor, by a name that
    it lets point to this machine, read anything (its ``Host`` is another).
    """

    def __init__(self, app: Any, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        host = headers.get("host", "")
        foreign = self.hosts is not None and re.sub(r":\d+$", "", host) not in self.hosts
        origin = headers.get("origin")
        if scope["type"] != "http" or foreign or (origin is not None and origin.partition("://")[2] != host):
            if scope["type"] == "http":
                await PlainTextResponse("not from here", 403)(scope, receive, send)
            return
        if not ADDRESSES.fullmatch(scope["path"]) or ".." in scope["path"].split("/"):
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        policy = REPORT_POLICY if scope["path"].startswith("/report/") else PAGE_POLICY

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in own.items())]
            await send(message)

        await self.app(scope, receive, answer)


def require_gradio() -> None:
    """Import gradio, which then sends nothing to anyone. Raises InputError where it is not installed."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")  # read at the import
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError("semu ui needs gradio: pip install 'semu-diffusion[ui]'") from error


def application(desk: Any, hosts: tuple[str, ...] | None = LOOPBACK) -> Any:
    """The page of a `Desk` and the reports of its folder, behind the `Gate`."""
    import gradio
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse

    from semu_diffusion.pipelines.ui.page import HEAD, STYLE, build, theme

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report/{name:path}/{file}")
    def report(name: str, file: str) -> Any:
        try:
            path = desk.shelf.page(name, file)
        except InputError as error:
            return PlainTextResponse(str(error), 404)
        return FileResponse(path, media_type="text/plain" if path.suffix == ".md" else None)

    gradio.mount_gradio_app(
        app, build(desk), "/", footer_links=[], run_history=False, allowed_paths=[], ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, theme=theme(), css_paths=STYLE, head=HEAD, max_file_size=0,
    )  # fmt: skip
    return Gate(app, hosts)


def server(app: Any) -> Any:
    """What answers for the application; its ``run(sockets=[...])`` ends at Ctrl-C and SIGTERM, and goes on as they do."""
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
