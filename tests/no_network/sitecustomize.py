"""Imported by every Python process that has this folder on its path: no connection leaves it, and none is looked up.

Each attempt is refused and leaves a line in the file that STEDM_ATTEMPTS names, in case somebody catches the error.
"""

import os
import socket
from typing import Any


def _refuse(what: Any) -> None:
    with open(os.environ["STEDM_ATTEMPTS"], "a") as log:
        log.write(f"{what!r}\n")
    raise OSError(f"a test tried to reach {what!r}")


def _connect(self: socket.socket, address: Any) -> Any:
    if self.family == socket.AF_UNIX:  # between processes of one machine
        return _real_connect(self, address)
    return _refuse(address)


_real_connect = socket.socket.connect
socket.socket.connect = _connect  # type: ignore[method-assign]
socket.socket.connect_ex = _connect  # type: ignore[method-assign]
socket.socket.sendto = lambda self, data, *where: _refuse(where)  # type: ignore[method-assign]
socket.getaddrinfo = lambda host, *rest, **options: _refuse(host)  # type: ignore[assignment]
socket.gethostbyname = lambda host: _refuse(host)  # type: ignore[assignment]
