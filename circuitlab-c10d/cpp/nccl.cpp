// Process groups over NCCL: a library of its own, loaded where there is CUDA. It only makes them; what is done with a group goes through
// `shim.cpp`, which calls every kind of group alike.
#define USE_C10D_NCCL

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "handles.h"

extern "C" __attribute__((visibility("default"))) clc_error clc_nccl_group(
    clc_store* store, const char* prefix, int rank, int size, int device, int64_t limit, clc_group** out) {
  return clc::guarded([&] {
    // Waiting ends when the operation did, so that a rank which does not answer is an error here and not the end of the process.
    setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(limit);
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
    c10::intrusive_ptr<c10d::Backend> group = c10::make_intrusive<c10d::ProcessGroupNCCL>(prefixed, rank, size, options);
    group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
    *out = new clc_group{std::move(group)};
  });
}
