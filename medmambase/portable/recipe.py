"""The program that is written beside an exported network: from a picture to its probabilities.

Resizing stays outside the file. Pillow resizes 8-bit pictures in two passes, each rounded to whole
numbers, and ONNX's Resize gives other pictures, with its smoothing (up to 15 grey levels on noise)
and without (up to 135).
"""

PREPARE = '''"""Predict pictures with {file}: python {name} picture.png ...

It needs numpy, Pillow and onnxruntime. For research only, not for diagnosis.
"""

import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: nothing is recorded to be sent

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SIZE, CHANNELS, RESIZE = {size}, {channels}, "{resize}"


def prepare(path):
    """An 8-bit picture as uint8 ({size}, {size}, {channels}), as in training."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode not in ("1", "L", "RGB", "P", "CMYK", "YCbCr") or "transparency" in picture.info:
        sys.exit(f"{{path}}: a picture of mode {{picture.mode}}; this takes 8-bit ones without transparency")
    picture = picture.convert("RGB")
    picture = picture.convert("L") if CHANNELS == 1 else picture
    width, height = picture.size
    if RESIZE == "stretch":
        width, height = SIZE, SIZE
    else:  # letterbox: black bars around it
        longest = max(width, height)
        width, height = (max(1, round(side * SIZE / longest)) for side in (width, height))
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, CHANNELS)
    fitted = np.zeros((SIZE, SIZE, CHANNELS), dtype=np.uint8)
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    fitted[top : top + height, left : left + width] = resized
    return fitted


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(str(Path(__file__).with_name("{file}")))
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    for path in sys.argv[1:]:
        (probabilities,) = session.run(None, {{"image": prepare(path)[None]}})
        print(path, dict(zip(classes, probabilities[0].round(4).tolist())))
'''


def program(file: str, name: str, size: int, channels: int, resize: str) -> str:
    """Return the text of the program for the network in ``file`` beside it; ``name``: its own."""
    return PREPARE.format(file=file, name=name, size=size, channels=channels, resize=resize)
