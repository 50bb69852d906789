"""Values of pooling where windows with stride 1 leave small planes as large as they are: rows run on into each other.

A row of 8, 17 or 20 pixels leaves much of its last vector idle. Here a plane is one line, and so are several planes:

    sums[i] = combine over the rows r of a window of in[i + (r - before) * W], as far as they are inside the plane
    out[i] = finish(combine over its columns c of sums[i + c - before] where that is in the same row, else padding)

Whether it is depends on i % W alone: a table of masks says so. The order is that of strips (pool_strip.pxd), and so are
the bits.
"""

from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.pool cimport (
    PoolGeometry, carve, first_tap, flat, in_row, input_size, last_tap, reach, whole_from, whole_to,
)
from fastconv.kernels.pool_reduce cimport AHEAD, Values, combine, fetch, finished, looks_ahead
from fastconv.kernels.pool_strip cimport SPAN_TAPS, STRIP_BYTES
from fastconv.kernels.simd cimport (
    VL, iequal, iload, iset1, lane, real, vec, vload, vload_first, vmask, vselect, vset1, vstore, vstore_first,
)

cdef enum:
    WIDEST = 40  # columns: averages of 3x3 at 35x35 take 117 us in place of 138; wider maps not swept
    TABLE_TURNS = 64  # outputs for each entry of the table, at least; not swept


# Rows of outputs below each other that have as many rows of taps: all whose windows are whole, or one.
cdef struct Run:
    Py_ssize_t taps
    Py_ssize_t source            # of the first tap, from the plane's start
    Py_ssize_t size              # elements


cdef struct Flat:
    Run[SPAN_TAPS] runs          # of a plane
    Py_ssize_t run_count
    real* sums
    vmask* masks                 # [columns of the window][W]
    Py_ssize_t planes            # of a unit, at most


cdef inline bint takes_flat(const PoolGeometry* g) noexcept nogil:
    """Are the idle lanes of rows worth a table of masks?"""
    cdef Py_ssize_t width = g.in_size[2]
    return (g.inner == 1 and flat(g) and g.stride[1] == 1 and g.stride[2] == 1 and g.kernel[2] < SPAN_TAPS
            and g.kernel[1] < SPAN_TAPS and g.dilation[1] == 1 and g.out_size[1] == g.in_size[1]
            and g.out_size[2] == width and width <= WIDEST and width % VL * 5 < VL * 4 and width % VL
            and g.planes * g.in_size[1] >= TABLE_TURNS * g.kernel[2])


cdef inline void carve_flat(const PoolGeometry* g, char** memory, Flat* f) noexcept nogil:
    cdef Py_ssize_t item = sizeof(real), margin = reach(g, 2) + VL  # on both sides
    f.planes = larger(smaller(STRIP_BYTES // (input_size(g) * item), g.planes), 1)
    f.sums = <real*> carve(memory, (f.planes * input_size(g) + 2 * margin) * item) + margin
    list_runs(g, f)
    f.masks = <vmask*> carve(memory, g.kernel[2] * g.in_size[2] * <Py_ssize_t> sizeof(vmask))


cdef inline void prepare_flat(const Values* v, Flat* f) noexcept nogil:
    """Fills the table of masks."""
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t width = g.in_size[2], c, x, j, column
    cdef lane[VL] same
    for c in range(g.kernel[2]):
        for x in range(width):
            column = x
            for j in range(VL):
                same[j] = 0 <= column + c * g.dilation[2] - g.before[2] < width
                column += 1
                if column == width:
                    column = 0
            f.masks[c * width + x] = iequal(iload(same), iset1(1))


cdef inline void reduce_rows(bint maximum, bint exact, const real* source, Py_ssize_t count, Py_ssize_t apart,
                             Py_ssize_t fetched, real* to, Py_ssize_t size) noexcept nogil:
    """to[i] = combine over t < count of source[t * apart + i], in whole vectors; none are read in part if `exact`."""
    cdef Py_ssize_t i = 0, _t, left
    cdef const real* row
    cdef vec total
    while i < size:
        left = smaller(size - i, VL)
        row = source + i
        fetch(row + AHEAD, fetched)
        total = vload_first(row, left) if exact else vload(row)
        for _t in range(1, count):
            row += apart
            total = combine(maximum, total, vload_first(row, left) if exact else vload(row))
        vstore(to + i, total)
        i += VL


cdef inline void list_runs(const PoolGeometry* g, Flat* f) noexcept nogil:
    cdef Py_ssize_t row = 0, rows, first
    f.run_count = 0
    while row < g.out_size[1]:
        rows = whole_to(g) - row if whole_from(g) <= row < whole_to(g) else 1
        first = first_tap(g, 1, row)
        f.runs[f.run_count].taps = last_tap(g, 1, row) - first
        f.runs[f.run_count].source = (row - g.before[1] + first) * in_row(g)
        f.runs[f.run_count].size = rows * in_row(g)
        f.run_count += 1
        row += rows


cdef inline void reduce_plane(bint maximum, bint exact, const Flat* f, Py_ssize_t width, Py_ssize_t fetched,
                              const real* plane, real* to) noexcept nogil:
    """From the first run on: what one writes beyond its end is overwritten by the next."""
    cdef Py_ssize_t i
    cdef const Run* run
    for i in range(f.run_count):
        run = f.runs + i
        if run.taps == 2:
            reduce_rows(maximum, exact, plane + run.source, 2, width, fetched, to, run.size)
        elif run.taps == 3:
            reduce_rows(maximum, exact, plane + run.source, 3, width, fetched, to, run.size)
        elif run.taps == 5:
            reduce_rows(maximum, exact, plane + run.source, 5, width, fetched, to, run.size)
        else:
            reduce_rows(maximum, exact, plane + run.source, run.taps, width, fetched, to, run.size)
        to += run.size


cdef inline void reduce_columns(bint maximum, const int columns, const Values* v, const Flat* f, Py_ssize_t size,
                                real* to) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t width = g.in_size[2], apart = g.dilation[2], turn = VL % width, x = 0, i = 0, c
    cdef const real* sums = f.sums - g.before[2]
    cdef const vmask* mask
    cdef vec padding = vset1(v.padding), total
    while i < size:
        mask = f.masks + x
        total = vselect(mask[0], vload(sums + i), padding)
        for c in range(1, columns if columns else g.kernel[2]):
            mask += width
            total = combine(maximum, total, vselect(mask[0], vload(sums + i + c * apart), padding))
        total = finished(&v.finish, 0, 0, total)
        if size - i >= VL:
            vstore(to + i, total)
        else:
            vstore_first(to + i, size - i, total)
        i += VL
        x += turn
        if x >= width:
            x -= width


cdef inline void pool_flat(bint maximum, const Values* v, const Flat* f, Py_ssize_t first,
                           Py_ssize_t planes) noexcept nogil:
    cdef const PoolGeometry* g = v.geometry
    cdef Py_ssize_t size = input_size(g), p
    cdef const real* plane = v.input + first * size
    cdef real* to = v.out + first * size
    cdef Py_ssize_t fetched = VL if looks_ahead(v) else 0
    for p in range(planes):
        if v.end - (plane + p * size) < size + VL:
            reduce_plane(maximum, True, f, in_row(g), fetched, plane + p * size, f.sums + p * size)
        else:
            reduce_plane(maximum, False, f, in_row(g), fetched, plane + p * size, f.sums + p * size)
    if g.kernel[2] == 3:
        reduce_columns(maximum, 3, v, f, planes * size, to)
    elif g.kernel[2] == 5:
        reduce_columns(maximum, 5, v, f, planes * size, to)
    else:
        reduce_columns(maximum, 0, v, f, planes * size, to)
