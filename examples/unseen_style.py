"""Tissue in the style of your own images, which no training has seen.

    python examples/unseen_style.py --model runs/demo/diffusion --style FOLDER --layout LABEL_MAP.png --out drawn.png

One image or many: the style is what they share. They are cut to the size the generator was trained at; their pixels
should be as large as the training images' (`mpp` in model_index.json).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stedm import StyleDiffusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--style", type=Path, required=True, help="folder of images")
    parser.add_argument("--layout", type=Path, required=True, help="PNG of class numbers")
    parser.add_argument("--out", type=Path, default=Path("drawn.png"))
    parser.add_argument("--images", type=int, default=6)
    options = parser.parse_args()
    generator = StyleDiffusion.from_pretrained(options.model)
    size = (generator.patch_px, generator.patch_px)
    paths = [path for path in sorted(options.style.iterdir()) if path.suffix.lower() in {".png", ".jpg", ".tif"}]
    style = np.stack([np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), size)) for path in paths])
    layout = np.asarray(ImageOps.fit(Image.open(options.layout), size, Image.Resampling.NEAREST))
    drawn = generator(np.stack([layout] * options.images), style, seeds=range(options.images))
    Image.fromarray(np.concatenate([style[0], *drawn], axis=1)).save(options.out)
    print(f"{options.out}: a style image, then {options.images} images under {options.layout.name}")


if __name__ == "__main__":
    main()
