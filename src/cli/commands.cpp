#include <array>

#include "cli/command.h"

namespace keysieve::cli {

// Each is defined in NAME_command.cpp.
std::unique_ptr<Command> make_calibrate_command();
std::unique_ptr<Command> make_chat_command();
std::unique_ptr<Command> make_demo_command();
std::unique_ptr<Command> make_eval_command();
std::unique_ptr<Command> make_generate_command();
std::unique_ptr<Command> make_inspect_command();
std::unique_ptr<Command> make_logits_command();
std::unique_ptr<Command> make_pull_command();
std::unique_ptr<Command> make_report_command();
std::unique_ptr<Command> make_tokenize_command();
std::unique_ptr<Command> make_train_command();

std::span<const CommandEntry> commands() {
  static constexpr std::array table{
      CommandEntry{"demo", "answer questions dense and sparse, side by side", make_demo_command},
      CommandEntry{"generate", "answer one prompt", make_generate_command},
      CommandEntry{"chat", "talk to a model", make_chat_command},
      CommandEntry{"tokenize", "text to token ids and back", make_tokenize_command},
      CommandEntry{"logits", "a model's logits for given tokens, into a .npy file", make_logits_command},
      CommandEntry{"calibrate", "an indexer for a model, from texts, without training",
                   make_calibrate_command},
      CommandEntry{"train", "teach an indexer to pick the keys that attention itself would read",
                   make_train_command},
      CommandEntry{"eval", "what sparse attention costs in quality and saves in work", make_eval_command},
      CommandEntry{"report", "one page of results: plots, needle maps, what each layer read",
                   make_report_command},
      CommandEntry{"pull", "models, indexers and texts from the network", make_pull_command},
      CommandEntry{"inspect", "what a model, an indexer or a file holds", make_inspect_command},
  };
  return table;
}

}  // namespace keysieve::cli
