"""Gradients of maxima by scattering: each window adds its gradient where its index says.

    plane[position of window o + positions[codes[o]]] += grads[o]

over whole planes of channels first, whose codes of 8 bits have been checked. Element by element the sums run in the
order of the windows, as when gathered.
"""

from libc.stdint cimport uint8_t

from fastconv.kernels.pool cimport PoolGeometry, input_size, output_size
from fastconv.kernels.pool_index cimport Tap
from fastconv.kernels.simd cimport real


# By code.
cdef struct Taps:
    Py_ssize_t[256] positions
    uint8_t[256] columns


cdef inline void scatter_rows(const int planes, const Py_ssize_t* positions, const uint8_t* codes, const real* grads,
                              Py_ssize_t pixels, Py_ssize_t step, real* plane, Py_ssize_t outputs,
                              Py_ssize_t inputs) noexcept nogil:
    """plane[positions[codes[i]] + i * step] += grads[i], of one row in each plane."""
    cdef Py_ssize_t i
    cdef int p
    for i in range(pixels):
        for p in range(planes):
            plane[p * inputs + positions[codes[p * outputs + i]]] += grads[p * outputs + i]
        plane += step


cdef inline void list_taps(const PoolGeometry* g, const Tap* taps, Taps* to) noexcept nogil:
    cdef Py_ssize_t t
    for t in range(g.kernel[1] * g.kernel[2]):
        to.positions[t] = taps[t].position
        to.columns[t] = <uint8_t> (t % g.kernel[2])


cdef inline void scatter_planes(const int planes, const PoolGeometry* g, const Py_ssize_t* positions,
                                const uint8_t* codes, const real* grads, real* plane) noexcept nogil:
    """Some planes in turn: neighbours often add to the same element, and each of its sums waits for the last."""
    cdef Py_ssize_t _, outputs = output_size(g), inputs = input_size(g)
    plane -= g.before[1] * g.in_size[2] + g.before[2]
    for _ in range(g.out_size[1]):
        scatter_rows(planes, positions, codes, grads, g.out_size[2], g.stride[2], plane, outputs, inputs)
        codes += g.out_size[2]
        grads += g.out_size[2]
        plane += g.stride[1] * g.in_size[2]
