"""What is computed once and kept: frozen tokens, and answers of detectors and segmenters."""
