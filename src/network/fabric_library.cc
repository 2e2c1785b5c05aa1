// SPDX-License-Identifier: Apache-2.0
#include "network/fabric_library.h"

#include <dlfcn.h>
#include <rdma/fi_errno.h>

#include <map>
#include <memory>

#include "base/thread_annotations.h"
#include "network/kept_signals.h"

namespace hep {
namespace {

constexpr const char* kDefaultFile = "libfabric.so.1";
constexpr const char* kAdvice = "HEP_NETWORK_LIBRARY can name another file";

std::string version_text(uint32_t version) {
  return std::to_string(FI_MAJOR(version)) + "." + std::to_string(FI_MINOR(version));
}

// A later library keeps the versions of its symbols that the headers of an earlier one describe.
template <typename Function>
Status find_symbol(void* handle, const char* name, const char* version, const std::string& file,
                   Function* function) {
  *function = reinterpret_cast<Function>(::dlvsym(handle, name, version));
  if (*function != nullptr) return Status();
  return error(hepErrorUnsupported, "%s is too old: it has no %s of version %s; %s", file.c_str(),
               name, version, kAdvice);
}

}  // namespace

Status FabricLibrary::open(const std::string& file, const FabricLibrary** out) {
  // Never destroyed: a communicator may be created at exit.
  struct Opened {
    Mutex mutex;
    std::map<std::string, std::unique_ptr<FabricLibrary>> libraries HEP_GUARDED_BY(mutex);
  };
  static Opened* const opened = new Opened;
  const Lock lock(opened->mutex);
  std::unique_ptr<FabricLibrary>& library = opened->libraries[file];
  if (!library) {
    auto loaded = std::make_unique<FabricLibrary>();
    HEP_TRY(loaded->load(file.empty() ? kDefaultFile : file));
    library = std::move(loaded);
  }
  *out = library.get();
  return Status();
}

Status FabricLibrary::load(const std::string& file) {
  const KeptSignals kept;
  void* const handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const why = ::dlerror();
    return error(hepErrorUnsupported, "the network between domains needs libfabric: %s; %s",
                 why != nullptr ? why : file.c_str(), kAdvice);
  }
  name_ = file;
  HEP_TRY(find_symbols(handle));
  const uint32_t version = version_();
  name_ = "libfabric " + version_text(version) + " (" + file + ")";
  if (FI_VERSION_GE(version, kFabricInterface)) return Status();
  return error(hepErrorUnsupported, "%s is too old: %s or newer is needed; %s", name_.c_str(),
               version_text(kFabricInterface).c_str(), kAdvice);
}

Status FabricLibrary::find_symbols(void* handle) {
  HEP_TRY(find_symbol(handle, "fi_version", "FABRIC_1.0", name_, &version_));
  HEP_TRY(find_symbol(handle, "fi_getinfo", "FABRIC_1.3", name_, &getinfo_));
  HEP_TRY(find_symbol(handle, "fi_freeinfo", "FABRIC_1.3", name_, &freeinfo_));
  HEP_TRY(find_symbol(handle, "fi_dupinfo", "FABRIC_1.3", name_, &dupinfo_));
  HEP_TRY(find_symbol(handle, "fi_fabric", "FABRIC_1.1", name_, &fabric_));
  return find_symbol(handle, "fi_strerror", "FABRIC_1.0", name_, &strerror_);
}

// Providers start here, at the first call of a process.
Status FabricLibrary::find(const fi_info& hints, FabricInfo* found) const {
  const KeptSignals kept;
  fi_info* list = nullptr;
  const int result = getinfo_(kFabricInterface, nullptr, nullptr, 0, &hints, &list);
  *found = {list, {freeinfo_}};
  if (result == 0 || result == -FI_ENODATA) return Status();
  return error(hepErrorNetwork, "%s: fi_getinfo: %s", name_.c_str(), strerror_(-result));
}

Status FabricLibrary::open_fabric(const fi_info& info, fid_fabric** fabric) const {
  const KeptSignals kept;
  const int result = fabric_(info.fabric_attr, fabric, nullptr);
  if (result == 0) return Status();
  return error(hepErrorNetwork, "fi_fabric: %s", strerror_(-result));
}

}  // namespace hep
