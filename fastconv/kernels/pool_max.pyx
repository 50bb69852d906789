"""Maximum pooling, by lines.

    out[o] = max over taps t of in[o * stride + t * dilation - before]

Values alone: the rows of a window are reduced first, into a padded line, then the taps along the width.
With indices: the taps along the width first, for each row once, then the rows, so that a strict
comparison in each step leaves the first of equal values in row-major order. NaN beats every number and
the first NaN stays. Padding is -inf and its taps never win: the index of a window full of -inf is moved
to the window's first tap inside the input. Every window must hold such a tap.

An index is the number of the winning tap, code = (d * kernel_h + h) * kernel_w + w, or the flat position
in the plane. Denormals are not flushed: they are compared here, never computed with.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.math cimport INFINITY
from libc.string cimport memcpy

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.pool cimport (
    Band, Lines, PoolGeometry, band_of, bands_of, carve, carve_lines, first_tap, in_row, last_tap, out_row,
    prepare_lines, reach, split_phases, window_rows,
)
from fastconv.kernels.pool_index cimport IndexKind, Tap, store_indices
from fastconv.kernels.pool_reduce cimport NOTHING
from fastconv.kernels.pool_values cimport Call, Scratch, layout, prepare, run_unit
from fastconv.kernels.simd cimport (
    VL, iadd, iload, imax, iselect, iset1, istore, ivec, lane, real, vbeats, vec, vload, vmask, vselect, vstore,
    vstore_first,
)

cdef struct Task:
    const PoolGeometry* geometry
    const real* input
    real* out                    # NULL where only indices are wanted
    void* indices
    IndexKind kind
    const Tap* taps
    Py_ssize_t bands


# Scratch of one thread. The ring holds rows of the input, reduced along the width: the last
# `span` of each depth of the window. held[slot] is the input row in a slot.
cdef struct Ring:
    Lines lines
    real* values                 # [slots][width]
    lane* columns                # [slots][width]
    Py_ssize_t* held
    lane* first_column           # [width]: the first tap along the width inside the input
    const lane** column_rows     # [rows of a window]
    lane* row_code               # [rows of a window]: code of a row's first tap
    lane* codes                  # [width]
    real* row                    # [width]: stands in for an output that is not wanted
    Py_ssize_t width
    Py_ssize_t span


cdef Py_ssize_t layout_ring(const PoolGeometry* g, char* memory, Ring* s) noexcept nogil:
    """Lays the scratch out from `memory` on; returns its size."""
    cdef char* start = memory
    cdef Py_ssize_t item = sizeof(real), slots
    carve_lines(g, &memory, &s.lines)
    s.width = (out_row(g) + VL - 1) // VL * VL
    s.span = reach(g, 1) + 1
    slots = g.kernel[0] * s.span
    s.values = <real*> carve(&memory, slots * s.width * item)
    s.columns = <lane*> carve(&memory, slots * s.width * item)
    s.held = <Py_ssize_t*> carve(&memory, slots * <Py_ssize_t> sizeof(Py_ssize_t))
    s.first_column = <lane*> carve(&memory, s.width * item)
    s.column_rows = <const lane**> carve(&memory, window_rows(g) * <Py_ssize_t> sizeof(void*))
    s.row_code = <lane*> carve(&memory, window_rows(g) * item)
    s.codes = <lane*> carve(&memory, s.width * item)
    s.row = <real*> carve(&memory, s.width * item)
    return memory - start


cdef void prepare_ring(const PoolGeometry* g, char* memory) noexcept nogil:
    cdef Ring s
    cdef Py_ssize_t i
    layout_ring(g, memory, &s)
    prepare_lines(g, <real> -INFINITY, &s.lines)
    for i in range(s.width):
        s.first_column[i] = <lane> first_tap(g, 2, smaller(i // g.inner, g.out_size[2] - 1))


cdef inline void best_column_of(const real** taps, Py_ssize_t count, const lane* first_column, Py_ssize_t width,
                                real* values, lane* columns) noexcept nogil:
    cdef Py_ssize_t i, c
    cdef vec best, x
    cdef ivec column
    cdef vmask wins
    i = 0
    while i < width:
        best = vload(taps[0] + i)
        column = iset1(0)
        for c in range(1, count):
            x = vload(taps[c] + i)
            wins = vbeats(x, best)
            best = vselect(wins, x, best)
            column = iselect(wins, iset1(<lane> c), column)
        vstore(values + i, best)
        istore(columns + i, imax(column, iload(first_column + i)))
        i += VL


cdef void best_column(const PoolGeometry* g, const real* row, const Ring* s, Py_ssize_t slot) noexcept nogil:
    """One row of the input -> the best value of each window in it, and its tap along the width."""
    cdef real* values = s.values + slot * s.width
    cdef lane* columns = s.columns + slot * s.width
    memcpy(s.lines.line + g.before[2] * g.inner, row, in_row(g) * sizeof(real))
    split_phases(g, &s.lines)
    if g.kernel[2] == 2:
        best_column_of(s.lines.taps, 2, s.first_column, s.width, values, columns)
    elif g.kernel[2] == 3:
        best_column_of(s.lines.taps, 3, s.first_column, s.width, values, columns)
    else:
        best_column_of(s.lines.taps, g.kernel[2], s.first_column, s.width, values, columns)


cdef Py_ssize_t reduce_columns(const PoolGeometry* g, const real* plane, Py_ssize_t depth, Py_ssize_t height,
                               const Ring* s) noexcept nogil:
    """Lists the reduced rows of one row of windows; those that the ring lacks are computed."""
    cdef Py_ssize_t d, h, at_depth, at_height, slot, count = 0
    for d in range(first_tap(g, 0, depth), last_tap(g, 0, depth)):
        at_depth = depth * g.stride[0] - g.before[0] + d * g.dilation[0]
        for h in range(first_tap(g, 1, height), last_tap(g, 1, height)):
            at_height = height * g.stride[1] - g.before[1] + h * g.dilation[1]
            slot = d * s.span + at_height % s.span
            if s.held[slot] != at_height:
                best_column(g, plane + (at_depth * g.in_size[1] + at_height) * in_row(g), s, slot)
                s.held[slot] = at_height
            s.lines.rows[count] = s.values + slot * s.width
            s.column_rows[count] = s.columns + slot * s.width
            s.row_code[count] = <lane> ((d * g.kernel[1] + h) * g.kernel[2])
            count += 1
    return count


cdef inline void best_row_of(const Ring* s, Py_ssize_t count, real* out, Py_ssize_t width) noexcept nogil:
    """The best of the listed rows; `codes` is written in whole vectors, `out` exactly."""
    cdef Py_ssize_t i, t
    cdef vec best, x
    cdef ivec code, other
    cdef vmask wins
    i = 0
    while i < width:
        best = vload(s.lines.rows[0] + i)
        code = iadd(iload(s.column_rows[0] + i), iset1(s.row_code[0]))
        for t in range(1, count):
            x = vload(s.lines.rows[t] + i)
            other = iadd(iload(s.column_rows[t] + i), iset1(s.row_code[t]))
            wins = vbeats(x, best)
            best = vselect(wins, x, best)
            code = iselect(wins, other, code)
        istore(s.codes + i, code)
        if i + VL <= width:
            vstore(out + i, best)
        else:
            vstore_first(out + i, width - i, best)
        i += VL


cdef void best_row(const Ring* s, Py_ssize_t count, real* out, Py_ssize_t width) noexcept nogil:
    if count == 2:
        best_row_of(s, 2, out, width)
    elif count == 3:
        best_row_of(s, 3, out, width)
    else:
        best_row_of(s, count, out, width)


cdef void indexed_band(const Task* task, const Band* band, const Ring* s) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef const real* plane = task.input + band.plane * g.in_size[0] * g.in_size[1] * in_row(g)
    cdef Py_ssize_t first_row = (band.plane * g.out_size[0] + band.depth) * g.out_size[1]
    cdef Py_ssize_t at_depth = band.depth * g.stride[0] - g.before[0]
    cdef Py_ssize_t height, slot, at_height, count
    cdef real* out = s.row
    for slot in range(g.kernel[0] * s.span):
        s.held[slot] = -1
    for height in range(band.first, band.last):
        if task.out != NULL:
            out = task.out + (first_row + height) * out_row(g)
        count = reduce_columns(g, plane, band.depth, height, s)
        best_row(s, count, out, out_row(g))
        at_height = height * g.stride[1] - g.before[1]
        store_indices(g, task.kind, s.codes, (at_depth * g.in_size[1] + at_height) * g.in_size[2] - g.before[2],
                      task.taps, task.indices, first_row + height)


cdef void index_unit(const Task* task, Py_ssize_t unit, char* memory) noexcept nogil:
    cdef Ring s
    cdef Band band = band_of(unit, task.geometry.out_size, task.bands)
    layout_ring(task.geometry, memory, &s)
    indexed_band(task, &band, &s)


cdef void index_all(Task* task, int threads, char* memory) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Ring s
    cdef Py_ssize_t size = layout_ring(g, memory, &s), unit, units
    cdef int thread
    task.bands = bands_of(g.planes * g.out_size[0], g.out_size[1], threads)
    units = g.planes * g.out_size[0] * task.bands
    for thread in range(threads):
        prepare_ring(g, memory + thread * size)
    if threads == 1:
        for unit in range(units):
            index_unit(task, unit, memory)
        return
    with parallel(num_threads=threads):
        for unit in prange(units, schedule="static"):
            index_unit(task, unit, memory + threadid() * size)


cdef void value_unit(const Call* call, Py_ssize_t unit, int thread) noexcept nogil:
    run_unit(True, call, unit, thread)


cdef void value_all(Call* call, const PoolGeometry* g, int threads, char* memory) noexcept nogil:
    cdef Py_ssize_t unit
    prepare(True, call, g, threads, memory)
    if threads == 1:
        for unit in range(call.units):
            value_unit(call, unit, 0)
        return
    with parallel(num_threads=threads):
        for unit in prange(call.units, schedule="static"):
            value_unit(call, unit, threadid())


def thread_bytes(cnp.ndarray geometry, bint indexed):
    """Bytes of workspace that `forward` or `forward_indexed` needs for each thread."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef Ring ring
    cdef Scratch* scratch
    return layout_ring(g, NULL, &ring) if indexed else layout(True, g, NULL, &scratch)


def forward(cnp.ndarray geometry, cnp.ndarray input, cnp.ndarray out, cnp.ndarray workspace, int threads):
    """The maximum of every window."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Call call
    call.values.input = <const real*> cnp.PyArray_DATA(input)
    call.values.end = call.values.input + cnp.PyArray_SIZE(input)
    call.values.out = <real*> cnp.PyArray_DATA(out)
    call.values.finish.kind = NOTHING
    call.values.padding = <real> -INFINITY
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        value_all(&call, g, threads, memory)


def forward_indexed(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, out, cnp.ndarray indices, int kind,
                    cnp.ndarray workspace, int threads):
    """The maximum of every window into `out`, unless that is None, and its index into `indices`."""
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Task task
    task.geometry = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    task.taps = <const Tap*> cnp.PyArray_DATA(taps)
    task.input = <const real*> cnp.PyArray_DATA(input)
    task.out = NULL
    if out is not None:
        task.out = <real*> cnp.PyArray_DATA(<cnp.ndarray> out)
    task.indices = cnp.PyArray_DATA(indices)
    task.kind = <IndexKind> kind
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        index_all(&task, threads, memory)
