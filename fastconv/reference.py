"""Naive float64 twins of fastconv's operations and gradients: the oracle of the tests.

Each function is its defining equation with the loops left visible. Nothing is shared with the
kernels, so that an error there cannot also be here. Notation: ``n`` sample, ``c`` input channel,
``k`` filter, ``o`` output position, ``t`` kernel tap; ``o``, ``t`` and the geometry are tuples with
one entry for each of the 1 to 3 spatial axes, and products of tuples are taken axis by axis.

Layouts are channels first: input ``(N, C, *spatial)``, weight ``(K, C / groups, *kernel)``.
``stride``, ``dilation``, ``kernel_size`` and ``output_padding`` are an int or one int per axis;
``padding`` is an int or, per axis, an int or a ``(before, after)`` pair. Every array is converted
to float64 and every result is float64, except for indices, which are int64.
"""

import numpy as np

# inf - inf and 0 * inf are NaN, as the mathematics says, and no reason for a warning.
_ieee = np.errstate(invalid="ignore", over="ignore")


def output_size(size, kernel, stride=1, before=0, after=0, dilation=1, ceil_mode=False):
    """Return the number of windows along one axis, at least 0.

    ``floor((size + before + after - dilation (kernel - 1) - 1) / stride) + 1``, or with ``ceil``
    when `ceil_mode`, less the last window if that would start past the input, in the right padding.
    """
    room = size + before + after - (dilation * (kernel - 1) + 1)
    if not ceil_mode:
        return max(room // stride + 1, 0)
    count = -(-room // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return max(count, 0)


# Convolution


@_ieee
def conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """Return the convolution (cross-correlation) of `input` with `weight`.

    ``y[n, k, o] = act(bias[k] + sum_{c, t} x[n, c, o stride + t dilation - before] w[k, c, t])``
    with x zero outside its bounds and c running over the channels of the group of k.

    Parameters
    ----------
    input : array, (N, C, *spatial)
    weight : array, (K, C / groups, *kernel)
    bias : array, (K,), optional
    activation : {None, "relu"}

    Returns
    -------
    array, (N, K, *output)
    """
    input, weight = _float64(input), _float64(weight)
    stride, padding, dilation = _geometry(weight.ndim - 2, stride, padding, dilation)
    positions = _output_shape(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    output = _gather(_pad(input, padding), weight, positions, stride, dilation, groups)
    output = _add_bias(output, bias)
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    return relu(output) if activation else output


@_ieee
def conv_input_grad(input_shape, weight, grad_output, stride=1, padding=0, dilation=1, groups=1):
    """Return the gradient of ``<grad_output, conv(x, weight)>`` with respect to x.

    ``dx[n, c, i] = sum_{k, o, t: o stride + t dilation - before = i} g[n, k, o] w[k, c, t]``

    Parameters
    ----------
    input_shape : tuple, (N, C, *spatial)
    weight : array, (K, C / groups, *kernel)
    grad_output : array, (N, K, *output)

    Returns
    -------
    array, (N, C, *spatial)
    """
    weight, grad_output = _float64(weight), _float64(grad_output)
    stride, padding, dilation = _geometry(weight.ndim - 2, stride, padding, dilation)
    spatial = input_shape[2:]
    positions = _output_shape(spatial, weight.shape[2:], stride, padding, dilation)
    _check_shape("grad_output", grad_output, (input_shape[0], weight.shape[0], *positions))
    padded = [size + sum(pair) for size, pair in zip(spatial, padding, strict=True)]
    return _crop(_scatter(grad_output, weight, padded, stride, dilation, groups), padding)


@_ieee
def conv_weight_grad(input, weight_shape, grad_output, stride=1, padding=0, dilation=1, groups=1):
    """Return the gradient of ``<grad_output, conv(input, w)>`` with respect to w.

    ``dw[k, c, t] = sum_{n, o} g[n, k, o] x[n, c, o stride + t dilation - before]``

    Parameters
    ----------
    input : array, (N, C, *spatial)
    weight_shape : tuple, (K, C / groups, *kernel)
    grad_output : array, (N, K, *output)

    Returns
    -------
    array, (K, C / groups, *kernel)
    """
    input, grad_output = _float64(input), _float64(grad_output)
    stride, padding, dilation = _geometry(len(weight_shape) - 2, stride, padding, dilation)
    positions = _output_shape(input.shape[2:], weight_shape[2:], stride, padding, dilation)
    _check_shape("grad_output", grad_output, (input.shape[0], weight_shape[0], *positions))
    return _correlate_taps(grad_output, _pad(input, padding), weight_shape, stride, dilation, groups)


@_ieee
def conv_bias_grad(grad_output):
    """Return ``db[k] = sum_{n, o} g[n, k, o]``, shape (K,)."""
    grad_output = _float64(grad_output)
    return grad_output.sum(axis=(0, *range(2, grad_output.ndim)))


@_ieee
def conv_transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Return the transposed convolution: the adjoint of `conv` in its input, plus a bias.

    ``y[n, k, i] = b[k] + sum_{c, o, t: o stride + t dilation - before = i} x[n, c, o] w[c, k, t]``

    `padding` crops the output, `output_padding` lengthens it at the end: along an axis its size is
    ``(size - 1) stride + dilation (kernel - 1) + 1 + output_padding - before - after``.

    Parameters
    ----------
    input : array, (N, C, *spatial)
    weight : array, (C, K / groups, *kernel)
    bias : array, (K,), optional

    Returns
    -------
    array, (N, K, *output)
    """
    input, weight = _float64(input), _float64(weight)
    stride, padding, dilation = _geometry(weight.ndim - 2, stride, padding, dilation)
    extra = _per_axis(output_padding, weight.ndim - 2)
    canvas = [
        (size - 1) * s + d * (k - 1) + 1 + e
        for size, k, s, d, e in zip(input.shape[2:], weight.shape[2:], stride, dilation, extra, strict=True)
    ]
    full = _scatter(input, weight, canvas, stride, dilation, groups)
    return _add_bias(_crop(full, padding), bias)


@_ieee
def conv_transpose_input_grad(input_shape, weight, grad_output, stride=1, padding=0, dilation=1, groups=1):
    """Return the gradient of ``<grad_output, conv_transpose(x, weight)>`` with respect to x.

    ``dx[n, c, o] = sum_{k, t} g[n, k, o stride + t dilation - before] w[c, k, t]``, a convolution
    cut to the input's size: `output_padding` only appears in the shape of `grad_output`.
    """
    weight, grad_output = _float64(weight), _float64(grad_output)
    stride, padding, dilation = _geometry(weight.ndim - 2, stride, padding, dilation)
    padded = _pad(grad_output, padding)
    return _gather(padded, weight, input_shape[2:], stride, dilation, groups)


@_ieee
def conv_transpose_weight_grad(input, weight_shape, grad_output, stride=1, padding=0, dilation=1, groups=1):
    """Return the gradient of ``<grad_output, conv_transpose(input, w)>`` with respect to w.

    ``dw[c, k, t] = sum_{n, o} x[n, c, o] g[n, k, o stride + t dilation - before]``
    """
    input, grad_output = _float64(input), _float64(grad_output)
    stride, padding, dilation = _geometry(len(weight_shape) - 2, stride, padding, dilation)
    padded = _pad(grad_output, padding)
    return _correlate_taps(input, padded, weight_shape, stride, dilation, groups)


# Pooling


def max_pool(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Return the maximum of each window and where it is.

    ``y[n, c, o] = max_t x[n, c, o stride + t dilation - before]`` over the taps inside the input.
    Windows are read in row-major order: the first NaN wins, else the first of the largest values.
    Padding never wins, even over -inf.

    Returns
    -------
    output : array, (N, C, *output)
    indices : int64 array, (N, C, *output)
        Flat positions in the unpadded plane of ``prod(spatial)`` elements.

    Raises
    ------
    ValueError
        If a window has no tap inside the input, so that it has no maximum.
    """
    input = _float64(input)
    shape, windows = _windows(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    planes = _planes(input)
    output = np.empty((*input.shape[:2], *shape))
    indices = np.empty(output.shape, dtype=np.int64)
    for position, cells, _ in windows:
        if cells.size == 0:
            raise ValueError(f"the window at output position {position} has no input element")
        values = planes[:, :, cells]
        is_nan = np.isnan(values)
        first_largest = np.where(is_nan, -np.inf, values).argmax(axis=-1)
        best = np.where(is_nan.any(axis=-1), is_nan.argmax(axis=-1), first_largest)
        output[:, :, *position] = np.take_along_axis(values, best[..., None], axis=-1)[..., 0]
        indices[:, :, *position] = cells[best]
    return output, indices


@_ieee
def max_pool_backward(grad_output, indices, input_shape):
    """Return ``dx[n, c, i] = sum of g[n, c, o] over the o whose index is i``."""
    grad_output = _float64(grad_output)
    grad = np.zeros(input_shape)
    planes = _planes(grad)
    for n, c, *o in np.ndindex(grad_output.shape):
        planes[n, c, indices[n, c, *o]] += grad_output[n, c, *o]
    return grad


@_ieee
def avg_pool(
    input,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    dilation=1,
):
    """Return the mean of each window.

    ``y[n, c, o] = sum_t x[n, c, o stride + t dilation - before] / divisor[o]`` where the divisor is
    `divisor_override`, else the number of taps inside the padded input, or inside the input itself
    without `count_include_pad`. Overhang past the padding (`ceil_mode`) is never counted. A window
    that meets no element of the input gives 0.

    Returns
    -------
    array, (N, C, *output)
    """
    input = _float64(input)
    shape, windows = _windows(input.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    planes = _planes(input)
    output = np.zeros((*input.shape[:2], *shape))
    for position, cells, padded_count in windows:
        divisor = _divisor(cells, padded_count, count_include_pad, divisor_override)
        if cells.size:
            output[:, :, *position] = planes[:, :, cells].sum(axis=-1) / divisor
    return output


@_ieee
def avg_pool_backward(
    grad_output,
    input_shape,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    dilation=1,
):
    """Return ``dx[n, c, i] = sum of g[n, c, o] / divisor[o] over the windows o that contain i``."""
    grad_output = _float64(grad_output)
    shape, windows = _windows(input_shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    _check_shape("grad_output", grad_output, (*input_shape[:2], *shape))
    grad = np.zeros(input_shape)
    planes = _planes(grad)
    for position, cells, padded_count in windows:
        divisor = _divisor(cells, padded_count, count_include_pad, divisor_override)
        if cells.size:
            planes[:, :, cells] += grad_output[:, :, *position][..., None] / divisor
    return grad


# Dense layers, activations and losses


@_ieee
def linear(input, weight, bias=None):
    """Return ``y[..., k] = bias[k] + sum_c x[..., c] w[k, c]``; weight (K, C), input (..., C)."""
    output = np.tensordot(_float64(input), _float64(weight), axes=(-1, 1))
    return output if bias is None else output + _float64(bias)


@_ieee
def linear_backward(grad_output, input, weight):
    """Return the gradients (input, weight, bias) of ``<grad_output, linear(x, w, b)>``.

    ``dx[..., c] = sum_k g[..., k] w[k, c]``, ``dw[k, c] = sum g[..., k] x[..., c]``, ``db = sum g``
    """
    grad_output, input, weight = _float64(grad_output), _float64(input), _float64(weight)
    batch = tuple(range(grad_output.ndim - 1))
    return (
        np.tensordot(grad_output, weight, axes=(-1, 0)),
        np.tensordot(grad_output, input, axes=(batch, batch)),
        grad_output.sum(axis=batch),
    )


def relu(input):
    """Return ``max(x, 0)``; NaN stays NaN."""
    input = _float64(input)
    return np.where(input <= 0, 0.0, input)


def relu_backward(grad_output, input):
    """Return the gradient: 0 where ``x <= 0``, else `grad_output` (also where x is NaN)."""
    return np.where(_float64(input) <= 0, 0.0, _float64(grad_output))


@_ieee
def softmax(input, axis=-1):
    """Return ``s_i = exp(x_i) / sum_j exp(x_j)`` along `axis`; no finite x overflows."""
    input = _float64(input)
    exponentials = np.exp(input - input.max(axis=axis, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


@_ieee
def softmax_backward(grad_output, output, axis=-1):
    """Return ``dx_i = s_i (g_i - sum_j g_j s_j)`` from the softmax's own output s."""
    grad_output, output = _float64(grad_output), _float64(output)
    return output * (grad_output - (grad_output * output).sum(axis=axis, keepdims=True))


@_ieee
def cross_entropy(logits, target, reduction="mean"):
    """Return ``log(sum_j exp(x_j)) - x_target``, reduced over samples and positions.

    Parameters
    ----------
    logits : array, (N, C, *spatial)
        Scores x of the C classes.
    target : int array, (N, *spatial)
        Class labels in ``[0, C)``.
    reduction : {"mean", "sum", "none"}
        The mean over no elements is NaN.
    """
    logits = _float64(logits)
    shift = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - shift).sum(axis=1)) + shift[:, 0]
    losses = log_sum - np.take_along_axis(logits, np.expand_dims(target, 1), axis=1)[:, 0]
    total = losses.sum()
    return {"none": losses, "sum": total, "mean": np.divide(total, losses.size)}[reduction]


@_ieee
def cross_entropy_backward(logits, target, reduction="mean", grad_output=1.0):
    """Return ``dx_j = g (softmax(x)_j - [j = target])``, g divided by their number for "mean".

    `grad_output` is a scalar, or of the shape of `target` for the reduction "none".
    """
    target = np.asarray(target)
    classes = np.arange(np.shape(logits)[1]).reshape(-1, *[1] * (target.ndim - 1))
    one_hot = (np.expand_dims(target, 1) == classes).astype(np.float64)
    scale = np.broadcast_to(_float64(grad_output), target.shape)
    if reduction == "mean":
        scale = scale / max(target.size, 1)
    return (softmax(logits, axis=1) - one_hot) * np.expand_dims(scale, 1)


# The loops behind the equations


def _gather(padded, weight, positions, stride, dilation, groups):
    """``y[n, k, o] = sum_{c, t} padded[n, c, o stride + t dilation] w[k, c, t]``."""
    output = np.zeros((padded.shape[0], weight.shape[0], *positions))
    for filters, channels in _groups(weight.shape, groups, padded.shape[1]):
        for tap in np.ndindex(*weight.shape[2:]):
            seen = padded[:, channels, *_tap(tap, positions, stride, dilation)]
            output[:, filters] += np.einsum("nc...,kc->nk...", seen, weight[filters, :, *tap])
    return output


def _scatter(values, weight, canvas, stride, dilation, groups):
    """``y[n, c, o stride + t dilation] += v[n, k, o] w[k, c, t]``: the adjoint of `_gather`."""
    output = np.zeros((values.shape[0], weight.shape[1] * groups, *canvas))
    _check_channels(values.shape[1], weight.shape[0])
    for filters, channels in _groups(weight.shape, groups, output.shape[1]):
        for tap in np.ndindex(*weight.shape[2:]):
            sent = np.einsum("nk...,kc->nc...", values[:, filters], weight[filters, :, *tap])
            output[:, channels, *_tap(tap, values.shape[2:], stride, dilation)] += sent
    return output


def _correlate_taps(values, padded, weight_shape, stride, dilation, groups):
    """``dw[k, c, t] = sum_{n, o} v[n, k, o] padded[n, c, o stride + t dilation]``."""
    grad = np.zeros(weight_shape)
    _check_channels(values.shape[1], weight_shape[0])
    over = (0, *range(2, values.ndim))
    for filters, channels in _groups(weight_shape, groups, padded.shape[1]):
        for tap in np.ndindex(*weight_shape[2:]):
            seen = padded[:, channels, *_tap(tap, values.shape[2:], stride, dilation)]
            grad[filters, :, *tap] = np.tensordot(values[:, filters], seen, axes=(over, over))
    return grad


def _tap(tap, positions, stride, dilation):
    """Return slices of the padded array: ``o stride + tap dilation`` for o in `positions`."""
    return tuple(
        slice(t * d, t * d + s * count, s)
        for t, count, s, d in zip(tap, positions, stride, dilation, strict=True)
    )


def _groups(weight_shape, groups, channels):
    """Return for each group its slice of the K filters and its slice of the C channels."""
    filters, width = weight_shape[:2]
    _check_channels(channels, width * groups)
    if filters % groups:
        raise ValueError(f"{filters} filters do not divide into {groups} groups")
    height = filters // groups
    return [(slice(g * height, (g + 1) * height), slice(g * width, (g + 1) * width)) for g in range(groups)]


def _windows(spatial, kernel_size, stride, padding, dilation, ceil_mode):
    """Return the output shape and, per window: position, flat input cells, padded cell count."""
    axes = len(spatial)
    kernel, dilation = _per_axis(kernel_size, axes), _per_axis(dilation, axes)
    stride = kernel if stride is None else _per_axis(stride, axes)
    padding = _pairs(padding, axes)
    shape = _output_shape(spatial, kernel, stride, padding, dilation, ceil_mode)
    plane = np.arange(np.prod(spatial, dtype=np.int64)).reshape(spatial)

    def generate():
        for position in np.ndindex(*shape):
            inside, padded_count = [], 1
            for axis, (before, after) in enumerate(padding):
                first = position[axis] * stride[axis] - before
                taps = first + dilation[axis] * np.arange(kernel[axis])
                size = spatial[axis]
                inside.append(taps[(taps >= 0) & (taps < size)])
                padded_count *= int((taps < size + after).sum())
            yield position, plane[np.ix_(*inside)].ravel(), padded_count

    return shape, generate()


def _divisor(cells, padded_count, count_include_pad, divisor_override):
    if divisor_override is not None:
        return divisor_override
    return padded_count if count_include_pad else cells.size


def _output_shape(spatial, kernel, stride, padding, dilation, ceil_mode=False):
    return tuple(
        output_size(size, k, s, before, after, d, ceil_mode)
        for size, k, s, (before, after), d in zip(spatial, kernel, stride, padding, dilation, strict=True)
    )


def _pad(array, padding):
    return np.pad(array, [(0, 0), (0, 0), *padding])


def _crop(array, padding):
    ends = zip(array.shape[2:], padding, strict=True)
    return array[:, :, *(slice(before, size - after) for size, (before, after) in ends)]


def _add_bias(output, bias):
    if bias is None:
        return output
    _check_shape("bias", np.asarray(bias), output.shape[1:2])
    return output + _float64(bias).reshape(-1, *[1] * (output.ndim - 2))


def _planes(array):
    """Return a view (N, C, prod(spatial)) of a fresh or contiguous array."""
    return array.reshape(*array.shape[:2], np.prod(array.shape[2:], dtype=np.int64))


def _float64(array):
    return np.asarray(array, dtype=np.float64)


def _geometry(axes, stride, padding, dilation):
    return _per_axis(stride, axes), _pairs(padding, axes), _per_axis(dilation, axes)


def _per_axis(value, axes):
    """Return one int per axis from an int or from a sequence of them."""
    values = (value,) * axes if np.ndim(value) == 0 else tuple(value)
    if len(values) != axes:
        raise ValueError(f"expected an int or {axes} of them, got {value!r}")
    return values


def _pairs(padding, axes):
    """Return a (before, after) pair per axis; an int stands for a pair of equals."""
    entries = (padding,) * axes if isinstance(padding, int | np.integer) else tuple(padding)
    if len(entries) != axes:
        raise ValueError(f"padding takes an int or {axes} entries, got {padding!r}")
    return [(p, p) if isinstance(p, int | np.integer) else tuple(p) for p in entries]


def _check_shape(name, array, shape):
    if array.shape != tuple(shape):
        raise ValueError(f"{name} has shape {array.shape}, expected {tuple(shape)}")


def _check_channels(got, expected):
    if got != expected:
        raise ValueError(f"got {got} channels, expected {expected}")
