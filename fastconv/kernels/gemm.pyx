"""Convolution as an implicit matrix product: im2col is packed tile by tile, never stored whole.

    out[m, p] = sum over k of weight[m, k] * im2col[k, p]

m runs over output channels, p over the pixels of the batch, k over channels and taps. The loops, from
the outside: tiles of pixels times spans of rows (in parallel), blocks of the depth k (KC), blocks of
rows (MC), panels of NR pixels, blocks of MR rows. A panel is packed into L1, the tile's panels and the
rows' weights stay in L2. Between depth blocks the sums wait in a buffer of the thread; a value is
written to the output once, with bias and activation applied.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.gemm_band cimport Band, list_offsets, list_slots, shape_band, slots_of
from fastconv.kernels.gemm_cut cimport (
    Partition, aligned, columns_of, cut, depth_of, is_gathered, is_swept, panels_size, sums_row, sums_size, tables_size,
    thread_size,
)
from fastconv.kernels.gemm_micro cimport BAND, BLOCKS, COLUMNS, PANEL_OR_IMAGE, ROWS, WIDEST, Slot, Tile, micro_kernel
from fastconv.kernels.gemm_pack cimport (
    STREAMS, Run, are_finite, ceil_div, in_order, is_dense, larger, pack_weights, plane_size, row_blocks, row_start,
    smaller,
)
from fastconv.kernels.gemm_sweep cimport Sweep, stretch_of, sweep
from fastconv.kernels.gemm_task cimport (
    IN_PLACE_COLUMNS, IN_PLACE_ROWS, PACKED, Multiply, Source, Task, run_task, start_of, tile_offset,
)
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    MR, VL, flush_denormals, is_vec_aligned, real, restore_denormals, stream_fence,
)

cdef enum:
    SLICE = 8  # channels that a thread packs at a time
    SWEPT_BYTES = 24 << 10  # of a band, half of a first-level cache; not swept


cdef bint planes_are_dense(const Geometry* g) noexcept nogil:
    """Do the outputs of one channel and image lie side by side?"""
    return (g.out_axis[2] == 1
            and (g.out_size[1] == 1 or g.out_axis[1] == g.out_size[2])
            and (g.out_size[0] == 1 or g.out_axis[0] == g.out_size[1] * g.out_size[2]))


cdef const real* input_of(const Task* base, const Partition* p, Py_ssize_t unit) noexcept nogil:
    """Where a unit's image begins, or NULL beyond the last unit."""
    cdef const Geometry* g = base.geometry
    cdef Py_ssize_t tile = unit // p.spans % p.tiles, segment = unit // (p.spans * p.tiles) % p.segments
    cdef Py_ssize_t group = unit // (p.spans * p.tiles * p.segments)
    cdef Py_ssize_t pixel = segment * p.segment_pixels + tile * p.tile_pixels
    if group >= g.groups:
        return NULL
    if is_dense(g, base.taps):
        return base.input + group * g.in_group + pixel // plane_size(g) * g.in_image + pixel % plane_size(g)
    return (base.input + group * g.in_group + pixel // plane_size(g) * g.in_image
            + pixel % plane_size(g) // g.out_size[2] * g.step[1] * g.in_axis[1])


# The micro-kernel in all its forms, each a function of its own and called by address. In one function they would take
# the compiler half as long again, and spill the sums of some.
cdef void multiply_rows(int rows, int vectors, Tile* tile) noexcept nogil:
    micro_kernel(ROWS, PANEL_OR_IMAGE, rows, vectors, tile)


cdef void multiply_columns(int rows, int vectors, Tile* tile) noexcept nogil:
    micro_kernel(COLUMNS, PANEL_OR_IMAGE, rows, vectors, tile)


cdef void multiply_blocks(int rows, int vectors, Tile* tile) noexcept nogil:
    micro_kernel(BLOCKS, PANEL_OR_IMAGE, rows, vectors, tile)


cdef void multiply_banded(int rows, int vectors, Tile* tile) noexcept nogil:
    micro_kernel(BLOCKS, BAND, rows, vectors, tile)


cdef Multiply multiplier(Source source) noexcept nogil:
    if source == IN_PLACE_ROWS:
        return multiply_rows
    return multiply_columns if source == IN_PLACE_COLUMNS else multiply_blocks


cdef void sweep_blocks(const Task* task) noexcept nogil:
    """All rows along the pixels of a task whose depth is short."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t image = task.first_pixel // plane_size(g), place = task.first_pixel % plane_size(g)
    cdef Py_ssize_t block, row, start = start_of(task, task.packed_block), left = task.pixels, stretch
    cdef real* out = task.out + image * g.out_image + place
    cdef Sweep s
    s.depth = depth_of(g)
    s.offsets = task.offsets
    s.relu = g.relu
    s.out_row = g.out_row
    s.b = task.panels if task.gathered > 0 else task.input + image * g.in_image + place
    s.lines = 1
    s.b_line = s.out_line = 0
    stretch = stretch_of(s.depth)
    if g.bands:
        s.b = task.panels
        left = stretch = g.out_size[2]
        s.lines = task.pixels // left
        s.b_line = g.step[1] * task.band.phases * task.band.length
        s.out_line = g.out_axis[1]
        out = task.out + tile_offset(g, task.first_pixel)
    while left > 0:
        s.columns = stretch if left >= 2 * stretch else left
        for block in range(task.first_block, task.last_block):
            row = start_of(task, block)
            s.a = task.weight + (row - start) * s.depth
            s.bias = task.bias + row if task.bias != NULL else NULL
            s.out = out + row * g.out_row
            sweep(<int> (task.height + (block < task.extra)), &s)
        s.b += s.columns
        out += s.columns
        left -= s.columns


cdef void run_unit(const Task* base, const Partition* p, Py_ssize_t unit, Py_ssize_t next_unit,
                   char* scratch) noexcept nogil:
    """Unit number -> group, segment, tile, span of rows; spans of one tile follow each other."""
    cdef Task task = base[0]
    cdef const Geometry* g = base.geometry
    cdef Py_ssize_t span = unit % p.spans, tile = unit // p.spans % p.tiles
    cdef Py_ssize_t segment = unit // (p.spans * p.tiles) % p.segments
    cdef Py_ssize_t group = unit // (p.spans * p.tiles * p.segments)
    cdef Py_ssize_t blocks = base.last_block - base.first_block
    task.input += group * g.in_group
    task.out += group * g.out_group
    if task.source == PACKED:
        task.weight += group * task.packed_rows * g.channels * g.taps
    else:
        task.weight += group * g.weight_group
    if task.bias != NULL:
        task.bias += group * g.rows
    task.next_input = input_of(base, p, next_unit)
    task.height = g.rows // row_blocks(g)
    task.extra = g.rows % row_blocks(g)
    task.dense = is_dense(g, task.taps)
    task.side_by_side = planes_are_dense(g)
    task.first_pixel = segment * p.segment_pixels + tile * p.tile_pixels
    task.pixels = smaller(p.tile_pixels, p.segment_pixels - tile * p.tile_pixels)
    if g.bands and task.pixels < p.tile_pixels:
        task.slots += slots_of(g, p.tile_pixels // g.out_size[2])
    task.last_block = base.first_block + (span + 1) * blocks // p.spans
    task.first_block += span * blocks // p.spans
    task.panels = <real*> scratch
    task.sums = <real*> (scratch + panels_size(g, task.taps, p))
    task.sums_row = sums_row(g, task.pixels)
    task.runs = <Run*> (scratch + panels_size(g, task.taps, p) + sums_size(g, p))
    if task.first_block < task.last_block:
        run_task(&task, p.tile_pixels // g.out_size[2])


cdef void list_band(Task* task, const Partition* p, Band* band, char* tables) noexcept nogil:
    """What the units of a call that reads from bands have in common."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t tile_rows = p.tile_pixels // g.out_size[2]
    cdef Py_ssize_t last_rows = g.out_size[1] - (p.tiles - 1) * tile_rows
    cdef Py_ssize_t* offsets = <Py_ssize_t*> tables
    cdef Slot* slots = <Slot*> (tables + aligned(depth_of(g) * <Py_ssize_t> sizeof(Py_ssize_t)))
    band[0] = shape_band(g, task.taps, tile_rows)
    list_offsets(g, task.taps, band, offsets)
    list_slots(g, band, tile_rows, slots)
    list_slots(g, band, last_rows, slots + slots_of(g, tile_rows))
    task.band = band
    task.offsets = offsets
    task.slots = slots


cdef void list_image(Task* task, Py_ssize_t row, char* tables) noexcept nogil:
    """The same where pixels lie in rows of the image, or in gathered ones."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t* offsets = <Py_ssize_t*> tables
    cdef Slot* slots = <Slot*> (tables + aligned(depth_of(g) * <Py_ssize_t> sizeof(Py_ssize_t)))
    cdef Py_ssize_t k
    for k in range(depth_of(g)):
        offsets[k] = k * row
    for k in range(WIDEST):
        slots[k].start = slots[k].to = k * VL
        slots[k].columns = VL
        slots[k].row = 0
    task.offsets = offsets
    task.slots = slots


cdef bint sweeps_band(const Task* task, const Partition* p) noexcept nogil:
    """Is the band of a tile so small that first-level caches hold it for all blocks of rows?"""
    cdef const Geometry* g = task.geometry
    return (not task.skips and g.stream != STREAMS and g.depth_block >= g.channels
            and panels_size(g, task.taps, p) <= SWEPT_BYTES)


cdef void run_all(Task* base, int threads, char* scratch) noexcept nogil:
    cdef Partition p = cut(base.geometry, threads)
    cdef Py_ssize_t units = base.geometry.groups * p.segments * p.tiles * p.spans
    cdef Py_ssize_t size = thread_size(base.geometry, base.taps, &p), unit
    cdef unsigned int mode = 0
    cdef Band band
    base.offsets = NULL
    base.streams = base.geometry.stream == STREAMS and is_vec_aligned(base.out)
    base.gathered = 0
    base.sweep = sweep_blocks
    base.multiply = multiplier(base.source)
    base.multiply_banded = multiply_banded
    base.swept = base.source == PACKED and is_swept(base.geometry, base.taps)
    base.skips = base.geometry.skips and are_finite(
        base.weight, base.geometry.groups * base.packed_rows * base.geometry.channels * base.geometry.taps)
    if base.geometry.bands:
        base.swept = sweeps_band(base, &p)
        list_band(base, &p, &band, scratch)
    elif base.swept:
        list_image(base, base.geometry.in_channel, scratch)
    elif base.source == PACKED and is_gathered(base.geometry, base.taps):
        base.gathered = columns_of(base.geometry, p.tile_pixels)
        list_image(base, base.gathered, scratch)
    scratch += tables_size(base.geometry, base.taps, &p)
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for unit in range(units):
            run_unit(base, &p, unit, unit + 1, scratch)
        stream_fence()
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="dynamic"):
            run_unit(base, &p, unit, unit + threads, scratch + threadid() * size)
        stream_fence()
        restore_denormals(mode)


cdef void pack_slice(const Geometry* g, const Tap* taps, const real* weight, Py_ssize_t first_block,
                     Py_ssize_t last_block, Py_ssize_t channel, Py_ssize_t channels, real* to) noexcept nogil:
    """Some channels of one block of the depth, for a span of row blocks; `to` is where the span's block begins."""
    cdef Py_ssize_t start = row_start(g, first_block), block, row, rows
    cdef Py_ssize_t opens = channel // g.depth_block * g.depth_block
    cdef Py_ssize_t within = smaller(g.depth_block, g.channels - opens)
    for block in range(first_block, last_block):
        row = row_start(g, block) - start
        rows = row_start(g, block + 1) - start - row
        pack_weights(g, taps, weight, block, channel, channels,
                     to + (row * within + (channel - opens) * rows) * g.taps)


cdef void pack_rows(const Geometry* g, const Tap* taps, const real* weight, Py_ssize_t first_block,
                    Py_ssize_t last_block, real* to, int threads) noexcept nogil:
    """Packs blocks first_block .. last_block - 1 of every group: [group][depth block][row block].

    The weights are read along their rows where these hold the depth, else channel by channel.
    """
    cdef Py_ssize_t rows = row_start(g, last_block) - row_start(g, first_block)
    cdef bint along = in_order(g, taps)
    cdef Py_ssize_t slices = ceil_div(g.channels, g.depth_block)
    cdef Py_ssize_t parts = last_block - first_block if along else ceil_div(g.depth_block, SLICE)
    cdef Py_ssize_t unit, group, channel, channels, part, opens
    cdef const real* source
    cdef real* target
    for unit in prange(g.groups * slices * parts, num_threads=threads):
        part = unit % parts
        opens = unit // parts % slices * g.depth_block
        group = unit // (parts * slices)
        channels = smaller(g.depth_block, g.channels - opens)
        source = weight + group * g.weight_group
        target = to + (group * g.channels + opens) * g.taps * rows
        if along:
            target = target + (row_start(g, first_block + part) - row_start(g, first_block)) * channels * g.taps
            pack_weights(g, taps, source, first_block + part, opens, channels, target)
        else:
            channel = opens + part * SLICE
            channels = smaller(SLICE, opens + channels - channel)
            if channels > 0:
                pack_slice(g, taps, source, first_block, last_block, channel, channels, target)


cdef Py_ssize_t blocks_within(const Geometry* g, Py_ssize_t limit) noexcept nogil:
    """How many blocks of rows fit, packed for every group, into `limit` bytes; at least one."""
    cdef Py_ssize_t block_size = g.groups * g.channels * g.taps * MR * <Py_ssize_t> sizeof(real)
    return larger(smaller(limit // larger(block_size, 1), row_blocks(g)), 1)


cdef Py_ssize_t packed_size(const Geometry* g, Py_ssize_t blocks) noexcept nogil:
    return aligned(g.groups * g.channels * g.taps * smaller(blocks * MR, g.rows) * <Py_ssize_t> sizeof(real))


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int source, bint prepared, int threads,
                    Py_ssize_t pack_limit):
    """Bytes that `conv` needs beside its operands."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef Partition p = cut(g, threads)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef Py_ssize_t size = tables_size(g, tap, &p) + thread_size(g, tap, &p) * threads + 64
    if source == PACKED and not prepared:
        size += packed_size(g, blocks_within(g, pack_limit))
    return size


def geometry_bytes():
    """(sizeof(Geometry), sizeof(Tap)), which the dtypes of fastconv.plan must match."""
    return sizeof(Geometry), sizeof(Tap)


def packed_elements(cnp.ndarray geometry):
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    return g.groups * g.channels * g.taps * g.rows


def pack(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray weight, cnp.ndarray to, int threads):
    """Weights -> `to`, in the order that `conv` reads with prepared=True."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef const real* source = <const real*> cnp.PyArray_DATA(weight)
    cdef real* target = <real*> cnp.PyArray_DATA(to)
    with nogil:
        pack_rows(g, tap, source, 0, row_blocks(g), target, threads)


def conv(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias,
         cnp.ndarray out, cnp.ndarray workspace, int source, bint prepared, int threads,
         Py_ssize_t pack_limit):
    """One pass of the equation above over `out`; the plan has checked every argument."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const real* weights = <const real*> cnp.PyArray_DATA(weight)
    cdef char* scratch = <char*> cnp.PyArray_DATA(workspace)
    cdef Py_ssize_t block = 0, blocks, step
    cdef Task task
    task.geometry = g
    task.taps = <const Tap*> cnp.PyArray_DATA(taps)
    task.input = <const real*> cnp.PyArray_DATA(input)
    task.weight = weights
    task.bias = NULL
    if bias is not None:
        task.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    task.out = <real*> cnp.PyArray_DATA(out) + g.out_offset
    task.source = <Source> source
    task.packed_block = 0
    task.packed_rows = g.rows
    scratch += -<Py_ssize_t> scratch & 63
    with nogil:
        blocks = row_blocks(g)
        step = blocks
        if task.source == PACKED and not prepared:
            step = blocks_within(g, pack_limit)
        while block < blocks:
            task.first_block = block
            task.last_block = smaller(block + step, blocks)
            if task.source == PACKED and not prepared:
                task.packed_block = block
                task.packed_rows = row_start(g, task.last_block) - row_start(g, block)
                task.weight = <const real*> scratch
                pack_rows(g, task.taps, weights, block, task.last_block, <real*> scratch, threads)
                run_all(&task, threads, scratch + packed_size(g, step))
            else:
                run_all(&task, threads, scratch)
            block += step
