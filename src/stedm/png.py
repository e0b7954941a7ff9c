"""PNG files of patches and label maps: lossless, written as fast as they are small, and beside other work."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import imagecodecs
import numpy as np

from stedm.files import atomic_path, writing

_File = tuple[Path, np.ndarray]

_MOST_THREADS = 8
"""Of a writer: one encodes about as fast as a slide is read, eight keep up with a fast GPU at 512 px."""
_MOST_BYTES = 2**26
"""Pixels that wait for a writer's threads: 340 patches of 256 px, or a batch of 64 of 512 px."""


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
        self._most_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._threads: list[threading.Thread] = []
        # Not an executor: its futures cost as much as a small PNG.
        self._todo: SimpleQueue[tuple[_File, ...] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, Exception | None]] = SimpleQueue()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def put(self, *files: _File) -> None:
        """Have files written, one after the other, so that the last stands for all; their pixels must not change.

        Returns at once unless too many pixels wait. Raises Stopped, naming the file, when one of an earlier call could
        not be written.
        """
        self._bytes += _size(files)
        self._todo.put(files)
        if self._todo.qsize() and len(self._threads) < self._most_threads:  # the others are busy
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        while self._bytes > _MOST_BYTES or not self._done.empty():
            self._take()

    def _work(self) -> None:
        while (files := self._todo.get()) is not None:
            try:
                for path, pixels in files:
                    with writing(path):
                        self._write(path, pixels)
                self._done.put((_size(files), None))
            except Exception as error:
                self._done.put((_size(files), error))

    def _take(self) -> None:
        """Wait for a call's files; raise what went wrong with them."""
        size, error = self._done.get()
        self._bytes -= size
        if error is not None:
            raise error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _thread in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        while kind is None and not self._done.empty():
            self._take()


def _size(files: tuple[_File, ...]) -> int:
    return sum(pixels.nbytes for _, pixels in files)
