// Tokenizers made in the test: every rule on its own, and files that mean harm.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "core/json.h"
#include "keysieve/error.h"
#include "text/bpe.h"
#include "text/splitter.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

// Token of a byte: its id is the byte's value.
std::string byte_token(int byte) {
  std::string token;
  append_utf8(token, byte_alphabet_character(static_cast<uint8_t>(byte)));
  return token;
}

// 256 bytes, then "he" 256, "ll" 257, "hell" 258, "hello" 259, "Ġhello" 260.
TokenizerSpec small_spec() {
  TokenizerSpec spec;
  spec.subject = "small";
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(byte_token(byte));
  for (const char* token : {"he", "ll", "hell", "hello", "Ġhello"}) spec.tokens.push_back(token);
  spec.merges = {"h e", "l l", "he ll", "hell o", "Ġ hello"};
  spec.splits = {{.pattern = std::string(kGpt2SplitPattern)}};
  return spec;
}

void add_token(TokenizerSpec& spec, AddedToken token) {
  token.id = static_cast<int32_t>(spec.tokens.size());
  spec.tokens.push_back(token.content);
  spec.added_tokens.push_back(token);
}

// A tokenizer.json with the tokens of small_spec.
Json small_json() {
  const TokenizerSpec spec = small_spec();
  Json json = {{"added_tokens", Json::array()},
               {"normalizer", nullptr},
               {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
               {"post_processor", nullptr},
               {"model", {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", spec.merges}}}};
  for (size_t id = 0; id < spec.tokens.size(); ++id) json["model"]["vocab"][spec.tokens[id]] = id;
  return json;
}

Tokenizer from_json(const Json& json, const std::string& config = {}) {
  return Tokenizer(tokenizer_spec_from_json(json.dump(), config, "tokenizer.json"));
}

template <class Make>
std::string error_of(Make make, ErrorKind kind) {
  try {
    make();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    return error.what();
  }
  return "";
}

TEST(Tokenizer, MergesTheBestPairFirst) {
  const Tokenizer tokenizer(small_spec());
  EXPECT_THAT(tokenizer.encode("hello hello", false), ElementsAre(259, 260));
  EXPECT_THAT(tokenizer.encode("hellhe", false), ElementsAre(258, 256));
  EXPECT_THAT(tokenizer.encode("lll", false), ElementsAre(257, 'l'));  // the leftmost pair
  EXPECT_THAT(tokenizer.encode("", false), ElementsAre());
  EXPECT_EQ(tokenizer.decode(Ids{259, 260}, false), "hello hello");
}

TEST(Tokenizer, AllBytesComeBack) {
  const Tokenizer tokenizer(small_spec());
  std::string text;
  for (char32_t c = 0; c < 0x3000; c += 7) append_utf8(text, c);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, true), false), text);
}

TEST(Tokenizer, LongWordsTakeLinearithmicTime) {
  TokenizerSpec spec = small_spec();
  spec.splits.clear();  // one word
  const Tokenizer tokenizer(std::move(spec));
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "hello";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer.encode(text, false), Ids(100'000, 259));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 20.0);  // 0.1 s; quadratic would take minutes
}

TEST(Tokenizer, InvalidUtf8BecomesReplacementCharacters) {
  const Tokenizer tokenizer(small_spec());
  const Ids one = {0xEF, 0xBF, 0xBD};
  EXPECT_EQ(tokenizer.encode("\xFF", false), one);
  EXPECT_EQ(tokenizer.encode("\xF0\x9F\x99", false), one);        // a character cut short: one subpart
  EXPECT_EQ(tokenizer.encode("\xED\xA0\x80", false).size(), 9u);  // a surrogate: three
  EXPECT_EQ(tokenizer.decode(Ids{0xF0, 0x9F, 'a'}, false),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(tokenizer.decode(Ids{0xC0, 0x80}, false), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Tokenizer, BytesWithoutATokenAreDroppedOrUnknown) {
  TokenizerSpec spec = small_spec();
  spec.tokens['x'] = "";
  const Tokenizer drops(spec);
  EXPECT_THAT(drops.encode("axb", false), ElementsAre('a', 'b'));
  spec.unknown_id = 'u';
  const Tokenizer replaces(spec);
  EXPECT_THAT(replaces.encode("axb", false), ElementsAre('a', 'u', 'b'));
}

TEST(Tokenizer, AddedTokens) {
  TokenizerSpec spec = small_spec();
  add_token(spec, {.content = "<a>", .special = true});                 // 261
  add_token(spec, {.content = "<a>b"});                                 // 262
  add_token(spec, {.content = "<s>", .lstrip = true, .rstrip = true});  // 263
  add_token(spec, {.content = "word", .single_word = true});            // 264
  const Tokenizer tokenizer(std::move(spec));
  EXPECT_THAT(tokenizer.encode("<a>", true), ElementsAre(261));
  EXPECT_THAT(tokenizer.encode("<a>", false), ElementsAre('<', 'a', '>'));
  EXPECT_THAT(tokenizer.encode("<a>b", true), ElementsAre(262));  // the longest
  EXPECT_THAT(tokenizer.encode("<a>b", false), ElementsAre(262));
  EXPECT_THAT(tokenizer.encode("x  <s> \ny", false), ElementsAre('x', 263, 'y'));
  EXPECT_THAT(tokenizer.encode("word-word", false), ElementsAre(264, '-', 264));
  EXPECT_THAT(tokenizer.encode("words", false), ElementsAre('w', 'o', 'r', 'd', 's'));
  EXPECT_EQ(tokenizer.decode(Ids{261, 262}, true), "<a>b");
  EXPECT_TRUE(tokenizer.is_special(261));
  EXPECT_FALSE(tokenizer.is_special(262));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(1 << 30));
}

TEST(Tokenizer, NormalizedAddedTokensMatchNormalizedText) {
  TokenizerSpec spec = small_spec();
  spec.normalize_nfc = true;
  add_token(spec, {.content = "e\xCC\x81", .normalized = true});  // e and a combining acute
  const Tokenizer tokenizer(std::move(spec));
  EXPECT_THAT(tokenizer.encode("\xC3\xA9", false), ElementsAre(261));
  EXPECT_THAT(tokenizer.encode("e\xCC\x81", false), ElementsAre(261));
}

TEST(Tokenizer, IgnoreMergesNeverTurnsTextIntoControlTokens) {
  TokenizerSpec spec = small_spec();
  spec.ignore_merges = true;
  spec.splits.clear();
  spec.tokens.push_back("whole");   // 261: no merges lead to it
  spec.tokens.push_back("padded");  // 262
  spec.unused = {262};
  add_token(spec, {.content = "ctl", .special = true});  // 263
  const Tokenizer tokenizer(std::move(spec));
  EXPECT_THAT(tokenizer.encode("whole", false), ElementsAre(261));
  EXPECT_THAT(tokenizer.encode("padded", false), ElementsAre('p', 'a', 'd', 'd', 'e', 'd'));
  EXPECT_THAT(tokenizer.encode("ctl", false), ElementsAre('c', 't', 'l'));
}

TEST(Tokenizer, DecodeRefusesWhatIsNoToken) {
  const Tokenizer tokenizer(small_spec());
  for (const int32_t id : {-1, 261, 2'000'000'000}) {
    EXPECT_NE(error_of([&] { tokenizer.decode(Ids{id}, false); }, ErrorKind::usage), "");
    EXPECT_EQ(tokenizer.token_bytes(id), "");
  }
  EXPECT_EQ(tokenizer.find_token("hello"), 259);
  EXPECT_EQ(tokenizer.find_token("nope"), std::nullopt);
  EXPECT_EQ(tokenizer.token_text(260), "Ġhello");
  EXPECT_EQ(tokenizer.token_bytes(260), " hello");
}

TEST(Tokenizer, KnowsWhetherItFitsAModel) {
  const Tokenizer tokenizer(small_spec());
  tokenizer.check_fits(261, "model");
  tokenizer.check_fits(320, "model");
  EXPECT_THAT(error_of([&] { tokenizer.check_fits(260, "model"); }, ErrorKind::mismatch), HasSubstr("260"));
}

TEST(StreamDecoder, NeverGivesHalfACharacter) {
  const Tokenizer tokenizer(small_spec());
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push(0x9F), "");
  EXPECT_EQ(decoder.push(0x99), "");
  EXPECT_EQ(decoder.push(0x82), "\xF0\x9F\x99\x82");
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.push('a'),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(decoder.push(0xE2), "");
  EXPECT_EQ(decoder.push(300), "");  // a padding row of the model
  EXPECT_EQ(decoder.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.flush(), "");
  EXPECT_THROW(decoder.push(-1), Error);
}

TEST(TokenizerSpec, RefusesDamagedData) {
  const auto fails = [](auto change) {
    TokenizerSpec spec = small_spec();
    change(spec);
    return error_of([&] { const Tokenizer tokenizer(std::move(spec)); }, ErrorKind::format);
  };
  EXPECT_THAT(fails([](auto& s) { s.tokens.push_back("he"); }), HasSubstr("'he' has the ids 256 and 261"));
  EXPECT_THAT(fails([](auto& s) { s.merges.push_back("q zz"); }), HasSubstr("not in the vocabulary"));
  EXPECT_THAT(fails([](auto& s) { s.merges.push_back("a b"); }), HasSubstr("not in the vocabulary"));
  for (const char* merge : {"", " ", "a", "a ", " a", "a b c"}) {
    EXPECT_THAT(fails([&](auto& s) { s.merges.push_back(merge); }), HasSubstr("merge 5"));
  }
  EXPECT_NE(fails([](auto& s) { s.tokens.clear(); }), "");
  EXPECT_NE(fails([](auto& s) { s.bos_id = 261; }), "");
  EXPECT_NE(fails([](auto& s) { s.eos_id = -5; }), "");
  EXPECT_NE(fails([](auto& s) { s.unused = {1 << 30}; }), "");
  EXPECT_NE(fails([](auto& s) { s.added_tokens = {{.id = -1, .content = "x"}}; }), "");
  EXPECT_NE(fails([](auto& s) { s.added_tokens = {{.id = 3, .content = "x"}}; }), "");
}

TEST(Splitter, RefusesPatternsItWouldMisread) {
  for (const char* pattern : {"(", "[a", "(?<n", "[a&&b]", "[a[b]]", "\\h", "\\p{Nope}", "\\C"}) {
    const std::string error =
        error_of([&] { Splitter({.pattern = pattern}, "file"); }, ErrorKind::unsupported);
    EXPECT_THAT(error, HasSubstr("split pattern")) << pattern;
  }
  EXPECT_NE(error_of([] { Splitter({.pattern = std::string(20'000, 'a')}, "file"); }, ErrorKind::unsupported),
            "");
}

TEST(Splitter, CatastrophicPatternsFailQuickly) {
  for (const char* pattern : {"(a+)+$", "(a|aa)+$", "(?:a*)*b", "(?R)?a", "((a*)*)*c"}) {
    const Splitter splitter({.pattern = pattern}, "file");
    MatchMemory memory;
    std::vector<std::string_view> out;
    const std::string text = std::string(40, 'a') + "!";
    const std::string error = error_of([&] { splitter.split(text, memory, out); }, ErrorKind::resource);
    if (!error.empty()) EXPECT_THAT(error, HasSubstr("split pattern failed"));
  }
}

TEST(Splitter, WhiteSpaceIsTheUnicodeProperty) {
  const Splitter splitter({.pattern = "\\s", .behavior = SplitBehavior::removed}, "file");
  MatchMemory memory;
  std::vector<std::string_view> out;
  splitter.split(
      "a\xC2\x85"
      "b\xE2\x80\x83"
      "c\xE1\xA0\x8E"
      "d",
      memory, out);  // U+0085, U+2003, U+180E
  EXPECT_THAT(out, ElementsAre("a", "b",
                               "c\xE1\xA0\x8E"
                               "d"));
}

TEST(TokenizerJson, ReadsAFile) {
  Json json = small_json();
  json["added_tokens"] = {{{"id", 300}, {"content", "<|im_end|>"}, {"special", true}},
                          {{"id", 299}, {"content", "<s>"}, {"special", true}}};
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}}}};
  const Tokenizer tokenizer = from_json(json, R"({"eos_token": {"content": "<|im_end|>"}})");
  EXPECT_EQ(tokenizer.vocabulary_size(), 301);
  EXPECT_EQ(tokenizer.bos_id(), 299);
  EXPECT_EQ(tokenizer.eos_id(), 300);
  EXPECT_TRUE(tokenizer.add_bos());
  EXPECT_THAT(tokenizer.end_ids(), ElementsAre(300));
  EXPECT_THAT(tokenizer.encode("e\xCC\x81 hello<s>", true), ElementsAre(0xC3, 0xA9, 260, 299));
  EXPECT_NE(error_of([&] { tokenizer.decode(Ids{280}, false); }, ErrorKind::usage), "");  // a gap
}

TEST(TokenizerJson, MergesMayBePairs) {
  Json json = small_json();
  json["model"]["merges"] = Json::parse(R"([["h", "e"], ["l", "l"]])");
  EXPECT_THAT(from_json(json).encode("hell", false), ElementsAre(256, 257));
}

TEST(TokenizerJson, NamesWhatItCannotRun) {
  const auto fails = [](auto change) {
    Json json = small_json();
    change(json);
    return error_of([&] { from_json(json); }, ErrorKind::unsupported);
  };
  EXPECT_THAT(fails([](Json& j) { j["model"]["type"] = "Unigram"; }), HasSubstr("Unigram"));
  EXPECT_THAT(fails([](Json& j) { j["model"]["type"] = "WordPiece"; }), HasSubstr("WordPiece"));
  EXPECT_THAT(fails([](Json& j) { j["model"]["byte_fallback"] = true; }), HasSubstr("byte_fallback"));
  EXPECT_THAT(fails([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(fails([](Json& j) { j["normalizer"] = {{"type", "NFKC"}}; }), HasSubstr("NFKC"));
  EXPECT_THAT(fails([](Json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; }), HasSubstr("Metaspace"));
  EXPECT_THAT(fails([](Json& j) { j["pre_tokenizer"] = nullptr; }), HasSubstr("ByteLevel"));
}

TEST(TokenizerJson, RefusesDamagedFiles) {
  const auto fails = [](const std::string& text) {
    return error_of([&] { tokenizer_spec_from_json(text, {}, "t"); }, ErrorKind::format);
  };
  for (const char* text :
       {"", "{", "[]", "3", "{}", R"({"model": 3})", R"({"model": {"vocab": {"a": "x"}}})",
        R"({"model": {"vocab": {"a": 1.5}}})", R"({"model": {"vocab": {"a": [1]}}})",
        R"({"model": {"merges": {"h": "e"}}})", R"({"model": {"vocab": ["a"]}})",
        R"({"model": {"merges": [3]}})", R"({"model": {"merges": [["a"]]}})",
        R"({"model": {"merges": [["a", "b", "c"]]}})", R"({"model": {"merges": [["a b", "c"]]}})",
        R"({"model": {"merges": {"a": 1}}, "added_tokens": 3})"}) {
    EXPECT_NE(fails(text), "") << text;
  }
  EXPECT_NE(fails(std::string(100'000, '[')), "");
  for (const int64_t id : {int64_t{-1}, int64_t{2'000'000'000}, int64_t{1} << 60}) {
    Json json = small_json();
    json["model"]["vocab"]["far"] = id;
    EXPECT_THAT(fails(json.dump()), HasSubstr("far"));
    json = small_json();
    json["added_tokens"] = {{{"id", id}, {"content", "far"}}};
    EXPECT_NE(fails(json.dump()), "");
  }
  Json json = small_json();
  json["model"]["vocab"]["twin"] = 65;
  EXPECT_THAT(fails(json.dump()), HasSubstr("share id 65"));
}

TEST(TokenizerGguf, TokenTypes) {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "smollm";
  vocabulary.tokens = small_spec().tokens;
  vocabulary.merges = small_spec().merges;
  vocabulary.token_types.assign(vocabulary.tokens.size(), 1);
  const auto add = [&](const char* token, int32_t type) {
    vocabulary.tokens.push_back(token);
    vocabulary.token_types.push_back(type);
  };
  add("<ctl>", 3);     // 261
  add("<user>", 4);    // 262
  add("[PAD263]", 5);  // 263
  vocabulary.eos_id = 261;
  const Tokenizer tokenizer(tokenizer_spec_from_gguf(vocabulary, "model.gguf"));
  EXPECT_THAT(tokenizer.encode("<ctl><user>", true), ElementsAre(261, 262));
  EXPECT_THAT(tokenizer.encode("<ctl><user>", false), ElementsAre('<', 'c', 't', 'l', '>', 262));
  EXPECT_EQ(tokenizer.encode("[PAD263]", true).size(), 8u);
  EXPECT_EQ(tokenizer.decode(Ids{261, 262}, true), "<user>");
  EXPECT_FALSE(tokenizer.add_bos());

  vocabulary.token_types.pop_back();
  EXPECT_NE(error_of([&] { tokenizer_spec_from_gguf(vocabulary, "m"); }, ErrorKind::format), "");
}

TEST(TokenizerGguf, RefusesOtherModelsByName) {
  const auto fails = [](const char* model, const char* pre) {
    GgufVocabulary vocabulary;
    vocabulary.model = model;
    vocabulary.pre = pre;
    return error_of([&] { tokenizer_spec_from_gguf(vocabulary, "m.gguf"); }, ErrorKind::unsupported);
  };
  EXPECT_THAT(fails("t5", ""), HasSubstr("'t5'"));
  EXPECT_THAT(fails("bert", ""), HasSubstr("'bert'"));
  EXPECT_THAT(fails("gpt2", "mystery"), HasSubstr("'mystery'"));
}

TEST(TokenizerGguf, EveryKnownPatternRuns) {
  for (const std::string_view pre : known_gguf_pre_tokenizers()) {
    GgufVocabulary vocabulary;
    vocabulary.model = "gpt2";
    vocabulary.pre = pre;
    vocabulary.tokens = small_spec().tokens;
    vocabulary.merges = small_spec().merges;
    const Tokenizer tokenizer(tokenizer_spec_from_gguf(vocabulary, "m"));
    const std::string text =
        "Hello hello's 12345 na\xC3\xAFve!!\n\n  \xE6\x97\xA5\xE6\x9C\xAC\xF0\x9F\x99\x82 x";
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text) << pre;
  }
}

TEST(Utf8, NormalizesLongRunsOfMarksQuickly) {
  std::string text = "a";
  for (int i = 0; i < 200'000; ++i)
    text += i % 2 ? "\xCC\xA7" : "\xCC\x81";  // classes 202 and 230, interleaved
  const std::string normalized = normalize_nfc(text);
  EXPECT_EQ(normalized.substr(0, 4), "\xC3\xA1\xCC\xA7");  // a with the first acute, then the cedillas
}

}  // namespace
}  // namespace keysieve
