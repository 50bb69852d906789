"""Packing for the matrix product of a convolution: im2col straight into panels, weights into blocks.

Pixels. A tile of pixels is cut into panels of NR columns (the last one of VL or NR). A panel holds

    panel[k, column] = in[channel c, tap t, pixel], k = c * taps + t, zero outside the input

row after row. The columns of a tile fall into runs: stretches of one panel that come from one row of
the output, so that their source is one row of the input with a constant step.

Weights. Rows come in even blocks of at most MR; block i of a depth block holds

    block[k, r] = weight[row_start(i) + r, k]
"""

from fastconv.kernels.gemm_sweep cimport ACROSS, LOW
from fastconv.kernels.geometry cimport Geometry, Tap
from fastconv.kernels.simd cimport (
    MR, NR, VL, real, vcopy_first, vec, veven, vfma, vload, vload_first, vodd, vstore, vstore_apart, vstore_first,
    vsum, vtranspose, vzero,
)


cdef enum:
    STREAMS = 2  # what `stream` of the geometry says where large outputs may be written past the caches
    LOW_DEPTH = 32  # 1 -> 100 at 48x48, 3x3: 45 us, with low tiles 40; 100 -> 100, 1x1: 290, 354
    SWEPT_DEPTH = 32  # rows of an image that are read in sweeps
    PAGED_DEPTH = 16  # of rows that are pages apart and meet in a few lines of a first-level cache
    STREAMED_DEPTH = 12  # where outputs are written past the caches
    PAGE = 4096  # bytes


cdef struct Run:
    real* to                     # its first column in row 0 of its panel
    Py_ssize_t width             # columns of a row of the panel
    Py_ssize_t length
    const real* image
    Py_ssize_t[3] position       # of its first column, times the step
    const real* source           # for the tap at hand: first element inside the input
    Py_ssize_t before            # columns left of the input: zeros
    Py_ssize_t inside
    Py_ssize_t after             # columns right of it


cdef inline Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t larger(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t plane_size(const Geometry* g) noexcept nogil:
    return g.out_size[0] * g.out_size[1] * g.out_size[2]


cdef inline bint has_long_rows(const Geometry* g) noexcept nogil:
    """Is a tile of pixels a stretch of one image, and several vectors long?"""
    return plane_size(g) >= 2 * ACROSS * VL and (g.batch == 1 or plane_size(g) % VL == 0)


cdef inline Py_ssize_t swept_depth(const Geometry* g) noexcept nogil:
    if g.stream == STREAMS:
        return STREAMED_DEPTH
    return PAGED_DEPTH if g.in_channel * <Py_ssize_t> sizeof(real) % PAGE == 0 else SWEPT_DEPTH


cdef inline Py_ssize_t tallest(const Geometry* g) noexcept nogil:
    """Rows of a block at most: lower tiles are wider, and write longer stretches where little is summed."""
    cdef Py_ssize_t depth = g.channels * g.taps
    cdef bint wide = g.bands or (g.out_axis[2] == 1 and depth <= swept_depth(g) and has_long_rows(g))
    return LOW if wide and g.stream != STREAMS and depth <= LOW_DEPTH else MR


cdef inline Py_ssize_t row_blocks(const Geometry* g) noexcept nogil:
    return ceil_div(g.rows, tallest(g))


cdef inline Py_ssize_t even_start(Py_ssize_t height, Py_ssize_t extra, Py_ssize_t block) noexcept nogil:
    """Start of a block where the first `extra` blocks have one row more than `height`."""
    return block * height + smaller(block, extra)


cdef inline Py_ssize_t row_start(const Geometry* g, Py_ssize_t block) noexcept nogil:
    cdef Py_ssize_t blocks = row_blocks(g)
    return even_start(g.rows // blocks, g.rows % blocks, block)


cdef inline Py_ssize_t panel_width(Py_ssize_t columns) noexcept nogil:
    """Of the panel that begins `columns` before the tile's end."""
    return NR if columns > VL else VL


cdef inline void fill_zero(real* to, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VL <= count:
        vstore(to + i, vzero())
        i += VL
    if i < count:
        vstore_first(to + i, count - i, vzero())


cdef inline void copy_row(real* to, const real* source, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VL <= count:
        vstore(to + i, vload(source + i))
        i += VL
    if i < count:
        vcopy_first(to + i, source + i, count - i)


cdef inline void spread_row(real* to, const real* source, Py_ssize_t count) noexcept nogil:
    """to[2 j] = source[j]; what lies between is left as it is."""
    cdef Py_ssize_t i = 0
    while i + VL <= count:
        vstore_apart(to + 2 * i, VL, vload(source + i))
        i += VL
    if i < count:
        vstore_apart(to + 2 * i, count - i, vload_first(source + i, count - i))


cdef inline void copy_every_second(real* to, const real* source, Py_ssize_t count) noexcept nogil:
    """Nothing beyond the last element is read: with more than a vector of them, the last vector ends there."""
    cdef Py_ssize_t i = 0, last = count - VL, left = 2 * count - 1
    if last <= 0:
        vstore_first(to, count, veven(vload_first(source, smaller(left, VL)),
                                      vload_first(source + VL, larger(left - VL, 0))))
        return
    while i < last:
        vstore(to + i, veven(vload(source + 2 * i), vload(source + 2 * i + VL)))
        i += VL
    source += left - 2 * VL
    vstore(to + last, vodd(vload(source), vload(source + VL)))


cdef inline void copy_every_fourth(real* to, const real* source, Py_ssize_t count) noexcept nogil:
    """Likewise."""
    cdef Py_ssize_t i = 0, last = count - VL, left = 4 * count - 3
    cdef vec[4] v
    cdef int j
    if last <= 0:
        for j in range(4):
            v[j] = vload_first(source + smaller(j * VL, left), smaller(larger(left - j * VL, 0), VL))
        vstore_first(to, count, veven(veven(v[0], v[1]), veven(v[2], v[3])))
        return
    while i < last:
        vstore(to + i, veven(veven(vload(source + 4 * i), vload(source + 4 * i + VL)),
                             veven(vload(source + 4 * i + 2 * VL), vload(source + 4 * i + 3 * VL))))
        i += VL
    source += left - 4 * VL
    vstore(to + last, vodd(vodd(vload(source), vload(source + VL)),
                           vodd(vload(source + 2 * VL), vload(source + 3 * VL))))


cdef inline void copy_stepped(real* to, const real* source, Py_ssize_t count, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        copy_row(to, source, count)
    elif step == 2:
        copy_every_second(to, source, count)
    elif step == 4:
        copy_every_fourth(to, source, count)
    else:
        for i in range(count):
            to[i] = source[i * step]


cdef inline Py_ssize_t list_runs(const Geometry* g, const real* group_input, Py_ssize_t first, Py_ssize_t last,
                                 real* panels, Py_ssize_t depth, Run* runs) noexcept nogil:
    """The runs of pixels first .. last - 1 of the batch; `depth` rows are reserved for each panel."""
    cdef Py_ssize_t count = 0, pixel = first, column, rest, panel
    cdef Run* run
    while pixel < last:
        column = pixel - first
        panel = column // NR
        rest = pixel % plane_size(g)
        run = runs + count
        run.image = group_input + pixel // plane_size(g) * g.in_image
        run.position[2] = rest % g.out_size[2]
        rest = rest // g.out_size[2]
        run.position[1] = rest % g.out_size[1] * g.step[1]
        run.position[0] = rest // g.out_size[1] * g.step[0]
        run.length = smaller(smaller(g.out_size[2] - run.position[2], NR - column % NR), last - pixel)
        run.position[2] *= g.step[2]
        run.width = panel_width(last - first - panel * NR)
        run.to = panels + panel * depth * NR + column % NR
        pixel += run.length
        count += 1
    return count


cdef inline bint is_dense(const Geometry* g, const Tap* taps) noexcept nogil:
    """Is im2col the image itself, one row a channel?"""
    return (g.taps == 1 and taps.offset[2] == 0 and g.step[2] == 1 and g.in_axis[2] == 1
            and g.in_size[0] == 1 and g.in_size[1] == 1 and g.in_size[2] == plane_size(g))


cdef inline Py_ssize_t drop_full(Run* runs, Py_ssize_t count) noexcept nogil:
    """Keeps the runs that do not fill a panel of their own; returns their number."""
    cdef Py_ssize_t kept = 0, r
    for r in range(count):
        if runs[r].length < NR:
            runs[kept] = runs[r]
            kept += 1
    return kept


cdef inline void aim_run(const Geometry* g, const Tap* tap, Run* run) noexcept nogil:
    """Clips a run to the input for one tap."""
    cdef Py_ssize_t d = run.position[0] + tap.offset[0]
    cdef Py_ssize_t h = run.position[1] + tap.offset[1]
    cdef Py_ssize_t w = run.position[2] + tap.offset[2]
    cdef Py_ssize_t step = g.step[2]
    cdef Py_ssize_t first = 0 if w >= 0 else smaller(ceil_div(-w, step), run.length)
    cdef Py_ssize_t last = 0 if w >= g.in_size[2] else smaller(ceil_div(g.in_size[2] - w, step), run.length)
    if d < 0 or d >= g.in_size[0] or h < 0 or h >= g.in_size[1] or last <= first:
        first = last = run.length
    run.before = first
    run.inside = last - first
    run.after = run.length - last
    run.source = run.image
    if run.inside > 0:
        run.source += d * g.in_axis[0] + h * g.in_axis[1] + (w + first * step) * g.in_axis[2]


cdef inline void pack_pixels(const Geometry* g, const Tap* taps, Py_ssize_t channel, Py_ssize_t channels,
                             Run* runs, Py_ssize_t count) noexcept nogil:
    """Rows of `channels` channels from `channel` on, for all runs of a tile."""
    cdef Py_ssize_t t, c, r
    cdef Py_ssize_t step = g.step[2] * g.in_axis[2]
    cdef real* to
    cdef const real* source
    cdef Run* run
    for t in range(g.taps):
        for r in range(count):
            aim_run(g, taps + t, runs + r)
        for c in range(channels):
            for r in range(count):
                run = runs + r
                to = run.to + (c * g.taps + t) * run.width
                source = run.source + (channel + c) * g.in_channel
                if run.inside == NR and step == 1:
                    copy_row(to, source, NR)
                    continue
                if run.before:
                    fill_zero(to, run.before)
                if run.inside:
                    copy_stepped(to + run.before, source, run.inside, step)
                if run.after:
                    fill_zero(to + run.before + run.inside, run.after)


cdef inline void clear_tail(Py_ssize_t columns, real* panels, Py_ssize_t depth, Py_ssize_t used) noexcept nogil:
    """Zeros in the columns of the last panel that no pixel fills: they are multiplied, never stored.

    `used` of the `depth` rows that are reserved for each panel are in use.
    """
    cdef Py_ssize_t panel = (columns - 1) // NR
    cdef Py_ssize_t filled = columns - panel * NR
    cdef Py_ssize_t k, width = panel_width(filled)
    if filled < width:
        for k in range(used):
            fill_zero(panels + panel * depth * NR + k * width + filled, width - filled)


cdef inline void interleave(const real* source, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t depth,
                            real* to) noexcept nogil:
    """to[k * rows + r] = source[r * stride + k], for rows <= MR: VL steps at a time through a transposition."""
    cdef vec[VL] block
    cdef Py_ssize_t k = 0, r
    cdef int i
    if MR <= VL:
        while k + 2 * VL <= depth:
            for i in range(VL):
                block[i] = vload(source + i * stride + k) if i < rows else vzero()
            vtranspose(block)
            for i in range(VL):
                vstore(to + (k + i) * rows, block[i])  # what it writes beyond its `rows` comes next
            k += VL
    while k < depth:
        for r in range(rows):
            to[k * rows + r] = source[r * stride + k]
        k += 1


cdef inline void pack_weights(const Geometry* g, const Tap* taps, const real* weight, Py_ssize_t block,
                              Py_ssize_t channel, Py_ssize_t channels, real* to) noexcept nogil:
    """One block of rows, for `channels` channels from `channel` on."""
    cdef Py_ssize_t first = row_start(g, block)
    cdef Py_ssize_t rows = row_start(g, block + 1) - first
    cdef Py_ssize_t _c, t, r
    cdef const real* end = to + channels * g.taps * rows
    cdef bint whole = g.weight_row == 1 and first + ceil_div(rows, VL) * VL <= g.rows
    cdef const real* source = weight + first * g.weight_row + channel * g.weight_channel
    if in_order(g, taps):
        interleave(source, g.weight_row, rows, channels * g.taps, to)
        return
    for _c in range(channels):
        for t in range(g.taps):
            if whole and end - to >= rows + VL:
                for r in range(ceil_div(rows, VL)):  # what this writes beyond its `rows` comes next
                    vstore(to + r * VL, vload(source + taps[t].weight + r * VL))
            elif g.weight_row == 1:
                copy_row(to, source + taps[t].weight, rows)
            else:
                for r in range(rows):
                    to[r] = source[r * g.weight_row + taps[t].weight]
            to += rows
        source += g.weight_channel


cdef inline bint in_order(const Geometry* g, const Tap* taps) noexcept nogil:
    """Does a row of weights hold its channels and taps in the order of the depth?"""
    return g.weight_channel == g.taps and taps[0].weight == 0 and taps[g.taps - 1].weight == g.taps - 1


cdef inline bint are_finite(const real* weight, Py_ssize_t count) noexcept nogil:
    """Zero times anything else is not zero."""
    cdef Py_ssize_t i = 0
    cdef vec total = vzero()
    while i + VL <= count:
        total = vfma(vload(weight + i), vzero(), total)
        i += VL
    total = vfma(vload_first(weight + i, count - i), vzero(), total)
    return vsum(total) == 0
