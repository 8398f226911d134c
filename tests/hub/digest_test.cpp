#include "hub/digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

namespace keysieve {
namespace {

std::string digest_in_pieces(DigestKind kind, std::string_view text, size_t piece) {
  Digest digest(kind, text.size());
  for (size_t at = 0; at < text.size(); at += piece)
    digest.add(std::as_bytes(std::span(text.substr(at, piece))));
  return digest.hex();
}

// FIPS 180-4's example, and what `git hash-object` says of the same bytes.
TEST(Digest, KnownValues) {
  EXPECT_EQ(digest_in_pieces(DigestKind::sha256, "abc", 3),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(digest_in_pieces(DigestKind::git_blob, "test content\n", 100),
            "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
  EXPECT_EQ(digest_in_pieces(DigestKind::git_blob, "", 1), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
  EXPECT_EQ(digest_in_pieces(DigestKind::none, "abc", 3), "");
}

TEST(Digest, PiecesDoNotMatter) {
  const std::string text(1000, 'x');
  for (const size_t piece : {1, 7, 64, 999})
    EXPECT_EQ(digest_in_pieces(DigestKind::sha256, text, piece),
              digest_in_pieces(DigestKind::sha256, text, 1000));
}

TEST(Digest, EtagsByTheirLength) {
  EXPECT_EQ(digest_of_etag(std::string(64, 'A')).kind, DigestKind::sha256);
  EXPECT_EQ(digest_of_etag(std::string(64, 'A')).hex, std::string(64, 'a'));
  EXPECT_EQ(digest_of_etag(std::string(40, '0')).kind, DigestKind::git_blob);
  EXPECT_EQ(digest_of_etag(std::string(32, '0')).kind, DigestKind::none);
  EXPECT_EQ(digest_of_etag(std::string(64, 'g')).kind, DigestKind::none);
  EXPECT_EQ(digest_of_etag("").kind, DigestKind::none);
}

}  // namespace
}  // namespace keysieve
