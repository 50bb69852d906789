"""Filters of images with one channel: any number of filters, any size, stride, dilation and padding.

    out[n, g, m, o] = activation(bias[g, m] + sum over t of weight[g, m, t] * in[n, g, o * step + offset[t]])

with o and t of two axes. A unit of work is a band of rows of one image, for all its filters. The image is
read in place; only what the padding reaches, columns at both sides and the first and the last bands, is read
from a copy with its zeros (a strip), and all of it where there is a step along the width. Zeros of the padding
take part.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv.kernels.filter_tile cimport TALL, Tile, most_rows, tile_of_height
from fastconv.kernels.filter_work cimport (
    LINE, Work, column_at, is_met, list_calls, reach, shape_work,
)
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    VL, flush_denormals, is_vec_aligned, real, restore_denormals, stream_fence, vcopy_first, vec, veven, vload,
    vodd, vset1, vstore, vzero,
)

cdef enum:
    PARTS = 8  # for each thread


# A thread's memory.
cdef struct Scratch:
    real* strip
    real* weights
    Py_ssize_t filter            # whose weights these are
    real* sums
    Py_ssize_t sums_pitch
    Py_ssize_t size


# Some rows and columns of the output of one image, and where the first of its first line lies.
cdef struct Area:
    Py_ssize_t row
    Py_ssize_t rows
    Py_ssize_t column
    Py_ssize_t columns
    const real* source
    Py_ssize_t pitch
    const Py_ssize_t* offset


cdef void clear(real* to, Py_ssize_t count) noexcept nogil:
    """Whole vectors: lines have room for one more, and are filled from left to right."""
    cdef Py_ssize_t i = 0
    while i < count:
        vstore(to + i, vzero())
        i += VL


cdef void copy_row(const real* source, Py_ssize_t count, real* to) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VL <= count:
        vstore(to + i, vload(source + i))
        i += VL
    vcopy_first(to + i, source + i, count - i)


cdef void split_row(const Work* w, const real* source, Py_ssize_t count, Py_ssize_t column,
                    real* line) noexcept nogil:
    """Columns that lie a step apart, side by side; the first one is `column` of the strip."""
    cdef Py_ssize_t step = w.columns.step, i, p, j
    cdef vec a, b
    cdef real* to
    cdef real* to_odd
    p = 0
    if step == 2:
        to = line + column_at(w, column)
        to_odd = line + column_at(w, column + 1)
        while p + 2 * VL <= count:
            a = vload(source + p)
            b = vload(source + p + VL)
            vstore(to + p // 2, veven(a, b))
            vstore(to_odd + p // 2, vodd(a, b))
            p += 2 * VL
    for i in range(p, smaller(count, p + step)):
        if is_met(&w.columns, column + i):
            to = line + column_at(w, column + i)
            for j in range((count - i + step - 1) // step):
                to[j] = source[i + j * step]


cdef void fill_strip(const Work* w, const real* plane, const Area* a, real* strip) noexcept nogil:
    """The input of an area, with zeros around it."""
    cdef const Geometry* g = &w.g
    cdef Py_ssize_t top = a.row * w.rows.step + w.rows.first, left = a.column * w.columns.step + w.columns.first
    cdef Py_ssize_t rows = (a.rows - 1) * w.rows.step + reach(&w.rows) + 1, r
    cdef Py_ssize_t columns = (a.columns - 1) * w.columns.step + reach(&w.columns) + 1
    cdef Py_ssize_t before = smaller(larger(-left, 0), columns)
    cdef Py_ssize_t count = larger(smaller(g.in_size[2] - left, columns) - before, 0)
    cdef const real* source
    cdef real* line
    for r in range(rows):
        line = strip + r * w.pitch
        if w.rows.step > 1 and not is_met(&w.rows, r):
            continue
        if not 0 <= top + r < g.in_size[1]:
            memset(line, 0, w.pitch * sizeof(real))
            continue
        source = plane + (top + r) * g.in_axis[1] + left + before
        if w.columns.step == 1:
            clear(line, before)
            copy_row(source, count, line + before)
            clear(line + before + count, columns - before - count)
        else:
            if count < columns:
                memset(line, 0, w.pitch * sizeof(real))
            split_row(w, source, count, before, line)


cdef void lay_weights(const Work* w, Py_ssize_t filter, Scratch* at) noexcept nogil:
    """The weights of a filter in the order in which its calls read them."""
    cdef const Geometry* g = &w.g
    cdef const real* weight = w.weight + filter // g.rows * g.weight_group + filter % g.rows * g.weight_row
    cdef Py_ssize_t i
    if at.filter != filter:
        at.filter = filter
        for i in range(g.taps):
            at.weights[i] = weight[w.weight_from[i]]


cdef void run_tile(const Work* w, const Area* a, Tile* t, int rows, const Scratch* at,
                   const real* bias) noexcept nogil:
    """A tile of outputs by all calls; unfinished sums wait in cache."""
    cdef real* out = t.out
    cdef Py_ssize_t out_pitch = t.out_pitch
    cdef int i
    t.offset = a.offset
    t.weight = at.weights
    t.start = bias
    t.start_pitch = t.start_step = 0
    for i in range(w.count):
        t.entries = w.calls[i].entries
        t.out, t.out_pitch = at.sums, at.sums_pitch
        t.last = VL
        t.relu = t.stream = False
        if i + 1 == w.count:
            t.out, t.out_pitch = out, out_pitch
            t.last = a.columns - (t.vectors - 1) * VL
            t.relu = w.g.relu
            t.stream = w.g.stream and is_vec_aligned(out) and out_pitch % VL == 0
        tile_of_height(rows, w.calls[i].taps, t)
        t.offset += t.entries
        t.weight += t.entries * w.calls[i].taps
        t.start, t.start_pitch, t.start_step = at.sums, at.sums_pitch, VL


cdef int height_for(Py_ssize_t left, Py_ssize_t rows, int most) noexcept nogil:
    """The height of the next tile: where few rows are left, the least that holds them, or that there is."""
    while most > 1 and (most > rows or most >= 2 * left):
        most //= 2
    return most


cdef void run_area(const Work* w, const Area* a, const Scratch* at, const real* bias, real* plane) noexcept nogil:
    """One filter over an area. Outputs `skip` rows apart share lines; the last tile reaches back."""
    cdef const Geometry* g = &w.g
    cdef Py_ssize_t skip = w.skip, residue, rows, done, first
    cdef real* out = plane + a.row * g.out_axis[1] + a.column
    cdef int height, most = most_rows(w.line * a.pitch)
    cdef Tile t
    t.pitch = w.line * a.pitch
    t.vectors = ceil_div(a.columns, VL)
    for residue in range(smaller(skip, a.rows)):
        rows = a.rows - residue
        if skip > 1:
            rows = ceil_div(rows, skip)
        done = 0
        while done < rows:
            height = height_for(rows - done, rows, most)
            first = residue + smaller(done, rows - height) * skip
            t.input = a.source + first * w.rows.step * a.pitch
            t.out = out + first * g.out_axis[1]
            t.out_pitch = skip * g.out_axis[1]
            run_tile(w, a, &t, height, at, bias)
            done += height


cdef void run_filters(const Work* w, Area* a, Py_ssize_t image, Py_ssize_t group, Py_ssize_t first, bint in_place,
                      Scratch* at) noexcept nogil:
    """A share of the filters of an image over an area, which is read in place or from a strip."""
    cdef const Geometry* g = &w.g
    cdef const real* plane = w.input + image * g.in_image + group * g.in_group
    cdef real* out = w.out + g.out_offset + image * g.out_image + group * g.out_group
    cdef real[VL] bias
    cdef Py_ssize_t m
    if a.columns <= 0:
        return
    if in_place:
        a.source = plane + ((a.row * w.rows.step + w.rows.first) * g.in_axis[1] + a.column + w.columns.first)
        a.pitch = g.in_axis[1]
        a.offset = w.in_image
    else:
        fill_strip(w, plane, a, at.strip)
        a.source = at.strip
        a.pitch = w.pitch
        a.offset = w.in_strip
    for m in range(first, smaller(first + w.share, g.rows)):
        lay_weights(w, group * g.rows + m, at)
        vstore(bias, vset1(w.bias[group * g.rows + m] if w.bias != NULL else 0))
        run_area(w, a, at, bias, out + m * g.out_row)


cdef void run_unit(const Work* w, Py_ssize_t unit, Scratch* at) noexcept nogil:
    """Columns that the padding reaches, columns in place, and columns after them; or all from a strip."""
    cdef const Geometry* g = &w.g
    cdef Py_ssize_t block = unit % w.blocks, band = unit // w.blocks % w.bands
    cdef Py_ssize_t first = unit // (w.blocks * w.bands) % w.shares * w.share
    cdef Py_ssize_t plane = unit // (w.blocks * w.bands * w.shares)
    cdef Py_ssize_t image = plane // g.groups, group = plane % g.groups
    cdef Py_ssize_t begin = block * w.block, end = smaller(begin + w.block, g.out_size[2])
    cdef Py_ssize_t inner = end, outer = end, top
    cdef Area a
    a.row = band * w.band
    a.rows = smaller(w.band, g.out_size[1] - a.row)
    top = a.row * w.rows.step + w.rows.first
    if w.in_place and top >= 0 and top + (a.rows - 1) * w.rows.step + reach(&w.rows) < g.in_size[1]:
        inner = smaller(ceil_div(larger(begin, -w.columns.first), VL) * VL, end)
        outer = smaller(g.in_size[2] - w.columns.first - reach(&w.columns), end)
        outer = inner + larger(outer - inner, 0) // VL * VL
    a.column = begin
    a.columns = inner - begin
    run_filters(w, &a, image, group, first, False, at)
    a.column = inner
    a.columns = outer - inner
    run_filters(w, &a, image, group, first, True, at)
    a.column = outer
    a.columns = end - outer
    run_filters(w, &a, image, group, first, False, at)


cdef Py_ssize_t aligned(Py_ssize_t size) noexcept nogil:
    return ceil_div(size, 64) * 64


cdef Scratch carve(const Work* w, char* memory) noexcept nogil:
    """A thread's share of the workspace."""
    cdef Scratch at
    cdef Py_ssize_t item = sizeof(real), size = aligned((w.strip_rows * w.pitch + VL) * item)
    at.strip = <real*> memory
    at.weights = <real*> (memory + size)
    size += aligned(w.g.taps * item)
    at.sums = <real*> (memory + size)
    at.sums_pitch = ceil_div(w.block, VL) * VL + LINE
    size += aligned(TALL * at.sums_pitch * item)
    at.size = size
    at.filter = -1
    return at


cdef Py_ssize_t tables_size(const Geometry* g) noexcept nogil:
    """Bytes of the tables that all threads read: there are no more entries than taps."""
    return aligned(3 * g.taps * sizeof(Py_ssize_t))


cdef void run_units(const Work* w, Py_ssize_t first, Py_ssize_t last, char* memory) noexcept nogil:
    cdef Scratch at = carve(w, memory)
    cdef Py_ssize_t unit
    for unit in range(first, last):
        run_unit(w, unit, &at)
    if w.g.stream:
        stream_fence()


cdef void run_all(const Work* w, char* memory, int threads) noexcept nogil:
    """Parts of units that follow each other, more of them than threads: one may be held up."""
    cdef Py_ssize_t units = w.g.batch * w.g.groups * w.shares * w.bands * w.blocks, part
    cdef Py_ssize_t size = carve(w, memory).size, parts = smaller(threads * PARTS, units)
    cdef unsigned int mode = 0
    if threads == 1 or units == 1:
        mode = flush_denormals()
        run_units(w, 0, units, memory)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for part in prange(parts, schedule="dynamic"):
            run_units(w, part * units // parts, (part + 1) * units // parts, memory + threadid() * size)
        restore_denormals(mode)


def workspace_bytes(cnp.ndarray geometry, cnp.ndarray taps, int threads):
    """Bytes that `conv` needs beside its operands."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef Work w
    shape_work(&w, g, <const Tap*> cnp.PyArray_DATA(taps), threads)
    return tables_size(g) + carve(&w, NULL).size * threads + 64


def conv(cnp.ndarray geometry, cnp.ndarray taps, cnp.ndarray input, cnp.ndarray weight, bias,
         cnp.ndarray out, cnp.ndarray workspace, int threads):
    """The equation above over `out`; the plan has checked every argument."""
    cdef const Geometry* g = <const Geometry*> cnp.PyArray_DATA(geometry)
    cdef const Tap* table = <const Tap*> cnp.PyArray_DATA(taps)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Work w
    w.input = <const real*> cnp.PyArray_DATA(input)
    w.weight = <const real*> cnp.PyArray_DATA(weight)
    w.bias = NULL
    if bias is not None:
        w.bias = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    w.out = <real*> cnp.PyArray_DATA(out)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        shape_work(&w, g, table, threads)
        w.in_image = <Py_ssize_t*> memory
        w.in_strip = w.in_image + g.taps
        w.weight_from = w.in_strip + g.taps
        list_calls(&w, table)
        run_all(&w, memory + tables_size(g), threads)
