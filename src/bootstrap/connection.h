// SPDX-License-Identifier: Apache-2.0
// The hub's end of one connection. It moves frames in and out and never waits.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/status.h"
#include "net/frames.h"

namespace hep {

// Holds a whole frame with its header. It is shared, because all ranks receive the same results.
using Frame = std::shared_ptr<const std::vector<char>>;

// A frame that says why it ends.
Frame make_failure_frame(const Status& failure);

Frame make_frame(wire::FrameType type, const void* payload, size_t size);

class Connection {
 public:
  Connection(Descriptor socket, std::string name);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int socket() const { return socket_.get(); }
  const std::string& name() const { return name_; }  // the other end's address
  short events() const;                              // that poll has to wait for

  // Whether the connection ended, was refused, or broke the protocol.
  bool closed() const { return closed_; }
  void close() { closed_ = true; }

  void send(Frame frame);
  void flush();

  // Reads what has arrived, up to a bound, so that no connection holds up the others.
  void receive();
  void discard_input() { inbox_.clear(); }

  // Whether the next frame has this type, as far as it has arrived.
  bool next_is(wire::FrameType type) const;

  // Takes the next frame if it has arrived whole. A frame of another type, or with a payload that
  // has not min_length to max_length bytes, closes the connection as soon as its header is here.
  bool next_frame(wire::FrameType type, size_t min_length, size_t max_length,
                  std::vector<char>* payload);

 private:
  Descriptor socket_;
  const std::string name_;
  bool closed_ = false;
  std::vector<char> inbox_;
  std::deque<Frame> outbox_;
  size_t sent_ = 0;  // of the first frame in the outbox
};

}  // namespace hep
