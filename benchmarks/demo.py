"""The demo, stage by stage: seconds of each, of all of it, processor time and peak memory.

    python benchmarks/demo.py --out runs/demo-benchmark

Runs `stedm run` with the demo's config in a fresh folder and reads from it how long each stage says that it took; the
rest is the start of the program, what happens between stages, and, with `--jobs`, segmenters that are trained at once.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import report

from stedm.stages.report_run import times

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a run folder is made in it, anew")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("options", nargs="*", help="of `stedm run`, after --")
    given = parser.parse_args()
    run = given.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "stedm.cli", "run", "--config", str(given.config), "--out", str(run)]
    subprocess.run([*command, *given.options], check=True)
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows: list[dict[str, Any]] = [{"stage": row["stage"], "seconds": row["seconds"]} for row in times([run])]
    rows.append({"stage": "all of it, wall", "seconds": wall})
    rows.append({"stage": "all of it, processor", "seconds": used.ru_utime + used.ru_stime})
    rows[-1]["peak MiB of a process"] = used.ru_maxrss / 1024
    report(given.out / "demo.json", rows)


if __name__ == "__main__":
    main()
