// SPDX-License-Identifier: Apache-2.0
// The hub: several connections at once, of strangers and of ranks that know the secret but not how
// to behave. Whatever they do, the hub ends; and as long as none of them knew the secret, a job
// goes on.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <future>
#include <vector>

#include "bootstrap/bootstrap.h"
#include "bootstrap/hub.h"
#include "input.h"
#include "net/frames.h"
#include "net/handshake.h"

namespace {

using namespace hep;

constexpr int kPatienceMs = 20000;  // more than any deadline of the hub
constexpr int kMaxActions = 40;
constexpr int kMaxTestRanks = 4;
constexpr SipKey kSecret{1, 2, 3, 4};

class Job {
 public:
  Job() : listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    name_.sun_family = AF_UNIX;  // and no more: the kernel chooses the name
    fuzz::require(::bind(listener_.get(), address(), sizeof name_.sun_family) == 0 &&
                      ::listen(listener_.get(), 16) == 0,
                  "a socket listens");
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name_), &length_);
    hub_ = std::async(std::launch::async, [listener = std::move(listener_)]() mutable {
      run_hub({std::move(listener), 0, {}}, kSecret, kPatienceMs);
    });
  }

  // Invalid once the hub does not listen any more.
  Descriptor connect() const {
    Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket.get(), address(), length_) != 0) socket.reset();
    return socket;
  }

  bool ends() {
    return hub_.wait_for(std::chrono::milliseconds(kPatienceMs)) == std::future_status::ready;
  }

 private:
  const sockaddr* address() const { return reinterpret_cast<const sockaddr*>(&name_); }

  Descriptor listener_;
  sockaddr_un name_{};
  socklen_t length_ = sizeof name_;
  std::future<void> hub_;
};

void send(const Descriptor& socket, const void* data, size_t size) {
  ::send(socket.get(), data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void send_frame(const Descriptor& socket, wire::FrameType type, const void* head, size_t head_size,
                const std::string& tail) {
  const wire::FrameHeader header = wire::make_header(type, head_size + tail.size());
  std::string frame(reinterpret_cast<const char*>(&header), sizeof header);
  frame.append(static_cast<const char*>(head), head_size).append(tail);
  send(socket, frame.data(), frame.size());
}

// With a proof that is right, if the challenge has not been read before.
void send_join(const Descriptor& socket, fuzz::Input& input) {
  struct {
    wire::FrameHeader header;
    wire::Challenge challenge;
  } greeting{};
  pollfd entry{socket.get(), POLLIN, 0};
  ::poll(&entry, 1, 100);
  ::recv(socket.get(), &greeting, sizeof greeting, MSG_DONTWAIT);
  wire::Join join{};
  join.rank = input.byte() % (kMaxTestRanks + 1);
  join.num_ranks = input.byte() % (kMaxTestRanks + 1);
  join.remaining_ms = input.byte() % 4;
  join.proof = wire::make_proof(kSecret, wire::Side::kConnecting, greeting.challenge.nonce, join);
  send_frame(socket, wire::FrameType::kJoin, &join, sizeof join, "");
}

void send_gather(const Descriptor& socket, fuzz::Input& input) {
  wire::Gather gather{};
  gather.sequence = input.byte() % 4;
  gather.remaining_ms = input.byte() % 4;
  const std::string phase = input.bytes(input.byte() % (sizeof gather.phase + 1));
  phase.copy(gather.phase, sizeof gather.phase);
  send_frame(socket, wire::FrameType::kGather, &gather, sizeof gather, input.bytes(input.byte()));
}

void send_header(const Descriptor& socket, fuzz::Input& input) {
  wire::FrameHeader header = wire::make_header(static_cast<wire::FrameType>(input.byte() % 8), 0);
  input.take(&header.length, 4);
  const std::string payload = input.bytes(input.byte());
  send(socket, &header, sizeof header);
  send(socket, payload.data(), payload.size());
}

// True if it told the secret to the hub.
bool act(const Job& job, std::vector<Descriptor>& connections, fuzz::Input& input) {
  const int action = input.byte() % 6;
  Descriptor& connection = connections[input.byte() % connections.size()];
  if (action == 0 || !connection.valid()) {
    connection.reset();
    connection = job.connect();
    if (!connection.valid()) return false;
  }
  switch (action) {
    case 1: {
      const std::string bytes = input.bytes(input.byte());
      send(connection, bytes.data(), bytes.size());
      break;
    }
    case 2: send_join(connection, input); return true;
    case 3: send_gather(connection, input); break;
    case 4: send_header(connection, input); break;
    case 5: connection.reset(); break;
    default: break;
  }
  return false;
}

bool run_rank(const Job& job) {
  Descriptor socket = job.connect();
  if (!socket.valid()) return false;
  const Deadline deadline = Deadline::after_ms(kPatienceMs);
  if (!prove(socket.get(), kSecret, {0, 1, 0, 0}, deadline, deadline).ok()) return false;
  const uint64_t sent = 0x0123456789abcdef;
  uint64_t received = 0;
  Bootstrap bootstrap(std::move(socket), 0, 1);
  return bootstrap.all_gather(&sent, &received, sizeof sent, "phase", deadline).ok() &&
         received == sent;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  Job job;
  bool secret_told = false;
  {
    std::vector<Descriptor> connections(kMaxTestRanks);
    for (int i = 0; i < kMaxActions && !input.empty(); ++i)
      secret_told |= act(job, connections, input);
  }
  const bool served = run_rank(job);
  fuzz::require(served || secret_told, "strangers do not keep a rank from its job");
  fuzz::require(job.ends(), "the hub ends when all ranks have left");
  return 0;
}
