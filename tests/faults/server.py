"""A process that has imported everything, and forks for each command: the real command line without its seconds of imports.

A request is a line of JSON on standard input, the answer a line on standard output. In the forked process an audit hook sees
every operation on files below a folder; at the one that is asked for the process is killed, sent a signal, or loses the
folder. The same at a call of one function. Nothing in the program itself knows of this.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")


def watch(request: dict[str, Any], counter: int) -> None:
    """Counts operations that change something below `request["watch"]`, and acts at number `request["at"]`."""
    folder, at, action = str(request["watch"]), request.get("at"), request.get("action")
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not os.path.normpath(Path.cwd() / os.fspath(arguments[0])).startswith(folder):
            return
        seen += 1
        os.pwrite(counter, seen.to_bytes(4, "big"), 0)
        if seen == at:
            act(str(action), folder)

    sys.addaudithook(hook)


def act_at_call(request: dict[str, Any]) -> None:
    """Acts at call number `at` of the function `of`, given as `module:Class.name`."""
    module, _, path = request["call"]["of"].partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function, left = getattr(owner, name), [int(request["call"]["at"])]

    def counting(*arguments: Any, **keywords: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            act(str(request["action"]), str(request.get("watch")))
        return function(*arguments, **keywords)

    setattr(owner, name, counting)


def act(action: str, folder: str) -> None:
    if action == "vanish":
        Path(folder).rename(f"{folder}.gone")
        return
    os.kill(os.getpid(), getattr(signal, action))


def serve_one(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one command in a forked process; returns its status (negative for a signal), operations and seconds."""
    place = Path(request["place"])
    place.mkdir(parents=True, exist_ok=True)
    counter = os.open(place / "operations", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        run(request, place, counter)
    after, limit = request.get("after"), request.get("timeout", 600)
    sent = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        passed = time.monotonic() - started
        if after is not None and not sent and passed >= after:
            os.kill(pid, getattr(signal, request["action"]))
            sent = True
        if passed > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = None
            break
        time.sleep(0.005)
    count = int.from_bytes(os.pread(counter, 4, 0), "big")
    os.close(counter)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if (place / "modules").is_file():
        import_all((place / "modules").read_text().split("\n"))
    return {"status": code, "operations": count, "seconds": time.monotonic() - started}


def import_all(names: list[str]) -> None:
    """Imports what a command has imported, so that the next one need not."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def run(request: dict[str, Any], place: Path, counter: int) -> None:
    """The forked process: never returns."""
    status = 99
    try:
        os.setsid()
        os.chdir(request["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request.get("env", {}))
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
        from anomaly_vlm.reporting import console

        console.console.file = sys.stdout
        if size := request.get("largest_file"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if request.get("offline"):
            forbid_sockets()
        if request.get("watch"):
            watch(request, counter)
        if request.get("call"):
            act_at_call(request)
        from anomaly_vlm.cli import main

        sys.argv = ["anomaly-vlm", *request["words"]]
        status = main(request["words"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 98
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        with contextlib.suppress(Exception):
            (place / "modules").write_text("\n".join(sys.modules))
        os._exit(status)


def forbid_sockets() -> None:
    """Any use of the network ends the command."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
            raise RuntimeError(f"the network was used: {event}")

    sys.addaudithook(hook)


def main() -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    import anomaly_vlm.cli.evaluate
    import anomaly_vlm.cli.predict
    import anomaly_vlm.cli.report
    import anomaly_vlm.cli.sweep
    import anomaly_vlm.cli.train
    import anomaly_vlm.runs.evaluate
    import anomaly_vlm.runs.fit
    import anomaly_vlm.runs.predict
    import anomaly_vlm.runs.seeds  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(serve_one(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
