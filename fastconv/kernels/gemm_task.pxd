"""A task of the matrix product: a tile of pixels times a span of rows, over the whole depth.

Pixels are packed for one block of the depth at a time; panels of NR of them then meet blocks of rows in
the micro-kernel, and what it returns goes to the output, or waits for the next block of the depth.
"""

from fastconv.kernels.gemm_band cimport IN_HALVES, Band, fill_band, lanes_of_slot, live_taps
from fastconv.kernels.gemm_cut cimport columns_of, depth_of
from fastconv.kernels.gemm_micro cimport (
    LINE, WIDEST, Ahead, Slot, Tile, follow_slots, line_up, most_vectors, stack,
    widest,
)
from fastconv.kernels.gemm_pack cimport (
    PAGE, STREAMS, Run, ceil_div, clear_tail, copy_row, drop_full, even_start, larger, list_runs, pack_pixels,
    panel_width, plane_size, smaller, spread_row,
)
from fastconv.kernels.gemm_patch cimport in_patches, spread_rows
from fastconv.kernels.gemm_sweep cimport LEAST, LOW, fills_tiles
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport MR, NR, NV, REGISTERS, VL, is_vec_aligned, real

cdef enum:
    FEW_PIXELS = 4 * NR  # in a tile: then the weights are the larger stream
    WRITTEN_ROWS = 32  # as many as there are streams that a prefetcher follows


# Where the micro-kernel finds the weights: rows of W in place, columns of W in place (a transposed
# 1x1 kernel), or blocks packed in this call, or before it by `pack`.
cdef enum Source:
    IN_PLACE_ROWS = 0
    IN_PLACE_COLUMNS = 1
    PACKED = 2


cdef struct Task
ctypedef void (*Sweeper)(const Task*) noexcept nogil
ctypedef void (*Multiply)(int, int, Tile*) noexcept nogil


cdef struct Task:
    const Geometry* geometry
    const Tap* taps
    const real* input            # of the group, likewise below
    const real* next_input       # of the unit that comes next, probably
    const real* weight           # in place, or the first packed block
    const real* bias
    real* out
    Source source
    bint streams                 # large outputs go past the caches, and each of their rows begins on a line
    bint side_by_side            # outputs of one channel and image lie so
    bint skips                   # taps that meet nothing but the padding: their weights are finite
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
    real* sums                   # between depth blocks: [rows of the task][sums_row]
    Py_ssize_t sums_row
    Run* runs
    const Band* band             # where it is read from bands, or NULL: ...
    const Py_ssize_t* offsets    # ... the rows of a panel, ...
    const Slot* slots            # ... and the vectors of the tile
    Py_ssize_t gathered          # elements of a row of pixels that are packed for a sweep, or 0
    Multiply multiply            # the micro-kernel for these weights; by address, as gemm.pyx says
    Multiply multiply_banded     # ... where tiles have slots
    Sweeper sweep                # all rows along its pixels, where the depth is short
    bint swept                   # blocks of rows run along all pixels: tile beside tile, not one below the other


# Some columns of one block of the depth, and where their results go.
cdef struct Panel:
    int vectors
    Py_ssize_t pixel             # its first
    Py_ssize_t columns
    const Slot* slots            # banded only, as the taps that are live, from first_tap to last_tap - 1
    Py_ssize_t first_tap
    Py_ssize_t last_tap
    real* b
    const real* image            # its pixels in the input, where the first tile packs them
    real* stretch                # its pixels in the output, where they lie side by side
    Py_ssize_t sums              # its first column in the waiting sums
    Py_ssize_t across            # tiles side by side that the micro-kernel runs along, or 0


cdef inline void copy_apart(real* to, Py_ssize_t step, const real* values, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    if step == 1:
        copy_row(to, values, count)
    elif step == 2:
        spread_row(to, values, count)
    else:
        for j in range(count):
            to[j * step] = values[j]


cdef inline Py_ssize_t tile_offset(const Geometry* g, Py_ssize_t pixel) noexcept nogil:
    """Where the outputs of a banded tile begin, whose first pixel begins a row."""
    return (pixel // plane_size(g) * g.out_image
            + pixel % plane_size(g) // g.out_size[2] * g.out_axis[1])


cdef inline void store_scattered(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t pixel,
                                 Py_ssize_t columns, const real* values, Py_ssize_t stride) noexcept nogil:
    """One tile of the result to an output whose pixels do not lie side by side."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t i, rest, offset
    cdef Py_ssize_t column = 0, length, step = g.out_axis[2]
    while column < columns:
        rest = (pixel + column) % plane_size(g)
        offset = (pixel + column) // plane_size(g) * g.out_image + rest % g.out_size[2] * step
        length = smaller(g.out_size[2] - rest % g.out_size[2], columns - column)
        rest = rest // g.out_size[2]
        offset += rest % g.out_size[1] * g.out_axis[1] + rest // g.out_size[1] * g.out_axis[0]
        for i in range(rows):
            copy_apart(task.out + offset + (row + i) * g.out_row, step, values + i * stride + column, length)
        column += length


cdef inline Py_ssize_t start_of(const Task* task, Py_ssize_t block) noexcept nogil:
    return even_start(task.height, task.extra, block)


cdef inline void aim_weights(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t channel,
                             Py_ssize_t channels, Tile* tile) noexcept nogil:
    """Points the tile at the weights of one block of rows and one block of the depth."""
    cdef const Geometry* g = task.geometry
    tile.depth = channels * g.taps
    if task.source == PACKED:
        tile.a_next = rows * tile.depth
        tile.a = task.weight + (channel * g.taps * task.packed_rows
                                + (row - start_of(task, task.packed_block)) * tile.depth)
    else:
        tile.a_row = g.weight_row
        tile.a_step = g.weight_channel
        tile.a_next = rows * g.weight_row
        tile.a = task.weight + row * g.weight_row + channel * g.weight_channel


cdef inline void skip_taps(const Geometry* g, const Panel* panel, Py_ssize_t rows, Py_ssize_t channels,
                           Tile* tile) noexcept nogil:
    """Leaves out, of each channel, the taps that meet nothing but the padding."""
    cdef Py_ssize_t live = panel.last_tap - panel.first_tap
    if live == g.taps:
        return
    tile.runs = channels
    tile.depth = live
    tile.skip = g.taps - live
    tile.a += panel.first_tap * rows
    tile.offsets += panel.first_tap


cdef inline void look_ahead(const Task* task, Py_ssize_t channel, Ahead* ahead) noexcept nogil:
    """Aims at the image of the block of the depth at `channel`, or at that of the next unit if it was the last."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t plane = plane_size(g)
    cdef const real* start = task.next_input
    ahead.step = ahead.total = ahead.left = ahead.jump = 0
    ahead.line = task.panels
    cdef Py_ssize_t length = task.pixels
    if not task.dense:
        if g.in_size[0] > 1 or g.in_axis[1] != g.in_size[2]:
            return
        length = ceil_div(task.pixels, g.out_size[2]) * g.step[1] * g.in_axis[1]
        if channel < g.channels:
            return
    if channel < g.channels:
        start = (task.input + task.first_pixel // plane * g.in_image + task.first_pixel % plane
                 + channel * g.in_channel)
    if start == NULL:
        return
    ahead.line = start
    ahead.step = LINE
    ahead.lines = ceil_div(length, LINE)
    ahead.left = ahead.lines
    ahead.jump = g.in_channel - ahead.lines * LINE
    ahead.total = ahead.lines * smaller(g.depth_block, g.channels)


cdef inline void look_at_weights(const Task* task, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t channel,
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


cdef inline void aim_output(const Task* task, const Panel* panel, Py_ssize_t row, bint closes, real* values,
                            Tile* tile) noexcept nogil:
    """Where a tile's sums go: to the output, to `values` on their way there, or to wait for more depth."""
    cdef const Geometry* g = task.geometry
    if not closes:
        tile.out = task.sums + (row - start_of(task, task.first_block)) * tile.start_row + panel.sums
        tile.out_row = tile.start_row
    elif panel.stretch == NULL:
        tile.out = values
        tile.out_row = panel.vectors * VL
    else:
        tile.out = panel.stretch + row * g.out_row
        tile.out_row = g.out_row
    tile.stream = closes and tile.out != values and task.streams and is_vec_aligned(tile.out)


cdef inline void scatter(const Task* task, const Panel* panel, Py_ssize_t row, Py_ssize_t rows,
                         const real* values) noexcept nogil:
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t stride = panel.vectors * VL, lanes = lanes_of_slot(g), i, j
    cdef real* to
    if panel.slots == NULL:
        store_scattered(task, row, rows, panel.pixel, panel.columns, values, stride)
        return
    to = task.out + tile_offset(g, panel.pixel) + row * g.out_row
    for j in range(stride // lanes):
        for i in range(rows):
            copy_apart(to + i * g.out_row + panel.slots[j].to, g.out_axis[2], values + i * stride + j * lanes,
                       panel.slots[j].columns)


cdef inline void run_panel(const Task* task, const Panel* panel, Py_ssize_t first_block, Py_ssize_t last_block,
                           Py_ssize_t channel, Py_ssize_t channels, Ahead* ahead) noexcept nogil:
    """One panel of pixels against blocks of rows, for one block of the depth.

    Blocks of the same height go to the micro-kernel together, unless each has something of its own to do.
    """
    cdef const Geometry* g = task.geometry
    cdef real[REGISTERS * VL] values
    cdef Tile tile
    cdef Py_ssize_t block = first_block, blocks, row, rows
    cdef bint opens = channel == 0, closes = channel + channels == g.channels and not in_patches(g)
    cdef bint scattered = closes and panel.stretch == NULL
    cdef bint looks_at_weights = task.source != PACKED and task.pixels <= FEW_PIXELS and panel.sums == 0

    tile.b = panel.b
    tile.image = panel.image if first_block == task.first_block else NULL
    tile.image_row = g.in_channel
    tile.ahead = ahead
    tile.start_row = task.sums_row
    tile.relu = closes and g.relu
    tile.slots = panel.slots
    tile.halves = g.bands == IN_HALVES
    tile.apart = closes and not scattered
    tile.columns = panel.columns if closes and not scattered else panel.vectors * VL
    while block < last_block:
        tile.runs = 1
        tile.skip = 0
        tile.offsets = task.offsets
        row = start_of(task, block)
        rows = task.height + (block < task.extra)
        blocks = 1
        if tile.image == NULL and not scattered and not looks_at_weights:
            blocks = (smaller(task.extra, last_block) if block < task.extra else last_block) - block
        tile.tiles = blocks
        aim_weights(task, row, rows, channel, channels, &tile)
        if task.skips:
            skip_taps(g, panel, rows, channels, &tile)
        aim_output(task, panel, row, closes, values, &tile)
        tile.start = NULL
        if not opens:
            tile.start = task.sums + (row - start_of(task, task.first_block)) * tile.start_row + panel.sums
        tile.bias = NULL
        if task.bias != NULL:
            tile.bias = task.bias + row
        stack(rows, &tile)
        if panel.across > 0:
            tile.tiles = panel.across
            if g.bands:
                follow_slots(panel.vectors, &tile)
            else:
                line_up(panel.columns, &tile)
        if looks_at_weights:
            look_at_weights(task, row + rows, rows, channel, channels, ahead)
        if panel.slots != NULL:
            task.multiply_banded(<int> rows, panel.vectors, &tile)
        else:
            task.multiply(<int> rows, panel.vectors, &tile)
        tile.image = NULL
        if scattered:
            scatter(task, panel, row, rows, values)
        block += blocks


cdef inline Panel panel_at(const Task* task, Py_ssize_t number, Py_ssize_t channel) noexcept nogil:
    """Panel of a tile of pixels: in one stretch of the output where one image holds all its pixels."""
    cdef const Geometry* g = task.geometry
    cdef Panel p
    cdef Py_ssize_t column = number * NR
    p.pixel = task.first_pixel + column
    cdef Py_ssize_t image = p.pixel // plane_size(g), place = p.pixel % plane_size(g)
    cdef bint within
    p.columns = smaller(NR, task.pixels - column)
    p.vectors = <int> (panel_width(p.columns) // VL)
    within = place + p.columns <= plane_size(g)
    p.sums = column
    p.b = task.panels + column * depth_of(g)
    p.slots = NULL
    p.image = NULL
    p.stretch = NULL
    p.across = 0
    if task.dense and within and p.columns == NR:
        p.image = task.input + image * g.in_image + place + channel * g.in_channel
    if task.side_by_side and within:
        p.stretch = task.out + image * g.out_image + place
    return p


cdef inline Panel swept_panel_at(const Task* task, Py_ssize_t column, int vectors) noexcept nogil:
    """All whole tiles from a column on, side by side; a last one begins early and computes some sums again."""
    cdef const Geometry* g = task.geometry
    cdef Panel p
    cdef Py_ssize_t image = task.first_pixel // plane_size(g), place
    p.vectors = vectors
    p.columns = vectors * VL
    p.across = (task.pixels - column) // p.columns
    if p.across == 0:
        p.across = 1
        column = task.pixels - p.columns
    p.pixel = task.first_pixel + column
    p.sums = column
    place = p.pixel - image * plane_size(g)
    p.b = <real*> task.input + image * g.in_image + place
    p.stretch = task.out + image * g.out_image + place
    p.image = NULL
    p.slots = task.slots
    return p


cdef inline Py_ssize_t last_row(const Slot* slots, Py_ssize_t count) noexcept nogil:
    while slots[count - 1].columns == 0:
        count -= 1
    return slots[count - 1].row


cdef inline Panel band_panel_at(const Task* task, Py_ssize_t first, Py_ssize_t left, int most) noexcept nogil:
    """Panel of at most `most` of the `left` vectors of a tile from number `first` on."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t row, slot = first * VL // lanes_of_slot(g)
    cdef Py_ssize_t slots = smaller(most, left) * VL // lanes_of_slot(g)
    cdef Panel p
    p.vectors = most if left > NV or g.bands == IN_HALVES else <int> left
    p.pixel = task.first_pixel
    p.columns = p.vectors * VL
    p.slots = task.slots + slot
    p.sums = first * VL
    p.b = task.panels
    p.image = NULL
    p.stretch = NULL
    p.across = 0
    if g.out_axis[2] == 1:
        p.stretch = task.out + tile_offset(g, p.pixel)
    if task.skips:
        row = task.first_pixel % plane_size(g) // g.out_size[2]
        live_taps(g, task.taps, row + p.slots[0].row, row + last_row(p.slots, slots),
                  &p.first_tap, &p.last_tap)
    return p


cdef inline int vectors_of(const Task* task) noexcept nogil:
    """Of a banded panel that all blocks of rows meet: the micro-kernel has tiles of NV for each height.

    In halves it has not: there lower blocks may compute the vector that follows, too.
    """
    cdef bint halves = task.geometry.bands == IN_HALVES
    cdef int most = most_vectors(<int> (task.height + (task.extra > 0)), halves)
    return most if most == most_vectors(<int> task.height, halves) or most < NV else NV


cdef inline bint is_short(const Task* task) noexcept nogil:
    """Can gemm_sweep.pxd have it? All blocks of rows are low, and lines whole."""
    cdef const Geometry* g = task.geometry
    return ((task.swept or task.gathered > 0) and g.stream != STREAMS and g.bands != IN_HALVES and LEAST <= task.height
            and task.height + (task.extra > 0) <= LOW
            and fills_tiles(g.out_size[2] if g.bands else task.pixels))


cdef inline void gather_in_rows(const Task* task, Py_ssize_t count) noexcept nogil:
    """Runs that were listed for panels, side by side in rows as long as the tile."""
    cdef Py_ssize_t r
    cdef real* to = task.panels
    for r in range(count):
        task.runs[r].to = to
        task.runs[r].width = task.gathered
        to += task.runs[r].length


cdef inline Py_ssize_t blocks_at_a_time(const Task* task) noexcept nogil:
    """Of rows, that meet a panel before the next one comes.

    Lines that are written in parts are read first, and where each row has pages of its own a prefetcher follows few
    of them: 64 -> 256 at 75x75 takes 1.6 ms so, 2.9 with all rows at a time.
    """
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t blocks = larger(g.row_block // MR, 1)
    if task.swept:
        return 1
    if g.stream and not task.streams and g.out_row * <Py_ssize_t> sizeof(real) >= PAGE:
        return smaller(blocks, larger(WRITTEN_ROWS // MR, 1))
    return blocks


cdef inline void run_blocks(const Task* task, Py_ssize_t channel, Py_ssize_t channels,
                            Ahead* ahead) noexcept nogil:
    """All rows and panels of a task, for one block of the depth that is packed."""
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t per_block = blocks_at_a_time(task), block = task.first_block
    cdef Py_ssize_t vectors = ceil_div(columns_of(g, task.pixels), VL), vector
    cdef int most = vectors_of(task)
    cdef Panel panel
    while block < task.last_block:
        vector = 0
        while vector < vectors:
            if g.bands and task.swept:
                most = most_vectors(<int> (task.height + (block < task.extra)), g.bands == IN_HALVES)
                panel = band_panel_at(task, 0, most, most)
                panel.across = ceil_div(vectors, most)
            elif g.bands:
                panel = band_panel_at(task, vector, vectors - vector, most)
            elif task.swept:
                panel = swept_panel_at(task, vector * VL, widest(<int> (task.height + (block < task.extra))))
            else:
                panel = panel_at(task, vector // NV, channel)
            run_panel(task, &panel, block, smaller(block + per_block, task.last_block), channel, channels, ahead)
            vector += panel.vectors * larger(panel.across, 1) if panel.slots != NULL else NV
        block += per_block


cdef inline bint can_sweep(const Task* task) noexcept nogil:
    """Do its pixels belong to one image, fill a tile, and lie side by side in the output, too?"""
    cdef Py_ssize_t plane = plane_size(task.geometry), pixel = task.first_pixel % plane
    return task.side_by_side and task.pixels >= WIDEST * VL and pixel + task.pixels <= plane


cdef inline void run_task(Task* task, Py_ssize_t tile_rows) noexcept nogil:
    """All blocks of the depth, one after the other: its pixels are packed, then multiplied.

    Where pixels are read from bands, a full tile has `tile_rows` rows of outputs.
    """
    cdef const Geometry* g = task.geometry
    cdef Py_ssize_t channel = 0, channels, runs = 0
    cdef Py_ssize_t row = task.first_pixel % plane_size(g) // g.out_size[2]
    cdef const real* image = task.input + task.first_pixel // plane_size(g) * g.in_image
    cdef Ahead ahead
    cdef bint sweeps
    task.swept = task.swept and (g.out_axis[2] == 1 if g.bands else can_sweep(task))
    if not can_sweep(task):
        task.gathered = 0
    sweeps = is_short(task)
    if not g.bands and not task.swept:
        runs = list_runs(g, task.input, task.first_pixel, task.first_pixel + task.pixels, task.panels,
                         depth_of(g), task.runs)
        if task.dense:
            runs = drop_full(task.runs, runs)
        if sweeps and task.gathered > 0:
            gather_in_rows(task, runs)
    while channel < g.channels:
        channels = smaller(g.depth_block, g.channels - channel)
        if g.bands:
            fill_band(g, task.band, image + channel * g.in_channel, row, tile_rows - task.pixels // g.out_size[2],
                      channels, task.panels)
        elif not task.swept:
            pack_pixels(g, task.taps, channel, channels, task.runs, runs)
            if not sweeps:
                clear_tail(task.pixels, task.panels, depth_of(g), channels * g.taps)
        if sweeps:
            task.sweep(task)
            return
        look_ahead(task, channel + channels, &ahead)
        run_blocks(task, channel, channels, &ahead)
        channel += channels
    if in_patches(g):
        row = start_of(task, task.first_block)
        spread_rows(g, task.sums, task.sums_row, row, start_of(task, task.last_block), task.first_pixel, task.pixels,
                    task.out)
