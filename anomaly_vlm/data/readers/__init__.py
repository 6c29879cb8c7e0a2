"""One function a layout, `root -> list[Sample]`: all splits, or an empty list where the layout is not there.

Labels come from folders, masks are paired by stem. What the sets have in common (root, split, categories, words, mask
threshold, order) is the source's business: `anomaly_vlm.data.source.FileSource`.
"""
