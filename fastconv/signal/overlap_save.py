"""Correlation through Fourier transforms, tile by tile: overlap-save with numpy.fft.

    y = inverse(transform(tile of x) * conj(transform(conj(w))))

is a circular correlation; of a tile of T elements the first T - K + 1 outputs have not wrapped around, and
are kept. Tiles fit the cache, so that time grows with the outputs and not with the logarithm of the image.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, log2, prod, sqrt
from typing import NamedTuple

import numpy as np

from fastconv.arrays import LINE, Array
from fastconv.signal.direct import correlate_direct
from fastconv.signal.window import Window, last_axes
from fastconv.threads import get_num_threads
from fastconv.workspace import KEPT_BYTES

# Elements of a tile that is cut from something larger: its spectrum stays in a second-level cache of 1 MiB.
TILE_ELEMENTS = 1 << 17
# Many tiles may be larger: what they overlap costs more than the third-level cache does. Milliseconds of
# 63x63 at 2048x2048 and at 4096x4096, tiles of 320 and of 576 (Zen 5, one thread): 29.1 and 26.1, 116 and
# 104; few would leave threads idle: 63x63 at 512x512, one of 576 or four of 320, two threads, 2.4 and 1.8.
MANY_TILES, MANY_ELEMENTS = 9, 3 * TILE_ELEMENTS
# Elements transformed in one call of numpy.fft: small tiles share it, so that its overhead (some 50 us for
# the six calls of a group) is a tenth of the work.
GROUP_ELEMENTS = 1 << 17
# Cost of an element of a tile beside its logarithm: copying, multiplying, real transforms' extra pass.
FIXED_COST = 8.0
ELEMENTS_PER_THREAD = 1 << 16  # a thread takes 0.1 ms to start; this many elements take 0.3 ms


class Tiling(NamedTuple):
    """Along each axis: the elements of a tile, and the outputs that it gives."""

    tile: tuple[int, ...]
    step: tuple[int, ...]

    def count(self, size: Sequence[int]) -> int:
        return prod(-(-outputs // step) for outputs, step in zip(size, self.step, strict=True))

    def elements(self, size: Sequence[int]) -> int:
        """All that is transformed for `size` outputs."""
        return self.count(size) * prod(self.tile)


@functools.lru_cache(maxsize=1024)
def fast_length(smallest: int) -> int:
    """The next number with no prime factor above 5, even where it is large: such transforms are fast."""
    if smallest <= 6:
        return max(smallest, 1)
    best = 1 << (smallest - 1).bit_length()
    for fives in range(best.bit_length() // 2 + 1):
        for threes in range(best.bit_length() * 2 // 3 + 1):
            odd = 5**fives * 3**threes
            if 2 * odd > best:
                break
            twos = max(1, (-(-smallest // odd) - 1).bit_length())
            best = min(best, odd << twos)
    return best


def _candidates(taps: int, outputs: int) -> list[tuple[int, int]]:
    """(tile, step) along one axis, for 1, 2, 3, ... tiles, until tiles are little larger than the kernel."""
    found: dict[int, int] = {}
    count = 1
    while True:
        tile = fast_length(-(-outputs // count) + taps - 1)
        found.setdefault(tile, min(outputs, tile - taps + 1))
        if tile <= max(2 * taps, 32) or tile - taps + 1 <= 1:
            return list(found.items())
        count = max(count + 1, count * 4 // 3)


@functools.lru_cache(maxsize=1024)
def tiling(taps: tuple[int, ...], size: tuple[int, ...]) -> Tiling:
    """The cheapest tiles for a kernel and a number of outputs, along the axes that are transformed."""
    axes = [_candidates(k, outputs) for k, outputs in zip(taps, size, strict=True)]
    best, lowest = Tiling((1,), (1,)), inf
    # Of several axes a few sizes each: about 256 combinations.
    few = max(3, int(256 ** (1 / len(axes))))
    axes = [axis if len(axis) <= few else [*axis[:: -(-len(axis) // few)]] for axis in axes]
    for combination in itertools.product(*axes):
        found = Tiling(tuple(tile for tile, _ in combination), tuple(step for _, step in combination))
        elements = prod(found.tile)
        cost = found.elements(size) * (FIXED_COST + log2(elements))
        room = MANY_ELEMENTS if found.count(size) >= MANY_TILES else TILE_ELEMENTS
        cost *= max(1.0, sqrt(elements / room))
        if cost < lowest:
            best, lowest = found, cost
    return best


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)


_scratch = _Scratch()


def _memory(size: int) -> Array:
    """This thread's memory for tiles; kept while it is small, so that a call pays no page faults.

    Apart from that of the kernels, which may run while tiles are held.
    """
    memory = _scratch.memory
    if memory.size < size:
        memory = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            _scratch.memory = memory
    return memory


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that live on between calls, with their memory. A forked child asks for none of them."""
    return ThreadPoolExecutor(workers, "fastconv.signal")


class _Transform:
    """Transforms of groups of tiles (G, T1, T2, ...), and the product with a kernel's spectrum.

    Forward transforms are asked to divide by the length: numpy.fft computes those of float32 in float32, and
    others in float64 at half the speed. The kernel's spectrum makes up for it.
    """

    def __init__(self, kernel: Array, tile: tuple[int, ...]) -> None:
        self.tile = tile
        self.dtype = kernel.dtype
        self.is_real = kernel.dtype.kind == "f"
        self.axes = range(1, len(tile) + 1)
        padded, *buffers = self.buffers(1)
        padded.fill(0)
        padded[last_axes([slice(k) for k in kernel.shape])] = kernel.conj()
        spectrum = self.forward(padded, *buffers)[0]
        self.spectrum = spectrum.conj() * kernel.real.dtype.type(float(prod(tile)) ** 2)

    def buffers(self, group: int) -> tuple[Array, Array, Array]:
        """A group of tiles, and two spectra, as numpy.fft copies what it would overwrite."""
        last = self.tile[-1] // 2 + 1 if self.is_real else self.tile[-1]
        shape = (group, *self.tile[:-1], last)
        dtype = np.result_type(self.dtype, np.complex64)
        parts = [((group, *self.tile), self.dtype), (shape, dtype), (shape, dtype)]
        ends = list(itertools.accumulate(-(-prod(s) * d.itemsize // LINE) * LINE for s, d in parts))
        memory = _memory(ends[-1])
        tiles, first, second = (
            np.ndarray(s, d, memory, start) for (s, d), start in zip(parts, [0, *ends], strict=False)
        )
        return tiles, first, second

    def forward(self, tiles: Array, spectrum: Array, free: Array) -> tuple[Array, Array]:
        """The spectrum of the tiles, and the buffer that is left over."""
        spectrum, free = spectrum[: len(tiles)], free[: len(tiles)]
        transform = np.fft.rfft if self.is_real else np.fft.fft
        transform(tiles, axis=self.axes[-1], norm="forward", out=spectrum)
        for axis in self.axes[:-1]:
            np.fft.fft(spectrum, axis=axis, norm="forward", out=free)
            spectrum, free = free, spectrum
        return spectrum, free

    def correlate(self, tiles: Array, step: tuple[int, ...], buffers: list[Array]) -> Array:
        """The outputs of each tile that have not wrapped around, written over the tiles."""
        spectrum, free = self.forward(tiles, *buffers)
        spectrum *= self.spectrum
        for axis, outputs in zip(self.axes[:-1], step, strict=False):
            np.fft.ifft(spectrum, axis=axis, out=free)
            kept = (slice(None),) * axis + (slice(outputs),)
            spectrum, free, tiles = free[kept], spectrum[kept], tiles[kept]
        if self.is_real:
            np.fft.irfft(spectrum, self.tile[-1], axis=self.axes[-1], out=tiles)
        else:
            np.fft.ifft(spectrum, axis=self.axes[-1], out=tiles)
        return tiles[..., : step[-1]]


def correlate_fft(image: Array, kernel: Array, window: Window, exact: bool = True) -> Array:
    """The window of the correlation of floating-point or complex arrays of one dtype.

    The last axes of the image are those of the kernel, axes before them a batch; operands are trimmed.
    Where `exact` is true, tiles with NaN, infinities or numbers too large to transform are computed directly:
    otherwise one such element spoils its whole tile.
    """
    lead = image.ndim - kernel.ndim
    long = [axis for axis in range(kernel.ndim) if kernel.shape[axis] > 1]
    if not long:
        return correlate_direct(image, kernel, window)
    order = [axis for axis in range(image.ndim) if axis - lead not in long] + [lead + axis for axis in long]
    shape = (*image.shape[:lead], *window.size)
    result = np.empty([shape[axis] for axis in order], image.dtype)
    job = _Job(
        image.transpose(order),
        kernel.reshape([kernel.shape[axis] for axis in long]),
        tuple(window.start[axis] for axis in long),
        result,
        exact,
    )
    job.run()
    return result.transpose(np.argsort(order))


class _Job:
    """One correlation with its batch axes in front, cut into groups of tiles."""

    def __init__(
        self, image: Array, kernel: Array, start: tuple[int, ...], result: Array, exact: bool
    ) -> None:
        self.image, self.kernel, self.start, self.result = image, kernel, start, result
        self.axes = kernel.ndim
        self.size = result.shape[result.ndim - self.axes :]
        self.tiling = tiling(kernel.shape, self.size)
        self.transform = _Transform(kernel, self.tiling.tile)
        # Products of spectra stay finite while every element is at most this.
        finfo, largest = np.finfo(kernel.dtype), np.abs(kernel).max(initial=0)
        room = float(finfo.max) ** 0.5 / prod(self.tiling.tile)
        self.limit = (room if largest <= room else -1.0) if exact else inf

    def run(self) -> None:
        steps = [range(0, n, s) for n, s in zip(self.size, self.tiling.step, strict=True)]
        batches = [range(n) for n in self.result.shape[: self.result.ndim - self.axes]]
        places = list(itertools.product(*batches, *steps))
        per_group = max(1, GROUP_ELEMENTS // prod(self.tiling.tile))
        # Threads draw groups from one queue: one that wakes up late computes fewer.
        self.groups = deque(places[first : first + per_group] for first in range(0, len(places), per_group))
        enough = max(1, len(places) * prod(self.tiling.tile) // ELEMENTS_PER_THREAD)
        others = min(get_num_threads(), len(self.groups), enough) - 1
        helpers = [_pool(others).submit(self.work, per_group) for _ in range(others)]
        self.work(per_group)
        for helper in helpers:
            if not helper.cancel():
                helper.result()

    def work(self, per_group: int) -> None:
        """Computes groups of tiles, on one thread, until none is left."""
        tiles, *buffers = self.transform.buffers(per_group)
        while self.groups:
            try:
                group = self.groups.popleft()
            except IndexError:  # another thread was faster
                return
            part = tiles[: len(group)]
            for tile, place in zip(part, group, strict=True):
                self.read(tile, place)
            if self.limit < inf and not self.is_tame(part):
                for tile, place in zip(part, group, strict=True):
                    self.work_on_one(tile, place, buffers)
                continue
            outputs = self.transform.correlate(part, self.tiling.step, buffers)
            for output, place in zip(outputs, group, strict=True):
                self.write(output, place)

    def is_tame(self, tiles: Array) -> bool:
        """No NaN, no infinity, nothing too large to transform?"""
        parts = tiles.view(self.kernel.real.dtype)
        return bool(parts.max() <= self.limit and parts.min() >= -self.limit)

    def work_on_one(self, tile: Array, place: tuple[int, ...], buffers: list[Array]) -> None:
        """A tile of a group in which at least one cannot be transformed: that one is computed directly."""
        step = self.tiling.step
        if self.is_tame(tile):
            self.write(self.transform.correlate(tile[None], step, buffers)[0], place)
            return
        needed = tuple(slice(s + k - 1) for s, k in zip(step, self.kernel.shape, strict=True))
        self.write(correlate_direct(tile[needed], self.kernel, Window((0,) * self.axes, step)), place)

    def read(self, tile: Array, place: tuple[int, ...]) -> None:
        """Copies what a tile holds of the image, with zeros around."""
        lead = len(place) - self.axes
        sizes = self.image.shape[lead:]
        firsts = [at + first for at, first in zip(place[lead:], self.start, strict=True)]
        source, target = [], []
        for first, size, length in zip(firsts, sizes, self.tiling.tile, strict=True):
            begin, end = max(first, 0), max(min(first + length, size), max(first, 0))
            source.append(slice(begin, end))
            target.append(slice(begin - first, end - first))
        part = self.image[place[:lead]][tuple(source)]
        if part.shape != tile.shape:
            tile.fill(0)
        tile[tuple(target)] = part

    def write(self, output: Array, place: tuple[int, ...]) -> None:
        lead = len(place) - self.axes
        target = self.result[place[:lead]]
        for axis, at in enumerate(place[lead:]):
            target = target[(slice(None),) * axis + (slice(at, at + output.shape[axis]),)]
        target[...] = output[tuple(slice(n) for n in target.shape)]
