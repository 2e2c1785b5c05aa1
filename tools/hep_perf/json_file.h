// SPDX-License-Identifier: Apache-2.0
// The file that collects runs: a JSON array, to which a later run is added at the end.
#pragma once

#include <string>

namespace perf {

class JsonFile {
 public:
  // With `append` takes over what the file holds, if there is one. Throws std::runtime_error if that
  // is no such file.
  JsonFile(const std::string& path, bool append);

  // Writes what it held and one more element. Says on standard error why it cannot.
  bool write(const std::string& element) const;

 private:
  std::string path_, held_;  // `held_` without the closing bracket
};

}  // namespace perf
