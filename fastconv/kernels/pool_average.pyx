"""Average pooling and its gradient, by lines.

    out[o] = sum over taps t of in[o * stride + t * dilation - before] / divisor[o]
    grad_input[i] = sum over the windows o that hold i of grad_output[o] / divisor[o], in the order of o

in[...] is 0 in the padding; divisor[o] = divisor_d * divisor_h * divisor_w, one factor an axis. Rows are
summed first, then along the width; the gradient goes the same way, phase by phase of the stride.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memcpy, memset

from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.pool cimport (
    Band, PoolGeometry, band_of, bands_of, carve, fill, first_tap, flat, in_row, input_size, last_tap, out_row,
    output_size, window_rows,
)
from fastconv.kernels.pool_grad cimport (
    Joint, carve_joint, first_window, join_phases, last_window, prepare_joint, tap_of,
)
from fastconv.kernels.pool_reduce cimport QUOTIENTS, Block, Finish, FinishKind, one_line, reduce_exactly, unfinished
from fastconv.kernels.pool_spread cimport Grads, lies_side_by_side, rows_after, side_by_side, spread_lines
from fastconv.kernels.pool_values cimport Call, Scratch, layout, prepare, run_unit
from fastconv.kernels.simd cimport (
    VL, flush_denormals, real, restore_denormals, vdiv, vec, vload, vload_first, vmul, vset1, vstore, vstore_first,
)

cdef enum:
    FEW = 130  # elements added for a row of the input, and four for each row of a window


cdef struct Task:
    const PoolGeometry* geometry
    const real* divisors         # [out depth], [out height], [out width * inner], one after the other
    const real* grad_output
    const real* end              # of grad_output
    real* grad_input
    bint spreads
    Finish finish
    const Py_ssize_t* cut        # size of what the bands are cut from
    Py_ssize_t bands


# Scratch of one thread. The ring holds rows of grad_output over their divisors, one for each window
# over a row of the input; held[slot] is the output row in a slot.
cdef struct Ring:
    Joint joint
    real* scaled                 # [slots][width of the output]
    Py_ssize_t* held
    const real** rows            # [slots]
    real* total                  # [pitch]: sum of the rows, between margins of zeros
    const real** terms           # [kernel width]
    Py_ssize_t slots


cdef Py_ssize_t layout_ring(const PoolGeometry* g, char* memory, Ring* s) noexcept nogil:
    cdef char* start = memory
    cdef Py_ssize_t item = sizeof(real), pointer = sizeof(void*)
    carve_joint(g, &memory, &s.joint)
    s.slots = s.joint.ring[0] * s.joint.ring[1]
    s.scaled = <real*> carve(&memory, s.slots * out_row(g) * item)
    s.held = <Py_ssize_t*> carve(&memory, s.slots * <Py_ssize_t> sizeof(Py_ssize_t))
    s.rows = <const real**> carve(&memory, window_rows(g) * pointer)
    s.total = <real*> carve(&memory, s.joint.pitch * item)
    s.terms = <const real**> carve(&memory, g.kernel[2] * pointer)
    return memory - start


cdef void prepare_ring(const PoolGeometry* g, char* memory) noexcept nogil:
    cdef Ring s
    layout_ring(g, memory, &s)
    prepare_joint(g, &s.joint)
    fill(s.total, 0, s.joint.pitch)


cdef void divide(const Task* task, Py_ssize_t depth, Py_ssize_t height, const real* source, real* to) noexcept nogil:
    """One row of the output over its divisors; `to` may be `source`."""
    cdef const PoolGeometry* g = task.geometry
    cdef const real* columns = task.divisors + g.out_size[0] + g.out_size[1]
    cdef vec row = vset1(task.divisors[depth] * task.divisors[g.out_size[0] + height])
    cdef Py_ssize_t width = out_row(g), i = 0
    while i + VL <= width:
        vstore(to + i, vdiv(vload(source + i), vmul(row, vload(columns + i))))
        i += VL
    if i < width:
        vstore_first(to + i, width - i, vdiv(vload_first(source + i, width - i),
                                             vmul(row, vload_first(columns + i, width - i))))


cdef Py_ssize_t list_windows(const Task* task, const Band* band, Py_ssize_t height, const Ring* s) noexcept nogil:
    """The rows of windows over one row of the input, in their order; those the ring lacks are divided."""
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t depth, row, slot, count = 0
    cdef Py_ssize_t first = first_window(g, 1, height), last = last_window(g, 1, height)
    for depth in range(first_window(g, 0, band.depth), last_window(g, 0, band.depth)):
        if tap_of(g, 0, band.depth, depth) < 0:
            continue
        for row in range(first, last):
            if tap_of(g, 1, height, row) < 0:
                continue
            slot = (depth & (s.joint.ring[0] - 1)) * s.joint.ring[1] + (row & (s.joint.ring[1] - 1))
            s.rows[count] = s.scaled + slot * out_row(g)
            if s.held[slot] != depth * g.out_size[1] + row:
                s.held[slot] = depth * g.out_size[1] + row
                divide(task, depth, row,
                       task.grad_output + ((band.plane * g.out_size[0] + depth) * g.out_size[1] + row) * out_row(g),
                       <real*> s.rows[count])
            count += 1
    return count


cdef Py_ssize_t list_terms(const Ring* s, Py_ssize_t phase, Py_ssize_t shift) noexcept nogil:
    cdef Py_ssize_t first = s.joint.starts[phase], count = s.joint.starts[phase + 1] - first, t
    for t in range(count):
        s.terms[t] = s.total + s.joint.left + s.joint.offsets[first + t] + shift
    return count


cdef void sum_terms(const real** terms, Py_ssize_t count, real* to, Py_ssize_t width) noexcept nogil:
    cdef Block b = one_line(to, width)
    cdef Finish none = unfinished()
    if count == 0:
        memset(to, 0, width * sizeof(real))
    else:
        reduce_exactly(False, terms, count, 1, &b, &none)


cdef void gradient_row(const Task* task, const Band* band, Py_ssize_t height, const Ring* s, real* row) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t phase, count = list_windows(task, band, height, s)
    sum_terms(s.rows, count, s.total + s.joint.left, out_row(g))
    if g.stride[2] == 1:
        count = list_terms(s, 0, g.before[2] * g.inner)
        sum_terms(s.terms, count, row, in_row(g))
        return
    for phase in range(g.stride[2]):
        count = list_terms(s, phase, 0)
        sum_terms(s.terms, count, s.joint.phases + phase * s.joint.width, s.joint.width)
    join_phases(g, &s.joint, row)


cdef void backward_band(const Task* task, const Band* band, const Ring* s) noexcept nogil:
    """Rows that the same windows lie over are equal."""
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t height, slot, first, last, first_before = -1, last_before = -1
    cdef real* row = task.grad_input + (band.plane * g.in_size[0] + band.depth) * g.in_size[1] * in_row(g)
    row += band.first * in_row(g)
    for slot in range(s.slots):
        s.held[slot] = -1
    for height in range(band.first, band.last):
        first = first_window(g, 1, height)
        last = last_window(g, 1, height)
        if first == first_before and last == last_before and g.dilation[1] == 1:
            memcpy(row, row - in_row(g), in_row(g) * sizeof(real))
        else:
            gradient_row(task, band, height, s, row)
        first_before = first
        last_before = last
        row += in_row(g)


cdef inline bint few_outputs(const PoolGeometry* g) noexcept nogil:
    """Is there less to add than to set up rows for?"""
    return (g.inner == 1 and flat(g) and g.dilation[1] == g.dilation[2] == 1
            and g.out_size[1] * g.out_size[2] * g.kernel[1] * (g.kernel[2] + 4) <= FEW * g.in_size[1])


cdef void scatter_band(const Task* task, const Band* band) noexcept nogil:
    """Window after window, to the rows of a band."""
    cdef const PoolGeometry* g = task.geometry
    cdef const real* columns = task.divisors + g.out_size[0] + g.out_size[1]
    cdef real* to = task.grad_input + band.plane * input_size(g)
    cdef const real* grad
    cdef real value, row
    cdef Py_ssize_t p, q, y, x, top, bottom, left
    memset(to + band.first * g.in_size[2], 0, (band.last - band.first) * g.in_size[2] * sizeof(real))
    for p in range(first_window(g, 1, band.first), last_window(g, 1, band.last - 1)):
        row = task.divisors[0] * task.divisors[1 + p]
        grad = task.grad_output + band.plane * output_size(g) + p * g.out_size[2]
        top = larger(p * g.stride[1] - g.before[1], band.first)
        bottom = smaller(p * g.stride[1] - g.before[1] + g.kernel[1], band.last)
        for q in range(g.out_size[2]):
            value = grad[q] / (row * columns[q])
            left = q * g.stride[2] - g.before[2]
            for y in range(top, bottom):
                for x in range(left + first_tap(g, 2, q), left + last_tap(g, 2, q)):
                    to[y * g.in_size[2] + x] += value


cdef void spread_band(const Task* task, const Band* band) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Py_ssize_t lines = band.last - band.first
    cdef real* to = task.grad_input + band.plane * input_size(g) + band.first * g.kernel[1] * in_row(g)
    cdef Grads w
    w.finish = &task.finish
    w.lanes = NULL
    w.bytes = NULL
    w.values = task.grad_output + (band.plane * g.out_size[1] + band.first) * out_row(g)
    spread_lines(g, &w, False, lines, to, task.end)
    if band.last == g.out_size[1]:
        memset(to + lines * g.kernel[1] * in_row(g), 0, rows_after(g) * in_row(g) * sizeof(real))


cdef void gradient_unit(const Task* task, Py_ssize_t unit, char* memory) noexcept nogil:
    cdef Ring s
    cdef Band band = band_of(unit, task.cut, task.bands)
    if task.spreads:
        spread_band(task, &band)
        return
    if few_outputs(task.geometry):
        scatter_band(task, &band)
        return
    layout_ring(task.geometry, memory, &s)
    backward_band(task, &band, &s)


cdef void gradient_all(Task* task, int threads, char* memory) noexcept nogil:
    cdef const PoolGeometry* g = task.geometry
    cdef Ring s
    cdef Py_ssize_t size = layout_ring(g, memory, &s), unit, units
    cdef unsigned int mode = 0
    cdef int thread
    task.cut = &g.out_size[0] if task.spreads else &g.in_size[0]
    task.bands = bands_of(g.planes * task.cut[0], task.cut[1], threads)
    units = g.planes * task.cut[0] * task.bands
    if not task.spreads:
        for thread in range(threads):
            prepare_ring(g, memory + thread * size)
    if threads == 1:
        mode = flush_denormals()
        for unit in range(units):
            gradient_unit(task, unit, memory)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(units, schedule="static"):
            gradient_unit(task, unit, memory + threadid() * size)
        restore_denormals(mode)


cdef void value_unit(const Call* call, Py_ssize_t unit, int thread) noexcept nogil:
    run_unit(False, call, unit, thread)


cdef void value_all(Call* call, const PoolGeometry* g, int threads, char* memory) noexcept nogil:
    cdef Py_ssize_t unit
    cdef unsigned int mode = 0
    prepare(False, call, g, threads, memory)
    if threads == 1:
        mode = flush_denormals()
        for unit in range(call.units):
            value_unit(call, unit, 0)
        restore_denormals(mode)
        return
    with parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(call.units, schedule="static"):
            value_unit(call, unit, threadid())
        restore_denormals(mode)


def thread_bytes(cnp.ndarray geometry, bint is_backward):
    """Bytes of workspace that a call needs for each thread."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef Ring ring
    cdef Scratch* scratch
    return layout_ring(g, NULL, &ring) if is_backward else layout(False, g, NULL, &scratch)


cdef Finish finish_by(const PoolGeometry* g, cnp.ndarray divisors, int kind):
    cdef Finish f
    f.kind = <FinishKind> kind
    f.depths = <const real*> cnp.PyArray_DATA(divisors)
    f.rows = f.depths + g.out_size[0]
    f.columns = f.rows + g.out_size[1]
    f.divisor = f.depths[0] * f.rows[0] * f.columns[0]
    f.reciprocal = 1 / f.divisor
    f.row_step = 1
    return f


def forward(cnp.ndarray geometry, cnp.ndarray divisors, int finish, cnp.ndarray input, cnp.ndarray out,
            cnp.ndarray workspace, int threads):
    """The average of every window; `finish` is a FinishKind."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef Call call
    call.values.input = <const real*> cnp.PyArray_DATA(input)
    call.values.end = call.values.input + cnp.PyArray_SIZE(input)
    call.values.out = <real*> cnp.PyArray_DATA(out)
    call.values.padding = 0
    call.values.finish = finish_by(g, divisors, finish)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        value_all(&call, g, threads, memory)


def backward(cnp.ndarray geometry, cnp.ndarray divisors, int finish, cnp.ndarray grad_output,
             cnp.ndarray grad_input, cnp.ndarray workspace, int threads):
    """Writes every element of `grad_input`."""
    cdef const PoolGeometry* g = <const PoolGeometry*> cnp.PyArray_DATA(geometry)
    cdef char* memory = <char*> cnp.PyArray_DATA(workspace)
    cdef PoolGeometry longer
    cdef Task task
    task.geometry = g
    task.divisors = <const real*> cnp.PyArray_DATA(divisors)
    task.finish = finish_by(g, divisors, finish)
    task.spreads = finish != QUOTIENTS and lies_side_by_side(g)
    if task.spreads:
        longer = side_by_side(g)
        task.geometry = &longer
    task.grad_output = <const real*> cnp.PyArray_DATA(grad_output)
    task.end = task.grad_output + cnp.PyArray_SIZE(grad_output)
    task.grad_input = <real*> cnp.PyArray_DATA(grad_input)
    memory += -<Py_ssize_t> memory & 63
    with nogil:
        gradient_all(&task, threads, memory)
