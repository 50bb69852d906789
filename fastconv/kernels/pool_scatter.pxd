"""Gradients of maxima by scattering: each window adds its gradient where its index says.

    plane[position of window o + positions[codes[o]]] += grads[o]

over whole planes of channels first, whose codes of 8 bits have been checked. Element by element the sums run in the
order of the windows, as when gathered.
"""

from libc.stdint cimport uint8_t

from fastconv.kernels.pool cimport PoolGeometry, input_size, output_size
from fastconv.kernels.pool_index cimport Tap
from fastconv.kernels.simd cimport real


cdef inline void scatter_row_of(bint both, const Py_ssize_t* positions, const uint8_t* codes, const real* grads,
                                Py_ssize_t pixels, Py_ssize_t step, real* plane, Py_ssize_t outputs,
                                Py_ssize_t inputs) noexcept nogil:
    """plane[positions[codes[i]] + i * step] += grads[i], and likewise in the next plane."""
    cdef const uint8_t* next_codes = codes + outputs
    cdef const real* next_grads = grads + outputs
    cdef real* next_plane = plane + inputs
    cdef Py_ssize_t i
    for i in range(pixels):
        plane[positions[codes[i]]] += grads[i]
        plane += step
        if both:
            next_plane[positions[next_codes[i]]] += next_grads[i]
            next_plane += step


cdef inline void scatter_planes(bint both, const PoolGeometry* g, const Tap* taps, const uint8_t* codes,
                                const real* grads, real* plane) noexcept nogil:
    """One plane, or two in turn: neighbours often add to the same element, and each of its sums waits for the last."""
    cdef Py_ssize_t[256] positions
    cdef Py_ssize_t _, t, outputs = output_size(g), inputs = input_size(g)
    for t in range(g.kernel[1] * g.kernel[2]):
        positions[t] = taps[t].position
    plane -= g.before[1] * g.in_size[2] + g.before[2]
    for _ in range(g.out_size[1]):
        scatter_row_of(both, positions, codes, grads, g.out_size[2], g.stride[2], plane, outputs, inputs)
        codes += g.out_size[2]
        grads += g.out_size[2]
        plane += g.stride[1] * g.in_size[2]
