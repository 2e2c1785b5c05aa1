// SPDX-License-Identifier: Apache-2.0
// Which NICs a rank uses. Pure functions over strings.
#pragma once

#include <string>
#include <vector>

namespace hep {

constexpr int kMaxNics = 4;  // of a rank

// Whom the choice is for. Paths are those of /sys/devices; an empty one is not known.
struct NicSeeker {
  std::vector<std::string>
      device_paths;  // [ranks of the domain] of their GPUs; "": on another host
  int number;        // of the rank in its domain
  int wanted;        // NICs; 0: its share of those that are near
};

// Chooses among NICs with these paths; returns their indices, at least one if there is one. NICs
// are near a GPU if no other has a longer part of its path in common with it. Ranks whose GPUs have
// the same near NICs share them: each takes as many, one after the other. Where the paths tell
// nothing all NICs are near, and a rank takes one.
std::vector<int> choose_nics(const std::vector<std::string>& nic_paths, const NicSeeker& seeker);

// The names for a rank in a text such as "mlx5_0+mlx5_1,mlx5_2+mlx5_3": those of the entry of its
// number in the domain. Entries repeat if there are more ranks.
std::vector<std::string> names_for(const std::string& text, int number);

}  // namespace hep
