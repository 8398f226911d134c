#include "text/sentencepiece.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <tuple>

#include "keysieve/error.h"
#include "text/utf8.h"

namespace keysieve {

namespace {

// SentencePiece itself makes none of more than 16 characters unless asked to. Finding a piece's halves takes
// the square of its length.
constexpr size_t kLongestPiece = 256;

size_t characters_in(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(),
                                           [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string mark_spaces(std::string_view text, bool in_front, bool unless_there) {
  if (text.empty()) return {};
  const bool there = text[0] == ' ' || text.starts_with(kSpaceMark);
  std::string marked;
  marked.reserve(text.size() + text.size() / 2 + kSpaceMark.size());
  if (in_front && !(unless_there && there)) marked += kSpaceMark;
  for (const char c : text) {
    if (c == ' ') {
      marked += kSpaceMark;
    } else {
      marked += c;
    }
  }
  return marked;
}

std::optional<uint8_t> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return byte;
}

std::array<int32_t, 256> fallback_ids(const TokenMap& map) {
  std::array<int32_t, 256> ids;
  for (uint32_t byte = 0; byte < 256; ++byte)
    ids[byte] = map.find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  return ids;
}

void append_piece_bytes(std::string& out, std::string_view token) {
  if (const auto byte = fallback_byte(token)) {
    out += static_cast<char>(*byte);
    return;
  }
  for (size_t at = 0; at < token.size();) {
    const size_t mark = std::min(token.find(kSpaceMark, at), token.size());
    out += token.substr(at, mark - at);
    if (mark < token.size()) out += ' ';
    at = mark + kSpaceMark.size();
  }
}

bool merges_cross_words(const std::vector<std::string>& merges) {
  // Pieces are merged from merged ones, so it is enough to look at where the two halves meet.
  return std::any_of(merges.begin(), merges.end(), [](std::string_view merge) {
    const size_t space = merge.find(' ');
    return space != std::string_view::npos && merge.substr(space + 1).starts_with(kSpaceMark) &&
           !merge.substr(0, space).ends_with(kSpaceMark);
  });
}

void cut_into_marked_words(std::string_view marked, std::vector<std::string_view>& out) {
  size_t begin = 0;
  bool after_mark = true;
  for (size_t at = 0; at < marked.size();) {
    const bool mark = marked.substr(at).starts_with(kSpaceMark);
    if (mark && !after_mark) {
      out.push_back(marked.substr(begin, at - begin));
      begin = at;
    }
    after_mark = mark;
    at += mark ? kSpaceMark.size() : 1;
  }
  if (begin < marked.size()) out.push_back(marked.substr(begin));
}

std::vector<std::string> merges_from_scores(const std::vector<std::string>& tokens,
                                            const std::vector<float>& scores,
                                            const std::vector<bool>& mergeable, std::string_view subject) {
  struct Halves {
    uint32_t token;
    uint32_t cut;  // bytes of the left one
  };
  const TokenTexts texts(tokens, subject);
  const TokenMap map(texts, subject);
  std::vector<Halves> found;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view piece = tokens[id];
    // A merge is written with a space between its halves.
    if (piece.empty() || !mergeable[id] || piece.find(' ') != std::string_view::npos) continue;
    if (piece.size() > kLongestPiece) {
      throw Error(ErrorKind::format, subject, fmt::format("token {} has {} bytes", id, piece.size()),
                  fmt::format("at most {}", kLongestPiece), "get the file again");
    }
    for (size_t cut = utf8_step(piece, 0).length; cut < piece.size(); cut += utf8_step(piece, cut).length) {
      if (!map.find(piece.substr(0, cut)) || !map.find(piece.substr(cut))) continue;
      found.push_back({static_cast<uint32_t>(id), static_cast<uint32_t>(cut)});
    }
  }
  // Of equal scores the longer halves come first, the left ones before the right ones.
  const auto lengths = [&](const Halves& halves) {
    const std::string_view piece = tokens[halves.token];
    return std::tuple(characters_in(piece.substr(0, halves.cut)), characters_in(piece.substr(halves.cut)));
  };
  std::sort(found.begin(), found.end(), [&](const Halves& a, const Halves& b) {
    const float score_a = scores[a.token], score_b = scores[b.token];
    if (score_a != score_b) return score_a > score_b;
    const auto first = lengths(a), second = lengths(b);
    return first != second ? first > second : a.token < b.token;
  });
  std::vector<std::string> merges;
  merges.reserve(found.size());
  for (const Halves& halves : found) {
    merges.push_back(std::string(tokens[halves.token]).insert(halves.cut, 1, ' '));
  }
  return merges;
}

}  // namespace keysieve
