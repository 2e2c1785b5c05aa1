// SPDX-License-Identifier: Apache-2.0
// A report as JSON.
#include "json.h"
#include "machine.h"
#include "plan.h"
#include "report.h"

namespace perf {
namespace {

void write_machine(const Setting& setting, JsonWriter* json) {
  json->open("machine", '{');
  json->member("gpu", setting.gpus.name);
  json->member("gpus", setting.gpus.count);
  json->member("driver", setting.gpus.driver);
  json->member("cuda", setting.gpus.cuda);
  json->member("cpu", cpu_name());
  json->member("nccl", setting.nccl);
  json->member("launch_us", setting.launch_us);
  json->member("launch_us_at_end", setting.launch_us_at_end);
  json->close('}');
}

void write_config(const Setting& setting, JsonWriter* json) {
  const Options& options = setting.options;
  json->open("config", '{');
  json->member("backend", backend_name(setting.backend));
  json->member("ranks", setting.num_ranks);
  json->member("processes", setting.num_processes);
  json->member("experts", options.experts);
  json->member("alignment", options.alignment);
  json->member("seed", options.seed);
  json->member("iterations", options.iterations);
  json->member("warmup", options.warmup);
  json->close('}');
}

void write_definitions(JsonWriter* json) {
  json->open("definitions", '{');
  json->member("median_us",
               "time of one API call on a cached routing, an iteration counting as long as its "
               "slowest rank; min_us likewise");
  json->member("mean_rank_us", "median, an iteration counting as long as the mean of its ranks");
  json->member("kernel_us",
               "of the kernels of a call alone, median, an iteration counting as long as on its "
               "slowest rank; absent if not measured");
  json->member("host_us",
               "to enqueue a call, on the host, median of all ranks; absent if not measured");
  json->member("launch_us",
               "to enqueue an empty kernel with 2 KiB of arguments, on the host; launch_us_at_end "
               "the same after all cases; 0: not measured");
  json->member("flat_rows_per_rank",
               "that a rank receives, its own included, mean of the ranks; remote: without them");
  json->member("alg_gbps",
               "bytes of flat_rows_per_rank over the median, bytes_per_row each, in which scales "
               "count; in both layouts and both directions");
  json->member("link_gbps", "the same without the rank's own rows: what crosses NVLink");
  json->member("ceiling_gbps",
               "the faster of TMA load from and TMA store to peers with sm_budget SMs");
  json->member("type",
               "of the rows as they arrive, with scales of that type beside them; with quantize x "
               "is BF16");
  json->member("tuning", "what differs from the library's own choice");
  json->member("plan",
               "for each case of which several tunings were measured the best one, and how far the "
               "library's own choice is behind");
  json->member("low_latency",
               "single operations, dispatch with an update of the routing; percentiles over all "
               "iterations, each as long as on its slowest rank; halves with a pause between");
  json->member("overlap",
               "operations beside a stand-in for a GEMM, medians: all GEMMs alone, all operations "
               "alone, both on two streams, and by how much that is longer than the longer; "
               "double-batch is a layer of two batches that take turns");
  json->member("wrong", "values of all ranks that differ from the reference; -1: not checked");
  json->close('}');
}

void write_ceilings(const Ceilings& ceilings, JsonWriter* json) {
  json->open("ceilings", '{');
  json->member("gpus", ceilings.gpus);
  json->member("skipped", ceilings.skipped);
  json->open("rows", '[');
  for (const Ceiling& ceiling : ceilings.all) {
    json->open('{');
    json->member("name", ceiling_name(ceiling.kind));
    json->member("sms", ceiling.sms);
    json->member("gbps", ceiling.gbps);
    json->close('}');
  }
  json->close(']');
  json->close('}');
}

void write_tuning(const Tuning& tuning, const char* key, JsonWriter* json) {
  json->open(key, '{');
  for (const auto& [field, value] : tuning.values()) json->member(field->name, value);
  json->close('}');
}

void write_case(const Row& row, JsonWriter* json) {
  json->member("operation", row.operation);
  json->member("layout", row.layout);
  json->member("memory", row.memory);
  json->member("weights", row.weights);
  json->member("tokens", row.shape.tokens);
  json->member("hidden", row.shape.hidden);
  json->member("top_k", row.shape.top_k);
  json->member("routing", routing_name(row.shape.routing));
  json->member("type", type_name(row.shape.format.type));
  json->member("scales", scales_name(row.shape.format.scales));
  json->member("quantize", quantization_name(row.shape.format.quantize));
  json->member("sm_budget", row.sm_budget);
}

void write_row(const Row& row, double ceiling, JsonWriter* json) {
  json->open('{');
  write_case(row, json);
  json->member("sms", row.sms);
  write_tuning(row.tuning, "tuning", json);
  json->member("median_us", row.timing.median_us);
  json->member("min_us", row.timing.min_us);
  json->member("mean_rank_us", row.timing.mean_rank_us);
  if (row.timing.kernel_us > 0) json->member("kernel_us", row.timing.kernel_us);
  if (row.timing.host_us > 0) json->member("host_us", row.timing.host_us);
  json->member("flat_rows_per_rank", row.rows);
  json->member("remote_flat_rows_per_rank", row.remote_rows);
  if (row.moves_rows) {
    json->member("bytes_per_row", row.bytes_per_row);
    json->member("alg_gbps", bandwidth(row.rows, row));
    json->member("link_gbps", bandwidth(row.remote_rows, row));
    if (ceiling > 0) json->member("ceiling_gbps", ceiling);
  }
  json->member("wrong", row.wrong);
  json->close('}');
}

void write_plan(const std::vector<Row>& rows, JsonWriter* json) {
  json->open("plan", '[');
  for (const PlanCheck& check : check_plan(rows)) {
    json->open('{');
    write_case(*check.chosen, json);
    json->member("chosen_us", check.chosen->timing.median_us);
    json->member("best_us", check.best->timing.median_us);
    write_tuning(check.best->tuning, "best", json);
    json->member("behind_percent", check.behind_percent());
    json->close('}');
  }
  json->close(']');
}

}  // namespace

std::string Report::json() const {
  JsonWriter json;
  json.open('{');
  write_machine(setting_, &json);
  json.member("date", utc_time());
  json.member("version", version_text());
  json.member("commit", setting_.options.commit);
  write_config(setting_, &json);
  write_definitions(&json);
  write_ceilings(setting_.ceilings, &json);
  json.open("rows", '[');
  for (const Row& row : rows_) write_row(row, ceiling(row), &json);
  json.close(']');
  write_plan(rows_, &json);
  write_latency(&json);
  json.open("notes", '[');
  for (const std::string& note : notes_) json.value(note);
  json.close(']');
  json.close('}');
  return json.text();
}

}  // namespace perf
