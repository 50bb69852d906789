"""The weight gradient of depthwise convolution: every tap a sum over a plane, image after image.

    dw[g, m, t] = sum over n, o of grad[n, g, m, o] * in[n, g, o * step + t]

Both images come in strips (depthwise_strip.pxd), the gradient with zeros around it. A piece of the sum, one
strip of one image, is walked in tiles of TALL rows by one vector: a tile of the gradient stays in registers,
and every line of the input that is loaded meets all rows of taps at once. The sums of a piece start at zero
and are added to those of the pieces before, so that a rounding error grows with the pixels of a strip.

Pieces are dealt into splits where there are too few channels to occupy threads; the cut comes from the
problem alone, and splits are added in order: the bits do not depend on the number of threads.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid

from fastconv.kernels.depthwise_lanes cimport fill_lanes, takes_whole, widest_block
from fastconv.kernels.depthwise_line cimport NEAR, rows_of_plane, takes_planes
from fastconv.kernels.depthwise_plane_sums cimport MOST_WEIGHED, Weigh, weigh_rows
from fastconv.kernels.depthwise_strip cimport (
    LINE, MOST_INNER, Strip, Window, aligned, clear, column_at, fill_strip, met_by, rows_of_strip, shape_lines,
    share, window_of,
)
from fastconv.kernels.depthwise_sums cimport TALL, Sums, columns_at_once, sums_of_advance
from fastconv.kernels.depthwise_taps cimport Grid, grid_of
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    SHIFTS, VL, flush_denormals, real, restore_denormals, vec, vfma, vload, vstore, vstore_first, vsum, vsums,
    vtranspose, vzero,
)

cdef enum:
    WIDEST = 512  # outputs of a line
    SPLIT_UNITS = 16  # independent sums offered to threads, where there are pieces enough


cdef struct Work:
    Grid grid
    Strip image
    Strip grad
    Py_ssize_t lanes             # groups in steps of `inner`
    Py_ssize_t strips
    Py_ssize_t strip_rows        # rows of outputs of a strip, whole tiles
    Py_ssize_t blocks
    Py_ssize_t block_columns
    Py_ssize_t splits
    bint planes                  # are read where they lie (depthwise_plane_sums.pxd)
    const real* input
    const real* grad_output
    real* out                    # [splits][weights]
    Py_ssize_t weights           # elements of dw
    Py_ssize_t* weight_at        # of a filter: where each total goes


# What a thread writes.
cdef struct Scratch:
    real* image
    real* grad
    real* totals                 # [column of taps][row of taps][VL]
    Py_ssize_t elements          # of both strips
    Py_ssize_t size              # in bytes, of two pairs of strips and the totals


# A piece of a unit.
cdef struct Step:
    Py_ssize_t unit
    Py_ssize_t split
    Py_ssize_t group
    Py_ssize_t row
    Py_ssize_t piece
    Py_ssize_t last              # piece of the unit, and one


cdef Work shape_work(const Geometry* g, const Tap* taps) noexcept nogil:
    cdef Work w
    cdef Py_ssize_t reach, width, units
    cdef Grid grid = grid_of(g, taps)
    w.grid = grid
    w.image.whole = w.grad.whole = g.in_axis[2] != 1 or takes_whole(g, 0)
    w.image.inner = w.grad.inner = VL if w.image.whole else share(g.out_size[2], g.groups, 1)
    w.image.step = g.step[2]
    w.image.row_step = g.step[1]
    w.image.met_rows = met_by(&grid.rows, g.step[1])
    w.image.met_columns = met_by(&grid.columns, g.step[2])
    w.grad.step = w.grad.row_step = 1
    w.image.in_rows = g.in_size[1]
    w.image.in_columns = g.in_size[2]
    w.image.in_pitch = g.in_axis[1]
    w.grad.in_rows = g.out_size[1]
    w.grad.in_columns = g.out_size[2]
    w.grad.in_pitch = g.out_axis[1]
    w.image.in_column = g.in_axis[2]
    w.grad.in_column = g.out_axis[2]
    w.grad.met_rows = w.grad.met_columns = 1
    w.image.ahead = w.image.inner * g.in_group
    w.grad.ahead = w.grad.inner * g.out_group
    w.lanes = ceil_div(g.groups, w.image.inner)
    reach = (grid.rows.count - 1) * grid.rows.gap
    width = WIDEST
    if w.image.whole:  # of three lines, one is for the gradient
        width = widest_block(3 * ((TALL * grid.skip - 1) * g.step[1] + reach + 1) // 2, g.step[2],
                             (grid.columns.count - 1) * grid.columns.gap)
    w.blocks = ceil_div(g.out_size[2], width)
    w.block_columns = g.out_size[2]
    if w.blocks > 1:
        w.block_columns = ceil_div(g.out_size[2], w.blocks)
        if not w.image.whole:
            w.block_columns = ceil_div(w.block_columns, VL) * VL
        w.blocks = ceil_div(g.out_size[2], w.block_columns)
    shape_lines(&w.image, w.block_columns, (grid.columns.count - 1) * grid.columns.gap, -grid.columns.first)
    shape_lines(&w.grad, w.block_columns, 0, 0)
    width = TALL * grid.skip
    w.strip_rows = rows_of_strip(w.image.pitch, reach, g.step[1], width, g.out_size[1], w.image.whole)
    w.strip_rows = ceil_div(w.strip_rows, width) * width
    w.strips = ceil_div(g.out_size[1], w.strip_rows)
    w.grad.rows = w.strip_rows
    w.image.rows = (w.strip_rows - 1) * g.step[1] + reach + 1
    w.image.same_rows = w.grad.same_rows = w.strips == 1
    w.image.same_columns = w.grad.same_columns = w.blocks == 1
    w.planes = (takes_planes(g, &grid) and grid.rows.count <= MOST_WEIGHED and not w.image.whole
                and g.out_size[2] > VL // 2)
    if w.planes:
        w.blocks = w.image.inner = w.grad.inner = 1
        w.lanes = g.groups
        w.strip_rows = rows_of_plane(g, grid.rows.count)
        w.strips = ceil_div(g.out_size[1], w.strip_rows)
    units = w.lanes * g.rows
    w.splits = larger(smaller(ceil_div(SPLIT_UNITS, units), g.batch * w.strips * w.blocks), 1)
    w.weights = g.groups * g.rows * g.taps
    return w


cdef Scratch carve(const Work* w, char* memory, Py_ssize_t number) noexcept nogil:
    """A thread's share of the workspace: strips number 0 or 1, and the totals of both."""
    cdef Scratch at
    cdef Py_ssize_t item = sizeof(real), size
    at.elements = ceil_div(w.image.rows * w.image.pitch + w.grad.rows * w.grad.pitch + VL, LINE) * LINE
    at.image = <real*> memory
    if not w.image.whole:  # whose loads are those of whole stores: one strip, filled and weighed in turn
        at.image += number * at.elements
    at.grad = at.image + w.image.rows * w.image.pitch
    size = 2 * at.elements * item
    at.totals = <real*> (memory + size)
    at.size = size + aligned(w.grid.g.taps * VL * item)
    return at


cdef void weigh_columns(const Work* w, const Scratch* at, Py_ssize_t row, int taps, Py_ssize_t first,
                        int columns) noexcept nogil:
    """Adds a strip to the totals of a few columns of a run of taps that begins at row `row`."""
    cdef const Grid* grid = &w.grid
    cdef Py_ssize_t residue, c, advance = grid.advance
    cdef Sums s
    s.pitch = grid.line * w.image.pitch
    s.grad_pitch = grid.skip * w.grad.pitch
    s.tiles = w.strip_rows // (TALL * grid.skip)
    s.tile_step = TALL * advance * s.pitch
    s.grad_step = TALL * s.grad_pitch
    s.vectors = ceil_div(w.block_columns * w.grad.inner, VL)
    s.totals = at.totals + (first * grid.rows.count + row) * VL
    s.totals_pitch = grid.rows.count * VL
    s.totals_gap = grid.tap_gap * VL
    for c in range(columns):
        s.offset[c] = column_at(&w.image, (first + c) * grid.columns.gap)
    for residue in range(grid.skip):
        s.input = at.image + (residue * grid.g.step[1] + row * grid.rows.gap) * w.image.pitch
        s.grad = at.grad + residue * w.grad.pitch
        sums_of_advance(taps, columns, grid.advance == 2, &s)


cdef void weigh_strip(const Work* w, const Scratch* at) noexcept nogil:
    cdef const Grid* grid = &w.grid
    cdef Py_ssize_t run, column, groups, columns
    cdef int taps
    for run in range(grid.runs + grid.rests):
        taps = grid.taps if run < grid.runs else grid.rest
        column = 0
        groups = ceil_div(grid.columns.count, columns_at_once(taps))
        while column < grid.columns.count:
            columns = ceil_div(grid.columns.count - column, groups)
            weigh_columns(w, at, run * grid.run_gap, taps, column, <int> columns)
            column += columns
            groups -= 1


cdef void fill_piece(const Work* w, const Step* step, const Scratch* at) noexcept nogil:
    """Piece number -> sample, strip, block of columns."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t block = 0, strip = 0, n = step.piece, row, column, each, k, most
    cdef Window window, among
    cdef const real* image[MOST_INNER]
    cdef const real* grad[MOST_INNER]
    if w.blocks * w.strips > 1:
        block = step.piece % w.blocks
        strip = step.piece // w.blocks % w.strips
        n = step.piece // (w.blocks * w.strips)
    row = strip * w.strip_rows
    column = block * w.block_columns
    window = window_of(&w.image, row * g.step[1] + w.grid.rows.first,
                       column * g.step[2] + w.grid.columns.first)
    among = window_of(&w.grad, row, column)
    if w.image.whole:
        most = smaller(g.groups - step.group, VL) - 1
        fill_lanes(&w.image, &window, w.input + n * g.in_image + step.group * g.in_group, g.in_group, most,
                   NULL, 0, at.image)
        fill_lanes(&w.grad, &among, w.grad_output + n * g.out_image + step.group * g.out_group
                   + step.row * g.out_row, g.out_group, most, NULL, 0, at.grad)
        return
    for k in range(w.image.inner):
        each = smaller(step.group + k, g.groups - 1)
        image[k] = w.input + n * g.in_image + each * g.in_group
        grad[k] = w.grad_output + n * g.out_image + each * g.out_group + step.row * g.out_row
    fill_strip(&w.image, &window, image, at.image)
    fill_strip(&w.grad, &among, grad, at.grad)


cdef void weigh_piece(const Work* w, const Step* step, const Scratch* at) noexcept nogil:
    """The same, read where it lies."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t row = step.piece % w.strips * w.strip_rows, n = step.piece // w.strips
    cdef Weigh weigh
    weigh.pitch = g.in_axis[1]
    weigh.lines = g.in_size[1]
    weigh.above = -w.grid.rows.first
    weigh.ahead = larger(w.strip_rows * g.step[1] * g.in_axis[1], NEAR)
    weigh.grad_pitch = g.out_axis[1]
    weigh.grad_ahead = larger(w.strip_rows * g.out_axis[1], NEAR)
    weigh_rows(&w.grid, w.input + n * g.in_image + step.group * g.in_group,
               w.grad_output + n * g.out_image + step.group * g.out_group + step.row * g.out_row
               + row * g.out_axis[1], row, smaller(row + w.strip_rows, g.out_size[1]), at.totals, &weigh)


cdef real weigh_tap(const Work* w, const Tap* tap, const real* image, const real* grad) noexcept nogil:
    """One element of dw by its definition, over the outputs that the tap meets inside of the input."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t n, h, v, y, x
    cdef real total = 0
    for n in range(g.batch):
        for h in range(g.out_size[1]):
            y = h * g.step[1] + tap.offset[1]
            if 0 <= y < g.in_size[1]:
                for v in range(g.out_size[2]):
                    x = v * g.step[2] + tap.offset[2]
                    if 0 <= x < g.in_size[2]:
                        total += (grad[n * g.out_image + h * g.out_axis[1] + v * g.out_axis[2]]
                                  * image[n * g.in_image + y * g.in_axis[1] + x * g.in_axis[2]])
    return total


cdef void weigh_again(const Work* w, Py_ssize_t group, Py_ssize_t m, real* out) noexcept nogil:
    """Of one filter, the sums that are not finite. A strip multiplies zeros beside the gradient with pixels
    that a tap does not meet there: an infinite one may have made a NaN where the sum has none."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t t, at
    for t in range(g.taps):
        at = w.grid.table[t].weight
        if out[at] - out[at] != 0:
            out[at] = weigh_tap(w, w.grid.table + t, w.input + group * g.in_group,
                                w.grad_output + group * g.out_group + m * g.out_row)


cdef inline real store_sums(const Work* w, const int inner, Py_ssize_t channels, const real* totals,
                            real* out) noexcept nogil:
    """Adds the lanes of each channel, to dw in the order of its taps; 0 if all sums are finite."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t first = 0, i, k
    cdef vec[VL] rows
    cdef real[VL] sums
    cdef real odd = 0
    while first < g.taps:
        for i in range(VL // inner):
            rows[i] = vload(totals + smaller(first + i, g.taps - 1) * VL)
        vstore(sums, vsums(rows, inner))
        for i in range(smaller(g.taps - first, VL // inner)):
            for k in range(channels):
                out[k * g.weight_group + w.weight_at[first + i]] = sums[i * inner + k]
                odd += sums[i * inner + k] - sums[i * inner + k]
        first += VL // inner
    return odd


cdef real store_lanes(const Work* w, Py_ssize_t channels, const real* totals, real* out) noexcept nogil:
    """Totals whose lanes are channels, transposed; 0 if all are finite."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t first = 0, count, t, i, k, rows = w.grid.rows.count, columns = w.grid.columns.count
    cdef vec[VL] x
    cdef vec odd = vzero()
    while first < g.taps:
        count = smaller(g.taps - first, VL)
        for i in range(VL):
            t = smaller(first + i, g.taps - 1)
            x[i] = vload(totals + (t % columns * rows + t // columns) * VL)
            odd = vfma(x[i], vzero(), odd)
        vtranspose(x)
        for k in range(channels):
            vstore_first(out + k * g.weight_group + first, count, x[k])
        first += VL
    return vsum(odd)


cdef void store_totals(const Work* w, Py_ssize_t group, Py_ssize_t m, const Scratch* at,
                       real* out) noexcept nogil:
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t channels = smaller(w.image.inner, g.groups - group), k
    cdef real odd
    out += group * g.weight_group + m * g.weight_row
    if w.image.whole:
        odd = store_lanes(w, channels, at.totals, out)
    elif w.image.inner == 1:
        odd = store_sums(w, 1, channels, at.totals, out)
    elif w.image.inner == 2:
        odd = store_sums(w, 2, channels, at.totals, out)
    else:
        odd = store_sums(w, 4, channels, at.totals, out)
    if odd != 0 and w.splits == 1:
        for k in range(channels):
            weigh_again(w, group + k, m, out + k * g.weight_group)


cdef Step step_of(const Work* w, Py_ssize_t unit) noexcept nogil:
    """The first piece of a unit. Unit number -> split, channels that share lanes, row of the group."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t pieces = g.batch * w.strips * w.blocks
    cdef Step s
    s.unit = unit
    s.row = unit % g.rows
    s.group = unit // g.rows % w.lanes * w.image.inner
    s.split = unit // (g.rows * w.lanes)
    s.piece = s.split * pieces // w.splits
    s.last = (s.split + 1) * pieces // w.splits
    return s


cdef void run_units(const Work* w, Py_ssize_t first, Py_ssize_t last, char* memory) noexcept nogil:
    """Strips are filled while those before them are weighed, as in depthwise.pyx."""
    cdef Scratch at = carve(w, memory, 0), free = carve(w, memory, 1)
    cdef Step step = step_of(w, first), following
    clear(at.totals, w.grid.g.taps * VL)
    if not w.planes:
        clear(at.image, at.elements)
        clear(free.image, at.elements)
        fill_piece(w, &step, &at)
    while step.unit < last:
        following = step
        following.piece += 1
        if following.piece == step.last:
            following = step_of(w, step.unit + 1)
        if SHIFTS:  # by itself: what it excludes is not even compiled
            if w.planes:
                weigh_piece(w, &step, &at)
        if w.image.whole:
            weigh_strip(w, &at)
        if following.unit < last and not w.planes:
            fill_piece(w, &following, &free)
        if not w.image.whole and not w.planes:
            weigh_strip(w, &at)
        if following.unit != step.unit:
            store_totals(w, step.group, step.row, &at, w.out + step.split * w.weights)
            clear(at.totals, w.grid.g.taps * VL)
        at, free = free, at
        step = following


cdef void add_splits(const Work* w, Py_ssize_t group, real* to) noexcept nogil:
    """The splits of one group in order."""
    cdef const Geometry* g = w.grid.g
    cdef Py_ssize_t m, t, split, at
    for m in range(g.rows):
        for t in range(g.taps):
            at = group * g.weight_group + m * g.weight_row + t
            to[at] = w.out[at]
            for split in range(1, w.splits):
                to[at] += w.out[split * w.weights + at]
        weigh_again(w, group, m, to + group * g.weight_group + m * g.weight_row)


cdef void run_all(const Work* w, char* memory, real* to, int threads) noexcept nogil:
    """A thread has units that follow each other, and in every call the same, as in depthwise.pyx: 3 to 15% faster
    than units shared out as they come."""
    cdef Py_ssize_t units = w.splits * w.lanes * w.grid.g.rows, parts = smaller(threads, units), part
    cdef Py_ssize_t size = carve(w, memory, 0).size, group
    cdef unsigned int mode = 0
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for part in prange(parts, schedule="static"):
            run_units(w, part * units // parts, (part + 1) * units // parts, memory + threadid() * size)
        if w.splits > 1:
            for group in prange(w.grid.g.groups, schedule="static"):
                add_splits(w, group, to)
        restore_denormals(mode)


cdef Py_ssize_t parts_size(const Work* w) noexcept nogil:
    return aligned(w.splits * w.weights * <Py_ssize_t> sizeof(real)) if w.splits > 1 else 0


cdef Py_ssize_t list_size(const Work* w) noexcept nogil:
    return aligned(w.grid.g.taps * <Py_ssize_t> sizeof(Py_ssize_t))


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int threads):
    """Bytes that `weight_grad` needs beside its operands."""
    cdef Work w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry),
                             <const Tap*> cnp.PyArray_DATA(taps))
    return parts_size(&w) + list_size(&w) + carve(&w, NULL, 0).size * threads + 64


def weight_grad(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray grad_output,
                cnp.ndarray out, cnp.ndarray workspace, int threads):
    """The equation above; the plan has checked every argument."""
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t t, row
    cdef Work w
    memory += -<Py_ssize_t> memory & 63
    w = shape_work(<const Geometry*> cnp.PyArray_DATA(geometry), <const Tap*> cnp.PyArray_DATA(taps))
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.grad_output = <const real*> cnp.PyArray_DATA(grad_output)
    w.out = <real*> memory if w.splits > 1 else to
    w.weight_at = <Py_ssize_t*> (memory + parts_size(&w))
    for t in range(w.grid.g.taps):  # totals stand column by column of the taps
        row = t % w.grid.rows.count
        w.weight_at[t] = w.grid.table[row * w.grid.columns.count + t // w.grid.rows.count].weight
    with nogil:
        run_all(&w, memory + parts_size(&w) + list_size(&w), to, threads)
