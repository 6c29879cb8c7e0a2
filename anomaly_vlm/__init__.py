"""anomaly_vlm: visual anomaly detection with vision-language models, many methods on one frozen CLIP."""

__version__ = "0.1.0"
