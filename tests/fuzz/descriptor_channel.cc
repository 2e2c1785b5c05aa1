// SPDX-License-Identifier: Apache-2.0
// The descriptor channel: packets of strangers, also of some who know the token, arrive before the
// peer's. Nothing is delivered but the file that the peer announced, and no descriptor is left
// open.
#include "memory/descriptor_channel.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "input.h"

namespace {

using namespace hep;

constexpr int kMaxStrangers = 12;
constexpr uint64_t kPeer = 1;

Descriptor connect_to(const DescriptorAddress& address) {
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const size_t length = ::strnlen(address.socket_name, sizeof address.socket_name);
  std::memcpy(name.sun_path + 1, address.socket_name, length);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  fuzz::require(::connect(socket.get(), reinterpret_cast<sockaddr*>(&name), size) == 0,
                "the channel listens");
  return socket;
}

void send_packet(const Descriptor& socket, std::string packet, int descriptor, int copies) {
  iovec part{packet.data(), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(3 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (copies > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(copies * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(copies * sizeof(int));
    for (int i = 0; i < copies; ++i)
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &descriptor, sizeof descriptor);
  }
  ::sendmsg(socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// The lowest number that is free.
int next_descriptor() { return Descriptor(::fcntl(0, F_DUPFD_CLOEXEC, 3)).get(); }

struct Files {
  Descriptor offered[2] = {Descriptor(::memfd_create("a", MFD_CLOEXEC)),
                           Descriptor(::memfd_create("b", MFD_CLOEXEC))};
  Descriptor other{::memfd_create("other", MFD_CLOEXEC)};
  int number_of_input = next_descriptor();
};

bool is_same_file(int a, int b) {
  struct stat one, two;
  return ::fstat(a, &one) == 0 && ::fstat(b, &two) == 0 && one.st_dev == two.st_dev &&
         one.st_ino == two.st_ino;
}

// True if the packet is the peer's own, except that the descriptor was lost on its way.
bool send_as_stranger(const Descriptor& socket, const DescriptorAddress& to, const Files& files,
                      fuzz::Input& input) {
  const uint8_t choice = input.byte();
  const int copies = choice / 4 % 4;
  std::string packet;
  uint64_t greeting[3] = {0x4845504445534331u, to.token, kPeer};
  if (choice & 1) {
    if (choice & 2) input.take(&greeting[2], sizeof greeting[2]);
    packet.assign(reinterpret_cast<char*>(greeting), sizeof greeting);
    packet += input.bytes(choice / 16 % 2);
  } else {
    packet = input.bytes(input.byte());
  }
  if (!packet.empty()) send_packet(socket, packet, files.other.get(), copies);
  return packet.size() == sizeof greeting && copies == 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Files files;
  fuzz::Input input(data, size);
  {
    std::unique_ptr<DescriptorChannel> channels[2];
    std::vector<DescriptorAddress> addresses;
    for (int r = 0; r < 2; ++r) {
      fuzz::require(DescriptorChannel::open(files.offered[r].get(), &channels[r]).ok(),
                    "a channel opens");
      addresses.push_back(channels[r]->address());
    }
    std::vector<Descriptor> strangers;
    bool forged = false;
    for (int i = 0; i < kMaxStrangers && !input.empty(); ++i) {
      strangers.push_back(connect_to(addresses[0]));
      forged |= send_as_stranger(strangers.back(), addresses[0], files, input);
    }

    int calls = 0;
    const auto receive = [&](int peer, int descriptor) {
      ++calls;
      fuzz::require(peer == kPeer && is_same_file(descriptor, files.offered[kPeer].get()),
                    "what arrives is what the peer offers");
    };
    // The peer sends and leaves; what it sent is here by then.
    (void)channels[1]->exchange(
        1, {0}, addresses, [](int, int) {}, Deadline::after_ms(0));
    const Status status =
        channels[0]->exchange(0, {1}, addresses, receive, Deadline::after_ms(5000));
    fuzz::require(calls <= 1, "a descriptor arrives once");
    fuzz::require(forged || (status.ok() && calls == 1), "strangers do not disturb the exchange");
  }
  fuzz::require(next_descriptor() == files.number_of_input, "no descriptor is left open");
  return 0;
}
