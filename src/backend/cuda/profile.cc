// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/profile.h"

namespace hep {

const Profile& profile_of(int capability_major) {
  return capability_major == kBlackwell.capability_major ? kBlackwell : kH200;
}

}  // namespace hep
