"""A data set of one's own: a function from a folder to samples."""

from pathlib import Path

from anomaly_vlm.data import Sample
from anomaly_vlm.errors import UserError


def read_two_bins(root: Path, *, category: str = "object") -> list[Sample]:
    """Samples of `ok/*.png` and `reject/*.png`; a rejected image without `NAME.mask.png` has no known region."""
    found = []
    for folder, label in (("ok", 0), ("reject", 1)):
        for path in sorted((root / folder).glob("*.png")):
            if path.name.endswith(".mask.png"):
                continue
            mask = path.with_name(f"{path.stem}.mask.png")
            masks = (str(mask),) if mask.is_file() else ()
            found.append(Sample(str(path), category, label, masks=masks, defect="good" if label == 0 else "reject"))
    if not found:
        raise UserError(f"'{root}' has no ok/*.png or reject/*.png: give the folder that holds the two bins")
    return found
