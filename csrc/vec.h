// What the kernels share: element types, one short vector type per instruction set, and the choice between the sets.
//
// Every <op>.cpp is compiled once as it is (the operator) and once per instruction set with -DISA=<set> (its kernels, in
// a namespace of that name), all into one library. Kernels use no inline function of a shared header: the linker keeps
// one copy of such a function, and it might be the one for a newer processor.
#pragma once
#include <cstdint>
#include <cstring>

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

#ifdef __x86_64__
#define KERNEL(...) \
  namespace portable { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; } \
  namespace avx512 { __VA_ARGS__; }
#define PICK(...) \
  (isa() == Isa::avx512 ? avx512::__VA_ARGS__ : isa() == Isa::avx2 ? avx2::__VA_ARGS__ : portable::__VA_ARGS__)
#else
#define KERNEL(...) \
  namespace portable { __VA_ARGS__; }
#define PICK(...) portable::__VA_ARGS__
#endif

// F for every floating dtype and the type of its sums
#define EACH_DTYPE(F) F(double, double) F(float, float) F(bf16, float) F(fp16, float)

#ifdef ISA
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace ISA {

#ifdef __AVX512F__
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <class A> struct VecOf {
  typedef A type __attribute__((vector_size(BYTES)));
  typedef A anywhere __attribute__((vector_size(BYTES), aligned(1), may_alias));
};
template <class A> using Vec = typename VecOf<A>::type;
template <class A> using VecAnywhere = typename VecOf<A>::anywhere;
template <class A> constexpr int WIDTH = BYTES / sizeof(A);

// the type an element is computed in, and the integer of that size
template <class T> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <class A> struct IndexOf { using type = int32_t; };
template <> struct IndexOf<double> { using type = int64_t; };
template <class T> using Wide = typename WideOf<T>::type;

static inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

static inline double widen(double v) { return v; }
static inline float widen(float v) { return v; }
static inline float widen(bf16 v) { return float_of(uint32_t(v.bits) << 16); }
static inline float widen(fp16 v) {
#ifdef __F16C__
  return _cvtsh_ss(v.bits);
#else
  uint32_t sign = uint32_t(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  float magnitude = rest < 0x400 ? float(rest) * 0x1p-24f : float_of((rest << 13) + (112u << 23));
  return float_of(sign | bits_of(magnitude));
#endif
}

// rounded to nearest, ties to even, as PyTorch does
static inline void narrow(double v, double* y) { *y = v; }
static inline void narrow(double v, float* y) { *y = float(v); }
static inline void narrow(float v, float* y) { *y = v; }
static inline void narrow(float v, bf16* y) {
  uint32_t bits = bits_of(v);
  y->bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void narrow(float v, fp16* y) {
#ifdef __F16C__
  y->bits = _cvtss_sh(v, 0);
#else
  uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    y->bits = 0x7e00;
  } else if (rest >= 0x47800000) {
    y->bits = sign | 0x7c00;  // 65536 and above
  } else if (rest < 0x38800000) {
    y->bits = sign | (bits_of(float_of(rest) + 0.5f) - bits_of(0.5f));  // denormal: the addition rounds
  } else {
    y->bits = sign | ((rest + 0xfff + (rest >> 13 & 1)) - (112u << 23)) >> 13;
  }
#endif
}

static inline void narrow(double v, bf16* y) { narrow(float(v), y); }
static inline void narrow(double v, fp16* y) { narrow(float(v), y); }

// What a firm threshold t leaves of a weight that it keeps: from t / 64 at t to the weight itself at 1.25 t
// (reference.shrinkage).
template <class A> static inline A shrunk(A w, float threshold) {
  A t = threshold, size = w < 0 ? -w : w, end = A(1.25) * t, lost = 4 * (end - size), most = t - t / 64;
  lost = lost < most ? lost : most;
  return size < end ? (w < 0 ? w + lost : w - lost) : w;
}

template <class A> static inline Vec<A> load(const A* p) { return *reinterpret_cast<const VecAnywhere<A>*>(p); }
template <class A> static inline void store(A* p, Vec<A> v) { *reinterpret_cast<VecAnywhere<A>*>(p) = v; }

// Swaps the off-diagonal blocks of size STEP, then those within the blocks.
template <int STEP, class A> static inline void transpose(Vec<A>* rows) {
  Vec<typename IndexOf<A>::type> upper, lower;
  for (int j = 0; j < WIDTH<A>; j++) {
    upper[j] = j & STEP ? WIDTH<A> + j - STEP : j;
    lower[j] = j & STEP ? WIDTH<A> + j : j + STEP;
  }
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH<A>; i++) {
    if (i & STEP) continue;
    Vec<A> a = rows[i], b = rows[i + STEP];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + STEP] = __builtin_shuffle(a, b, lower);
  }
  if constexpr (STEP > 1) transpose<STEP / 2, A>(rows);
}

#ifdef __AVX512F__
static inline Vec<float> fma(float a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
static inline Vec<double> fma(double a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(_mm512_set1_pd(a), b, c);
}
#elif defined(__AVX2__)
static inline Vec<float> fma(float a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c); }
static inline Vec<double> fma(double a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(_mm256_set1_pd(a), b, c);
}
#else
template <class A> static inline Vec<A> fma(A a, Vec<A> b, Vec<A> c) { return a * b + c; }
#endif

}  // namespace ISA
#else

enum class Isa { portable, avx2, avx512 };
// The widest set of this processor, or the one that ASWL_ISA asks for; read once.
Isa isa();
#endif
