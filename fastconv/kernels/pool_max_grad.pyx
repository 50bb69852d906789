"""The gradient of maximum pooling.

    grad_input[i] = sum of grad_output[o] over the windows o whose index is i, in the order of o

Windows side by side: every element is written once (pool_spread.pxd). Overlapping ones scatter: eight planes in turn
where indices are bytes and planes enough (pool_scatter.pxd), else rows, into a band that starts as zeros. Small
windows on long rows gather where they cannot be scattered so: each row of the input compares the codes of the windows
that it lies in, phase by phase of the stride (pool_gather.pxd). A thread owns what it writes, and every element is
summed in the order of the outputs, whichever the way.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcpy, memset

from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, band_of, bands_of, carve, flat, in_row, input_size, out_row, output_size,
    window_rows,
)
from fastconv.kernels.pool_gather cimport Term, gather, gather_thirds, takes_thirds
from fastconv.kernels.pool_grad cimport (
    Joint, carve_joint, first_window, join_phases, last_window, prepare_joint, tap_of,
)
from fastconv.kernels.pool_index cimport CODE_8, IndexKind, Indices, Tap, load_indices, too_large
from fastconv.kernels.pool_scatter cimport MOST_PLANES as PLANES, Scatter, list_scatter, scatter_planes
from fastconv.kernels.pool_spread cimport Grads, lies_side_by_side, rows_after, side_by_side, spread_lines
from fastconv.kernels.simd cimport VL, flush_denormals, lane, real, restore_denormals


# SPREAD where no windows overlap; PLANEWISE: some planes scattered in turn.
cdef enum Way:
    SCATTER = 0
    GATHER = 1
    SPREAD = 2
    PLANEWISE = 3


cdef struct Task:
    const PoolGeometry* geometry
    const real* grad_output
    Indices indices
    Way way
    real* grad_input
    Py_ssize_t outputs           # elements of grad_output
    const Py_ssize_t* cut        # size of what the bands are cut from
    Py_ssize_t bands
    Scatter scatter              # of PLANEWISE, and
    Py_ssize_t group             # planes in turn


# Scratch of one thread. The ring holds rows of the output, one for each window over a row of the
# input, with margins of code -1. held[slot] is the output row in a slot.
cdef struct Scratch:
    Joint joint
    real* grads                  # [slots][pitch]
    lane* codes                  # [slots][pitch]
    const real** sources         # [slots]: in grads or in place
    Py_ssize_t* held
    Term* rows                   # of the row at hand: taps in the first column of the kernel
    Term* terms
    Py_ssize_t slots


cdef Py_ssize_t layout(const PoolGeometry* g, Way way, char* memory, Scratch* s) noexcept nogil:
    """Lays the scratch out from `memory` on; returns its size. Scattering needs one row of codes."""
    cdef char* start = memory
    cdef Py_ssize_t item = sizeof(real)
    if way != GATHER:
        s.codes = <lane*> carve(&memory, (out_row(g) + VL) * item)
        return memory - start
    carve_joint(g, &memory, &s.joint)
    s.slots = s.joint.ring[0] * s.joint.ring[1]
    s.grads = <real*> carve(&memory, s.slots * s.joint.pitch * item)
    s.codes = <lane*> carve(&memory, s.slots * s.joint.pitch * item)
    s.sources = <const real**> carve(&memory, s.slots * <Py_ssize_t> sizeof(void*))
    s.held = <Py_ssize_t*> carve(&memory, s.slots * <Py_ssize_t> sizeof(Py_ssize_t))
    s.rows = <Term*> carve(&memory, window_rows(g) * <Py_ssize_t> sizeof(Term))
    s.terms = <Term*> carve(&memory, window_rows(g) * g.kernel[2] * <Py_ssize_t> sizeof(Term))
    return memory - start


cdef void prepare(const PoolGeometry* g, char* memory) noexcept nogil:
    cdef Scratch s
    cdef Py_ssize_t i
    layout(g, GATHER, memory, &s)
    prepare_joint(g, &s.joint)
    for i in range(s.slots * s.joint.pitch):
        s.grads[i] = 0
        s.codes[i] = -1


cdef Py_ssize_t load_row(const Task* task, Py_ssize_t plane, Py_ssize_t depth, Py_ssize_t row, const Scratch* s,
                         Py_ssize_t slot) noexcept nogil:
    """Fills a slot of the ring; returns the number of invalid indices.

    The margins are read, and masked by their codes: a gradient row is read in place wherever what lies
    beside it is also part of grad_output, and copied elsewhere.
    """
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t at = ((plane * g.out_size[0] + depth) * g.out_size[1] + row) * out_row(g)
    cdef real* copy = s.grads + slot * s.joint.pitch + s.joint.left
    if at >= s.joint.left and at + s.joint.pitch <= task.outputs:
        s.sources[slot] = task.grad_output + at
    else:
        memcpy(copy, task.grad_output + at, out_row(g) * sizeof(real))
        s.sources[slot] = copy
    return load_indices(g, &task.indices, plane, depth, row, s.codes + slot * s.joint.pitch + s.joint.left)


cdef Py_ssize_t list_windows(const Task* task, const Band* band, Py_ssize_t height, const Scratch* s,
                             Py_ssize_t* bad) noexcept nogil:
    """The rows of windows over one row of the input, in their order; those the ring lacks are loaded."""
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t depth, row, slot, d, h, count = 0
    cdef Py_ssize_t first = first_window(g, 1, height), last = last_window(g, 1, height)
    for depth in range(first_window(g, 0, band.depth), last_window(g, 0, band.depth)):
        d = tap_of(g, 0, band.depth, depth)
        for row in range(first, last):
            h = tap_of(g, 1, height, row)
            if d < 0 or h < 0:
                continue
            slot = (depth & (s.joint.ring[0] - 1)) * s.joint.ring[1] + (row & (s.joint.ring[1] - 1))
            s.rows[count].codes = s.codes + slot * s.joint.pitch + s.joint.left
            s.rows[count].code = <lane> ((d * g.kernel[1] + h) * g.kernel[2])
            if s.held[slot] != depth * g.out_size[1] + row:
                s.held[slot] = depth * g.out_size[1] + row
                bad[0] += load_row(task, band.plane, depth, row, s, slot)
            s.rows[count].grads = s.sources[slot]
            count += 1
    return count


cdef Py_ssize_t list_terms(const Scratch* s, Py_ssize_t rows, Py_ssize_t phase, Py_ssize_t shift) noexcept nogil:
    """The terms of one phase of a row, from `shift` elements into it."""
    cdef Py_ssize_t r, t, at, count = 0
    cdef Term* term
    for r in range(rows):
        for t in range(s.joint.starts[phase], s.joint.starts[phase + 1]):
            at = s.joint.offsets[t] + shift
            term = s.terms + count
            term.grads = s.rows[r].grads + at
            term.codes = s.rows[r].codes + at
            term.code = s.rows[r].code + <lane> s.joint.taps[t]
            count += 1
    return count


cdef Py_ssize_t gather_band(const Task* task, const Band* band, const Scratch* s) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t height, rows, phase, count, slot, bad = 0
    cdef real* to = task.grad_input + ((band.plane * g.in_size[0] + band.depth) * g.in_size[1]) * in_row(g)
    cdef bint thirds = takes_thirds(g)
    for slot in range(s.slots):
        s.held[slot] = -1
    for height in range(band.first, band.last):
        rows = list_windows(task, band, height, s, &bad)
        if thirds:
            if height + 1 + 2 * VL // in_row(g) >= band.last:
                gather_thirds(g, s.rows, rows, to + height * in_row(g), True)
            elif rows == 2:
                gather_thirds(g, s.rows, 2, to + height * in_row(g), False)
            elif rows == 1:
                gather_thirds(g, s.rows, 1, to + height * in_row(g), False)
            else:
                gather_thirds(g, s.rows, rows, to + height * in_row(g), False)
            continue
        if g.stride[2] == 1:
            count = list_terms(s, rows, 0, g.before[2] * g.inner)
            gather(s.terms, count, to + height * in_row(g), in_row(g))
            continue
        for phase in range(g.stride[2]):
            count = list_terms(s, rows, phase, 0)
            gather(s.terms, count, s.joint.phases + phase * s.joint.width, s.joint.width)
        join_phases(g, &s.joint, to + height * in_row(g))
    return bad


cdef void scatter_row(const Task* task, const lane* codes, const real* grads, Py_ssize_t position,
                      real* plane) noexcept nogil:
    """Adds one row of gradients at its indices, all of them valid."""
    cdef Py_ssize_t inner = task.geometry.inner, step = task.geometry.stride[2], pixel, _, i
    cdef const Tap* taps = task.indices.taps
    if inner == 1:
        for pixel in range(task.geometry.out_size[2]):
            plane[position + taps[codes[pixel]].position] += grads[pixel]
            position += step
        return
    for _ in range(task.geometry.out_size[2]):
        for i in range(inner):
            plane[(position + taps[codes[i]].position) * inner + i] += grads[i]
        position += step
        codes += inner
        grads += inner


cdef void scatter_part(const Task* task, const lane* codes, const real* grads, Py_ssize_t position,
                       Py_ssize_t first, Py_ssize_t last, real* plane) noexcept nogil:
    """The same for those that lie at positions first .. last - 1, whatever the others are."""
    cdef Py_ssize_t inner = task.geometry.inner, _, i, to
    for _ in range(task.geometry.out_size[2]):
        for i in range(inner):
            if codes[i] >= 0:
                to = position + task.indices.taps[codes[i]].position
                if first <= to < last:
                    plane[to * inner + i] += grads[i]
        position += task.geometry.stride[2]
        codes += inner
        grads += inner


cdef bint takes_planes(const Task* task) noexcept nogil:
    """May whole planes be scattered some at a time?"""
    cdef const PoolGeometry* g = task.geometry
    return task.indices.kind == CODE_8 and g.inner == 1 and flat(g) and PLANES * input_size(g) < 1 << 30


cdef Py_ssize_t scatter_group(const Task* task, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """`count` planes from `first` on; an invalid index leaves them all at 0."""
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t outputs = output_size(g), inputs = input_size(g), i = 0
    cdef const uint8_t* codes = <const uint8_t*> task.indices.data + first * outputs
    cdef const real* grads = task.grad_output + first * outputs
    cdef real* plane = task.grad_input + first * inputs
    cdef bint wrong = False
    memset(plane, 0, count * inputs * sizeof(real))
    if count == PLANES:
        wrong = scatter_planes(PLANES, task.indices.trusted, g, &task.scatter, codes, grads, plane)
        i = PLANES
    elif count >= PLANES // 2:
        wrong = scatter_planes(PLANES // 2, task.indices.trusted, g, &task.scatter, codes, grads, plane)
        i = PLANES // 2
    for i in range(i, count):
        wrong |= scatter_planes(1, task.indices.trusted, g, &task.scatter, codes + i * outputs, grads + i * outputs,
                                plane + i * inputs)
    if wrong:
        memset(plane, 0, count * inputs * sizeof(real))
    return wrong


cdef Py_ssize_t scatter_band(const Task* task, const Band* band, const Scratch* s) noexcept nogil:
    """Visits the windows that reach into the band; where it is the plane, valid indices cannot miss it."""
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t depth, row, first, last, position, wrong, bad = 0
    cdef real* plane = task.grad_input + band.plane * input_size(g)
    cdef const real* grads
    first = (band.depth * g.in_size[1] + band.first) * g.in_size[2]
    last = first + (band.last - band.first) * g.in_size[2]
    memset(plane + first * g.inner, 0, (last - first) * g.inner * sizeof(real))
    for depth in range(first_window(g, 0, band.depth), last_window(g, 0, band.depth)):
        for row in range(first_window(g, 1, band.first), last_window(g, 1, band.last - 1)):
            wrong = load_indices(g, &task.indices, band.plane, depth, row, s.codes)
            position = ((depth * g.stride[0] - g.before[0]) * g.in_size[1]
                        + row * g.stride[1] - g.before[1]) * g.in_size[2] - g.before[2]
            grads = task.grad_output + ((band.plane * g.out_size[0] + depth) * g.out_size[1] + row) * out_row(g)
            if wrong == 0 and (last - first) * g.inner == input_size(g):
                scatter_row(task, s.codes, grads, position, plane)
            else:
                scatter_part(task, s.codes, grads, position, first, last, plane)
            bad += wrong
    return bad


cdef Py_ssize_t spread_band(const Task* task, const Band* band, const Scratch* s) noexcept nogil:
    """Codes of 8 bits are read in place, others row by row."""
    cdef const PoolGeometry* g = task.geometry
    cdef const real* end = task.grad_output + task.outputs
    cdef Py_ssize_t row, lines = band.last - band.first, rows = g.kernel[1] * in_row(g), bad = 0
    cdef Py_ssize_t at = (band.plane * g.out_size[1] + band.first) * out_row(g)
    cdef real* to = task.grad_input + band.plane * input_size(g) + band.first * rows
    cdef Grads w
    w.values = task.grad_output + at
    w.bytes = <const uint8_t*> task.indices.data + at
    w.lanes = NULL
    w.finish = NULL
    if task.indices.kind == CODE_8:
        if not task.indices.trusted:
            bad = too_large(w.bytes, lines * out_row(g), g.kernel[1] * g.kernel[2])
        spread_lines(g, &w, True, lines, to, end)
    else:
        for row in range(lines):
            bad += load_indices(g, &task.indices, band.plane, 0, band.first + row, s.codes)
            w.lanes = s.codes
            w.values = task.grad_output + at + row * out_row(g)
            spread_lines(g, &w, True, 1, to + row * rows, end)
    if band.last == g.out_size[1]:
        memset(to + lines * rows, 0, rows_after(g) * in_row(g) * sizeof(real))
    return bad


cdef Py_ssize_t run_unit(const Task* task, Py_ssize_t unit, char* memory) noexcept nogil:
    cdef Scratch s
    cdef Band band
    if task.way == PLANEWISE:
        return scatter_group(task, task.group * unit, smaller(task.geometry.planes - task.group * unit, task.group))
    band = band_of(unit, task.cut, task.bands)
    layout(task.geometry, task.way, memory, &s)
    if task.way == GATHER:
        return gather_band(task, &band, &s)
    if task.way == SPREAD:
        return spread_band(task, &band, &s)
    return scatter_band(task, &band, &s)


cdef Py_ssize_t run_all(Task* task, int threads, char* memory) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Scratch s
    cdef Py_ssize_t size = layout(g, task.way, memory, &s), unit, units, bad = 0
    cdef unsigned int mode = 0
    cdef int thread
    task.cut = &g.out_size[0] if task.way == SPREAD else &g.in_size[0]
    task.bands = bands_of(g.planes * task.cut[0], task.cut[1], threads)
    units = g.planes * task.cut[0] * task.bands
    if task.way != SPREAD and task.bands == 1 and takes_planes(task):
        task.way = PLANEWISE
        list_scatter(g, task.indices.taps, &task.scatter)
        task.group = PLANES if g.planes >= 2 * PLANES * threads else PLANES // 2
        units = ceil_div(g.planes, task.group)
    if task.way == GATHER:
        for thread in range(threads):
            prepare(g, memory + thread * size)
    if threads == 1:
        mode = flush_denormals()
        for unit in range(units):
            bad += run_unit(task, unit, memory)
        restore_denormals(mode)
        return bad
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="static"):
            bad += run_unit(task, unit, memory + threadid() * size)
        restore_denormals(mode)
    return bad


def thread_bytes(cnp.ndarray geometry, bint gathers):
    """Bytes of workspace that `backward` needs for each thread."""
    cdef Scratch s
    return layout(<const PoolGeometry*> cnp.PyArray_DATA(geometry), GATHER if gathers else SCATTER, NULL, &s)


def backward(cnp.ndarray geometry, cnp.ndarray taps, codes_at, cnp.ndarray grad_output, cnp.ndarray indices,
             int kind, bint trusted, bint gathers, cnp.ndarray grad_input, cnp.ndarray workspace, int threads):
    """Writes every element of `grad_input`; returns the number of indices that no window holds."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef PoolGeometry longer
    cdef Task task
    cdef Py_ssize_t bad
    task.geometry = g
    task.way = GATHER if gathers else SCATTER
    if lies_side_by_side(g):
        task.way = SPREAD
        if kind == CODE_8:
            longer = side_by_side(g)
            task.geometry = &longer
    task.grad_output = <const real*> cnp.PyArray_DATA(grad_output)
    task.outputs = cnp.PyArray_SIZE(grad_output)
    task.indices.data = cnp.PyArray_DATA(indices)
    task.indices.kind = <IndexKind> kind
    task.indices.trusted = trusted
    task.indices.taps = <const Tap*> cnp.PyArray_DATA(taps)
    task.indices.codes_at = NULL
    if codes_at is not None:
        task.indices.codes_at = <const int32_t*> cnp.PyArray_DATA(<cnp.ndarray> codes_at)
        task.indices.reach = cnp.PyArray_SIZE(<cnp.ndarray> codes_at)
    task.grad_input = <real*> cnp.PyArray_DATA(grad_input)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        bad = run_all(&task, threads, memory)
    return bad
