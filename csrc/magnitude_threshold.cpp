// magnitude_threshold: each layer's exact keep-th largest magnitude, in about one read of the weights.
//
// A magnitude is compared by its fp32 bits, whose order is that of the numbers, with NaN on top. A sample of a layer
// tells an interval that almost surely holds the answer; one pass counts what lies above and collects what lies inside;
// radix selection finds the answer there. Where the sample misled, radix selection reads the whole layer.
#include "vec.h"

KERNEL(template <class T> void magnitudes(const T* weight, int64_t n, uint32_t* bits))
KERNEL(template <class T> void collect(const T* weight, int64_t n, uint32_t low, uint32_t span, uint32_t* members,
                                       int64_t capacity, int64_t* above, int64_t* inside))

#ifdef ISA
namespace ISA {

template <class T> void magnitudes(const T* weight, int64_t n, uint32_t* bits) {
  for (int64_t i = 0; i < n; i++) bits[i] = bits_of(float(widen(weight[i]))) & 0x7fffffff;
}

// Counts the weights whose bits are above [low, low + span) and those inside, and writes the latter to ``members`` as
// long as there is room; that holds 16 more than ``capacity``.
template <class T> void collect(const T* weight, int64_t n, uint32_t low, uint32_t span, uint32_t* members,
                                int64_t capacity, int64_t* above, int64_t* inside) {
  int64_t higher = 0, found = 0, i = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(Wide<T>) == sizeof(T)) {
    if constexpr (sizeof(T) == 4) {
      const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), lows = _mm512_set1_epi32(low);
      const __m512i spans = _mm512_set1_epi32(span), highs = _mm512_set1_epi32(low + span);
      for (; i + 16 <= n; i += 16) {
        __m512i bits = _mm512_and_si512(_mm512_loadu_si512(weight + i), magnitude);
        __mmask16 top = _mm512_cmpge_epu32_mask(bits, highs);
        __mmask16 here = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(bits, lows), spans);
        higher += _mm_popcnt_u32(top);
        // compressed in a register: to memory it is slow
        if (found <= capacity) _mm512_storeu_si512(members + found, _mm512_maskz_compress_epi32(here, bits));
        found += _mm_popcnt_u32(here);
      }
    }
  }
#endif
  constexpr int BLOCK = 256;
  uint32_t block[BLOCK];
  for (; i < n; i += BLOCK) {
    int64_t size = n - i < BLOCK ? n - i : BLOCK;
    magnitudes(weight + i, size, block);
    for (int64_t j = 0; j < size; j++) {
      higher += block[j] >= low + span;
      if (found <= capacity) members[found] = block[j];
      found += block[j] - low < span;
    }
  }
  *above = higher;
  *inside = found;
}

#define INSTANTIATE(T, A)                                      \
  template void magnitudes(const T*, int64_t, uint32_t*); \
  template void collect(const T*, int64_t, uint32_t, uint32_t, uint32_t*, int64_t, int64_t*, int64_t*);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include <cmath>
#include <limits>

#include "op.h"

namespace {

constexpr int64_t SAMPLE = 8192, RUN = 16, CHUNK = 1 << 16, ROOM = CHUNK / 8, SLACK = 16;

// The k-th largest of the values that ``each(f)`` hands to f(bits, n), all in [low, low + span), but for its ``rest``
// lowest bits, which come out as 0.
template <class Each> uint32_t select(const Each& each, uint32_t low, uint32_t span, int64_t k, int rest = 0) {
  uint32_t found = 0;
  int shift = span > 1 ? 32 - __builtin_clz(span - 1) : 0;
  while (shift > rest) {
    int digits = std::min(shift, 11);
    int above = shift;
    shift -= digits;
    uint32_t mask = (1u << digits) - 1;
    std::vector<int64_t> counts(mask + 1, 0);
    each([&](const uint32_t* bits, int64_t n) {
      for (int64_t i = 0; i < n; i++) {
        uint64_t offset = bits[i] - low;
        if (offset >> above == found) counts[offset >> shift & mask]++;
      }
    });
    uint32_t digit = mask;
    while (counts[digit] < k) k -= counts[digit--];
    found = found << digits | digit;
  }
  return low + (found << shift);
}

// One layer: where its answer must lie, and its chunks in the list of all chunks.
struct Layer {
  Tensor weight;
  int64_t n, keep, first_chunk = 0;
  uint32_t low = 0, span = 0, answer = 0;
};

struct Chunk {
  int64_t layer, begin, size, above = 0, inside = 0;
};

template <class T> uint32_t select_whole(const Layer& layer) {
  auto each = [&](auto f) {
    uint32_t bits[1024];
    for (int64_t i = 0; i < layer.n; i += 1024) {
      int64_t size = std::min<int64_t>(1024, layer.n - i);
      PICK(magnitudes(in<T>(layer.weight) + i, size, bits));
      f(bits, size);
    }
  };
  return select(each, 0, 1u << 31, layer.keep);
}

// Evenly spaced runs of the layer; four standard deviations of a sample rank to either side.
template <class T> void guess(Layer& layer) {
  uint32_t bits[SAMPLE];
  constexpr int64_t runs = SAMPLE / RUN;
  for (int64_t r = 0; r < runs; r++) {
    PICK(magnitudes(in<T>(layer.weight) + r * (layer.n - RUN) / (runs - 1), RUN, bits + r * RUN));
  }
  auto each = [&](auto f) { f(bits, SAMPLE); };
  double share = double(layer.keep) / layer.n, rank = share * SAMPLE;
  double margin = 4 * std::sqrt(rank * (1 - share)) + 2;
  int64_t upper = std::floor(rank - margin), lower = std::ceil(rank + margin);
  constexpr int REST = 9;  // the interval need not be exact: two passes of 11 bits do
  uint32_t top = upper < 1 ? 0x7fffffff : select(each, 0, 1u << 31, upper, REST) | ((1u << REST) - 1);
  layer.low = lower > SAMPLE ? 0 : select(each, 0, 1u << 31, lower, REST);
  layer.span = top - layer.low + 1;
}

template <class T> uint32_t finish(const Layer& layer, const std::vector<Chunk>& chunks, const uint32_t* members) {
  int64_t above = 0, inside = 0, end = layer.first_chunk + (layer.n + CHUNK - 1) / CHUNK;
  bool room = true;
  for (int64_t c = layer.first_chunk; c < end; c++) {
    above += chunks[c].above;
    inside += chunks[c].inside;
    room &= chunks[c].inside <= ROOM;
  }
  if (!room || layer.keep <= above || layer.keep > above + inside) return select_whole<T>(layer);
  auto each = [&](auto f) {
    for (int64_t c = layer.first_chunk; c < end; c++) f(members + c * (ROOM + SLACK), chunks[c].inside);
  };
  return select(each, layer.low, layer.span, layer.keep - above);
}

Tensor magnitude_threshold(const std::vector<Tensor>& weights, const Tensor& keep) {
  auto counts = torch::stable::contiguous(keep);
  auto y = torch::stable::new_empty(keep, keep.sizes(), ScalarType::Float);
  std::vector<Layer> layers;
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < weights.size(); i++) {
    int64_t n = weights[i].numel(), k = std::min(in<int64_t>(counts)[i], n);
    layers.push_back({torch::stable::contiguous(weights[i]), n, k, int64_t(chunks.size())});
    if (k < 1 || n <= SAMPLE) continue;
    for (int64_t begin = 0; begin < n; begin += CHUNK) {
      chunks.push_back({int64_t(i), begin, std::min(CHUNK, n - begin)});
    }
  }
  auto each_layer = [&](auto f) {
    parallel_for(0, layers.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (layers[i].keep >= 1) by_dtype(layers[i].weight.scalar_type(), [&](auto type) { f(layers[i], type); });
      }
    });
  };
  each_layer([&](Layer& layer, auto type) {
    using T = decltype(type);
    if (layer.n <= SAMPLE) {
      layer.answer = select_whole<T>(layer);
    } else {
      guess<T>(layer);
    }
  });
  auto scratch = torch::stable::new_empty(y, {int64_t(chunks.size()), ROOM + SLACK});
  auto members = static_cast<uint32_t*>(scratch.mutable_data_ptr());
  parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
      Chunk& chunk = chunks[c];
      const Layer& layer = layers[chunk.layer];
      by_dtype(layer.weight.scalar_type(), [&](auto type) {
        PICK(collect(in<decltype(type)>(layer.weight) + chunk.begin, chunk.size, layer.low, layer.span,
                     members + c * (ROOM + SLACK), ROOM, &chunk.above, &chunk.inside));
      });
    }
  });
  each_layer([&](Layer& layer, auto type) {
    if (layer.n > SAMPLE) layer.answer = finish<decltype(type)>(layer, chunks, members);
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
