// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target without libFuzzer: the files of its corpus, and mutations of them that are the
// same in every run. The input that ends the program is left in a file.
// usage: fuzz_TARGET CORPUS MUTATIONS
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

constexpr size_t kMaxBytes = 4096;
constexpr char kCrashFile[] = "crash.input";

Bytes current;

// Only what a signal handler may do.
void save_current(int signal) {
  const int file = ::open(kCrashFile, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  if (file >= 0 && ::write(file, current.data(), current.size()) >= 0) ::close(file);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void run(const Bytes& input) {
  // A copy of just its size, so that the address sanitizer sees what is read past it.
  current = Bytes(input);
  current.shrink_to_fit();
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

std::vector<Bytes> read_corpus(const char* folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code absent;
  for (const auto& entry : std::filesystem::directory_iterator(folder, absent))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

class Mutator {
 public:
  explicit Mutator(const std::vector<Bytes>& corpus) : corpus_(corpus) {}

  Bytes next() {
    Bytes bytes = corpus_[below(corpus_.size())];
    for (size_t changes = 1 + below(6); changes > 0; --changes) change(&bytes);
    if (bytes.size() > kMaxBytes) bytes.resize(kMaxBytes);
    return bytes;
  }

 private:
  size_t below(size_t end) { return random_() % end; }

  void change(Bytes* bytes) {
    static constexpr uint8_t kInteresting[] = {0, 1, 2, 7, 8, 16, 31, 32, 127, 128, 254, 255};
    const size_t at = below(bytes->size() + 1);
    const size_t count = std::min(1 + below(16), bytes->size() - at);
    const auto begin = bytes->begin() + at;
    switch (below(6)) {
      case 0:
        if (count > 0) *begin ^= 1 << below(8);
        break;
      case 1:
        if (count > 0) *begin = kInteresting[below(std::size(kInteresting))];
        break;
      case 2: bytes->erase(begin, begin + count); break;
      case 3: {
        const Bytes copy(begin, begin + count);
        bytes->insert(bytes->begin() + below(bytes->size() + 1), copy.begin(), copy.end());
        break;
      }
      case 4: bytes->insert(begin, static_cast<uint8_t>(random_())); break;
      default: {
        const Bytes& other = corpus_[below(corpus_.size())];
        const size_t from = below(other.size() + 1);
        bytes->resize(at);
        bytes->insert(bytes->end(), other.begin() + from, other.end());
      }
    }
  }

  const std::vector<Bytes>& corpus_;
  std::mt19937_64 random_{42};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS MUTATIONS\n", argv[0]);
    return 2;
  }
  // The handlers of sanitizers stay: they report, and abort.
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE})
    if (const auto before = ::signal(signal, save_current); before != SIG_DFL)
      ::signal(signal, before);
  const std::vector<Bytes> corpus = read_corpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: no inputs\n", argv[1]);
    return 1;
  }
  for (const Bytes& input : corpus) run(input);
  Mutator mutator(corpus);
  const int mutations = std::atoi(argv[2]);
  for (int i = 0; i < mutations; ++i) run(mutator.next());
  std::printf("%zu inputs and %d mutations\n", corpus.size(), mutations);
  return 0;
}
