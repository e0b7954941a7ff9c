"""A pathology foundation model, or any timm backbone, as style encoder: frozen weights from a local folder.

    python examples/timm_encoder.py --encoder vit_small_patch16_224 --weights FOLDER --out runs/own-encoder

FOLDER is what `timm.models.save_for_hf(backbone, FOLDER, safe_serialization=True)` writes, or a download of a
timm model's repository. Without --weights the backbone starts at random and is trained.
"""

import argparse
from pathlib import Path

from stedm import load_config, run_all

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="test_resnet", help="a timm name (default: %(default)s, a toy)")
    parser.add_argument("--weights", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("--out", type=Path, default=Path("runs/own-encoder"))
    parser.add_argument("--size", default="smoke", choices=["smoke", "tiny", "small", "base"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="any other key of the config")
    options = parser.parse_args()
    given = [f"size={options.size}", f"diffusion.style_encoder={options.encoder}", *options.set]
    if options.weights:
        given += [f"diffusion.style_weights={options.weights}", "diffusion.freeze_style_encoder=true"]
    run = run_all(load_config(str(CONFIG), given), options.out, until="diffusion")
    print(f"look at {run / 'diffusion' / 'samples' / 'style_by_layout.png'}")


if __name__ == "__main__":
    main()
