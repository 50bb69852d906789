"""One-dimensional Winograd transforms of vectors: a convolution becomes a product of values at points.

    outputs = sum_points(weight_points(weights) * input_points(inputs)),   points = outputs + 2
    weight gradient = sum_taps(grad_points(grad_outputs) * input_points(inputs))

4 points are 0, 1, -1 and infinity; 5 are 5/4, -5/4, 3/8, -3/8 and infinity; 6 are 0, 5/8, -5/8, 3/2, -3/2 and
infinity, whose rounding errors are a quarter of those of 1 and 2; 8 are 0, 1/2, -1/2, 1, -1, 2, -2 and infinity. The
constants of input_points are exact. What divides the products is part of the weights' transform, and of weight
gradients that of the sums: no rounding more for either. fastconv/winograd.py derives the matrices from the points, and
the tests compare.

A point and its negative share their even and their odd half: 12 operations for 6 points. All work in place.
"""

from fastconv.kernels.simd cimport real, vadd, vec, vfma, vmul, vset1, vsub, vzero

cdef enum:
    MOST_POINTS = 8  # along an axis


cdef inline vec scaled(double factor, vec a) noexcept nogil:
    return vmul(vset1(<real> factor), a)


cdef inline vec plus(vec a, double factor, vec b) noexcept nogil:
    """a + factor * b"""
    return vfma(vset1(<real> factor), b, a)


cdef inline void input_points(const int points, vec* d) noexcept nogil:
    """Values, up to what divides them, of the polynomials that vanish at all points but one."""
    cdef vec even, odd, near_even, near_odd, far_even, far_odd
    if points == 4:
        even = d[2]
        odd = d[1]
        d[0] = vsub(d[0], d[2])
        d[3] = vsub(d[3], d[1])
        d[1] = vadd(even, odd)
        d[2] = vsub(even, odd)
    elif points == 5:
        near_even = plus(d[2], -1.5625, d[0])
        near_odd = plus(d[3], -1.5625, d[1])
        far_even = plus(d[2], -0.140625, d[0])
        far_odd = plus(d[3], -0.140625, d[1])
        d[4] = plus(plus(d[4], 0.2197265625, d[0]), -1.703125, d[2])
        d[0] = plus(far_odd, 1.25, far_even)
        d[1] = plus(far_odd, -1.25, far_even)
        d[2] = plus(near_odd, 0.375, near_even)
        d[3] = plus(near_odd, -0.375, near_even)
    elif points == 6:
        near_even = plus(d[4], -2.25, d[2])
        near_odd = plus(d[3], -2.25, d[1])
        far_even = plus(d[4], -0.390625, d[2])
        far_odd = plus(d[3], -0.390625, d[1])
        d[0] = plus(plus(d[4], 0.87890625, d[0]), -2.640625, d[2])
        d[5] = plus(plus(d[5], 0.87890625, d[1]), -2.640625, d[3])
        d[1] = plus(near_even, 0.625, near_odd)
        d[2] = plus(near_even, -0.625, near_odd)
        d[3] = plus(far_even, 1.5, far_odd)
        d[4] = plus(far_even, -1.5, far_odd)
    else:
        near_even = plus(plus(d[6], -5, d[4]), 4, d[2])
        near_odd = plus(plus(d[5], -5, d[3]), 4, d[1])
        even = plus(vadd(d[2], d[6]), -4.25, d[4])
        odd = plus(vadd(d[1], d[5]), -4.25, d[3])
        far_even = plus(plus(d[6], -1.25, d[4]), 0.25, d[2])
        far_odd = plus(plus(d[5], -1.25, d[3]), 0.25, d[1])
        d[0] = plus(vsub(d[0], d[6]), 5.25, vsub(d[4], d[2]))
        d[7] = plus(vsub(d[7], d[1]), 5.25, vsub(d[3], d[5]))
        d[1] = plus(near_even, 0.5, near_odd)
        d[2] = plus(near_even, -0.5, near_odd)
        d[3] = vadd(even, odd)
        d[4] = vsub(even, odd)
        d[5] = plus(far_even, 2, far_odd)
        d[6] = plus(far_even, -2, far_odd)


cdef inline void weight_points(const int points, vec* g) noexcept nogil:
    """The polynomial of three taps at each point, divided by the product of the distances to the others."""
    cdef vec even, near_even, far_even, odd = g[1], last = g[2]
    if points == 4:
        even = scaled(0.5, vadd(g[0], last))
        g[1] = plus(even, 0.5, odd)
        g[2] = plus(even, -0.5, odd)
        g[3] = last
    elif points == 5:
        near_even = scaled(256.0 / 273, plus(g[0], 0.140625, last))
        far_even = scaled(128.0 / 455, plus(g[0], 1.5625, last))
        odd = scaled(32.0 / 91, odd)
        g[0] = vadd(odd, far_even)
        g[1] = vsub(odd, far_even)
        g[2] = vsub(vsub(vzero(), near_even), odd)
        g[3] = vsub(near_even, odd)
        g[4] = last
    elif points == 6:
        near_even = scaled(-2048.0 / 2975, plus(g[0], 0.390625, last))
        far_even = scaled(128.0 / 1071, plus(g[0], 2.25, last))
        g[0] = scaled(256.0 / 225, g[0])
        g[1] = plus(near_even, -256.0 / 595, odd)
        g[2] = plus(near_even, 256.0 / 595, odd)
        g[3] = plus(far_even, 64.0 / 357, odd)
        g[4] = plus(far_even, -64.0 / 357, odd)
        g[5] = last
    else:
        near_even = scaled(32.0 / 45, plus(g[0], 0.25, last))
        even = scaled(-2.0 / 9, vadd(g[0], last))
        far_even = scaled(1.0 / 90, plus(g[0], 4, last))
        g[1] = plus(near_even, 16.0 / 45, odd)
        g[2] = plus(near_even, -16.0 / 45, odd)
        g[3] = plus(even, -2.0 / 9, odd)
        g[4] = plus(even, 2.0 / 9, odd)
        g[5] = plus(far_even, 1.0 / 45, odd)
        g[6] = plus(far_even, -1.0 / 45, odd)
        g[7] = last


cdef inline void sum_points(const int points, vec* m) noexcept nogil:
    """Powers of the points, summed: the first `points` - 2 of m are outputs."""
    cdef vec even, odd, near_even, near_odd, far_even, far_odd
    if points == 4:
        even = vadd(m[1], m[2])
        odd = vsub(m[1], m[2])
        m[0] = vadd(m[0], even)
        m[1] = vadd(odd, m[3])
    elif points == 5:
        far_even = vadd(m[0], m[1])
        far_odd = vsub(m[0], m[1])
        near_even = vadd(m[2], m[3])
        near_odd = vsub(m[2], m[3])
        m[0] = vadd(near_even, far_even)
        m[1] = plus(scaled(0.375, near_odd), 1.25, far_odd)
        m[2] = plus(plus(m[4], 0.140625, near_even), 1.5625, far_even)
    elif points == 6:
        near_even = vadd(m[1], m[2])
        near_odd = vsub(m[1], m[2])
        far_even = vadd(m[3], m[4])
        far_odd = vsub(m[3], m[4])
        m[0] = vadd(vadd(m[0], near_even), far_even)
        m[1] = plus(scaled(0.625, near_odd), 1.5, far_odd)
        m[2] = plus(scaled(0.390625, near_even), 2.25, far_even)
        m[3] = plus(plus(m[5], 0.244140625, near_odd), 3.375, far_odd)
    else:
        near_even = vadd(m[1], m[2])
        near_odd = vsub(m[1], m[2])
        even = vadd(m[3], m[4])
        odd = vsub(m[3], m[4])
        far_even = vadd(m[5], m[6])
        far_odd = vsub(m[5], m[6])
        m[0] = vadd(vadd(m[0], near_even), vadd(even, far_even))
        m[1] = plus(plus(odd, 0.5, near_odd), 2, far_odd)
        m[2] = plus(plus(even, 0.25, near_even), 4, far_even)
        m[3] = plus(plus(odd, 0.125, near_odd), 8, far_odd)
        m[4] = plus(plus(even, 0.0625, near_even), 16, far_even)
        m[5] = plus(plus(vadd(odd, m[7]), 0.03125, near_odd), 32, far_odd)


cdef inline void grad_points(const int points, vec* g) noexcept nogil:
    """The polynomial of `points` - 2 gradients at each point."""
    cdef vec even, odd, far_even, far_odd
    if points == 4:
        even = g[0]
        odd = g[1]
        g[1] = vadd(even, odd)
        g[2] = vsub(even, odd)
        g[3] = odd
    elif points == 5:
        even = plus(g[0], 0.140625, g[2])
        odd = g[1]
        far_even = plus(g[0], 1.5625, g[2])
        g[4] = g[2]
        g[0] = plus(far_even, 1.25, odd)
        g[1] = plus(far_even, -1.25, odd)
        g[2] = plus(even, 0.375, odd)
        g[3] = plus(even, -0.375, odd)
    else:
        even = plus(g[0], 0.390625, g[2])
        odd = plus(g[1], 0.390625, g[3])
        far_even = plus(g[0], 2.25, g[2])
        far_odd = plus(g[1], 2.25, g[3])
        g[5] = g[3]
        g[1] = plus(even, 0.625, odd)
        g[2] = plus(even, -0.625, odd)
        g[3] = plus(far_even, 1.5, far_odd)
        g[4] = plus(far_even, -1.5, far_odd)


cdef inline void sum_taps(const int points, vec* m) noexcept nogil:
    """Powers of the points over the product of their distances, summed: the first three of m are taps."""
    cdef vec even, odd, far_even, far_odd
    if points == 4:
        even = vadd(m[1], m[2])
        m[1] = scaled(0.5, vsub(m[1], m[2]))
        m[0] = plus(m[0], 0.5, even)
        m[2] = plus(m[3], 0.5, even)
    elif points == 5:  # divisors have opposite signs: sums turn into differences
        far_even = vsub(m[0], m[1])
        far_odd = vadd(m[0], m[1])
        even = vsub(m[3], m[2])
        odd = vadd(m[3], m[2])
        m[0] = plus(scaled(256.0 / 273, even), 128.0 / 455, far_even)
        m[1] = scaled(32.0 / 91, vsub(far_odd, odd))
        m[2] = plus(plus(m[4], 12.0 / 91, even), 40.0 / 91, far_even)
    else:
        even = vadd(m[1], m[2])
        odd = vsub(m[1], m[2])
        far_even = vadd(m[3], m[4])
        far_odd = vsub(m[3], m[4])
        m[0] = plus(plus(scaled(256.0 / 225, m[0]), -2048.0 / 2975, even), 128.0 / 1071, far_even)
        m[1] = plus(scaled(64.0 / 357, far_odd), -256.0 / 595, odd)
        m[2] = plus(m[5], 32.0 / 119, vsub(far_even, even))
