// Splits the kernels' work between torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include "core.h"

namespace g2lstm {

// Whether a block of columns is one thread's, with all rows.
inline bool splits_blocks_alone(std::int64_t blocks, std::int64_t rows) {
  return blocks >= at::get_num_threads() || rows == 1;
}

// Calls work(block_begin, block_end, row_begin, row_end): a range of blocks and all rows a thread, so that a thread's
// weights stay in its cache; where blocks are fewer than threads, rows are split as well.
template <class Work>
void split(std::int64_t blocks, std::int64_t rows, const Work& work) {
  if (blocks == 0 || rows == 0) return;
  const std::int64_t threads = at::get_num_threads();
  if (splits_blocks_alone(blocks, rows)) {
    at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) { work(begin, end, 0, rows); });
    return;
  }
  const std::int64_t wanted = (threads + blocks - 1) / blocks;
  const std::int64_t parts = wanted < rows ? wanted : rows;
  at::parallel_for(0, blocks * parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t block = task / parts, part = task % parts;
      work(block, block + 1, rows * part / parts, rows * (part + 1) / parts);
    }
  });
}

}  // namespace g2lstm
