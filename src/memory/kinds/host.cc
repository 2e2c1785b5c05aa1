// SPDX-License-Identifier: Apache-2.0
// Host memory without a name. It is a memfd, which needs no file system and vanishes with its last
// descriptor and mapping.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory/kind.h"

namespace hep {
namespace {

// With these seals nobody can take away pages that others have mapped.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

class HostPages {
 public:
  HostPages() = default;
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;
  ~HostPages() {
    if (address_ != nullptr) ::munmap(address_, bytes_);
  }

  Status map(int descriptor, size_t bytes) {
    void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (address == MAP_FAILED) return system_error("cannot map %zu bytes of host memory", bytes);
    // A forked child must not use its parent's communicators. It would keep their memory alive.
    ::madvise(address, bytes, MADV_DONTFORK);
    address_ = address;
    bytes_ = bytes;
    return Status();
  }

  void* address() const { return address_; }
  size_t bytes() const { return bytes_; }

 private:
  void* address_ = nullptr;
  size_t bytes_ = 0;
};

// A file that exceeds the limit ends the process with SIGXFSZ, unless the application handles it.
Status check_file_size(size_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || bytes <= limit.rlim_cur) return Status();
  return error(hepErrorOutOfMemory,
               "cannot reserve %zu bytes of host memory: a file may have at most %llu "
               "(RLIMIT_FSIZE)",
               bytes, static_cast<unsigned long long>(limit.rlim_cur));
}

class HostAllocation : public Allocation {
 public:
  Status allocate(size_t bytes) {
    descriptor_ = Descriptor(::memfd_create("hybridep", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!descriptor_.valid()) return system_error("memfd_create fails");
    // It has no name, but /proc shows it as a link that can be opened.
    if (::fchmod(descriptor_.get(), S_IRUSR | S_IWUSR) != 0)
      return system_error("cannot make host memory private");
    HEP_TRY(check_file_size(bytes));
    if (::ftruncate(descriptor_.get(), static_cast<off_t>(bytes)) != 0 ||
        ::fcntl(descriptor_.get(), F_ADD_SEALS, kSeals) != 0)
      return system_error("cannot reserve %zu bytes of host memory", bytes);
    return pages_.map(descriptor_.get(), bytes);
  }

  void describe(WindowHandle* handle) const override { handle->mapped_bytes = pages_.bytes(); }
  void* address() const override { return pages_.address(); }

 private:
  HostPages pages_;
};

class HostMapping : public Mapping {
 public:
  Status map(int descriptor, size_t bytes) {
    // Reading past the end of a file is fatal, so the promised size is checked.
    struct stat file;
    if (::fstat(descriptor, &file) != 0) return system_error("cannot ask for the size of memory");
    const int seals = ::fcntl(descriptor, F_GET_SEALS);
    if (seals < 0 || (seals & kSeals) != kSeals || static_cast<size_t>(file.st_size) != bytes)
      return error(hepErrorSystem, "a peer's descriptor is not sealed memory of %zu bytes", bytes);
    return pages_.map(descriptor, bytes);
  }

  void* address() const override { return pages_.address(); }

 private:
  HostPages pages_;
};

Status allocate_host(int, size_t bytes, std::shared_ptr<Allocation>* out) {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  auto allocation = std::make_shared<HostAllocation>();
  HEP_TRY(allocation->allocate((bytes + page - 1) / page * page));
  *out = std::move(allocation);
  return Status();
}

Status map_host(int, const PeerMemory& peer, std::unique_ptr<Mapping>* out) {
  auto mapping = std::make_unique<HostMapping>();
  HEP_TRY(mapping->map(peer.descriptor, peer.handle.mapped_bytes));
  *out = std::move(mapping);
  return Status();
}

}  // namespace

const MemoryKindOperations kHostDescriptorOperations = {MemoryKind::host_descriptor, hepBackendHost,
                                                        allocate_host, map_host, nullptr};

}  // namespace hep
