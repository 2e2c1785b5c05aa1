// SPDX-License-Identifier: Apache-2.0
// The part of a report that is about low latency.
#include <cstdio>

#include "json.h"
#include "report.h"

namespace perf {
namespace {

constexpr const char* kWork = "%-16s %-6s %-13s %-6s %-20s %6s %6s %5s %-10s %4s %4s";
constexpr const char* kTimes = " %12s %12s %12s %12s %6s\n";

struct Work {
  const char *operation, *launch, *layout, *memory;
  const Shape& shape;
  int blocks;
};

std::string text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string text(int number) { return std::to_string(number); }

void print_work(const Work& work) {
  const Shape& shape = work.shape;
  std::printf(kWork, work.operation, work.launch, work.layout, work.memory,
              shape.format.text().c_str(), text(shape.tokens).c_str(), text(shape.hidden).c_str(),
              text(shape.top_k).c_str(), routing_name(shape.routing),
              text(shape.idle_ranks).c_str(), work.blocks == 0 ? "-" : text(work.blocks).c_str());
}

void write_work(const Work& work, JsonWriter* json) {
  const Shape& shape = work.shape;
  json->member("operation", work.operation);
  json->member("launch", work.launch);
  json->member("layout", work.layout);
  json->member("memory", work.memory);
  json->member("tokens", shape.tokens);
  json->member("hidden", shape.hidden);
  json->member("top_k", shape.top_k);
  json->member("routing", routing_name(shape.routing));
  json->member("type", type_name(shape.format.type));
  json->member("scales", scales_name(shape.format.scales));
  json->member("quantize", quantization_name(shape.format.quantize));
  json->member("idle_ranks", shape.idle_ranks);
  json->member("sms", work.blocks);
}

Work work_of(const LatencyRow& row) {
  return {row.operation.c_str(), row.launch.c_str(), row.layout.c_str(),
          row.memory.c_str(),    row.shape,          row.blocks};
}

Work work_of(const OverlapRow& row) {
  return {row.operation.c_str(), "eager",   row.layout.c_str(),
          row.memory.c_str(),    row.shape, row.blocks};
}

std::string wrong_text(int64_t wrong) { return wrong < 0 ? "-" : std::to_string(wrong); }

void print_columns(const char* first, const char* second, const char* third, const char* fourth) {
  std::printf(kWork, "operation", "launch", "layout", "memory", "format", "tokens", "hidden",
              "top-k", "routing", "idle", "SMs");
  std::printf(kTimes, first, second, third, fourth, "wrong");
}

}  // namespace

void Report::print_latency_header() const { print_columns("p50 us", "p99 us", "max us", ""); }

void Report::add_latency(const LatencyRow& row) {
  latency_rows_.push_back(row);
  print_work(work_of(row));
  std::printf(kTimes, text(row.latency.p50_us).c_str(), text(row.latency.p99_us).c_str(),
              text(row.latency.max_us).c_str(), "", wrong_text(row.wrong).c_str());
  std::fflush(stdout);
}

void Report::add_overlap(const OverlapRow& row) { overlap_rows_.push_back(row); }

void Report::print_overlap() const {
  if (overlap_rows_.empty()) return;
  print_columns("gemm us", "operation us", "together us", "exposed us");
  for (const OverlapRow& row : overlap_rows_) {
    print_work(work_of(row));
    std::printf(kTimes, text(row.gemm_us).c_str(), text(row.operation_us).c_str(),
                text(row.together_us).c_str(), text(row.exposed_us()).c_str(),
                wrong_text(row.wrong).c_str());
  }
}

void Report::write_latency(JsonWriter* json) const {
  json->open("low_latency", '[');
  for (const LatencyRow& row : latency_rows_) {
    json->open('{');
    write_work(work_of(row), json);
    json->member("p50_us", row.latency.p50_us);
    json->member("p99_us", row.latency.p99_us);
    json->member("max_us", row.latency.max_us);
    json->member("wrong", row.wrong);
    json->close('}');
  }
  json->close(']');
  json->open("overlap", '[');
  for (const OverlapRow& row : overlap_rows_) {
    json->open('{');
    write_work(work_of(row), json);
    json->member("gemm_us", row.gemm_us);
    json->member("operation_us", row.operation_us);
    json->member("together_us", row.together_us);
    json->member("exposed_us", row.exposed_us());
    json->member("wrong", row.wrong);
    json->close('}');
  }
  json->close(']');
}

}  // namespace perf
