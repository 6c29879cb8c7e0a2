"""Sets that come as tables: Kaputt's index, Hugging Face's files; and Datumaro's JSON."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly_vlm.data import Sample
from anomaly_vlm.data.readers import hugging_face
from anomaly_vlm.data.readers.datumaro import read_datumaro
from anomaly_vlm.data.readers.hugging_face import read_hugging_face
from anomaly_vlm.data.readers.kaputt import read_kaputt
from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.errors import UserError
from tests.data.test_readers_coco import RECTANGLE, compressed, runs_of
from tests.data.trees import kaputt, mask, picture, write_json

# ---- Kaputt ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "query-crop", "kaputt-release"])
def test_kaputt_by_material_and_defect_types(prefix: str, tmp_path: Path) -> None:
    found = read_kaputt(kaputt(tmp_path, prefix=prefix))
    assert [(s.category, s.label, s.defect, s.kind, s.masks) for s in found] == [
        ("cardboard", 0, "good", "image", ()),
        ("paper", 1, "spillage", "image", ()),
        ("paper", 1, "deformation+penetration", "image", ()),
    ]
    assert all(Path(sample.path).is_file() for sample in found)
    assert [sample.defect for sample in read_kaputt(tmp_path, minor=False)] == ["good", "deformation+penetration"]


def test_kaputt_tells_what_is_not_there(tmp_path: Path) -> None:
    kaputt(tmp_path)
    with pytest.raises(UserError, match=r"has no column query_image: it has capture_id"):
        read_kaputt(tmp_path, view="image")
    with pytest.raises(UserError, match=r"unknown reader.view 'whole'"):
        read_kaputt(tmp_path, view="whole")  # type: ignore[arg-type]
    for path in (tmp_path / "data").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"'data/test/query-data/crop/0.jpg' of .* is not below .*query-crop"):
        read_kaputt(tmp_path)
    (tmp_path / "datasets/query-test.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"query-test.parquet' cannot be read .*: download it again"):
        read_kaputt(tmp_path)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOMALY_VLM_UNPACKED", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(value: int, *, region: bool = False) -> bytes:
    pixels = np.full((8, 10), value, np.uint8)
    pixels[RECTANGLE if region else ...] = 255 if region else value
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(with_masks: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"image": {"bytes": png(10 * i), "path": f"p {i}.png"}, "label": i, "part": f"part {i}"} for i in range(3)
    ]
    if with_masks:
        for i, row in enumerate(found):
            row["mask"] = {"bytes": png(0, region=True), "path": None} if i else None
    return found


def table(with_masks: bool) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    features = {"label": {"names": ["good", "dent", "scratch"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    written = json.dumps({"info": {"features": features}})
    return pyarrow.Table.from_pylist(rows(with_masks)).replace_schema_metadata({"huggingface": written})


def write(root: Path, form: str, with_masks: bool) -> Path:
    made = table(with_masks)
    import pyarrow
    from pyarrow import parquet

    if form == "parquet":
        (root / "data").mkdir(parents=True)
        parquet.write_table(made, root / "data/validation-00000-of-00001.parquet")
    else:
        (root / "validation").mkdir(parents=True)
        target = str(root / "validation/data-00000-of-00001.arrow")
        with pyarrow.OSFile(target, "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made)
    return root


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("with_masks", [True, False])
def test_tables_of_hugging_face(form: str, with_masks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "set", form, with_masks)
    found = read_hugging_face(root, category="lid")
    assert [(s.label, s.defect, s.split, s.category) for s in found] == [
        (0, "good", "val", "lid"), (1, "dent", "val", "lid"), (1, "scratch", "val", "lid"),
    ]  # fmt: skip
    assert [s.kind for s in found] == ["mask" if with_masks else "image"] * 3
    for i, sample in enumerate(found):
        image, region = read_sample(sample)
        assert np.asarray(image).max() == 10 * i and sample.path.endswith(f"p_{i}.png")
        assert (region is not None) == (with_masks and i > 0)
        if region is not None:
            np.testing.assert_array_equal(np.asarray(region) > 0, RECTANGLE)
    monkeypatch.setattr(hugging_face, "_unpack", None)  # nothing is unpacked twice
    assert read_hugging_face(root, category="lid") == found
    monkeypatch.undo()


def test_options_of_hugging_face(tmp_path: Path) -> None:
    root = write(tmp_path / "set", "parquet", False)
    found = read_hugging_face(root, category_column="part", normal=["Dent"])
    assert [(s.label, s.category) for s in found] == [(1, "part 0"), (0, "part 1"), (1, "part 2")]
    with pytest.raises(UserError, match=r"has no column picture: it has image, label, part"):
        read_hugging_face(root, image="picture")
    with pytest.raises(UserError, match=r"has int in place of an image"):
        read_hugging_face(root, image="label", label="part")


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "test/b.png")
    picture(tmp_path / "test/c.png")
    mask(tmp_path / "test/b_region.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,label\na.png,ok\n")
    lines = (
        '{"file_name": "b.png", "label": "dent", "mask_file_name": "b_region.png"}\n{"file_name": "c.png", "label": -1}'
    )
    (tmp_path / "test/metadata.jsonl").write_text(lines)
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "label": "ok"}\n')
    found = {(s.split, s.label): s for s in read_hugging_face(tmp_path)}
    assert found["train", 0] == Sample(str(tmp_path / "train/a.png"), "object", 0, split="train")
    assert found["test", 1].masks == (str(tmp_path / "test/b_region.png"),)
    assert found["test", None].kind == "none"
    for written, told in (
        ('{"file_name": "../../etc", "label": 1}', "lies outside"),
        ('{"file_name": "b.png"}', "is no metadata file .KeyError: 'label'"),
        ("{", "is no metadata file"),
    ):
        (tmp_path / "test/metadata.jsonl").write_text(written)
        with pytest.raises(UserError, match=told):
            read_hugging_face(tmp_path)


@pytest.mark.parametrize(
    "label, expected",
    [
        (0.0, 0), (1.0, 1), (float("nan"), None), (-1.0, None), ("0.0", 0), ("1.00", 1), ("-1", None), ("", None),
        ("None", None), ("null", None), ("NA", None), (" good ", 0), (" Dent ", 1), (False, 0), (None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_labels_of_metadata_files(form: str, label: Any, expected: int | None, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    written = f"file_name,label\na.png,{'' if label is None else label}\n"
    if form == "jsonl":
        written = json.dumps({"file_name": "a.png", "label": label})
    (tmp_path / f"metadata.{form}").write_text(written)
    (sample,) = read_hugging_face(tmp_path)
    assert (sample.label, sample.kind) == (expected, "none" if expected is None else "image")
    assert sample.defect == {0: "good", None: ""}.get(expected, sample.defect)


@pytest.mark.parametrize("label", [[0], {"a": 1}, 0.5])
def test_labels_of_another_kind_are_refused(label: Any, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": label}))
    with pytest.raises(
        UserError, match=r"^row 0 of .*metadata.jsonl' has the label .*: expected a word, a whole number"
    ):
        read_hugging_face(tmp_path)


def parquet_of(root: Path, **columns: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"label": {"names": ["good", "dent"], "_type": "ClassLabel"}}
    images = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(2)]
    made = pyarrow.table({"image": images, **columns})
    root.mkdir()
    written = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(written, root / "test.parquet")
    return root


def test_labels_and_categories_of_parquet_files(tmp_path: Path) -> None:
    found = read_hugging_face(parquet_of(tmp_path / "bytes", label=[b"good", b"bad"]))
    assert [(s.label, s.defect) for s in found] == [(0, "good"), (1, "bad")]
    days = [datetime.date(2026, 1, day) for day in (1, 2)]
    for _ in range(2):  # unpacked, and from the index
        found = read_hugging_face(parquet_of(tmp_path / f"days{_}", label=[0.0, 1.0], day=days), category_column="day")
        assert [(s.label, s.defect, s.category) for s in found] == [
            (0, "good", "2026-01-01"),
            (1, "dent", "2026-01-02"),
        ]
    with pytest.raises(UserError, match=r"row 0 of .* has the label '2026-01-01' \(date\)"):
        read_hugging_face(parquet_of(tmp_path / "dates", label=days))
    with pytest.raises(UserError, match=r"row 1 of .* has the label 7, but there are 2 classes"):
        read_hugging_face(parquet_of(tmp_path / "far", label=[0, 7]))


def test_a_label_may_be_a_word_for_nothing_where_normal_names_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,none\n")
    assert [s.label for s in read_hugging_face(tmp_path, normal=["None"])] == [0]


def test_metadata_with_backslashes_repeats_and_contradictions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "part/a.png")
    mask(tmp_path / "part/mask.png")
    lines = [{"file_name": "part\\a.png", "label": "good", "mask_file_name": "part\\mask.png"}] * 2
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [s.path for s in read_hugging_face(tmp_path)] == [str(tmp_path / "part/a.png")]
    assert "1 entries list an image again" in caplog.text and "masks of normal images mark pixels" in caplog.text
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, [lines[0], {**lines[1], "label": "dent"}])))
    with pytest.raises(UserError, match=r"lists image '.*a\.png' twice, as good and as dent"):
        read_hugging_face(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{'x' * 200_000},0\n")
    with pytest.raises(UserError, match=r"is no metadata file .Error: field larger"):
        read_hugging_face(tmp_path)


# ---- Datumaro --------------------------------------------------------------------------------------------------------


def datumaro(root: Path, annotations: list[dict[str, Any]], media: dict[str, Any] | None = None) -> Path:
    for name in ("normal", "bad"):
        picture(root / f"images/train/{name}.jpg", size=(10, 8))
    labels = [{"name": "dent"}, {"name": "OK"}]
    items = [
        {"id": "normal", "annotations": [{"type": "label", "label_id": 1}], "media": {"path": "normal.jpg"}},
        {"id": "bad", "annotations": annotations, **({} if media is None else {"image": media})},
    ]
    write_json(root / "annotations/train.json", {"categories": {"label": {"labels": labels}}, "items": items})
    return root


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "polygon", "points": [3, 2, 8, 2, 8, 5, 3, 5]},
        {"type": "mask", "rle": {"size": [8, 10], "counts": compressed(runs_of(RECTANGLE))}},
        {"type": "bbox", "bbox": [3, 2, 5, 3]},
    ],
)
@pytest.mark.parametrize("media", [None, {"path": "bad.jpg", "size": [8, 10]}])
def test_regions_of_datumaro(annotation: dict[str, Any], media: dict[str, Any] | None, tmp_path: Path) -> None:
    normal, bad = read_datumaro(datumaro(tmp_path, [{**annotation, "label_id": 0}], media), category="lid")
    assert [(s.label, s.defect, s.kind, s.split) for s in (normal, bad)] == [
        (0, "good", "mask", "train"),
        (1, "dent", "mask", "train"),
    ]
    assert bad.drawing is not None and normal.drawing is not None
    np.testing.assert_array_equal(bad.drawing.draw().mask, RECTANGLE)
    assert not normal.drawing.draw().mask.any()


def test_datumaro_knows_sizes_by_halves_and_images_listed_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    polygon = {"type": "polygon", "label_id": 0, "points": [1.5, 1, 4, 1, 4, 2.5, 1.5, 2.5]}
    root = datumaro(tmp_path, [polygon], {"path": "bad.jpg", "size": [4, 5]})
    region = read_sample(read_datumaro(root)[1])[1]
    assert region is not None
    assert region.size == (10, 8) and region.getextrema() == (0, 255)
    path = root / "annotations/train.json"
    written = json.loads(path.read_text())
    written["items"].append(written["items"][0])
    write_json(path, written)
    assert len(read_datumaro(root)) == 2 and "1 entries list an image again" in caplog.text
    written["items"].append({**written["items"][1], "annotations": []})
    write_json(path, written)
    with pytest.raises(UserError, match=r"lists image '.*bad\.jpg' twice, as dent and as good"):
        read_datumaro(root)


def test_labels_alone_and_other_annotations_of_datumaro(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = [{"type": "label", "label_id": 0}, {"type": "polyline", "label_id": 0, "points": [1, 1, 2, 2]}]
    assert [s.kind for s in read_datumaro(datumaro(tmp_path, marks))] == ["mask", "image"]
    assert "1 polyline" in caplog.text
    with pytest.raises(UserError, match=r"defects names crack, which .* does not have: choose of dent, OK"):
        read_datumaro(tmp_path, defects=["crack"])
    assert [s.label for s in read_datumaro(tmp_path, defects=["OK"])] == [1, 0]


@pytest.mark.parametrize(
    "annotations, told",
    [
        ([{"type": "polygon", "label_id": 7, "points": []}], "is no Datumaro file .IndexError"),
        ([{"type": "mask", "label_id": 0}], "is no Datumaro file .KeyError: 'rle'"),
        ([{"type": "polygon", "label_id": 0, "points": [1, 2, 3]}], "for image '.*bad.jpg' a polygon of 3 numbers"),
    ],
)
def test_what_is_no_datumaro_file_is_rejected(annotations: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        read_datumaro(datumaro(tmp_path, annotations))
    (tmp_path / "images/train/bad.jpg").unlink()
    empty = {"categories": {"label": {"labels": []}}, "items": [{"id": "bad", "annotations": []}]}
    write_json(tmp_path / "annotations/train.json", empty)
    with pytest.raises(UserError, match=r"image 'bad' is not in .*images.train"):
        read_datumaro(tmp_path)
