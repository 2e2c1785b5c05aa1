// SPDX-License-Identifier: Apache-2.0
// A job that is run again and again on one rank: its bytes are kept where the rank's memory is, so
// that neither the oracle nor the host's memory takes part in a repetition.
#include "job.h"

std::vector<JobRun::Piece> JobRun::inputs() {
  std::vector<Piece> all;
  const auto add = [&all](const auto& buffer) { all.push_back({buffer.data(), buffer.bytes()}); };
  for (const UpdateRun& run : updates_) add(run.indices);
  for (const DispatchRun& run : dispatches_) {
    all.push_back({run.x.data, run.x.bytes});
    add(run.scales);
    add(run.weights);
  }
  for (const CombineRun& run : combines_) {
    all.push_back({run.y.data, run.y.bytes});
    add(run.row_weights);
    add(run.row_gradients);
  }
  return all;
}

std::vector<harness::GuardedBuffer*> JobRun::all_outputs() {
  std::vector<harness::GuardedBuffer*> all;
  const auto append = [&all](const std::vector<harness::GuardedBuffer*>& buffers) {
    all.insert(all.end(), buffers.begin(), buffers.end());
  };
  for (DispatchRun& run : dispatches_) append(run.outputs());
  for (CombineRun& run : combines_) append(run.outputs());
  return all;
}

std::vector<unsigned char> JobRun::outputs() {
  std::vector<unsigned char> all;
  for (const harness::GuardedBuffer* buffer : all_outputs()) {
    all.resize(all.size() + buffer->bytes());
    buffer->download(all.data() + all.size() - buffer->bytes(), buffer->bytes());
  }
  return all;
}

void JobRun::keep_inputs() {
  for (const Piece& input : inputs()) {
    kept_inputs_.emplace_back(backend_, input.bytes);
    rank_.stream.copy(kept_inputs_.back().data(), input.data, input.bytes);
  }
}

void JobRun::keep_outputs() {
  for (const harness::GuardedBuffer* output : all_outputs()) {
    kept_outputs_.emplace_back(backend_, output->bytes());
    rank_.stream.copy(kept_outputs_.back().data(), output->data(), output->bytes());
  }
}

void JobRun::restore() {
  const std::vector<Piece> to = inputs();
  for (size_t i = 0; i < to.size(); ++i)
    rank_.stream.copy(to[i].data, kept_inputs_[i].data(), to[i].bytes);
  for (const harness::GuardedBuffer* output : all_outputs())
    rank_.stream.fill(output->data(), kPoison, output->bytes());
}

void JobRun::count_wrong(uint64_t* counter) {
  const std::vector<harness::GuardedBuffer*> from = all_outputs();
  for (size_t i = 0; i < from.size(); ++i)
    rank_.stream.count_differences(from[i]->data(), kept_outputs_[i].data(), from[i]->bytes(),
                                   counter);
}

bool JobRun::intact() {
  for (const harness::GuardedBuffer* output : all_outputs())
    if (!output->intact()) return false;
  return true;
}
