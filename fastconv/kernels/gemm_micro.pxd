"""The micro-kernel: register tiles of a matrix product, one below or beside the other.

    out[i, j] = activation(start[i, j] + sum over k of a[i * a_row + k * a_step] * b[k * width + j])

for i < rows <= MR and j < width = vectors * VL: at most NR, of banded tiles WIDEST * VL.
`start` is a matrix, a bias a row, or zero.
b is packed: `width` values a step. A fused tile reads b from an image of row stride `image_row` and packs
it into `b` on the way, for the tiles that follow. A banded tile finds vector v of row k of b at
b + slots[v].start + offsets[k], and each of its vectors may have a place of its own in the output. Of a
tile of halves, each half of a vector has a slot.
Every sum runs over k in ascending order, whatever the tile: a result does not depend on the tiling.
"""

from fastconv.kernels.simd cimport (
    MR, NV, REGISTERS, SHIFTS, UNROLL, VL, as_one, prefetch_far, prefetch_near, real, vec, vfma_onto,
    vfma_ready, vfma_step, vload, vload_halves, vrelu, vset1, vstore, vstore_first, vstore_halves,
    vstream, vzero,
)

cdef enum:
    LINE = 64 // sizeof(real)
    # Rows of the image fetched ahead: 24 x 14 cycles cover the latency of the third cache level.
    AHEAD = 24
    # Vectors of a banded tile at most: 12 chains hide the latency of two FMA pipes from 2 rows on. Not swept.
    WIDEST = 6


# What is fetched into L2 while tiles are computed, one line a step: the image that comes next, row by row,
# so that memory is read in long stretches however the tiles will walk it.
cdef struct Ahead:
    const real* line
    Py_ssize_t step              # to the next line, or 0 when there is nothing left
    Py_ssize_t left              # lines left in this row
    Py_ssize_t lines             # lines of a row
    Py_ssize_t jump              # from the end of a row to the next
    Py_ssize_t total             # lines left in all


cdef inline void spend(Ahead* ahead, Py_ssize_t lines, const real* next_line, Py_ssize_t left) noexcept nogil:
    ahead.line = next_line
    ahead.left = left
    ahead.total -= lines
    if ahead.total <= 0:
        ahead.step = ahead.jump = ahead.left = 0


# A vector of a banded tile, or half of one: outputs of one row.
cdef struct Slot:
    Py_ssize_t start             # where it begins in the band
    Py_ssize_t to                # and in the output
    Py_ssize_t columns           # that are stored; 0: it only fills up a tile
    Py_ssize_t row               # of the outputs, counted from the tile's first


# Counts down and moves on as its tiles are computed, each of the same size.
cdef struct Tile:
    Py_ssize_t tiles             # 1 if fused
    Py_ssize_t depth             # k
    const real* a
    Py_ssize_t a_row
    Py_ssize_t a_step
    real* b
    const real* image            # fused tiles only
    Py_ssize_t image_row
    const Py_ssize_t* offsets    # banded tiles only, as all that follows up to ahead
    Py_ssize_t runs              # the depth comes in runs of `depth` steps, ...
    Py_ssize_t skip              # ... with so many between them that are left out
    const Slot* slots            # WIDEST or more
    bint halves                  # there is a slot for each half of a vector
    bint apart                   # `out` is where slots count from
    Ahead* ahead
    const real* start            # NULL: begin at the bias, or at zero
    Py_ssize_t start_row
    const real* bias             # one a row, or NULL
    real* out
    Py_ssize_t out_row
    Py_ssize_t columns           # of the width, how many are stored in all
    bint relu
    bint stream                  # write past the caches: every row of `out` on a vec's boundary
    Py_ssize_t a_next            # from the a of one tile to that of the next, likewise below
    Py_ssize_t b_next
    Py_ssize_t start_next
    Py_ssize_t bias_next
    Py_ssize_t out_next
    Py_ssize_t slots_next


# How a tile finds a: in place with a step of 1 or a row of 1, or packed with a row of 1 and a step of `rows`.
# What is known here costs the loop no register.
cdef enum Left:
    ROWS
    COLUMNS
    BLOCKS


# How a tile finds b.
cdef enum Right:
    PANEL
    FUSED
    BANDED
    HALVES                       # banded, too


# What a micro-kernel may be given: its callers name what they have, and are spared the instances of the rest.
cdef enum Given:
    PANEL_ONLY
    PANEL_OR_IMAGE               # an image is packed by a fused tile
    BAND


cdef inline int widest(const int rows) noexcept nogil:
    """Vectors of a banded tile: as many as leave registers for its sums, a row of b and a broadcast value."""
    cdef int vectors = (REGISTERS - 1) // (rows + 1)
    return vectors if vectors < WIDEST else WIDEST


cdef inline int most_vectors(const int rows, bint halves) noexcept nogil:
    """Of a banded tile; the places of halves need twice the registers for addresses."""
    return 3 if halves and widest(rows) > 3 else widest(rows)


cdef inline void multiply(const int rows, const int vectors, const Left left, const Right right, vec* acc,
                          const real** a, Py_ssize_t a_row, const real** b, Py_ssize_t offset,
                          real* kept) noexcept nogil:
    """One step of the depth: acc[i, j] += a[i] * b[j]; a fused tile keeps b.

    Of a banded tile, b holds the address of each vector, from which the row at hand is `offset` away.

    a holds the address of every fourth row: far fewer than rows, and the rows between are one index away. Rows
    that lie side by side need one address alone.
    """
    cdef vec[WIDEST] b_row
    cdef vec a_value
    cdef int i, j
    for j in range(vectors):
        if right == HALVES:
            b_row[j] = vload_halves(b[2 * j] + offset, b[2 * j + 1] + offset)
        else:
            b_row[j] = vload(b[j] + offset) if right == BANDED else vload(b[0] + j * VL)
        if right == FUSED:
            vstore(kept + j * VL, b_row[j])
    if rows == 6 and vectors == 2 and REGISTERS == 16 and left != ROWS:
        vfma_step(acc, a[0], b_row)
        return
    for i in range(rows):
        a_value = vset1(a[i // 4][i % 4 * a_row] if left == ROWS else a[0][i])
        for j in range(vectors):
            acc[i * vectors + j] = vfma_onto(acc[i * vectors + j], a_value, b_row[j])


cdef inline void fetch_row(const int vectors, const real* row) noexcept nogil:
    """Into L1, with every line that a row of the image touches."""
    cdef int j
    for j in range(vectors):
        if j * VL % LINE == 0:
            prefetch_near(row + j * VL)
    prefetch_near(row + vectors * VL - 1)


cdef inline void start_sums(const int rows, const int vectors, vec* acc, const Tile* t) noexcept nogil:
    cdef int i, j
    if t.start != NULL:
        for i in range(rows):
            for j in range(vectors):
                acc[i * vectors + j] = vload(t.start + i * t.start_row + j * VL)
    elif t.bias != NULL:
        for i in range(rows):
            for j in range(vectors):
                acc[i * vectors + j] = vset1(t.bias[i])
    else:
        for i in range(rows):
            for j in range(vectors):
                acc[i * vectors + j] = vzero()


cdef inline void store_slots(const int rows, const int vectors, vec* acc, const Tile* t) noexcept nogil:
    """Each vector to a place of its own: row by row where all are whole, as memory likes it."""
    cdef int i, j
    cdef Py_ssize_t[WIDEST] to
    cdef bint whole = True
    for j in range(vectors):
        to[j] = t.slots[j].to
        whole = whole and t.slots[j].columns == VL
    if whole and t.stream:
        for i in range(rows):
            for j in range(vectors):
                vstream(t.out + i * t.out_row + to[j], acc[i * vectors + j])
    elif whole:
        for i in range(rows):
            for j in range(vectors):
                vstore(t.out + i * t.out_row + to[j], acc[i * vectors + j])
    else:
        for j in range(vectors):
            for i in range(rows):
                vstore_first(t.out + i * t.out_row + to[j], t.slots[j].columns, acc[i * vectors + j])


cdef inline void store_halves(const int rows, const int vectors, vec* acc, const Tile* t) noexcept nogil:
    """Each half of a vector to a place of its own."""
    cdef int i, j
    cdef real* low
    cdef real* high
    for j in range(vectors):
        low = t.out + t.slots[2 * j].to
        high = t.out + t.slots[2 * j + 1].to
        for i in range(rows):
            vstore_halves(low, t.slots[2 * j].columns, high, t.slots[2 * j + 1].columns, acc[i * vectors + j])
            low += t.out_row
            high += t.out_row


cdef inline void store_sums(const int rows, const int vectors, const Right right, vec* acc,
                            const Tile* t) noexcept nogil:
    cdef int i, j
    if t.relu:
        for i in range(rows):
            for j in range(vectors):
                acc[i * vectors + j] = vrelu(acc[i * vectors + j])
    if right == BANDED and t.apart:
        store_slots(rows, vectors, acc, t)
    elif right == HALVES and t.apart:
        store_halves(rows, vectors, acc, t)
    elif t.stream and t.columns == vectors * VL:
        for i in range(rows):
            for j in range(vectors):
                vstream(t.out + i * t.out_row + j * VL, acc[i * vectors + j])
    elif t.columns == vectors * VL:
        for i in range(rows):
            for j in range(vectors):
                vstore(t.out + i * t.out_row + j * VL, acc[i * vectors + j])
    else:
        for i in range(rows):
            for j in range(vectors - 1):
                vstore(t.out + i * t.out_row + j * VL, acc[i * vectors + j])
            vstore_first(t.out + i * t.out_row + (vectors - 1) * VL, t.columns - (vectors - 1) * VL,
                         acc[i * vectors + vectors - 1])


cdef inline void stack(Py_ssize_t rows, Tile* t) noexcept nogil:
    """Each tile has the rows below those of the one before; where their weights are is in a_next."""
    t.b_next = 0
    t.start_next = rows * t.start_row
    t.bias_next = rows
    t.out_next = rows * t.out_row
    t.slots_next = 0


cdef inline void line_up(Py_ssize_t columns, Tile* t) noexcept nogil:
    """Each tile has the columns to the right of those of the one before."""
    t.a_next = t.bias_next = t.slots_next = 0
    t.b_next = t.start_next = t.out_next = columns


cdef inline void follow_slots(int vectors, Tile* t) noexcept nogil:
    """Each tile has the slots after those of the one before; sums that start as a matrix do not."""
    t.a_next = t.bias_next = t.b_next = t.start_next = t.out_next = 0
    t.slots_next = 2 * vectors if t.halves else vectors


cdef inline void move_on(Tile* t) noexcept nogil:
    t.a += t.a_next
    t.b += t.b_next
    t.out += t.out_next
    t.slots += t.slots_next
    if t.start != NULL:
        t.start += t.start_next
    if t.bias != NULL:
        t.bias += t.bias_next


cdef inline void step_weights(const int rows, const Left left, const real** a, Py_ssize_t step) noexcept nogil:
    cdef int i
    for i in range(0, rows if left == ROWS else 1, 4):
        a[i // 4] += step


cdef inline void run_down_panel(const int rows, const int vectors, const Left left, const Right right, vec* acc,
                                const real** a, Py_ssize_t a_row, Py_ssize_t a_step, Tile* t) noexcept nogil:
    """The whole depth of a panel, while what comes next is fetched."""
    cdef Py_ssize_t _k, b_step = t.image_row if right == FUSED else vectors * VL
    cdef int _i
    cdef const real* b = t.image if right == FUSED else t.b
    cdef real* kept = t.b
    cdef const real* line = t.ahead.line
    cdef Py_ssize_t line_step = t.ahead.step, lines_left = t.ahead.left
    cdef const real* coming      # row of the image to fetch: of this panel, then of the one beside it
    cdef Py_ssize_t rows_left
    if right == FUSED:
        rows_left = t.depth - AHEAD
        coming = t.image + (AHEAD * b_step if rows_left > 0 else vectors * VL)
    for _k in range(t.depth // UNROLL):
        prefetch_far(line)
        line += line_step
        lines_left -= 1
        if lines_left == 0:
            line += t.ahead.jump
            lines_left = t.ahead.lines
        for _i in range(UNROLL):
            if right == FUSED:
                fetch_row(vectors, coming)
                coming += b_step
                rows_left -= 1
                if rows_left == 0:
                    coming = t.image + vectors * VL
            multiply(rows, vectors, left, right, acc, a, a_row, &b, 0, kept)
            step_weights(rows, left, a, a_step)
            b += b_step
            kept += vectors * VL
    for _k in range(t.depth // UNROLL * UNROLL, t.depth):
        multiply(rows, vectors, left, right, acc, a, a_row, &b, 0, kept)
        step_weights(rows, left, a, a_step)
        b += b_step
        kept += vectors * VL
    spend(t.ahead, t.depth // UNROLL, line, lines_left)


cdef inline void run_down_band(const int rows, const int vectors, const Left left, const Right right, vec* acc,
                               const real** a, Py_ssize_t a_row, Py_ssize_t a_step, const Tile* t) noexcept nogil:
    """The runs of the depth that are not left out."""
    cdef Py_ssize_t _run, k
    cdef int i, j
    cdef const real* b[2 * WIDEST]
    cdef const Py_ssize_t* offsets = t.offsets
    for _run in range(t.runs):
        for j in range(2 * vectors if right == HALVES else vectors):
            b[j] = as_one(t.b + t.slots[j].start)
        for k in range(t.depth // UNROLL):
            for i in range(UNROLL):
                multiply(rows, vectors, left, right, acc, a, a_row, b, offsets[k * UNROLL + i], NULL)
                step_weights(rows, left, a, a_step)
        for k in range(t.depth // UNROLL * UNROLL, t.depth):
            multiply(rows, vectors, left, right, acc, a, a_row, b, offsets[k], NULL)
            step_weights(rows, left, a, a_step)
        offsets += t.depth + t.skip
        step_weights(rows, left, a, t.skip * a_step)


cdef inline void tiles(const int rows, const int vectors, const Left left, const Right right,
                       Tile* t) noexcept nogil:
    """What only changes from tile to tile stays in memory: every register belongs to the loop over k."""
    cdef vec[REGISTERS] acc
    cdef int i
    cdef Py_ssize_t a_row = t.a_row if left == ROWS else 1
    cdef Py_ssize_t a_step = 1 if left == ROWS else rows if left == BLOCKS else t.a_step
    cdef const real* a[4]
    vfma_ready()
    while t.tiles > 0:
        for i in range(0, rows if left == ROWS else 1, 4):
            a[i // 4] = t.a + i * a_row
        start_sums(rows, vectors, acc, t)
        if right >= BANDED:
            run_down_band(rows, vectors, left, right, acc, a, a_row, a_step, t)
        else:
            run_down_panel(rows, vectors, left, right, acc, a, a_row, a_step, t)
        store_sums(rows, vectors, right, acc, t)
        move_on(t)
        t.tiles -= 1


cdef inline void banded_tiles(const int rows, const Left left, int vectors, Tile* t) noexcept nogil:
    if t.halves and SHIFTS:
        tiles(rows, most_vectors(rows, True), left, HALVES, t)
    elif vectors == widest(rows):
        tiles(rows, widest(rows), left, BANDED, t)
    elif widest(rows) > NV:
        tiles(rows, NV, left, BANDED, t)
    else:
        tiles(rows, 1, left, BANDED, t)


cdef inline void tiles_of_height(const int rows, const Left left, const Given given, int vectors,
                                 Tile* t) noexcept nogil:
    if given == BAND:
        banded_tiles(rows, left, vectors, t)
    elif given == PANEL_OR_IMAGE and t.image != NULL:
        tiles(rows, 2, left, FUSED, t)
    elif vectors == 2:
        tiles(rows, 2, left, PANEL, t)
    else:
        tiles(rows, 1, left, PANEL, t)


cdef inline void micro_kernel(const Left left, const Given given, int rows, int vectors, Tile* t) noexcept nogil:
    """One instance of `tiles` for each height: M is cut into even blocks, so that none is wasted."""
    if rows == 1:
        tiles_of_height(1, left, given, vectors, t)
    elif rows == 2:
        tiles_of_height(2, left, given, vectors, t)
    elif rows == 3:
        tiles_of_height(3, left, given, vectors, t)
    elif rows == 4:
        tiles_of_height(4, left, given, vectors, t)
    elif rows == 5:
        tiles_of_height(5, left, given, vectors, t)
    elif rows == 6:
        tiles_of_height(6, left, given, vectors, t)
    elif MR > 6:
        if rows == 7:
            tiles_of_height(7, left, given, vectors, t)
        elif rows == 8:
            tiles_of_height(8, left, given, vectors, t)
        elif rows == 9:
            tiles_of_height(9, left, given, vectors, t)
        elif rows == 10:
            tiles_of_height(10, left, given, vectors, t)
        elif rows == 11:
            tiles_of_height(11, left, given, vectors, t)
        elif rows == 12:
            tiles_of_height(12, left, given, vectors, t)
        elif rows == 13:
            tiles_of_height(13, left, given, vectors, t)
        else:
            tiles_of_height(14, left, given, vectors, t)


cdef inline void run_rows(const Left left, Py_ssize_t rows, Py_ssize_t stride, int vectors, Tile* t) noexcept nogil:
    """Any number of rows, `stride` apart in a, against a packed b, in even blocks of at most MR.

    First come those that are a row higher than the others.
    """
    cdef Py_ssize_t blocks = (rows + MR - 1) // MR
    cdef Py_ssize_t height = rows // blocks, higher
    for higher in range(1, -1, -1):
        t.tiles = rows % blocks if higher else blocks - rows % blocks
        t.a_next = (height + higher) * stride
        stack(height + higher, t)
        micro_kernel(left, PANEL_ONLY, <int> (height + higher), vectors, t)
