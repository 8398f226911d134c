#pragma once

#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/model_location.h"
#include "indexer/indexer.h"
#include "keysieve/indexer.h"
#include "keysieve/model.h"
#include "keysieve/text_codec.h"
#include "model/model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace keysieve {

// What stands behind the public handles. Rooms that need more than the public API (eval) reach it through
// LanguageModel::impl() and its like.

struct TextCodec::Impl {
  std::string subject;  // the model's path, for errors
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  // Why the model's template cannot be run: thrown when it is asked for, since raw prompts and other
  // templates need none of it.
  std::exception_ptr template_error;
  std::vector<int32_t> end_tokens;  // ascending
};

struct LanguageModel::Impl {
  std::shared_ptr<const Model> model;
  std::optional<TextCodec> text;
  std::exception_ptr
      text_error;  // why there is no text side: thrown when it is asked for, since logits need none
  ModelInfo info;
  KvType kv_type;
};

struct LightningIndexer::Impl {
  std::shared_ptr<const Indexer> indexer;
  std::string fingerprint;  // of the model it is bound to
  std::string identity;     // of its weights and of what else its keys depend on, for session files
  IndexerInfo info;
};

// The text side of a model file. Throws as TextCodec::load.
TextCodec load_text(const ModelLocation& location);

// Where models and indexers are looked for; empty `folders` means the defaults.
SearchPaths model_search(std::span<const std::filesystem::path> folders);
SearchPaths indexer_search(std::span<const std::filesystem::path> folders);

}  // namespace keysieve
