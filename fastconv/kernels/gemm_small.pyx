"""1x1 convolutions of small maps: pixels are broadcast, and output channels fill the vectors.

    out[p, m] = sum over k of image[k, p] * weight[k, m]

As pixels of a vector, a 7x7 map would fill 49 of 64 lanes; as rows of the register tile, in blocks of 13
and 12, it wastes none. The image is read in place. The weights are panels of NR output channels, which
`pack` has made of a prepared weight; those of an input gradient lie side by side, and the first block of
pixels packs them as it reads them. Every sum runs over k in ascending order, as in gemm.pyx.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.gemm_micro cimport COLUMNS, LINE, PANEL_OR_IMAGE, Ahead, Tile, micro_kernel, stack
from fastconv.kernels.gemm_pack cimport ceil_div, copy_row, even_start, fill_zero, plane_size, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    MR, NR, VL, flush_denormals, real, restore_denormals, vec, vload, vstore_first, vtranspose, vzero,
)


cdef struct Work:
    const Geometry* geometry
    const real* image
    const real* weight
    bint packed                  # are the weights panels, or rows of output channels in place?
    const real* bias
    real* out
    Py_ssize_t panels            # of output channels
    Py_ssize_t blocks            # of pixels of an image
    Py_ssize_t parts             # that these are dealt into


cdef void store_transposed(const real* values, Py_ssize_t rows, Py_ssize_t columns, real* to,
                           Py_ssize_t to_column) noexcept nogil:
    """to[j * to_column + i] = values[i * NR + j]."""
    cdef vec[VL] block
    cdef Py_ssize_t i, j, lane = 0
    if MR <= VL:
        while lane < columns:
            for i in range(VL):
                block[i] = vload(values + i * NR + lane) if i < rows else vzero()
            vtranspose(block)
            for j in range(smaller(VL, columns - lane)):
                vstore_first(to + (lane + j) * to_column, rows, block[j])
            lane += VL
        return
    for j in range(columns):
        for i in range(rows):
            to[j * to_column + i] = values[i * NR + j]


cdef void aim_weights(const Work* w, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t columns, real* scratch,
                      Tile* tile) noexcept nogil:
    """Points the tile at a panel of weights: packed, to be packed by the tile, or, if it is narrow, packed here."""
    cdef const Geometry* g = w.geometry
    cdef const real* rows = w.weight + group * g.weight_group + panel * NR
    cdef Py_ssize_t k
    tile.image = NULL
    if w.packed:
        tile.b = <real*> w.weight + (group * w.panels + panel) * g.channels * NR
        return
    tile.b = scratch
    if columns == NR:
        tile.image = rows
        tile.image_row = g.weight_channel
        return
    for k in range(g.channels):
        copy_row(scratch + k * NR, rows + k * g.weight_channel, columns)
        fill_zero(scratch + k * NR + columns, NR - columns)


cdef void look_ahead(const Work* w, const Tile* tile, bint last, Ahead* ahead) noexcept nogil:
    """Aims at the packed panel that comes next."""
    memset(ahead, 0, sizeof(Ahead))
    ahead.line = tile.b
    if w.packed and not last:
        ahead.line += w.geometry.channels * NR
        ahead.step = LINE
        ahead.total = w.geometry.channels * NR // LINE


cdef void run_panel(const Work* w, Py_ssize_t image, Py_ssize_t group, Py_ssize_t panel, Py_ssize_t part,
                    real* scratch) noexcept nogil:
    """One panel of output channels against a part of the pixels of one image."""
    cdef const Geometry* g = w.geometry
    cdef real[MR * NR] values
    cdef real[NR] start
    cdef Tile tile
    cdef Ahead ahead
    cdef Py_ssize_t plane = plane_size(g), block, pixel, rows, first = panel * NR
    cdef Py_ssize_t columns = smaller(NR, g.rows - first)
    cdef real* out = w.out + image * g.out_image + group * g.out_group + first * g.out_row
    aim_weights(w, group, panel, columns, scratch, &tile)
    look_ahead(w, &tile, panel + 1 == w.panels, &ahead)
    if w.bias != NULL:
        fill_zero(start, NR)
        copy_row(start, w.bias + group * g.rows + first, columns)
    tile.ahead = &ahead
    tile.offsets = NULL
    tile.depth = g.channels
    tile.a_step = g.in_channel
    tile.start_row = 0
    tile.bias = NULL
    tile.out_row = NR
    tile.columns = NR
    tile.relu = g.relu
    tile.stream = False
    for block in range(part * w.blocks // w.parts, (part + 1) * w.blocks // w.parts):
        pixel = even_start(plane // w.blocks, plane % w.blocks, block)
        rows = even_start(plane // w.blocks, plane % w.blocks, block + 1) - pixel
        tile.tiles = 1
        tile.a_next = 0
        stack(rows, &tile)
        tile.a = w.image + image * g.in_image + group * g.in_group + pixel
        tile.start = start if w.bias != NULL else NULL
        tile.out = values
        micro_kernel(COLUMNS, PANEL_OR_IMAGE, <int> rows, 2, &tile)
        tile.image = NULL
        store_transposed(values, rows, columns, out + pixel, g.out_row)


cdef void run_unit(const Work* w, Py_ssize_t unit, real* scratch) noexcept nogil:
    """Unit number -> group, panel, image, part: a panel stays in the cache for all images."""
    cdef Py_ssize_t part = unit % w.parts, image = unit // w.parts % w.geometry.batch
    cdef Py_ssize_t panel = unit // (w.parts * w.geometry.batch) % w.panels
    run_panel(w, image, unit // (w.parts * w.geometry.batch * w.panels), panel, part, scratch)


cdef void run_all(Work* w, int threads, real* scratch, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t units = w.geometry.groups * w.panels * w.geometry.batch, unit
    cdef unsigned int mode = 0
    w.parts = 1
    if units % threads != 0 and units < 8 * threads:  # else the last round would leave threads idle
        w.parts = w.blocks
        units *= w.parts
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for unit in range(units):
            run_unit(w, unit, scratch)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="dynamic"):
            run_unit(w, unit, scratch + threadid() * size)
        restore_denormals(mode)


cdef Py_ssize_t scratch_elements(const Geometry* g, bint packed) noexcept nogil:
    """Of one thread: a panel, whose rows are whole lines."""
    return 0 if packed else g.channels * NR


def workspace_bytes(cnp.ndarray geometry, bint packed, int threads):
    """Bytes that `conv` needs beside its operands."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    return scratch_elements(g, packed) * threads * sizeof(real) + 64


def packed_elements(cnp.ndarray geometry):
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    return g.groups * ceil_div(g.rows, NR) * NR * g.channels


def pack(cnp.ndarray geometry, cnp.ndarray _taps, cnp.ndarray weight, cnp.ndarray to, int threads):
    """Weights -> `to`, in the order that `conv` reads with packed=True."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const real* source = <const real*> cnp.PyArray_DATA(weight)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    cdef Py_ssize_t panels = ceil_div(g.rows, NR), panel, first, k, j
    with nogil:
        for panel in prange(g.groups * panels, num_threads=threads):
            first = panel % panels * NR
            for k in range(g.channels):
                for j in range(NR):
                    target[(panel * g.channels + k) * NR + j] = source[
                        panel // panels * g.weight_group + (first + j) * g.weight_row + k * g.weight_channel
                    ] if first + j < g.rows else 0


def conv(cnp.ndarray geometry, cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out,
         cnp.ndarray workspace, bint packed, int threads):
    """One pass of the equation above over `out`; the plan has checked every argument."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef char* scratch = <char*> cnp.PyArray_DATA(workspace)
    cdef Work w
    w.geometry = g
    w.image = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.packed = packed
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out) + g.out_offset
    w.panels = ceil_div(g.rows, NR)
    w.blocks = ceil_div(plane_size(g), MR)
    scratch += -<Py_ssize_t> scratch & 63
    with nogil:
        run_all(&w, threads, <real*> scratch, scratch_elements(g, packed))
