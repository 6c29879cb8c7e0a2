"""Sources: roots, splits, categories, words, order; joint sources; the prediction folder."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path

import pytest

from anomaly_vlm.data import AnomalyDataModule, FileSource, JointSource, Sample, own_images
from anomaly_vlm.data.own_images import image_files
from anomaly_vlm.data.readers.class_folders import read_class_folders
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.describe import describe_data
from tests.data.trees import mvtec_category, picture


def source(root: Path | str | None, **options) -> FileSource:
    defaults = {
        "name": "mvtec_ad",
        "reader": read_mvtec_ad,
        "layout": "CAT/test/{good,DEFECT}",
        "origin": "its authors",
    }
    return FileSource(**{"root": root, **defaults, **options})


@pytest.fixture
def two(tmp_path: Path) -> Path:
    mvtec_category(tmp_path / "bottle")
    mvtec_category(tmp_path / "screw")
    return tmp_path


def test_only_the_chosen_split_on_every_side(two: Path) -> None:
    assert [source(two).samples(side) for side in ("train", "val", "test")] == [source(two).samples("test")] * 3
    assert len(source(two).samples("test")) == 8
    assert {s.split for s in source(two, split="train").samples("test")} == {"train"}
    assert len(source(two, split="all").samples("test")) == 12
    with pytest.raises(UserError, match=r"unknown split of mvtec_ad in '.*' 'val': choose one of test, train"):
        source(two, split="val").samples("test")
    with pytest.raises(UserError, match="unknown split 'tests': choose one of test"):
        source(two, split="tests")


def test_order_does_not_follow_the_file_system(two: Path) -> None:
    class Shuffled:
        def __call__(self, root: Path) -> list[Sample]:
            return read_mvtec_ad(root)[::-1]

    assert source(two, reader=Shuffled()).samples("test") == source(two).samples("test")
    paths = [s.path for s in source(two).samples("test")]
    assert paths == sorted(paths)


def test_samples_carry_set_and_threshold(two: Path) -> None:
    (first, *_) = source(two, mask_threshold=127).samples("test")
    assert (first.dataset, first.mask_threshold) == ("mvtec_ad", 127)
    for wrong in (255, -1, 0.5, True):
        with pytest.raises(UserError, match="mask_threshold is"):
            source(two, mask_threshold=wrong)
    with pytest.raises(UserError, match=r"name of a data set is '\{\}': give a text"):
        source(two, name={})


def test_categories(two: Path) -> None:
    assert {s.category for s in source(two, categories=["screw"]).samples("test")} == {"screw"}
    assert {s.category for s in source(two, categories="screw").samples("test")} == {"screw"}
    with pytest.raises(
        UserError, match=r"unknown category of mvtec_ad 'bottel': choose one of bottle, screw \(did you mean"
    ):
        source(two, categories=["bottel"]).samples("test")


def test_incomplete_set_is_reported(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="anomaly_vlm"):
        source(two, published_categories=["bottle", "carpet", "screw"]).samples("test")
    assert "is incomplete: 2 of 3 categories, without carpet" in caplog.text
    caplog.clear()
    source(two, published_categories=["bottle", "carpet"], categories=["bottle"]).samples("test")
    assert caplog.text == ""


def test_class_words(two: Path) -> None:
    assert {s.category for s in source(two, class_words={"bottle": "glass bottle"}).samples("test")} == {
        "glass bottle",
        "screw",
    }
    with pytest.raises(UserError, match="unknown category in class_words of mvtec_ad 'botle'"):
        source(two, class_words={"botle": "glass"}).samples("test")
    with pytest.raises(UserError, match="gives bottle and screw the same word 'screw'"):
        source(two, class_words={"bottle": "screw"}).samples("test")


@pytest.mark.parametrize(
    "side, mend",
    [("test", r"set dataset\.test\.root=FOLDER \(make: DATA=FOLDER\)"),
     ("train", r"set dataset\.train\.root=FOLDER \(make: TRAIN_DATA=FOLDER\)"), ("val", r"set dataset\.val\.root=FOLDER$")],
)  # fmt: skip
def test_absent_root_names_layout_origin_and_option(tmp_path: Path, side: str, mend: str) -> None:
    for root, found in (
        (None, "no folder given"),
        (tmp_path / "x", "no folder '.*x'"),
        (tmp_path, "no images of mvtec_ad in"),
    ):
        with pytest.raises(UserError, match=rf"{found}.*: expected CAT/test/.*; get it from its authors, then {mend}"):
            source(root).samples(side)


def test_reader_options_are_checked_at_once(two: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        source(two, reader=partial(read_mvtec_ad, norml="good"))


def test_root_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_images").mkdir()
    (tmp_path / "some_images/__init__.py").write_text("raise RuntimeError('imported')")
    picture(tmp_path / "some_images/data/no/1.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = partial(read_class_folders, category="x", normal=["no"], anomalous=["yes"])
    (sample,) = source("package:some_images/data", reader=reader).samples("test")
    assert sample.path == str(tmp_path / "some_images/data/no/1.png")
    assert "some_images" not in sys.modules
    for name in ("absent_images", "some_images.data"):
        with pytest.raises(UserError, match=f"package {name} is not installed"):
            source(f"package:{name}/data", reader=reader).samples("test")


def test_joint_source_keeps_each_set(tmp_path: Path) -> None:
    mvtec_category(tmp_path / "a/bottle")
    mvtec_category(tmp_path / "b/colon")
    parts = {"first": source(tmp_path / "a", name="a"), "second": source(tmp_path / "b", name="b", mask_threshold=127)}
    joint = JointSource(name="a+b", sources=parts)
    samples = joint.samples("train")
    assert [(s.dataset, s.mask_threshold) for s in samples] == [("a", None)] * 4 + [("b", 127)] * 4
    mvtec_category(tmp_path / "b/bottle")
    assert len(joint.samples("train")) == 12
    with pytest.raises(
        UserError, match=r"first and second both have a category 'bottle'.* rename one with sources\.second"
    ):
        joint.samples("test")
    parts["second"].root = None
    with pytest.raises(UserError, match=r"set dataset\.train\.sources\.second\.root=FOLDER$"):
        joint.samples("train")
    with pytest.raises(UserError, match="has no sources"):
        JointSource(name="none", sources={})


def test_names_in_a_list_of_images_may_hold_commas(tmp_path: Path) -> None:
    for name in ("a,b.png", "c.png"):
        picture(tmp_path / name)
    spec = f"['{tmp_path}/a,b.png', {tmp_path}/c.png]"
    assert [path.name for path in image_files(spec)[1]] == ["a,b.png", "c.png"]


def test_own_images_for_prediction(tmp_path: Path) -> None:
    picture(tmp_path / "parts/a/1.png")
    picture(tmp_path / "parts/2.png")
    found = own_images(str(tmp_path / "parts"), "lid")
    data = AnomalyDataModule(test=found)
    assert [(s.path, s.category, s.label) for s in data.samples("test")] == [
        (str(tmp_path / "parts/2.png"), "lid", None),
        (str(tmp_path / "parts/a/1.png"), "lid", None),
    ]
    assert describe_data(data).sides["test"] == "tested on parts (2 images)"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in '.*empty': give a folder"):
        own_images(str(tmp_path / "empty"), "lid")


def test_ways_to_name_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "a/2.PNG", "b/[x].png", "a/notes.txt"):
        picture(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"# parts\na/1.png\n\n{tmp_path / 'b' / '[x].png'}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def named(spec: str) -> list[str]:
        return [file.name for file in image_files(spec)[1]]

    assert named("a") == ["1.png", "2.PNG"] and named("a/1.png") == ["1.png"]
    assert named("**/*.png") == ["1.png", "[x].png"] and named("b/[x].png") == ["[x].png"]
    assert named("list.txt") == ["1.png", "[x].png"] and named("[a/1.png, b/[x].png]") == ["1.png", "[x].png"]
    assert image_files("list.txt")[0] == tmp_path
    for wrong, words in {"c": "no such file or folder", "*.bmp": "no images", "[]": "no images"}.items():
        with pytest.raises(UserError, match=words):
            image_files(wrong)


def test_a_list_that_was_written_on_windows(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\r\n", encoding="utf-8-sig")
    assert [file.name for file in image_files(str(tmp_path / "list.txt"))[1]] == ["a.png"]


@pytest.mark.parametrize("inside", ["", "train/"])
def test_good_parts_are_not_taken_from_beside_defective_ones(tmp_path: Path, inside: str) -> None:
    picture(tmp_path / inside / "good/1.png")
    picture(tmp_path / "ground_truth/1.png")
    assert len(own_images(str(tmp_path), "lid", label=0, key="good").samples("test")) == 1
    picture(tmp_path / ("test/bad/2.png" if inside else "bad/2.png"))
    with pytest.raises(UserError, match=rf"beside '.*{inside}good', .*: give good=.*{inside}good$"):
        own_images(str(tmp_path), "lid", label=0, key="good")


def test_copies_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "parts/1.png")
    (tmp_path / "parts/2.png").write_bytes((tmp_path / "parts/1.png").read_bytes())
    assert len(own_images(str(tmp_path / "parts"), "lid", label=0, once=True).samples("test")) == 1
    assert "1 of 2 files are copies of others" in caplog.text
