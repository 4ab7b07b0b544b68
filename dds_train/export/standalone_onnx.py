"""Run this image translator with onnxruntime. This file needs onnxruntime, numpy and pillow, and nothing else.

python run.py cat.png lion.png
python run.py cat.png lion.png --task lion --strength 0.7
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent


def main() -> None:
    settings = json.loads((FOLDER / "settings.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--task", choices=settings["tasks"], default=settings["tasks"][0], required=len(settings["tasks"]) > 1)
    parser.add_argument("--strength", type=float, default=1.0)
    args = parser.parse_args()

    rgb = read_rgb(Image.open(args.image))
    height, width = rgb.shape[:2]
    multiple = settings["multiple"]  # sides have to be multiples of it
    pixels = rgb.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)), mode="edge")
    text = np.load(FOLDER / "tasks.npz")[args.task]

    session = onnxruntime.InferenceSession(FOLDER / "translator.onnx")
    inputs = {"image": pixels, "text": text, "strength": np.array([args.strength], np.float32)}
    (edited,) = session.run(None, inputs)
    edited = edited[0, :, :height, :width].transpose(1, 2, 0)
    Image.fromarray(((edited + 1) * 127.5).round().clip(0, 255).astype(np.uint8)).save(args.result)


def read_rgb(image: Image.Image) -> np.ndarray:
    """As it is meant to be seen: upright, 16 bits scaled to 8, transparent parts white. [H,W,3], 0 to 255."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


if __name__ == "__main__":
    main()
