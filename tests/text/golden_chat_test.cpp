// The recorded renderings of transformers, for the templates of three real models.

#include <gtest/gtest.h>

#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "formats/gguf.h"
#include "support/golden.h"
#include "text/chat_template.h"
#include "text/model_text.h"

namespace keysieve {
namespace {

using testing::golden_dir;
using testing::models_dir;

std::optional<ChatTemplate> golden_template(const std::string& name) {
  if (name == "qwen3") return load_chat_template(*golden_dir() / ".." / "tokenizer" / "qwen3");
  if (!models_dir()) return std::nullopt;
  const auto path = name == "smollm2-gguf"
                        ? *models_dir() / "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
                        : *models_dir() / "qwen2.5-coder-0.5b/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return load_chat_template(GgufFile(path));
}

class GoldenChat : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenChat, RendersEveryConversation) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  const std::optional<ChatTemplate> chat = golden_template(GetParam());
  if (!chat) GTEST_SKIP() << "the model of this template is not here";
  std::ifstream file(*golden_dir() / "chat" / "chat.jsonl");
  size_t checked = 0;
  for (std::string text; std::getline(file, text);) {
    const Json line = parse_json(text, "chat.jsonl");
    if (line["template"] != GetParam()) continue;
    std::vector<ChatMessage> messages;
    for (const Json& message : line["messages"]) messages.push_back({message["role"], message["content"]});
    ChatTemplateOptions options;
    options.add_generation_prompt = line["add_generation_prompt"].get<bool>();
    if (!line["enable_thinking"].is_null()) options.enable_thinking = line["enable_thinking"].get<bool>();
    EXPECT_EQ(chat->render(messages, options), line["text"].get<std::string>());
    ++checked;
  }
  EXPECT_GE(checked, 20u);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenChat, ::testing::Values("qwen3", "smollm2-gguf", "qwen2.5-coder-gguf"));

}  // namespace
}  // namespace keysieve
