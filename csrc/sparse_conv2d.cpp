// sparse_conv2d: direct convolution with the nonzeros of a packed weight, sums in fp32 (fp64 for fp64).
//
// A band of output rows is computed from a copy of the input under it, padding resolved, in which a tap of the kernel
// is a fixed distance: per nonzero one broadcast and a fused multiply-add for each of up to 8 vectors of sums.
// The lanes of a vector are either pixels of one image that lie side by side, or one pixel of as many images (small
// images, large batches); then every row of the weight visits a few channels, which fit into level 1 cache or little
// more, before any visits the next ones. Every sum runs over the nonzeros of its row in order, whatever the threads.
#include "sparse_conv2d.h"

#ifndef ISA
#include <atomic>

#include "op.h"

namespace {

using torch::headeronly::MemoryFormat;

constexpr int64_t BUDGET = 1 << 20;  // bytes of a band's copy, where more than one row fits: level 2 cache
constexpr int64_t BLOCK = 1 << 16;   // bytes of it that a row of the weight visits before the next row does
constexpr double FEWEST = 16;        // nonzeros that it must find there, on average

// PyTorch's suggest_memory_format: strides of channels_last, ambiguous ones not.
bool channels_last(const Tensor& x) {
  int64_t least = 0;
  if (x.stride(1) == 0) return false;
  for (int d : {1, 3, 2, 0}) {
    if (x.size(d) == 0 || x.stride(d) < least || (d == 0 && least == x.stride(1))) return false;
    least = x.stride(d) * std::max<int64_t>(x.size(d), 1);
  }
  return true;
}

// Remainders of a kernel's taps by the stride, each once, in the order of the taps.
std::vector<int64_t> phases_of(int64_t size, int64_t dilation, int64_t stride) {
  std::vector<int64_t> phases;
  for (int64_t k = 0; k < size; k++) {
    int64_t phase = k * dilation % stride;
    if (std::find(phases.begin(), phases.end(), phase) == phases.end()) phases.push_back(phase);
  }
  return phases;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }


// Inputs and geometry of a call, after checks.
struct Call {
  Tensor x, y, values, columns, offsets;
  std::optional<Tensor> bias;
  std::vector<int64_t> shape, stride, padding, dilation;
  int64_t groups;
};

// Where the copy holds the input of each position of a row of the weight, group 0.
std::vector<int64_t> taps_of(const Call& call, const std::vector<int64_t>* phases, int64_t plane, int64_t rows,
                             int64_t pitch) {
  std::vector<int64_t> taps;
  for (int64_t h = 0; h < call.shape[2]; h++) {
    for (int64_t w = 0; w < call.shape[3]; w++) {
      int64_t at[2] = {h * call.dilation[0], w * call.dilation[1]}, phase[2];
      for (int d = 0; d < 2; d++) {
        phase[d] = std::find(phases[d].begin(), phases[d].end(), at[d] % call.stride[d]) - phases[d].begin();
      }
      int64_t image = phase[0] * int64_t(phases[1].size()) + phase[1];
      taps.push_back((image * rows + at[0] / call.stride[0]) * pitch + at[1] / call.stride[1]);
    }
  }
  int64_t window = taps.size();
  taps.resize(call.shape[1] * window);
  for (int64_t k = window; k < int64_t(taps.size()); k++) taps[k] = taps[k - window] + plane;
  return taps;
}

template <class X> void convolve(const Call& call) {
  using A = std::conditional_t<std::is_same_v<X, double>, double, float>;
  const Tensor &x = call.x, &y = call.y;
  SparseConv<X, A> op{in<X>(x), out<X>(y), in<A>(call.values), call.bias ? in<A>(*call.bias) : nullptr};
  const int64_t *offsets = in<int64_t>(call.offsets);
  for (int d = 0; d < 4; d++) {
    op.x_sizes[d] = x.size(d), op.x_strides[d] = x.stride(d), op.y_sizes[d] = y.size(d), op.y_strides[d] = y.stride(d);
  }
  bool point = call.shape[2] == 1 && call.shape[3] == 1;
  std::vector<int64_t> phases[2];
  for (int d = 0; d < 2; d++) {
    op.stride[d] = call.stride[d], op.padding[d] = call.padding[d];
    point = point && op.stride[d] == 1 && op.padding[d] == 0;
    phases[d] = phases_of(call.shape[2 + d], call.dilation[d], call.stride[d]);
    op.phases[d] = phases[d].data(), op.n_phases[d] = phases[d].size();
  }
  if (point && op.x_strides[2] == op.x_sizes[3] * op.x_strides[3]) {  // rows follow one another: one long row
    for (auto sizes : {op.x_sizes, op.y_sizes}) sizes[3] *= sizes[2], sizes[2] = 1;
  }
  int64_t batch = op.x_sizes[0], channels = op.x_sizes[1], out_channels = op.y_sizes[1];
  int64_t height = op.y_sizes[2], width = op.y_sizes[3], lanes = PICK(lanes<A>());
  int64_t below = (call.shape[2] - 1) * call.dilation[0] / op.stride[0];  // rows of the copy that a tap reaches down
  op.pitch = width + (call.shape[3] - 1) * call.dilation[1] / op.stride[1];
  op.direct = point && op.y_sizes[2] == 1 && op.x_strides[3] == 1 && sizeof(X) == sizeof(A) && width >= 8 * lanes;

  // vectors of sums in each layout, per image
  int64_t by_rows = height * ceil_div(width, lanes), by_flat = ceil_div((height - 1) * op.pitch + width, lanes);
  op.images = !op.direct && ceil_div(batch, lanes) * height * width < batch * std::min(by_rows, by_flat);
  op.flat = !op.images && by_flat < by_rows;

  int64_t unit = op.images ? lanes : 1, units = ceil_div(batch, unit), threads = torch::stable::get_num_threads();
  int64_t row_bytes = channels * op.n_phases[0] * op.n_phases[1] * op.pitch * unit * sizeof(A);
  op.band = op.direct ? 1 : std::clamp<int64_t>(BUDGET * (op.images ? 2 : 1) / row_bytes - below, 1, height);
  if (units % threads != 0 && units < 8 * threads) op.band = std::min(op.band, ceil_div(height, threads));
  op.band = ceil_div(height, ceil_div(height, op.band));
  op.rows = op.band + below;
  int64_t bands = ceil_div(height, op.band);
  int64_t parts = units * bands % threads == 0 || units * bands >= 8 * threads ? 1 : threads;

  int64_t image = op.rows * op.pitch, plane = op.direct ? op.x_strides[1] : op.n_phases[0] * op.n_phases[1] * image;
  STD_TORCH_CHECK(plane * channels * unit < int64_t(1) << 31, "sparse_conv2d: want fewer than 2**31 inputs of a band");
  auto taps = taps_of(call, phases, plane, op.rows, op.pitch);
  auto places = torch::stable::new_empty(call.columns, {call.columns.numel()});
  int32_t* place = out<int32_t>(places);
  const int32_t* column = in<int32_t>(call.columns);
  // channels that share a visit: their part of the copy under 8 vectors of sums is little more than level 1 cache
  int64_t high = std::clamp<int64_t>(8 / width, 1, height) + below, window = call.shape[2] * call.shape[3];
  int64_t channel_bytes = op.n_phases[0] * op.n_phases[1] * high * op.pitch * unit * sizeof(A);
  double per_channel = double(offsets[out_channels]) / (out_channels * call.shape[1]);  // nonzeros of a row
  int64_t together = std::clamp<double>(FEWEST / std::max(per_channel, 1e-9), double(BLOCK) / channel_bytes, 1e9) + 1;
  op.blocks = !op.images ? 1 : std::max<int64_t>((call.shape[1] + together / 2) / together, 1);
  std::vector<int64_t> bounds(out_channels * op.blocks + 1, offsets[out_channels]);
  std::atomic<int32_t> outside{0};
  parallel_for(0, out_channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      int64_t group = o / (out_channels / call.groups) * call.shape[1] * plane;
      for (int64_t k = offsets[o]; k < offsets[o + 1]; k++) {
        if (column[k] < 0 || column[k] >= int64_t(taps.size())) {
          outside = column[k];
          return;
        }
        place[k] = int32_t((group + taps[column[k]]) * unit);
      }
      for (int64_t b = 0, k = offsets[o]; b < op.blocks; b++) {
        bounds[o * op.blocks + b] = k;
        int32_t limit = int32_t((b + 1) * call.shape[1] / op.blocks * window);
        k = std::lower_bound(column + k, column + offsets[o + 1], limit) - column;
      }
    }
  });
  STD_TORCH_CHECK(outside == 0, "sparse_conv2d: want columns from 0 to ", int64_t(taps.size()) - 1, "; got ",
                  outside.load());
  op.places = place, op.bounds = bounds.data();
  std::vector<int64_t> first(parts + 1, out_channels);  // of the weight's rows in each part: as many nonzeros
  for (int64_t p = 0; p < parts; p++) {
    int64_t share = offsets[out_channels] * p / parts;
    first[p] = p ? std::lower_bound(offsets, offsets + out_channels, share) - offsets : 0;
  }

  int64_t tasks = units * bands * parts, workers = std::min(threads, tasks);
  // the last vectors may read past the end
  int64_t size = op.direct ? 0 : ceil_div(plane * channels, lanes) * lanes * unit + 8 * lanes;
  int64_t rows = op.blocks == 1 ? lanes : out_channels, room = size + rows * 8 * lanes;  // of the weight, with sums
  A* copies = scratch<A>(workers * room);
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++) {
      A *copy = copies + worker * room, *sums = copy + size;
      int64_t last = -1;
      for (int64_t task = tasks * worker / workers; task < tasks * (worker + 1) / workers; task++) {
        int64_t here = task / parts, part = task % parts, u = here / bands, top = here % bands * op.band;
        const A* inputs = copy;
        if constexpr (sizeof(X) == sizeof(A)) {
          if (op.direct) inputs = op.x + u * op.x_strides[0];
        }
        if (!op.direct && here != last) PICK(copy_band(op, u, top, copy));
        last = here;
        PICK(convolve_band(op, u, top, inputs, first[part], first[part + 1], sums));
      }
    }
  });
}

Tensor sparse_conv2d(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& offsets,
                     std::vector<int64_t> shape, const std::optional<Tensor>& bias, std::vector<int64_t> stride,
                     std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  std::vector<int64_t> sizes{x.size(0), x.size(1) ? shape[0] : 0};  // PyTorch: no channels in, none out
  for (int d = 0; d < 2; d++) {
    sizes.push_back((x.size(2 + d) + 2 * padding[d] - dilation[d] * (shape[2 + d] - 1) - 1) / stride[d] + 1);
  }
  auto format = channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  auto y = torch::stable::empty(sizes, x.scalar_type(), std::nullopt, std::nullopt, std::nullopt, format);
  auto wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(values.scalar_type() == x.scalar_type() || values.scalar_type() == ScalarType::Float,
                  "sparse_conv2d: want values of x's dtype, or fp32 values with bf16 or fp16 x");
  auto plain = [&](const Tensor& t) { return torch::stable::contiguous(torch::stable::to(t, wide)); };
  auto rounded = torch::stable::to(values, x.scalar_type());
  Call call{x, y, plain(rounded), torch::stable::contiguous(columns), torch::stable::contiguous(offsets), std::nullopt,
            shape, stride, padding, dilation, groups};
  if (bias) call.bias = plain(*bias);
  const int64_t* offset = in<int64_t>(call.offsets);
  STD_TORCH_CHECK(offsets.numel() == shape[0] + 1 && offset[0] == 0 && offset[shape[0]] == values.numel() &&
                      columns.numel() == values.numel() && std::is_sorted(offset, offset + shape[0] + 1),
                  "sparse_conv2d: want offsets that ascend from 0 to the ", values.numel(), " nonzeros; got others");
  if (y.numel() == 0) return y;
  by_dtype(x.scalar_type(), [&](auto type) { convolve<decltype(type)>(call); });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("sparse_conv2d", TORCH_BOX(&sparse_conv2d)); }
#endif
