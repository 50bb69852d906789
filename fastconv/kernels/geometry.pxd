"""What a convolution kernel knows of its problem, for 1 to 3 spatial axes in any layout.

With o = (d, h, w) an output position and t a tap,

    out[n, g, m, o] = sum over c, t of weight[g, m, c, t] * in[n, g, c, o * step + tap[t].offset]

where in[...] is 0 outside 0 <= o * step + offset < in_size. Forward convolution has step = stride and
offset = r * dilation - padding; one phase of an input gradient has step = 1, its own subset of the
taps, and output strides that leave room for the other phases. Absent axes have size 1. All strides
count elements. The fields stand in the order of `fastconv.plan.GEOMETRY`.
"""

cdef struct Geometry:
    Py_ssize_t batch
    Py_ssize_t groups
    Py_ssize_t rows              # m: output channels of a group
    Py_ssize_t channels          # c: input channels of a group
    Py_ssize_t taps
    Py_ssize_t[3] in_size
    Py_ssize_t[3] out_size
    Py_ssize_t[3] step
    Py_ssize_t in_image          # strides of the input
    Py_ssize_t in_group
    Py_ssize_t in_channel
    Py_ssize_t[3] in_axis
    Py_ssize_t out_offset        # strides of the output, and where its first element lies
    Py_ssize_t out_image
    Py_ssize_t out_group
    Py_ssize_t out_row
    Py_ssize_t[3] out_axis
    Py_ssize_t weight_group      # strides of the weights
    Py_ssize_t weight_row
    Py_ssize_t weight_channel
    Py_ssize_t[3] patch          # rows are (m, t) with t in windows of this size, side by side (gemm_patch.pxd), or 0
    Py_ssize_t[3] grid           # of such windows: the pixels, in one row
    Py_ssize_t[3] before         # where the first window begins: padding before the image ...
    Py_ssize_t[3] image_size     # ... that they cover
    Py_ssize_t relu              # 1: out = max(out, 0)
    Py_ssize_t stream            # 1: the output is too large for the caches; 2: and rows begin at vectors' boundaries
    Py_ssize_t bands             # 1: tiles are whole rows, read from bands (gemm_band.pxd); 2: by half vectors
    Py_ssize_t skips             # 1: where bands are read, taps in the padding are left out
    Py_ssize_t fetches           # 1: the caches do not hold the input: what comes next is fetched (blocked.pyx)
    Py_ssize_t depth_block       # KC, in whole channels: channels per block of the reduction
    Py_ssize_t row_block         # MC
    Py_ssize_t pixel_block       # NC, in pixels


cdef struct Tap:
    Py_ssize_t[3] offset         # in input elements along d, h, w
    Py_ssize_t weight            # in weight elements
