"""The taps of a depthwise pass as a grid, and which of them can share what they read."""

from fastconv.kernels.geometry cimport Geometry, Tap

cdef enum:
    MOST_TAPS = 7  # rows of taps that a tile holds at once


# One axis of the taps of a pass: tap t of output o meets input o * step + first + t * gap, gap > 0.
cdef struct Comb:
    Py_ssize_t count
    Py_ssize_t first
    Py_ssize_t gap
    bint flipped                 # tap t is number count - 1 - t of the table


# One pass as the tiles see it. Rows of taps come in `runs` of `taps`, and `rests` runs of `rest`: run j begins at
# row j * run_gap, its rows lie tap_gap apart.
cdef struct Grid:
    const Geometry* g
    const Tap* table
    Comb rows
    Comb columns
    int taps
    Py_ssize_t runs
    int rest
    Py_ssize_t rests
    Py_ssize_t run_gap
    Py_ssize_t tap_gap
    int advance                  # lines from an output of a tile to the next
    Py_ssize_t skip              # rows of the output from an output of a tile to the next
    Py_ssize_t line              # rows of the strip from line to line
    Py_ssize_t* offset
    Py_ssize_t weight            # where its weights begin in the thread's table


cdef inline Comb comb(const Tap* taps, Py_ssize_t count, Py_ssize_t stride, int axis) noexcept nogil:
    """Taps of an axis are evenly spaced, in either direction: `stride` rows of the table lie between them."""
    cdef Comb c
    cdef Py_ssize_t last = taps[(count - 1) * stride].offset[axis]
    c.count = count
    c.first = taps[0].offset[axis]
    c.flipped = last < c.first
    c.gap = 1
    if count > 1:
        c.gap = (last - c.first) // (count - 1)
    if c.flipped:
        c.first = last
        c.gap = -c.gap
    return c


cdef inline Py_ssize_t row_taps(const Geometry* g, const Tap* taps) noexcept nogil:
    """How many rows the table of taps has: their columns are in turn the same."""
    cdef Py_ssize_t columns = 1
    while columns < g.taps and taps[columns].offset[1] == taps[0].offset[1]:
        columns += 1
    return g.taps // columns


cdef inline void cut_into_blocks(Grid* grid) noexcept nogil:
    """Rows that follow each other make a run."""
    grid.taps = <int> (grid.rows.count if grid.rows.count < MOST_TAPS else MOST_TAPS)
    grid.runs = grid.rows.count // grid.taps
    grid.rest = <int> (grid.rows.count % grid.taps)
    grid.rests = grid.rest > 0
    grid.run_gap = grid.taps
    grid.tap_gap = 1


cdef inline void cut_by_residue(Grid* grid) noexcept nogil:
    """Rows that are the same modulo `advance` meet the same lines, every advance-th, and an output meets the line
    after that of the one before."""
    cdef Py_ssize_t each = grid.rows.count // grid.advance, more = grid.rows.count % grid.advance
    grid.taps = <int> (each + (more > 0))
    grid.runs = more if more else grid.advance
    grid.rest = <int> (each if more else 0)
    grid.rests = grid.advance - more if grid.rest else 0
    grid.run_gap = 1
    grid.tap_gap = grid.advance
    grid.line *= grid.advance
    grid.advance = 1


cdef inline void cut_into_rows(Grid* grid) noexcept nogil:
    """No line serves two taps, or too many residues do: each row of taps by itself."""
    grid.taps = grid.advance = 1
    grid.skip = 1
    grid.line = grid.g.step[1]
    grid.runs = grid.rows.count
    grid.rest = 0
    grid.rests = 0
    grid.run_gap = grid.tap_gap = 1


cdef inline Grid grid_of(const Geometry* g, const Tap* table) noexcept nogil:
    cdef Grid grid
    cdef Py_ssize_t rows = row_taps(g, table), a, b
    grid.g = g
    grid.table = table
    grid.rows = comb(table, rows, g.taps // rows, 1)
    grid.columns = comb(table, g.taps // rows, 1, 2)
    # Outputs `skip` rows apart meet lines `advance` apart: skip * step = advance * gap, as small as can be.
    a, b = g.step[1], grid.rows.gap
    while b:
        a, b = b, a % b
    grid.advance = <int> (g.step[1] // a)
    grid.skip = grid.rows.gap // a
    grid.line = grid.rows.gap
    if rows == 1 or rows > grid.advance * MOST_TAPS and grid.advance > 2:
        cut_into_rows(&grid)
    elif grid.advance > 2:
        cut_by_residue(&grid)
    else:
        cut_into_blocks(&grid)
    grid.offset = NULL
    grid.weight = 0
    return grid
