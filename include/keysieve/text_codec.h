#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

struct ChatOptions {
  // The template: empty is the model's own; else a built-in name ("chatml", ...) or Jinja text.
  std::string template_source;
  bool add_generation_prompt = true;  // end with the header of the assistant's turn
  std::optional<bool> thinking;       // `enable_thinking` as the template sees it; nullopt: not passed
};

// A model's text side: byte-level BPE and chat template. Cheap to copy (shares its tables); may be used from
// several threads at once.
class TextCodec {
 public:
  // Reads tokenizer and chat template of a model (see LanguageModel::load for `model` and `folders`) without
  // its weights. Throws Error{file}, Error{format}, Error{unsupported}.
  static TextCodec load(std::string_view model, std::span<const std::filesystem::path> folders = {});

  // Token ids of `text`, nothing added. With `parse_special` the texts of control tokens ("<|im_end|>")
  // become those tokens; without, they are spelled out as plain text.
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const;
  // A prompt without chat template: encode(text, true), after the begin-of-text token where the model asks
  // for it.
  std::vector<int32_t> encode_prompt(std::string_view text) const;
  // The messages through the chat template, as text and as ids (control tokens parsed). Throws
  // Error{unsupported} naming the construct for a template that cannot be run, Error{usage} for an unknown
  // template name and Error{mismatch} for messages the template refuses.
  std::string render_chat(std::span<const Message> messages, const ChatOptions& options = {}) const;
  std::vector<int32_t> encode_chat(std::span<const Message> messages, const ChatOptions& options = {}) const;

  // Bytes of `ids`; characters cut by the end of the list come out as U+FFFD. Control tokens are left out
  // with `skip_special`. Throws Error{usage} for an id outside [0, vocabulary()).
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  size_t vocabulary() const;                       // ids are below this
  const std::vector<int32_t>& end_tokens() const;  // any of these ends an answer; ascending

  // A template argument of the command line: a built-in name or the path of a Jinja file, as a
  // template_source. Throws Error{usage} where it is neither.
  static std::string template_from(std::string_view name_or_path);

  struct Impl;
  explicit TextCodec(std::shared_ptr<const Impl> impl);
  const Impl& impl() const { return *impl_; }

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace keysieve
