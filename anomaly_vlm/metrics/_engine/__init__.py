"""What the metrics are made of: state, counting and values, in NumPy, without torchmetrics (which `metric` alone wraps).

A batch passes through `inputs` (checked images) and `regions` (each image split into normal and anomalous scores) into an
engine: `exact` (which keeps scores in `columns`), `binned` (which keeps a `sketch` of bounded size) or `image`. What the two
pixel engines share is in `pixel`. An engine keeps a `ledger` of the images that count, exchanges with the other processes of
a `group`, counts (`counts`) and turns counts into values (`values`, `sketch`) and curves (`curves`).
"""
