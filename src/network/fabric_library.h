// SPDX-License-Identifier: Apache-2.0
// libfabric, opened at run time. It is built against, but never linked.
#pragma once

#include <rdma/fabric.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace hep {

// The interface that is asked of the library: that of the oldest one which is served.
constexpr uint32_t kFabricInterface = FI_VERSION(1, 17);

struct FreeInfo {
  decltype(&::fi_freeinfo) free;
  void operator()(fi_info* info) const { free(info); }
};
using FabricInfo = std::unique_ptr<fi_info, FreeInfo>;

// The functions that are symbols of the library. All others are reached through its objects.
class FabricLibrary {
 public:
  // Opens a file, once in a process; "" is libfabric.so.1. It stays open. hepErrorUnsupported: it
  // is not there, or too old.
  static Status open(const std::string& file, const FabricLibrary** out);

  // Empty hints.
  FabricInfo make_info() const { return {dupinfo_(nullptr), {freeinfo_}}; }
  FabricInfo copy(const fi_info* info) const { return {dupinfo_(info), {freeinfo_}}; }

  // What fits the hints; an empty list if nothing does.
  Status find(const fi_info& hints, FabricInfo* found) const;

  Status open_fabric(const fi_info& info, fid_fabric** fabric) const;

  // The text of a code, which is positive.
  std::string text_of(int code) const { return strerror_(code); }

  // "libfabric 1.17 (FILE)"
  const std::string& name() const { return name_; }

 private:
  Status load(const std::string& file);
  Status find_symbols(void* handle);

  std::string name_;
  decltype(&::fi_version) version_ = nullptr;
  decltype(&::fi_getinfo) getinfo_ = nullptr;
  decltype(&::fi_freeinfo) freeinfo_ = nullptr;
  decltype(&::fi_dupinfo) dupinfo_ = nullptr;
  decltype(&::fi_fabric) fabric_ = nullptr;
  decltype(&::fi_strerror) strerror_ = nullptr;
};

}  // namespace hep
