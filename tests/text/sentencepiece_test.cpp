// Vocabularies of SentencePiece in GGUF files and in tokenizer.json, with the ids of sentencepiece 0.2.3 and
// Hugging Face tokenizers 0.23.3. The pieces are those of a model trained on a chapter of Dracula (340
// pieces, byte fallback).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/json.h"
#include "keysieve/error.h"
#include "support/files.h"
#include "text/sentencepiece.h"
#include "text/tokenizer.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;
using Ids = std::vector<int32_t>;

// <unk> 0, <s> 1, </s> 2, bytes 3 to 258, pieces from 259, the best first.
GgufVocabulary dracula_pieces() {
  // clang-format off
  const std::vector<std::string> pieces = {
      "▁t", "he", "▁a", "▁s", "in", "▁w", "▁the", "▁o", "nd", "re", "▁▁", "▁m", "ha", "ou", "▁b", "▁I", "▁f",
      "▁and", "it", "▁c", "er", "▁to", "ed", "ing", "is", "▁d", "en", "▁of", "or", "▁l", "ll", "as", "▁n",
      "▁he", "es", "▁in", "ar", "▁ha", "▁h", "om", "on", "an", "▁▁▁▁", "▁p", "at", "▁be", "ow", "hat", "▁g",
      "ot", "gh", "▁", "e", "t", "a", "o", "n", "h", "s", "i", "r", "d", "l", "u", "w", "m", "c", "f", "g",
      "y", ",", "p", "b", ".", "I", "k", "v", "-", "T", "\"", "'"};
  // clang-format on
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  const auto add = [&](std::string token, float score, int32_t type) {
    vocabulary.tokens.push_back(std::move(token));
    vocabulary.scores.push_back(score);
    vocabulary.token_types.push_back(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("</s>", 0, 3);
  for (int byte = 0; byte < 256; ++byte) {
    const char* hex = "0123456789ABCDEF";
    add(std::string("<0x") + hex[byte / 16] + hex[byte % 16] + ">", 0, 6);
  }
  for (size_t i = 0; i < pieces.size(); ++i) add(pieces[i], -static_cast<float>(i), 1);
  vocabulary.bos_id = 1;
  vocabulary.eos_id = 2;
  vocabulary.unknown_id = 0;
  return vocabulary;
}

Tokenizer from_scores(GgufVocabulary given) {
  return Tokenizer(tokenizer_spec_from_gguf(std::move(given), "model.gguf"));
}

const Json kLegacyNormalizer =
    Json::parse(R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})");

Json metaspace(const char* scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", split}};
}

// The same vocabulary as a tokenizer.json.
Json tokenizer_json(const Json& normalizer, const Json& pre_tokenizer) {
  const GgufVocabulary given = dracula_pieces();
  std::vector<bool> mergeable;
  for (const int32_t type : given.token_types) mergeable.push_back(type == 1);
  Json json = {{"added_tokens", Json::array()},
               {"normalizer", normalizer},
               {"pre_tokenizer", pre_tokenizer},
               {"decoder", Json::parse(R"({"type": "Sequence", "decoders": [
           {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
           {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})")},
               {"model",
                {{"type", "BPE"},
                 {"unk_token", "<unk>"},
                 {"fuse_unk", true},
                 {"byte_fallback", true},
                 {"vocab", Json::object()},
                 {"merges", merges_from_scores(given.tokens, given.scores, mergeable, "test")}}}};
  for (size_t id = 0; id < given.tokens.size(); ++id) json["model"]["vocab"][given.tokens[id]] = id;
  for (const int id : {0, 1, 2}) {
    json["added_tokens"].push_back({{"id", id},
                                    {"content", given.tokens[static_cast<size_t>(id)]},
                                    {"special", true},
                                    {"normalized", false}});
  }
  return json;
}

Tokenizer from_pieces(const Json& json) {
  return Tokenizer(tokenizer_spec_from_json(json.dump(), {}, "tokenizer.json"));
}

struct PieceCase {
  const char* text;
  Ids legacy;  // Prepend and Replace, and a GGUF file
  Ids first, first_split, never;
};

const std::vector<PieceCase>& piece_cases() {
  // clang-format off
  static const std::vector<PieceCase> all = {
      {"", {}, {}, {}, {}},
      {"the moon", {265, 270, 314, 299}, {265, 270, 314, 299}, {265, 270, 314, 299}, {312, 260, 270, 314, 299}},
      {"  the   moon", {269, 265, 269, 270, 314, 299}, {310, 265, 269, 270, 314, 299},
       {310, 265, 310, 310, 270, 314, 299}, {310, 265, 269, 270, 314, 299}},
      {"that\nwas", {259, 306, 13, 323, 290}, {259, 306, 13, 323, 290}, {259, 306, 13, 323, 290},
       {312, 306, 13, 323, 290}},
      {"it was him <s> there", {310, 277, 264, 290, 297, 318, 324, 310, 1, 310, 265, 268},
       {310, 277, 264, 290, 297, 318, 324, 310, 1, 265, 268}, {310, 277, 264, 290, 297, 318, 324, 310, 1, 265, 268},
       {277, 264, 290, 297, 318, 324, 310, 1, 265, 268}},
      {"</s>the moon</s> it", {2, 265, 270, 314, 299, 2, 269, 277}, {2, 312, 260, 270, 314, 299, 2, 310, 277},
       {2, 312, 260, 270, 314, 299, 2, 310, 277}, {2, 312, 260, 270, 314, 299, 2, 310, 277}},
      {"é🙂 on", {310, 198, 172, 243, 162, 156, 133, 266, 315}, {310, 198, 172, 243, 162, 156, 133, 266, 315},
       {310, 198, 172, 243, 162, 156, 133, 266, 315}, {198, 172, 243, 162, 156, 133, 266, 315}},
      {"<0x41>", {310, 63, 51, 123, 55, 52, 65}, {310, 63, 51, 123, 55, 52, 65}, {310, 63, 51, 123, 55, 52, 65},
       {63, 51, 123, 55, 52, 65}},
      {"ondondon", {266, 267, 314, 267, 299}, {266, 267, 314, 267, 299}, {266, 267, 314, 267, 299},
       {314, 267, 314, 267, 299}},
      {"  ", {269, 310}, {269}, {310, 310}, {269}},
      {" ", {269}, {310}, {310}, {310}},
      {"a▁b", {261, 273}, {261, 273}, {261, 273}, {313, 273}},
      {"\tin", {310, 12, 263}, {310, 12, 263}, {310, 12, 263}, {12, 263}}};
  // clang-format on
  return all;
}

TEST(SentencePiece, GivesTheIdsOfTheReferences) {
  const Tokenizer gguf = from_scores(dracula_pieces());
  const Tokenizer legacy = from_pieces(tokenizer_json(kLegacyNormalizer, nullptr));
  const Tokenizer first = from_pieces(tokenizer_json(nullptr, metaspace("first", false)));
  const Tokenizer split = from_pieces(tokenizer_json(nullptr, metaspace("first", true)));
  const Tokenizer never = from_pieces(tokenizer_json(nullptr, metaspace("never", false)));
  for (const PieceCase& test : piece_cases()) {
    EXPECT_EQ(gguf.encode(test.text, true), test.legacy) << test.text;
    EXPECT_EQ(legacy.encode(test.text, true), test.legacy) << test.text;
    EXPECT_EQ(first.encode(test.text, true), test.first) << test.text;
    EXPECT_EQ(split.encode(test.text, true), test.first_split) << test.text;
    EXPECT_EQ(never.encode(test.text, true), test.never) << test.text;
  }
  EXPECT_TRUE(gguf.add_bos());
  EXPECT_THAT(gguf.encode("<s>", false), ElementsAre(310, 63, 317, 65));
}

TEST(SentencePiece, PiecesThatReachOverWordsAreFoundAllTheSame) {
  // Words are then not merged one by one.
  GgufVocabulary given = dracula_pieces();
  given.tokens.emplace_back("n▁");
  given.scores.push_back(-1.5f);  // before "▁a"
  given.token_types.push_back(1);
  EXPECT_THAT(from_scores(given).encode("on a", true), ElementsAre(266, 340, 313));
}

TEST(SentencePiece, TextComesBack) {
  const Tokenizer tokenizer = from_scores(dracula_pieces());
  for (const char* text : {"the moon", "  the   moon", "é🙂 on", "that\nwas", " ", ""}) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
  }
  EXPECT_EQ(tokenizer.decode(Ids{1, 265, 270}, true), "the m");
  EXPECT_EQ(tokenizer.token_bytes(265), " the");
  EXPECT_EQ(tokenizer.token_bytes(13), "\n");
  // An answer goes on from its prompt, so its space stays.
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(265), " the");
  EXPECT_EQ(stream.push(198), "");
  EXPECT_EQ(stream.push(172), "é");
  EXPECT_EQ(from_pieces(tokenizer_json(nullptr, metaspace("never", false))).token_bytes(265), " the");
}

TEST(SentencePiece, WithoutTokensForBytesOneUnknownStandsForNeighbours) {
  GgufVocabulary given = dracula_pieces();
  for (size_t i = 3; i < 259; ++i) given.tokens[i] += "unused";
  EXPECT_THAT(from_scores(given).encode("aé🙂b", false), ElementsAre(261, 0, 331));
  given.unknown_id.reset();
  EXPECT_THAT(from_scores(given).encode("aé🙂b", false), ElementsAre(261, 331));
}

TEST(SentencePiece, AddSpacePrefixMayBeOff) {
  GgufVocabulary given = dracula_pieces();
  given.add_space_prefix = false;
  given.add_bos = false;
  const Tokenizer tokenizer = from_scores(given);
  EXPECT_THAT(tokenizer.encode("the", false), ElementsAre(312, 260));
  EXPECT_EQ(tokenizer.decode(Ids{265}, false), " the");
  EXPECT_FALSE(tokenizer.add_bos());
}

TEST(SentencePiece, RefusesDamagedData) {
  const auto fails = [](const GgufVocabulary& damaged, const std::string& part) {
    expect_error(ErrorKind::format, {"model.gguf", part}, [&] { from_scores(damaged); });
  };
  GgufVocabulary given = dracula_pieces();
  given.scores.pop_back();
  fails(given, "340 tokens and 339 scores");
  given = dracula_pieces();
  given.scores[300] = std::nanf("");
  fails(given, "no number");
  given = dracula_pieces();
  given.tokens[300] = std::string(257, 'a');
  fails(given, "token 300 has 257 bytes");
  given = dracula_pieces();
  given.tokens[300] = "he";
  fails(given, "'he'");
}

TEST(SentencePiece, NamesTheRulesItCannotRun) {
  const auto fails = [](const Json& other, const std::string& part) {
    expect_error(ErrorKind::unsupported, {"tokenizer.json", part}, [&] { from_pieces(other); });
  };
  Json json = tokenizer_json(nullptr, nullptr);
  fails(json, "without ByteLevel");
  json = tokenizer_json(kLegacyNormalizer, nullptr);
  json["model"]["byte_fallback"] = false;
  fails(json, "byte_fallback");
  json = tokenizer_json(kLegacyNormalizer, metaspace("first", false));
  fails(json, "Metaspace");
  json = tokenizer_json(nullptr, {{"type", "Metaspace"}, {"replacement", "_"}});
  fails(json, "Metaspace");
  fails(tokenizer_json(nullptr, metaspace("sometimes", false)), "prepend_scheme sometimes");
  json = tokenizer_json(kLegacyNormalizer, {{"type", "ByteLevel"}});
  fails(json, "ByteLevel");
  json = tokenizer_json(
      nullptr, {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}}, metaspace("first", false)}}});
  fails(json, "Metaspace");
  json = tokenizer_json({{"type", "Prepend"}, {"prepend", "▁"}}, nullptr);
  fails(json, "Prepend alone");
  json = tokenizer_json({{"type", "Prepend"}, {"prepend", "x"}}, nullptr);
  fails(json, "Prepend");
  json = tokenizer_json(nullptr, nullptr);
  json["model"]["type"] = "Unigram";
  fails(json, "Unigram");
}

}  // namespace
}  // namespace keysieve
