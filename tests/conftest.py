"""Fixtures that several test files share."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Tests run beside others on few cores, and sums must not depend on how many threads share the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # what `datasets` tells its makers
hypothesis.settings.register_profile("shared", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("shared")


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to open a network connection fails and is recorded."""
    attempts: list[Any] = []

    def refuse(self: socket.socket, address: Any, *rest: Any) -> None:
        attempts.append(address)
        raise OSError(f"a test tried to connect to {address}")

    def refuse_name(host: Any, *rest: Any, **options: Any) -> None:
        attempts.append(host)
        raise OSError(f"a test tried to look up {host}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    return attempts


@pytest.fixture
def ctrl_c_works() -> Iterator[None]:
    """SIGINT interrupts, as in a terminal, also where whatever started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


_SMALLEST_RUN = {
    "size": "smoke",
    "cohort.phantom.train_patients": 4,
    "cohort.phantom.val_patients": 1,
    "cohort.phantom.test_patients": 2,
    "cohort.phantom.unseen_patients": 1,
    "cohort.phantom.slide_px": 64,
    "cohort.phantom.slides_per_patient": 3,
    "split.label_budget": 2,
    "autoencoder.steps": 3,
    "diffusion.steps": 3,
    "diffusion.annotated_only_control": "false",
    "segmentation.steps": 3,
    "segmentation.seeds": "[0]",
    "segmentation.arms": "[real, real+stain+synthetic, real+stain+second-round]",
    "generate.images": 8,
    "generate.batch_size": 8,
    "generate.nfe": 2,
    "evaluate.bootstrap": 50,
    "evaluate.style_patients": 1,
    "evaluate.images_per_style": 2,
}


@pytest.fixture(scope="session")
def smallest_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, next to untrained: made once for all worker processes, to be read only."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smallest-run"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "report" / "index.html").exists():
            flags = [word for key, value in _SMALLEST_RUN.items() for word in (f"--{key}", str(value))]
            command = [sys.executable, "-m", "stedm.cli", "run", "--jobs", "1", "--out", str(folder), *flags]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
    return folder
