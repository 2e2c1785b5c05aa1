// SPDX-License-Identifier: Apache-2.0
#include "json_file.h"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace perf {

JsonFile::JsonFile(const std::string& path, bool append) : path_(path) {
  std::ifstream file;
  if (append) file.open(path);
  if (!file.is_open()) return;
  std::ostringstream content;
  content << file.rdbuf();
  const std::string text = content.str();
  const size_t last = text.find_last_not_of(" \n");
  if (last == std::string::npos) return;
  if (text.front() != '[' || text[last] != ']') {
    throw std::runtime_error("--append: " + path + " is no list of runs");
  }
  held_ = text.substr(0, text.find_last_not_of(" \n", last - 1) + 1);
}

bool JsonFile::write(const std::string& element) const {
  std::ofstream file(path_);
  const bool is_first = held_.empty() || held_ == "[";
  file << (is_first ? "[" : held_ + ",") << '\n' << element << "\n]\n";
  file.close();
  if (!file.good()) std::fprintf(stderr, "hep_perf: cannot write %s\n", path_.c_str());
  return file.good();
}

}  // namespace perf
