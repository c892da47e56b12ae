// The columns of a product, vector by vector: which of them a vector of a block holds, and where its results go.
#pragma once

#include "core.h"
#include "vec.h"

namespace g2lstm {
namespace {

// Columns of one vector of a block: vector v of four groups is group v; of one group, the v-th run of lanes.
struct VectorColumns {
  std::int64_t begin;
  int width;
};

template <class F>
VectorColumns vector_columns(const Columns& columns, std::int64_t block, int v) {
  const std::int64_t first = (columns.groups == 1 ? 2 * block + v : block) * kLanes<F>;
  const std::int64_t left = columns.size - first;
  const int width = left >= kLanes<F> ? kLanes<F> : left > 0 ? static_cast<int>(left) : 0;
  return {(columns.groups == 1 ? 0 : v * columns.size) + (width > 0 ? first : 0), width};
}

// Two vectors of columns of the result, `stride` between rows; a width below the lanes is the matrix's edge.
template <class F>
struct Target {
  F* data[2];
  const F* start[2];  // what the sums start with, null for 0: with the same stride, or one row for all (start_stride 0)
  std::int64_t stride;
  std::int64_t start_stride;
  int width[2];
};

// Where the vectors v and v + 1 of a block stand in `out`; `start` is null or starts the sums.
template <class F>
Target<F> target_of(
    const Columns& columns, std::int64_t block, int v, F* out, std::int64_t stride, const F* start,
    std::int64_t start_stride) {
  Target<F> target;
  target.stride = stride;
  target.start_stride = start_stride;
  for (int i = 0; i < 2; ++i) {
    const VectorColumns place = vector_columns<F>(columns, block, v + i);
    target.data[i] = out + place.begin;
    target.start[i] = start == nullptr ? nullptr : start + place.begin;
    target.width[i] = place.width;
  }
  return target;
}

}  // namespace
}  // namespace g2lstm
