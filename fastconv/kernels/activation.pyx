"""Elementwise activations, and the softmax family along one axis.

An array that is reduced is read as [outer][count][inner], contiguous, the axis in the middle. A lane is
one of WIDTH neighbours in memory. With inner > 1 each lane is a line along the axis; with inner = 1 a
line is dealt out over the lanes, whose results are then combined in order. Lines and chunks are fixed
by the shape, each is computed by one thread: the bits do not depend on the number of threads.

The loops over lanes have constant length and no branches, so that the compiler turns them into vectors.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange
from libc.math cimport INFINITY, log

from fastconv.kernels.simd cimport (
    VL, flush_denormals, real, restore_denormals, vload, vload_first, vrelu, vstore, vstore_first,
)

cdef enum:
    WIDTH = 32  # lanes: two to eight vectors, enough to hide the latency of a chain of additions
    CHUNK = 4096  # elements of an elementwise operation done at a stretch
    BLOCK_ROWS = 128  # rows summed before their sum joins the total: rounding grows with N / 128 + 128


cdef union Bits:
    real value
    unsigned int narrow
    unsigned long long wide


cdef inline Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t chunks_of(Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    return (count + size - 1) // size


# The exponential, for x <= 0 or NaN:  exp(x) = 2^n exp(r),  n = round(x / ln 2),  r = x - n ln 2.
# Adding 1.5 * 2^(digits - 1) rounds to an integer and leaves n in the low bits of the sum. ln 2 is split in
# two, so that n times its head is exact. |r| <= 0.347: Taylor's remainder is below 0.1 ulp.


cdef inline real exp_narrow(real x) noexcept nogil:
    cdef Bits shifted, scale
    cdef real n, r, p
    shifted.value = x * <real> 1.4426950408889634 + <real> 12582912.0
    n = shifted.value - <real> 12582912.0
    r = (x - n * <real> 0.693359375) - n * <real> -2.12194440e-4
    p = <real> (1.0 / 5040.0) * r + <real> (1.0 / 720.0)
    p = p * r + <real> (1.0 / 120.0)
    p = p * r + <real> (1.0 / 24.0)
    p = p * r + <real> (1.0 / 6.0)
    p = p * r + <real> 0.5
    p = (p * r * r + r) + <real> 1.0
    scale.narrow = (shifted.narrow + 127) << 23
    return p * scale.value if not x < <real> -87.3 else 0


cdef inline real exp_wide(real x) noexcept nogil:
    cdef Bits shifted, scale
    cdef real n, r, p
    shifted.value = x * <real> 1.4426950408889634 + <real> 6755399441055744.0
    n = shifted.value - <real> 6755399441055744.0
    r = (x - n * <real> 0.693147180369123816490) - n * <real> 1.90821492927058770002e-10
    p = <real> (1.0 / 6227020800.0) * r + <real> (1.0 / 479001600.0)
    p = p * r + <real> (1.0 / 39916800.0)
    p = p * r + <real> (1.0 / 3628800.0)
    p = p * r + <real> (1.0 / 362880.0)
    p = p * r + <real> (1.0 / 40320.0)
    p = p * r + <real> (1.0 / 5040.0)
    p = p * r + <real> (1.0 / 720.0)
    p = p * r + <real> (1.0 / 120.0)
    p = p * r + <real> (1.0 / 24.0)
    p = p * r + <real> (1.0 / 6.0)
    p = p * r + <real> 0.5
    p = (p * r * r + r) + <real> 1.0
    scale.wide = (shifted.wide + 1023) << 52
    return p * scale.value if not x < <real> -708.3 else 0


cdef inline real exponential(real x) noexcept nogil:
    """exp(x) for x <= 0, within 2 ulp; 0 where the result would be denormal; NaN stays NaN."""
    return exp_narrow(x) if sizeof(real) == 4 else exp_wide(x)


# One stretch of lanes: `steps` rows of `width` neighbours, `stride` apart. Each function is inlined with the
# constant WIDTH and once with a variable width, for the end of a line.


cdef inline void max_lanes(const real* x, Py_ssize_t steps, Py_ssize_t stride, const Py_ssize_t width,
                           real* best) noexcept nogil:
    """best[lane] = max(best[lane], x). A NaN may be passed over: its exponential is NaN all the same."""
    cdef Py_ssize_t step, lane
    for step in range(steps):
        for lane in range(width):
            best[lane] = x[step * stride + lane] if x[step * stride + lane] > best[lane] else best[lane]


cdef inline void exp_lanes(const real* x, Py_ssize_t steps, Py_ssize_t stride, const Py_ssize_t width,
                           const real* shift, real* out, real* total) noexcept nogil:
    """out = exp(x - shift), total[lane] += out; without `out` the sum alone."""
    cdef Py_ssize_t step, lane
    cdef real value
    if out == NULL:
        for step in range(steps):
            for lane in range(width):
                total[lane] += exponential(x[step * stride + lane] - shift[lane])
        return
    for step in range(steps):
        for lane in range(width):
            value = exponential(x[step * stride + lane] - shift[lane])
            out[step * stride + lane] = value
            total[lane] += value


cdef inline void dot_lanes(const real* x, const real* y, Py_ssize_t steps, Py_ssize_t stride,
                           const Py_ssize_t width, real* total) noexcept nogil:
    cdef Py_ssize_t step, lane
    for step in range(steps):
        for lane in range(width):
            total[lane] += x[step * stride + lane] * y[step * stride + lane]


cdef inline void scale_lanes(real* out, Py_ssize_t steps, Py_ssize_t stride, const Py_ssize_t width,
                             const real* factor) noexcept nogil:
    cdef Py_ssize_t step, lane
    for step in range(steps):
        for lane in range(width):
            out[step * stride + lane] *= factor[lane]


cdef inline void pull_lanes(const real* g, const real* s, Py_ssize_t steps, Py_ssize_t stride,
                            const Py_ssize_t width, const real* dot, real* out) noexcept nogil:
    """out = s (g - dot)."""
    cdef Py_ssize_t step, lane
    for step in range(steps):
        for lane in range(width):
            out[step * stride + lane] = s[step * stride + lane] * (g[step * stride + lane] - dot[lane])


cdef inline void fill(real* lanes, real value) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(WIDTH):
        lanes[lane] = value


cdef inline void spread_max(real* lanes) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(1, WIDTH):
        lanes[0] = lanes[lane] if lanes[lane] > lanes[0] else lanes[0]
    fill(lanes, lanes[0])


cdef inline void spread_sum(real* lanes) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(1, WIDTH):
        lanes[0] += lanes[lane]
    fill(lanes, lanes[0])


# One unit of work: WIDTH lines side by side (inner > 1), or one line dealt out over WIDTH lanes.


cdef struct Lines:
    Py_ssize_t count             # along the axis
    Py_ssize_t inner
    Py_ssize_t units


cdef struct Unit:
    Py_ssize_t offset            # of its first element
    Py_ssize_t line              # number of its first line
    Py_ssize_t steps             # rows of `width` lanes, `stride` apart
    Py_ssize_t stride
    Py_ssize_t width
    Py_ssize_t rest              # elements after them, of a line that was dealt out
    bint dealt


cdef Lines lines_of(Py_ssize_t outer, Py_ssize_t count, Py_ssize_t inner) noexcept nogil:
    cdef Lines lines
    lines.count = count
    lines.inner = inner
    lines.units = outer * chunks_of(inner, WIDTH)
    return lines


cdef Unit unit_of(const Lines* lines, Py_ssize_t number) noexcept nogil:
    cdef Unit unit
    cdef Py_ssize_t chunks = chunks_of(lines.inner, WIDTH)
    cdef Py_ssize_t first = number % chunks * WIDTH
    unit.line = number // chunks * lines.inner + first
    unit.offset = number // chunks * lines.count * lines.inner + first
    unit.dealt = lines.inner == 1
    unit.steps = lines.count // WIDTH if unit.dealt else lines.count
    unit.stride = WIDTH if unit.dealt else lines.inner
    unit.width = WIDTH if unit.dealt else smaller(WIDTH, lines.inner - first)
    unit.rest = lines.count % WIDTH if unit.dealt else 0
    return unit


cdef void unit_max(const Unit* u, const real* x, real* best) noexcept nogil:
    fill(best, -INFINITY)
    if u.width == WIDTH:
        max_lanes(x, u.steps, u.stride, WIDTH, best)
    else:
        max_lanes(x, u.steps, u.stride, u.width, best)
    if u.dealt:
        max_lanes(x + u.steps * WIDTH, 1, 0, u.rest, best)
        spread_max(best)


cdef void unit_exp(const Unit* u, const real* x, const real* shift, real* out, real* total) noexcept nogil:
    fill(total, 0)
    if u.width == WIDTH:
        exp_lanes(x, u.steps, u.stride, WIDTH, shift, out, total)
    else:
        exp_lanes(x, u.steps, u.stride, u.width, shift, out, total)
    if u.dealt:
        exp_lanes(x + u.steps * WIDTH, 1, 0, u.rest, shift,
                  NULL if out == NULL else out + u.steps * WIDTH, total)
        spread_sum(total)


cdef void unit_dot(const Unit* u, const real* x, const real* y, real* total) noexcept nogil:
    fill(total, 0)
    if u.width == WIDTH:
        dot_lanes(x, y, u.steps, u.stride, WIDTH, total)
    else:
        dot_lanes(x, y, u.steps, u.stride, u.width, total)
    if u.dealt:
        dot_lanes(x + u.steps * WIDTH, y + u.steps * WIDTH, 1, 0, u.rest, total)
        spread_sum(total)


cdef void unit_scale(const Unit* u, real* out, const real* factor) noexcept nogil:
    if u.width == WIDTH:
        scale_lanes(out, u.steps, u.stride, WIDTH, factor)
    else:
        scale_lanes(out, u.steps, u.stride, u.width, factor)
    if u.dealt:
        scale_lanes(out + u.steps * WIDTH, 1, 0, u.rest, factor)


cdef void unit_pull(const Unit* u, const real* g, const real* s, const real* dot, real* out) noexcept nogil:
    cdef Py_ssize_t end = u.steps * WIDTH
    if u.width == WIDTH:
        pull_lanes(g, s, u.steps, u.stride, WIDTH, dot, out)
    else:
        pull_lanes(g, s, u.steps, u.stride, u.width, dot, out)
    if u.dealt:
        pull_lanes(g + end, s + end, 1, 0, u.rest, dot, out + end)


cdef void softmax_unit(const Lines* lines, Py_ssize_t number, const real* x, real* out) noexcept nogil:
    """s_i = exp(x_i - max) / sum_j exp(x_j - max)."""
    cdef Unit u = unit_of(lines, number)
    cdef real[WIDTH] shift, total
    cdef Py_ssize_t lane
    unit_max(&u, x + u.offset, shift)
    unit_exp(&u, x + u.offset, shift, out + u.offset, total)
    for lane in range(WIDTH):
        total[lane] = 1 / total[lane]
    unit_scale(&u, out + u.offset, total)


cdef void softmax_backward_unit(const Lines* lines, Py_ssize_t number, const real* g, const real* s,
                                real* out) noexcept nogil:
    """dx_i = s_i (g_i - sum_j g_j s_j)."""
    cdef Unit u = unit_of(lines, number)
    cdef real[WIDTH] dot
    unit_dot(&u, g + u.offset, s + u.offset, dot)
    unit_pull(&u, g + u.offset, s + u.offset, dot, out + u.offset)


cdef void cross_entropy_unit(const Lines* lines, Py_ssize_t number, const real* x,
                             const Py_ssize_t* target, real* loss) noexcept nogil:
    """loss = log(sum_j exp(x_j - max)) - (x_target - max)."""
    cdef Unit u = unit_of(lines, number)
    cdef real[WIDTH] shift, total
    cdef Py_ssize_t lane, line
    unit_max(&u, x + u.offset, shift)
    unit_exp(&u, x + u.offset, shift, NULL, total)
    for lane in range(1 if u.dealt else u.width):
        line = u.line + lane
        loss[line] = <real> log(total[lane]) - (x[u.offset + lane + target[line] * lines.inner] - shift[lane])


cdef void cross_entropy_backward_unit(const Lines* lines, Py_ssize_t number, const real* x,
                                      const Py_ssize_t* target, const real* scale, real* out) noexcept nogil:
    """dx_j = scale (softmax(x)_j - [j = target])."""
    cdef Unit u = unit_of(lines, number)
    cdef real[WIDTH] factor
    cdef Py_ssize_t lane, lanes = 1 if u.dealt else u.width
    softmax_unit(lines, number, x, out)
    for lane in range(lanes):
        factor[lane] = scale[u.line + lane]
        out[u.offset + lane + target[u.line + lane] * lines.inner] -= 1
    if u.dealt:
        fill(factor, factor[0])
    unit_scale(&u, out + u.offset, factor)


# Entries. Arrays are contiguous, aligned and of the engine's type; fastconv.dense has checked them.


def softmax(Py_ssize_t outer, Py_ssize_t count, Py_ssize_t inner, cnp.ndarray input, cnp.ndarray out,
            int threads):
    cdef Lines lines = lines_of(outer, count, inner)
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t unit
    cdef unsigned int mode = 0
    with nogil, parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(lines.units, schedule="static"):
            softmax_unit(&lines, unit, x, to)
        restore_denormals(mode)


def softmax_backward(Py_ssize_t outer, Py_ssize_t count, Py_ssize_t inner, cnp.ndarray grad_output,
                     cnp.ndarray output, cnp.ndarray out, int threads):
    cdef Lines lines = lines_of(outer, count, inner)
    cdef const real* g = <const real*> cnp.PyArray_DATA(grad_output)
    cdef const real* s = <const real*> cnp.PyArray_DATA(output)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t unit
    cdef unsigned int mode = 0
    with nogil, parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(lines.units, schedule="static"):
            softmax_backward_unit(&lines, unit, g, s, to)
        restore_denormals(mode)


def cross_entropy(Py_ssize_t outer, Py_ssize_t count, Py_ssize_t inner, cnp.ndarray logits,
                  cnp.ndarray target, cnp.ndarray losses, int threads):
    """Losses of [outer][inner] samples; `target` holds labels of type intp in 0 .. count - 1."""
    cdef Lines lines = lines_of(outer, count, inner)
    cdef const real* x = <const real*> cnp.PyArray_DATA(logits)
    cdef const Py_ssize_t* label = <const Py_ssize_t*> cnp.PyArray_DATA(target)
    cdef real* to = <real*> cnp.PyArray_DATA(losses)
    cdef Py_ssize_t unit
    cdef unsigned int mode = 0
    with nogil, parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(lines.units, schedule="static"):
            cross_entropy_unit(&lines, unit, x, label, to)
        restore_denormals(mode)


def cross_entropy_backward(Py_ssize_t outer, Py_ssize_t count, Py_ssize_t inner, cnp.ndarray logits,
                           cnp.ndarray target, cnp.ndarray scale, cnp.ndarray out, int threads):
    """`scale` holds the gradient of each sample's loss."""
    cdef Lines lines = lines_of(outer, count, inner)
    cdef const real* x = <const real*> cnp.PyArray_DATA(logits)
    cdef const Py_ssize_t* label = <const Py_ssize_t*> cnp.PyArray_DATA(target)
    cdef const real* factor = <const real*> cnp.PyArray_DATA(scale)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t unit
    cdef unsigned int mode = 0
    with nogil, parallel(num_threads=threads):
        mode = flush_denormals()
        for unit in prange(lines.units, schedule="static"):
            cross_entropy_backward_unit(&lines, unit, x, label, factor, to)
        restore_denormals(mode)


# Denormals are kept here: a comparison that took them for zero would let negative ones through.


cdef void relu_chunk(const real* x, real* out, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i + VL <= count:
        vstore(out + i, vrelu(vload(x + i)))
        i += VL
    if i < count:
        vstore_first(out + i, count - i, vrelu(vload_first(x + i, count - i)))


cdef void relu_backward_chunk(const real* g, const real* x, real* out, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    cdef real value
    for i in range(count):
        value = g[i]
        out[i] = 0 if x[i] <= 0 else value


def relu(cnp.ndarray input, cnp.ndarray out, int threads):
    """out = max(input, 0); NaN stays NaN."""
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t count = cnp.PyArray_SIZE(out), chunk
    for chunk in prange(chunks_of(count, CHUNK), num_threads=threads, nogil=True, schedule="static"):
        relu_chunk(x + chunk * CHUNK, to + chunk * CHUNK, smaller(CHUNK, count - chunk * CHUNK))


def relu_backward(cnp.ndarray grad_output, cnp.ndarray input, cnp.ndarray out, int threads):
    """out = 0 where input <= 0, else grad_output."""
    cdef const real* g = <const real*> cnp.PyArray_DATA(grad_output)
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t count = cnp.PyArray_SIZE(out), chunk, start
    for chunk in prange(chunks_of(count, CHUNK), num_threads=threads, nogil=True, schedule="static"):
        start = chunk * CHUNK
        relu_backward_chunk(g + start, x + start, to + start, smaller(CHUNK, count - start))


cdef void sum_columns(const real* x, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t width,
                      real* out) noexcept nogil:
    """Sums of `width` <= WIDTH columns, in blocks of rows."""
    cdef real[WIDTH] total, part
    cdef Py_ssize_t row = 0, end, lane
    fill(total, 0)
    while row < rows:
        fill(part, 0)
        end = smaller(row + BLOCK_ROWS, rows)
        while row < end:
            for lane in range(width):
                part[lane] += x[row * columns + lane]
            row += 1
        for lane in range(WIDTH):
            total[lane] += part[lane]
    for lane in range(width):
        out[lane] = total[lane]


def column_sums(Py_ssize_t rows, Py_ssize_t columns, cnp.ndarray input, cnp.ndarray out, int threads):
    """out[j] = sum over i of input[i, j]."""
    cdef const real* x = <const real*> cnp.PyArray_DATA(input)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t chunk, start
    for chunk in prange(chunks_of(columns, WIDTH), num_threads=threads, nogil=True, schedule="static"):
        start = chunk * WIDTH
        sum_columns(x + start, rows, columns, smaller(WIDTH, columns - start), to + start)
