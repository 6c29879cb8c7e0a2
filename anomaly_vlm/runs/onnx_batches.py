"""The ONNX graph of one image as a graph of any number of images, of float or uint8 pixels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Pixels = Literal["float", "uint8"]
IMAGE, SCORE, MAP = "one_image", "one_score", "one_map"  # names inside the graph of one image


def batched(model: Any, *, side: int, map_size: tuple[int, int], pixels: Pixels) -> Any:
    """Runs the graph of one image over a batch, in turn.

    Most methods look up a category's texts and memory image by image, so that no exporter makes their batch axis free. The
    operator `Scan` does.

    Args:
        model: An ONNX model with the input `IMAGE` `[1, 3, S, S]` and the outputs `SCORE` `[1]` and `MAP` `[1, H, W]`.
        side: S.
        map_size: H and W.
        pixels: What the new input holds: `float`: RGB in [0, 1]; `uint8`: 0 to 255.

    Returns:
        The same model with the input `image` `[batch, 3, S, S]` and the outputs `score` `[batch]` and `map` `[batch, H, W]`.
    """
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    one = model.graph
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["row", "batch_axis"], [IMAGE]),
            *one.node,
            helper.make_node("Squeeze", [SCORE, "batch_axis"], ["row_score"]),
            helper.make_node("Squeeze", [MAP, "batch_axis"], ["row_map"]),
        ],
        "one",
        [tensor("row", 3, side, side)],
        [tensor("row_score"), tensor("row_map", *map_size)],
        [*one.initializer, numpy_helper.from_array(np.array([0], np.int64), "batch_axis")],
        value_info=one.value_info,
    )
    of_bytes = [
        helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["bytes", "white"], ["rows"]),
    ]
    scan = helper.make_node(
        "Scan", ["rows" if pixels == "uint8" else "image"], ["score", "map"], body=body, num_scan_inputs=1
    )
    whole = helper.make_graph(
        [*(of_bytes if pixels == "uint8" else []), scan],
        one.name,
        [tensor("image", "batch", 3, side, side, kind=TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT)],
        [tensor("score", "batch"), tensor("map", "batch", *map_size)],
        [numpy_helper.from_array(np.array(255, np.float32), "white")] if pixels == "uint8" else [],
    )
    model.graph.CopyFrom(whole)
    return model
