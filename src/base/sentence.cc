// SPDX-License-Identifier: Apache-2.0
#include "base/sentence.h"

#include <algorithm>
#include <cstring>

namespace hep {

std::string rank_list(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  std::string list = ranks.size() == 1 ? "rank" : "ranks";
  for (size_t begin = 0, end; begin < ranks.size(); begin = end) {
    end = begin + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (end - begin == 2) --end;  // two ranks are no range
    list += (begin > 0 ? ", " : " ") + std::to_string(ranks[begin]);
    if (end - begin > 2) list += "-" + std::to_string(ranks[end - 1]);
  }
  return list;
}

void copy_sentence(const char* sentence, char* out, size_t size) noexcept {
  constexpr char kCut[] = "...";
  const size_t length = std::strlen(sentence);
  const size_t copied = std::min(length, size - 1);
  std::memcpy(out, sentence, copied);
  out[copied] = '\0';
  if (copied < length) std::memcpy(out + size - sizeof kCut, kCut, sizeof kCut);
}

}  // namespace hep
