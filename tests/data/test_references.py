"""Few-shot picks: the same for every method, recorded, never tested on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from anomaly_vlm.data import AnomalyDataModule, Preprocess, Sample
from anomaly_vlm.data.drawn.products import ProceduralSource
from anomaly_vlm.data.references import (
    MemoryImages,
    ReferencePicks,
    listed,
    pick,
    place_below,
    read_list,
    roots_of,
    write_list,
)
from anomaly_vlm.data.source import FileSource, JointSource
from anomaly_vlm.errors import UserError
from anomaly_vlm.reporting.describe import describe_data


def candidates(category: str, count: int) -> list[Sample]:
    return [Sample(f"set/{category}/train/good/{i:03d}.png", category, 0, dataset="set") for i in range(count)]


def paths(samples: list[Sample]) -> list[str]:
    return [sample.path for sample in samples]


def test_picks_depend_on_seed_and_category_alone():
    both = [*candidates("b", 20), *candidates("a", 20)]
    chosen = pick(both, 2, seed=3)
    assert [sample.category for sample in chosen] == ["a", "a", "b", "b"]
    assert paths(pick(list(reversed(both)), 2, seed=3)) == paths(chosen)
    assert paths(pick(candidates("a", 20), 2, seed=3)) == paths(chosen[:2])
    assert paths(pick(both, 2, seed=4)) != paths(chosen)
    assert {Path(p).name for p in paths(chosen[:2])} != {Path(p).name for p in paths(chosen[2:])}


def test_fewer_shots_are_among_more():
    rows = candidates("a", 30)
    assert paths(pick(rows, 8, seed=1))[:4] == paths(pick(rows, 4, seed=1))


def test_too_few_normal_images_are_rejected():
    with pytest.raises(UserError, match="category a has 3 normal images to pick from: set shots=3"):
        pick(candidates("a", 3), 4, seed=0)


@pytest.mark.parametrize(
    "entry", [["007.png", "002.png"], [7, 2], {"2": [7, 2], "1": [0]}, ["good/007.png", "train/good/002.png"]]
)
def test_a_list_names_its_picks_in_several_ways(entry):
    chosen = listed(candidates("a", 10), {"a": entry}, 2, "mine.json")
    assert [Path(p).name for p in paths(chosen)] == ["007.png", "002.png"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (["007.png"], "names 1 images of category a for shots=2"),
        (None, "names 0 images"),
        (["x.png", "002.png"], "'x.png' is no normal image"),
        ([12, 0], "12 is no normal image"),
        ([7, "007.png"], "names an image of category a twice"),
    ],
)
def test_a_list_that_does_not_fit_is_rejected(entry, told):
    with pytest.raises(UserError, match=told):
        listed(candidates("a", 10), {} if entry is None else {"a": entry}, 2, "mine.json")


def test_a_written_list_is_read_again(tmp_path):
    rows = candidates("a", 10)
    chosen = pick(rows, 3, seed=5)
    write_list(tmp_path / "references.json", chosen, shots=3, seed=5)
    assert paths(listed(rows, read_list(str(tmp_path / "references.json")), 3, "file")) == paths(chosen)
    assert json.loads((tmp_path / "references.json").read_text())["seed"] == 5


@pytest.mark.parametrize(("content", "told"), [("[", "no JSON"), ("[1]", "holds a list")])
def test_a_broken_list_is_rejected(tmp_path, content, told):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_list(str(tmp_path / "list.json"))
    with pytest.raises(UserError, match="does not exist"):
        read_list(str(tmp_path / "absent.json"))


def file_source(root: Path, rows: list[tuple[str, str, int]]) -> FileSource:
    """A source of (split, name, label) rows of one category, with real files."""
    samples = []
    for split, name, label in rows:
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (label * 100, 50, int(name[0]) * 20)).save(path)
        samples.append(Sample(str(path), "part", label, split=split, kind="image"))
    return FileSource(name="parts", root=root, reader=lambda _: samples, layout="files")


def test_references_come_from_the_training_split_where_there_is_one(tmp_path):
    rows = [("train", "1.png", 0), ("train", "2.png", 0), ("test", "3.png", 0), ("test", "4.png", 1)]
    data = with_picks(file_source(tmp_path, rows), 2)
    assert {Path(sample.path).parent.name for sample in data.picks.samples()} == {"train"}
    assert len(data.samples("test")) == 2


def test_references_taken_from_the_test_set_leave_it(tmp_path):
    rows = [("test", f"{i}.png", 0) for i in range(6)] + [("test", "7.png", 1)]
    data = with_picks(file_source(tmp_path, rows), 2)
    assert len(data.samples("test")) == 5
    assert not {s.path for s in data.picks.samples()} & {s.path for s in data.samples("test")}
    assert "2 normal images of each category as references" in describe_data(data).train


def test_copies_of_references_leave_the_test_set_too(tmp_path, caplog):
    rows = [("test", f"{i}{end}.png", 0) for i in range(6) for end in ("", "_copy")] + [("test", "7.png", 1)]
    data = with_picks(file_source(tmp_path, rows), 2)
    assert len(data.samples("test")) == 9
    assert "2 of 11 test images are copies of references and left out" in caplog.text


def test_references_of_a_checkpoint_are_known_by_content_and_by_their_path_below_the_root(tmp_path, caplog):
    rows = [("test", f"{i}.png", 0) for i in range(4)]
    old, new = file_source(tmp_path / "old", rows), file_source(tmp_path / "new", rows)
    Image.open(tmp_path / "new/test/0.png").save(tmp_path / "new/test/0.png", compress_level=0)
    (tmp_path / "new/test/1.png").rename(tmp_path / "new/test/one.png")
    data = AnomalyDataModule(test=new, picks=ReferencePicks(old, num_shots=2))
    picks = [sample for sample in old.samples("test") if Path(sample.path).name in ("0.png", "1.png")]
    places = {place_below(sample.path, roots_of(JointSource(name="both", sources={"old": old}))) for sample in picks}
    assert places == {Path("test/0.png"), Path("test/1.png")}
    data.memory_images = replace(MemoryImages.of(picks), places=frozenset({Path("test/0.png")}))
    renamed = new.reader(Path())
    renamed[1] = replace(renamed[1], path=str(tmp_path / "new/test/one.png"))
    assert [Path(sample.path).name for sample in data.samples("test")] == ["2.png", "3.png"]
    assert "2 of 4 test images are in the checkpoint's memory" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "/data/other/test/2.png",
        "C:\\other\\test\\2.png",
        "test\\2.png",
        "{root}/../link/test/2.png",
        "../gone/test/2.png",
        "parts/test/2.png",
    ],
)
def test_a_list_serves_on_other_machines_and_through_links(tmp_path, monkeypatch, name):
    root = tmp_path / "parts"
    source = file_source(root, [("test", f"{i}.png", 0) for i in range(4)])
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    table = {"part": [name.replace("{root}", str(root))]}
    chosen = listed(source.references(), table, 1, "mine.json", roots_of(source))
    assert paths(chosen) == [str(root / "test/2.png")]


@pytest.mark.parametrize("name", ["/data/other/bad/2.png", "", "/", "other/2.png"])
def test_a_path_that_only_looks_alike_is_refused(tmp_path, name):
    source = file_source(tmp_path, [("test", f"{i}.png", 0) for i in range(4)])
    with pytest.raises(UserError, match="is no normal image of category part"):
        listed(source.references(), {"part": [name]}, 1, "mine.json", roots_of(source))


def test_a_run_that_trains_on_a_set_says_both(tmp_path):
    source = file_source(tmp_path, [("test", f"{i}.png", 0) for i in range(3)])
    data = with_picks(source, 1, train=ProceduralSource(size=32, train_count=12))
    assert (
        describe_data(data).train == "trained on procedural (12 images), 1 normal image of each category as references"
    )
    assert describe_data(AnomalyDataModule(test=source, train_on="nothing")).train == "not trained"


def with_picks(test, num_shots: int, **options) -> AnomalyDataModule:
    return AnomalyDataModule(test=test, picks=ReferencePicks(test, num_shots=num_shots), **options)


def drawn(num_shots: int, **options) -> AnomalyDataModule:
    data = with_picks(ProceduralSource(size=32, test_count=24, categories=["gear", "tile"]), num_shots, **options)
    data.preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return data


def test_references_are_batches_of_one_category():
    data = drawn(3)
    gear, tile = data.references()
    assert (gear.category, tile.category, len(gear)) == ("gear", "tile", 3)
    assert gear.batch.image.shape == (3, 3, 32, 32) and all(gear.batch.key)
    assert gear.at_size(64).shape == (3, 3, 64, 64)
    torch.testing.assert_close(gear.at_size(32), gear.batch.image)
    assert all(sample.defect == "good" and "reference" in sample.path for sample in data.picks.samples())


def test_training_on_references_gives_each_category_one_whole_batch():
    data = drawn(2, train_on="references")
    batches = list(data.train_dataloader())
    assert [(set(batch.category), len(batch)) for batch in batches] == [({"gear"}, 2), ({"tile"}, 2)]
    assert data.first_batch().path == batches[0].path
    assert data.references()[0].batch.path == batches[0].path


def test_the_order_is_part_of_the_state_to_resume_from():
    loader = drawn(2, train_on="references").train_dataloader()
    with pytest.raises(UserError, match="made with shots=1, this run has shots=2"):
        loader.load_state_dict({**loader.state_dict(), "shots": 1})


def test_masks_of_their_own_size():
    data = drawn(0)
    data.preprocess = Preprocess(32, (0.5,) * 3, (0.25,) * 3, mask_size=48)
    batch = next(iter(data.test_dataloader()))
    assert batch.image.shape[-2:] == (32, 32) and batch.mask.shape[-2:] == (48, 48)
