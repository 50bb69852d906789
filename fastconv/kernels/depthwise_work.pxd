"""How depthwise passes are cut: the strip that serves them all, and the tables that every thread reads."""

from fastconv.kernels.depthwise_lanes cimport takes_whole, widest_block
from fastconv.kernels.depthwise_line cimport WIDE, rows_of_plane, takes_planes
from fastconv.kernels.depthwise_strip cimport Strip, aligned, column_at, met_by, rows_of_strip, shape_lines, share
from fastconv.kernels.depthwise_taps cimport Grid, grid_of
from fastconv.kernels.depthwise_tile cimport TALL, most_rows
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport VL, real

cdef enum:
    WIDEST = 512  # outputs of a line
    AHEAD = 2048  # elements from what is read to what is fetched
    FAR_BYTES = 1 << 20  # outputs of whole vectors of channels from here on are fetched before they are written
    STAGE_BYTES = 12 << 20  # outputs from here on are written row by row
    PAST_BYTES = 24 << 20  # those of two phases of rows and of columns, which take turns, are written past the caches


cdef struct Work:
    Grid* grids                  # [row_phases][column_phases]
    Py_ssize_t row_phases
    Py_ssize_t column_phases
    Py_ssize_t channels
    Py_ssize_t weights           # taps of all grids, times channels
    Py_ssize_t* weight_from
    bint pixels                  # channels lie last, in the input and in the output
    bint planes                  # are read where they lie (depthwise_plane.pxd)
    Py_ssize_t plane_rows        # of outputs, of a unit then
    Py_ssize_t plane_units       # of a plane
    Py_ssize_t pair              # channels of a unit
    bint plane_staged            # a unit's outputs go through the cache to an output beyond it
    bint in_order                # filters lie row by row of taps
    bint in_place                # and are read there (depthwise_pixels.pxd)
    Grid single                  # that pass, then
    real* spread                 # weights of whole vectors of channels: [lane][row of the group][weights]
    Py_ssize_t spread_size
    bint inside                  # of whole vectors: taps outside of the input are left out
    Strip strip
    Py_ssize_t first_row         # of the input, for the first row of outputs
    Py_ssize_t first_column
    Py_ssize_t lanes             # groups in steps of `inner`
    Py_ssize_t strips
    Py_ssize_t strip_rows        # rows of outputs of a strip
    Py_ssize_t blocks
    Py_ssize_t block_columns
    bint staged                  # rows of a tile go through the cache to an output beyond it
    bint streams                 # phases take turns in an output that is written past the caches, row by row ...
    bint woven                   # ... or strip by strip, where rows begin between vectors' boundaries
    Py_ssize_t fetch             # lines of the output that are fetched with VL pixels of whole vectors
    const real* input
    const real* weight
    const real* bias
    real* out


cdef inline Py_ssize_t entries_of(const Grid* grid) noexcept nogil:
    """Columns of taps that the two calls of a tile walk through."""
    return grid.g.channels * grid.columns.count * (grid.runs + grid.rests)


cdef inline bint lies_close(const Grid* grid) noexcept nogil:
    """Taps without gaps, in one run, so many that a good part of them meets the padding: of 7x7 maps and kernels
    43%; leaving out 18%, of 3x3 kernels, costs more than it saves."""
    return (grid.runs == 1 and grid.rests == 0 and grid.rows.gap == 1 and grid.columns.gap == 1 and grid.skip == 1
            and 2 * grid.columns.count > grid.g.out_size[2])


cdef inline void shape_work(Work* w, const Geometry* g, const Tap* taps) noexcept nogil:
    """Finds the strip that serves every pass, and cuts the output into strips and blocks."""
    cdef Py_ssize_t passes = w.row_phases * w.column_phases, i, last_row, last_column, skip = 1
    cdef Py_ssize_t rows = g[0].out_size[1], columns = g[0].out_size[2], widest = WIDEST
    cdef Py_ssize_t tile, written = g[0].batch * g[0].out_image * <Py_ssize_t> sizeof(real)
    cdef Strip* s = &w.strip
    cdef Grid grid
    w.weights = 0
    w.inside = True
    for i in range(passes):
        grid = grid_of(g + i, taps)
        if i == 0:
            w.first_row = grid.rows.first
            w.first_column = grid.columns.first
            last_row = w.first_row
            last_column = w.first_column
        w.first_row = smaller(w.first_row, grid.rows.first)
        w.first_column = smaller(w.first_column, grid.columns.first)
        last_row = larger(last_row, grid.rows.first + (grid.rows.count - 1) * grid.rows.gap)
        last_column = larger(last_column, grid.columns.first + (grid.columns.count - 1) * grid.columns.gap)
        skip = larger(skip, grid.skip)
        w.weights += g[i].taps * g[i].channels
        w.inside = w.inside and lies_close(&grid)
        taps += g[i].taps
    w.channels = g[0].channels
    tile = TALL * skip
    w.pixels = g[0].in_axis[2] != 1
    w.in_place = (w.pixels and passes == 1 and skip == 1 and grid.runs == 1 and grid.rests == 0
                  and g[0].groups >= VL)
    w.single = grid
    s.whole = w.pixels or takes_whole(g, w.weights * g[0].groups)
    w.inside = w.inside and s.whole and not w.pixels
    s.inner = VL if s.whole else share(columns, g[0].groups, w.weights)
    s.step = g[0].step[2]
    s.row_step = g[0].step[1]
    s.met_rows = met_by(&grid.rows, s.row_step)  # of several passes the steps are 1
    s.met_columns = met_by(&grid.columns, s.step)
    s.in_rows = g[0].in_size[1]
    s.in_columns = g[0].in_size[2]
    s.in_pitch = g[0].in_axis[1]
    s.in_column = g[0].in_axis[2]
    s.ahead = s.inner * g[0].in_group if s.whole else smaller(s.inner * g[0].in_group, AHEAD)
    w.lanes = ceil_div(g[0].groups, s.inner)
    w.spread_size = w.lanes * g[0].rows * w.weights * VL if s.whole else 0
    if s.whole:
        tile = most_rows(grid.advance) * skip
        widest = widest_block((tile - 1) * g[0].step[1] + last_row - w.first_row + 1, s.step,
                              last_column - w.first_column)
    w.blocks = ceil_div(columns, widest)
    w.block_columns = ceil_div(columns, w.blocks)
    if w.blocks > 1 and not s.whole:
        w.block_columns = ceil_div(w.block_columns, VL) * VL
    w.blocks = ceil_div(columns, w.block_columns)
    shape_lines(s, w.block_columns, last_column - w.first_column, -w.first_column)
    w.strip_rows = rows_of_strip(s.pitch * w.channels, last_row - w.first_row, g[0].step[1], tile, rows,
                                 s.whole)
    w.strips = ceil_div(rows, w.strip_rows)
    s.rows = (w.strip_rows - 1) * g[0].step[1] + last_row - w.first_row + 1
    w.staged = (not s.whole and w.blocks == 1 and g[0].out_axis[1] == columns
                and written >= STAGE_BYTES)
    w.streams = (not s.whole and s.inner == 1 and w.blocks == 1 and w.row_phases == 2 and w.column_phases == 2
                 and skip == 1 and g[0].out_axis[2] == 2 and g[0].out_offset == 0 and written >= PAST_BYTES)
    w.woven = w.streams
    w.fetch = 0
    if s.whole and not w.pixels and written >= FAR_BYTES:
        w.fetch = VL * ceil_div(g[0].out_group, g[0].in_group)
    w.plane_rows = 0
    w.plane_staged = False
    # Narrow maps are left to whole vectors of channels: half of the lanes would be idle, or, of 7x7 kernels, few taps
    # serve a load.
    w.planes = passes == 1 and takes_planes(g, &grid) and columns > (VL if grid.rows.count == 7 else VL // 2)
    if w.planes:
        w.plane_rows = rows_of_plane(g, grid.rows.count)
        w.plane_units = ceil_div(rows, w.plane_rows)
        w.pair = 2 if columns <= VL and g[0].groups > 1 else 1
        w.plane_staged = columns > WIDE * VL and g[0].out_axis[1] == columns and written >= STAGE_BYTES
    s.same_rows = w.strips == 1
    s.same_columns = w.blocks == 1


cdef inline void list_offsets(const Work* w, Grid* grid, Py_ssize_t* offset) noexcept nogil:
    cdef const Strip* s = &w.strip
    cdef Py_ssize_t c, run, t, at
    grid.offset = offset
    # The rests come last for all channels: they are a call of their own.
    for run in range(grid.runs + grid.rests):
        for c in range(w.channels):
            at = c * grid.runs + run
            if run >= grid.runs:
                at = w.channels * grid.runs + c * grid.rests + run - grid.runs
            for t in range(grid.columns.count):
                offset[at * grid.columns.count + t] = (
                    (c * s.rows + grid.rows.first - w.first_row + run * grid.run_gap * grid.rows.gap) * s.pitch
                    + column_at(s, grid.columns.first - w.first_column + t * grid.columns.gap))


cdef inline void list_weights(const Work* w, const Grid* grid, Py_ssize_t* from_) noexcept nogil:
    """Where in a filter each weight of the table lies: [runs or rests][channel][run][column][row of the run]."""
    cdef const Geometry* g = grid.g
    cdef Py_ssize_t c, run, t, r, row, column, height, at
    for c in range(g.channels):
        for run in range(grid.runs + grid.rests):
            height = grid.taps
            at = (c * grid.runs + run) * grid.columns.count * grid.taps
            if run >= grid.runs:
                height = grid.rest
                at = (g.channels * grid.runs * grid.taps
                      + (c * grid.rests + run - grid.runs) * grid.rest) * grid.columns.count
            for t in range(grid.columns.count):
                column = grid.columns.count - 1 - t if grid.columns.flipped else t
                for r in range(height):
                    row = run * grid.run_gap + r * grid.tap_gap
                    if grid.rows.flipped:
                        row = grid.rows.count - 1 - row
                    from_[at] = c * g.weight_channel + grid.table[row * grid.columns.count + column].weight
                    at += 1


cdef inline void list_grids(Work* w, const Geometry* g, const Tap* taps) noexcept nogil:
    """Fills the tables that all threads read."""
    cdef Py_ssize_t i, weight = 0
    cdef Py_ssize_t* offset = w.weight_from + w.weights
    for i in range(w.row_phases * w.column_phases):
        w.grids[i] = grid_of(g + i, taps)
        w.grids[i].weight = weight * VL
        list_offsets(w, w.grids + i, offset)
        list_weights(w, w.grids + i, w.weight_from + weight)
        offset += entries_of(w.grids + i)
        weight += g[i].taps * g[i].channels
        taps += g[i].taps


cdef inline Py_ssize_t tables_size(const Work* w, const Geometry* g, const Tap* taps) noexcept nogil:
    """Bytes of the grids, the places of their weights, their offsets, and weights of whole vectors."""
    cdef Py_ssize_t size = w.row_phases * w.column_phases * <Py_ssize_t> sizeof(Grid), i, count = w.weights
    cdef Grid grid
    for i in range(w.row_phases * w.column_phases):
        grid = grid_of(g + i, taps)
        count += entries_of(&grid)
        taps += g[i].taps
    return aligned(size + count * <Py_ssize_t> sizeof(Py_ssize_t)) + aligned(
        w.spread_size * <Py_ssize_t> sizeof(real))
