// What the opaque types of the C interface hold, and how exceptions become texts.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <utility>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "c10d.h"

struct clc_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct clc_group {
  c10::intrusive_ptr<c10d::Backend> backend;
};

struct clc_work {
  c10::intrusive_ptr<c10d::Work> work;
};

namespace clc {

inline char* text_of(const char* text, size_t length) {
  auto* copy = static_cast<char*>(std::malloc(length + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text, length);
    copy[length] = '\0';
  }
  return copy;
}

inline clc_error error_of(const char* text) {
  // Without memory for a text there is no way left to say what happened, or that anything did.
  clc_error error = text_of(text, std::strlen(text));
  if (error == nullptr) std::abort();
  return error;
}

// Runs `body` and turns what it throws into a text.
template <typename Body>
clc_error guarded(Body&& body) {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const c10::Error& error) {
    return error_of(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return error_of(error.what());
  } catch (...) {
    return error_of("an exception of an unknown type");
  }
}

inline at::Tensor& tensor(void* pointer) {
  return *static_cast<at::Tensor*>(pointer);
}

} // namespace clc
