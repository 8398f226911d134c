#include "keysieve/text_codec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "formats/gguf.h"
#include "generate/handles.h"
#include "keysieve/error.h"
#include "text/chat_template.h"
#include "text/model_text.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

void add_end_token(std::vector<int32_t>& ends, std::optional<int32_t> id) {
  if (id && *id >= 0 && std::find(ends.begin(), ends.end(), *id) == ends.end()) ends.push_back(*id);
}

// `source` is a GgufFile or a folder.
template <class Source>
TextCodec make_codec(std::string subject, const Source& source, std::vector<int32_t> ends) {
  Tokenizer tokenizer = load_tokenizer(source);
  for (const int32_t id : tokenizer.end_ids()) add_end_token(ends, id);
  std::sort(ends.begin(), ends.end());
  std::optional<ChatTemplate> chat_template;
  std::exception_ptr template_error;
  try {
    chat_template = load_chat_template(source);
  } catch (const Error&) {
    template_error = std::current_exception();
  }
  return TextCodec(std::make_shared<const TextCodec::Impl>(TextCodec::Impl{
      std::move(subject), std::move(tokenizer), std::move(chat_template), template_error, std::move(ends)}));
}

TextCodec load_from_gguf(const fs::path& path) {
  const GgufFile file(path);
  std::vector<int32_t> ends;
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    add_end_token(ends, file.get<int32_t>("tokenizer.ggml." + std::string(key)));
  }
  return make_codec(path.string(), file, std::move(ends));
}

// eos_token_id of config.json or generation_config.json: a number or a list. Other values are left to
// read_config, which refuses them.
void add_end_tokens(std::vector<int32_t>& ends, const fs::path& path) {
  const Json config = read_json_file(path);
  const auto found = config.is_object() ? config.find("eos_token_id") : config.end();
  if (!config.is_object() || found == config.end()) return;
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& id : list) {
    if (id.is_number_unsigned() && id.get<uint64_t>() < (uint64_t{1} << 31))
      add_end_token(ends, id.get<int32_t>());
  }
}

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// A folder with tokenizer.json; the other files are optional.
TextCodec load_from_folder(const fs::path& folder) {
  if (!is_file(folder / "tokenizer.json")) {
    throw Error(ErrorKind::file, folder.string(), "no tokenizer.json", "a tokenizer beside config.json",
                "fetch the whole model with `keysieve pull org/name`");
  }
  std::vector<int32_t> ends;
  for (const char* name : {"config.json", "generation_config.json"}) {
    if (is_file(folder / name)) add_end_tokens(ends, folder / name);
  }
  return make_codec(folder.string(), folder, std::move(ends));
}

bool is_builtin(std::string_view name) {
  const std::vector<std::string_view> names = ChatTemplate::builtin_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

ChatTemplate pick_template(const TextCodec::Impl& impl, const std::string& source) {
  if (is_builtin(source)) return ChatTemplate::builtin(source);
  if (!source.empty()) return ChatTemplate::from_source(source);
  if (impl.template_error) std::rethrow_exception(impl.template_error);
  if (impl.chat_template) return *impl.chat_template;
  throw Error(ErrorKind::unsupported, impl.subject, "no chat template", "one in the model's files",
              "use --raw, or --chat-template chatml or a Jinja file");
}

}  // namespace

TextCodec load_text(const ModelLocation& location) {
  return location.kind == FileKind::gguf ? load_from_gguf(location.path) : load_from_folder(location.path);
}

TextCodec::TextCodec(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

TextCodec TextCodec::load(std::string_view model, std::span<const fs::path> folders) {
  // A folder with a tokenizer and no weights will do here.
  if (is_file(fs::path(model) / "tokenizer.json")) return load_from_folder(model);
  return load_text(locate_model(model, model_search(folders)));
}

std::vector<int32_t> TextCodec::encode(std::string_view text, bool parse_special) const {
  return impl_->tokenizer.encode(text, parse_special);
}

std::vector<int32_t> TextCodec::encode_prompt(std::string_view text) const {
  std::vector<int32_t> ids = encode(text, true);
  const std::optional<int32_t> bos = impl_->tokenizer.bos_id();
  if (impl_->tokenizer.add_bos() && bos && (ids.empty() || ids.front() != *bos))
    ids.insert(ids.begin(), *bos);
  return ids;
}

std::string TextCodec::render_chat(std::span<const Message> messages, const ChatOptions& options) const {
  std::vector<ChatMessage> list;
  list.reserve(messages.size());
  for (const Message& message : messages) list.push_back({message.role, message.content});
  ChatTemplateOptions variables = chat_options_for(impl_->tokenizer);
  variables.add_generation_prompt = options.add_generation_prompt;
  variables.enable_thinking = options.thinking;
  return pick_template(*impl_, options.template_source).render(list, variables);
}

std::vector<int32_t> TextCodec::encode_chat(std::span<const Message> messages,
                                            const ChatOptions& options) const {
  return encode(render_chat(messages, options), true);
}

std::string TextCodec::decode(std::span<const int32_t> ids, bool skip_special) const {
  return impl_->tokenizer.decode(ids, skip_special);
}

size_t TextCodec::vocabulary() const { return static_cast<size_t>(impl_->tokenizer.vocabulary_size()); }

const std::vector<int32_t>& TextCodec::end_tokens() const { return impl_->end_tokens; }

std::string TextCodec::template_from(std::string_view name_or_path) {
  if (is_builtin(name_or_path)) return std::string(name_or_path);
  if (is_file(name_or_path)) return read_text_file(name_or_path);
  throw Error(ErrorKind::usage, "chat template", fmt::format("'{}'", name_or_path),
              fmt::format("{} or a file", fmt::join(ChatTemplate::builtin_names(), ", ")));
}

}  // namespace keysieve
