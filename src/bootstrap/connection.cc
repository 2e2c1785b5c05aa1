// SPDX-License-Identifier: Apache-2.0
#include "bootstrap/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace hep {
namespace {

constexpr size_t kReadBytes = 64 * 1024;

}  // namespace

Frame make_frame(wire::FrameType type, const void* payload, size_t size) {
  auto frame = std::make_shared<std::vector<char>>(sizeof(wire::FrameHeader) + size);
  const wire::FrameHeader header = wire::make_header(type, size);
  std::memcpy(frame->data(), &header, sizeof header);
  if (size > 0) std::memcpy(frame->data() + sizeof header, payload, size);
  return frame;
}

Frame make_failure_frame(const Status& failure) {
  const wire::Failure head{static_cast<uint32_t>(failure.result())};
  std::vector<char> payload(sizeof head);
  std::memcpy(payload.data(), &head, sizeof head);
  const std::string text = failure.message().substr(0, wire::kMaxTextBytes);
  payload.insert(payload.end(), text.begin(), text.end());
  return make_frame(wire::FrameType::kFailure, payload.data(), payload.size());
}

Connection::Connection(Descriptor socket, std::string name)
    : socket_(std::move(socket)), name_(std::move(name)) {}

Connection::~Connection() {
  // A forked child may hold the connection, too, and must not keep it alive.
  ::shutdown(socket_.get(), SHUT_RDWR);
}

short Connection::events() const { return outbox_.empty() ? POLLIN : POLLIN | POLLOUT; }

void Connection::send(Frame frame) {
  outbox_.push_back(std::move(frame));
  flush();
}

void Connection::flush() {
  while (!closed_ && !outbox_.empty()) {
    const std::vector<char>& frame = *outbox_.front();
    const ssize_t sent =
        ::send(socket_.get(), frame.data() + sent_, frame.size() - sent_, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) close();
      return;
    }
    sent_ += sent;
    if (sent_ < frame.size()) continue;
    outbox_.pop_front();
    sent_ = 0;
  }
}

void Connection::receive() {
  const size_t before = inbox_.size();
  inbox_.resize(before + kReadBytes);
  const ssize_t received = ::recv(socket_.get(), inbox_.data() + before, kReadBytes, 0);
  inbox_.resize(before + (received > 0 ? received : 0));
  if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR)) close();
}

bool Connection::next_is(wire::FrameType type) const {
  wire::FrameHeader header;
  if (inbox_.size() < sizeof header) return false;
  std::memcpy(&header, inbox_.data(), sizeof header);
  return header.type == type;
}

bool Connection::next_frame(wire::FrameType type, size_t min_length, size_t max_length,
                            std::vector<char>* payload) {
  wire::FrameHeader header;
  if (closed_ || inbox_.size() < sizeof header) return false;
  std::memcpy(&header, inbox_.data(), sizeof header);
  if (header.magic != wire::kMagic || header.version != wire::kVersion || header.type != type ||
      header.length < min_length || header.length > max_length) {
    close();
    return false;
  }
  const size_t total = sizeof header + header.length;
  if (inbox_.size() < total) return false;
  payload->assign(inbox_.begin() + sizeof header, inbox_.begin() + total);
  inbox_.erase(inbox_.begin(), inbox_.begin() + total);
  return true;
}

}  // namespace hep
