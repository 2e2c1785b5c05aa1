// SPDX-License-Identifier: Apache-2.0
// A small Mixture-of-Experts layer, forward and backward, through dispatch and combine, against the
// same layer computed densely without them. An expert is two matrices: y = W2 relu(W1 x).
#include <algorithm>
#include <cmath>
#include <vector>

#include "ranks/support.h"

namespace {

using harness::world;
using Floats = std::vector<float>;

constexpr int kHidden = 24, kInner = 20, kTopK = 3, kLocalExperts = 3;
constexpr double kTolerance = 1e-4;  // of FP32 sums in another order

struct Expert {
  Floats w1, w2;    // [inner][hidden], [hidden][inner]
  Floats dw1, dw2;  // their gradients
};

// What the ranks have, and all can make up.
struct Tokens {
  std::vector<int32_t> experts;  // [T][K], all different
  Floats x, weights, dout;       // [T][H], [T][K], [T][H]
  int count() const { return static_cast<int>(experts.size()) / kTopK; }
};

Floats random_floats(Random& random, size_t count) {
  Floats values(count);
  for (float& value : values) value = static_cast<float>(random.between(-1000, 1000)) / 1000;
  return values;
}

Tokens make_tokens(int rank) {
  Random random(options().seed * 77 + rank);
  const int num_experts = kLocalExperts * world().num_ranks();
  Tokens tokens;
  const int count = 11 + rank % 5;
  for (int t = 0; t < count; ++t) {
    const auto first = static_cast<int>(random.between(0, num_experts - 1));
    for (int k = 0; k < kTopK; ++k) tokens.experts.push_back((first + 2 * k) % num_experts);
  }
  tokens.x = random_floats(random, count * kHidden);
  tokens.weights = random_floats(random, count * kTopK);
  tokens.dout = random_floats(random, count * kHidden);
  return tokens;
}

Expert make_expert(int id) {
  Random random(options().seed * 99 + id);
  Expert expert;
  expert.w1 = random_floats(random, kInner * kHidden);
  expert.w2 = random_floats(random, kHidden * kInner);
  expert.dw1.assign(expert.w1.size(), 0);
  expert.dw2.assign(expert.w2.size(), 0);
  return expert;
}

// One row through an expert.
struct Pass {
  Floats inner = Floats(kInner), y = Floats(kHidden);
};

Pass forward(const Expert& expert, const float* x) {
  Pass pass;
  for (int i = 0; i < kInner; ++i) {
    for (int h = 0; h < kHidden; ++h) pass.inner[i] += expert.w1[i * kHidden + h] * x[h];
    pass.inner[i] = std::max(pass.inner[i], 0.0f);
  }
  for (int h = 0; h < kHidden; ++h)
    for (int i = 0; i < kInner; ++i) pass.y[h] += expert.w2[h * kInner + i] * pass.inner[i];
  return pass;
}

// Adds a row's share to the gradients of the expert and to those of the row: dx [hidden]. Returns
// the gradient of the row's weight.
float backward(const Pass& pass, const float* x, float weight, const float* dout, Expert* expert,
               float* dx) {
  float dweight = 0;
  for (int h = 0; h < kHidden; ++h) dweight += dout[h] * pass.y[h];
  for (int i = 0; i < kInner; ++i) {
    float dinner = 0;
    for (int h = 0; h < kHidden; ++h) {
      dinner += weight * dout[h] * expert->w2[h * kInner + i];
      expert->dw2[h * kInner + i] += weight * dout[h] * pass.inner[i];
    }
    if (pass.inner[i] <= 0) continue;
    for (int h = 0; h < kHidden; ++h) {
      expert->dw1[i * kHidden + h] += dinner * x[h];
      dx[h] += dinner * expert->w1[i * kHidden + h];
    }
  }
  return dweight;
}

struct Results {
  Floats out, dx, dweights;  // [T][H], [T][H], [T][K]
  std::vector<Expert> experts;
};

// Every token of every rank through its experts, on one rank.
Results dense_layer(int rank) {
  Results results;
  for (int e = 0; e < kLocalExperts; ++e)
    results.experts.push_back(make_expert(rank * kLocalExperts + e));
  for (int source = 0; source < world().num_ranks(); ++source) {
    const Tokens tokens = make_tokens(source);
    Floats out(tokens.x.size()), dx(tokens.x.size()), dweights(tokens.weights.size());
    for (int i = 0; i < tokens.count() * kTopK; ++i) {
      const int id = tokens.experts[i];
      const bool local = id / kLocalExperts == rank;
      if (!local && source != rank) continue;
      Expert other = local ? Expert() : make_expert(id);
      Expert& expert = local ? results.experts[id % kLocalExperts] : other;
      const int64_t row = int64_t{i / kTopK} * kHidden;
      const Pass pass = forward(expert, &tokens.x[row]);
      for (int h = 0; h < kHidden; ++h) out[row + h] += tokens.weights[i] * pass.y[h];
      dweights[i] =
          backward(pass, &tokens.x[row], tokens.weights[i], &tokens.dout[row], &expert, &dx[row]);
    }
    if (source != rank) continue;
    results.out = out;
    results.dx = dx;
    results.dweights = dweights;
  }
  return results;
}

// The same with the tokens where their experts are.
class Layer {
 public:
  Layer(Rank& self, hepLayout_t layout) : self_(self), layout_(layout) {
    hepRoutingConfig_t config = HEP_ROUTING_CONFIG_INITIALIZER;
    config.alignment = 8;
    EXPECT_HEP(hepRoutingCreate(routing_.out(), self.comm, &config));
    for (int e = 0; e < kLocalExperts; ++e)
      results_.experts.push_back(make_expert(self.rank * kLocalExperts + e));
  }

  Results run() {
    self_.barrier();
    update();
    const Floats x = dispatch(tokens_.x, &row_weights_);
    std::vector<Pass> passes(rows_);
    Floats y(rows_ * kHidden);
    for_rows([&](Expert& expert, int64_t r) {
      passes[r] = forward(expert, &x[r * kHidden]);
      std::copy(passes[r].y.begin(), passes[r].y.end(), &y[r * kHidden]);
    });
    results_.out = combine(y, hepWeightsDispatched, nullptr);

    const Floats dout = dispatch(tokens_.dout, nullptr);
    Floats dx(rows_ * kHidden), dweights(rows_);
    for_rows([&](Expert& expert, int64_t r) {
      dweights[r] = backward(passes[r], &x[r * kHidden], row_weights_[r], &dout[r * kHidden],
                             &expert, &dx[r * kHidden]);
    });
    results_.dx = combine(dx, hepWeightsNone, &dweights);
    return results_;
  }

 private:
  harness::Buffer on_device(const void* data, size_t bytes) {
    harness::Buffer buffer(self_.stream.backend(), bytes);
    buffer.upload(data, bytes);
    return buffer;
  }
  harness::Buffer on_device(const Floats& values) {
    return on_device(values.data(), values.size() * sizeof(float));
  }
  Floats on_host(const harness::Buffer& buffer) {
    self_.stream.synchronize();
    Floats values(buffer.bytes() / sizeof(float));
    buffer.download(values.data(), buffer.bytes());
    return values;
  }

  void update() {
    const harness::Buffer ids =
        on_device(tokens_.experts.data(), tokens_.experts.size() * sizeof(int32_t));
    EXPECT_HEP(harness::update_routing(routing_.get(), ids.data(), tokens_.count(), kTopK,
                                       hepIndexInt32, self_.stream.get()));
    hepRoutingCounts_t counts = HEP_ROUTING_COUNTS_INITIALIZER;
    counts.tokens_per_expert = expert_rows_;
    EXPECT_HEP(hepRoutingQuery(routing_.get(), &counts, self_.stream.get()));
    const int fullest = *std::max_element(expert_rows_, expert_rows_ + kLocalExperts);
    int64_t next = 0;
    for (int e = 0; e < kLocalExperts; ++e) {
      first_row_[e] = layout_ == hepLayoutExpertPadded ? e * fullest : next;
      next += (expert_rows_[e] + 7) / 8 * 8;
    }
    capacity_ = layout_ == hepLayoutExpertPadded ? fullest : counts.num_padded_rows;
    rows_ = layout_ == hepLayoutExpertPadded ? kLocalExperts * fullest : capacity_;
  }

  template <typename Body>
  void for_rows(Body body) {
    for (int e = 0; e < kLocalExperts; ++e)
      for (int64_t r = first_row_[e]; r < first_row_[e] + expert_rows_[e]; ++r)
        body(results_.experts[e], r);
  }

  Floats dispatch(const Floats& x, Floats* row_weights) {
    const harness::Buffer from = on_device(x), weights = on_device(tokens_.weights);
    const harness::Buffer rows(self_.stream.backend(), rows_ * kHidden * sizeof(float));
    const harness::Buffer to(self_.stream.backend(), rows_ * sizeof(float));
    hepDispatchArgs_t args = HEP_DISPATCH_ARGS_INITIALIZER;
    args.layout = layout_;
    args.overflow = hepOverflowError;
    args.x = from.data();
    args.rows = rows.data();
    args.capacity = capacity_;
    if (row_weights != nullptr) {
      args.weights = weights.as<float>();
      args.row_weights = to.as<float>();
    }
    EXPECT_HEP(hepDispatch(routing_.get(), &args, self_.stream.get()));
    if (row_weights != nullptr) *row_weights = on_host(to);
    return on_host(rows);
  }

  Floats combine(const Floats& y, hepWeightMode_t mode, const Floats* dweights) {
    const harness::Buffer from = on_device(y);
    const harness::Buffer row_gradients =
        dweights != nullptr ? on_device(*dweights) : harness::Buffer();
    const harness::Buffer out(self_.stream.backend(), tokens_.x.size() * sizeof(float));
    const harness::Buffer gradients(self_.stream.backend(), tokens_.weights.size() * sizeof(float));
    hepCombineArgs_t args = HEP_COMBINE_ARGS_INITIALIZER;
    args.layout = layout_;
    args.weight_mode = mode;
    args.y = from.data();
    args.capacity = capacity_;
    args.out = out.data();
    if (dweights != nullptr) {
      args.row_gradients = row_gradients.as<float>();
      args.gradients = gradients.as<float>();
    }
    EXPECT_HEP(hepCombine(routing_.get(), &args, self_.stream.get()));
    if (dweights != nullptr) results_.dweights = on_host(gradients);
    return on_host(out);
  }

  Rank& self_;
  const hepLayout_t layout_;
  const Tokens tokens_ = make_tokens(self_.rank);
  RoutingHandle routing_;
  Results results_;
  int32_t expert_rows_[kLocalExperts] = {};
  int64_t first_row_[kLocalExperts] = {};
  int64_t capacity_ = 0, rows_ = 0;
  Floats row_weights_;
};

void expect_near(const Floats& actual, const Floats& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], kTolerance * (1 + std::fabs(expected[i])))
        << what << " " << i;
}

TEST(MoeLayer, ForwardAndBackwardEqualTheDenseComputation) {
  hepConfig_t config = HEP_CONFIG_INITIALIZER;
  config.type = hepTypeFloat32;
  config.partial_type = hepTypeFloat32;
  config.max_tokens = 16;
  config.hidden = kHidden;
  config.num_experts = kLocalExperts * world().num_ranks();
  config.max_top_k = kTopK;
  config.timeout_ms = config.init_timeout_ms = kTimeoutMs;
  for (const hepLayout_t layout : {hepLayoutExpertMajor, hepLayoutExpertPadded}) {
    run_ranks(config, [&](Rank& self) {
      const Results expected = dense_layer(self.rank);
      const Results actual = Layer(self, layout).run();
      expect_near(actual.out, expected.out, "out");
      expect_near(actual.dx, expected.dx, "dx");
      expect_near(actual.dweights, expected.dweights, "gradients of the weights");
      for (int e = 0; e < kLocalExperts; ++e) {
        expect_near(actual.experts[e].dw1, expected.experts[e].dw1, "gradient of W1");
        expect_near(actual.experts[e].dw2, expected.experts[e].dw2, "gradient of W2");
      }
      EXPECT_EQ(async_error(self), hepSuccess) << hepGetLastError();
    });
  }
}

}  // namespace
