// SPDX-License-Identifier: Apache-2.0
// Which memory is registered, and where peers find what lies in it.
#include "memory/registration.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "protocol/location.h"

namespace hep {
namespace {

class RegistrationsTest : public testing::Test {
 protected:
  int add(size_t begin, size_t bytes) {
    int slot = -1;
    const Status found = registrations_.find_slot(&memory_[begin], bytes, &slot);
    EXPECT_TRUE(found.ok()) << found.message();
    registrations_.add(&memory_[begin], bytes, slot);
    return slot;
  }

  // kNotInWindow: none.
  uint64_t place(size_t begin, uint64_t bytes) const {
    uint64_t found = kNotInWindow;
    const bool is_there = registrations_.find_location(&memory_[begin], bytes, &found);
    EXPECT_EQ(is_there, found != kNotInWindow);
    return found;
  }

  std::vector<char> memory_ = std::vector<char>(4096);
  Registrations registrations_;
};

TEST_F(RegistrationsTest, FindMemoryThatLiesInOneRangeAsAWhole) {
  EXPECT_EQ(place(0, 1), kNotInWindow);
  const int first = add(1000, 500), second = add(1500, 500);
  EXPECT_NE(first, second);
  EXPECT_EQ(place(1000, 500), registered_location(first, 0));
  EXPECT_EQ(place(1200, 300), registered_location(first, 200));
  EXPECT_EQ(place(1500, 1), registered_location(second, 0));
  EXPECT_EQ(place(999, 1), kNotInWindow);
  EXPECT_EQ(place(1200, 301), kNotInWindow) << "it ends in the next range";
  EXPECT_EQ(place(1999, 2), kNotInWindow);
  EXPECT_EQ(place(2000, 1), kNotInWindow);
  EXPECT_EQ(place(1999, UINT64_MAX), kNotInWindow);
}

TEST_F(RegistrationsTest, GiveASlotToTheNextRangeWhenItIsFree) {
  const int first = add(0, 16);
  add(16, 16);
  registrations_.remove(&memory_[0]);
  EXPECT_EQ(place(0, 1), kNotInWindow);
  EXPECT_EQ(add(2048, 16), first);
  int slot = -1;
  EXPECT_TRUE(registrations_.registration_of(&memory_[2048], &slot).ok());
  EXPECT_EQ(slot, first);
  EXPECT_FALSE(registrations_.registration_of(&memory_[0], &slot).ok());
}

TEST_F(RegistrationsTest, HaveRoomForANumberOfRanges) {
  for (int i = 0; i < kMaxRegistrations; ++i) EXPECT_EQ(add(16 * i, 16), i);
  int slot = -1;
  EXPECT_EQ(registrations_.find_slot(&memory_[4000], 16, &slot).result(), hepErrorInvalidUsage);
}

// Counts how many of its kind live.
class CountedMapping : public Mapping {
 public:
  explicit CountedMapping(int* alive) : alive_(*alive) { ++alive_; }
  ~CountedMapping() override { --alive_; }
  void* address() const override { return nullptr; }

 private:
  int& alive_;
};

TEST(RegisteredMappings, LiveUntilTheirPeerTakesBackThatSlot) {
  int first = 0, second = 0, other = 0;
  {
    Registrations registrations;
    registrations.keep_mapping(1, 0, std::make_unique<CountedMapping>(&first));
    registrations.keep_mapping(1, 1, std::make_unique<CountedMapping>(&second));
    registrations.keep_mapping(2, 0, std::make_unique<CountedMapping>(&other));
    registrations.unmap(1, -1);
    EXPECT_EQ(first + second + other, 3) << "a peer that takes nothing back";
    registrations.unmap(1, 0);
    EXPECT_EQ(first, 0);
    EXPECT_EQ(second + other, 2);
  }
  EXPECT_EQ(second + other, 0);
}

TEST(Places, SayWhichMemoryAndWhereInIt) {
  const uint64_t in_window = 0x12345678;
  EXPECT_EQ(registration_of(in_window), -1);
  EXPECT_EQ(offset_of(in_window), in_window);
  const uint64_t largest = (uint64_t{1} << kLocationOffsetBits) - 1;
  for (const int slot : {0, 1, kMaxRegistrations - 1}) {
    EXPECT_EQ(registration_of(registered_location(slot, largest)), slot);
    EXPECT_EQ(offset_of(registered_location(slot, largest)), largest);
    EXPECT_NE(registered_location(slot, largest), kNotInWindow);
  }
}

}  // namespace
}  // namespace hep
