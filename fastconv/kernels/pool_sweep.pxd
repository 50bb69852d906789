"""Maxima of windows with stride 1 along one axis, in three steps however long the windows are.

    to[o * pitch + j] = max over t < window of source[(o - before + t) * step + at + j], where that is inside

Outputs come in blocks of as many as a window has steps. One step of the input, the `shared` one, is the last of the
block's first window and the first of its last window, so that

    max of window o = max(suffix[first step of the window], prefix[last step of the window])

with suffixes taken backwards from before the shared step, prefixes onwards from it (van Herk; Gil and Werman). Blocks
are counted from the axis's first output, whatever range is asked for.
"""

from fastconv.kernels.gemm_pack cimport larger, smaller
from fastconv.kernels.simd cimport (
    VL, has_nan, real, vadd, vat_least, vec, vload, vload_first, vmax, vset1, vstore, vstore_first, vzero,
)

cdef enum:
    WIDE = 4                 # vectors that are swept together, at most


# An axis, and the part of a block that is wanted.
cdef struct Sweep:
    const real* source
    Py_ssize_t step          # elements from one step of the input to the next
    Py_ssize_t length        # of the input
    Py_ssize_t window
    Py_ssize_t before        # padding
    Py_ssize_t pitch         # from one output to the next
    real padding
    Py_ssize_t lanes         # of the last vector
    bint exact               # no more of it may be stored
    Py_ssize_t gap           # elements after them that become padding
    Py_ssize_t lowest        # steps of the input: the first of all, and the shared one
    Py_ssize_t shared
    Py_ssize_t first         # the first step of the first window, and one past that of the last
    Py_ssize_t last
    Py_ssize_t count         # of steps of the first window from the shared one on


cdef inline Py_ssize_t aim(Sweep* s, Py_ssize_t output, Py_ssize_t last) noexcept nogil:
    """The outputs from `output` to the end of their block, or to before `last`; returns how many they are."""
    cdef Py_ssize_t top = output // s.window * s.window
    last = smaller(top + s.window, last)
    s.first = output - s.before
    s.last = last - s.before
    s.shared = smaller(top - s.before + s.window - 1, s.length)
    s.lowest = smaller(larger(s.first, 0), s.shared)
    s.count = output - top + 1
    return last - output


cdef inline vec most_of(bint numbers, vec a, vec b) noexcept nogil:
    """The larger; of equal ones a. If they are not known to be numbers, NaN where either is."""
    return vat_least(a, b) if numbers else vmax(b, a)


cdef inline void load_step(const int vectors, const real* source, Py_ssize_t lanes, vec* to) noexcept nogil:
    cdef int j
    for j in range(vectors - 1):
        to[j] = vload(source + j * VL)
    to[vectors - 1] = vload_first(source + (vectors - 1) * VL, lanes)


cdef inline bint sweep_some(bint numbers, const int vectors, const Sweep* s, Py_ssize_t at, real* suffixes,
                            real* to) noexcept nogil:
    """Some vectors, from element `at` of each step on.

    True if the input may hold a NaN: then its sum is one, as where infinities of both signs meet.
    """
    cdef vec[WIDE] most, here, total
    cdef vec padding = vset1(s.padding), result
    cdef Py_ssize_t step = s.step, lanes = s.lanes, o, i
    cdef const real* source = s.source + at + s.shared * step
    cdef const real* end = s.source + at + s.length * step
    cdef real* suffix = suffixes + (s.shared - s.lowest) * vectors * VL
    cdef int j
    for j in range(vectors):
        most[j] = padding
        total[j] = vzero()
        vstore(suffix + j * VL, padding)
    for o in range(s.shared - s.lowest):
        load_step(vectors, source - (o + 1) * step, lanes, here)
        suffix -= vectors * VL
        for j in range(vectors):
            total[j] = vadd(total[j], here[j])
            most[j] = most_of(numbers, most[j], here[j])
            vstore(suffix + j * VL, most[j])
    for j in range(vectors):
        most[j] = padding
    for o in range(s.first - s.count + 1, s.last):  # before s.first, steps that its window holds as well
        if source < end:
            load_step(vectors, source, lanes, here)
            for j in range(vectors):
                total[j] = vadd(total[j], here[j])
                most[j] = most_of(numbers, most[j], here[j])
            source += step
        if o < s.first:
            continue
        for j in range(vectors):
            result = most_of(numbers, most[j], vload(suffix + j * VL))
            if j == vectors - 1 and s.exact:
                vstore_first(to + j * VL, lanes, result)
            else:
                vstore(to + j * VL, result)
        if o >= s.lowest:
            suffix += vectors * VL
        i = 0
        while i < s.gap:
            vstore(to + (vectors - 1) * VL + lanes + i, padding)
            i += VL
        to += s.pitch
    for j in range(1, vectors):
        total[0] = vadd(total[0], total[j])
    return has_nan(total[0])


cdef inline bint sweep(bint numbers, Py_ssize_t vectors, const Sweep* s, Py_ssize_t at, real* suffixes,
                       real* to) noexcept nogil:
    if vectors == 1:
        return sweep_some(numbers, 1, s, at, suffixes, to)
    if vectors == 2:
        return sweep_some(numbers, 2, s, at, suffixes, to)
    if vectors == 3:
        return sweep_some(numbers, 3, s, at, suffixes, to)
    return sweep_some(numbers, 4, s, at, suffixes, to)
