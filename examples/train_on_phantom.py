"""The whole method on tissue that stedm draws itself; no data needed.

    python examples/train_on_phantom.py --out runs/phantom --size smoke

Another size, `tiny`, takes minutes and means something; `smoke` only shows that everything runs.
"""

import argparse
from pathlib import Path

from stedm import load_config, run_all
from stedm.files import read_json

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/phantom"))
    parser.add_argument("--size", default="smoke", choices=["smoke", "tiny", "small", "base"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="any other key of the config")
    options = parser.parse_args()
    config = load_config(str(CONFIG), [f"size={options.size}", *options.set])
    run = run_all(config, options.out)
    for arm, score in read_json(run / "evaluation" / "summary.json")["arms"].items():
        print(f"{arm:22s} IoU {score['patient_iou_mean']:.3f}, worst decile {score['worst_decile_iou']:.3f}")
    print(f"open {run / 'report' / 'index.html'}")


if __name__ == "__main__":
    main()
