"""Every shipped data set composes, says its name and finds a fake tree of its layout through its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from anomaly_vlm.data import AnomalyDataModule, FileSource, JointSource
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.compose import compose as whole_run
from anomaly_vlm.runs.groups import own_launchers_and_sweepers
from tests.data.made import PIXELS
from tests.data.trees import kaputt, mask, mvtec_category, picture, road_tree, visa_download, write_json
from tests.support.conf import CONF

SOURCES = sorted(path.stem for path in (CONF / "source").glob("*.yaml"))
OWN = {"own", "own_rest", "good_plus_drawn_defects"}  # parts of a folder of the user's own
FILE_SOURCES = sorted(set(SOURCES) - {"procedural", "procedural_road", "mvtec_colondb", "visa_clinicdb"} - OWN)
ROADS = {"cityscapes", "cityscapes_val", "fishyscapes_laf", "fishyscapes_static", "lost_and_found", "procedural_road"}
ROADS |= {"road_anomaly", "road_anomaly21", "road_obstacle21"}
DATASETS = sorted(path.stem for path in (CONF / "dataset").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    """The data node of a whole run."""
    return whole_run(["method=adaclip", *overrides]).dataset


def alone(group: str, name: str) -> DictConfig:
    """One choice of a group by itself, which is much quicker."""
    own_launchers_and_sweepers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(f"{group}/{name}")[group]


@pytest.mark.parametrize("name", FILE_SOURCES)
def test_file_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CONF / "source" / f"{name}.yaml").read_text()
    assert text.startswith("# "), "a head comment says what it is"
    source = instantiate(alone("source", name))
    assert isinstance(source, FileSource)
    assert source.name == name
    assert "max_value" in text, "messages on files of more than 8 bits name it"
    monkeypatch.setattr(
        "anomaly_vlm.data.file_source.find_spec", lambda _: None
    )  # as if no package of data were installed
    with pytest.raises(UserError, match=rf"^{name}: (no folder|package).*: expected .* set dataset\.test\.root=FOLDER"):
        source.samples("test")
    assert source.origin or name in ("folder", "meta_json", "coco", "datumaro", "hugging_face")


@pytest.mark.parametrize("name", DATASETS)
def test_dataset(name: str) -> None:
    node = alone("dataset", name)
    assert set(node) == {"name", "train", "test", "val"} | ({"components"} if name in ROADS else set())
    assert node.val is None
    train, test = instantiate(node.train), instantiate(node.test)
    assert node.name is None, "it follows from the sides, see `runs.compose.data_name`"
    if name in OWN:
        assert train.shares == test.shares == (0.7, 0.0, pytest.approx(0.3))
    elif name in SOURCES:
        trained = {"cityscapes": "cityscapes"}.get(name, "procedural_road" if name in ROADS else "procedural")
        assert (train.name, test.name) == (trained, "cityscapes_val" if name == "cityscapes" else name)


def test_sides_can_be_overridden() -> None:
    node = composed(
        "dataset=visa_to_mvtec", "source@dataset.train=folder", "source@dataset.val=brain_mri",
        "dataset.train.root=somewhere",
        "dataset.test.categories=[bottle,carpet]",
        "dataset.test.class_words={bottle: glass bottle}",
    )  # fmt: skip
    assert node.name == "somewhere_to_mvtec_ad"
    assert (node.val.name, node.train.root) == ("brain_mri", "somewhere")
    test = instantiate(node.test)
    assert (test.categories, test.class_words) == (["bottle", "carpet"], {"bottle": "glass bottle"})
    assert composed("dataset=mvtec_ad", "dataset.train=null").name == "untrained_to_mvtec_ad"


def test_joint_sources_have_a_folder_each() -> None:
    node = composed("dataset=visa_clinicdb_to_mvtec", "dataset.train.sources.visa.root=here")
    joint = instantiate(node.train)
    assert isinstance(joint, JointSource)
    assert list(joint.sources) == ["visa", "cvc_clinicdb"]
    with pytest.raises(UserError, match=r"visa: no folder 'here'.*set dataset\.train\.sources\.visa\.root=FOLDER"):
        joint.samples("train")


def test_targets_are_plain_names_of_this_package() -> None:
    def targets(node: Any) -> list[str]:
        if isinstance(node, list):
            return [found for part in node for found in targets(part)]
        if not isinstance(node, dict):
            return []
        own = [node["_target_"]] if "_target_" in node else []
        return own + [found for part in node.values() for found in targets(part)]

    for name in SOURCES:
        node = yaml.safe_load((CONF / "source" / f"{name}.yaml").read_text())
        found = targets(node)
        assert found or "defaults" in node
        assert all(target.startswith("anomaly_vlm.data.") for target in found)


def grow(name: str, root: Path) -> None:
    """A fake tree as users have the set on disk: one normal and one anomalous test image where the set has both."""
    if name in ("mvtec_ad", "mpdd", "dtd_synthetic", "mvtec_loco", "goods_ad", "cad3"):
        mvtec_category(root / "tile")
    elif name == "autovi":
        for kind in ("good", "crack"):
            picture(root / f"pipe_clip/test/{kind}/0001.png")
        for i, box in enumerate(((0, 0, 2, 2), (5, 5, 7, 7))):
            mask(root / f"pipe_clip/ground_truth/crack/0001/000{i}.png", box=box)
    elif name == "vad":
        for kind in ("good", "bad"):
            picture(root / f"vad/test/{kind}/1.png")
    elif name == "bmad":
        for kind in ("good", "Ungood"):
            picture(root / f"Brain_AD/test/{kind}/img/1.png")
            mask(root / f"Brain_AD/test/{kind}/label/1.png", box=(0, 0, 2, 2) if kind == "Ungood" else None)
    elif name == "coco":
        for i in (1, 2):
            picture(root / f"images/{i}.png")
        write_json(
            root / "annotations.json",
            {
                "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in (1, 2)],
                "categories": [{"id": 5, "name": "dent"}],
                "annotations": [{"image_id": 2, "category_id": 5, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}],
            },
        )
    elif name == "datumaro":
        for i in (1, 2):
            picture(root / f"images/default/{i}.png")
        dent = {"type": "polygon", "label_id": 0, "points": [1, 1, 5, 1, 5, 5, 1, 5]}
        items = [{"id": str(i), "image": {"path": f"{i}.png"}, "annotations": [dent][: i - 1]} for i in (1, 2)]
        labels = {"label": {"labels": [{"name": "dent"}]}}
        write_json(root / "annotations/default.json", {"categories": labels, "items": items})
    elif name == "hugging_face":
        for i in (0, 1):
            picture(root / f"test/{i}.png")
        (root / "test/metadata.csv").write_text("file_name,label\n0.png,0\n1.png,1\n")
    elif name == "kaputt":
        kaputt(root)
    elif name == "btad":
        mvtec_category(root / "01", normal="ok", defect="ko")
    elif name == "visa":
        visa_download(root)
    elif name == "mvtec_ad2":
        for kind in ("good", "bad"):
            picture(root / f"can/test_public/{kind}/1.png")
        mask(root / "can/test_public/ground_truth/bad/1_mask.png")
    elif name == "ksdd":
        picture(root / "kos01/Part0.jpg")
        mask(root / "kos01/Part0_label.bmp")
    elif name == "ksdd2":
        for i, box in ((1, None), (2, (0, 0, 2, 2))):
            picture(root / f"test/{i}.png")
            mask(root / f"test/{i}_GT.png", box=box)
    elif name == "dagm":
        for i in (1, 2):
            picture(root / f"Class1/Test/000{i}.PNG")
        mask(root / "Class1/Test/Label/0002_label.PNG")
    elif name in ("real_iad", "real_iad_variety"):
        entries = [
            {"image_path": "OK/1.jpg", "mask_path": None, "anomaly_class": "OK"},
            {"image_path": "NG/2.jpg", "mask_path": "NG/2_mask.png", "anomaly_class": "HS"},
        ]
        write_json(root / "realiad_jsons/realiad_jsons/toy.json", {"train": [], "test": entries})
        picture(root / "realiad_1024/toy/OK/1.jpg")
        picture(root / "realiad_1024/toy/NG/2.jpg")
        mask(root / "realiad_1024/toy/NG/2_mask.png")
    elif name == "magnetic_tile":
        for kind in ("Free", "Crack"):
            picture(root / f"MT_{kind}/Imgs/1.jpg", mode="L")
            mask(root / f"MT_{kind}/Imgs/1.png", box=(0, 0, 2, 2) if kind == "Crack" else None)
    elif name in ("brain_mri", "br35h"):
        picture(root / "no/no 1.jpg")
        picture(root / "yes/Y1.jpg")
    elif name == "covid19":
        picture(root / "Normal/images/Normal-1.png")
        picture(root / "COVID/images/COVID-1.png")
    elif name == "headct":
        picture(root / "head_ct/000.png")
        picture(root / "head_ct/001.png")
        (root / "labels.csv").write_text("id, hemorrhage\n0,0\n1,1\n")
    elif name in ("cvc_colondb", "cvc_clinicdb", "kvasir", "endo"):
        picture(root / "images/1.png")
        mask(root / "masks/1.png")
    elif name == "isic":
        picture(root / "ISBI2016_ISIC_Part1_Test_Data/ISIC_1.jpg")
        mask(root / "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_1_Segmentation.png")
    elif name == "tn3k":
        picture(root / "tn3k/test-image/1.jpg")
        mask(root / "tn3k/test-mask/1.jpg")
    elif name == "elpv":
        for i in (1, 2):
            picture(root / f"images/{i}.png")
        (root / "labels.csv").write_text("images/1.png 0.0 mono\nimages/2.png 1.0 mono\n")
    elif name == "textile":
        for kind in ("nominal", "local"):
            picture(root / f"{kind}/textile_0001.jpg")
    elif name in ROADS:
        road_tree(name.removesuffix("_val"), root)
    elif name == "folder":
        picture(root / "good/1.png")
        picture(root / "dent/1.png")
    elif name == "meta_json":
        picture(root / "1.png")
        picture(root / "2.png")
        entries = [
            {"img_path": f"{i + 1}.png", "mask_path": "", "cls_name": "x", "specie_name": "", "anomaly": i}
            for i in (0, 1)
        ]
        write_json(root / "meta.json", {"train": {}, "test": {"x": entries}})


ONE_CLASS = (
    "fishyscapes_laf",
    "fishyscapes_static",
    "lost_and_found",
    "road_anomaly",
    "road_anomaly21",
    "road_obstacle21",
    "cvc_colondb",
    "cvc_clinicdb",
    "kvasir",
    "endo",
    "isic",
    "tn3k",
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FILE_SOURCES)
def test_every_set_is_read_checked_and_batched(name: str, tmp_path: Path) -> None:
    grow(name, tmp_path)
    node = alone("source", name)
    node.root = str(tmp_path)
    data = AnomalyDataModule(test=instantiate(node))
    data.preprocess = PIXELS
    data.check()
    labels = {1} if name in ONE_CLASS else {0} if name.startswith("cityscapes") else {0, 1}
    assert {sample.label for sample in data.samples("test")} == labels
    batches = list(data.test_dataloader())
    assert sum(len(batch) for batch in batches) == len(data.samples("test"))
    with_masks = data.samples("test")[0].kind in ("mask", "semantic")
    for batch in batches:
        assert (batch.mask is not None) == with_masks
        if batch.mask is not None:
            assert batch.mask[batch.label == 1].flatten(1).any(dim=1).all()
            assert not (batch.mask[batch.label == 0] == 1).any()
