"""From products at points to outputs:

    out[k, y, x] = activation(bias[k] + sum over i, j of A[y, i] * A[x, j] * products[i, j][tile][k])

The outputs of a run of tiles are put together in cache, VL channels a pixel, and leave transposed.

Inside a tile an infinite or missing value, or an overflow, reaches every output, also those whose windows do not
meet it. Outputs that are not finite are therefore computed again by their definition, tile by tile.
"""

from fastconv.kernels.gemm_pack cimport smaller
from fastconv.kernels.simd cimport (
    NR, VL, real, vadd, vec, vfma, vload, vload_first, vrelu, vstore, vstore_first, vsum, vtranspose, vzero,
)
from fastconv.kernels.geometry cimport Geometry
from fastconv.kernels.winograd_points cimport MOST_POINTS, sum_points
from fastconv.kernels.winograd_work cimport Run, Work, run_at


cdef inline void sum_tile(const int outputs, const real* products, Py_ssize_t point, vec bias,
                          vec* sums) noexcept nogil:
    cdef int points = outputs + 2
    cdef vec[MOST_POINTS * MOST_POINTS] half
    cdef vec[MOST_POINTS] m
    cdef int i, j
    for j in range(points):
        for i in range(points):
            m[i] = vload(products + (i * points + j) * point)
        sum_points(points, m)
        for i in range(outputs):
            half[i * points + j] = m[i]
    for i in range(outputs):
        sum_points(points, half + i * points)
        for j in range(outputs):
            sums[i * outputs + j] = vadd(half[i * points + j], bias)


cdef inline vec sum_run(const int outputs, const real* products, Py_ssize_t row, Py_ssize_t point, vec bias,
                        Py_ssize_t count, Py_ssize_t rows, Py_ssize_t columns, real* results) noexcept nogil:
    """results[y][x][lane] of a run of tiles, its last tile cut off at `columns`; lanes of the sum that is
    returned are zero where all are finite."""
    cdef vec[MOST_POINTS * MOST_POINTS] sums
    cdef vec found = vzero()
    cdef Py_ssize_t tile, inside
    cdef int y, x
    for tile in range(count):
        sum_tile(outputs, products + tile * row, point, bias, sums)
        inside = columns - tile * outputs
        for y in range(outputs):
            for x in range(outputs):
                if y < rows and x < inside:
                    found = vfma(sums[y * outputs + x], vzero(), found)
                    vstore(results + (y * columns + tile * outputs + x) * VL, sums[y * outputs + x])
    return found


cdef inline void store_pixels(const real* results, Py_ssize_t pixels, real* out, Py_ssize_t out_row,
                              Py_ssize_t rows, bint relu) noexcept nogil:
    """out[k][pixel] = results[pixel][k]"""
    cdef vec[VL] block
    cdef Py_ssize_t i, k, pixel = 0
    while pixel < pixels:
        for i in range(VL):
            block[i] = vload(results + (pixel + i) * VL)
            if relu:
                block[i] = vrelu(block[i])
        vtranspose(block)
        if pixel + VL <= pixels and rows >= VL:
            for k in range(VL):
                vstore(out + k * out_row + pixel, block[k])
        else:
            for k in range(smaller(rows, VL)):
                vstore_first(out + k * out_row + pixel, smaller(VL, pixels - pixel), block[k])
        pixel += VL


cdef inline real weigh_window(const Work* w, const real* input, const real* weight, Py_ssize_t y,
                              Py_ssize_t x) noexcept nogil:
    """One output by its definition; zeros of the padding take part."""
    cdef Py_ssize_t c, r, s
    cdef real total = 0, value
    for c in range(w.g.channels):
        for r in range(3):
            for s in range(3):
                value = 0
                if 0 <= y + r < w.g.in_size[1] and 0 <= x + s < w.g.in_size[2]:
                    value = input[c * w.g.in_channel + (y + r) * w.g.in_axis[1] + x + s]
                total += value * weight[c * w.g.weight_channel + w.tap[r * 3 + s]]
    return total


cdef inline bint is_finite(const real* results, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t row) noexcept nogil:
    """Of one lane of a tile."""
    cdef Py_ssize_t y, x
    for y in range(rows):
        for x in range(columns):
            if results[(y * row + x) * VL] * 0 != 0:
                return False
    return True


cdef inline void mend_run(const Work* w, const Run* r, const real* input, const real* weight, const real* bias,
                          Py_ssize_t lanes, Py_ssize_t rows, Py_ssize_t columns, real* results) noexcept nogil:
    """Computes tiles that are not finite again; input, weight and bias are those of the first lane."""
    cdef Py_ssize_t tile, lane, y, x, width, top = r.row * w.outputs, left
    cdef real* at
    for tile in range(r.count):
        left = (r.column + tile) * w.outputs
        width = smaller(w.outputs, columns - tile * w.outputs)
        for lane in range(lanes):
            at = results + tile * w.outputs * VL + lane
            if is_finite(at, rows, width, columns):
                continue
            for y in range(rows):
                for x in range(width):
                    at[(y * columns + x) * VL] = (bias[lane] if bias != NULL else 0) + weigh_window(
                        w, input, weight + lane * w.g.weight_row, top + y + w.first_row, left + x + w.first_column)


cdef inline void transform_products(const Work* w, Py_ssize_t group, Py_ssize_t row, Py_ssize_t first,
                                    Py_ssize_t last, const real* products, real* results) noexcept nogil:
    """VL output channels from `row` on, of tiles first .. last - 1."""
    cdef const Geometry* g = w.g
    cdef Py_ssize_t lanes = smaller(VL, g.rows - row), tile = first, rows, columns, y
    cdef const real* bias = w.bias + group * g.rows + row if w.bias != NULL else NULL
    cdef vec start = vload_first(bias, lanes) if bias != NULL else vzero()
    cdef vec found
    cdef const real* source
    cdef real* out
    cdef Run r
    while tile < last:
        r = run_at(w, tile, last)
        rows = smaller(w.outputs, g.out_size[1] - r.row * w.outputs)
        columns = smaller(r.count * w.outputs, g.out_size[2] - r.column * w.outputs)
        out = w.out + r.image * g.out_image + group * g.out_group + row * g.out_row
        out += r.row * w.outputs * g.out_axis[1] + r.column * w.outputs
        source = products + (tile - first) * w.product_row
        if w.outputs == 4:
            found = sum_run(4, source, w.product_row, NR, start, r.count, rows, columns, results)
        elif w.outputs == 3:
            found = sum_run(3, source, w.product_row, NR, start, r.count, rows, columns, results)
        elif w.outputs == 2:
            found = sum_run(2, source, w.product_row, NR, start, r.count, rows, columns, results)
        else:
            found = sum_run(6, source, w.product_row, NR, start, r.count, rows, columns, results)
        if vsum(found) != 0:
            mend_run(w, &r, w.input + r.image * g.in_image + group * g.in_group,
                     w.weight + group * g.weight_group + row * g.weight_row, bias, lanes, rows, columns, results)
        if columns == g.out_size[2]:
            store_pixels(results, rows * columns, out, g.out_row, lanes, g.relu)
        else:
            for y in range(rows):
                store_pixels(results + y * columns * VL, columns, out + y * g.out_axis[1], g.out_row, lanes, g.relu)
        tile += r.count
