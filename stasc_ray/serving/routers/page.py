"""GET / and GET /docs, the pages for people: they load nothing from elsewhere and are shown in no frame.

A key that is typed into the page stays in its tab, so on this origin only the page's own script may run: its
content policy names the script's hash. /docs has no script; it is rendered here, from /openapi.json.
"""

import base64
import functools
import hashlib
import json
import re
from pathlib import Path

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from stasc_ray.serving.errors import ApiError

WEB = Path(__file__).parents[1] / "web"
PAGE = WEB / "index.html"

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def page() -> Response:
    """The page."""
    if not PAGE.is_file():
        message = "this installation has no page; the routes are listed at /docs"
        raise ApiError(404, "not_found_error", message)
    text, script = _page()
    return HTMLResponse(text, headers=headers(f"script-src '{script}'; connect-src 'self'; img-src data:"))


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
def docs(request: Request) -> Response:
    """Every route, its fields and its answers; in a thread, since rendering takes a while."""
    return HTMLResponse(_documentation(json.dumps(request.app.openapi())), headers=headers("img-src data:"))


def headers(policy: str) -> dict[str, str]:
    """Of a page that may do what `policy` says, and show itself."""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {policy}; "
    policy += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


@functools.cache
def _page() -> tuple[str, str]:
    """The page, and its script's hash as a content policy names it."""
    text = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return text, f"sha256-{digest}"


@functools.lru_cache(maxsize=1)
def _documentation(document: str) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("docs.html.j2").render(api=json.loads(document))
