// SPDX-License-Identifier: Apache-2.0
// Byte offsets, and numbers of rows, that do not fit in 32 bits, on any machine: most of the memory
// that they span is never touched, or shared.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "ranks/job.h"
#include "ranks/support.h"
#include "ranks/vast_memory.h"

namespace {

using harness::world;

constexpr int64_t kRowBytes = 65536;
constexpr int64_t kPast32Bits = int64_t{1} << 32;
constexpr int64_t kPeriod = 127 * kRowBytes;  // divides no power of two

// Whether every process can have so many addresses.
bool available(int64_t bytes) {
  return world().max_over_processes(VastMemory::available(bytes) ? 0 : 1) == 0;
}

// Numbers that FP32 and BF16 hold exactly, and their sums, too.
float number(int rank, int64_t index, int h) {
  return static_cast<float>((rank * 5 + index * 7 + h) % 61 - 30);
}

std::vector<float> number_row(int rank, int64_t index, int hidden) {
  std::vector<float> row(hidden);
  for (int h = 0; h < hidden; ++h) row[h] = number(rank, index, h);
  return row;
}

harness::Buffer upload(Rank& self, const std::vector<int32_t>& values) {
  harness::Buffer buffer(self.stream.backend(), values.size() * sizeof(int32_t));
  buffer.upload(values.data(), buffer.bytes());
  return buffer;
}

void expect_no_error(Rank& self) {
  self.stream.synchronize();
  EXPECT_EQ(async_error(self), hepSuccess) << hepGetLastError();
}

// ------------------------------------------------------------------------------- expert-padded

// Few rows in blocks so large that the last begins past 2^32 bytes, on the host backend past 2^32
// rows.
class PaddedBlocks {
 public:
  static constexpr int kExperts = 12, kTokens = 40, kHidden = 8, kTopK = 4;

  static int64_t capacity() {
    return int64_t{1} << (world().backend() == hepBackendCuda ? 25 : 29);
  }
  static int64_t rows() { return kExperts * capacity(); }
  static hepConfig_t config() {
    hepConfig_t config = small_config();
    config.hidden = kHidden;
    config.num_experts = kExperts * world().num_ranks();
    config.scale_bytes = 4;
    config.heap_bytes = 0;
    return config;
  }

  PaddedBlocks(const Job& job, Rank& self) : job_(job), self_(self) {
    EXPECT_HEP(hepRoutingCreate(routing_.out(), self.comm, nullptr));
    self.barrier();
  }

  void update() {
    const std::vector<int64_t>& ids = routing().batch(self_.rank).indices;
    const harness::Buffer indices = upload(self_, {ids.begin(), ids.end()});
    EXPECT_HEP(harness::update_routing(routing_.get(), indices.data(), kTokens, kTopK,
                                       hepIndexInt32, self_.stream.get()));
    self_.stream.synchronize();
    self_.barrier();
  }

  void dispatch() {
    const Dispatch& job = job_.dispatches[0];
    const hepBackend_t backend = self_.stream.backend();
    harness::Buffer x(backend, kTokens * kHidden * 2), scales(backend, kTokens * 4);
    for (int64_t token = 0; token < kTokens; ++token) {
      uint16_t row[kHidden];
      job.x.row(self_.rank, token, hepTypeBfloat16, kHidden, row);
      x.upload(row, sizeof row, token * sizeof row);
      const int32_t scale = scale_of(self_.rank, token);
      scales.upload(&scale, 4, token * 4);
    }
    harness::Buffer weights(backend, kTokens * kTopK * sizeof(float));
    weights.upload(job.weights[self_.rank].data(), weights.bytes());
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertPadded;
    args.x = x.data();
    args.weights = weights.as<float>();
    args.rows = rows_.data();
    args.capacity = capacity();
    args.row_weights = row_weights_.data<float>();
    args.row_sources = row_sources_.data<int32_t>();
    args.row_tokens = row_tokens_.data<int32_t>();
    args.scales = scales.data();
    args.row_scales = row_scales_.data();
    args.row_scales_stride = capacity();
    args.scale_element_bytes = 4;
    EXPECT_HEP(hepDispatch(routing_.get(), &args, self_.stream.get()));
    expect_no_error(self_);
    self_.barrier();
  }

  void expect_rows() {
    const Dispatch& job = job_.dispatches[0];
    for (const reference::Selection& s : arrivals().selections) {
      const int64_t row = arrivals().row_of(hepLayoutExpertPadded, capacity(), s);
      std::vector<uint16_t> expected(kHidden);
      job.x.row(s.source, s.token, hepTypeBfloat16, kHidden, expected.data());
      EXPECT_EQ(rows_.read<uint16_t>(row * kHidden, kHidden), expected) << "row " << row;
      EXPECT_EQ(row_weights_.read<float>(row, 1)[0], job.weights[s.source][s.token * kTopK + s.k]);
      EXPECT_EQ(row_sources_.read<int32_t>(row, 1)[0], s.source) << "row " << row;
      EXPECT_EQ(row_tokens_.read<int32_t>(row, 1)[0], s.token) << "row " << row;
      EXPECT_EQ(row_scales_.read<int32_t>(row, 1)[0], scale_of(s.source, s.token));
    }
  }

  // The rows as they came, with the weights that came with them; these go back as gradients, too.
  void combine() {
    const hepBackend_t backend = self_.stream.backend();
    harness::Buffer out(backend, kTokens * kHidden * 2);
    harness::Buffer gradients(backend, kTokens * kTopK * sizeof(float));
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertPadded;
    args.weight_mode = hepWeightsRow;
    args.y = rows_.data();
    args.capacity = capacity();
    args.row_weights = args.row_gradients = row_weights_.data<float>();
    args.out = out.data();
    args.gradients = gradients.as<float>();
    EXPECT_HEP(hepCombine(routing_.get(), &args, self_.stream.get()));
    expect_no_error(self_);
    for (int64_t token = 0; token < kTokens; ++token) {
      uint16_t actual[kHidden], expected[kHidden];
      out.download(actual, sizeof actual, token * sizeof actual);
      expected_out(token, expected);
      EXPECT_TRUE(std::equal(actual, actual + kHidden, expected)) << "token " << token;
    }
    expect_gradients(gradients);
  }

 private:
  static int32_t scale_of(int rank, int64_t token) {
    return static_cast<int32_t>(rank * 1000 + token + 1);
  }

  const reference::Routing& routing() const { return *job_.updates[0].expected; }
  const reference::Arrivals& arrivals() const { return routing().at(self_.rank); }

  const reference::Selection& selection_at(int rank, int64_t row) const {
    return *reference::row_at(routing().at(rank), hepLayoutExpertPadded, capacity(), row)
                .selections;
  }

  void expected_out(int64_t token, uint16_t* out) const {
    const Dispatch& job = job_.dispatches[0];
    const std::vector<int64_t> capacities(world().num_ranks(), capacity());
    const reference::Combine shape{
        hepLayoutExpertPadded, hepTypeBfloat16, hepTypeBfloat16, kHidden, capacities,
        world().domain_size()};
    std::vector<float> values(kHidden);
    const auto row = [&](int rank, int64_t r) {
      const reference::Selection& s = selection_at(rank, r);
      uint16_t x[kHidden];
      job.x.row(s.source, s.token, hepTypeBfloat16, kHidden, x);
      reference::load_row(hepTypeBfloat16, x, kHidden, values.data());
      return values.data();
    };
    const auto weight = [&](int rank, int64_t r) {
      const reference::Selection& s = selection_at(rank, r);
      return job.weights[s.source][s.token * kTopK + s.k];
    };
    reference::combine_token(routing(), shape, self_.rank, token, row, weight, out);
  }

  void expect_gradients(const harness::Buffer& gradients) const {
    std::vector<float> actual(kTokens * kTopK);
    gradients.download(actual.data(), gradients.bytes());
    const std::vector<int64_t>& ids = routing().batch(self_.rank).indices;
    for (size_t i = 0; i < actual.size(); ++i)
      EXPECT_EQ(actual[i], ids[i] < 0 ? 0.0f : job_.dispatches[0].weights[self_.rank][i]);
  }

  const Job& job_;
  Rank& self_;
  RoutingHandle routing_;
  VastMemory rows_{rows() * kHidden * 2}, row_weights_{rows() * 4}, row_sources_{rows() * 4},
      row_tokens_{rows() * 4}, row_scales_{rows() * 4};
};

TEST(Offsets, ExpertPaddedBlocksMayBeginPast4GiB) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "too many addresses with so many ranks";
  ASSERT_GT((PaddedBlocks::kExperts - 1) * PaddedBlocks::capacity() * PaddedBlocks::kHidden * 2,
            kPast32Bits);
  if (!available(2 * PaddedBlocks::rows() * 16 * world().num_local_ranks()))
    GTEST_SKIP() << "this system does not give away so many addresses";
  const hepConfig_t config = PaddedBlocks::config();
  Random random(options().seed + 60);
  JobBuilder builder(world().num_ranks(), config, random);
  const int update =
      builder.add_update(builder.add_routing(1), PaddedBlocks::kTopK, hepIndexInt32,
                         std::vector<int64_t>(world().num_ranks(), PaddedBlocks::kTokens));
  builder.add_dispatch(update, hepLayoutExpertPadded, true);
  const Job job = builder.finish("padded blocks");
  run_ranks(config, [&](Rank& self) {
    PaddedBlocks blocks(job, self);
    blocks.update();
    blocks.dispatch();
    blocks.expect_rows();
    self.barrier();
    blocks.combine();
    self.barrier();
  });
}

// -------------------------------------------------------------------------------- expert-major

// Rank 0's tokens go to the last expert, 32 times each: more than 2^32 bytes of rows there.
TEST(Offsets, ExpertMajorRowsMayReachPast4GiB) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "one case of this size is enough";
  constexpr int kTokens = 2100, kTopK = 32, kHidden = kRowBytes / sizeof(float);
  constexpr int64_t kRows = kTokens * kTopK, kOwnRows = 64;  // the last ones, which are looked at
  static_assert((kRows - kOwnRows) * kRowBytes > kPast32Bits && kOwnRows * kRowBytes < kPeriod);
  hepConfig_t config = small_config();
  config.type = config.partial_type = hepTypeFloat32;
  config.hidden = kHidden;
  config.max_tokens = kTokens;
  config.max_top_k = kTopK;
  config.heap_bytes = 0;
  const int last = world().num_ranks() - 1;
  run_ranks(config, [&](Rank& self) {
    const hepBackend_t backend = self.stream.backend();
    const int tokens = self.rank == 0 ? kTokens : 0;
    const int64_t capacity = self.rank == last ? kRows : 0;
    const harness::Buffer ids =
        upload(self, std::vector<int32_t>(tokens * kTopK, config.num_experts - 1));
    harness::Buffer x(backend, tokens * kRowBytes);
    for (int64_t token = 0; token < tokens; ++token)
      x.upload(number_row(0, token, kHidden).data(), kRowBytes, token * kRowBytes);
    std::unique_ptr<VastMemory> rows;
    if (capacity > 0) rows = std::make_unique<VastMemory>(kRows * kRowBytes, kPeriod);
    RoutingHandle routing;
    ASSERT_HEP(hepRoutingCreate(routing.out(), self.comm, nullptr));
    self.barrier();
    ASSERT_HEP(harness::update_routing(routing.get(), ids.data(), tokens, kTopK, hepIndexInt32,
                                       self.stream.get()));
    hepDispatchArgs_t dispatch = HEP_DISPATCH_ARGS_INITIALIZER;
    dispatch.layout = hepLayoutExpertMajor;
    dispatch.x = x.data();
    dispatch.rows = rows ? rows->data() : nullptr;
    dispatch.capacity = capacity;
    self.stream.synchronize();
    self.barrier();
    ASSERT_HEP(hepDispatch(routing.get(), &dispatch, self.stream.get()));
    expect_no_error(self);
    for (int64_t row = kRows - kOwnRows; rows && row < kRows; ++row) {
      ASSERT_EQ(rows->read<float>(row * kHidden, kHidden), number_row(0, row / kTopK, kHidden))
          << "row " << row;
      rows->write(row * kHidden, number_row(1, row, kHidden));
    }
    self.barrier();

    hepCombineArgs_t combine = HEP_COMBINE_ARGS_INITIALIZER;
    combine.layout = hepLayoutExpertMajor;
    combine.y = dispatch.rows;
    combine.capacity = capacity;
    combine.out = x.data();
    ASSERT_HEP(hepCombine(routing.get(), &combine, self.stream.get()));
    expect_no_error(self);
    for (int64_t token = tokens - kOwnRows / kTopK; token >= 0 && token < tokens; ++token) {
      std::vector<float> sum(kHidden), actual(kHidden);
      for (int64_t row = token * kTopK; row < (token + 1) * kTopK; ++row)
        for (int h = 0; h < kHidden; ++h) sum[h] += number(1, row, h);
      x.download(actual.data(), kRowBytes, token * kRowBytes);
      ASSERT_EQ(actual, sum) << "token " << token;
    }
    self.barrier();
  });
}

// -------------------------------------------------------------------------------------- window

// The largest shape of all. Rows, partial sums and heap of a window lie more than 2^32 bytes apart,
// and so do the ends of a batch. Few of the tokens select an expert, so that little of it is
// touched.
class LargestShape {
 public:
  static hepConfig_t config() {
    hepConfig_t config = small_config();
    config.type = hepTypeFloat32;
    config.hidden = kHidden;
    config.max_tokens = kTokens;
    config.num_experts = 4096 / world().num_ranks() * world().num_ranks();
    config.max_top_k = 32;
    config.heap_bytes = kTokens * kRowBytes;
    return config;
  }

  // The last rank alone has tokens; each goes to the first expert and the last.
  explicit LargestShape(Rank& self)
      : self_(self),
        has_tokens_(self.rank == world().num_ranks() - 1),
        num_rows_(((self.rank == 0) + has_tokens_) * static_cast<int64_t>(selecting_.size())),
        rows_(self.stream.backend(), num_rows_ * kRowBytes) {
    EXPECT_HEP(hepRoutingCreate(routing_.out(), self.comm, nullptr));
    if (!has_tokens_) selecting_tokens_.clear();
  }
  ~LargestShape() { EXPECT_HEP(hepMemFree(self_.comm, heap_)); }
  LargestShape(const LargestShape&) = delete;
  LargestShape& operator=(const LargestShape&) = delete;

  void update() {
    const hepConfig_t config = LargestShape::config();
    const int64_t tokens = has_tokens_ ? kTokens : 0;
    std::vector<int32_t> ids(tokens * kTopK, -1);
    if (has_tokens_) {
      ASSERT_HEP(hepMemAlloc(self_.comm, config.heap_bytes, &heap_));
    }
    for (const int64_t token : selecting_tokens_) {
      ids[token * kTopK] = 0;
      ids[token * kTopK + 1] = config.num_experts - 1;
      harness::upload(self_.stream.backend(), static_cast<char*>(heap_) + token * kRowBytes,
                      number_row(0, token, kHidden).data(), kRowBytes);
    }
    const harness::Buffer indices = upload(self_, ids);
    self_.barrier();
    ASSERT_HEP(harness::update_routing(routing_.get(), indices.data(), tokens, kTopK, hepIndexInt32,
                                       self_.stream.get()));
    self_.stream.synchronize();
    self_.barrier();
  }

  void dispatch() {
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertMajor;
    args.x = heap_;
    args.rows = rows_.data();
    args.capacity = num_rows_;
    ASSERT_HEP(hepDispatch(routing_.get(), &args, self_.stream.get()));
    expect_no_error(self_);
    for (int64_t row = 0; row < num_rows_; ++row) {
      std::vector<float> actual(kHidden);
      rows_.download(actual.data(), kRowBytes, row * kRowBytes);
      ASSERT_EQ(actual, number_row(0, selecting_[row % selecting_.size()], kHidden)) << row;
    }
    self_.barrier();
  }

  void combine() {
    std::unique_ptr<VastMemory> out;
    if (has_tokens_) out = std::make_unique<VastMemory>(kTokens * kRowBytes, kPeriod);
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.layout = hepLayoutExpertMajor;
    args.y = rows_.data();
    args.capacity = num_rows_;
    args.out = out ? out->data() : nullptr;
    ASSERT_HEP(hepCombine(routing_.get(), &args, self_.stream.get()));
    expect_no_error(self_);
    for (const int64_t token : selecting_tokens_) {
      if (out->is_shared(token * kRowBytes)) continue;
      std::vector<float> twice = number_row(0, token, kHidden);
      for (float& value : twice) value *= 2;
      ASSERT_EQ(out->read<float>(token * kHidden, kHidden), twice) << "token " << token;
    }
    if (out) {
      EXPECT_EQ(out->read<float>((kTokens - 3) * int64_t{kHidden}, kHidden),
                std::vector<float>(kHidden))
          << "a token without a selection";
    }
    self_.barrier();
  }

  static constexpr int kTokens = 65536, kTopK = 2, kHidden = kRowBytes / sizeof(float);

 private:
  const std::vector<int64_t> selecting_ = {0, 1, 32767, 32768, 40001, kTokens - 2, kTokens - 1};
  Rank& self_;
  const bool has_tokens_;
  const int64_t num_rows_;
  harness::Buffer rows_;
  RoutingHandle routing_;
  std::vector<int64_t> selecting_tokens_ = selecting_;  // of this rank
  void* heap_ = nullptr;
};

void expect_limits_of_largest_shape(Rank& self) {
  const int num_ranks = world().num_ranks();
  const int num_experts = LargestShape::config().num_experts;
  hepLimits_t limits = HEP_LIMITS_INITIALIZER;
  ASSERT_HEP(hepCommLimits(self.comm, &limits));
  EXPECT_EQ(limits.max_tokens, LargestShape::kTokens);
  EXPECT_EQ(limits.max_top_k, 32);
  EXPECT_EQ(limits.num_experts, num_experts);
  EXPECT_EQ(limits.num_local_experts, num_experts / num_ranks);
  EXPECT_EQ(limits.row_bytes, kRowBytes);
  EXPECT_EQ(limits.max_flat_rows, int64_t{num_ranks} * LargestShape::kTokens);
  EXPECT_EQ(limits.max_expert_rows, int64_t{num_ranks} * LargestShape::kTokens * 32);
}

TEST(Offsets, TheLargestShapeWorksAndIsWhatTheLimitsReport) {
  if (world().num_ranks() > 8) GTEST_SKIP() << "one case of this size is enough";
  run_ranks(LargestShape::config(), [](Rank& self) {
    expect_limits_of_largest_shape(self);
    LargestShape shape(self);
    ASSERT_NO_FATAL_FAILURE(shape.update());
    ASSERT_NO_FATAL_FAILURE(shape.dispatch());
    ASSERT_NO_FATAL_FAILURE(shape.combine());
  });
}

}  // namespace
