"""Input gradients of windows that lie side by side: as wide as their steps, without gaps.

No two windows share a pixel, so nothing is added up: row (c, t) of the product

    sums[c * taps + t, o] = sum over k of weight[k, c, t] * grad[k, o]

is what pixel o * patch + t of channel c gets. One product over all taps reads the gradient once, where one for each
phase of the stride would read it, and write every line of the image, again and again. The rows of one line of windows
leave woven together, as whole stretches of a line of the image.
"""

from fastconv.kernels.gemm_pack cimport copy_row, larger, smaller
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.simd cimport VL, real, vec, vload, vstore, vzip_high, vzip_low

cdef enum:
    MOST_WOVEN = 16  # rows, a power of two: wider windows, and all others, leave value by value


cdef inline bint in_patches(const Geometry* g) noexcept nogil:
    return g.patch[2] > 0


cdef inline Py_ssize_t patch_size(const Geometry* g) noexcept nogil:
    return g.patch[0] * g.patch[1] * g.patch[2]


cdef inline void weave_vectors(const int count, const real* rows, Py_ssize_t stride, Py_ssize_t length,
                               real* to) noexcept nogil:
    """to[j * count + i] = rows[i * stride + j] for whole vectors of j < length, by zips of halves."""
    cdef vec[MOST_WOVEN] v, w
    cdef Py_ssize_t j = 0
    cdef int i, done
    while j + VL <= length:
        for i in range(count):
            v[i] = vload(rows + i * stride + j)
        done = 1
        while done < count:
            for i in range(count // 2):
                w[2 * i] = vzip_low(v[i], v[i + count // 2])
                w[2 * i + 1] = vzip_high(v[i], v[i + count // 2])
            for i in range(count):
                v[i] = w[i]
            done *= 2
        for i in range(count):
            vstore(to + j * count + i * VL, v[i])
        j += VL


cdef inline void weave(Py_ssize_t count, const real* rows, Py_ssize_t stride, Py_ssize_t length,
                       real* to) noexcept nogil:
    """The same for any number of rows and elements."""
    cdef Py_ssize_t i, j = length // VL * VL
    if count == 1:
        copy_row(to, rows, length)
        return
    if count == 2:
        weave_vectors(2, rows, stride, length, to)
    elif count == 4:
        weave_vectors(4, rows, stride, length, to)
    elif count == 8:
        weave_vectors(8, rows, stride, length, to)
    elif count == 16:
        weave_vectors(16, rows, stride, length, to)
    else:
        j = 0
    while j < length:
        for i in range(count):
            to[j * count + i] = rows[i * stride + j]
        j += 1


cdef inline void spread_line(const Geometry* g, const real* rows, Py_ssize_t stride, Py_ssize_t first, Py_ssize_t last,
                             Py_ssize_t x, Py_ssize_t length, real* line) noexcept nogil:
    """Taps first .. last - 1 of `length` windows, of which the first begins at x: what lies in the image."""
    cdef Py_ssize_t width = g.patch[2], limit = g.image_size[2], i, j, at
    if first == 0 and last == width and x >= 0 and x + length * width <= limit:
        weave(width, rows, stride, length, line + x)
        return
    for j in range(length):
        at = x + j * width
        for i in range(larger(first, -at), smaller(last, limit - at)):
            line[at + i] = rows[(i - first) * stride + j]


cdef inline void spread_rows(const Geometry* g, const real* sums, Py_ssize_t stride, Py_ssize_t first_row,
                             Py_ssize_t last_row, Py_ssize_t first_pixel, Py_ssize_t pixels, real* out) noexcept nogil:
    """Rows first_row .. last_row - 1 of the product, of some pixels, to the image; `sums` begins with them."""
    cdef Py_ssize_t taps = patch_size(g), width = g.patch[2], plane = g.grid[0] * g.grid[1] * g.grid[2]
    cdef Py_ssize_t channel, pixel, rest, length, row, z, y, x, line, lines = taps // width
    cdef real* image
    for channel in range(first_row // taps, (last_row + taps - 1) // taps):
        pixel = 0
        while pixel < pixels:
            rest = (first_pixel + pixel) % plane
            length = smaller(g.grid[2] - rest % g.grid[2], pixels - pixel)
            image = out + (first_pixel + pixel) // plane * g.out_image + channel * g.out_row
            x = rest % g.grid[2] * width - g.before[2]
            rest = rest // g.grid[2]
            for line in range(lines):
                row = channel * taps + line * width
                y = rest % g.grid[1] * g.patch[1] + line % g.patch[1] - g.before[1]
                z = rest // g.grid[1] * g.patch[0] + line // g.patch[1] - g.before[0]
                if (row + width <= first_row or row >= last_row
                        or not (0 <= y < g.image_size[1] and 0 <= z < g.image_size[0])):
                    continue
                spread_line(g, sums + (larger(row, first_row) - first_row) * stride + pixel, stride,
                            larger(first_row - row, 0), smaller(last_row - row, width), x, length,
                            image + z * g.out_axis[0] + y * g.out_axis[1])
            pixel += length
