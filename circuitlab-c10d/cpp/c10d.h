// The C interface to c10d, PyTorch's process groups. Every function that can fail returns null when all went well, or a text that the
// caller gives back to `clc_free`; no exception leaves. Tensors are `at::Tensor*`, as tch hands them out; operations keep what they
// work on alive until they end. Time limits are in milliseconds.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct clc_store;
struct clc_group;
struct clc_work;
typedef char* clc_error;

void clc_free(char* text);

// A key-value store over TCP: the process that is `server` hosts it, all others connect.
clc_error clc_store_open(const char* host, uint16_t port, bool server, int64_t limit, clc_store** out);
void clc_store_close(clc_store* store);
clc_error clc_store_set(clc_store* store, const char* key, const char* value, size_t length);
// Waits for a key. `value` is given back to `clc_free`.
clc_error clc_store_get(clc_store* store, const char* key, int64_t limit, char** value, size_t* length);
clc_error clc_store_has(clc_store* store, const char* key, bool* out);
clc_error clc_store_add(clc_store* store, const char* key, int64_t value, int64_t* out);

// The first address of a network interface; an unknown one is answered with the names of those that are there.
clc_error clc_interface_address(const char* name, char** address);

// A group over Gloo whose connections go through the interface with that address. Waits for its other members, `joining` at most;
// `limit` is that of each operation.
clc_error clc_gloo_group(
    clc_store* store, const char* prefix, int rank, int size, const char* address, int64_t joining, int64_t limit, clc_group** out);
void clc_group_close(clc_group* group);

enum clc_reduction { CLC_SUM = 0, CLC_MAX = 1, CLC_MIN = 2 };

// Operations begin, and `clc_work_wait` ends them. All members call them in the same order.
clc_error clc_all_reduce(clc_group* group, void* tensor, int reduction, clc_work** out);
clc_error clc_broadcast(clc_group* group, void* tensor, int root, clc_work** out);
clc_error clc_all_gather(clc_group* group, void* whole, void* own, clc_work** out);
// The rows of the first axis that go to and come from each member.
clc_error clc_all_to_all(
    clc_group* group, void* received, void* sent, const int64_t* received_rows, const int64_t* sent_rows, clc_work** out);
clc_error clc_barrier(clc_group* group, clc_work** out);

// Fails where the operation did, and where it has not ended in time; `clc_work_ended` tells which.
clc_error clc_work_wait(clc_work* work, int64_t limit);
bool clc_work_ended(clc_work* work);
void clc_work_close(clc_work* work);

} // extern "C"
