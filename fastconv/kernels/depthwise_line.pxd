"""Lines of a plane that is read where it lies: loaded once, and shifted for each column of taps.

A line is loaded from the column where the first tap meets the first output, a vector for each vector of outputs, or
two where the step is 2, told apart into even and odd columns; and one more, into which the shifts reach. What lies
outside of the plane is zero.
"""

from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    SHIFTS, VL, real, vec, veven, vload_span, vodd, vslide, vspan, vspan_of, vzero,
)

cdef enum:
    MOST_SIZE = 7                # rows and columns of taps
    WIDE = 2                     # vectors of outputs
    MOST_LOADS = 2 * WIDE + 1    # of a line
    PLANE_BYTES = 16 << 10       # of the input: they stay in the cache from block to block
    NEAR = 2048                  # elements, the least from what is read to what is fetched


# Which lanes of a line's loads lie in the plane.
cdef struct Look:
    vspan[MOST_LOADS] there
    bint reaches                 # the last load is not empty


cdef inline bint takes_planes(const Geometry* g, const Grid* grid) noexcept nogil:
    """A single pass, of a square kernel."""
    cdef Py_ssize_t size = grid.rows.count
    return (SHIFTS and (size == 3 or size == 5 or size == 7) and grid.columns.count == size
            and grid.rows.gap == 1 and grid.columns.gap == 1 and g.channels == 1
            and g.step[1] == g.step[2] and g.step[1] <= 2 and g.in_axis[2] == 1 and g.out_axis[2] == 1)


cdef inline Py_ssize_t rows_of_plane(const Geometry* g, Py_ssize_t size) noexcept nogil:
    """Of outputs, for a unit of work: so many that the cache holds what they meet, and what units share is little."""
    cdef Py_ssize_t line = g.step[1] * g.in_axis[1] * <Py_ssize_t> sizeof(real), rows = g.out_size[1]
    cdef Py_ssize_t units = (rows + larger(PLANE_BYTES // line, 4 * size) - 1) // larger(PLANE_BYTES // line, 4 * size)
    return (rows + units - 1) // units


cdef inline Look look_from(Py_ssize_t column, Py_ssize_t columns, Py_ssize_t loads) noexcept nogil:
    """Loads of a line that begin at a column, which may lie outside."""
    cdef Look look
    cdef Py_ssize_t i, last = 0
    for i in range(loads + 1):
        last = smaller(larger(columns - column, 0), VL)
        look.there[i] = vspan_of(smaller(larger(-column, 0), last), last)
        column += VL
    look.reaches = last > 0
    return look


cdef inline void load_line(const int step, const int vectors, const bint pair, const Look* look, const real* line,
                           Py_ssize_t apart, vec* even, vec* odd) noexcept nogil:
    """Of each vector the columns, and those that follow, [vector][2]; of a pair from planes that lie apart."""
    cdef vec a, b
    cdef int v, first
    for v in range(vectors):
        first = 0 if pair else v * step
        a = vload_span(line + first * VL, look.there[first])
        even[2 * v] = a
        if step == 2:
            b = vload_span(line + (first + 1) * VL, look.there[first + 1])
            even[2 * v] = veven(a, b)
            odd[2 * v] = vodd(a, b)
        if pair or v == vectors - 1:
            a = vzero()
            if look.reaches:
                a = vload_span(line + (first + step) * VL, look.there[first + step])
            even[2 * v + 1] = veven(a, a) if step == 2 else a
            odd[2 * v + 1] = vodd(a, a)
        if pair:
            line += apart
    if vectors == 2 and not pair:
        even[1] = even[2]
        odd[1] = odd[2]


cdef inline vec column_of(const int step, const int c, int v, const vec* even, const vec* odd) noexcept nogil:
    """What column c of taps meets in a line."""
    if step == 2 and c % 2:
        return vslide(odd[2 * v], odd[2 * v + 1], c // 2)
    return vslide(even[2 * v], even[2 * v + 1], c // step)
