#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace keysieve {

// How a file's bytes are named by the servers we fetch from.
enum class DigestKind {
  none,      // size only
  sha256,    // of the bytes: large files
  git_blob,  // SHA-1 of "blob SIZE\0" and the bytes: git's own name for small files
};

struct ExpectedDigest {
  DigestKind kind = DigestKind::none;
  std::string hex;  // lower case
};

// What an ETag promises, by its length: 64 hex digits are a SHA-256, 40 are git's.
ExpectedDigest digest_of_etag(std::string_view etag);

// A digest over bytes given in pieces.
class Digest {
 public:
  Digest(DigestKind kind, uint64_t size);  // `size` of the whole file: git's hash begins with it
  void add(std::span<const std::byte> bytes);
  std::string hex();  // lower case; ends the digest. Empty for `none`

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;  // OpenSSL's EVP_MD_CTX
};

}  // namespace keysieve
