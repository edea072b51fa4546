// magnitude_threshold: each layer's exact keep-th largest magnitude, in about one read of the weights.
//
// A magnitude is compared by its fp32 bits, whose order is that of the numbers, with NaN on top. A sample of a layer
// tells an interval that almost surely holds the answer; one pass counts what lies above and collects what lies inside;
// halving the interval finds the answer there. Where the sample misled, the whole layer is copied and halved.
#include "vec.h"

KERNEL(template <class T> void magnitudes(const T* weight, int64_t n, int32_t* bits))
KERNEL(template <class T> int64_t collect(const T* weight, int64_t n, int32_t low, int32_t top, int32_t* members,
                                          int64_t* above))
KERNEL(int32_t select(int32_t* bits, int64_t n, int64_t k, int32_t low, int32_t top))

#ifdef ISA
namespace ISA {

static inline int32_t magnitude(int32_t bits) { return bits; }
template <class T> static inline int32_t magnitude(T weight) { return bits_of(float(widen(weight))) & 0x7fffffff; }

template <class T> void magnitudes(const T* weight, int64_t n, int32_t* bits) {
  for (int64_t i = 0; i < n; i++) bits[i] = magnitude(weight[i]);
}

// Writes the bits within [low, top], in any order, and returns their number; ``members`` has 16 places more than there
// may be members, and may be ``weight`` itself. ``above`` grows by the number of bits above top.
template <class T> int64_t collect(const T* weight, int64_t n, int32_t low, int32_t top, int32_t* members,
                                   int64_t* above) {
  int64_t found = 0, i = 0, higher = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    const __m512i lows = _mm512_set1_epi32(low), tops = _mm512_set1_epi32(top);
    for (; i + 16 <= n; i += 16) {
      __m512i bits = _mm512_and_si512(_mm512_loadu_si512(weight + i), _mm512_set1_epi32(0x7fffffff));
      __mmask16 beyond = _mm512_cmpgt_epi32_mask(bits, tops);
      __mmask16 inside = _mm512_cmpge_epi32_mask(bits, lows) ^ beyond;
      higher += _mm_popcnt_u32(beyond);
      // compressed in a register: to memory it is slow
      _mm512_storeu_si512(members + found, _mm512_maskz_compress_epi32(inside, bits));
      found += _mm_popcnt_u32(inside);
    }
  }
#endif
  constexpr int BLOCK = 32;
  int32_t block[BLOCK];
  for (; i < n; i += BLOCK) {
    int size = n - i < BLOCK ? n - i : BLOCK, beyond = 0, at_least = 0;
    magnitudes(weight + i, size, block);
    for (int j = 0; j < size; j++) {
      beyond += block[j] > top;
      at_least += block[j] >= low;
    }
    higher += beyond;
    if (at_least == beyond) continue;
    for (int j = 0; j < size; j++) {
      members[found] = block[j];
      found += block[j] >= low && block[j] <= top;
    }
  }
  *above += higher;
  return found;
}

static int64_t count_at_least(const int32_t* bits, int64_t n, int32_t bound) {
  int64_t total = 0;
  for (int64_t i = 0; i < n;) {
    int64_t end = n - i < 1 << 20 ? n : i + (1 << 20);
    int32_t part = 0;  // narrow, so that the loop becomes vector code
    for (; i < end; i++) part += bits[i] >= bound;
    total += part;
  }
  return total;
}

// The k-th largest of the bits, which lies within [low, top]: the interval is halved until one number is left, the bits
// outside it dropped where they are half of all. ``bits`` has 16 places more, and is used up.
int32_t select(int32_t* bits, int64_t n, int64_t k, int32_t low, int32_t top) {
  int64_t beyond = 0, at_least = n;  // bits above top, bits from low on
  while (low < top) {
    int32_t middle = low + (top - low) / 2 + 1;
    int64_t upper = count_at_least(bits, n, middle);
    if (k <= upper) {
      low = middle;
      at_least = upper;
    } else {
      top = middle - 1;
      beyond = upper;
    }
    if (2 * (at_least - beyond) > n) continue;
    k -= beyond;
    n = at_least = collect(bits, n, low, top, bits, &beyond);
    beyond = 0;
  }
  return low;
}

#define INSTANTIATE(T, A)                                      \
  template void magnitudes(const T*, int64_t, int32_t*); \
  template int64_t collect(const T*, int64_t, int32_t, int32_t, int32_t*, int64_t*);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include <atomic>
#include <cmath>
#include <deque>
#include <limits>

#include "op.h"

namespace {

constexpr int64_t SMALL = 8192, RUN = 32, LEAST = 1 << 10, MOST = 1 << 14, CHUNK = 1 << 16, SLACK = 16;
constexpr int32_t LARGEST = 0x7fffffff;

// One layer: the interval [low, top] where its answer must lie, and what is known of the weights above and inside.
struct Layer {
  Tensor weight;
  int64_t n, keep;
  int32_t low = 0, top = LARGEST, answer = 0;
  int64_t begin = 0, room = 0;  // its part of the collected
  std::atomic<int64_t> above{0}, inside{0}, chunks_left{0};
  Layer(Tensor weight, int64_t n, int64_t keep) : weight(weight), n(n), keep(keep) {}
};

// f(i, worker) for each i, by whichever thread is free: layers differ in size, and a thread may wait for a processor.
template <class F> void share(int64_t count, const F& f) {
  std::atomic<int64_t> next{0};
  parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t worker, int64_t) {
    for (int64_t i; (i = next++) < count;) f(i, worker);
  });
}

template <class T> int32_t select_whole(const Layer& layer) {
  std::vector<int32_t> bits(layer.n + SLACK);
  PICK(magnitudes(in<T>(layer.weight), layer.n, bits.data()));
  return PICK(select(bits.data(), layer.n, layer.keep, 0, LARGEST));
}

// Looks at evenly spaced runs; four standard deviations of a sample rank to either side. That many weights balance the
// cost of the sample against that of what lies inside the interval.
template <class T> void guess(Layer& layer) {
  double n = layer.n, share = layer.keep / n;
  int64_t wanted = std::cbrt(n * n * share * (1 - share));
  int64_t runs = std::max(std::min(wanted, MOST), LEAST) / RUN, size = runs * RUN;
  int32_t sample[MOST + SLACK], copy[MOST + SLACK];
  for (int64_t r = 0; r < runs; r++) {
    PICK(magnitudes(in<T>(layer.weight) + r * (layer.n - RUN) / (runs - 1), RUN, sample + r * RUN));
  }
  memcpy(copy, sample, size * 4);
  double rank = share * size, margin = 4 * std::sqrt(rank * (1 - share)) + 2;
  int64_t upper = std::floor(rank - margin), lower = std::ceil(rank + margin);
  if (upper >= 1) layer.top = PICK(select(copy, size, upper, 0, LARGEST));
  if (lower <= size) layer.low = PICK(select(sample, size, lower, 0, LARGEST));
  layer.room = std::min<int64_t>(layer.n, layer.n * (4 * margin / size)) + SLACK;
}

template <class T> void finish(Layer& layer, int32_t* members) {
  int64_t k = layer.keep - layer.above;
  if (k < 1 || k > layer.inside) {
    layer.answer = select_whole<T>(layer);
  } else if (layer.low == layer.top) {
    layer.answer = layer.low;
  } else if (layer.inside + SLACK > layer.room) {
    layer.answer = select_whole<T>(layer);
  } else {
    layer.answer = PICK(select(members + layer.begin, layer.inside, k, layer.low, layer.top));
  }
}

template <class T> void collect_chunk(Layer& layer, int64_t begin, int32_t* found, int32_t* members) {
  int64_t above = 0, size = std::min(layer.n - begin, CHUNK);
  int64_t inside = PICK(collect(in<T>(layer.weight) + begin, size, layer.low, layer.top, found, &above));
  int64_t place = layer.inside.fetch_add(inside);
  if (place + inside <= layer.room) memcpy(members + layer.begin + place, found, inside * 4);
  layer.above += above;
  if (--layer.chunks_left == 0) finish<T>(layer, members);
}

Tensor magnitude_threshold(const std::vector<Tensor>& weights, const Tensor& keep) {
  auto counts = torch::stable::contiguous(keep);
  auto y = torch::stable::new_empty(keep, keep.sizes(), ScalarType::Float);
  std::deque<Layer> layers;
  for (size_t i = 0; i < weights.size(); i++) {
    int64_t n = weights[i].numel();
    layers.emplace_back(torch::stable::contiguous(weights[i]), n, std::min(in<int64_t>(counts)[i], n));
  }
  share(layers.size(), [&](int64_t i, int64_t) {
    Layer& layer = layers[i];
    if (layer.keep < 1) return;
    by_dtype(layer.weight.scalar_type(), [&](auto type) {
      using T = decltype(type);
      if (layer.n <= SMALL) {
        layer.answer = select_whole<T>(layer);
      } else {
        guess<T>(layer);
      }
    });
  });
  int64_t room = 0;
  std::vector<std::pair<Layer*, int64_t>> chunks;
  for (Layer& layer : layers) {
    if (layer.keep < 1 || layer.n <= SMALL) continue;
    layer.begin = room;
    room += layer.room;
    layer.chunks_left = (layer.n + CHUNK - 1) / CHUNK;
    for (int64_t begin = 0; begin < layer.n; begin += CHUNK) chunks.push_back({&layer, begin});
  }
  auto members = scratch<int32_t>(room + torch::stable::get_num_threads() * (CHUNK + SLACK));
  share(chunks.size(), [&](int64_t c, int64_t worker) {
    auto [layer, begin] = chunks[c];
    by_dtype(layer->weight.scalar_type(), [&, layer = layer, begin = begin](auto type) {
      collect_chunk<decltype(type)>(*layer, begin, members + room + worker * (CHUNK + SLACK), members);
    });
  });
  for (size_t i = 0; i < layers.size(); i++) {
    out<float>(y)[i] = std::numeric_limits<float>::infinity();
    if (layers[i].keep >= 1) memcpy(out<float>(y) + i, &layers[i].answer, 4);
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("magnitude_threshold", TORCH_BOX(&magnitude_threshold)); }
#endif
