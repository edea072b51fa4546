// What the fused optimizers share: the way over the weights in chunks, the mask, and the sums of a step.
#pragma once
#include "vec.h"

// The mask of a layer, what it does to the gradient, and the factor of pruned weights' decay.
struct Mask {
  float threshold, low, high;
  double pruned_gradient, pruned_decay, grad_scale;
  bool maximize;
};

// A part of a layer: ``states`` are the optimizer's, ``copy`` (or null) takes the masked weight. The sums are those of
// grad * sparse, of grad * weight within the band, and of the weights there.
template <class T> struct Part {
  T* weight;
  const T* grad;
  T* states[2];
  void* copy;
  int copy_dtype;
  int64_t n;
  double sums[3];
};

constexpr int COPY_DOUBLE = 0, COPY_FLOAT = 1, COPY_BF16 = 2, COPY_FP16 = 3;

#ifdef ISA
namespace ISA {

template <class A> struct MaskOf { typedef typename IndexOf<A>::type type __attribute__((vector_size(BYTES))); };

// |v| as fp32, in the type of v
static inline float magnitude(float v) { return __builtin_fabsf(v); }
static inline double magnitude(double v) { return __builtin_fabsf(float(v)); }
static inline Vec<float> magnitude(Vec<float> v) {
  return (Vec<float>)((MaskOf<float>::type)v & 0x7fffffff);
}
static inline Vec<double> magnitude(Vec<double> v) {
  typedef float Half __attribute__((vector_size(BYTES / 2)));
  auto rounded = __builtin_convertvector(__builtin_convertvector(v, Half), Vec<double>);
  return (Vec<double>)((MaskOf<double>::type)rounded & 0x7fffffffffffffff);
}

#ifdef __AVX2__
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
static inline float fma(float a, float b, float c) { return a * b + c; }
static inline double fma(double a, double b, double c) { return a * b + c; }
#endif
#ifdef __AVX512F__
static inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
static inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a, b, c); }
#else
static inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
static inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
#endif

// What a vector or a single element adds to the three sums.
template <class V> struct Sums {
  V kept = {}, band = {}, count = {};
};

// One vector or one element V of type A: sums, the gradient's factor, the update; returns the new weight.
template <class A, class V, class Update>
static inline V advance(V w, V g, V* states, const Mask& mask, const Update& update, Sums<V>& sums, V* sparse) {
  const V zero = {}, one = zero + A(1);
  V size = magnitude(w);
  auto pruned = size < zero + A(mask.threshold);
  auto near = (size >= zero + A(mask.low)) & (size <= zero + A(mask.high));
  if (mask.grad_scale != 1) g = g / A(mask.grad_scale);
  V product = g * w;
  sums.kept += g * (pruned ? zero : w);
  sums.band += near ? product : zero;
  sums.count += near ? one : zero;
  g = pruned ? g * A(float(mask.pruned_gradient)) : g;
  if (mask.maximize) g = -g;
  V next = update(w, g, states, pruned);
  *sparse = magnitude(next) < zero + A(mask.threshold) ? zero : next;
  return next;
}

template <class A, class C> static inline void write_copy(const A* from, C* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) narrow(from[i], to + i);
}

// The whole part, in blocks; narrow types are widened into buffers first.
template <int STATES, class T, class Update> static inline void pass(Part<T>& part, const Mask& mask, const Update& update) {
  using A = Wide<T>;
  using V = Vec<A>;
  constexpr int BLOCK = 1024;
  constexpr bool WIDE = sizeof(A) == sizeof(T);
  alignas(64) A buffers[WIDE ? 1 : STATES + 2][WIDE ? 1 : BLOCK];
  alignas(64) A sparse[BLOCK];
  for (double& sum : part.sums) sum = 0;
  for (int64_t begin = 0; begin < part.n; begin += BLOCK) {
    int64_t size = part.n - begin < BLOCK ? part.n - begin : BLOCK, i = 0;
    A *w, *states[STATES + 1];
    const A* g;
    if constexpr (WIDE) {
      w = part.weight + begin, g = part.grad + begin;
      for (int s = 0; s < STATES; s++) states[s] = part.states[s] + begin;
    } else {
      w = buffers[STATES], g = buffers[STATES + 1];
      for (int64_t j = 0; j < size; j++) buffers[STATES][j] = widen(part.weight[begin + j]);
      for (int64_t j = 0; j < size; j++) buffers[STATES + 1][j] = widen(part.grad[begin + j]);
      for (int s = 0; s < STATES; s++) {
        states[s] = buffers[s];
        for (int64_t j = 0; j < size; j++) buffers[s][j] = widen(part.states[s][begin + j]);
      }
    }
    Sums<V> lanes;
    Sums<A> rest;
    for (; i + WIDTH<A> <= size; i += WIDTH<A>) {
      V now[STATES + 1], kept;
      for (int s = 0; s < STATES; s++) now[s] = load(states[s] + i);
      V next = advance<A>(load(w + i), load(g + i), now, mask, update, lanes, &kept);
      store(w + i, next);
      for (int s = 0; s < STATES; s++) store(states[s] + i, now[s]);
      if (part.copy) store(sparse + i, kept);
    }
    for (; i < size; i++) {
      A now[STATES + 1];
      for (int s = 0; s < STATES; s++) now[s] = states[s][i];
      w[i] = advance<A>(w[i], g[i], now, mask, update, rest, sparse + i);
      for (int s = 0; s < STATES; s++) states[s][i] = now[s];
    }
    for (int lane = 0; lane < WIDTH<A>; lane++) {
      rest.kept += lanes.kept[lane], rest.band += lanes.band[lane], rest.count += lanes.count[lane];
    }
    part.sums[0] += rest.kept, part.sums[1] += rest.band, part.sums[2] += rest.count;
    if constexpr (!WIDE) {
      for (int64_t j = 0; j < size; j++) narrow(w[j], part.weight + begin + j);
      for (int s = 0; s < STATES; s++) {
        for (int64_t j = 0; j < size; j++) narrow(states[s][j], part.states[s] + begin + j);
      }
    }
    if (!part.copy) continue;
    switch (part.copy_dtype) {
      case COPY_DOUBLE: write_copy(sparse, static_cast<double*>(part.copy) + begin, size); break;
      case COPY_FLOAT: write_copy(sparse, static_cast<float*>(part.copy) + begin, size); break;
      case COPY_BF16: write_copy(sparse, static_cast<bf16*>(part.copy) + begin, size); break;
      default: write_copy(sparse, static_cast<fp16*>(part.copy) + begin, size);
    }
  }
}

}  // namespace ISA
#else
#include "op.h"

// What a step does to all layers alike.
struct Options {
  double pruned_gradient, band, pruned_decay;
  bool maximize;
};

// Every mutated tensor of a layer, or a contiguous stand-in where the tensors' orders in memory differ; ``finish``
// writes the stand-ins back.
struct Writable {
  std::vector<Tensor> given, used;
  void finish() const {
    for (size_t i = 0; i < given.size(); i++) {
      if (used[i].data_ptr() != given[i].data_ptr()) torch::stable::copy_(const_cast<Tensor&>(given[i]), used[i]);
    }
  }
};

// Runs ``kernel(part, mask, layer)`` over all layers in chunks; returns their sums, fp64 [L, 3], for any number of
// threads the same. ``states``: per layer, those that the kernel updates.
template <class Kernel>
Tensor each_part(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
                 const std::vector<std::vector<Tensor>>& states, const std::vector<Tensor>& thresholds,
                 const std::vector<Tensor>& copies, const std::optional<Tensor>& grad_scale, const Options& options,
                 const Kernel& kernel) {
  constexpr int64_t CHUNK = 1 << 15;
  int64_t layers = weights.size();
  auto y = torch::stable::empty({layers, 3}, ScalarType::Double);
  double* sums = out<double>(y);
  std::fill(sums, sums + 3 * layers, 0.0);
  if (layers == 0) return y;
  double scale = number(grad_scale, 1);
  std::vector<Writable> writable(layers);
  std::vector<Mask> masks(layers);
  by_dtype(weights[0].scalar_type(), [&](auto type) {
    using T = decltype(type);
    std::vector<Part<T>> parts;
    std::vector<int64_t> owners;
    std::vector<Tensor> held;
    for (int64_t l = 0; l < layers; l++) {
      auto& [given, used] = writable[l];
      given.push_back(weights[l]);
      for (const auto& state : states[l]) given.push_back(state);
      if (!copies.empty()) given.push_back(copies[l]);
      bool aligned = same_order(weights[l], grads[l]);
      for (const auto& t : given) aligned &= same_order(t, weights[l]);
      for (const auto& t : given) used.push_back(aligned ? t : torch::stable::contiguous(t));
      held.push_back(aligned ? grads[l] : torch::stable::contiguous(grads[l]));
      float t = float(number(thresholds[l]));
      masks[l] = {t, float(1 - options.band) * t, float(1 + options.band) * t, options.pruned_gradient,
                  options.pruned_decay, scale, options.maximize};
      int64_t n = weights[l].numel();
      for (int64_t begin = 0; begin < n; begin += CHUNK) {
        Part<T> part = {out<T>(used[0]) + begin, in<T>(held[l]) + begin, {}, nullptr, 0, std::min(CHUNK, n - begin), {}};
        for (size_t s = 0; s < states[l].size(); s++) part.states[s] = out<T>(used[s + 1]) + begin;
        if (!copies.empty()) {
          by_dtype(copies[l].scalar_type(), [&](auto copy) {
            part.copy = out<decltype(copy)>(used.back()) + begin;
            part.copy_dtype = std::is_same_v<decltype(copy), double>  ? COPY_DOUBLE
                              : std::is_same_v<decltype(copy), float> ? COPY_FLOAT
                              : std::is_same_v<decltype(copy), bf16>  ? COPY_BF16
                                                                      : COPY_FP16;
          });
        }
        parts.push_back(part);
        owners.push_back(l);
      }
    }
    parallel_for(0, parts.size(), 2, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) kernel(parts[p], masks[owners[p]], owners[p]);
    });
    for (size_t p = 0; p < parts.size(); p++) {
      for (int i = 0; i < 3; i++) sums[3 * owners[p] + i] += parts[p].sums[i];
    }
  });
  for (const auto& layer : writable) layer.finish();
  return y;
}
#endif
