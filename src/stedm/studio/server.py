"""Serving the page: to this machine alone, and asking nothing of any other."""

import importlib.util
import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from stedm.errors import UserError
from stedm.studio.workbench import Workbench

HOST = "127.0.0.1"
UPLOAD_LIMIT = "64mb"
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # gradio compiles the canvas's script in the browser
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "frame-ancestors 'none'",
        "form-action 'self'",
    ]
)
"""Content-Security-Policy: the browser loads from this server or not at all."""
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Policy:
    """ASGI middleware that adds the policy to each answer, and refuses paths with a URL in them: gradio fetches it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        if "://" in scope.get("path", ""):
            await with_policy({"type": "http.response.start", "status": 403, "headers": []})
            await with_policy({"type": "http.response.body", "body": b"nothing is fetched from other machines"})
            return
        await self._app(scope, receive, with_policy)


def serve(folder: str | Path, *, port: int = 7860, open_browser: bool = True) -> None:
    """Serve the studio of a run until it is interrupted. Raises UserError before anything is served."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the studio needs gradio; install it: python -m pip install 'stedm[studio]'")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are removed however it ends
    with tempfile.TemporaryDirectory(prefix="stedm-studio-") as scratch:
        page, url = start(Workbench(folder, scratch=Path(scratch)), port=port)
        print(f"studio: {url}  (this machine only; Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(url)
        page.block_thread()


def start(bench: Workbench, *, port: int) -> tuple[Any, str]:
    """Start serving in the background: the page and its URL; `page.close()` ends it. Raises UserError: port taken."""
    _quieten(bench.uploads)
    _refuse_taken(port)
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from stedm.studio.page import appearance, build_page

    page = build_page(bench)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no name that points here by trick
    _, url, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        allowed_paths=[],
        max_file_size=UPLOAD_LIMIT,
        app_kwargs={"middleware": [hosts, Middleware(Policy)]},
        **appearance(),
    )
    return page, url


def _quieten(uploads: Path) -> None:
    """Settings that gradio takes from the environment: no telemetry, uploads in this folder, nothing else of it."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(uploads),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST])),
    }


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); name another") from None
