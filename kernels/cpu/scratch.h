// Memory of a thread.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace g2lstm {
namespace {

// A thread's own memory, which grows and is kept.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  std::uint8_t* get(std::size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<std::uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace
}  // namespace g2lstm
