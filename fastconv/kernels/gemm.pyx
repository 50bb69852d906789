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

from fastconv.kernels.gemm_band cimport Band, band_elements, fill_band, list_offsets, shape_band
from fastconv.kernels.gemm_micro cimport BLOCKS, COLUMNS, LINE, ROWS, Ahead, Tile, micro_kernel
from fastconv.kernels.gemm_pack cimport (
    Run, ceil_div, clear_tail, copy_row, drop_full, even_start, in_order, is_dense, larger, list_runs, pack_pixels,
    pack_weights, panel_width, plane_size, row_blocks, row_start, smaller,
)
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport MR, NR, VL, flush_denormals, is_vec_aligned, real, restore_denormals, stream_fence

# Where the micro-kernel finds the weights: rows of W in place, columns of W in place (a transposed
# 1x1 kernel), or blocks packed in this call, or before it by `pack`.
cdef enum Source:
    IN_PLACE_ROWS = 0
    IN_PLACE_COLUMNS = 1
    PACKED = 2


cdef struct Task:
    const Geometry* geometry
    const Tap* taps
    const real* input            # of the group, likewise below
    const real* next_input       # of the unit that comes next, probably
    const real* weight           # in place, or the first packed block
    const real* bias
    real* out
    Source source
    bint side_by_side            # outputs of one channel and image lie so
    bint dense                   # full panels are packed by the first tile that reads them
    Py_ssize_t height            # of the blocks of rows: `extra` of them have one row more
    Py_ssize_t extra
    Py_ssize_t first_pixel
    Py_ssize_t pixels
    Py_ssize_t first_block       # of rows
    Py_ssize_t last_block
    Py_ssize_t packed_block      # the block of rows where packed weights begin, and their number of rows
    Py_ssize_t packed_rows
    real* panels
    real* sums                   # between depth blocks: [rows of the task][sums_row = panels * NR]
    Py_ssize_t sums_row
    Run* runs
    const Py_ssize_t* offsets    # of the rows of a banded panel, or NULL


# Up to NR columns of one block of the depth, and where their results go.
cdef struct Panel:
    Py_ssize_t pixel             # its first
    Py_ssize_t columns
    real* b
    const real* image            # its pixels in the input, where the first tile packs them
    real* stretch                # its pixels in the output, where they lie side by side
    Py_ssize_t sums              # its first column in the waiting sums


cdef enum:
    FEW_PIXELS = 4 * NR  # in a tile: then the weights are the larger stream
    SLICE = 8  # channels that a thread packs at a time


# How the work is cut: `segments` stretches of pixels, each in `tiles` tiles, times `spans` of rows.
cdef struct Partition:
    Py_ssize_t segments
    Py_ssize_t segment_pixels
    Py_ssize_t tiles
    Py_ssize_t tile_pixels
    Py_ssize_t spans


cdef Py_ssize_t depth_of(const Geometry* g) noexcept nogil:
    return smaller(g.depth_block, g.channels) * g.taps


cdef Partition cut(const Geometry* g, Py_ssize_t threads) noexcept nogil:
    """The cut with the least work on the busiest thread, counting 3 rows for the packing of a panel.

    Tiles are whole vectors, or whole rows of outputs where these are read from bands. An image is a
    segment of its own unless its last vector would be mostly empty; then the batch is one.
    """
    cdef Partition best, trial
    cdef Py_ssize_t plane = plane_size(g), vectors, tiles, spans, units, cost, best_cost = -1
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
    return trial


cdef Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef Py_ssize_t panel_count(const Geometry* g, Py_ssize_t pixels) noexcept nogil:
    """Panels of a tile: of its pixels, or of each of its rows."""
    if g.bands:
        return pixels // g.out_size[2] * ceil_div(g.out_size[2], NR)
    return ceil_div(pixels, NR)


cdef Py_ssize_t panels_size(const Geometry* g, const Tap* taps, const Partition* p) noexcept nogil:
    cdef Band band
    if g.bands:
        band = shape_band(g, taps, p.tile_pixels // g.out_size[2])
        return (aligned(band_elements(g, &band) * <Py_ssize_t> sizeof(real))
                + aligned(depth_of(g) * <Py_ssize_t> sizeof(Py_ssize_t)))
    return aligned(panel_count(g, p.tile_pixels) * NR * depth_of(g) * <Py_ssize_t> sizeof(real))


cdef Py_ssize_t sums_size(const Geometry* g, const Partition* p) noexcept nogil:
    if depth_of(g) == g.channels * g.taps:
        return 0
    return aligned(ceil_div(row_blocks(g), p.spans) * MR * panel_count(g, p.tile_pixels) * NR
                   * <Py_ssize_t> sizeof(real))


cdef Py_ssize_t runs_size(const Partition* p) noexcept nogil:
    return aligned((p.tile_pixels + ceil_div(p.tile_pixels, NR)) * <Py_ssize_t> sizeof(Run))


cdef Py_ssize_t thread_size(const Geometry* g, const Tap* taps, const Partition* p) noexcept nogil:
    return panels_size(g, taps, p) + sums_size(g, p) + runs_size(p)


cdef void store_scattered(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t pixel,
                          Py_ssize_t columns, const real* values) noexcept nogil:
    """One tile of the result to an output whose pixels do not lie side by side."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t i, rest, offset
    cdef Py_ssize_t column = 0, length, j, step = g.out_axis[2]
    cdef real* to
    while column < columns:
        rest = (pixel + column) % plane_size(g)
        offset = (pixel + column) // plane_size(g) * g.out_image + rest % g.out_size[2] * step
        length = smaller(g.out_size[2] - rest % g.out_size[2], columns - column)
        rest = rest // g.out_size[2]
        offset += rest % g.out_size[1] * g.out_axis[1] + rest // g.out_size[1] * g.out_axis[0]
        for i in range(rows):
            to = task.out + offset + (row + i) * g.out_row
            if step == 1:
                copy_row(to, values + i * NR + column, length)
            else:
                for j in range(length):
                    to[j * step] = values[i * NR + column + j]
        column += length


cdef bint planes_are_dense(const Geometry* g) noexcept nogil:
    """Do the outputs of one channel and image lie side by side?"""
    return (g.out_axis[2] == 1
            and (g.out_size[1] == 1 or g.out_axis[1] == g.out_size[2])
            and (g.out_size[0] == 1 or g.out_axis[0] == g.out_size[1] * g.out_size[2]))


cdef void compute_tiles(Source source, int rows, int vectors, Tile* tile) noexcept nogil:
    if source == PACKED:
        micro_kernel(BLOCKS, rows, vectors, tile)
    elif source == IN_PLACE_ROWS:
        micro_kernel(ROWS, rows, vectors, tile)
    else:
        micro_kernel(COLUMNS, rows, vectors, tile)


cdef Py_ssize_t start_of(const Task* task, Py_ssize_t block) noexcept nogil:
    return even_start(task.height, task.extra, block)


cdef void aim_weights(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t channel,
                      Py_ssize_t channels, Tile* tile) noexcept nogil:
    """Points the tile at the weights of one block of rows and one block of the depth."""
    cdef const Geometry* g = task.geometry
    tile.depth = channels * g.taps
    if task.source == PACKED:
        tile.a_block = rows * tile.depth
        tile.a = task.weight + (channel * g.taps * task.packed_rows
                                + (row - start_of(task, task.packed_block)) * tile.depth)
    else:
        tile.a_row = g.weight_row
        tile.a_step = g.weight_channel
        tile.a_block = rows * g.weight_row
        tile.a = task.weight + row * g.weight_row + channel * g.weight_channel


cdef void look_ahead(const Task* task, Py_ssize_t channel, Ahead* ahead) noexcept nogil:
    """Aims at the image of the block of the depth at `channel`, or at that of the next unit if it was the last."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t plane = plane_size(g)
    cdef const real* start = task.next_input
    ahead.step = ahead.total = ahead.left = ahead.jump = 0
    ahead.line = task.panels
    if not task.dense:
        return
    if channel < g.channels:
        start = (task.input + task.first_pixel // plane * g.in_image + task.first_pixel % plane
                 + channel * g.in_channel)
    if start == NULL:
        return
    ahead.line = start
    ahead.step = LINE
    ahead.lines = ceil_div(task.pixels, LINE)
    ahead.left = ahead.lines
    ahead.jump = g.in_channel - ahead.lines * LINE
    ahead.total = ahead.lines * smaller(g.depth_block, g.channels)


cdef void look_at_weights(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t channel,
                          Py_ssize_t channels, Ahead* ahead) noexcept nogil:
    """Aims at the weights in place of the block of rows that comes next: few pixels, much to read."""
    cdef const Geometry* g = task.geometry
    if row >= g.rows:
        return
    ahead.line = task.weight + row * g.weight_row + channel * g.weight_channel
    ahead.step = LINE
    if task.source == IN_PLACE_ROWS:
        ahead.lines = ceil_div(channels * g.taps, LINE)
        ahead.jump = g.weight_row - ahead.lines * LINE
        ahead.total = ahead.lines * rows
    else:
        ahead.lines = 1
        ahead.jump = g.weight_channel - LINE
        ahead.total = channels
    ahead.left = ahead.lines


cdef void aim_output(const Task* task, const Panel* panel, Py_ssize_t row, bint closes, real* values,
                     Tile* tile) noexcept nogil:
    """Where a tile's sums go: to the output, to `values` on their way there, or to wait for more depth."""
    cdef const Geometry* g = task.geometry
    if not closes:
        tile.out = task.sums + (row - start_of(task, task.first_block)) * tile.start_row + panel.sums
        tile.out_row = tile.start_row
    elif panel.stretch != NULL:
        tile.out = panel.stretch + row * g.out_row
        tile.out_row = g.out_row
    else:
        tile.out = values
        tile.out_row = NR
    tile.stream = (closes and panel.stretch != NULL and g.stream and g.out_row % VL == 0
                   and is_vec_aligned(tile.out))


cdef void run_panel(const Task* task, const Panel* panel, Py_ssize_t first_block, Py_ssize_t last_block,
                    Py_ssize_t channel, Py_ssize_t channels, Ahead* ahead) noexcept nogil:
    """One panel of pixels against blocks of rows, for one block of the depth.

    Blocks of the same height go to the micro-kernel together, unless each has something of its own to do.
    """
    cdef const Geometry* g = task.geometry
    cdef real[MR * NR] values
    cdef Tile tile
    cdef Py_ssize_t block = first_block, blocks, row, rows
    cdef Py_ssize_t width = panel_width(panel.columns)
    cdef bint opens = channel == 0, closes = channel + channels == g.channels
    cdef bint scattered = closes and panel.stretch == NULL
    cdef bint looks_at_weights = task.source != PACKED and task.pixels <= FEW_PIXELS and panel.sums == 0

    tile.b = panel.b
    tile.offsets = task.offsets
    tile.image = panel.image if first_block == task.first_block else NULL
    tile.image_row = g.in_channel
    tile.ahead = ahead
    tile.start_row = task.sums_row
    tile.relu = closes and g.relu
    tile.columns = panel.columns if closes and panel.stretch != NULL else width
    while block < last_block:
        row = start_of(task, block)
        rows = task.height + (block < task.extra)
        blocks = 1
        if tile.image == NULL and not scattered and not looks_at_weights:
            blocks = (smaller(task.extra, last_block) if block < task.extra else last_block) - block
        tile.blocks = blocks
        aim_weights(task, row, rows, channel, channels, &tile)
        aim_output(task, panel, row, closes, values, &tile)
        tile.start = NULL
        if not opens:
            tile.start = task.sums + (row - start_of(task, task.first_block)) * tile.start_row + panel.sums
        tile.bias = NULL
        if task.bias != NULL:
            tile.bias = task.bias + row
        if looks_at_weights:
            look_at_weights(task, row + rows, rows, channel, channels, ahead)
        compute_tiles(task.source, <int> rows, 2 if width == NR else 1, &tile)
        tile.image = NULL
        if scattered:
            store_scattered(task, row, rows, panel.pixel, panel.columns, values)
        block += blocks


cdef Panel panel_at(const Task* task, Py_ssize_t number, Py_ssize_t channel) noexcept nogil:
    """Panel of a tile of pixels: in one stretch of the output where one image holds all its pixels."""
    cdef const Geometry* g = task.geometry
    cdef Panel p
    cdef Py_ssize_t column = number * NR
    p.pixel = task.first_pixel + column
    cdef Py_ssize_t image = p.pixel // plane_size(g), place = p.pixel % plane_size(g)
    cdef bint within
    p.columns = smaller(NR, task.pixels - column)
    within = place + p.columns <= plane_size(g)
    p.sums = column
    p.b = task.panels + column * depth_of(g)
    p.image = NULL
    p.stretch = NULL
    if task.dense and within and p.columns == NR:
        p.image = task.input + image * g.in_image + place + channel * g.in_channel
    if task.side_by_side and within:
        p.stretch = task.out + image * g.out_image + place
    return p


cdef Panel band_panel_at(const Task* task, const Band* band, Py_ssize_t number) noexcept nogil:
    """Panel of a row of outputs, read from the band."""
    cdef const Geometry* g = task.geometry
    cdef Panel p
    cdef Py_ssize_t across = ceil_div(g.out_size[2], NR)
    cdef Py_ssize_t row = number // across, column = number % across * NR
    p.pixel = task.first_pixel + row * g.out_size[2] + column
    p.columns = smaller(NR, g.out_size[2] - column)
    p.sums = number * NR
    p.b = task.panels + row * g.step[1] * band.phases * band.length + column
    p.image = NULL
    p.stretch = NULL
    if task.side_by_side:
        p.stretch = task.out + p.pixel // plane_size(g) * g.out_image + p.pixel % plane_size(g)
    return p


cdef void run_blocks(const Task* task, const Band* band, Py_ssize_t channel, Py_ssize_t channels,
                     Ahead* ahead) noexcept nogil:
    """All rows and panels of a task, for one block of the depth that is packed."""
    cdef Py_ssize_t per_block = larger(task.geometry.row_block // MR, 1), block = task.first_block, number
    cdef Panel panel
    while block < task.last_block:
        for number in range(panel_count(task.geometry, task.pixels)):
            panel = panel_at(task, number, channel) if band == NULL else band_panel_at(task, band, number)
            run_panel(task, &panel, block, smaller(block + per_block, task.last_block), channel, channels, ahead)
        block += per_block


cdef void run_task(Task* task) noexcept nogil:
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t channel = 0, channels, runs
    cdef Ahead ahead
    task.offsets = NULL
    runs = list_runs(g, task.input, task.first_pixel, task.first_pixel + task.pixels, task.panels,
                     depth_of(g), task.runs)
    if task.dense:
        runs = drop_full(task.runs, runs)
    while channel < g.channels:
        channels = smaller(g.depth_block, g.channels - channel)
        pack_pixels(g, task.taps, channel, channels, task.runs, runs)
        clear_tail(task.pixels, task.panels, depth_of(g), channels * g.taps)
        look_ahead(task, channel + channels, &ahead)
        run_blocks(task, NULL, channel, channels, &ahead)
        channel += channels


cdef void run_banded_task(Task* task, Py_ssize_t tile_rows) noexcept nogil:
    """The same from bands; a full tile has `tile_rows` rows of outputs."""
    cdef const Geometry* g = task.geometry
    cdef Band band = shape_band(g, task.taps, tile_rows)
    cdef Py_ssize_t* offsets = <Py_ssize_t*> (<char*> task.panels
                                              + aligned(band_elements(g, &band) * <Py_ssize_t> sizeof(real)))
    cdef Py_ssize_t channel = 0, channels
    cdef Py_ssize_t row = task.first_pixel % plane_size(g) // g.out_size[2]
    cdef const real* image = task.input + task.first_pixel // plane_size(g) * g.in_image
    cdef Ahead ahead
    list_offsets(g, task.taps, &band, offsets)
    task.offsets = offsets
    while channel < g.channels:
        channels = smaller(g.depth_block, g.channels - channel)
        fill_band(g, &band, image + channel * g.in_channel, row, tile_rows - task.pixels // g.out_size[2],
                  channels, task.panels)
        look_ahead(task, g.channels, &ahead)
        run_blocks(task, &band, channel, channels, &ahead)
        channel += channels


cdef const real* input_of(const Task* base, const Partition* p, Py_ssize_t unit) noexcept nogil:
    """Where a unit's image begins, or NULL beyond the last unit."""
    cdef const Geometry* g = base.geometry
    cdef Py_ssize_t tile = unit // p.spans % p.tiles, segment = unit // (p.spans * p.tiles) % p.segments
    cdef Py_ssize_t group = unit // (p.spans * p.tiles * p.segments)
    cdef Py_ssize_t pixel = segment * p.segment_pixels + tile * p.tile_pixels
    if group >= g.groups:
        return NULL
    return (base.input + group * g.in_group + pixel // plane_size(g) * g.in_image + pixel % plane_size(g))


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
    task.last_block = base.first_block + (span + 1) * blocks // p.spans
    task.first_block += span * blocks // p.spans
    task.panels = <real*> scratch
    task.sums = <real*> (scratch + panels_size(g, task.taps, p))
    task.sums_row = panel_count(g, task.pixels) * NR
    task.runs = <Run*> (scratch + panels_size(g, task.taps, p) + sums_size(g, p))
    if task.first_block >= task.last_block:
        return
    if g.bands:
        run_banded_task(&task, p.tile_pixels // g.out_size[2])
    else:
        run_task(&task)


cdef void run_all(const Task* base, int threads, char* scratch) noexcept nogil:
    cdef Partition p = cut(base.geometry, threads)
    cdef Py_ssize_t units = base.geometry.groups * p.segments * p.tiles * p.spans
    cdef Py_ssize_t size = thread_size(base.geometry, base.taps, &p), unit
    cdef unsigned int mode = 0
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
    cdef Py_ssize_t size = thread_size(g, <const Tap*> cnp.PyArray_DATA(taps), &p) * threads + 64
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
