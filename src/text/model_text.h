#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "formats/gguf.h"
#include "formats/hub_folder.h"
#include "formats/model_location.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace keysieve {

// The tokenizer of a model as files hold it: the keys of a GGUF file, or tokenizer.json with the
// tokenizer_config.json beside it. Throws Error{file} where a file is missing, otherwise as the functions in
// tokenizer.h.
Tokenizer load_tokenizer(const GgufFile& file);
Tokenizer load_tokenizer(const HubFolder& folder);
Tokenizer load_tokenizer(const std::filesystem::path& folder);
Tokenizer load_tokenizer(const ModelLocation& location);

// The model's chat template: `tokenizer.chat_template`; chat_template.jinja or tokenizer_config.json. nullopt
// for a model without one (a base model): builtin("chatml") is a fair guess then. Throws as
// ChatTemplate::from_source.
std::optional<ChatTemplate> load_chat_template(const GgufFile& file);
std::optional<ChatTemplate> load_chat_template(const HubFolder& folder);
std::optional<ChatTemplate> load_chat_template(const std::filesystem::path& folder);

// Options with bos_token and eos_token as the tokenizer spells them.
ChatTemplateOptions chat_options_for(const Tokenizer& tokenizer);

}  // namespace keysieve
