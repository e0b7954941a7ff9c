"""How stedm takes spoiled files: thousands of them, of every kind that it reads.

    python benchmarks/mutations.py --cases 100 --out runs/mutations

The cases are those of tests/mutations.py, numbered: a seed and a number always give the same file. Every format has a
process of its own, so that one that dies is counted too. Prints a table, and keeps it and the failures in --out.
"""

import argparse
import collections
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from stedm.files import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def main() -> None:
    """Try every format, a process each; exit code 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="cases of each format (default: 100)")
    parser.add_argument("--checkpoints", type=int, default=20, help="cases of checkpoints and reports, which are slow")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    parser.add_argument("--only", nargs="*", default=[""], help="formats whose names begin like this (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for mutations.json")
    options = parser.parse_args()
    from hostile_folders import ALL
    from hostile_formats import models

    models()  # made once, before the processes part
    results = []
    print("| file | cases | read | refused | failed | CPU ms a case | most memory |\n|---|---|---|---|---|---|---|")
    for form in ALL:
        if not form.name.startswith(tuple(options.only)):
            continue
        cases = options.checkpoints if form.name.startswith(("training/last.ckpt", "reported")) else options.cases
        result = in_a_process(form, cases, options.seed)
        results.append(result)
        print(
            f"| {form.name} | {result['cases']} | {result['read']} | {result['refused']} | {len(result['failures'])}"
            f" | {result['cpu_ms']:.1f} | {result['memory_mib']:.0f} MiB |",
            flush=True,
        )
        write_json(options.out / "mutations.json", results)
    failures = [failure for result in results for failure in result["failures"]]
    print(f"\n{sum(result['cases'] for result in results)} cases, {len(failures)} failures")
    for failure in failures[:20]:
        print(f"- {failure}")
    sys.exit(1 if failures else 0)


def in_a_process(form: Any, cases: int, seed: int) -> dict[str, Any]:
    """The cases of a format in a forked process; one that dies is a failure."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(tried(form, cases, seed)))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        return receiver.recv()
    process.join()
    died = [f"{form.name}: the process died ({process.exitcode})"]
    return {
        "format": form.name,
        "cases": cases,
        "read": 0,
        "refused": 0,
        "failures": died,
        "cpu_ms": 0,
        "memory_mib": 0,
    }


def tried(form: Any, cases: int, seed: int) -> dict[str, Any]:
    """Counts of how the cases ended, processor time of one, and what the process took of memory beyond its start."""
    from mutations import Failure, mutants, outcome

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries have to say of damaged files
    counts: collections.Counter[str] = collections.Counter()
    failures = []
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "deep" / "work" / "folder"
        for case, path in mutants(form, folder, cases=cases, seed=seed):
            try:
                counts[outcome(form, path, inside=folder)] += 1
            except Failure as failure:
                failures.append(f"case {case}: {failure}".replace(name, "FOLDER")[:300])
    cpu_ms = 1000 * (time.process_time() - started) / cases
    memory_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    named = {"format": form.name, "cases": cases, "read": counts["read"], "refused": counts["refused"]}
    return named | {"failures": failures, "cpu_ms": cpu_ms, "memory_mib": memory_mib}


if __name__ == "__main__":
    main()
