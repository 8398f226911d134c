// Any bytes as a tokenizer.json; what loads must encode and decode without incident.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "keysieve/error.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    const keysieve::Tokenizer tokenizer(keysieve::tokenizer_spec_from_json(input, {}, "fuzz"));
    const std::string_view text = "Hello, world 123\n\tna\xC3\xAFve <|im_start|> \xF0\x9F\x99\x82\xFF";
    for (const bool parse_special : {false, true}) {
      const std::vector<int32_t> ids = tokenizer.encode(text, parse_special);
      tokenizer.decode(ids, parse_special);
    }
    tokenizer.encode(input.substr(0, 4096), true);
  } catch (const keysieve::Error&) {
  }
  return 0;
}
