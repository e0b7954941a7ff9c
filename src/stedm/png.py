"""PNG files of patches and label maps: lossless, written as fast as they are small, and beside other work."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import imagecodecs
import numpy as np

from stedm.files import atomic_path, writing

_MOST_THREADS = 4
"""Of a writer: one encodes about as fast as a slide is read, four keep up with a fast GPU at 512 px."""
_MOST_BYTES = 2**24
"""Pixels that wait for a writer's threads: 85 patches of 256 px."""


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) or a label map (H, W), uint8, as a PNG file.

    One filter for all rows (Paeth), then zlib's run lengths: on tissue as small as zlib's level 4 with the best of all
    filters for each row, and written in a quarter of the time.
    """
    level, run_lengths, paeth = 1, 3, 128
    return imagecodecs.png_encode(np.ascontiguousarray(pixels), level=level, strategy=run_lengths, filter=paeth)


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write `png_bytes` in place. Raises OSError as `Path.write_bytes` does."""
    Path(path).write_bytes(png_bytes(pixels))


def write_png_atomically(path: str | Path, pixels: np.ndarray) -> None:
    """Write `png_bytes`; the file appears whole or not at all. Raises Stopped for what the file system refuses."""
    with atomic_path(path) as temporary:
        write_png(temporary, pixels)


class Writer:
    """Writes PNG files in threads of its own, so that the caller can read or draw meanwhile; a context manager.

    When the block has ended without an error, all files are there. An error of a thread is raised in the caller, by
    `put` or at the end of the block; whatever the error, nothing is being written any more when the block has ended.
    """

    def __init__(self, write: Callable[[Path, np.ndarray], None] = write_png_atomically) -> None:
        """write: called by the threads with the path and the pixels of each file."""
        self._write = write
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        return self

    def put(self, *files: tuple[Path, np.ndarray]) -> None:
        """Have files written, one after the other, so that the last stands for all; their pixels must not change.

        Returns at once unless too many pixels wait. Raises Stopped, naming the file, when one of an earlier call could
        not be written.
        """
        size = sum(pixels.nbytes for _, pixels in files)
        self._waiting.append((self._pool.submit(self._write_all, files), size))
        self._bytes += size
        while self._waiting and (self._bytes > _MOST_BYTES or self._waiting[0][0].done()):
            done, size = self._waiting.popleft()
            self._bytes -= size
            done.result()

    def _write_all(self, files: tuple[tuple[Path, np.ndarray], ...]) -> None:
        for path, pixels in files:
            with writing(path):
                self._write(path, pixels)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        for done, _size in self._waiting:
            if kind is None:
                done.result()
