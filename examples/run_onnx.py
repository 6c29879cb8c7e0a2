"""Runs a file of `anomaly-vlm export` without the suite: python run_onnx.py FILE.onnx IMAGE ..."""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
size = int(facts["size"])
for name in sys.argv[2:]:
    picture = Image.open(name).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    image = np.asarray(picture).transpose(2, 0, 1)[
        None
    ]  # several images may go through at once: [batch, 3, size, size]
    image = image if facts.get("pixels") == "uint8" else image.astype(np.float32) / 255
    score, heat = session.run(None, {"image": image})
    row, column = np.unravel_index(heat[0].argmax(), heat[0].shape)
    line = f"{name}: score {score[0]:.4f}, highest at ({column}, {row}) of {heat.shape[2]} x {heat.shape[1]}"
    if "threshold" in facts:
        line += ", NOT OK" if score[0] > float(facts["threshold"]) else ", OK"
    print(line)
