"""How the work of a matrix product is cut for threads, and the scratch memory that each of them needs."""

from fastconv.kernels.gemm_band cimport Band, band_elements, lanes_of_slot, shape_band, slots_of
from fastconv.kernels.gemm_micro cimport WIDEST, Slot
from fastconv.kernels.gemm_pack cimport (
    Run, ceil_div, is_dense, larger, plane_size, row_blocks, smaller, swept_depth,
)
from fastconv.kernels.gemm_patch cimport in_patches
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport MR, NR, VL, real


cdef enum:
    # 32 -> 16 at 112x112 (2 blocks): 146 us with panels, 106 swept; 16 -> 96 (7 blocks): 325, 376; 144 -> 24
    # at 56x56: 192, 272.
    FEW_BLOCKS = 3
    FEW_BLOCKS_DEPTH = 32
    SPREAD_BYTES = 256 << 10  # of waiting sums; not swept


# How the work is cut: `segments` stretches of pixels, each in `tiles` tiles, times `spans` of rows.
cdef struct Partition:
    Py_ssize_t segments
    Py_ssize_t segment_pixels
    Py_ssize_t tiles
    Py_ssize_t tile_pixels
    Py_ssize_t spans


cdef inline Py_ssize_t depth_of(const Geometry* g) noexcept nogil:
    return smaller(g.depth_block, g.channels) * g.taps


cdef inline Partition cut(const Geometry* g, Py_ssize_t threads) noexcept nogil:
    """The cut with the least work on the busiest thread, counting 3 rows for the packing of a panel.

    Tiles are whole vectors, or whole rows of outputs where these are read from bands. An image is a
    segment of its own unless its last vector would be mostly empty; then the batch is one.
    """
    cdef Partition best, trial
    cdef Py_ssize_t plane = plane_size(g), vectors, tiles, spans, units, cost, best_cost = -1, sums
    cdef Py_ssize_t blocks = row_blocks(g)
    cdef Py_ssize_t grain = g.out_size[2] if g.bands else VL
    cdef bint whole_vectors = g.bands or ceil_div(plane, VL) * VL * 32 <= plane * 33
    best.segments = g.batch if whole_vectors else 1
    best.segment_pixels = plane if whole_vectors else plane * g.batch
    vectors = ceil_div(best.segment_pixels, grain)
    best.tiles = ceil_div(vectors, larger(g.pixel_block // grain, 1))
    best.spans = 1
    trial = best
    for spans in range(1, smaller(threads, blocks) + 1):
        for tiles in range(best.tiles, smaller(vectors, best.tiles + threads) + 1):
            units = ceil_div(g.groups * best.segments * tiles * spans, threads)
            cost = units * ceil_div(vectors, tiles) * (ceil_div(blocks, spans) * MR + 3)
            if best_cost < 0 or cost < best_cost:
                best_cost = cost
                trial.tiles = tiles
                trial.spans = spans
    trial.tile_pixels = ceil_div(vectors, trial.tiles) * grain
    trial.tiles = ceil_div(best.segment_pixels, trial.tile_pixels)
    if in_patches(g):  # their sums wait until all rows of a line of windows are there
        sums = g.rows * trial.tile_pixels * <Py_ssize_t> sizeof(real)
        trial.spans = larger(trial.spans, smaller(ceil_div(sums, SPREAD_BYTES), blocks))
    return trial


cdef inline Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef inline Py_ssize_t columns_of(const Geometry* g, Py_ssize_t pixels) noexcept nogil:
    """Columns of a tile: whole panels of its pixels, or whole vectors, or halves, of each of its rows."""
    if g.bands:
        return pixels // g.out_size[2] * ceil_div(g.out_size[2], lanes_of_slot(g)) * lanes_of_slot(g)
    return ceil_div(pixels, NR) * NR


cdef inline bint is_swept(const Geometry* g, const Tap* taps) noexcept nogil:
    """Is the image read where it lies, in sweeps along its pixels?

    A single block of rows is not worth a panel, nor is a depth that first-level caches hold anyway.
    """
    return (not g.bands and not in_patches(g) and is_dense(g, taps) and g.depth_block >= g.channels
            and (row_blocks(g) == 1 or g.channels <= swept_depth(g)
                 or (row_blocks(g) <= FEW_BLOCKS and g.channels <= FEW_BLOCKS_DEPTH)))


cdef inline bint is_gathered(const Geometry* g, const Tap* taps) noexcept nogil:
    """Are the pixels of a tile packed side by side for sweeps, and not as panels?"""
    return (not g.bands and not is_dense(g, taps) and g.depth_block >= g.channels
            and g.channels * g.taps <= swept_depth(g))


cdef inline Py_ssize_t tables_size(const Geometry* g, const Tap* taps, const Partition* p) noexcept nogil:
    """What all threads read of a band: offsets of its rows, places of the vectors of a full and of a last tile."""
    if is_swept(g, taps) or is_gathered(g, taps):
        return aligned(depth_of(g) * <Py_ssize_t> sizeof(Py_ssize_t)) + WIDEST * <Py_ssize_t> sizeof(Slot)
    if not g.bands:
        return 0
    return (aligned(depth_of(g) * <Py_ssize_t> sizeof(Py_ssize_t))
            + aligned(2 * slots_of(g, p.tile_pixels // g.out_size[2]) * <Py_ssize_t> sizeof(Slot)))


cdef inline Py_ssize_t panels_size(const Geometry* g, const Tap* taps, const Partition* p) noexcept nogil:
    """The pixels of a tile for one block of the depth: as panels, or as a band."""
    cdef Band band
    cdef Py_ssize_t elements = columns_of(g, p.tile_pixels) * depth_of(g)
    if g.bands:
        band = shape_band(g, taps, p.tile_pixels // g.out_size[2])
        elements = band_elements(g, &band)
    return aligned(elements * <Py_ssize_t> sizeof(real))


cdef inline Py_ssize_t sums_row(const Geometry* g, Py_ssize_t pixels) noexcept nogil:
    """Columns of the waiting sums of a tile: its last panel may be filled up with vectors beyond it."""
    return columns_of(g, pixels) + (WIDEST * VL if g.bands else 0)


cdef inline Py_ssize_t sums_size(const Geometry* g, const Partition* p) noexcept nogil:
    if depth_of(g) == g.channels * g.taps and not in_patches(g):
        return 0
    return aligned(ceil_div(row_blocks(g), p.spans) * MR * sums_row(g, p.tile_pixels) * <Py_ssize_t> sizeof(real))


cdef inline Py_ssize_t runs_size(const Partition* p) noexcept nogil:
    return aligned((p.tile_pixels + ceil_div(p.tile_pixels, NR)) * <Py_ssize_t> sizeof(Run))


cdef inline Py_ssize_t thread_size(const Geometry* g, const Tap* taps, const Partition* p) noexcept nogil:
    return panels_size(g, taps, p) + sums_size(g, p) + runs_size(p)
