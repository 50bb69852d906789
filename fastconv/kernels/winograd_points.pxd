"""One-dimensional Winograd transforms of vectors: a convolution becomes a product of values at points.

    outputs = sum_points(weight_points(taps) * input_points(inputs)),   points = outputs + taps - 1

4 points are 0, 1, -1 and infinity; 6 are 0, p, -p, q, -q and infinity with p = sqrt(1/2) and q = sqrt(2), whose
rounding errors are a quarter of those of 1 and 2. What divides the products is part of the weights' transform.
fastconv/winograd.py derives the matrices from the points, and the tests compare.

A point and its negative share their even and their odd half: 12 operations for 6 points. All work in place.
"""

from fastconv.kernels.simd cimport real, vadd, vec, vfma, vmul, vset1, vsub

cdef enum:
    MOST_POINTS = 6  # along an axis


cdef inline vec scaled(double factor, vec a) noexcept nogil:
    return vmul(vset1(<real> factor), a)


cdef inline vec plus(vec a, double factor, vec b) noexcept nogil:
    """a + factor * b"""
    return vfma(vset1(<real> factor), b, a)


cdef inline void input_points(const int points, vec* d) noexcept nogil:
    """Values, up to what divides them, of the polynomials that vanish at all points but one."""
    cdef vec even, odd, near_even, near_odd
    if points == 4:
        even = d[2]
        odd = d[1]
        d[0] = vsub(d[0], d[2])
        d[3] = vsub(d[3], d[1])
        d[1] = vadd(even, odd)
        d[2] = vsub(even, odd)
    else:
        near_even = plus(d[4], -2, d[2])
        near_odd = plus(d[3], -2, d[1])
        even = plus(d[4], -0.5, d[2])
        odd = plus(d[3], -0.5, d[1])
        d[0] = plus(vadd(d[0], d[4]), -2.5, d[2])
        d[5] = plus(vadd(d[1], d[5]), -2.5, d[3])
        d[1] = plus(near_even, 0.70710678118654752440, near_odd)
        d[2] = plus(near_even, -0.70710678118654752440, near_odd)
        d[3] = plus(even, 1.41421356237309504880, odd)
        d[4] = plus(even, -1.41421356237309504880, odd)


cdef inline void weight_points(const int points, const int taps, vec* g) noexcept nogil:
    """The polynomial of the taps at each point, divided by the product of the distances to the others."""
    cdef vec even, odd, far_even, far_odd, last = g[taps - 1]
    if points == 4:
        even = scaled(0.5, vadd(g[0], g[2]) if taps == 3 else g[0])
        odd = scaled(0.5, g[1])
        g[1] = vadd(even, odd)
        g[2] = vsub(even, odd)
        g[3] = last
    else:
        even = scaled(-2.0 / 3, plus(g[0], 0.5, g[2]))
        far_even = scaled(1.0 / 6, plus(g[0], 2, g[2]))
        odd = plus(g[1], 0.5, g[3]) if taps == 4 else g[1]
        far_odd = plus(g[1], 2, g[3]) if taps == 4 else g[1]
        g[1] = plus(even, -2.0 / 3 * 0.70710678118654752440, odd)
        g[2] = plus(even, 2.0 / 3 * 0.70710678118654752440, odd)
        g[3] = plus(far_even, 1.0 / 6 * 1.41421356237309504880, far_odd)
        g[4] = plus(far_even, -1.0 / 6 * 1.41421356237309504880, far_odd)
        g[5] = last


cdef inline void sum_points(const int points, const int outputs, vec* m) noexcept nogil:
    """Powers of the points, summed: the first `outputs` of m are results."""
    cdef vec even, odd, far_even, far_odd
    if points == 4:
        even = vadd(m[1], m[2])
        odd = vsub(m[1], m[2])
        m[0] = vadd(m[0], even)
        m[1] = vadd(odd, m[3]) if outputs == 2 else odd
        if outputs == 3:
            m[2] = vadd(even, m[3])
    else:
        even = vadd(m[1], m[2])
        odd = vsub(m[1], m[2])
        far_even = vadd(m[3], m[4])
        far_odd = vsub(m[3], m[4])
        m[0] = vadd(vadd(m[0], even), far_even)
        m[1] = plus(scaled(0.70710678118654752440, odd), 1.41421356237309504880, far_odd)
        m[2] = plus(scaled(0.5, even), 2, far_even)
        if outputs == 3:
            m[2] = vadd(m[2], m[5])
        else:
            m[3] = plus(plus(m[5], 0.35355339059327376220, odd), 2.82842712474619009760, far_odd)
