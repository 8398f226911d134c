#include "model/model.h"

#include <fmt/format.h>

#include "keysieve/error.h"

namespace keysieve {

Model::Model(const ModelOptions& options)
    : kernels_(make_kernels(options.kernels)), threads_(options.threads) {}

std::shared_ptr<const Model> Model::load(const ModelLocation& location, const ModelOptions& options) {
  const std::shared_ptr<Model> model(new Model(options));
  model->path_ = location.path;
  if (location.kind == FileKind::gguf) {
    model->gguf_ = std::make_unique<GgufFile>(location.path);
    model->config_ = read_config(*model->gguf_);
    model->weights_ =
        load_weights(*model->gguf_, model->config_, *model->kernels_, model->threads_, options.dequantize);
    model->gguf_->release();  // the header with its vocabulary, 12 MB for 151,936 tokens
  } else if (location.kind == FileKind::hub_folder) {
    model->hub_ = std::make_unique<HubFolder>(location.path);
    model->config_ = read_config(*model->hub_);
    model->weights_ =
        load_weights(*model->hub_, model->config_, *model->kernels_, model->threads_, options.dequantize);
  } else {
    throw Error(ErrorKind::format, location.path.string(),
                fmt::format("a file of kind '{}'", to_string(location.kind)),
                "a .gguf file or a folder with config.json and *.safetensors");
  }
  if (options.yarn != 0 || options.yarn_original != 0) {
    stretch_with_yarn(model->config_, options.yarn, options.yarn_original, location.path.string());
    model->stretched_ = true;
  }
  if (options.context != 0) model->config_.context = options.context;
  model->rope_ = make_rope_table(model->config_.rope);
  return model;
}

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path, const ModelOptions& options) {
  return load(ModelLocation{detect_kind(path), path}, options);
}

std::string Model::fingerprint_text() const { return fmt::format("{:016x}", fingerprint()); }

std::string Model::sequence_identity() const {
  if (!stretched_) return fingerprint_text();
  return fmt::format("{} with YaRN {} of {} positions", fingerprint_text(), config_.rope.factor,
                     config_.rope.original_context);
}

ModelShape Model::shape() const {
  return {.layers = config_.layers,
          .hidden = config_.hidden,
          .heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .head_dim = config_.head_dim,
          .rope_theta = config_.rope.theta,
          .rms_norm_eps = config_.rms_norm_eps,
          .fingerprint = fingerprint_text()};
}

}  // namespace keysieve
