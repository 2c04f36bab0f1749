"""Stacks of frames that are read when indexed: what viewers take for an array without it being in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHE_BYTES = 128 * 2**20


class LazyStack(ABC):
    """An array of shape (T, ...) whose frames `_read` supplies one by one; the latest used stay in memory.

    Any numpy index works: `stack[i]`, `stack[2:8, ::2]`, `stack[..., 0]`. Safe to index from several threads.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        frame_bytes = max(1, int(np.prod(shape[1:])) * self.dtype.itemsize)
        self._capacity = max(4, CACHE_BYTES // frame_bytes)
        self._cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.RLock()

    @abstractmethod
    def _read(self, position: int) -> NDArray[Any]:
        """Frame `position`, 0 <= position < T, of shape `shape[1:]`. Called under the lock."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, rest = self._split(key)
        positions = np.arange(len(self))[first]
        if positions.ndim == 0:
            return np.asarray(self._frame(int(positions))[rest])
        frames = [self._frame(int(i))[rest] for i in positions]
        return np.stack(frames) if frames else np.zeros((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _split(self, key: Any) -> tuple[Any, tuple[Any, ...]]:
        """The index along time, and the rest."""
        key = key if isinstance(key, tuple) else (key,)
        if any(k is Ellipsis for k in key):
            at = next(i for i, k in enumerate(key) if k is Ellipsis)
            key = (*key[:at], *[slice(None)] * (self.ndim - len(key) + 1), *key[at + 1 :])
        return (key[0], key[1:]) if key else (slice(None), ())

    def _frame(self, position: int) -> NDArray[Any]:
        with self._lock:
            if position in self._cache:
                self._cache.move_to_end(position)
                return self._cache[position]
            return self._keep(position, self._read(position))

    def _keep(self, position: int, frame: NDArray[Any]) -> NDArray[Any]:
        """Put a frame in the cache, for `_read` to use on frames it passes."""
        frame.setflags(write=False)  # callers share it
        self._cache[position] = frame
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return frame
