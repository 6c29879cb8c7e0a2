"""What is computed once and stored: frozen tokens, and answers of detectors and segmenters."""
