"""Tables of the Arrow family, which the extra `data` reads: Parquet files, and Arrow files as Hugging Face saves them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly_vlm.errors import UserError

BATCH = 64  # rows in memory at a time: they may hold images
MISSING = (
    "reading Parquet and Arrow files needs pyarrow: pip install 'anomaly-vlm[data]' (make: make setup EXTRAS=data)"
)


class Table:
    """A `.parquet` or `.arrow` file, of which some rows at a time are in memory.

    Attributes:
        columns: Names of its columns.
        features: What Hugging Face's `datasets` wrote about the columns, by name; empty where somebody else wrote the file.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import ipc, parquet
        except ImportError as error:
            raise UserError(MISSING) from error
        self.path, self._arrow_error = path, pyarrow.ArrowException
        try:
            if path.suffix == ".arrow":
                self._file: Any = ipc.open_stream(pyarrow.memory_map(str(path)))
                schema = self._file.schema
            else:
                self._file = parquet.ParquetFile(path)
                schema = self._file.schema_arrow
        except (OSError, pyarrow.ArrowException) as error:
            raise self._damaged(error) from error
        self.columns: list[str] = list(schema.names)
        self.features: dict[str, Any] = _features((schema.metadata or {}).get(b"huggingface", b"{}"))

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows, each with these columns alone; once.

        Raises:
            UserError: There is no such column, or the file is damaged.
        """
        if lacking := [name for name in columns if name not in self.columns]:
            raise UserError(f"'{self.path}' has no column {lacking[0]}: it has {', '.join(self.columns)}")
        arrow = self.path.suffix == ".arrow"
        try:
            for batch in self._file if arrow else self._file.iter_batches(BATCH, columns=columns):
                for start in range(0, batch.num_rows, BATCH):
                    yield from batch.select(columns).slice(start, BATCH).to_pylist()
        except (OSError, self._arrow_error) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        reason = str(error).partition("\n")[0]
        return UserError(f"'{self.path}' cannot be read ({reason}): download it again")


def _features(written: bytes) -> dict[str, Any]:
    try:
        found = json.loads(written)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
