"""Run an exported network in Node.js, on test images of its run, and compare.

    npm install onnxruntime-node
    python tools/onnx_in_node.py runs/data-001

The images, and the probabilities that medmambase gives, are handed to ``onnx_in_node.mjs``, which
runs ``model.onnx``; onnxruntime-node is looked for in the folder where the command is given.
"""

import argparse
import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmambase import Predictor
from medmambase.data.decoded.image_set import no_progress
from medmambase.portable.images import compared_images
from medmambase.run_folder import ONNX

SCRIPT = Path(__file__).with_suffix(".mjs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 where Node.js gives the same probabilities, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run with model.onnx in it")
    parser.add_argument("--model", type=Path, help="the file, where it lies elsewhere (default: model.onnx in RUN)")
    parser.add_argument("--images", type=Path, help="other images than the run's own test images")
    options = parser.parse_args(arguments)
    predictor = Predictor.load(options.run, device="cpu")
    pixels, which = compared_images(options.run, predictor.network, options.images, no_progress)
    expected = [one.probabilities.tolist() for one in predictor(pixels) if one.probabilities is not None]
    given = {
        "shape": list(np.shape(pixels)),
        "pixels": base64.b64encode(pixels.tobytes()).decode("ascii"),
        "probabilities": expected,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.json"
        path.write_text(json.dumps(given), encoding="utf-8", newline="\n")
        print(which, flush=True)
        model = options.model or options.run / ONNX
        return subprocess.run(["node", str(SCRIPT), str(model), str(path)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
