"""The playground as a page of this machine alone: it listens on 127.0.0.1, and asks nothing of anybody else."""

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twoview.errors import UserError
from twoview.play.scene import Scene

HERE = "127.0.0.1"
FILES = {"/": "text/html", "/play.css": "text/css", "/play.js": "text/javascript"}
LONGEST = 2**16  # bytes of what a page asks
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def application(scene: Scene) -> Any:
    """The WSGI application. It answers only to its own name, so that no page from elsewhere reaches it by another, and
    reads only JSON, which such a page cannot send.
    """
    try:
        from werkzeug.exceptions import HTTPException
        from werkzeug.wrappers import Request, Response
    except ImportError as error:
        raise UserError("the playground needs werkzeug: pip install 'twoview[play]'") from error

    class Asked(Request):
        trusted_hosts = [HERE, "localhost"]  # noqa: RUF012 - werkzeug's own name
        max_content_length = LONGEST

    answers: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "/views": scene.views,
        "/pairs": scene.pairs,
    }

    def said(content: Mapping[str, Any], status: int = 200) -> Response:
        return Response(json.dumps(content), status, HEADERS, "application/json")

    def answer(request: Request) -> Response:
        host, path = request.host, request.path  # of a host that is not trusted: refused
        assert host
        if request.method == "GET" and path in FILES:
            file = Path(__file__).with_name("page.html" if path == "/" else path[1:])
            return Response(file.read_bytes(), headers=HEADERS, mimetype=FILES[path])
        if request.method == "GET" and path == "/scene":
            return said(scene.about())
        if request.method == "POST" and path in answers:
            if request.mimetype != "application/json":
                return said({"error": "only JSON is read"}, 415)
            try:
                wishes = json.loads(request.get_data(), parse_constant=_refuse)
                if not isinstance(wishes, dict):
                    raise UserError("the page asks by a table of values")
                return said(answers[path](wishes))
            except (UserError, ValueError, RecursionError) as error:
                return said({"error": str(error)}, 400)
        return said({"error": "there is nothing here"}, 404)

    @Asked.application
    def app(request: Request) -> Response:
        try:
            return answer(request)
        except HTTPException as error:
            return said({"error": str(error.description)}, error.code or 500)

    return app


def _refuse(constant: str) -> float:
    raise UserError(f"{constant} is no number")


def listening(port: int) -> socket.socket:
    """A socket of this machine alone; port 0 is any that is free. UserError for one that is taken."""
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((HERE, port))
        one.listen(16)
    except OSError as error:
        one.close()
        raise UserError(f"port={port} cannot be used ({error.strerror}); port=0 takes any that is free") from error
    return one


def server(scene: Scene, port: int) -> Any:
    """A server of the scene, with `port` and `serve_forever()`."""
    app = application(scene)
    from werkzeug.serving import make_server

    own = listening(port)
    return make_server(HERE, own.getsockname()[1], app, threaded=True, fd=own.detach())
