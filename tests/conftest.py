"""Fixtures that several test files share."""

import os
import socket
from typing import Any

import pytest

# Tests run beside others on few cores, and sums must not depend on how many threads share the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # what `datasets` tells its makers


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
