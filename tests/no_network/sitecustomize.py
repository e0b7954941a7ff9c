"""Imported by every Python process that has this folder on its path: nothing is sent from it, and no name is looked up.

Each attempt is refused and leaves a line in the file that STEDM_ATTEMPTS names, in case somebody catches the error. It
is Python that reports the attempts, from inside its socket objects, however they are called: `connect`, `connect_ex`,
`create_connection`, `sendto`, `sendmsg`, `getaddrinfo` and its kin. Not seen is what a C library sends through sockets
of its own (libcurl, gRPC, gloo and NCCL in torch), a program that is not Python, and a Python started with -I, -E or
-S.
"""

import os
import socket
import sys
from typing import Any

_OF_SOCKETS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_OF_NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _OF_SOCKETS + _OF_NAMES:
        return
    if event in _OF_SOCKETS and arguments[0].family == socket.AF_UNIX:  # between processes of one machine
        return
    what = arguments[1] if event in _OF_SOCKETS else arguments[0]
    with open(os.environ["STEDM_ATTEMPTS"], "a") as log:
        log.write(f"{event} {what!r}\n")
    raise OSError(f"a test tried to reach {what!r}")


sys.addaudithook(_refuse)
