// SPDX-License-Identifier: Apache-2.0
// Which NICs ranks take on machines whose PCI trees were recorded.
#include "network/nic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

namespace hep {
namespace {

using Paths = std::vector<std::string>;
using Choice = std::vector<int>;

Choice choose(const Paths& nics, const Paths& devices, int number, int wanted = 0) {
  return choose_nics(nics, {devices, number, wanted});
}

// DGX H100: each GPU has a NIC behind the same PCIe switch; two more NICs are for storage.
const Paths kDgxDevices = {
    "/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0/0000:19:00.0/"
    "0000:1b:00.0",
    "/sys/devices/pci0000:37/0000:37:01.0/0000:38:00.0/0000:39:00.0/0000:3a:00.0/0000:3b:00.0/"
    "0000:43:00.0",
    "/sys/devices/pci0000:48/0000:48:01.0/0000:49:00.0/0000:4a:00.0/0000:4b:00.0/0000:4c:00.0/"
    "0000:52:00.0",
    "/sys/devices/pci0000:59/0000:59:01.0/0000:5a:00.0/0000:5b:00.0/0000:5c:00.0/0000:5d:00.0/"
    "0000:61:00.0",
    "/sys/devices/pci0000:97/0000:97:01.0/0000:98:00.0/0000:99:00.0/0000:9a:00.0/0000:9b:00.0/"
    "0000:9d:00.0",
    "/sys/devices/pci0000:b7/0000:b7:01.0/0000:b8:00.0/0000:b9:00.0/0000:ba:00.0/0000:bb:00.0/"
    "0000:c3:00.0",
    "/sys/devices/pci0000:c7/0000:c7:01.0/0000:c8:00.0/0000:c9:00.0/0000:ca:00.0/0000:cb:00.0/"
    "0000:d1:00.0",
    "/sys/devices/pci0000:d7/0000:d7:01.0/0000:d8:00.0/0000:d9:00.0/0000:da:00.0/0000:db:00.0/"
    "0000:df:00.0"};
const Paths kDgxNics = {
    "/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:1a:00.0",
    "/sys/devices/pci0000:26/0000:26:01.0/0000:29:00.0",  // storage
    "/sys/devices/pci0000:37/0000:37:01.0/0000:38:00.0/0000:39:02.0/0000:3c:00.0",
    "/sys/devices/pci0000:48/0000:48:01.0/0000:49:00.0/0000:4a:02.0/0000:4d:00.0",
    "/sys/devices/pci0000:59/0000:59:01.0/0000:5a:00.0/0000:5b:02.0/0000:5e:00.0",
    "/sys/devices/pci0000:97/0000:97:01.0/0000:98:00.0/0000:99:02.0/0000:9c:00.0",
    "/sys/devices/pci0000:a7/0000:a7:01.0/0000:aa:00.0",  // storage
    "/sys/devices/pci0000:b7/0000:b7:01.0/0000:b8:00.0/0000:b9:02.0/0000:bc:00.0",
    "/sys/devices/pci0000:c7/0000:c7:01.0/0000:c8:00.0/0000:c9:02.0/0000:cc:00.0",
    "/sys/devices/pci0000:d7/0000:d7:01.0/0000:d8:00.0/0000:d9:02.0/0000:dc:00.0"};

TEST(NicChoice, OnADgxIsTheNicBehindTheSwitchOfTheGpu) {
  const std::vector<Choice> expected = {{0}, {2}, {3}, {4}, {5}, {7}, {8}, {9}};
  for (int number = 0; number < 8; ++number)
    EXPECT_EQ(choose(kDgxNics, kDgxDevices, number), expected[number]) << number;
}

// p5en: two NICs and a GPU behind each switch.
Paths p5en_devices() {
  Paths paths;
  for (const char* bus : {"53", "64", "75", "86", "97", "a8", "b9", "ca"})
    paths.push_back("/sys/devices/pci0000:" + std::string(bus) + "/0000:" + bus +
                    ":00.0/0000:" + bus + ":02.0/gpu");
  return paths;
}
Paths p5en_nics() {
  Paths paths;
  for (const char* bus : {"53", "64", "75", "86", "97", "a8", "b9", "ca"})
    for (const char* port : {"03.0", "04.0"})
      paths.push_back("/sys/devices/pci0000:" + std::string(bus) + "/0000:" + bus +
                      ":00.0/0000:" + bus + ":" + port + "/nic");
  return paths;
}

TEST(NicChoice, OnAP5enIsBothNicsOfTheGpu) {
  for (int number = 0; number < 8; ++number)
    EXPECT_EQ(choose(p5en_nics(), p5en_devices(), number), (Choice{2 * number, 2 * number + 1}));
}

TEST(NicChoice, IsAsManyAsWantedOfTheNearOnes) {
  EXPECT_EQ(choose(p5en_nics(), p5en_devices(), 3, 1), (Choice{6}));
  EXPECT_EQ(choose(p5en_nics(), p5en_devices(), 3, 2), (Choice{6, 7}));
  EXPECT_EQ(choose(p5en_nics(), p5en_devices(), 3, 4), (Choice{6, 7}));
}

// Four GPUs and two NICs behind one switch, as on some machines of eight GPUs.
TEST(NicChoice, TakesTurnsWhereGpusShareNics) {
  const std::string below = "/sys/devices/pci0000:10/0000:10:00.0/";
  const Paths devices = {below + "g0", below + "g1", below + "g2", below + "g3"};
  const Paths nics = {below + "n0", below + "n1", "/sys/devices/pci0000:20/n2"};
  const std::vector<Choice> expected = {{0}, {1}, {0}, {1}};
  for (int number = 0; number < 4; ++number)
    EXPECT_EQ(choose(nics, devices, number), expected[number]) << number;
}

// A domain of two hosts: the ranks of the other host have none of these NICs.
TEST(NicChoice, LeavesOutTheRanksOfOtherHosts) {
  const std::string below = "/sys/devices/pci0000:10/0000:10:00.0/";
  const Paths devices = {"", "", below + "g0", below + "g1"};
  const Paths nics = {below + "n0", below + "n1", below + "n2", below + "n3"};
  EXPECT_EQ(choose(nics, devices, 2), (Choice{0, 1}));
  EXPECT_EQ(choose(nics, devices, 3), (Choice{2, 3}));
}

// A virtual machine whose NICs have no PCI address, and ranks without a GPU.
TEST(NicChoice, WithoutPathsIsByNumber) {
  const Paths unknown = {"", "", ""};
  const Paths known = {"/sys/devices/pci0000:00/0000:00:03.0/virtio2/net/eth0",
                       "/sys/devices/pci0000:00/0000:00:04.0/virtio3/net/eth1", ""};
  for (int number = 0; number < 7; ++number) {
    EXPECT_EQ(choose(unknown, {}, number), (Choice{number % 3}));
    EXPECT_EQ(choose(known, {}, number), (Choice{number % 3}));
    EXPECT_EQ(choose(unknown, Paths(8, "/sys/devices/pci0000:00/0000:00:05.0"), number),
              (Choice{number % 3}));
  }
  EXPECT_EQ(choose(unknown, {}, 1, 2), (Choice{2, 0}));
}

TEST(NicChoice, IsAtMostFour) {
  const std::string below = "/sys/devices/pci0000:10/";
  EXPECT_EQ(choose(Paths(8, below + "nic"), {below + "gpu"}, 0), (Choice{0, 1, 2, 3}));
}

TEST(NicChoice, OfNoneIsNone) { EXPECT_EQ(choose({}, kDgxDevices, 0), Choice{}); }

// Folders count as wholes: 0000:1 is not half of 0000:10.
TEST(NicChoice, ComparesFoldersNotLetters) {
  EXPECT_EQ(choose({"/sys/devices/pci0000:1/nic", "/sys/devices/pci0000:2/nic"},
                   {"/sys/devices/pci0000:2/gpu"}, 0),
            (Choice{1}));
  EXPECT_EQ(choose({"/sys/devices/pci0000:10/nic", "/sys/devices/pci0000:1/nic"},
                   {"/sys/devices/pci0000:1/gpu"}, 0),
            (Choice{1}));
}

TEST(NicNames, AreThoseOfTheNumberInTheDomain) {
  const std::string text = "mlx5_0+mlx5_1,mlx5_2";
  EXPECT_EQ(names_for(text, 0), (Paths{"mlx5_0", "mlx5_1"}));
  EXPECT_EQ(names_for(text, 1), (Paths{"mlx5_2"}));
  EXPECT_EQ(names_for(text, 2), names_for(text, 0));
  EXPECT_EQ(names_for("eth0", 5), (Paths{"eth0"}));
  EXPECT_EQ(names_for("", 0), Paths{});
}

}  // namespace
}  // namespace hep
