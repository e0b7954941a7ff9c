"""`stedm doctor`: what is installed and what is missing, how fast this machine is, and a self-test of every part.

Nothing but the standard library is imported until a check needs it, so that a broken package is a finding.
"""

import argparse
import ctypes
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stedm.errors import UserError

HELP = "what is installed and what is missing, the fix, and a self-test"
MODULES = {
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
}
"""Modules of packages that are not called like their package."""
FOR_DEVELOPERS = ("dev", "docs")
"""The extras whose absence is nobody's problem."""
LEAST_DISK_GIB, LEAST_MEMORY_GIB = 5.0, 4.0
"""What a small run needs."""
_REINSTALL = "pip install --force-reinstall --no-deps"


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    name: str
    text: str
    state: Literal["ok", "note", "broken"] = "ok"
    """`note`: something is missing that a run can do without."""
    fix: str = ""


def main(words: Sequence[str]) -> int:
    """`stedm doctor [--json]`: print the findings; exit code 0, or 1 when something is broken."""
    options, unknown = parser().parse_known_args(words)
    if unknown:
        raise UserError(f"unexpected argument {unknown[0]!r}; `stedm doctor --help` lists the options")
    findings, seconds = list[Finding](), 0.0
    for checks in (examine, tests):
        started = time.perf_counter()
        for finding in checks():
            findings.append(finding)
            if not options.json:
                print(_line(finding), flush=True)
        seconds = time.perf_counter() - started
    broken = [finding for finding in findings if finding.state == "broken"]
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        again = f"{len(broken)} problem(s): the fixes are above; next: stedm doctor, again"
        print(f"self-test: {seconds:.1f} s; {again if broken else 'everything works; next: stedm demo'}")
    return 1 if broken else 0


def parser() -> argparse.ArgumentParser:
    """The options of `stedm doctor`."""
    words = {"description": f"stedm doctor: {HELP}.", "epilog": "example: stedm doctor --json > doctor.json"}
    parser = argparse.ArgumentParser(prog="stedm doctor", allow_abbrev=False, **words)  # type: ignore[arg-type]
    parser.add_argument("--json", action="store_true", help="the same as one JSON list")
    return parser


def _line(finding: Finding) -> str:
    mark = {"ok": "  ", "note": "- ", "broken": "! "}[finding.state]
    words = [f"{mark}{finding.name:<14} {finding.text}", *([f"{'':17}fix: {finding.fix}"] if finding.fix else [])]
    width = shutil.get_terminal_size().columns
    lines = (textwrap.fill(line, width, subsequent_indent=" " * 17, break_on_hyphens=False) for line in words)
    return "\n".join(lines)


def examine() -> Iterator[Finding]:
    """Every finding but those of the self-test, one after the other."""
    yield Finding("stedm", f"{importlib.metadata.version('stedm')} on Python {platform.python_version()}, {sys.prefix}")
    yield from packages()
    yield from extras()
    yield machine()
    yield room()
    for check in (accelerator, slide_library, speed):
        yield _guarded(check.__name__.replace("_", " "), check)


def tests() -> Iterator[Finding]:
    """The self-test, a line for each part."""
    try:
        from stedm.selftest import STEPS
    except Exception as error:  # a package that is broken, and named above
        yield Finding("test", _reason(error), "broken", "mend the packages named above")
        return
    for name, step in STEPS:
        yield _guarded(f"test {name}", lambda name=name, step=step: Finding(f"test {name}", _timed(step)))  # type: ignore[misc]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # whatever is broken, its line must not hide the others
        return Finding(name, _reason(error), "broken", "mend the packages named above; else report this line")


def _timed(step: Callable[[Path], str]) -> str:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        text = step(Path(folder))
    return f"{text}, {time.perf_counter() - started:.1f} s"


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def _requirements() -> Iterator[tuple[str, str, str]]:
    """(package, least version or "", extra or "") of everything that stedm's metadata names."""
    for line in importlib.metadata.requires("stedm") or []:
        found = re.match(r"([\w.-]+)(?:\[[^]]*])?\s*\(?(?:>=([\w.]+))?", line)
        extra = re.search(r"""extra\s*==\s*["'](\w+)["']""", line)
        if found:
            yield found[1], found[2] or "", extra[1] if extra else ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


def _state_of(package: str, least: str) -> tuple[str, Finding | None]:
    """Installed version, and what is wrong with the package, if anything: missing, too old, not importable."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "", Finding(package, "not installed", "broken", f"pip install '{package}>={least}'")
    if _numbers(version) < _numbers(least):
        text = f"{version} is older than {least}"
        return version, Finding(package, text, "broken", f"pip install --upgrade '{package}>={least}'")
    try:
        importlib.import_module(MODULES.get(package, package.replace("-", "_")))
    except Exception as error:  # a package can break its import in any way
        return version, Finding(package, f"{version}: {_reason(error)}", "broken", f"{_REINSTALL} {package}")
    return version, None


def packages() -> Iterator[Finding]:
    """One line of all versions, and one for each package that is missing, too old or broken."""
    versions = []
    for package, least, extra in sorted(_requirements()):
        if not extra:
            version, wrong = _state_of(package, least)
            versions.append(f"{package} {version}")
            if wrong is not None:
                yield wrong
    yield Finding("packages", ", ".join(name for name in versions if not name.endswith(" ")))


def extras() -> Iterator[Finding]:
    """One line for each extra; a missing one is no problem, and says what to install."""
    of_extra: dict[str, list[tuple[str, str]]] = {}
    for package, least, extra in _requirements():
        if extra and extra not in FOR_DEVELOPERS:
            of_extra.setdefault(extra, []).append((package, least))
    for extra, members in sorted(of_extra.items()):
        states = {package: _state_of(package, least) for package, least in members}
        lacking = [package for package, (_, wrong) in states.items() if wrong is not None]
        if lacking:
            text = f"not installed: {', '.join(lacking)}"
            yield Finding(f"extra {extra}", text, "note", f"pip install 'stedm[{extra}]' (only if you want it)")
        else:
            yield Finding(
                f"extra {extra}", ", ".join(f"{package} {version}" for package, (version, _) in states.items())
            )


def machine() -> Finding:
    """Cores this process may use, and free memory."""
    cores = len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    limited = ""
    if len(quota) == 2 and quota[0].isdecimal() and int(quota[0]) < cores * int(quota[1]):
        limited = f" (of which a limit leaves the time of {int(quota[0]) / int(quota[1]):.1f})"
    free_gib = _free_memory_gib()
    text = f"{cores} core(s) for this process{limited}, {free_gib:.1f} GiB of memory free, {platform.machine()}"
    if free_gib < LEAST_MEMORY_GIB:
        return Finding("machine", text, "note", f"close other programs: a run wants {LEAST_MEMORY_GIB:.0f} GiB")
    return Finding("machine", text)


def _free_memory_gib() -> float:
    """What the system has available, or what the control group leaves, if that is less."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    free = [int(found[1]) * 1024] if found else []
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    free += [int(limit) - int(used)] if limit.isdecimal() and used.isdecimal() else []
    return min(free, default=0) / 2**30


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def room() -> Finding:
    """Whether the current folder can be written, and its free space."""
    free_gib = shutil.disk_usage(".").free / 2**30
    text = f"{free_gib:.1f} GiB free in {Path.cwd()}"
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        return Finding("disk", f"{Path.cwd()}: {error.strerror}", "note", "run stedm elsewhere, or name another --out")
    if free_gib < LEAST_DISK_GIB:
        return Finding("disk", text, "note", f"make room: a run wants {LEAST_DISK_GIB:.0f} GiB")
    return Finding("disk", text)


def accelerator() -> Finding:
    """Torch's build, driver and GPU, and whether torchvision belongs to this torch."""
    import torch
    import torchvision

    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
    torchvision.ops.nms(boxes, scores, 0.5)  # its compiled part: fails when it was built for another torch
    build = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    driver = _driver_cuda()
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        more = f", and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
        text = f"{build}; {gpu.name} with {gpu.total_memory / 2**30:.0f} GiB{more}"
        return Finding("accelerator", f"{text}; CUDA {torch.version.cuda}, driver up to {driver}")
    if driver and torch.version.cuda is None:
        fix = "pip install --force-reinstall torch torchvision (the CUDA build)"
        return Finding("accelerator", f"{build} without CUDA, though there is a driver", "note", fix)
    if driver and _version(driver) >= _version(torch.version.cuda):
        fix = "look whether CUDA_VISIBLE_DEVICES hides it, or ask for one: login nodes often have none"
        return Finding("accelerator", f"{build} for CUDA {torch.version.cuda}, a driver, and no GPU", "note", fix)
    if driver:
        fix = f"update the driver, or install a torch built for CUDA {driver} or older"
        return Finding("accelerator", f"{build} for CUDA {torch.version.cuda}; driver up to {driver}", "note", fix)
    return Finding("accelerator", f"{build}; no GPU driver: everything runs on the CPU")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _driver_cuda() -> str:
    """Newest CUDA version that the installed driver runs; "" without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""


def slide_library() -> Finding:
    """The compiled libraries behind slides."""
    import imagecodecs
    import openslide

    return Finding("slide library", f"OpenSlide {openslide.__library_version__}, imagecodecs {imagecodecs.__version__}")


def speed() -> Finding:
    """Convolutions in float32 and bfloat16, and which of the two stedm computes in."""
    from stedm.doctor_speed import measured

    return Finding("speed", measured())
