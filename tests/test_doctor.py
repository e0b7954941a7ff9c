"""`stedm doctor`: what is broken is named with its fix, what is merely absent is not an error, the self-test tests."""

import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stedm import doctor, selftest
from stedm.cli import main
from stedm.data.slide import Slide
from stedm.doctor import Finding
from stedm.models.segmenter import Segmenter


def requires(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let stedm's metadata name these packages, and these only."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, source: str = "") -> None:
    """A package of this name as pip would leave it: a module and its metadata."""
    module = folder / f"{name.replace('-', '_')}.py"
    module.write_text(source)
    info = folder / f"{module.stem}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module.stem, raising=False)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds."""
    for name in ("accelerator", "speed"):
        check = lambda name=name: Finding(name, "left out")  # noqa: E731
        check.__name__ = name
        monkeypatch.setattr(doctor, name, check)
    monkeypatch.setattr(doctor, "tests", lambda: iter(()))


def test_a_missing_extra_is_a_note_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    requires(monkeypatch, "numpy>=1.26", "stedm-nowhere>=2.0; extra == 'studio'", "stedm-absent; extra == 'dev'")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "not installed: stedm-nowhere" in printed and "pip install 'stedm[studio]'" in printed
    assert "stedm-absent" not in printed and printed.rstrip().endswith("everything works; next: stedm demo")


def test_an_installed_extra_is_named_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "stedm-there", "2.5")
    requires(monkeypatch, 'stedm-there>=2.0; extra == "tracking"')
    assert list(doctor.extras()) == [Finding("extra tracking", "stedm-there 2.5")]


@pytest.mark.parametrize(
    ("version", "source", "text", "fix"),
    [
        ("1.2", "raise ImportError('undefined symbol: _ZN2at')", "undefined symbol", "--force-reinstall"),
        (
            "1.2",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "does not exist",
            "--force-reinstall",
        ),
        ("0.9", "", "0.9 is older than 1.1", "pip install --upgrade 'stedm-part>=1.1'"),
        (None, "", "not installed", "pip install 'stedm-part>=1.1'"),
    ],
)
def test_a_broken_package_is_named_with_its_fix(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str | None,
    source: str,
    text: str,
    fix: str,
) -> None:
    quick(monkeypatch)
    monkeypatch.setenv("COLUMNS", "1000")
    if version:
        install(tmp_path, monkeypatch, "stedm-part", version, source)
    requires(monkeypatch, "numpy>=1.26", "stedm-part>=1.1")
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("! stedm-part"))
    assert text in lines[at] and fix in lines[at + 1] and "numpy" in lines[at + 2]
    assert re.match(r"self-test: \d+\.\d s; 1 problem\(s\)", lines[-1])


def test_the_answer_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quick(monkeypatch)
    assert main(["doctor", "--json"]) == 0
    findings: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert {"stedm", "packages", "machine", "disk", "slide library"} <= {finding["name"] for finding in findings}
    assert all(set(finding) == {"name", "text", "state", "fix"} for finding in findings)
    assert main(["doctor", "--what"]) == 2


def test_speed_and_accelerator_say_what_there_is() -> None:
    assert "bfloat16" in doctor.speed().text and "GFLOP/s" in doctor.speed().text
    assert "torchvision" in doctor.accelerator().text and doctor.accelerator().state != "broken"


@pytest.mark.parametrize(("driver", "fix"), [("13.2", "CUDA_VISIBLE_DEVICES"), ("12.4", "update the driver")])
def test_a_gpu_that_is_hidden_is_no_old_driver(monkeypatch: pytest.MonkeyPatch, driver: str, fix: str) -> None:
    monkeypatch.setattr(doctor, "_driver_cuda", lambda: driver)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = doctor.accelerator()
    assert found.state == "note" and fix in found.fix


@pytest.mark.parametrize("step", [step for _, step in selftest.STEPS], ids=[name for name, _ in selftest.STEPS])
def test_each_part_of_the_selftest_passes(tmp_path: Path, step: Any) -> None:
    assert step(tmp_path)


def test_the_last_line_says_how_long_the_selftest_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of its parts, and none of the other checks."""

    def slowly(name: str, seconds: float) -> Iterator[Finding]:
        for part in range(2):
            time.sleep(seconds)
            yield Finding(f"{name} {part}", "slow")

    monkeypatch.setattr(doctor, "examine", lambda: slowly("other", 1.0))
    monkeypatch.setattr(doctor, "tests", lambda: slowly("test", 0.3))
    assert main(["doctor"]) == 0
    last = re.fullmatch(
        r"self-test: (\d+\.\d) s; everything works; next: stedm demo", capsys.readouterr().out.splitlines()[-1]
    )
    assert last is not None and 0.6 <= float(last[1]) < 2.0


def test_the_selftest_fails_where_a_part_does(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Slide.read
    monkeypatch.setattr(Slide, "read", lambda self, *place, **size: 255 - read(self, *place, **size))
    monkeypatch.setattr(
        Segmenter, "predict", lambda self, images: np.full(images.shape[:3], len(self.classes), np.uint8)
    )
    found = {finding.name: finding for finding in doctor.tests()}
    assert [name for name, finding in found.items() if finding.state == "broken"] == ["test segmenter", "test slides"]
    assert "plain.png" in found["test slides"].text


def test_little_room_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 1e9)
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GIB", 1e9)
    assert {doctor.room().state, doctor.machine().state} == {"note"}
