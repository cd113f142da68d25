"""GET /, the page for people: one file that talks to this server only and is shown in no frame."""

from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse

from stasc_ray.serving.errors import ApiError

PAGE = Path(__file__).parents[1] / "web" / "index.html"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": CONTENT_POLICY, "X-Content-Type-Options": "nosniff"}

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> Response:
    """The page."""
    if not PAGE.is_file():
        message = "this installation has no page; the routes are listed at /docs"
        raise ApiError(404, "not_found_error", message)
    return FileResponse(PAGE, headers=HEADERS)
