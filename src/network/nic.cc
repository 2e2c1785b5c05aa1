// SPDX-License-Identifier: Apache-2.0
#include "network/nic.h"

#include <algorithm>
#include <cstddef>

namespace hep {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

// Folders that two paths have in common; 0 if one is not known.
int common_folders(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return 0;
  const std::vector<std::string> left = split(a, '/'), right = split(b, '/');
  const size_t shorter = std::min(left.size(), right.size());
  return static_cast<int>(std::mismatch(left.begin(), left.begin() + shorter, right.begin()).first -
                          left.begin());
}

std::vector<int> near_nics(const std::vector<std::string>& nic_paths, const std::string& device) {
  int most = 0;
  for (const std::string& path : nic_paths) most = std::max(most, common_folders(path, device));
  std::vector<int> near;
  for (size_t i = 0; i < nic_paths.size(); ++i)
    if (common_folders(nic_paths[i], device) == most) near.push_back(static_cast<int>(i));
  return near;
}

}  // namespace

std::vector<int> choose_nics(const std::vector<std::string>& nic_paths, const NicSeeker& seeker) {
  const auto& devices = seeker.device_paths;
  const bool is_known = seeker.number < static_cast<int>(devices.size());
  const std::vector<int> near =
      near_nics(nic_paths, is_known ? devices[seeker.number] : std::string());
  if (near.empty()) return {};
  const int num_near = static_cast<int>(near.size());

  int place = seeker.number, share = 1;
  if (is_known && !devices[seeker.number].empty()) {
    int sharers = 0;
    for (int other = 0; other < static_cast<int>(devices.size()); ++other) {
      if (devices[other].empty() || near_nics(nic_paths, devices[other]) != near) continue;
      if (other == seeker.number) place = sharers;
      ++sharers;
    }
    share = std::max(1, num_near / sharers);
  }
  const int count = std::min({seeker.wanted > 0 ? seeker.wanted : share, num_near, kMaxNics});
  std::vector<int> chosen;
  for (int i = 0; i < count; ++i) chosen.push_back(near[(place * count + i) % num_near]);
  return chosen;
}

std::vector<std::string> names_for(const std::string& text, int number) {
  if (text.empty()) return {};
  const std::vector<std::string> entries = split(text, ',');
  return split(entries[number % entries.size()], '+');
}

}  // namespace hep
