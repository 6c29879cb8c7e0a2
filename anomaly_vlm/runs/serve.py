"""An HTTP service that judges images: JSON with the verdict and the picture of it, and a page to drop images on."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from anomaly_vlm.data.images import ReadError, open_image
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.verdict import known_category
from anomaly_vlm.names import shown
from anomaly_vlm.reporting.pictures import overlay_picture
from anomaly_vlm.runs.watch import check_single_images
from anomaly_vlm.runs.writer import colours_of

PAGE = Path(__file__).parent.parent / "reporting" / "serve.html"
LONGEST = 1024  # side of an overlay in pixels; larger images are shown smaller
NO_IMAGE, TOO_LARGE, OTHER_TYPE = 422, 413, 415  # HTTP status


class RefusedError(Exception):
    """A request that is answered with one line.

    Attributes:
        status: HTTP status.
        line: What is wrong, and how to mend it.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


def judgement(
    method: AnomalyMethod, content: bytes, *, name: str = "image", category: str | None = None, overlay: bool = True
) -> dict[str, Any]:
    """What the method says of one image.

    Args:
        method: With learned weights and, where it has one, a threshold.
        content: Of the image file.
        name: Of the file, for messages and the answer.
        category: What the image shows; None for the one that the method knows.
        overlay: Whether the answer has the image with the map laid over it, as the base64 text of a PNG.

    Returns:
        `name`, `score`, `decision` (empty without a threshold), `percentile`, `threshold`, `regions` (`box`, `area`, `peak`
        of each), and `overlay`.

    Raises:
        ReadError: The file is no image.
        UserError: The category is not among those that the method knows.
    """
    picture = open_image(name, method.max_value, content=content)
    prediction = method(picture, category=category)
    (verdict,) = prediction.verdicts
    threshold = method.decision_thresholds.get(known_category(method.known_categories, category))
    answer: dict[str, Any] = {
        "name": name,
        "score": verdict.score,
        "decision": verdict.decision,
        "percentile": verdict.percentile,
        "threshold": None if threshold is None else threshold.score,
        "regions": [{"box": list(one.box), "area": one.area, "peak": one.peak} for one in verdict.regions],
    }
    if overlay:
        heat = prediction.map[0].cpu().numpy()
        size = _at_most(picture.size, LONGEST)
        laid = overlay_picture(np.asarray(picture.convert("RGB")), heat, size, **colours_of(method, heat, threshold))
        buffer = io.BytesIO()
        laid.save(buffer, "PNG", compress_level=1)
        answer["overlay"] = base64.b64encode(buffer.getvalue()).decode()
    return answer


def _at_most(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height, in proportion, of which none is above `longest`."""
    shrink = min(1.0, longest / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request, read no further than `most` bytes.

    Raises:
        RefusedError: It is longer, empty, or a form.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RefusedError(OTHER_TYPE, "a form was sent: send the image file itself (curl --data-binary @part.jpg URL)")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise RefusedError(
                TOO_LARGE, f"the image has more than {most / 1e6:g} MB: send a smaller one, or set max_mb"
            )
    if not content:
        raise RefusedError(NO_IMAGE, "no image was sent: send its bytes (curl --data-binary @part.jpg URL)")
    return bytes(content)


def build_app(
    method: AnomalyMethod,
    *,
    facts: dict[str, Any],
    category: str | None = None,
    max_bytes: int = 20_000_000,
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """The service.

    Args:
        method: See `judgement`; requests are judged one at a time.
        facts: What `GET /about` says of the method.
        category: What images show, where a request does not say it.
        max_bytes: Of the largest image file that is read.
        hosts: Names under which the service may be called; `*` for any.

    Raises:
        UserError: The method's scores depend on the other images.
    """
    check_single_images(method, "are sent")
    app = FastAPI(title="anomaly_vlm", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    page = PAGE.read_text(encoding="utf-8")

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.line}, status_code=error.status)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return page

    @app.get("/about")
    async def about() -> dict[str, Any]:
        return facts

    @app.post("/judge")
    async def judge(
        request: Request, name: str = "image", category: str | None = category, overlay: bool = True
    ) -> dict[str, Any]:
        content = await body_of(request, max_bytes)
        try:
            return await run_in_threadpool(
                judgement, method, content, name=shown(name), category=category, overlay=overlay
            )
        except (ReadError, UserError) as error:
            raise RefusedError(NO_IMAGE, str(error)) from error

    return app
