/* The vector vocabulary: the only file that knows the instruction set.
 *
 * The build chooses FC_REAL (float or double) and the instruction set by compiler flags alone.
 * `vec` holds VL values of type `real`; MR x NV vectors is the register tile of the micro-kernel.
 * FC_WIDE asks for 64-byte vectors where the machine has narrower ones: the compiler splits them,
 * so that the logic of the wide engine can be executed and checked anywhere.
 */
#ifndef FASTCONV_SIMD_H
#define FASTCONV_SIMD_H

#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Micro-kernels live in registers only once they are inlined with constant tile sizes. Cython
 * marks every `cdef inline` with this macro, and a plain `inline` is a hint that gcc declines. */
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline, unused))

#ifndef FC_REAL
#define FC_REAL float
#endif
typedef FC_REAL real;

#if defined(__AVX512F__) || defined(FC_WIDE)
#define FC_VECTOR_BYTES 64
#define FC_MR 14 /* 14 x 2 = 28 accumulators of 32 registers */
#define FC_NV 2
#elif defined(__AVX2__)
#define FC_VECTOR_BYTES 32
#define FC_MR 6 /* 6 x 2 = 12 accumulators of 16 registers */
#define FC_NV 2
#elif defined(__aarch64__)
#define FC_VECTOR_BYTES 16
#define FC_MR 12 /* 12 x 2 = 24 accumulators of 32 registers */
#define FC_NV 2
#else
#define FC_VECTOR_BYTES 16
#define FC_MR 6
#define FC_NV 2
#endif

enum {
    MR = FC_MR,
    NV = FC_NV,
    UNROLL = FC_MR == 6 ? 2 : 1, /* steps of the depth in a turn of the loop: small tiles need few of its cycles */
    VL = FC_VECTOR_BYTES / sizeof(real),
    NR = FC_NV * FC_VECTOR_BYTES / sizeof(real),
    REGISTERS = FC_MR > 6 ? 32 : 16 /* that hold a vec */
};

/* A `vec` in memory may begin at any element, and may alias any array of `real`. */
typedef real vec __attribute__((vector_size(FC_VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline vec vload(const real *p) { return *(const vec *)p; }
static inline void vstore(real *p, vec v) { *(vec *)p = v; }
/* Past the caches, to where nobody will read soon; p on a vec's own boundary. Ends with a fence. */
static inline void vstream(real *p, vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps((float *)p, (__m512)v);
#elif defined(__AVX2__) && !defined(FC_WIDE)
    _mm256_stream_ps((float *)p, (__m256)v);
#else
    vstore(p, v);
#endif
}
static inline int is_vec_aligned(const real *p) { return ((size_t)p & (FC_VECTOR_BYTES - 1)) == 0; }
static inline void stream_fence(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
/* The first half of the lanes from one place, the second from another. */
static inline vec vload_halves(const real *low, const real *high) {
#if defined(__AVX512F__)
    return (vec)_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd((const double *)low)),
                                   _mm256_loadu_pd((const double *)high), 1);
#else
    vec v;
    memcpy(&v, low, sizeof(vec) / 2);
    memcpy((char *)&v + sizeof(vec) / 2, high, sizeof(vec) / 2);
    return v;
#endif
}
/* And to two places: the first lanes of either half, so many of each. */
static inline void vstore_halves(real *low, ptrdiff_t low_count, real *high, ptrdiff_t high_count, vec v) {
#if defined(__AVX512F__)
    __mmask8 first = (__mmask8)((1u << low_count) - 1), second = (__mmask8)((1u << high_count) - 1);
    __m256 upper = _mm512_extractf32x8_ps((__m512)v, 1), lower = _mm512_castps512_ps256((__m512)v);
    /* gcc would extract into memory, which touches lanes that the mask leaves out. */
    __asm__("" : "+v"(upper), "+v"(lower));
    if (sizeof(real) == 4) {
        _mm256_mask_storeu_ps((float *)low, first, lower);
        _mm256_mask_storeu_ps((float *)high, second, upper);
    } else {
        _mm256_mask_storeu_pd((double *)low, first, _mm256_castps_pd(lower));
        _mm256_mask_storeu_pd((double *)high, second, _mm256_castps_pd(upper));
    }
#else
    memcpy(low, &v, (size_t)low_count * sizeof(real));
    memcpy(high, (char *)&v + sizeof(vec) / 2, (size_t)high_count * sizeof(real));
#endif
}
static inline vec vzero(void) { return (vec){0}; }
static inline vec vset1(real x) { return x - (vec){0}; }
/* The first `count` elements of p again and again: count is a power of two, of at most 32 bytes and a vector. */
static inline __attribute__((always_inline)) vec vrepeat(const real *p, const int count) {
    const int bytes = count * (int)sizeof(real);
    if (count == 1) return vset1(*p);
#if defined(__AVX512F__)
    if (bytes == 8) {
        double pair;
        memcpy(&pair, p, sizeof(pair));
        return (vec)_mm512_set1_pd(pair);
    }
    if (bytes == 16) return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps((const float *)p));
    return (vec)_mm512_broadcast_f32x8(_mm256_loadu_ps((const float *)p));
#else
    if (bytes == (int)sizeof(vec)) return vload(p);
#if defined(__AVX2__) && !defined(FC_WIDE)
    if (bytes == 16) return (vec)_mm256_broadcast_ps((const __m128 *)p);
    return (vec)_mm256_broadcast_sd((const double *)p);
#elif defined(__SSE2__) && !defined(FC_WIDE)
    return (vec)_mm_load1_pd((const double *)p);
#else
    vec v;
    for (int i = 0; i < VL; i += count) memcpy((real *)&v + i, p, (size_t)bytes);
    return v;
#endif
#endif
}
static inline vec vadd(vec a, vec b) { return a + b; }
static inline vec vsub(vec a, vec b) { return a - b; }
static inline vec vmul(vec a, vec b) { return a * b; }
static inline vec vfma(vec a, vec b, vec c) { return a * b + c; }
/* c + a * b, in the register of c: gcc is free to overwrite a, and then moves a whole tile around. */
static inline vec vfma_onto(vec c, vec a, vec b) {
#if defined(__FMA__) && !defined(__AVX512F__) && !defined(FC_WIDE)
    if (sizeof(real) == 4) __asm__("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    else __asm__("vfmadd231pd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
#else
    return vfma(a, b, c);
#endif
}
/* The same in AVX-512 too, where gcc copies sums to and fro once lines of an image serve several of them. */
static inline vec vfma_kept(vec c, vec a, vec b) {
#if defined(__AVX512F__)
    if (sizeof(real) == 4) __asm__("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    else __asm__("vfmadd231pd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
#else
    return vfma_onto(c, a, b);
#endif
}

/* c[2 * i + j] + a[i] * b[j] for 6 rows i and two vectors j: the whole step of a tile that fills 16 registers. Told
 * apart, gcc loads a value of the last rows early, and a sum of each turn waits for its way through the stack. The
 * compiler is not told that `a` is read: stores to it end before `vfma_ready`. */
static inline void vfma_ready(void) { __asm__ volatile("" : : : "memory"); }
static inline __attribute__((always_inline)) void vfma_step(vec *c, const real *a, const vec *b) {
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__) && !defined(FC_WIDE)
    vec c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], c4 = c[4], c5 = c[5];
    vec c6 = c[6], c7 = c[7], c8 = c[8], c9 = c[9], c10 = c[10], c11 = c[11], value;
#define FC_ROW(type, at, low, high)                                                        \
    "vbroadcasts" type " " at "(%[a]), %[value]\n\t"                                       \
    "vfmadd231p" type " %[value], %[b0], %[" low "]\n\t"                                   \
    "vfmadd231p" type " %[value], %[b1], %[" high "]\n\t"
#define FC_STEP(type, at1, at2, at3, at4, at5)                                                          \
    __asm__(FC_ROW(type, "", "c0", "c1") FC_ROW(type, at1, "c2", "c3") FC_ROW(type, at2, "c4", "c5")     \
            FC_ROW(type, at3, "c6", "c7") FC_ROW(type, at4, "c8", "c9") FC_ROW(type, at5, "c10", "c11")  \
            : [c0] "+x"(c0), [c1] "+x"(c1), [c2] "+x"(c2), [c3] "+x"(c3), [c4] "+x"(c4), [c5] "+x"(c5),  \
              [c6] "+x"(c6), [c7] "+x"(c7), [c8] "+x"(c8), [c9] "+x"(c9), [c10] "+x"(c10),               \
              [c11] "+x"(c11), [value] "=&x"(value)                                                      \
            : [a] "r"(a), [b0] "x"(b[0]), [b1] "x"(b[1]))
    if (sizeof(real) == 4) FC_STEP("s", "4", "8", "12", "16", "20");
    else FC_STEP("d", "8", "16", "24", "32", "40");
    c[0] = c0, c[1] = c1, c[2] = c2, c[3] = c3, c[4] = c4, c[5] = c5;
    c[6] = c6, c[7] = c7, c[8] = c8, c[9] = c9, c[10] = c10, c[11] = c11;
#else
    for (int i = 0; i < 6; i++) {
        vec value = vset1(a[i]);
        c[2 * i] = vfma_onto(c[2 * i], value, b[0]);
        c[2 * i + 1] = vfma_onto(c[2 * i + 1], value, b[1]);
    }
#endif
}

/* c[j] + vrepeat(p, count) * b[j] for j = 0, 1. Told apart, gcc loads values early, and sums leave their registers. */
static inline __attribute__((always_inline)) void vfma_repeated(vec *c, const real *p, const int count, const vec *b) {
#if defined(__AVX512F__) || (defined(__FMA__) && !defined(FC_WIDE))
    vec value, low = c[0], high = c[1];
#if defined(__AVX512F__)
#define FC_LOAD_OF_128 "vbroadcastf32x4"
#define FC_LOAD_OF_256 "vbroadcastf32x8"
#else
#define FC_LOAD_OF_128 "vbroadcastf128"
#define FC_LOAD_OF_256 "vmovups"
#endif
#define FC_REPEATED(load, type)                                                                                  \
    __asm__(load " %3, %2\n\tvfmadd231p" type " %2, %4, %0\n\tvfmadd231p" type " %2, %5, %1"                     \
            : "+v"(low), "+v"(high), "=&v"(value)                                                                \
            : "m"(*(const struct { real v[16]; } *)p), "v"(b[0]), "v"(b[1]))
    if (sizeof(real) == 4) {
        if (count == 1) FC_REPEATED("vbroadcastss", "s");
        else if (count == 2) FC_REPEATED("vbroadcastsd", "s");
        else if (count == 4) FC_REPEATED(FC_LOAD_OF_128, "s");
        else FC_REPEATED(FC_LOAD_OF_256, "s");
    } else {
        if (count == 1) FC_REPEATED("vbroadcastsd", "d");
        else if (count == 2) FC_REPEATED(FC_LOAD_OF_128, "d");
        else FC_REPEATED(FC_LOAD_OF_256, "d");
    }
    c[0] = low;
    c[1] = high;
#else
    vec value = vrepeat(p, count);
    c[0] = vfma_onto(c[0], value, b[0]);
    c[1] = vfma_onto(c[1], value, b[1]);
#endif
}

/* max(x, bound) and max(x, 0) that hand a NaN through: the processor's maximum is its second operand then. */
static inline vec vat_least(vec x, vec bound) {
#if defined(__AVX512F__)
    return sizeof(real) == 4 ? (vec)_mm512_max_ps((__m512)bound, (__m512)x) : (vec)_mm512_max_pd((__m512d)bound, (__m512d)x);
#elif defined(__AVX2__) && !defined(FC_WIDE)
    return sizeof(real) == 4 ? (vec)_mm256_max_ps((__m256)bound, (__m256)x) : (vec)_mm256_max_pd((__m256d)bound, (__m256d)x);
#else
    __typeof__(x < x) below = x < bound;
    return (vec)((~below & (__typeof__(below))x) | (below & (__typeof__(below))bound));
#endif
}
static inline vec vrelu(vec x) { return vat_least(x, vzero()); }

/* p itself: gcc would take the address apart and add its parts up again in each turn of a loop. */
static inline const real *as_one(const real *p) {
    __asm__("" : "+r"(p));
    return p;
}

/* Hints, which cannot fault, that a line will be read. */
static inline void prefetch_near(const real *p) { __builtin_prefetch(p, 0, 3); } /* into L1 */
static inline void prefetch_far(const real *p) { __builtin_prefetch(p, 0, 2); }  /* into L2 */
static inline void prefetch_write(const real *p) { __asm__ volatile("prefetchw %0" : : "m"(*p)); }

static inline real vsum(vec v) {
    real total = 0;
    for (int i = 0; i < VL; i++) total += v[i];
    return total;
}

#define FC_IS_FLOAT (sizeof(real) == 4)

/* Which lanes are there, first .. last - 1, 0 <= first, last <= VL; found once, it serves many loads. The others read
 * as zero and are not touched. In AVX2 a masked load spares a way through the stack, where a load of what was stored
 * in pieces waits for all of them. */
#if defined(__AVX512F__)
typedef __mmask16 vspan;
static inline vspan vspan_of(ptrdiff_t first, ptrdiff_t last) {
    return (vspan)(((1u << last) - 1) & ~((1u << first) - 1));
}
static inline vec vload_span(const real *p, vspan span) {
    if (FC_IS_FLOAT) return (vec)_mm512_maskz_loadu_ps(span, p);
    return (vec)_mm512_maskz_loadu_pd((__mmask8)span, p);
}
#elif defined(__AVX2__) && !defined(FC_WIDE)
typedef int vspan __attribute__((vector_size(32), aligned(4), may_alias));
static inline vspan vspan_to(ptrdiff_t last) {
    static const int lanes_4[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    static const long long lanes_8[] = {-1, -1, -1, -1, 0, 0, 0, 0};
    if (FC_IS_FLOAT) return *(const vspan *)(lanes_4 + 8 - last);
    return *(const vspan *)(lanes_8 + 4 - last);
}
static inline vspan vspan_of(ptrdiff_t first, ptrdiff_t last) { return vspan_to(last) & ~vspan_to(first); }
static inline vec vload_span(const real *p, vspan span) {
    if (FC_IS_FLOAT) return (vec)_mm256_maskload_ps((const float *)p, (__m256i)span);
    return (vec)_mm256_maskload_pd((const double *)p, (__m256i)span);
}
#else
typedef struct { ptrdiff_t first, last; } vspan;
static inline void vcopy_first(real *to, const real *from, ptrdiff_t count);
static inline vspan vspan_of(ptrdiff_t first, ptrdiff_t last) { return (vspan){first, last}; }
static inline vec vload_span(const real *p, vspan span) {
    vec v = vzero();
    if (span.last - span.first == VL) return vload(p);
    if (span.last > span.first) vcopy_first((real *)&v + span.first, p + span.first, span.last - span.first);
    return v;
}
#endif

/* The first `count` elements, 0 <= count <= VL, likewise. */
#if defined(__AVX512F__)
static inline vec vload_first(const real *p, ptrdiff_t count) { return vload_span(p, vspan_of(0, count)); }
static inline void vstore_first(real *p, ptrdiff_t count, vec v) {
    unsigned mask = (1u << count) - 1;
    if (FC_IS_FLOAT) _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v);
    else _mm512_mask_storeu_pd(p, (__mmask8)mask, (__m512d)v);
}
static inline void vcopy_first(real *to, const real *from, ptrdiff_t count) {
    vstore_first(to, count, vload_first(from, count));
}
#else
/* One copy of constant size for each bit of `count`: no mask registers, nothing past the end. Not a masked store: some
 * CPUs take a dozen cycles for one. */
static inline void vcopy_first(real *to, const real *from, ptrdiff_t count) {
#define FC_COPY_PIECE(n)                          \
    if ((n) < VL && (count & (n))) {              \
        memcpy(to, from, (n) * sizeof(real));     \
        to += (n);                                \
        from += (n);                              \
    }
    FC_COPY_PIECE(16)
    FC_COPY_PIECE(8)
    FC_COPY_PIECE(4)
    FC_COPY_PIECE(2)
    FC_COPY_PIECE(1)
}
static inline vec vload_first(const real *p, ptrdiff_t count) {
#if defined(__AVX2__) && !defined(FC_WIDE)
    return vload_span(p, vspan_to(count));
#else
    vec v = vzero();
    if (count == VL) return vload(p);
    vcopy_first((real *)&v, p, count);
    return v;
#endif
}
static inline void vstore_first(real *p, ptrdiff_t count, vec v) {
    if (count == VL) vstore(p, v);
    else vcopy_first(p, (const real *)&v, count);
}
#endif

/* Lane j of the result: element f(j) of a (0 .. VL-1) followed by b (VL .. 2VL-1). Of the two branches one is taken,
 * but clang checks the lanes of both: hence the remainders. */
#define FC_LANE_4(f, j) ((f(j)) % (FC_VECTOR_BYTES / 2))
#define FC_LANE_8(f, j) ((f(j)) % (FC_VECTOR_BYTES / 4))
#if FC_VECTOR_BYTES == 64
#define FC_LANES_4(f) FC_LANE_4(f, 0), FC_LANE_4(f, 1), FC_LANE_4(f, 2), FC_LANE_4(f, 3), FC_LANE_4(f, 4), \
    FC_LANE_4(f, 5), FC_LANE_4(f, 6), FC_LANE_4(f, 7), FC_LANE_4(f, 8), FC_LANE_4(f, 9), FC_LANE_4(f, 10), \
    FC_LANE_4(f, 11), FC_LANE_4(f, 12), FC_LANE_4(f, 13), FC_LANE_4(f, 14), FC_LANE_4(f, 15)
#define FC_LANES_8(f) FC_LANE_8(f, 0), FC_LANE_8(f, 1), FC_LANE_8(f, 2), FC_LANE_8(f, 3), FC_LANE_8(f, 4), \
    FC_LANE_8(f, 5), FC_LANE_8(f, 6), FC_LANE_8(f, 7)
#elif FC_VECTOR_BYTES == 32
#define FC_LANES_4(f) FC_LANE_4(f, 0), FC_LANE_4(f, 1), FC_LANE_4(f, 2), FC_LANE_4(f, 3), FC_LANE_4(f, 4), \
    FC_LANE_4(f, 5), FC_LANE_4(f, 6), FC_LANE_4(f, 7)
#define FC_LANES_8(f) FC_LANE_8(f, 0), FC_LANE_8(f, 1), FC_LANE_8(f, 2), FC_LANE_8(f, 3)
#else
#define FC_LANES_4(f) FC_LANE_4(f, 0), FC_LANE_4(f, 1), FC_LANE_4(f, 2), FC_LANE_4(f, 3)
#define FC_LANES_8(f) FC_LANE_8(f, 0), FC_LANE_8(f, 1)
#endif
#if defined(__clang__)
#define FC_PICK(type, index, a, b, ...) __builtin_shufflevector((type)(a), (type)(b), __VA_ARGS__)
#else
#define FC_PICK(type, index, a, b, ...) __builtin_shuffle((type)(a), (type)(b), (index){__VA_ARGS__})
#endif
typedef int index_4 __attribute__((vector_size(FC_VECTOR_BYTES)));
typedef long long index_8 __attribute__((vector_size(FC_VECTOR_BYTES)));
#define FC_SHUFFLE(a, b, f)                                                    \
    (sizeof(real) == 4 ? (vec)FC_PICK(vec_4, index_4, a, b, FC_LANES_4(f)) \
                       : (vec)FC_PICK(vec_8, index_8, a, b, FC_LANES_8(f)))
typedef float vec_4 __attribute__((vector_size(FC_VECTOR_BYTES)));
typedef double vec_8 __attribute__((vector_size(FC_VECTOR_BYTES)));

/* Elements 0, 2, 4, ... and 1, 3, 5, ... of a followed by b. */
static inline vec veven(vec a, vec b) {
#define FC_EVEN(j) (2 * (j))
    return FC_SHUFFLE(a, b, FC_EVEN);
}
static inline vec vodd(vec a, vec b) {
#define FC_ODD(j) (2 * (j) + 1)
    return FC_SHUFFLE(a, b, FC_ODD);
}

/* Elements p, p + 3, p + 6, ... of a followed by b and c, for p = 0, 1, 2: lanes that c holds are chosen last. */
#define FC_OF_TWO(p, j) (3 * (j) + (p) < 2 * VL ? 3 * (j) + (p) : 0)
#define FC_OF_THIRD(p, j) (3 * (j) + (p) < 2 * VL ? (j) : 3 * (j) + (p) - VL)
#define FC_THIRD(p, a, b, c) FC_SHUFFLE(FC_SHUFFLE(a, b, FC_OF_TWO_##p), c, FC_OF_THIRD_##p)
#define FC_OF_TWO_0(j) FC_OF_TWO(0, j)
#define FC_OF_TWO_1(j) FC_OF_TWO(1, j)
#define FC_OF_TWO_2(j) FC_OF_TWO(2, j)
#define FC_OF_THIRD_0(j) FC_OF_THIRD(0, j)
#define FC_OF_THIRD_1(j) FC_OF_THIRD(1, j)
#define FC_OF_THIRD_2(j) FC_OF_THIRD(2, j)
static inline void vthirds(vec a, vec b, vec c, vec *thirds) {
    thirds[0] = FC_THIRD(0, a, b, c);
    thirds[1] = FC_THIRD(1, a, b, c);
    thirds[2] = FC_THIRD(2, a, b, c);
}

/* Elements n .. n + VL - 1 of a followed by b, given vshift_by(n), 0 <= n < VL. Where SHIFTS is set this
 * is one instruction: two aligned loads and a shift then beat a load that crosses a cache line. */
#if defined(__AVX512F__) || defined(FC_WIDE)
enum { SHIFTS = 1 };
#else
enum { SHIFTS = 0 };
#endif
#if defined(__AVX512F__)
typedef __m512i vindex;
static inline vindex vshift_by(ptrdiff_t n) {
    if (FC_IS_FLOAT)
        return _mm512_add_epi32(_mm512_set1_epi32((int)n), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8,
                                                                            7, 6, 5, 4, 3, 2, 1, 0));
    return _mm512_add_epi64(_mm512_set1_epi64(n), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
}
static inline vec vshift(vec a, vec b, vindex by) {
    if (FC_IS_FLOAT) return (vec)_mm512_permutex2var_ps((__m512)a, by, (__m512)b);
    return (vec)_mm512_permutex2var_pd((__m512d)a, by, (__m512d)b);
}
#else
typedef ptrdiff_t vindex;
static inline vindex vshift_by(ptrdiff_t n) { return n; }
static inline vec vshift(vec a, vec b, vindex by) {
    real both[2 * VL];
    vstore(both, a);
    vstore(both + VL, b);
    return vload(both + by);
}
#endif

/* The same by a constant, 0 <= n < 7. */
static inline __attribute__((always_inline)) vec vslide(vec a, vec b, const int n) {
#if defined(__AVX512F__)
#define FC_SLIDE(n)                                                                                     \
    case n:                                                                                             \
        return FC_IS_FLOAT ? (vec)_mm512_alignr_epi32((__m512i)b, (__m512i)a, n)                        \
                           : (vec)_mm512_alignr_epi64((__m512i)b, (__m512i)a, n);
    switch (n) {
        FC_SLIDE(1)
        FC_SLIDE(2)
        FC_SLIDE(3)
        FC_SLIDE(4)
        FC_SLIDE(5)
        FC_SLIDE(6)
    }
    return a;
#else
    return n == 0 ? a : vshift(a, b, vshift_by(n));
#endif
}

/* Transposes the VL x VL matrix in rows[0 .. VL-1]: for each power of two g, the off-diagonal
 * g x g blocks of every 2g x 2g block change places. */
#define FC_UPPER(j, g) (((j) & (g)) == 0 ? (j) : VL + (j) - (g))
#define FC_LOWER(j, g) (((j) & (g)) == 0 ? (j) + (g) : VL + (j))
#define FC_UPPER_1(j) FC_UPPER(j, 1)
#define FC_LOWER_1(j) FC_LOWER(j, 1)
#define FC_UPPER_2(j) FC_UPPER(j, 2)
#define FC_LOWER_2(j) FC_LOWER(j, 2)
#define FC_UPPER_4(j) FC_UPPER(j, 4)
#define FC_LOWER_4(j) FC_LOWER(j, 4)
#define FC_UPPER_8(j) FC_UPPER(j, 8)
#define FC_LOWER_8(j) FC_LOWER(j, 8)
#define FC_EXCHANGE(rows, g)                                  \
    for (int i = 0; i < VL; i++)                              \
        if (((i) & (g)) == 0) {                               \
            vec a = rows[i], b = rows[i + (g)];               \
            rows[i] = FC_SHUFFLE(a, b, FC_UPPER_##g);         \
            rows[i + (g)] = FC_SHUFFLE(a, b, FC_LOWER_##g);   \
        }
static inline __attribute__((always_inline)) void vtranspose(vec *rows) {
    if (VL > 8) { FC_EXCHANGE(rows, 8) }
    if (VL > 4) { FC_EXCHANGE(rows, 4) }
    if (VL > 2) { FC_EXCHANGE(rows, 2) }
    FC_EXCHANGE(rows, 1)
}

/* Sums of the lanes j = l modulo `inner` (a power of two) of rows[0 .. VL / inner - 1], which it uses up:
 * lane i * inner + l of the result is that of row i. Pairs of rows change places in halves and add. */
#define FC_FOLD(rows, inner, g)                                                                         if ((g) >= (inner) && (g) < VL)                                                                         for (int i = 0; i < VL / (inner); i += 2 * (g) / (inner)) {                                             vec a = rows[i], b = rows[i + (g) / (inner)];                                                       rows[i] = FC_SHUFFLE(a, b, FC_UPPER_##g) + FC_SHUFFLE(a, b, FC_LOWER_##g);                      }
static inline __attribute__((always_inline)) vec vsums(vec *rows, int inner) {
    FC_FOLD(rows, inner, 1)
    FC_FOLD(rows, inner, 2)
    FC_FOLD(rows, inner, 4)
    FC_FOLD(rows, inner, 8)
    return rows[0];
}

/* Integers in lanes as wide as `real`, and which lanes a comparison holds for. */
typedef __typeof__(((vec){0} < (vec){0})[0]) lane;
typedef lane ivec __attribute__((vector_size(FC_VECTOR_BYTES), aligned(sizeof(lane)), may_alias));
static inline ivec iload(const lane *p) { return *(const ivec *)p; }
static inline void istore(lane *p, ivec v) { *(ivec *)p = v; }
/* VL bytes, one a lane; gcc converts them one by one if it is only told to convert a vector. */
static inline ivec iload_bytes(const unsigned char *p) {
#if defined(__AVX512F__)
    if (sizeof(real) == 4) return (ivec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return (ivec)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)p));
#elif defined(__AVX2__) && !defined(FC_WIDE)
    int four;
    if (sizeof(real) == 4) return (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    memcpy(&four, p, sizeof(four));
    return (ivec)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
#else
    ivec v;
    for (int i = 0; i < VL; i++) v[i] = p[i];
    return v;
#endif
}
static inline ivec iset1(lane x) { return x - (ivec){0}; }
static inline ivec iadd(ivec a, ivec b) { return a + b; }
static inline ivec imul(ivec a, ivec b) { return a * b; }
static inline ivec iupper(ivec a) { return a >> 16; } /* of 32 bits, the upper half */
static inline vec vdiv(vec a, vec b) { return a / b; }

/* vmax: the larger, NaN where either is NaN. vbeats(x, best): is x larger than best, or the first NaN?
 * has_nan: does any lane hold one? vselect, iselect: a where the mask holds, else b. vadd_where: sum + x where it
 * holds, else sum. ibeyond: is any lane negative, or not below the limit? */
#if defined(__AVX512F__)
#define FC_BY_WIDTH(four, eight) (sizeof(real) == 4 ? (four) : (eight))
typedef unsigned short vmask;
static inline vmask vbeats(vec x, vec best) {
    if (sizeof(real) == 4)
        return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask((__m512)best, (__m512)best, _CMP_ORD_Q),
                                       (__m512)x, (__m512)best, _CMP_NLE_UQ);
    return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask((__m512d)best, (__m512d)best, _CMP_ORD_Q),
                                   (__m512d)x, (__m512d)best, _CMP_NLE_UQ);
}
static inline vec vmax(vec a, vec b) {
    if (sizeof(real) == 4)
        return (vec)_mm512_mask_max_ps((__m512)a, _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_ORD_Q),
                                       (__m512)a, (__m512)b);
    return (vec)_mm512_mask_max_pd((__m512d)a, _mm512_cmp_pd_mask((__m512d)a, (__m512d)a, _CMP_ORD_Q),
                                   (__m512d)a, (__m512d)b);
}
static inline int has_nan(vec v) {
    return FC_BY_WIDTH(_mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q),
                       _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q)) != 0;
}
static inline vmask iequal(ivec a, ivec b) {
    return FC_BY_WIDTH(_mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b),
                       _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b));
}
static inline ivec imax(ivec a, ivec b) {
    return FC_BY_WIDTH((ivec)_mm512_max_epi32((__m512i)a, (__m512i)b),
                       (ivec)_mm512_max_epi64((__m512i)a, (__m512i)b));
}
static inline int ibeyond(ivec x, ivec limit) {
    return FC_BY_WIDTH(_mm512_cmpge_epu32_mask((__m512i)x, (__m512i)limit),
                       _mm512_cmpge_epu64_mask((__m512i)x, (__m512i)limit)) != 0;
}
static inline ivec iselect(vmask m, ivec a, ivec b) {
    return FC_BY_WIDTH((ivec)_mm512_mask_mov_epi32((__m512i)b, m, (__m512i)a),
                       (ivec)_mm512_mask_mov_epi64((__m512i)b, (__mmask8)m, (__m512i)a));
}
static inline vec vselect(vmask m, vec a, vec b) { return (vec)iselect(m, (ivec)a, (ivec)b); }
static inline vec vadd_where(vmask m, vec sum, vec x) {
    return FC_BY_WIDTH((vec)_mm512_mask_add_ps((__m512)sum, m, (__m512)sum, (__m512)x),
                       (vec)_mm512_mask_add_pd((__m512d)sum, (__mmask8)m, (__m512d)sum, (__m512d)x));
}
#else
typedef ivec vmask;
static inline ivec iselect(vmask m, ivec a, ivec b) {
#if FC_VECTOR_BYTES == 32
    return (ivec)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)m);
#else
    return (m & a) | (~m & b);
#endif
}
static inline vec vselect(vmask m, vec a, vec b) { return (vec)iselect(m, (ivec)a, (ivec)b); }
static inline vmask vbeats(vec x, vec best) { return ~(vmask)(x <= best) & (vmask)(best == best); }
static inline vmask iequal(ivec a, ivec b) { return (vmask)(a == b); }
static inline ivec imax(ivec a, ivec b) { return iselect((vmask)(a > b), a, b); }
static inline vec vadd_where(vmask m, vec sum, vec x) { return sum + (vec)(m & (ivec)x); }
static inline vec vmax(vec a, vec b) {
    vmask missing = (vmask)(a != a); /* all bits set are a NaN */
#if FC_VECTOR_BYTES == 32
    vec larger = sizeof(real) == 4 ? (vec)_mm256_max_ps((__m256)a, (__m256)b)
                                   : (vec)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif FC_VECTOR_BYTES == 16 && defined(__SSE2__)
    vec larger = sizeof(real) == 4 ? (vec)_mm_max_ps((__m128)a, (__m128)b)
                                   : (vec)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    vec larger = vselect((vmask)(a > b), a, b);
#endif
    return (vec)((vmask)larger | missing);
}
static inline int fc_any(vmask m) {
#if FC_VECTOR_BYTES == 32
    return !_mm256_testz_si256((__m256i)m, (__m256i)m);
#else
    int found = 0;
    for (int i = 0; i < VL; i++) found |= m[i] != 0;
    return found;
#endif
}
static inline int has_nan(vec v) { return fc_any((vmask)(v != v)); }
static inline int ibeyond(ivec x, ivec limit) { return fc_any((vmask)(x < 0) | (vmask)(x >= limit)); }
#endif

/* a / b, given the rounded 1 / b of a finite, normal b. With a fused product the error of a * (1 / b) is exact, and
 * one step takes it away (Markstein): 5 instructions where a division of 16 lanes takes 16 cycles. An infinite
 * a has no error. A quotient at the edge of the denormals may be one unit off. */
static inline vec vquotient(vec a, vec b, vec reciprocal) {
#if defined(__FMA__) || defined(__aarch64__)
    vec quotient = a * reciprocal, error = vfma(-quotient, b, a);
    vec better = vfma(error, reciprocal, quotient);
#if defined(__AVX512F__)
    vmask finite = FC_BY_WIDTH(_mm512_cmp_ps_mask((__m512)error, (__m512)error, _CMP_ORD_Q),
                               _mm512_cmp_pd_mask((__m512d)error, (__m512d)error, _CMP_ORD_Q));
    return vselect(finite, better, quotient);
#else
    return vselect((vmask)(error == error), better, quotient);
#endif
#else
    (void)reciprocal;
    return a / b;
#endif
}

/* Lanes of a and b in turn: the first 2 VL of a[0], b[0], a[1], b[1], ... are low, then high. */
static inline vec vzip_low(vec a, vec b) {
#define FC_ZIP_LOW(j) ((j) / 2 + ((j) & 1) * VL)
    return FC_SHUFFLE(a, b, FC_ZIP_LOW);
}
static inline vec vzip_high(vec a, vec b) {
#define FC_ZIP_HIGH(j) (VL / 2 + (j) / 2 + ((j) & 1) * VL)
    return FC_SHUFFLE(a, b, FC_ZIP_HIGH);
}

/* to[2 j] = v[j] for j < count; what lies between is neither read nor written. */
static inline void vstore_apart(real *to, ptrdiff_t count, vec v) {
#if defined(__AVX512F__)
    unsigned long long mask = 0x55555555ull & ((1ull << 2 * count) - 1);
    vec low = vzip_low(v, v), high = vzip_high(v, v);
    if (FC_IS_FLOAT) {
        _mm512_mask_storeu_ps(to, (__mmask16)mask, (__m512)low);
        _mm512_mask_storeu_ps(to + VL, (__mmask16)(mask >> VL), (__m512)high);
    } else {
        _mm512_mask_storeu_pd(to, (__mmask8)mask, (__m512d)low);
        _mm512_mask_storeu_pd(to + VL, (__mmask8)(mask >> VL), (__m512d)high);
    }
#else
    for (ptrdiff_t j = 0; j < count; j++) to[2 * j] = v[j];
#endif
}

/* Denormal operands and results cost a microcode assist each: workers flush them to zero and hand
 * the caller's floating-point mode back. */
#if defined(__x86_64__)
static inline unsigned flush_denormals(void) {
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    return mode;
}
static inline void restore_denormals(unsigned mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
static inline unsigned flush_denormals(void) {
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ul << 24)));
    return (unsigned)mode;
}
static inline void restore_denormals(unsigned mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"((unsigned long)mode));
}
#else
static inline unsigned flush_denormals(void) { return 0; }
static inline void restore_denormals(unsigned mode) { (void)mode; }
#endif

/* The release date of the OpenMP standard it was compiled with, or 0 without OpenMP. */
static inline int openmp_version(void) {
#if defined(_OPENMP)
    return _OPENMP;
#else
    return 0;
#endif
}

static inline int cpu_has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}
static inline int cpu_has_avx512(void) {
#if defined(__x86_64__)
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

#endif
