// SPDX-License-Identifier: Apache-2.0
// The command line of the benchmarks.
#pragma once

#include <CLI/CLI.hpp>
#include <vector>

#include "options.h"

namespace bench {

// Adds an option that takes a list of words.
template <typename T>
CLI::Option* add_words(CLI::App* app, const char* name, std::vector<T>* field,
                       const Names<T>& names, const char* help) {
  return app->add_option(name, *field, help)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST")
      ->transform(CLI::CheckedTransformer(names).description(""));
}

// Adds the options that both benchmarks take. They write to `options` when the command line is
// parsed.
void add_options(CLI::App* app, Options* options);

}  // namespace bench
