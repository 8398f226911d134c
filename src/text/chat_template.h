#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// The variables that transformers passes to a template besides the messages.
struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  std::optional<bool> enable_thinking;   // undefined in the template when not set
  std::optional<std::string> bos_token;  // likewise
  std::optional<std::string> eos_token;
  std::optional<std::time_t> now;  // what strftime_now sees; the clock when not set
  // Further variables by name; they replace those above. Key order is kept: `tools | tojson` prints it.
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();
};

// A chat template as models carry it: Jinja with trim_blocks and lstrip_blocks on, the way transformers
// renders it. Immutable and cheap to copy. `tools` and `documents` are none unless given in `extra`.
class ChatTemplate {
 public:
  // `subject` names the source in errors. Throws Error{format} for a syntax error and Error{unsupported} for
  // a construct the evaluator lacks; both name the line and the way out.
  static ChatTemplate from_source(std::string_view source, std::string_view subject = "chat template");
  // Throws Error{usage} for a name not among builtin_names().
  static ChatTemplate builtin(std::string_view name);
  static std::vector<std::string_view> builtin_names();

  // The template of a tokenizer_config.json: a string, or the "default" one of a list. Throws Error{format}.
  static std::optional<std::string> source_from_config(std::string_view config_json,
                                                       std::string_view subject);

  // Throws Error{mismatch} with the template's own words where it calls raise_exception, Error{format} where
  // an operation fails (adding a number to a string), Error{unsupported} for a missing filter, test or
  // function, and Error{resource} when it exceeds its limits on steps, nesting and output.
  std::string render(std::span<const ChatMessage> messages, const ChatTemplateOptions& options) const;
  // Messages with further fields, such as tool calls: a list of objects.
  std::string render(const nlohmann::ordered_json& messages, const ChatTemplateOptions& options) const;

  const std::string& source() const;

 private:
  struct Impl;
  explicit ChatTemplate(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace keysieve
