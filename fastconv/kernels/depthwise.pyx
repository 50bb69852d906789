"""Depthwise convolution: every channel by itself, forward and input gradient, any kernel, stride, dilation.

    out[n, g, m, o] = activation(bias[g, m] + sum over c, t of weight[g, m, c, t] * in[n, g, c, o * step + t])

with o and t of two axes. A group has one input channel (forward: `rows` is the multiplier) or one output
channel (input gradient: `channels` is). An input gradient has a pass for each phase of the stride; all passes
read one strip of the gradient, and phases of the width are woven into whole rows as they are stored.

A unit of work is a strip (depthwise_strip.pxd) of one channel, of a few where maps are narrow, or of a whole
vector of them (depthwise_lanes.pxd): it is brought into cache, padded, and multiplied in tiles
(depthwise_tile.pxd); zeros of the padding take part. Channels that lie last are read in place (depthwise_pixels.pxd).
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.depthwise_lanes cimport fill_lanes, spread, weave_lanes
from fastconv.kernels.depthwise_pixels cimport Sweep, carve_sweep, sweep, sweep_size
from fastconv.kernels.depthwise_store cimport copy_out, weave_vectors
from fastconv.kernels.depthwise_strip cimport (
    LINE, MOST_INNER, MOST_LANES, Strip, Window, aligned, clear, fill_strip, repeat, window_of,
)
from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.depthwise_tile cimport SHORT, TALL, Tile, most_rows, tile_of_taps
from fastconv.kernels.depthwise_walk cimport lies_in_order, planes_size, walk_planes
from fastconv.kernels.depthwise_work cimport Work, list_grids, shape_work, tables_size
from fastconv.kernels.gemm_pack cimport are_finite, ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    SHIFTS, VL, flush_denormals, is_vec_aligned, real, restore_denormals, stream_fence, vload, vset1, vstore, vzero,
)

# What a unit computes.
cdef struct Place:
    Py_ssize_t image
    Py_ssize_t lane
    Py_ssize_t strip
    Py_ssize_t block


# What a thread writes.
cdef struct Scratch:
    real* strip                  # two of them
    Py_ssize_t strip_size
    real* weights
    real* sums
    real* stage
    Py_ssize_t size


cdef void lay_weights(const Work* w, const real* weight, Py_ssize_t most, real* to) noexcept nogil:
    """The weights of all passes as vectors."""
    cdef Py_ssize_t i, stride = w.grids[0].g.weight_group
    if w.strip.inner == 1:
        for i in range(w.weights):
            vstore(to + i * VL, vset1(weight[w.weight_from[i]]))
    else:
        for i in range(w.weights):
            vstore(to + i * VL, repeat(w.strip.inner, weight + w.weight_from[i], stride, most))


cdef void spread_weights(const Work* w, Py_ssize_t lane, real* spare) noexcept nogil:
    """The weights of VL channels, in the order of the table; `spare` has room for them in that of the filters."""
    cdef const Geometry* g = w.grids[0].g
    cdef Py_ssize_t group = smaller(lane * VL, g.groups - VL) if w.in_place else lane * VL, m, i
    cdef real* to = w.spread + lane * g.rows * w.weights * VL
    for m in range(g.rows):
        spread(w.weight + group * g.weight_group + m * g.weight_row, g.weight_group,
               smaller(g.groups - group, VL) - 1, g.weight_channel, spare)
        for i in range(w.weights):
            vstore(to + i * VL, vload(spare + w.weight_from[i] * VL))
        to += w.weights * VL


cdef Py_ssize_t bound(Py_ssize_t size, Py_ssize_t block, Py_ssize_t number) noexcept nogil:
    """Elements of one block of a size."""
    return larger(smaller(size - number * block, block), 0)


cdef void weave_any(const Work* w, const Grid* phases, const real* sums, Py_ssize_t pitch, Py_ssize_t rows,
                    Py_ssize_t block, real** out, Py_ssize_t out_pitch, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i, j, k, p, axis = phases[0].g.out_axis[2]
    cdef const real* row
    cdef real* to
    for p in range(w.column_phases):
        for i in range(rows):
            row = sums + (p * TALL + i) * pitch
            for k in range(count):
                to = out[k] + i * out_pitch + phases[p].g.out_offset - phases[0].g.out_offset
                for j in range(bound(phases[p].g.out_size[2], w.block_columns, block)):
                    to[j * axis] = row[j * w.strip.inner + k]


cdef void weave(const Work* w, const Grid* phases, const real* sums, Py_ssize_t pitch, Py_ssize_t rows,
                Py_ssize_t block, real** out, Py_ssize_t out_pitch, Py_ssize_t count) noexcept nogil:
    """Finished sums [phase][TALL][column][channel] to rows of the output of `count` channels."""
    cdef Py_ssize_t total = bound(phases[0].g.out_size[2], w.block_columns, block)
    if phases[0].g.out_axis[2] != w.column_phases or w.column_phases > 2:
        weave_any(w, phases, sums, pitch, rows, block, out, out_pitch, count)
    elif w.strip.whole and w.column_phases == 2:
        total += bound(phases[1].g.out_size[2], w.block_columns, block)
        weave_lanes(2, sums, pitch, rows, total, out, out_pitch, count)
    elif w.strip.whole and out_pitch * VL == total * VL == pitch:  # rows follow each other
        weave_lanes(1, sums, pitch, 1, rows * total, out, out_pitch, count)
    elif w.strip.whole:
        weave_lanes(1, sums, pitch, rows, total, out, out_pitch, count)
    elif w.column_phases == 1:
        if w.strip.inner == 2:
            weave_vectors(2, 1, False, sums, pitch, rows, total, out, out_pitch, count)
        else:
            weave_vectors(4, 1, False, sums, pitch, rows, total, out, out_pitch, count)
    else:
        total += bound(phases[1].g.out_size[2], w.block_columns, block)
        if w.streams:
            weave_vectors(1, 2, True, sums, pitch, rows, total, out, out_pitch, count)
        elif w.strip.inner == 1:
            weave_vectors(1, 2, False, sums, pitch, rows, total, out, out_pitch, count)
        elif w.strip.inner == 2:
            weave_vectors(2, 2, False, sums, pitch, rows, total, out, out_pitch, count)
        else:
            weave_vectors(4, 2, False, sums, pitch, rows, total, out, out_pitch, count)


# The micro-kernel in four functions: one that held all its instances would take the compiler twice as long.
cdef void run_one(int rows, int taps, Tile* t) noexcept nogil:
    tile_of_taps(rows, taps, 1, False, t)


cdef void run_one_cut(int rows, int taps, Tile* t) noexcept nogil:
    tile_of_taps(rows, taps, 1, True, t)


cdef void run_two(int rows, int taps, Tile* t) noexcept nogil:
    tile_of_taps(rows, taps, 2, False, t)


cdef void run_two_cut(int rows, int taps, Tile* t) noexcept nogil:
    tile_of_taps(rows, taps, 2, True, t)


cdef void run_tile(bint advances, int rows, int taps, Tile* t) noexcept nogil:
    if t.cut:
        if advances:
            run_two_cut(rows, taps, t)
        else:
            run_one_cut(rows, taps, t)
    elif advances:
        run_two(rows, taps, t)
    else:
        run_one(rows, taps, t)


cdef void multiply(const Grid* grid, Tile* t, Py_ssize_t rows, real* sums,
                   Py_ssize_t sums_pitch) noexcept nogil:
    """A tile of `rows` rows, in one call or, with a rest, in two; out may be `sums`."""
    cdef bint advances = grid.advance == 2
    cdef real* out = t.out
    cdef Py_ssize_t out_pitch = t.out_pitch, out_step = t.out_step, whole = t.whole
    t.offset = grid.offset
    t.weight_step = 0
    t.aligned = True
    t.cut = False
    t.entries = grid.g.channels * grid.columns.count * grid.runs
    t.start_pitch = t.start_step = 0
    if grid.rest:
        t.relu = False
        t.out = sums
        t.out_pitch = sums_pitch
        t.out_step = VL
        t.whole = t.vectors
        run_tile(advances, <int> rows, grid.taps, t)
        t.offset += t.entries
        t.weight += t.entries * grid.taps * VL
        t.entries = grid.g.channels * grid.columns.count * grid.rests
        t.start = sums
        t.start_pitch = sums_pitch
        t.start_step = VL
        t.out = out
        t.out_pitch = out_pitch
        t.out_step = out_step
        t.whole = whole
    t.relu = grid.g.relu
    run_tile(advances, <int> rows, grid.rest if grid.rest else grid.taps, t)


cdef inline Py_ssize_t within(Py_ssize_t place, Py_ssize_t least, Py_ssize_t most) noexcept nogil:
    return smaller(larger(place, least), most)


cdef void multiply_inside(const Work* w, const Grid* grid, const Place* place, Py_ssize_t row, Py_ssize_t rows,
                          Tile* t) noexcept nogil:
    """The same for whole vectors of channels, where only taps inside the input count."""
    cdef Py_ssize_t top = (place.strip * w.strip_rows + row) * grid.g.step[1] + grid.rows.first
    cdef Py_ssize_t column = place.block * w.block_columns * grid.g.step[2] + grid.columns.first
    cdef Py_ssize_t lines = (rows - 1) * grid.advance + grid.taps, count = grid.columns.count, columns = t.vectors
    cdef Py_ssize_t size = w.strip.in_columns, first, last, x
    cdef const real* weight = t.weight
    t.first_line = <int> within(-top, 0, lines)
    t.last_line = <int> within(w.strip.in_rows - top, t.first_line, lines)
    t.cut = t.first_line > 0 or t.last_line < lines
    t.weight_step = t.start_pitch = t.start_step = 0
    t.aligned = True
    t.relu = grid.g.relu
    while columns > 0:
        first = within(-column, 0, count)
        last = within(size - column, first, count)
        x = 1
        column += grid.g.step[2]
        while x < columns and within(-column, 0, count) == first and within(size - column, first, count) == last:
            x += 1
            column += grid.g.step[2]
        t.offset = grid.offset + first
        t.entries = last - first
        t.weight = weight + first * grid.taps * VL
        t.vectors = t.whole = x
        run_tile(grid.advance == 2, <int> rows, grid.taps, t)
        t.input += x * VL
        t.out += x * VL
        columns -= x


cdef void aim(const Work* w, const Grid* phase, const Place* place, bint straight, real* sums, real* out,
              Py_ssize_t channels, Tile* t) noexcept nogil:
    """Where a tile of one phase leaves its sums: in the output, of which `out` is the tile's corner, or in `sums`."""
    cdef Py_ssize_t lanes = bound(phase.g.out_size[2], w.block_columns, place.block) * w.strip.inner
    t.vectors = ceil_div(lanes, VL)
    t.out_step = VL
    t.whole = t.vectors
    t.out = sums
    t.out_pitch = ceil_div(w.block_columns * w.strip.inner, VL) * VL
    if straight:
        t.out = out
        t.out_pitch = phase.skip * phase.g.out_axis[1]
        t.whole = lanes // VL
        t.last = lanes % VL
    if w.pixels:
        t.out_step = phase.g.out_axis[2]
        t.whole = t.vectors if channels == VL else 0
        t.last = channels


cdef void run_rows(const Work* w, const Grid* phases, const real* strip, const Scratch* at, const real* weights,
                   const real* bias, const Place* place, real** out, Py_ssize_t count) noexcept nogil:
    """The rows of a strip that belong to one phase of the height, tile after tile."""
    cdef const Geometry* g = phases[0].g
    cdef const Strip* s = &w.strip
    cdef Py_ssize_t skip = phases[0].skip, rows = bound(g.out_size[1], w.strip_rows, place.strip)
    cdef Py_ssize_t residue, left, height, p, k, row, most = SHORT if w.inside else most_rows(phases[0].advance)
    cdef Py_ssize_t pitch = ceil_div(w.block_columns * s.inner, VL) * VL
    cdef Py_ssize_t corner = g.out_offset + (place.strip * w.strip_rows * g.out_axis[1]
                                             + place.block * w.block_columns * g.out_axis[2])
    cdef real* to[MOST_LANES]
    cdef bint straight = w.pixels or s.inner == 1 and w.column_phases == 1 and g.out_axis[2] == 1
    cdef bint staged = straight and skip == 1 and w.staged
    cdef Tile t
    for residue in range(smaller(skip, rows)):
        row = residue
        left = rows - residue
        if skip > 1:
            left = ceil_div(left, skip)
        while left > 0:
            height = left
            if left > SHORT:  # even tiles where little is left
                height = most if left >= most else left - left // 2
            for k in range(count):
                to[k] = out[k] + corner + row * g.out_axis[1]
            for p in range(w.column_phases):
                t.input = strip + row * g.step[1] * s.pitch
                t.pitch = phases[p].line * s.pitch
                t.weight = weights + phases[p].weight
                t.start = bias
                aim(w, phases + p, place, straight, at.sums + p * TALL * pitch,
                    at.stage if staged else to[0] + phases[p].g.out_offset - g.out_offset, count, &t)
                if w.inside:
                    multiply_inside(w, phases + p, place, row, height, &t)
                else:
                    multiply(phases + p, &t, height, at.sums + p * TALL * pitch, pitch)
            if staged:
                copy_out(at.stage, height * g.out_axis[1], g.stream, to[0])
            if not straight:
                weave(w, phases, at.sums, pitch, height, place.block, to, skip * g.out_axis[1], count)
            left -= height
            row += height * skip


cdef bint wraps(Py_ssize_t* digit, Py_ssize_t size) noexcept nogil:
    """Counts on; back to 0 after the last."""
    digit[0] += 1
    if digit[0] < size:
        return False
    digit[0] = 0
    return True


cdef void step_on(const Work* w, Place* place) noexcept nogil:
    """To the next unit. Where channels lie last, those of the same pixels follow each other."""
    if w.pixels:
        if wraps(&place.lane, w.lanes) and wraps(&place.block, w.blocks) and wraps(&place.strip, w.strips):
            place.image += 1
    elif wraps(&place.block, w.blocks) and wraps(&place.strip, w.strips) and wraps(&place.lane, w.lanes):
        place.image += 1


cdef Place place_of(const Work* w, Py_ssize_t unit) noexcept nogil:
    cdef Place place
    if w.pixels:
        place.lane = unit % w.lanes
        unit //= w.lanes
    place.block = unit % w.blocks
    unit //= w.blocks
    place.strip = unit % w.strips
    unit //= w.strips
    if not w.pixels:
        place.lane = unit % w.lanes
        unit //= w.lanes
    place.image = unit
    return place


cdef Window window_at(const Work* w, const Place* place) noexcept nogil:
    cdef const Geometry* g = w.grids[0].g
    return window_of(&w.strip, place.strip * w.strip_rows * g.step[1] + w.first_row,
                     place.block * w.block_columns * g.step[2] + w.first_column)


cdef void fill_unit(const Work* w, const Place* place, Window* window, real* strip) noexcept nogil:
    cdef const Geometry* g = w.grids[0].g
    cdef const Strip* s = &w.strip
    cdef const real* planes[MOST_INNER]
    cdef const real* image = w.input + place.image * g.in_image
    cdef const real* out = NULL
    cdef Py_ssize_t group = place.lane * s.inner, c, k
    if not (s.same_rows and s.same_columns):
        window[0] = window_at(w, place)
    if s.whole:
        if w.fetch:
            out = w.out + place.image * g.out_image + group * g.out_group
        fill_lanes(s, window, image + group * g.in_group, g.in_group, smaller(g.groups - group, VL) - 1, out, w.fetch,
                   strip)
        return
    for c in range(w.channels):
        for k in range(s.inner):  # lanes beyond the last channel compute it again
            planes[k] = image + smaller(group + k, g.groups - 1) * g.in_group + c * g.in_channel
        fill_strip(s, window, planes, strip + c * s.rows * s.pitch)


cdef void lay_bias(const Strip* s, const real* bias, Py_ssize_t stride, Py_ssize_t most, real* to) noexcept nogil:
    cdef Py_ssize_t k
    if s.whole:
        for k in range(VL):
            to[k] = bias[smaller(k, most) * stride]
    else:
        vstore(to, repeat(s.inner, bias, stride, most))


cdef inline Py_ssize_t rows_woven(const Work* w, const Place* place) noexcept nogil:
    """Of a strip, from both phases."""
    return (bound(w.grids[0].g.out_size[1], w.strip_rows, place.strip)
            + bound(w.grids[w.column_phases].g.out_size[1], w.strip_rows, place.strip))


cdef void compute_unit(const Work* w, const Place* place, const real* strip,
                       const Scratch* at) noexcept nogil:
    cdef const Geometry* g = w.grids[0].g
    cdef const Strip* s = &w.strip
    cdef Py_ssize_t group = place.lane * s.inner
    cdef Py_ssize_t most = smaller(g.groups - group, s.inner) - 1, k, m, i
    cdef Py_ssize_t corner = place.strip * w.strip_rows * g.out_axis[1]
    cdef const real* weights = at.weights
    cdef real* out[MOST_LANES]
    cdef real* to
    cdef real[VL] bias
    for m in range(g.rows):
        if s.whole:
            weights = w.spread + (place.lane * g.rows + m) * w.weights * VL
        else:
            lay_weights(w, w.weight + group * g.weight_group + m * g.weight_row, most, at.weights)
        vstore(bias, vzero())
        if w.bias != NULL:
            lay_bias(s, w.bias + group * g.rows + m, g.rows, most, bias)
        for k in range(most + 1):
            out[k] = w.out + place.image * g.out_image + (group + k) * g.out_group + m * g.out_row
        to = out[0] + corner
        if w.woven:
            out[0] = at.stage - corner
        for i in range(w.row_phases):
            run_rows(w, w.grids + i * w.column_phases, strip, at, weights, bias, place, out, most + 1)
        if w.woven:
            copy_out(at.stage, rows_woven(w, place) * (g.out_axis[1] // 2), True, to)


cdef Scratch carve(const Work* w, char* memory) noexcept nogil:
    """A thread's share of the workspace: strips of all channels, weights as vectors, sums."""
    cdef Scratch at
    cdef Py_ssize_t item = sizeof(real), size
    at.strip = <real*> memory
    # Half a line apart, modulo a line: a load that lies 4096 bytes from a store under way waits for it.
    at.strip_size = w.channels * w.strip.rows * w.strip.pitch + w.strip.pitch // 2
    at.strip_size = (at.strip_size // LINE + 2) * LINE
    if w.strip.whole:  # its loads are those of whole stores: nothing has to wait
        at.strip_size //= 2
    size = 2 * at.strip_size * item
    at.weights = <real*> (memory + size)
    if not w.strip.whole:
        size += aligned(w.weights * VL * item)
    at.sums = <real*> (memory + size)
    size += aligned(w.column_phases * TALL * ceil_div(w.block_columns * w.strip.inner, VL) * VL * item)
    at.stage = <real*> (memory + size)
    if w.staged:
        size += aligned(TALL * w.block_columns * item)
    elif w.woven:
        size += aligned((2 * w.strip_rows * 2 * w.block_columns + VL) * item)
    at.size = size
    return at


cdef void run_units(const Work* w, Py_ssize_t first, Py_ssize_t last, char* memory) noexcept nogil:
    """One strip is filled while the one before it is computed: a store must have left for the cache before
    a load that lies across two of them can be served."""
    cdef Scratch at = carve(w, memory)
    cdef Place place = place_of(w, first), following
    cdef Window window
    cdef Py_ssize_t unit
    cdef real* filled = at.strip
    cdef real* free = at.strip if w.strip.whole else at.strip + at.strip_size
    clear(at.strip, 2 * at.strip_size)
    window = window_at(w, &place)
    fill_unit(w, &place, &window, filled)
    following = place
    for unit in range(first, last):
        step_on(w, &following)
        if w.strip.whole:
            compute_unit(w, &place, filled, &at)
        if unit + 1 < last:
            fill_unit(w, &following, &window, free)
        if not w.strip.whole:
            compute_unit(w, &place, filled, &at)
        filled, free = free, filled
        place = following
    stream_fence()


cdef void run_part(const Work* w, Py_ssize_t first, Py_ssize_t last, char* memory) noexcept nogil:
    cdef Sweep at
    if SHIFTS:  # by itself: what it excludes is not even compiled
        if w.planes:
            walk_planes(w, first, last, <real*> memory)
            return
    if w.in_place:
        at = carve_sweep(run_tile, w, memory)
        sweep(&at, first, last)
    else:
        run_units(w, first, last, memory)


cdef Py_ssize_t thread_size(const Work* w) noexcept nogil:
    """A strip and its sums, or, before these, the filters of whole vectors of channels: with steps as long as they
    are, strips are smaller."""
    cdef Py_ssize_t filters = w.single.g.weight_channel * VL * <Py_ssize_t> sizeof(real) if w.strip.whole else 0
    return larger(larger(sweep_size(&w.single), carve(w, NULL).size), larger(aligned(filters), planes_size(w)))


cdef void run_all(const Work* w, char* memory, int threads) noexcept nogil:
    """A thread has units that follow each other, and in every call the same: what it read or wrote before may still
    be in its cache. Shared out as they come, 384 channels of 14x14 take two threads 26 us in place of 20."""
    cdef Py_ssize_t units = w.grids[0].g.batch * w.lanes * w.strips * w.blocks, part
    cdef Py_ssize_t size = thread_size(w), parts
    cdef unsigned int mode = 0
    cdef Py_ssize_t lanes = w.lanes if w.strip.whole else 0, lane
    if w.in_place:
        units = w.single.g.batch * w.single.g.out_size[1]
    if w.planes:
        lanes = 0
        units = w.single.g.batch * ceil_div(w.single.g.groups, w.pair) * w.plane_units
    parts = smaller(threads, units)
    if threads == 1 or units == 1:
        mode = flush_denormals()
        for lane in range(lanes):
            spread_weights(w, lane, <real*> memory)
        run_part(w, 0, units, memory)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for lane in prange(lanes, schedule="static"):
            spread_weights(w, lane, <real*> (memory + threadid() * size))
        for part in prange(parts, schedule="static"):
            run_part(w, part * units // parts, (part + 1) * units // parts, memory + threadid() * size)
        restore_denormals(mode)


def workspace_bytes(cnp.ndarray geometries, cnp.ndarray taps, Py_ssize_t row_phases, Py_ssize_t column_phases,
                    int threads):
    """Bytes that `conv` needs beside its operands."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometries)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef Work w
    w.row_phases = row_phases
    w.column_phases = column_phases
    shape_work(&w, g, tap)
    return tables_size(&w, g, tap) + thread_size(&w) * threads + 64


def conv(cnp.ndarray geometries, cnp.ndarray taps, Py_ssize_t row_phases, Py_ssize_t column_phases,
         cnp.ndarray input, cnp.ndarray weight, bias, cnp.ndarray out, cnp.ndarray workspace, int threads):
    """All passes of the equation above, [row_phases][column_phases], over `out`; the plan has checked every
    argument."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometries)
    cdef const Tap* tap = <const Tap*> cnp.PyArray_DATA(taps)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Work w
    cdef bint finite
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out)
    w.row_phases = row_phases
    w.column_phases = column_phases
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        shape_work(&w, g, tap)
        finite = are_finite(w.weight, g.groups * g.rows * w.weights)
        w.in_place = w.in_place and finite
        w.planes = w.planes and finite
        w.inside = w.inside and finite
        w.streams = w.streams and g.out_axis[1] // 2 % VL == 0 and is_vec_aligned(w.out)
        w.woven = w.woven and not w.streams
        w.grids = <Grid*> memory
        w.weight_from = <Py_ssize_t*> (w.grids + row_phases * column_phases)
        list_grids(&w, g, tap)
        w.in_order = lies_in_order(&w)
        memory += tables_size(&w, g, tap)
        w.spread = <real*> (memory - aligned(w.spread_size * <Py_ssize_t> sizeof(real)))
        run_all(&w, memory, threads)
