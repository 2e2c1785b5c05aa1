// SPDX-License-Identifier: Apache-2.0
#include "base/identity.h"

#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>

namespace hep {
namespace {

// FNV-1a.
uint64_t hash(const std::string& text) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const unsigned char c : text) value = (value ^ c) * 0x100000001b3u;
  return value;
}

// Spreads every bit over all others (the finaliser of splitmix64); distinct in, distinct out.
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t process_seed() {
  uint64_t seed = 0;
  if (!random_bytes(&seed, sizeof seed).ok())
    seed = host_identity() ^ std::chrono::steady_clock::now().time_since_epoch().count();
  return seed;
}

}  // namespace

uint64_t host_identity() {
  std::string text;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  if (!std::getline(file, text) || text.empty()) {
    char name[256] = "";
    ::gethostname(name, sizeof name - 1);
    text = name;
  }
  return hash(text);
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
