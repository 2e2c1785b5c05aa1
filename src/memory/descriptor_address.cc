// SPDX-License-Identifier: Apache-2.0
#include "memory/descriptor_address.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/identity.h"

// Headers of some systems are older than these calls. The numbers are equal on all architectures.
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

namespace hep {
namespace {

constexpr int kBacklog = 256;  // more than ranks, so that no sender has to wait

socklen_t make_name(const DescriptorAddress& address, sockaddr_un* name) {
  *name = {};
  name->sun_family = AF_UNIX;
  const size_t length = ::strnlen(address.socket_name, sizeof address.socket_name);
  std::memcpy(name->sun_path + 1, address.socket_name, length);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

// One message is one packet, so strangers cannot send half of one.
Descriptor open_socket() {
  return Descriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

Status listen_at(const DescriptorAddress& address, Descriptor* out) {
  Descriptor socket = open_socket();
  if (!socket.valid()) return system_error("cannot open a Unix socket");
  sockaddr_un name;
  const socklen_t length = make_name(address, &name);
  if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&name), length) != 0 ||
      ::listen(socket.get(), kBacklog) != 0)
    return system_error("cannot listen at a Unix socket");
  *out = std::move(socket);
  return Status();
}

}  // namespace

Status offer_descriptor(int descriptor, DescriptorAddress* out, Descriptor* listener) {
  DescriptorAddress address{};
  struct stat file;
  if (::fstat(descriptor, &file) != 0) return system_error("cannot offer a file descriptor");
  address.process_namespace = process_namespace();
  address.file_device = file.st_dev;
  address.file_inode = file.st_ino;
  address.process_id = ::getpid();
  address.user_id = ::geteuid();
  address.descriptor = descriptor;

  uint64_t name[2];
  HEP_TRY(random_bytes(&address.token, sizeof address.token));
  HEP_TRY(random_bytes(name, sizeof name));
  std::snprintf(address.socket_name, sizeof address.socket_name, "hybridep-%016llx%016llx",
                static_cast<unsigned long long>(name[0]), static_cast<unsigned long long>(name[1]));
  HEP_TRY(listen_at(address, listener));
  *out = address;
  return Status();
}

Descriptor connect_to_offer(const DescriptorAddress& address) {
  Descriptor socket = open_socket();
  sockaddr_un name;
  const socklen_t length = make_name(address, &name);
  if (!socket.valid() || ::connect(socket.get(), reinterpret_cast<sockaddr*>(&name), length) == 0)
    return socket;
  const int code = errno;  // before the socket is closed
  socket.reset();
  errno = code;
  return socket;
}

bool is_file_of(int descriptor, const DescriptorAddress& address) {
  struct stat file;
  return ::fstat(descriptor, &file) == 0 && file.st_dev == address.file_device &&
         file.st_ino == address.file_inode;
}

Status take_descriptor(const DescriptorAddress& address, Descriptor* out) {
  if (address.process_namespace != process_namespace())
    return error(hepErrorSystem, "its process id %d belongs to another namespace",
                 address.process_id);
  const Descriptor process(static_cast<int>(::syscall(SYS_pidfd_open, address.process_id, 0)));
  if (!process.valid() && errno == ESRCH)
    return error(hepErrorPeerLost, "its process %d is gone", address.process_id);
  if (!process.valid()) return system_error("pidfd_open of process %d fails", address.process_id);
  Descriptor copy(
      static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), address.descriptor, 0)));
  // A process that dies has closed its descriptors, also before its parent has waited for it.
  if (!copy.valid() && (errno == ESRCH || errno == EBADF))
    return error(hepErrorPeerLost, "its process %d %s", address.process_id,
                 errno == ESRCH ? "is gone" : "has closed it");
  if (!copy.valid())
    return system_error("pidfd_getfd of descriptor %d of process %d fails", address.descriptor,
                        address.process_id);
  // By now the number may stand for something else.
  if (!is_file_of(copy.get(), address))
    return error(hepErrorPeerLost, "process %d has closed it", address.process_id);
  *out = std::move(copy);
  return Status();
}

}  // namespace hep
