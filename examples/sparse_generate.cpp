// Loads a model, attaches an indexer with a budget, answers two prompts.
//
//   build/examples/sparse_generate [MODEL [INDEXER [BUDGET]]]
//
// MODEL and INDEXER are what the command line takes: paths, Hub ids or short names. Without arguments:
// smollm2-135m, the indexer that ships for it, and 512 positions for each query.

#include <charconv>
#include <cstddef>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>

#include "keysieve/keysieve.h"

namespace {

void answer(const keysieve::LanguageModel& model, keysieve::Session& session, const std::string& question) {
  std::cout << "> " << question << '\n';
  keysieve::GenerateOptions options;
  options.max_tokens = 64;
  const keysieve::Message message{"user", question};
  const keysieve::GenerateResult result =
      session.generate(model.text().encode_chat({&message, 1}), options, [](std::string_view piece) {
        std::cout << piece << std::flush;
        return true;  // false would stop the answer
      });
  const keysieve::PhaseStatistics& decode = result.statistics.decode;
  std::cout << "\n(" << decode.tokens_per_second() << " tokens/s, " << decode.positions_read
            << " positions read per query)\n\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const keysieve::LanguageModel model = keysieve::LanguageModel::load(argc > 1 ? argv[1] : "smollm2-135m");
    keysieve::SessionOptions options;
    options.indexer = keysieve::LightningIndexer::load(argc > 2 ? argv[2] : "auto", model);
    options.budget = 512;
    if (argc > 3) {
      const std::string_view text = argv[3];
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), options.budget);
      if (error != std::errc() || end != text.data() + text.size()) {
        throw keysieve::Error(keysieve::ErrorKind::usage, "budget", text, "a whole number");
      }
    }
    keysieve::Session session(model, options);
    answer(model, session, "What is photosynthesis? Answer in one sentence.");
    // The next prompt has nothing to do with the last one: forget it, and give its memory back.
    session.clear();
    answer(model, session, "What is the opposite of hot?");
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "sparse_generate: " << error.what() << '\n';
    return 1;
  }
}
