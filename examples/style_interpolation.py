"""From one patient's style to another's under one layout: style vectors mixed step by step.

python examples/style_interpolation.py --run runs/demo --out interpolation.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from stedm import StyleDiffusion
from stedm.stages.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--patients", nargs=2, metavar=("A", "B"), help="names; by default two test patients")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("interpolation.png"))
    options = parser.parse_args()
    run = RunFolder(options.run)
    patches = run.patches()
    names = options.patients or sorted(patches.loc[patches["split"] == "test", "patient"].unique())[:2]
    sets = [run.images(patches[patches["patient"] == name].head(4)) for name in names]
    generator = StyleDiffusion.from_pretrained(run.diffusion)
    styles = generator.extract_styles(sets).between(np.linspace(0, 1, options.steps))
    layout = run.label_maps(patches[patches["annotated"].astype(bool)].head(1))
    drawn = generator(layout.repeat(options.steps, 0), styles=styles, seeds=[0] * options.steps)
    Image.fromarray(np.concatenate([sets[0][0], *drawn, sets[1][0]], axis=1)).save(options.out)
    print(f"{options.out}: an image of {names[0]}, {options.steps} mixtures, an image of {names[1]}")


if __name__ == "__main__":
    main()
