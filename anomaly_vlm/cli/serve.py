"""`anomaly-vlm serve`: judges images over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anomaly_vlm.cli.arguments import asks_for_help, trusted_in, values_of
from anomaly_vlm.cli.predict import DEFAULT
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs import stopping

if TYPE_CHECKING:
    from fastapi import FastAPI

HELP = """usage: anomaly-vlm serve [ckpt=FILE] [category=WORD] [host=127.0.0.1] [port=8000] [max_mb=20]

A page to drop an image on, and POST /judge?name=part.jpg with the bytes of an image: score, decision, percentile, regions,
and the picture as JSON (overlay=false leaves it out). GET /about says what answers.
    curl --data-binary @part.jpg 'http://127.0.0.1:8000/judge?name=part.jpg&overlay=false'
ckpt: what 'fit' or 'train' wrote (default: package:adaclip)
category: what images show, where a request does not say it
host: the address to listen at: the default is reached from this machine alone, 0.0.0.0 from others too, without a password
port: 0 takes a free one
max_mb: largest image file that is read
trust: packages of your own that the checkpoint may name, such as trust=[mypackage]: their code runs
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEYS = ("ckpt", "category", "host", "port", "max_mb", "trust")


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm serve` with its arguments until it is stopped; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    values = values_of("serve", arguments, KEYS)
    host = values["host"] or LOOPBACK[0]
    port, max_mb = (
        _whole("port", values["port"] or "8000", 0, 65535),
        _whole("max_mb", values["max_mb"] or "20", 1, 1000),
    )
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            "serve needs the packages fastapi and uvicorn: install the extra 'serve' (make setup EXTRAS=serve)"
        ) from error
    with _listen(host, port) as listening:
        app = _app(values, host, max_mb * 10**6)
        from anomaly_vlm.reporting.console import say

        shown = f"[{host}]" if ":" in host else host
        say(
            f"{values['ckpt'] or DEFAULT} judges images at http://{shown}:{listening.getsockname()[1]} (Ctrl-C ends it)"
        )
        with stopping.resume_command(*stopping.same_command("serve", arguments)):
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
            stopping.check()
    return 0


def _app(values: Mapping[str, str | None], host: str, max_bytes: int) -> FastAPI:
    """The service, with its method loaded."""
    from anomaly_vlm.api import load_checkpoint
    from anomaly_vlm.methods.base.verdict import known_category
    from anomaly_vlm.runs.serve import build_app

    spec, category = values["ckpt"] or DEFAULT, values["category"]
    method = load_checkpoint(spec, trusted=trusted_in(values))
    if category is not None:
        known_category(method.known_categories, category)
    facts = {
        "checkpoint": spec,
        "method": method.display_name(method.run_record["config"]["name"]),
        "backbone": method.backbone.describe(),
        "categories": list(method.known_categories),
        "thresholds": {name: one.summary for name, one in method.decision_thresholds.items()},
    }
    hosts = [*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"]
    return build_app(method, facts=facts, category=category, max_bytes=max_bytes, hosts=hosts)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address, before the weights are read.

    Raises:
        UserError: The address is taken, or none of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}): give another port"
        ) from error


def _whole(key: str, word: str, low: int, high: int) -> int:
    if not word.isdecimal() or not low <= int(word) <= high:
        raise UserError(f"{key} is '{word}': give a whole number from {low} to {high}")
    return int(word)
