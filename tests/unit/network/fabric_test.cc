// SPDX-License-Identifier: Apache-2.0
// Transports over libfabric, on the loopback interface.
#include "network/fabric.h"

#include <gtest/gtest.h>

#include <signal.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "network/proxy.h"
#include "unit/network/mesh.h"

namespace hep {
namespace {

constexpr int kPollUs = 50;

FabricRequest request_of(const std::string& provider) {
  return {provider, "", "lo", {{}, 0, 0}, 3};
}

// Every libfabric has it, in one form or another.
constexpr const char* kAnyProvider = "tcp";

// Why there is no such provider here, or "". *form is the one that serves.
std::string reason_to_skip(const std::string& wanted, std::string* form) {
  std::vector<std::unique_ptr<Transport>> nics;
  char memory[64];
  const Status opened = open_fabric(request_of(wanted), {{memory, 0, sizeof memory}}, form, &nics);
  if (opened.result() == hepErrorUnsupported) return opened.message();
  EXPECT_TRUE(opened.ok()) << opened.message();
  return "";
}

std::string reason_to_skip() {
  std::string form;
  return reason_to_skip(kAnyProvider, &form);
}

class Fabric : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    std::string form;
    const std::string reason = reason_to_skip(GetParam(), &form);
    if (!reason.empty()) GTEST_SKIP() << reason;
    if (form != GetParam()) GTEST_SKIP() << GetParam() << " serves as " << form;
  }

  OpenNic open_nic() {
    return [](const std::vector<NetworkSection>& sections) {
      std::vector<std::unique_ptr<Transport>> nics;
      std::string provider;
      const Status opened = open_fabric(request_of(GetParam()), sections, &provider, &nics);
      EXPECT_TRUE(opened.ok()) << opened.message();
      return std::move(nics.at(0));
    };
  }
};

TEST_P(Fabric, BringsTheSameBytes) {
  MeshSizes sizes;
  sizes.num_lanes = 2;
  sizes.num_chunks = 400;
  sizes.chunk = 1024;
  Mesh mesh(sizes, open_nic());
  std::vector<std::unique_ptr<Proxy>> proxies;
  for (int d = 0; d < mesh.size(); ++d) {
    proxies.push_back(std::make_unique<Proxy>(mesh.transports(d), mesh.rank(d).plan(),
                                              mesh.rank(d).listener(), kPollUs));
    ASSERT_TRUE(proxies[d]->start().ok());
  }
  for (int d = 0; d < mesh.size(); ++d)
    while (!mesh.rank(d).is_done() && mesh.rank(d).listener().count() == 0) {
      for (int other = 0; other < mesh.size(); ++other) mesh.rank(other).work();
      ::sched_yield();
    }
  for (int d = 0; d < mesh.size(); ++d) {
    EXPECT_EQ(mesh.rank(d).num_wrong(), 0);
    EXPECT_EQ(mesh.rank(d).listener().count(), 0) << mesh.rank(d).listener().cause();
  }
}

// Providers tell of it, or refuse writes for ever. Links between processes tell of it anyhow.
TEST_P(Fabric, GoesOnWithoutAPeerThatIsGone) {
  Mesh mesh({}, open_nic());
  std::vector<std::unique_ptr<ProxyEngine>> engines;
  for (int d = 0; d < mesh.size(); ++d)
    engines.push_back(std::make_unique<ProxyEngine>(mesh.transports(d), mesh.rank(d).plan(),
                                                    mesh.rank(d).listener()));
  const auto send = [&](int other, uint64_t expected) {
    mesh.rank(0).push_rows(other, 1);
    while (load(mesh.rank(0).inbox(0, other).completed_of(WriteKind::kRows)) < expected)
      for (int d = 0; d < mesh.size(); ++d)
        if (engines[d]) engines[d]->step();
  };
  send(1, 1);
  engines[1].reset();
  mesh.close(1);
  mesh.rank(0).push_rows(1, 2);
  for (int i = 0; i < 100; ++i) engines[0]->step();
  engines[0]->peer_gone(1);
  send(1, 4);
  send(2, 1);
  EXPECT_EQ(load(mesh.rank(2).inbox(0, 0).arrived_of(WriteKind::kRows)), 1u);
  EXPECT_EQ(mesh.rank(0).listener().count(), 0) << mesh.rank(0).listener().cause();
}

// ------------------------------------------------------------------------------------------ errors

class FabricErrors : public ::testing::Test {
 protected:
  // Opens what is expected to fail.
  void open(const FabricRequest& request) {
    char memory[64];
    std::vector<std::unique_ptr<Transport>> nics;
    std::string provider;
    status_ = open_fabric(request, {{memory, 0, sizeof memory}}, &provider, &nics);
    if (status_.message().find("built without libfabric") != std::string::npos)
      GTEST_SKIP() << status_.message();
  }

  void expect(hepResult_t result, std::initializer_list<const char*> words) const {
    if (IsSkipped()) return;
    EXPECT_EQ(status_.result(), result) << status_.message();
    for (const char* word : words)
      EXPECT_NE(status_.message().find(word), std::string::npos) << status_.message();
  }

  Status status_;
};

TEST_F(FabricErrors, AMissingLibraryIsNamed) {
  open({kAnyProvider, "/no/such/libfabric.so", "", {{}, 0, 0}, 2});
  expect(hepErrorUnsupported, {"needs libfabric", "/no/such/libfabric.so", "HEP_NETWORK_LIBRARY"});
}

TEST_F(FabricErrors, ALibraryThatIsAnotherIsTooOld) {
  open({kAnyProvider, "libm.so.6", "", {{}, 0, 0}, 2});
  expect(hepErrorUnsupported, {"libm.so.6 is too old", "fi_version", "FABRIC_1.0"});
}

TEST_F(FabricErrors, AnOldLibraryIsTooOld) {
  const char* const old = std::getenv("HEP_TEST_OLD_LIBFABRIC");
  if (old == nullptr) GTEST_SKIP() << "HEP_TEST_OLD_LIBFABRIC does not name the old library";
  open({kAnyProvider, old, "", {{}, 0, 0}, 2});
  expect(hepErrorUnsupported, {"libfabric 1.11", "too old", "1.17 or newer is needed"});
}

// What these need is in every libfabric, which may be missing.
TEST_F(FabricErrors, AProviderThatIsNotThereIsNamed) {
  if (const std::string reason = reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
  open({"nosuch", "", "", {{}, 0, 0}, 2});
  expect(hepErrorUnsupported, {"libfabric", "no provider nosuch that serves here"});
}

TEST_F(FabricErrors, AnInterfaceThatIsNotThereIsNamedWithThoseThatAre) {
  if (const std::string reason = reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
  open({kAnyProvider, "", "lo,eth77", {{}, 1, 0}, 2});
  expect(hepErrorInvalidArgument, {"HEP_NETWORK_INTERFACE names eth77", "has only", "lo"});
  open({kAnyProvider, "", "lo+lo+lo+lo+lo", {{}, 0, 0}, 2});
  expect(hepErrorInvalidArgument, {"names 5 NICs", "at most 4"});
}

// Without a name the provider is one that is there, and the interface one that leads elsewhere if
// there is one.
TEST_F(FabricErrors, NothingNamedIsTheFirstThatServes) {
  testing::internal::CaptureStderr();
  char memory[64];
  std::vector<std::unique_ptr<Transport>> nics;
  std::string provider;
  status_ =
      open_fabric({"", "", "", {{}, 0, 0}, 2}, {{memory, 0, sizeof memory}}, &provider, &nics);
  const std::string log = testing::internal::GetCapturedStderr();
  if (status_.result() == hepErrorUnsupported) GTEST_SKIP() << status_.message();
  EXPECT_TRUE(status_.ok()) << status_.message();
  EXPECT_FALSE(nics.empty());
  const bool over_tcp = provider != "efa" && provider != "verbs;ofi_rxm";
  EXPECT_EQ(log.find("is TCP (provider " + provider) != std::string::npos, over_tcp) << log;
}

// What a signal does. The C library sets a flag of its own whenever a disposition is written.
std::vector<struct sigaction> read_dispositions() {
  constexpr int kRestorerFlag = 0x04000000;
  std::vector<struct sigaction> all(NSIG);
  for (int number = 1; number < NSIG; ++number) {
    ::sigaction(number, nullptr, &all[number]);
    all[number].sa_flags &= ~kRestorerFlag;
  }
  return all;
}

// Opens the library; returns the number of a signal whose disposition is not that of before, or 0.
int find_changed_signal() {
  ::signal(SIGTERM, [](int) {});
  ::signal(SIGINT, SIG_IGN);
  const std::vector<struct sigaction> before = read_dispositions();
  char memory[64];
  std::vector<std::unique_ptr<Transport>> nics;
  std::string provider;
  const Status opened =
      open_fabric(request_of(kAnyProvider), {{memory, 0, sizeof memory}}, &provider, &nics);
  const std::vector<struct sigaction> after = read_dispositions();
  for (int number = 1; number < NSIG; ++number)
    if (before[number].sa_handler != after[number].sa_handler ||
        before[number].sa_flags != after[number].sa_flags)
      return number;
  return opened.ok() || opened.result() == hepErrorUnsupported ? 0 : NSIG;
}

// In a process of its own, which has not opened the library before.
TEST(FabricDeathTest, SignalDispositionsAreThoseOfBefore) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(std::_Exit(find_changed_signal()), ::testing::ExitedWithCode(0), "");
  if (const std::string reason = reason_to_skip(); !reason.empty()) GTEST_SKIP() << reason;
}

INSTANTIATE_TEST_SUITE_P(OverTcp, Fabric, ::testing::Values("net", "tcp;ofi_rxm", "tcp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == ';') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace hep
