"""Materials that fill the picture: each function draws one normal image, float32 [H, W, 3] in [0, 1], on a canvas."""
