#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

struct TensorDescription {
  std::string name;
  std::string dtype;            // "f32", "q4_k"; a type this build cannot read by the file's own name
  std::vector<uint64_t> shape;  // outermost first: a weight is [rows, columns]
  uint64_t bytes = 0;
  std::string file;  // of the folder, where there are several
};

struct Description {
  std::string kind;          // "gguf", "safetensors", "hub folder", "indexer folder"
  std::string path;          // what was read
  std::string architecture;  // empty where the file does not say
  uint64_t file_bytes = 0;
  uint64_t parameters = 0;  // elements of all tensors
  std::string
      metadata;  // a JSON object: GGUF metadata (arrays cut to 8 elements), config.json, run_config.json
  std::vector<TensorDescription> tensors;

  // Of an indexer: how LightningIndexer::load reads its files. In sentences.
  struct Understanding {
    std::vector<std::string> found;           // shape, layers, biases or norms
    std::vector<std::string> assumed;         // what the files leave open
    std::vector<std::string> ignored;         // tensors that carry no weights
    std::vector<std::string> not_understood;  // why it would be refused
  };
  std::optional<Understanding> understanding;
};

// What a file, model or indexer holds, without loading weights. `argument` as for LanguageModel::load or
// LightningIndexer::load; `folders` are searched for short names (empty: the default model and indexer
// folders). Throws Error{file} and Error{format}.
Description inspect(std::string_view argument, std::span<const std::filesystem::path> folders = {});

}  // namespace keysieve
