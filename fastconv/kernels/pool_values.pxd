"""Which way the values of a pooling problem are computed, and the units of work that its threads share."""

from fastconv.kernels.gemm_pack cimport ceil_div, smaller
from fastconv.kernels.pool cimport Band, PoolGeometry, band_of, bands_of, carve, reach, window_rows
from fastconv.kernels.pool_direct cimport (
    pair_band, pixel_band, reduce_planes, takes_pairs, takes_pixels, takes_planes,
)
from fastconv.kernels.pool_flat cimport Flat, carve_flat, pool_flat, prepare_flat, takes_flat
from fastconv.kernels.pool_long cimport Long, carve_long, pool_long, takes_long
from fastconv.kernels.pool_reduce cimport QUOTIENTS, Values
from fastconv.kernels.pool_strip cimport Strip, carve_strip, pool_band, prepare_strip
from fastconv.kernels.simd cimport VL, real


cdef enum Way:
    STRIPS = 0
    PAIRS = 1
    PIXELS = 2
    PLANES = 3
    FLAT = 4
    LONG = 5


# One call. Where windows stay inside their planes' rows, planes are stacked to one tall plane.
cdef struct Call:
    Values values
    PoolGeometry geometry
    Way way
    Py_ssize_t bands             # of a plane
    Py_ssize_t slices            # of the channels of a band: only LONG has several
    Py_ssize_t group             # planes of a unit
    Py_ssize_t units
    char* memory                 # of the threads
    Py_ssize_t size              # of one thread's part


# Scratch of one thread.
cdef struct Scratch:
    Strip strip
    Flat flat
    Long blocks
    const real** rows            # under a row of windows


cdef inline Way way_of(bint maximum, const PoolGeometry* g) noexcept nogil:
    if takes_planes(g):
        return PLANES
    if takes_pairs(g):
        return PAIRS
    if maximum and takes_long(g):
        return LONG
    return PIXELS if takes_pixels(g) else STRIPS


cdef inline Py_ssize_t layout(bint maximum, const PoolGeometry* g, char* memory, Scratch** s) noexcept nogil:
    """Lays a thread's scratch out from `memory` on; returns its size."""
    cdef char* start = memory
    cdef Scratch here
    cdef Way way = way_of(maximum, g)
    s[0] = <Scratch*> carve(&memory, sizeof(Scratch))
    here.rows = <const real**> carve(&memory, window_rows(g) * <Py_ssize_t> sizeof(void*))
    if way == STRIPS:
        carve_strip(g, &memory, &here.strip)
        if takes_flat(g):
            carve_flat(g, &memory, &here.flat)
    elif way == LONG:
        carve_long(g, &memory, &here.blocks)
    if start != NULL:
        s[0][0] = here
    return memory - start


cdef inline bint stacks(const PoolGeometry* g) noexcept nogil:
    """Do the rows of windows fill their planes and never overlap?"""
    return (g.in_size[0] == 1 and g.kernel[0] == 1 and g.out_size[0] == 1 and g.before[1] == 0
            and reach(g, 1) < g.stride[1] and g.out_size[1] * g.stride[1] == g.in_size[1])


cdef inline void share_masks(const Call* call, int threads) noexcept nogil:
    """One table for all threads."""
    cdef Scratch* first = <Scratch*> call.memory
    cdef int thread
    prepare_flat(&call.values, &first.flat)
    for thread in range(1, threads):
        (<Scratch*> (call.memory + thread * call.size)).flat.masks = first.flat.masks


cdef inline void prepare(bint maximum, Call* call, const PoolGeometry* g, int threads, char* memory) noexcept nogil:
    cdef int _
    cdef Scratch* s
    call.geometry = g[0]
    call.values.geometry = &call.geometry
    call.way = way_of(maximum, g)
    call.memory = memory
    if call.way == PAIRS and stacks(g):
        call.geometry.planes = 1
        call.geometry.in_size[1] *= g.planes
        call.geometry.out_size[1] *= g.planes
        call.values.finish.row_step = 0
    for _ in range(threads):
        call.size = layout(maximum, &call.geometry, memory, &s)
        if call.way == STRIPS:
            prepare_strip(maximum, &call.values, &s.strip)
        memory += call.size
    g = &call.geometry
    call.slices = s.blocks.slices if call.way == LONG else 1
    call.bands = bands_of(g.planes * g.out_size[0] * call.slices, g.out_size[1], threads)
    call.units = g.planes * g.out_size[0] * call.slices * call.bands
    call.group = 1
    if call.way == STRIPS and call.bands == 1 and takes_flat(g) and call.values.finish.kind != QUOTIENTS:
        call.way = FLAT
        share_masks(call, threads)
    if call.way == PLANES:
        call.group = VL
    elif call.way == FLAT:
        call.group = smaller(s.flat.planes, ceil_div(g.planes, threads))
    elif (call.way == STRIPS or call.way == LONG) and call.bands == 1:
        call.group = s.blocks.planes if call.way == LONG else s.strip.planes
        if threads > 1:
            call.group = smaller(call.group, ceil_div(g.planes, 4 * threads))
    if call.group > 1:
        call.units = ceil_div(g.planes, call.group)


cdef inline void run_unit(bint maximum, const Call* call, Py_ssize_t unit, int thread) noexcept nogil:
    cdef Scratch* s = <Scratch*> (call.memory + thread * call.size)
    cdef Py_ssize_t planes = 1
    cdef Band band
    if call.way == PLANES:
        reduce_planes(maximum, &call.values, unit * VL)
        return
    if call.way == FLAT:
        pool_flat(maximum, &call.values, &s.flat, unit * call.group,
                  smaller(call.group, call.geometry.planes - unit * call.group))
        return
    band = band_of(unit // call.slices, call.geometry.out_size, call.bands)
    if call.way == PAIRS:
        pair_band(maximum, &call.values, s.rows, &band)
    elif call.way == PIXELS:
        pixel_band(maximum, &call.values, s.rows, &band)
    else:
        if call.group > 1:
            band.plane = unit * call.group
            planes = smaller(call.group, call.geometry.planes - band.plane)
        if call.way == LONG:
            pool_long(&call.values, &s.blocks, &band, planes, unit % call.slices)
        else:
            pool_band(maximum, &call.values, &s.strip, &band, planes)
