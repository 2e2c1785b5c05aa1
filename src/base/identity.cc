// SPDX-License-Identifier: Apache-2.0
#include "base/identity.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>

#include "base/descriptor.h"

namespace hep {
namespace {

// The hash is FNV-1a.
uint64_t hash(const std::string& text) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const unsigned char c : text) value = (value ^ c) * 0x100000001b3u;
  return value;
}

// Spreads every bit over all others. Distinct inputs give distinct outputs. (This is the finaliser
// of splitmix64.)
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t process_seed() {
  uint64_t seed = 0;
  if (!random_bytes(&seed, sizeof seed).ok())
    seed = std::chrono::steady_clock::now().time_since_epoch().count();
  return seed;
}

std::atomic<uint64_t> known_host{0};

}  // namespace

Status read_host_identity() {
  if (known_host != 0) return Status();
  constexpr char kPath[] = "/proc/sys/kernel/random/boot_id";
  const Descriptor file(::open(kPath, O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return system_error("this machine cannot be identified: open of %s", kPath);
  char text[64];
  const ssize_t length = ::read(file.get(), text, sizeof text);
  if (length < 0) return system_error("this machine cannot be identified: read of %s", kPath);
  if (length == 0)
    return error(hepErrorSystem, "this machine cannot be identified: %s is empty", kPath);
  known_host = hash(std::string(text, length));
  return Status();
}

uint64_t host_identity() {
  (void)read_host_identity();
  return known_host;
}

uint64_t process_identity() {
  // A forked child inherits the seed, but not the id.
  static const uint64_t seed = process_seed();
  return mix(seed ^ mix(static_cast<uint64_t>(::getpid())));
}

uint64_t process_namespace() {
  struct stat status;
  return ::stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

Status random_bytes(void* bytes, size_t count) {
  if (::getentropy(bytes, count) != 0) return system_error("no random bytes from the kernel");
  return Status();
}

}  // namespace hep
