"""Files that are there whole or not at all, and checkpoints that know when they are damaged.

A file is written beside its place, handed to the disk, and moved to its place in one step. So a kill in mid-write, a full
disk or two processes at work on one folder leave the file of before, or none. Nothing goes through the system's folder for
temporary files, which may be full or lie on another file system.

A checkpoint is a zip archive. Its comment, which readers of archives ignore, holds a digest of everything in front of it: a
file without its end does not load, and one with a flipped bit does not match its digest.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from anomaly_vlm.errors import UserError

UNFINISHED = ".unfinished"  # ends the name of a file that is being written
END = struct.Struct("<4s4H2LH")  # the record that ends a zip archive; its last field is the length of the comment
SEAL = re.compile(rb"anomaly_vlm:sha256:(.{64})", re.DOTALL)
SEAL_BYTES = len(b"anomaly_vlm:sha256:") + 64
LARGEST_JSON = 1_000_000_000  # bytes; the index of a large set has some hundred million
FileState = tuple[int, int]  # of a file: bytes, time of its last change in nanoseconds
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str | Path, *, durable: bool = True) -> Iterator[IO[str]]:
    """A text file that is there whole or not at all.

    Characters that UTF-8 cannot express (parts of file names that are no text) are written as escapes.

    Args:
        path: The file; its folder is there.
        durable: Whether the content reaches the disk before the file gets its name, so that it outlives a power cut.
    """
    with whole_bytes(path, durable=durable) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="")
        yield text
        text.flush()
        text.detach()


@contextmanager
def whole_bytes(path: str | Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """As `whole_file`, for bytes."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name[:80]}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    if durable:
        sync_folder(path.parent)


def write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file whole, see `whole_file`."""
    with whole_file(path, durable=durable) as file:
        file.write(text)


def read_json(path: Path, *, what: str, way: str = "", largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file, which may begin with the mark that Windows writes.

    Args:
        path: The file.
        what: What the file should be, for messages, such as `index`.
        way: How to mend it, for messages.
        largest: Bytes that such a file has at most.

    Raises:
        UserError: It is missing, cannot be read, is too large, nests too deeply, or is no JSON.
    """
    way = way or "mend it, or give another file"
    try:
        if (size := path.stat().st_size) > largest:
            raise UserError(f"'{path}' is no {what} (it has {size:,} bytes, more than {largest:,}): {way}")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist: give the file of the {what}") from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}): {way}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no {what} (it is no text in UTF-8): {way}") from error
    except RecursionError as error:
        raise UserError(f"'{path}' is no {what} (it nests too deeply): {way}") from error
    except ValueError as error:
        raise UserError(f"'{path}' is no {what} (no JSON: {str(error)[:120]}): {way}") from error


def sync_folder(folder: Path) -> None:
    """Hands the names in a folder to the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, with a comment that holds its digest."""
    head = archive[: -END.size]
    mark, *fields, comment = END.unpack(archive[-END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise ValueError("no zip archive without a comment")
    body = head + END.pack(mark, *fields, SEAL_BYTES)
    return body + b"anomaly_vlm:sha256:" + hashlib.sha256(body).hexdigest().encode()


def is_damaged(path: Path) -> bool:
    """Whether a file's digest does not match its content; False for files without one.

    Raises:
        OSError: It cannot be read.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, length - SEAL_BYTES - END.size))
        end = file.read()
        seal = SEAL.fullmatch(end[-SEAL_BYTES:])
        if seal is None:
            place = end.rfind(b"PK\x05\x06")  # cut inside its digest, where it had one
            return place >= 0 and end[place + END.size - 2 : place + END.size] == struct.pack("<H", SEAL_BYTES)
        file.seek(0)
        digest, left = hashlib.sha256(), length - SEAL_BYTES
        while left:
            part = file.read(min(left, 1 << 20))
            if not part:
                return True
            digest.update(part)
            left -= len(part)
    return digest.hexdigest().encode() != seal[1]


def keep_previous(path: Path, previous: Path) -> None:
    """Gives a file a second name, so that it outlives its replacement; `path` itself is there all the time."""
    if not path.is_file():
        return
    link = previous.with_name(f".{previous.name}.{os.getpid()}{UNFINISHED}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(previous)
    except OSError:  # a file system without links: a copy
        with whole_bytes(previous) as copy, path.open("rb") as file:
            while part := file.read(1 << 20):
                copy.write(part)


def clear_unfinished(folder: Path) -> None:
    """Removes what a writer that was killed has left below a folder; files of processes that still run stay."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        writer = path.name.removesuffix(UNFINISHED).rpartition(".")[2]
        if writer.isdecimal() and not _runs(int(writer)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def os_error_line(error: OSError) -> str:
    """What the operating system refused, in one line with the way out."""
    name = str(error.filename) if error.filename is not None else "a file"
    name = re.sub(rf"\.([^/]+)\.\d+{re.escape(UNFINISHED)}$", r"\1", name)
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        way = "free space or give another folder; what was written whole before stays"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        way = "it was there before: restore it, or give another folder"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        way = "change its permissions, or give another folder"
    else:
        way = "check the disk and the limits of this session"
    return f"'{name}': {reason}: {way}"


def unique_folder(path: str | Path) -> Path:
    """Makes a folder that nobody else has made: `path`, or `path_2`, `path_3`, ... where that is taken."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(errno.EEXIST, "too many folders of this name", str(path))


def expanded(path: str | Path) -> Path:
    """A path with the user's home folder in place of a leading `~/`; a name that begins with `~` stays."""
    text = str(path)
    return Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)
