"""Runs a file of `make export` on images, without this suite: python run_onnx.py last.onnx part.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
record = json.loads(session.get_modelmeta().custom_metadata_map["anomaly_vlm"])
size, threshold = record["image_size"], record["threshold"]
resize = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[record["interpolation"]]

for path in sys.argv[2:]:
    image = Image.open(path).convert("RGB").resize((size, size), resize)
    pixels = (np.asarray(image, np.float32) / 255).transpose(2, 0, 1)[None]
    score, heat = session.run(None, {"image": pixels})
    decision = "" if threshold is None else ("NOT OK" if score[0] > threshold["score"] else "OK")
    print(path, f"{score[0]:.6g}", decision, "highest at", np.unravel_index(heat[0].argmax(), heat[0].shape))
