"""The nano CLIP: a CLIP of a few megabytes that the project trains itself, on pictures that it draws itself.

`teacher` (an ImageNet network: stem and teacher), `words` (captions and vocabulary), `model` (architecture, first weights,
file), `text` (the text tower, first), `pool`, `views` and `crops` (pictures, and what stem and teacher make of them),
`image` (the image tower), `compare` (what it is worth).
"""
