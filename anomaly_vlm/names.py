"""Names that users and file systems give, made harmless where they are shown or become parts of files.

A category or a file may be called anything: with line breaks, escape sequences, bytes that are no text, or a formula. What
is computed with stays as it is; only what is shown goes through here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

PICTURE_SUFFIX = ".jpg"  # of the pictures that a run draws for people
LONGEST = 80  # characters of a name that becomes part of a file's
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute a cell


def shown(text: object) -> str:
    """A text in one line for people: control characters, line breaks and what is no text appear as Python's escapes.

    So nothing that is printed can move the cursor, colour the terminal or break a table.
    """
    return "".join(_escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    if character == " " or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def csv_cell(text: object) -> str:
    """A text as the cell of a CSV file: in one line, with `'` in front where a spreadsheet would take it for a formula."""
    ready = shown(text)
    return f"'{ready}" if ready.startswith(FORMULA) and not _is_number(ready) else ready


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None


def slug(text: str) -> str:
    """A file name of plain characters, not longer than file systems allow; different long texts get different names."""
    plain = re.sub(r"[^\w.-]+", "_", text).strip("_.") or "image"
    if len(plain.encode("utf-8", "replace")) <= LONGEST:
        return plain
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{plain.encode('utf-8', 'replace')[:LONGEST].decode('utf-8', 'ignore')}_{digest}"


def picture_names(paths: Sequence[str]) -> dict[int, str]:
    """By position, a name for the picture of each image that tells where the image lies, each once.

    Args:
        paths: Of the images, below the folder that all lie in.
    """
    found, taken = {}, set()
    for i, path in enumerate(paths):
        parts = [slug(part) for part in Path(path).parts if part not in ("/", "..")]
        stem = "/".join(["pictures", *parts[:-1], slug(Path(path).stem)])
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        found[i] = f"{name}{PICTURE_SUFFIX}"
    return found


def category_and_metric(key: str) -> tuple[str, str]:
    """The two parts of a result's key: `gear` and `pixel_auroc` of `gear/pixel_auroc`; the first may be empty.

    The bounds of a binned value belong to its name: `gear` and `pixel_auroc/lower`.
    """
    base = key.removesuffix("/lower").removesuffix("/upper")
    category, _, name = base.rpartition("/")
    return category, name + key[len(base) :]


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """Means over the categories by metric: what a run's values hold under `mean/NAME`."""
    return {key.removeprefix("mean/"): value for key, value in values.items() if key.startswith("mean/")}


def shortest_names(keys: Sequence[str]) -> dict[str, str]:
    """Different dotted keys by as few of their last parts as tell them apart; whole where they end another key."""
    found = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return found


def elements(text: str) -> list[str]:
    """The elements of a list without the quotes around them, see `split_list`."""
    return [word[1:-1] if word[:1] in ("'", '"') and word[-1:] == word[:1] else word for word in split_list(text)]


def split_list(text: str) -> list[str]:
    """The elements of a list as they are written, at the commas outside quotes and brackets."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if character in "'\"" and (quote == character or (not quote and (found[-1].strip() or ",")[-1] in ",:[{(")):
            quote = "" if quote else character  # a quote inside a word is part of it
        depth += 0 if quote else (character in "[{(") - (character in "]})")
        if character == "," and not quote and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return [word.strip() for word in found]
