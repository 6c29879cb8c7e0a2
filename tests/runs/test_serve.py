"""The HTTP service: verdict and picture of an image that is sent, and one line for what cannot be judged."""

from __future__ import annotations

import base64
import io
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm import load_method
from anomaly_vlm.cli import main
from anomaly_vlm.errors import UserError
from anomaly_vlm.metrics.thresholds import from_good_parts

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from anomaly_vlm.runs.serve import build_app


def png(width: int = 30, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 60, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def method():
    return load_method("winclip", "tiny_random", overrides=["image_size=64"])


@pytest.fixture
def client(method):
    score = float(method(Image.open(io.BytesIO(png())), category="lid").score)
    method.decision_thresholds = {"lid": from_good_parts([score - 1e-3], [-1.0], [-2.0])}
    method.known_categories = ["lid"]
    with TestClient(build_app(method, facts={"method": "winclip"}, max_bytes=2000), "http://localhost") as client:
        client.score = score
        yield client
    method.decision_thresholds, method.known_categories = {}, ()


def test_the_verdict_and_the_picture(client) -> None:
    reply = client.post("/judge?name=part.png", content=png())
    found = reply.json()
    assert reply.status_code == 200 and found["name"] == "part.png"
    assert found["score"] == pytest.approx(client.score) and found["threshold"] == pytest.approx(client.score - 1e-3)
    assert (found["decision"], found["percentile"]) == ("NOT OK", 100.0)
    assert found["regions"] == [
        {"box": [0, 0, 30, 20], "area": 600, "peak": pytest.approx(found["regions"][0]["peak"])}
    ]
    overlay = Image.open(io.BytesIO(base64.b64decode(found["overlay"])))
    assert overlay.size == (30, 20)
    assert np.asarray(overlay)[10, 15, 0] > 100  # red from the threshold on
    assert "overlay" not in client.post("/judge?overlay=false", content=png()).json()


@pytest.mark.parametrize(
    ("status", "query", "content", "line"),
    [
        (413, "", b"x" * 2001, "more than 0.002 MB"),
        (422, "", b"", "no image was sent"),
        (422, "?name=notes.txt", b"no image at all", "'notes.txt' cannot be read"),
        (422, "?category=gear", png(), "category=lid"),
    ],
)
def test_what_cannot_be_judged_is_rejected(client, status: int, query: str, content: bytes, line: str) -> None:
    reply = client.post(f"/judge{query}", content=content)
    assert reply.status_code == status
    assert line in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_forms_and_other_hosts_are_refused(client) -> None:
    assert client.post("/judge", files={"file": png()}).status_code == 415
    guarded = build_app(load_method("winclip", "tiny_random"), facts={}, hosts=["localhost"])
    with TestClient(guarded, "http://elsewhere.example") as other:
        assert other.get("/about").status_code == 400


def test_the_page_loads_nothing_from_elsewhere(client) -> None:
    page = client.get("/").text
    assert "Is this part OK?" in page and "prefers-color-scheme: dark" in page
    assert "http://" not in page and "https://" not in page and "innerHTML" not in page
    assert client.get("/about").json() == {"method": "winclip"}


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for words, line in (
            (["serve", "images=here"], "is no key of serve"),
            (["serve", "port=many"], "port is 'many'"),
            (["serve", f"port={taken.getsockname()[1]}"], "give another port"),
            (["serve", "port=0", f"ckpt={tmp_path / 'absent.ckpt'}"], "does not exist"),
        ):
            assert main(words) == 2
            assert line in capsys.readouterr().err
    together = load_method("musc", "tiny_random")
    with pytest.raises(UserError, match="as they are sent"):
        build_app(together, facts={})
