"""ONNX files: the numbers of their methods, facts in the metadata, and one line where a method is no graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly_vlm.cli import main
from tests.data.trees import picture

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]
onnxruntime = pytest.importorskip("onnxruntime")
TINY = ["backbone=tiny_random", "image_size=64", "dataset.test.size=48", "dataset.test.categories=[gear]", "eval_limit=4",
        "pictures.per_category=0", "callbacks.progress=none", "trainer=cpu", "cache.tokens=off"]  # fmt: skip
TRAINS = ["train_limit=2", "epochs=1", "dataset.train.size=48"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["method=linear_heads", *TRAINS],
        pytest.param(["method=anomalyclip", *TRAINS], marks=pytest.mark.slow),
        pytest.param(["method=april_gan", *TRAINS], marks=pytest.mark.slow),
        pytest.param(["method=faprompt", *TRAINS], marks=pytest.mark.slow),
        pytest.param(["method=adaclip", "method.hsf.enabled=false", *TRAINS], marks=pytest.mark.slow),
        pytest.param(["method=winclip", "train_on=nothing", "shots=1"], marks=pytest.mark.slow),
        pytest.param(["method=promptad", "shots=1", "epochs=1"], marks=pytest.mark.slow),
        pytest.param(["method=winclip", "train_on=nothing", "shots=0"], marks=pytest.mark.slow),
    ],
    ids=lambda words: "-".join(words[:1] + words[2:3]),
)
def test_a_file_gives_the_numbers_of_its_method(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, *TINY, "output_dir=run"]) == 0
    assert main(["export", "ckpt=run/checkpoints/last.ckpt", "category=gear", "output=out.onnx"]) == 0, (
        capsys.readouterr().err
    )
    assert "out.onnx: differs from the method by at most" in capsys.readouterr().out
    facts = onnxruntime.InferenceSession("out.onnx").get_modelmeta().custom_metadata_map
    assert (facts["method"], facts["category"], facts["size"]) == (words[0].partition("=")[2], "gear", "64")


def test_openvinos_files_give_the_numbers_of_their_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    openvino = pytest.importorskip("openvino")
    assert main(["train", "method=linear_heads", *TRAINS, *TINY, "output_dir=run"]) == 0
    words = ["export", "ckpt=run/checkpoints/last.ckpt", "category=gear", "format=openvino"]
    assert main([*words, "output=out.bin"]) == 2 and "give output=NAME.xml" in capsys.readouterr().err
    assert main([*words, "output=out.xml", "pixels=uint8"]) == 0
    assert "out.xml: differs from the method by at most" in capsys.readouterr().out
    model = openvino.Core().read_model("out.xml")
    facts = {key: model.get_rt_info(["anomaly_vlm", key]).astype(str) for key in ("method", "category", "size")}
    assert facts == {"method": "linear_heads", "category": "gear", "size": "64"}
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    assert main([*words[:3], "output=out.onnx", "pixels=uint8"]) == 0
    for one, other in zip(
        compiled(images).values(), onnxruntime.InferenceSession("out.onnx").run(None, {"image": images}), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.slow
def test_any_number_of_images_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "method=linear_heads", *TRAINS, *TINY, "output_dir=run"]) == 0
    words = ["export", "ckpt=run/checkpoints/last.ckpt", "category=gear"]
    sessions = []
    for pixels in ("float", "uint8"):
        assert main([*words, f"output={pixels}.onnx", f"pixels={pixels}"]) == 0, capsys.readouterr().err
        sessions.append(onnxruntime.InferenceSession(f"{pixels}.onnx"))
    image = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    scores, maps = sessions[1].run(None, {"image": image})
    assert scores.shape == (3,) and maps.shape == (3, 64, 64)
    for i in range(3):
        alone = sessions[0].run(None, {"image": image[i : i + 1].astype(np.float32) / 255})
        np.testing.assert_allclose(alone[0][0], scores[i], atol=1e-5)
        np.testing.assert_allclose(alone[1][0], maps[i], atol=1e-5)
    assert main([*words, "pixels=int16"]) == 2 and "unknown pixels 'int16'" in capsys.readouterr().err


def test_a_file_runs_without_the_suite(tmp_path: Path) -> None:
    for i in range(4):
        picture(Path(f"good/{i}.png"), size=(70, 60), value=40 * i)
    words = ["fit", "method=winclip", "good=good", "backbone=tiny_random", "image_size=64", "output_dir=run"]
    assert main(words) == 0
    (checkpoint,) = Path("run").rglob("*.ckpt")
    assert main(["export", f"ckpt={checkpoint}", "output=out.onnx"]) == 0
    script = Path(__file__).parents[2] / "examples/run_onnx.py"
    done = subprocess.run(
        [sys.executable, str(script), "out.onnx", "good/0.png"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("good/0.png: score ") and done.stdout.strip().endswith("OK")


def test_a_method_that_is_no_graph_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "method=anovl", *TINY, "output_dir=run"]) == 0
    assert main(["export", "ckpt=run/none.ckpt"]) == 2
    from anomaly_vlm import load_method
    from anomaly_vlm.errors import UserError
    from anomaly_vlm.runs.export import export

    with pytest.raises(UserError, match="anovl cannot be exported: it adapts itself to each test image"):
        export(load_method("anovl", backbone="tiny_random"), Path("x.onnx"), category="gear")
    with pytest.raises(UserError, match="adaclip cannot be exported: k-means"):
        export(load_method("adaclip", backbone="tiny_random"), Path("x.onnx"), category="gear")
    assert main(["export"]) == 2 and main(["export", "ckpt=x", "format=tflite"]) == 2
