#define USE_C10D_GLOO

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#ifndef _WIN32
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#endif

#include <c10/util/Flags.h>

#include <cstdio>
#include <mutex>
#include <typeinfo>

#include "handles.h"

C10_DECLARE_int(caffe2_log_level);

using clc::guarded;
using clc::tensor;
using std::chrono::milliseconds;

namespace {

constexpr int kFatal = 3;

// Keeps c10d from printing C++ stacks to stderr for what comes back as an error, unless the user set libtorch's own level.
class Quiet {
 public:
  Quiet() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (depth_++ == 0) {
      before_ = FLAGS_caffe2_log_level;
      if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatal;
    }
  }

  ~Quiet() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--depth_ == 0) FLAGS_caffe2_log_level = before_;
  }

  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int depth_ = 0;
  static inline int before_ = 0;
};

template <typename Body>
clc_error quietly(Body&& body) {
  const Quiet quiet;
  return guarded(std::forward<Body>(body));
}

std::terminate_handler others_end = nullptr;

// Gloo's own threads end the process where two ranks disagree about an operation. That shall be one line and an exit code, not an abort.
[[noreturn]] void end_by_gloo() {
  if (const auto exception = std::current_exception()) {
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& error) {
      if (std::strstr(typeid(error).name(), "gloo") != nullptr) {
        std::fprintf(stderr, "Error: two ranks are in different operations; have all of them the same config, data and version? Gloo: %s\n", error.what());
        std::_Exit(1);
      }
    } catch (...) {
    }
  }
  if (others_end != nullptr) others_end();
  std::abort();
}

} // namespace

void clc_free(char* text) {
  std::free(text);
}

clc_error clc_store_open(const char* host, uint16_t port, bool server, int64_t limit, clc_store** out) {
  return quietly([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    // Who is missing is found out, and said, by the caller.
    options.waitWorkers = false;
    options.timeout = milliseconds(limit);
    *out = new clc_store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

void clc_store_close(clc_store* store) {
  delete store;
}

clc_error clc_store_set(clc_store* store, const char* key, const char* value, size_t length) {
  return quietly([&] { store->store->set(key, std::vector<uint8_t>(value, value + length)); });
}

clc_error clc_store_get(clc_store* store, const char* key, int64_t limit, char** value, size_t* length) {
  return quietly([&] {
    store->store->wait({key}, milliseconds(limit));
    const auto found = store->store->get(key);
    *value = clc::text_of(reinterpret_cast<const char*>(found.data()), found.size());
    *length = *value == nullptr ? 0 : found.size();
  });
}

clc_error clc_store_has(clc_store* store, const char* key, bool* out) {
  return quietly([&] { *out = store->store->check({key}); });
}

clc_error clc_store_add(clc_store* store, const char* key, int64_t value, int64_t* out) {
  return quietly([&] { *out = store->store->add(key, value); });
}

#ifndef _WIN32
namespace {

// The numeric address of an entry; empty where it has none that other machines could use.
std::string address_of(const ifaddrs& entry) {
  if (entry.ifa_addr == nullptr || (entry.ifa_flags & IFF_UP) == 0) return "";
  const int family = entry.ifa_addr->sa_family;
  if (family != AF_INET && family != AF_INET6) return "";
  if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(entry.ifa_addr)->sin6_addr)) return "";
  const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  char host[NI_MAXHOST];
  return getnameinfo(entry.ifa_addr, length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0 ? host : "";
}

} // namespace
#endif

clc_error clc_interface_address(const char* name, char** address) {
  return guarded([&] {
#ifdef _WIN32
    throw std::runtime_error("network interfaces cannot be named on this system");
#else
    ifaddrs* entries = nullptr;
    if (getifaddrs(&entries) != 0) throw std::runtime_error("the system does not list its network interfaces");
    std::string found, known;
    for (const ifaddrs* entry = entries; entry != nullptr && found.empty(); entry = entry->ifa_next) {
      const std::string usable = address_of(*entry);
      if (usable.empty()) continue;
      if (std::strcmp(entry->ifa_name, name) == 0) found = usable;
      known += (known.empty() ? "" : ", ") + std::string(entry->ifa_name) + " (" + usable + ")";
    }
    freeifaddrs(entries);
    if (found.empty()) throw std::runtime_error("there is no such network interface with an address; there are: " + known);
    *address = clc::text_of(found.c_str(), found.size());
#endif
  });
}

clc_error clc_gloo_group(
    clc_store* store, const char* prefix, int rank, int size, const char* address, int64_t joining, int64_t limit, clc_group** out) {
  return quietly([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(joining));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    static std::once_flag once;
    std::call_once(once, [] { others_end = std::set_terminate(end_by_gloo); });
    // As many operations can be under way at once.
    options->threads = 2;
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
    c10::intrusive_ptr<c10d::Backend> group = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, size, options);
    group->setTimeout(milliseconds(limit));
    *out = new clc_group{std::move(group)};
  });
}

void clc_group_close(clc_group* group) {
  // A destructor must not throw through Rust either; there is nobody to tell.
  clc_free(guarded([&] { delete group; }));
}

clc_error clc_all_reduce(clc_group* group, void* values, int reduction, clc_work** out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor(values)};
    c10d::AllreduceOptions options;
    options.reduceOp = reduction == CLC_MAX ? c10d::ReduceOp::MAX
        : reduction == CLC_MIN              ? c10d::ReduceOp::MIN
                                            : c10d::ReduceOp::SUM;
    *out = new clc_work{group->backend->allreduce(tensors, options)};
  });
}

clc_error clc_broadcast(clc_group* group, void* values, int root, clc_work** out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{tensor(values)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    *out = new clc_work{group->backend->broadcast(tensors, options)};
  });
}

clc_error clc_all_gather(clc_group* group, void* whole, void* own, clc_work** out) {
  return guarded([&] { *out = new clc_work{group->backend->_allgather_base(tensor(whole), tensor(own))}; });
}

clc_error clc_all_to_all(
    clc_group* group, void* received, void* sent, const int64_t* received_rows, const int64_t* sent_rows, clc_work** out) {
  return guarded([&] {
    const int size = group->backend->getSize();
    std::vector<int64_t> into(received_rows, received_rows + size), from(sent_rows, sent_rows + size);
    *out = new clc_work{group->backend->alltoall_base(tensor(received), tensor(sent), into, from)};
  });
}

clc_error clc_barrier(clc_group* group, clc_work** out) {
  return guarded([&] { *out = new clc_work{group->backend->barrier()}; });
}

clc_error clc_work_wait(clc_work* work, int64_t limit) {
  return guarded([&] {
    if (!work->work->wait(milliseconds(limit))) throw std::runtime_error("the operation was aborted");
  });
}

bool clc_work_ended(clc_work* work) {
  bool ended = true;
  clc_free(guarded([&] { ended = work->work->isCompleted(); }));
  return ended;
}

void clc_work_close(clc_work* work) {
  clc_free(guarded([&] { delete work; }));
}
