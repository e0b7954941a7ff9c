"""Fill the disk under every stage, or make it read-only: one clear line, nothing half-written, and on it goes after.

    python benchmarks/disk.py --out runs/disk

Each stage works on a small file system in memory, mounted for this process alone (which Linux allows to anyone where
user namespaces are allowed). First it is left alone, to see how much it writes; then it is given a part of that, drawn
at random, and must end with exit code 2 and one line that names the file and the fix; then there is room again, the
same command continues, and every file is compared with those of the first time, timings aside. Last, it is read-only.
"""

import argparse
import ctypes
import os
import random
import sys
from pathlib import Path
from typing import Any

from subjects import OTHERS, STAGES, Subject, differences, results, run, torment_all

SIZE = 256 * 2**20
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_READ_ONLY, _REMOUNT, _EVERYTHING_PRIVATE = 1, 32, 0x4000 | 0x40000


class Disk:
    """A file system in memory at `folder`, seen by this process and its children alone; OSError if not allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"
        user, group = os.getuid(), os.getgid()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._check(self._libc.unshare(_NEW_USER | _NEW_MOUNTS))
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/", "proc", "self", name).write_text(text)
        folder.mkdir(parents=True, exist_ok=True)
        self._mount(None, "/", None, _EVERYTHING_PRIVATE, None)
        self._mount("tmpfs", str(folder), "tmpfs", 0, f"size={SIZE}")

    def used(self) -> int:
        """Bytes."""
        state = os.statvfs(self.folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def leave(self, room: int | None) -> None:
        """Leave so many bytes free; None: all that there is."""
        self._filler.unlink(missing_ok=True)
        if room is not None:
            with open(self._filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, SIZE - self.used() - room))

    def protect(self, protected: bool) -> None:
        """Make it read-only, or not."""
        self._mount(None, str(self.folder), None, _REMOUNT | (_READ_ONLY if protected else 0), None)

    def _mount(self, source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
        words = [None if word is None else word.encode() for word in (source, target, kind, data)]
        self._check(self._libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]))

    @staticmethod
    def _check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def complaint(log: Path, code: int, folder: Path) -> str:
    """What is wrong with how a command ended for want of a disk; "" if nothing."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("stedm: ")]
    if code != 2 or "Traceback" in log.read_text() or len(lines) != 1:
        return f"exit code {code}, see {log}"
    return "" if str(folder) in lines[0] and ";" in lines[0] else lines[0]


def torment(subject: Subject, out: Path, disk: Disk, *, times: int, rng: random.Random) -> dict[str, Any]:
    """Fill the disk so many times, then make it read-only; the counts, and what was wrong."""
    folder, logs = disk.folder / "run", out / "logs" / subject.name.replace(" ", "-")
    logs.mkdir(parents=True, exist_ok=True)
    disk.leave(None)
    before = subject.fresh(folder) and disk.used()
    if run(subject.words(folder), folder, logs / "whole.log").code:
        raise SystemExit(f"{subject.name}: fails without being tormented; see {logs / 'whole.log'}")
    expected, written, wrong, full, message = results(folder), disk.used() - before, [], 0, ""
    for number in range(times):
        subject.fresh(folder)
        log = logs / f"{number}.log"
        log.unlink(missing_ok=True)
        disk.leave(int((number + rng.random()) / times * written))
        code = run(subject.words(folder), folder, log).code
        full += code != 0  # what only needs room for a moment may have fitted
        wrong += [problem] if code and (problem := complaint(log, code, folder)) else []
        message = message or next((line for line in log.read_text().splitlines() if line.startswith("stedm: ")), "")
        disk.leave(None)
        code = run(subject.words(folder), folder, log).code
        wrong += (
            [f"afterwards: exit code {code}, {different}, {log}"]
            if (different := differences(results(folder), expected)) or code
            else []
        )
    subject.fresh(folder)
    disk.protect(True)
    code = run(subject.words(folder), folder, logs / "protected.log").code
    wrong += [problem] if (problem := complaint(logs / "protected.log", code, folder)) else []
    disk.protect(False)
    row = {"stage": subject.name, "written_kib": written // 1024, "times_full": full, "read_only": 1}
    return row | {"wrong": wrong, "message": message.replace(str(folder), "RUN")}


def main() -> int:
    """Torment every stage that is asked for; print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; what is in it is reused")
    parser.add_argument("--times", type=int, default=5, help="that the disk of each stage is filled (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the room that is left (default: 0)")
    parser.add_argument("--stages", nargs="+", choices=[*STAGES, *OTHERS], default=[*STAGES, *OTHERS[:-1]])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        disk = Disk(out / "disk")  # now: a process with threads cannot leave its user namespace
    except OSError as error:
        print(f"a disk of its own is not allowed here: {error}")
        return 3
    columns = ("stage", "KiB written", "disk full", "disk read-only", "wrong", "message")

    def tormented(subject: Subject, rng: random.Random) -> dict[str, Any]:
        return torment(subject, out, disk, times=arguments.times, rng=rng)

    return torment_all(tormented, out / "disk.json", arguments.stages, seed=arguments.seed, columns=columns)


if __name__ == "__main__":
    sys.exit(main())
