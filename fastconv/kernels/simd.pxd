"""The names of simd.h, as Cython sees them: `real` and `vec` take their true size at C compile time."""

cdef extern from "simd.h" nogil:
    ctypedef float real
    ctypedef struct vec:
        pass

    enum: VL  # elements in a vec
    enum: MR  # rows (broadcast side) of the register tile
    enum: NV  # vectors across the register tile
    enum: NR  # NV * VL
    enum: UNROLL  # steps of the depth in a turn of the micro-kernel's loop
    enum: REGISTERS  # that hold a vec

    vec vload(const real* p) noexcept
    vec vload_first(const real* p, Py_ssize_t count) noexcept
    ctypedef struct vspan:
        pass
    vspan vspan_of(Py_ssize_t first, Py_ssize_t last) noexcept
    vec vload_span(const real* p, vspan span) noexcept
    vec vload_halves(const real* low, const real* high) noexcept
    void vstore(real* p, vec v) noexcept
    void vstore_halves(real* low, Py_ssize_t low_count, real* high, Py_ssize_t high_count, vec v) noexcept
    void vstore_first(real* p, Py_ssize_t count, vec v) noexcept
    void vcopy_first(real* to, const real* source, Py_ssize_t count) noexcept
    void vstream(real* p, vec v) noexcept
    bint is_vec_aligned(const real* p) noexcept
    void stream_fence() noexcept
    vec vzero() noexcept
    vec vset1(real x) noexcept
    vec vrepeat(const real* p, int count) noexcept
    vec vadd(vec a, vec b) noexcept
    vec vsub(vec a, vec b) noexcept
    vec vmul(vec a, vec b) noexcept
    vec vfma(vec a, vec b, vec c) noexcept
    vec vfma_onto(vec c, vec a, vec b) noexcept
    vec vfma_kept(vec c, vec a, vec b) noexcept
    void vfma_ready() noexcept
    void vfma_step(vec* c, const real* a, const vec* b) noexcept
    void vfma_repeated(vec* c, const real* p, int count, const vec* b) noexcept
    vec vat_least(vec x, vec bound) noexcept
    vec vrelu(vec x) noexcept
    vec veven(vec a, vec b) noexcept
    vec vodd(vec a, vec b) noexcept
    void vthirds(vec a, vec b, vec c, vec* thirds) noexcept
    real vsum(vec v) noexcept
    const real* as_one(const real* p) noexcept
    void prefetch_near(const real* p) noexcept
    void prefetch_write(const real* p) nogil
    void prefetch_far(const real* p) noexcept
    void vtranspose(vec* rows) noexcept
    vec vsums(vec* rows, int inner) noexcept

    enum: SHIFTS  # 1 where vshift is one instruction
    ctypedef struct vindex:
        pass

    vindex vshift_by(Py_ssize_t n) noexcept
    vec vshift(vec a, vec b, vindex by) noexcept
    vec vslide(vec a, vec b, int n) noexcept

    ctypedef int lane  # as wide as real
    ctypedef struct ivec:
        pass
    ctypedef struct vmask:
        pass

    ivec iload(const lane* p) noexcept
    void istore(lane* p, ivec v) noexcept
    ivec iload_bytes(const unsigned char* p) noexcept
    ivec iset1(lane x) noexcept
    ivec iadd(ivec a, ivec b) noexcept
    ivec imul(ivec a, ivec b) noexcept
    ivec iupper(ivec a) noexcept
    ivec imax(ivec a, ivec b) noexcept
    bint ibeyond(ivec x, ivec limit) noexcept
    ivec iselect(vmask m, ivec a, ivec b) noexcept
    vmask iequal(ivec a, ivec b) noexcept
    vmask vbeats(vec x, vec best) noexcept
    vec vselect(vmask m, vec a, vec b) noexcept
    vec vadd_where(vmask m, vec total, vec x) noexcept
    vec vmax(vec a, vec b) noexcept
    bint has_nan(vec v) noexcept
    vec vdiv(vec a, vec b) noexcept
    vec vquotient(vec a, vec b, vec reciprocal) noexcept
    vec vzip_low(vec a, vec b) noexcept
    vec vzip_high(vec a, vec b) noexcept
    void vstore_apart(real* to, Py_ssize_t count, vec v) noexcept

    unsigned int flush_denormals() noexcept
    void restore_denormals(unsigned int mode) noexcept
