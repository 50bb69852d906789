"""Planes that are read where they lie: square kernels of 3, 5 or 7, where a shift of two vectors is one instruction.

A block of outputs, two vectors wide or one vector of two channels, is walked from its first row to its last. A line
of the input is loaded once, shifted for each column of taps, and added to all rows of outputs that it meets; these
take turns in the registers: the oldest is finished and leaves, the newest begins. Lines are loaded from the column of
the first tap on; what lies outside of the plane is zero, and lines outside of it are left out.

A strip costs a store and a load of every pixel, and loads that cross cache lines; 192 planes of 28x28 take 45 us so,
kernels of 3x3, and 19 in place.
"""

from fastconv.kernels.depthwise_taps cimport Grid
from fastconv.kernels.gemm_pack cimport ceil_div, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport (
    SHIFTS, VL, prefetch_near, real, vec, veven, vfma_kept, vload_span, vodd, vrelu, vset1, vslide, vspan, vspan_of,
    vstore, vstore_first, vzero,
)

cdef enum:
    MOST_SIZE = 7                # rows and columns of taps
    WIDE = 2                     # vectors of a block
    MOST_FILTERS = 128           # weights of two filters, and some room
    MOST_LOADS = 2 * WIDE + 1    # of a line, with the one that shifts reach into
    PLANE_BYTES = 16 << 10       # of the input: they stay in the cache from block to block
    NEAR = 2048                  # elements, the least from what is read to what is fetched


# A block of a plane, or of the planes of two channels.
cdef struct Walk:
    const real* plane            # at the column where the first tap meets the first output
    Py_ssize_t apart             # from channel to channel
    Py_ssize_t pitch
    Py_ssize_t lines             # of the plane
    Py_ssize_t above             # lines that the first output meets before them
    vspan[MOST_LOADS] there
    bint reaches                 # the last load is not empty
    const real* weight           # [row][column] of taps
    Py_ssize_t weight_apart
    real[2] bias
    bint relu
    real* out
    Py_ssize_t out_apart
    Py_ssize_t out_pitch
    Py_ssize_t last              # lanes of the last vector that are stored
    Py_ssize_t ahead             # elements to what will be read next


cdef inline bint takes_planes(const Geometry* g, const Grid* grid) noexcept nogil:
    """Of a single pass."""
    cdef Py_ssize_t size = grid.rows.count
    return (SHIFTS and (size == 3 or size == 5 or size == 7) and grid.columns.count == size
            and grid.rows.gap == 1 and grid.columns.gap == 1 and g.channels == 1
            and g.step[1] == g.step[2] and g.step[1] <= 2 and g.in_axis[2] == 1 and g.out_axis[2] == 1
            and 2 * g.out_size[2] > VL and (size < 7 or g.out_size[2] > VL))


cdef inline void meet_column(const int size, const int step, const int vectors, const bint pair, const int c,
                             const int u, const vec* even, const vec* odd, const vec* kept, const Walk* w,
                             vec* sums) noexcept nogil:
    """Column c of taps of a line, which is number u of those that came with the newest row of outputs."""
    cdef int v, j, r, rows = (size + step - 1) // step
    cdef vec[WIDE] x
    cdef vec tap
    if c < size:
        for v in range(vectors):
            if step == 2 and c % 2:
                x[v] = vslide(odd[2 * v], odd[2 * v + 1], c // 2)
            else:
                x[v] = vslide(even[2 * v], even[2 * v + 1], c // step)
        for j in range(rows):
            r = (rows - 1 - j) * step + u
            if r < size:
                tap = kept[r * size + c] if size == 3 else vset1(w.weight[r * size + c])
                for v in range(vectors):
                    if pair and v == 1:
                        tap = (kept[9 + r * size + c] if size == 3 else
                               vset1(w.weight[w.weight_apart + r * size + c]))
                    sums[v * rows + j] = vfma_kept(sums[v * rows + j], tap, x[v])


cdef inline void meet_line(const int size, const int step, const int vectors, const bint pair, const int u,
                           const Walk* w, const real* line, const vec* kept, vec* sums) noexcept nogil:
    cdef vec[2 * WIDE] even, odd  # of each vector, and what follows it
    cdef vec a, b
    cdef int v, first
    for v in range(vectors):
        first = 0 if pair else v * step
        a = vload_span(line + first * VL, w.there[first])
        even[2 * v] = a
        if step == 2:
            b = vload_span(line + (first + 1) * VL, w.there[first + 1])
            even[2 * v] = veven(a, b)
            odd[2 * v] = vodd(a, b)
        if pair or v == vectors - 1:
            a = vzero()
            if w.reaches:
                a = vload_span(line + (first + step) * VL, w.there[first + step])
            even[2 * v + 1] = veven(a, a) if step == 2 else a
            odd[2 * v + 1] = vodd(a, a)
        if pair:
            line += w.apart
    if vectors == 2 and not pair:
        even[1] = even[2]
        odd[1] = odd[2]
    meet_column(size, step, vectors, pair, 0, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 1, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 2, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 3, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 4, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 5, u, even, odd, kept, w, sums)
    meet_column(size, step, vectors, pair, 6, u, even, odd, kept, w, sums)


cdef inline void fetch(const int step, const int vectors, const bint pair, const Walk* w,
                       const real* line) noexcept nogil:
    cdef int v, i
    for v in range(vectors):
        for i in range(step):
            prefetch_near(line + w.ahead + i * VL)
        line += w.apart if pair else step * VL


cdef inline void finish(const int rows, const int vectors, const bint pair, const Walk* w, vec* sums,
                        real* out) noexcept nogil:
    """The oldest row."""
    cdef int v
    for v in range(vectors):
        if w.relu:
            sums[v * rows] = vrelu(sums[v * rows])
        if pair or v == vectors - 1:
            vstore_first(out, w.last, sums[v * rows])
        else:
            vstore(out, sums[v * rows])
        out += w.out_apart if pair else VL


cdef inline void walk(const int size, const int step, const int vectors, const bint pair, const Walk* block,
                      Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Rows first .. last - 1 of outputs of a block."""
    cdef Walk held = block[0]  # which no store can change
    cdef const Walk* w = &held
    cdef vec[WIDE * MOST_SIZE] sums
    cdef vec[18] kept
    cdef vec[2] bias
    cdef int rows = (size + step - 1) // step, i, v, u
    cdef Py_ssize_t newest, at
    cdef const real* line
    cdef real* out = w.out
    if size == 3:
        for i in range(9):
            kept[i] = vset1(w.weight[i])
            if pair:
                kept[9 + i] = vset1(w.weight[w.weight_apart + i])
    for v in range(vectors):
        bias[v] = vset1(w.bias[v if pair else 0])
        for i in range(rows):
            sums[v * rows + i] = bias[v]
    for newest in range(first, last + rows - 1):
        at = newest * step - w.above
        line = w.plane + at * w.pitch
        for u in range(step):
            if 0 <= at + u < w.lines:
                fetch(step, vectors, pair, w, line)
                meet_line(size, step, vectors, pair, u, w, line, kept, sums)
            line += w.pitch
        if newest - first >= rows - 1:
            finish(rows, vectors, pair, w, sums, out)
            out += w.out_pitch
        for v in range(vectors):
            for i in range(rows - 1):
                sums[v * rows + i] = sums[v * rows + i + 1]
            sums[v * rows + rows - 1] = bias[v]


cdef inline void walk_of_width(const int size, const int step, int vectors, bint pair, const Walk* w,
                               Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if pair:
        walk(size, step, 2, True, w, first, last)
    elif vectors == 2:
        walk(size, step, 2, False, w, first, last)
    else:
        walk(size, step, 1, False, w, first, last)


cdef inline void walk_of_size(int size, const int step, int vectors, bint pair, const Walk* w,
                              Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if size == 3:
        walk_of_width(3, step, vectors, pair, w, first, last)
    elif size == 5:
        walk_of_width(5, step, vectors, pair, w, first, last)
    else:
        walk_of_width(7, step, vectors, pair, w, first, last)


cdef inline void look_from(Walk* w, Py_ssize_t column, Py_ssize_t columns, Py_ssize_t loads) noexcept nogil:
    """Which lanes of a line's loads lie in the plane, the first of them at `column`."""
    cdef Py_ssize_t i, last
    for i in range(loads + 1):
        last = smaller(larger(columns - column, 0), VL)
        w.there[i] = vspan_of(smaller(larger(-column, 0), last), last)
        column += VL
    w.reaches = last > 0


cdef inline void walk_rows(const Grid* grid, bint pair, const real* plane, real* out, Py_ssize_t first,
                           Py_ssize_t last, Walk* w) noexcept nogil:
    """Rows first .. last - 1 of the outputs of a plane, or of two, block after block; `out` is the first."""
    cdef const Geometry* g = grid.g
    cdef Py_ssize_t block = 0, width, step = g.step[2], column, vectors
    w.out_pitch = g.out_axis[1]
    while block < g.out_size[2]:
        width = smaller(g.out_size[2] - block, WIDE * VL)
        vectors = ceil_div(width, VL)
        column = block * step + grid.columns.first
        w.plane = plane + column
        w.last = width - (vectors - 1) * VL
        w.out = out + block
        look_from(w, column, g.in_size[2], vectors * step)
        if step == 2:
            walk_of_size(<int> grid.rows.count, 2, <int> vectors, pair, w, first, last)
        else:
            walk_of_size(<int> grid.rows.count, 1, <int> vectors, pair, w, first, last)
        block += width
