"""Kill every stage at random moments, start it again, and compare what it leaves with an uninterrupted run, bit by bit.

    python benchmarks/kill.py --out runs/kill

Each stage starts from a copy of a run folder in which everything before it is done, in a process forked from this one,
which has imported everything already. Half of the moments are drawn uniformly over the processor time that the stage
takes, half uniformly over its changes of the file system (the kill comes just before a file or folder is made, opened
to write, renamed or removed, so that no state between two of them is left out). After a few kills in a row it may end;
then every file is compared, timings aside. Prints a table; exit code 1 if anything differs. On the CPU, in one thread.
"""

import argparse
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from subjects import OTHERS, STAGES, Moment, Subject, differences, results, run, torment_all

IN_A_ROW = 5
"""Kills before a stage may end, at most."""


def torment(subject: Subject, out: Path, *, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a subject `kills` times; the counts, and what differed."""
    folder, log = out / "work", out / "logs" / f"{subject.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    whole = run(subject.words(subject.fresh(folder)), folder, log)
    if whole.code:
        raise SystemExit(f"{subject.name}: exit code {whole.code} when nothing kills it; see {log}")
    expected, done, rounds, wrong = results(folder), 0, 0, []
    while done < kills:
        subject.fresh(folder)
        moments, in_a_row = [], 0
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            moment = None
            if in_a_row < IN_A_ROW and done < kills:
                timed = Moment(seconds=rng.uniform(0, whole.seconds))
                moment = timed if (done + rounds) % 2 else Moment(change=rng.randrange(whole.changes))
            moments.append(moment)
            code = run(subject.words(folder), folder, log, moment).code
            done, in_a_row = done + (code == -signal.SIGKILL), in_a_row + (code == -signal.SIGKILL)
        rounds += 1
        different = differences(results(folder), expected)
        if code or different:
            kept = out / f"{subject.name.replace(' ', '-')}-{rounds}"
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(folder, kept)
            wrong.append(
                {"exit_code": code, "different": different, "moments": list(map(str, moments)), "in": str(kept)}
            )
            print(f"  WRONG {subject.name}: {wrong[-1]}", flush=True)
    return {
        "stage": subject.name,
        "kills": done,
        "rounds": rounds,
        "seconds": round(whole.seconds, 2),
        "changes": whole.changes,
        "wrong": wrong,
    }


def main() -> int:
    """Torment every stage that is asked for; print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; what is in it is reused")
    parser.add_argument("--kills", type=int, default=20, help="of each stage (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, *OTHERS], default=[*STAGES, *OTHERS])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    columns = ("stage", "kills", "runs to the end", "seconds of processor time", "changes of files", "differences")

    def tormented(subject: Subject, rng: random.Random) -> dict[str, Any]:
        return torment(subject, out, kills=arguments.kills, rng=rng)

    return torment_all(tormented, out / "kill.json", arguments.stages, seed=arguments.seed, columns=columns)


if __name__ == "__main__":
    sys.exit(main())
