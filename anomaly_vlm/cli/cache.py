"""`anomaly-vlm cache`: the token caches on disk, shown and cleared."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from anomaly_vlm.cli.arguments import values_of
from anomaly_vlm.errors import unknown_choice

HELP = """usage: anomaly-vlm cache [folder=FOLDER]             lists the token caches
       anomaly-vlm cache clear=NAME|all [folder=FOLDER]

folder: default $ANOMALY_VLM_CACHE, else ~/.cache/anomaly_vlm/tokens
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm cache` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    folder, doomed = values_of("cache", arguments, ("folder", "clear")).values()
    from rich.table import Table

    from anomaly_vlm.caching.folders import cache_folder
    from anomaly_vlm.caching.tokens import clear, list_caches
    from anomaly_vlm.reporting.console import say, show

    root = cache_folder("tokens", folder or "auto")
    caches = list_caches(root)
    if doomed is not None:
        names = [info.place.name for info in caches]
        if doomed != "all" and doomed not in names:
            raise unknown_choice(f"cache in '{root}'", doomed, ["all", *names])
        for info in caches:
            if doomed in ("all", info.place.name):
                clear(info)
                say(f"cleared {info.place.name}: {info.entries:,} images, {info.bytes / 1e9:.2f} GB")
        return 0
    if not caches:
        say(f"no token caches in '{root}'")
        return 0
    table = Table(title=f"token caches in '{root}'", title_justify="left", pad_edge=False)
    for column in ("name", "images", "GB", "last used", "backbone", "tokens"):
        table.add_column(column, justify="right" if column in ("images", "GB") else "left", overflow="fold")
    for info in caches:
        facts = {key: value for key, value in info.about.items() if key in ("layers", "vv_from", "precision")}
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.used))
        weights = str(info.about.get("weights", "?"))
        text = ", ".join(f"{key} {value}" for key, value in facts.items())
        table.add_row(info.place.name, f"{info.entries:,}", f"{info.bytes / 1e9:.2f}", used, weights, text)
    show(table)
    say(f"{sum(info.bytes for info in caches) / 1e9:.2f} GB in all; 'anomaly-vlm cache clear=all' removes them")
    return 0
