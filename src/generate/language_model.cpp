#include <chrono>
#include <utility>

#include "core/memory.h"
#include "formats/gguf.h"
#include "generate/handles.h"
#include "keysieve/error.h"
#include "keysieve/model.h"
#include "keysieve/version.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

uint64_t size_on_disk(const ModelLocation& location) {
  std::error_code failed;
  if (location.kind == FileKind::gguf) return fs::file_size(location.path, failed);
  uint64_t bytes = 0;
  for (fs::directory_iterator at(location.path, failed), end; !failed && at != end; at.increment(failed)) {
    if (at->path().extension() != ".safetensors") continue;
    std::error_code unreadable;
    const uint64_t size = fs::file_size(at->path(), unreadable);
    if (!unreadable) bytes += size;
  }
  return bytes;
}

std::string name_of(const ModelLocation& location) {
  if (location.kind != FileKind::gguf) return location.path.filename().string();
  const GgufFile file(location.path);
  return std::string(file.get<std::string_view>("general.name").value_or(""));
}

ModelInfo describe(const Model& model, const ModelLocation& location, KvType kv_type) {
  const ModelConfig& config = model.config();
  ModelInfo info;
  info.path = location.path.string();
  info.architecture = to_string(config.architecture);
  info.name = name_of(location);
  info.layers = config.layers;
  info.hidden = config.hidden;
  info.heads = config.heads;
  info.kv_heads = config.kv_heads;
  info.head_dim = config.head_dim;
  info.mlp = config.mlp;
  info.vocabulary = config.vocabulary;
  info.context = config.context;
  info.file_bytes = size_on_disk(location);
  info.weights_bytes = model.weights_bytes();
  info.kv_bytes_per_token = config.layers * 2 * config.kv_heads * kv_row_bytes(kv_type, config.head_dim);
  info.kernels = model.kernels().name();
  info.threads = model.threads().count();
  return info;
}

}  // namespace

std::string version() { return "0.1.0"; }

std::vector<std::string> kernel_families() {
  std::vector<std::string> names;
  for (const std::string_view name : available_kernels()) names.emplace_back(name);
  return names;
}

LanguageModel::LanguageModel(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;
LanguageModel& LanguageModel::operator=(LanguageModel&&) noexcept = default;
LanguageModel::~LanguageModel() = default;

LanguageModel LanguageModel::load(std::string_view model, const LoadOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelLocation location = locate_model(model, model_search(options.folders));
  ModelOptions internal;
  internal.kernels = options.kernels;
  internal.threads = options.threads;
  internal.context = options.context;
  internal.dequantize = options.dequantize;
  internal.yarn = options.yarn;
  internal.yarn_original = options.yarn_original;
  std::shared_ptr<const Model> loaded = Model::load(location, internal);
  std::optional<TextCodec> text;
  std::exception_ptr text_error;
  try {
    text = load_text(location);
    text->impl().tokenizer.check_fits(static_cast<int64_t>(loaded->config().vocabulary),
                                      location.path.string());
  } catch (const Error&) {
    text.reset();
    text_error = std::current_exception();
  }
  return_freed_memory();
  KvType kv_type = loaded->default_kv_type();
  if (options.kv == KvPrecision::f16) kv_type = KvType::f16;
  if (options.kv == KvPrecision::f32) kv_type = KvType::f32;
  if (options.kv == KvPrecision::i8) kv_type = KvType::i8;
  ModelInfo info = describe(*loaded, location, kv_type);
  info.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return LanguageModel(std::make_shared<const Impl>(
      Impl{std::move(loaded), std::move(text), text_error, std::move(info), kv_type}));
}

const ModelInfo& LanguageModel::info() const { return impl_->info; }

const TextCodec& LanguageModel::text() const {
  if (!impl_->text) std::rethrow_exception(impl_->text_error);
  return *impl_->text;
}

}  // namespace keysieve
