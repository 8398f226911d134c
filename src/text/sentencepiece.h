#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"

// What the vocabularies of SentencePiece (Llama 2, Mistral, TinyLlama) have of their own: tokens are spelled
// in plain text with "▁" for a space, and a character without a token becomes its bytes, spelled "<0x0A>".
namespace keysieve {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// Spaces become marks. With `in_front` one goes before the text if that is not empty; with `unless_there`
// only if it does not begin with one.
std::string mark_spaces(std::string_view text, bool in_front, bool unless_there);

// The byte that a token like "<0x0A>" stands for.
std::optional<uint8_t> fallback_byte(std::string_view token);
// The token of each byte, or -1.
std::array<int32_t, 256> fallback_ids(const TokenMap& map);

// Appends the text a token stands for, or its byte.
void append_piece_bytes(std::string& out, std::string_view token);

// True if some merge ("left right") reaches over the beginning of a word, so that words cannot be merged one
// by one. Cutting text into words repeats nine of ten of them (WordCache), and one whole text never does.
bool merges_cross_words(const std::vector<std::string>& merges);
// Appends the parts of `marked`, cut before each mark that follows something else.
void cut_into_marked_words(std::string_view marked, std::vector<std::string_view>& out);

// The merges ("left right") that scores imply, as Hugging Face's converter of SentencePiece models derives
// them: each piece from every two that spell it, the best score first. tokens, scores, mergeable:
// [vocabulary]; only mergeable pieces come of merging. Throws Error{format} for a piece of more than 256
// bytes and for one that occurs twice.
std::vector<std::string> merges_from_scores(const std::vector<std::string>& tokens,
                                            const std::vector<float>& scores,
                                            const std::vector<bool>& mergeable, std::string_view subject);

}  // namespace keysieve
