#include "text/model_text.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>
#include <vector>

#include "core/file_io.h"
#include "keysieve/error.h"

namespace keysieve {

namespace {

// The largest tokenizer.json of the Hub has 35 MB.
constexpr size_t kLargestTokenizerFile = size_t{256} << 20;

std::vector<std::string> strings_of(const GgufFile& file, std::string_view key) {
  const auto views = file.require<std::vector<std::string_view>>(key);
  return {views.begin(), views.end()};
}

std::string read_if_present(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored) ? read_text_file(path, kLargestTokenizerFile) : std::string();
}

}  // namespace

Tokenizer load_tokenizer(const GgufFile& file) {
  GgufVocabulary vocabulary;
  vocabulary.model = file.require<std::string_view>("tokenizer.ggml.model");
  vocabulary.pre = file.get<std::string_view>("tokenizer.ggml.pre").value_or("");
  // Other models store other parts: they are refused by name before they are asked for these.
  if (vocabulary.model == "gpt2" || vocabulary.model == "llama") {
    vocabulary.tokens = strings_of(file, "tokenizer.ggml.tokens");
    if (vocabulary.model == "gpt2") vocabulary.merges = strings_of(file, "tokenizer.ggml.merges");
    if (vocabulary.model == "llama") {
      vocabulary.scores = file.require<std::vector<float>>("tokenizer.ggml.scores");
    }
    vocabulary.token_types =
        file.get<std::vector<int32_t>>("tokenizer.ggml.token_type").value_or(std::vector<int32_t>{});
  }
  vocabulary.bos_id = file.get<int32_t>("tokenizer.ggml.bos_token_id");
  vocabulary.eos_id = file.get<int32_t>("tokenizer.ggml.eos_token_id");
  vocabulary.unknown_id = file.get<int32_t>("tokenizer.ggml.unknown_token_id");
  vocabulary.add_bos = file.get<bool>("tokenizer.ggml.add_bos_token");
  vocabulary.add_space_prefix = file.get<bool>("tokenizer.ggml.add_space_prefix");
  return Tokenizer(tokenizer_spec_from_gguf(std::move(vocabulary), file.subject()));
}

Tokenizer load_tokenizer(const HubFolder& folder) { return load_tokenizer(folder.folder()); }

Tokenizer load_tokenizer(const ModelLocation& location) {
  return location.kind == FileKind::gguf ? load_tokenizer(GgufFile(location.path))
                                         : load_tokenizer(location.path);
}

Tokenizer load_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  const std::string json = read_text_file(path, kLargestTokenizerFile);
  const std::string config = read_if_present(folder / "tokenizer_config.json");
  return Tokenizer(tokenizer_spec_from_json(json, config, path.string()));
}

std::optional<ChatTemplate> load_chat_template(const GgufFile& file) {
  const auto source = file.get<std::string_view>("tokenizer.chat_template");
  if (!source || source->empty()) return std::nullopt;
  return ChatTemplate::from_source(*source, fmt::format("chat template of {}", file.subject()));
}

std::optional<ChatTemplate> load_chat_template(const HubFolder& folder) {
  return load_chat_template(folder.folder());
}

std::optional<ChatTemplate> load_chat_template(const std::filesystem::path& folder) {
  const std::filesystem::path jinja = folder / "chat_template.jinja";
  if (const std::string source = read_if_present(jinja); !source.empty()) {
    return ChatTemplate::from_source(source, jinja.string());
  }
  const std::filesystem::path config = folder / "tokenizer_config.json";
  const std::string json = read_if_present(config);
  if (json.empty()) return std::nullopt;
  const auto source = ChatTemplate::source_from_config(json, config.string());
  if (!source || source->empty()) return std::nullopt;
  return ChatTemplate::from_source(*source, fmt::format("chat template of {}", config.string()));
}

ChatTemplateOptions chat_options_for(const Tokenizer& tokenizer) {
  ChatTemplateOptions options;
  if (const auto id = tokenizer.bos_id()) options.bos_token = tokenizer.token_text(*id);
  if (const auto id = tokenizer.eos_id()) options.eos_token = tokenizer.token_text(*id);
  return options;
}

}  // namespace keysieve
