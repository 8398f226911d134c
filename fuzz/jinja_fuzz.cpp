// Any bytes as a chat template, rendered with a small conversation.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "keysieve/error.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  try {
    const auto chat = keysieve::ChatTemplate::from_source(source, "fuzz");
    const std::vector<keysieve::ChatMessage> messages = {{"system", "Be brief."},
                                                         {"user", "Hi\xF0\x9F\x99\x82"}};
    keysieve::ChatTemplateOptions options;
    options.enable_thinking = false;
    options.bos_token = "<s>";
    options.now = 0;
    chat.render(messages, options);
  } catch (const keysieve::Error&) {
  }
  return 0;
}
