#include "hub/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <vector>

#include "hub/shared_library.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// The digests of OpenSSL 3, loaded by whoever checks one.
class CryptoLibrary {
 public:
  static const CryptoLibrary& get() {
    static const CryptoLibrary library;
    return library;
  }

  decltype(&EVP_MD_CTX_new) context_new = function<decltype(&EVP_MD_CTX_new)>("EVP_MD_CTX_new");
  decltype(&EVP_MD_CTX_free) context_free = function<decltype(&EVP_MD_CTX_free)>("EVP_MD_CTX_free");
  decltype(&EVP_sha256) sha256 = function<decltype(&EVP_sha256)>("EVP_sha256");
  decltype(&EVP_sha1) sha1 = function<decltype(&EVP_sha1)>("EVP_sha1");
  decltype(&EVP_DigestInit_ex) init = function<decltype(&EVP_DigestInit_ex)>("EVP_DigestInit_ex");
  decltype(&EVP_DigestUpdate) update = function<decltype(&EVP_DigestUpdate)>("EVP_DigestUpdate");
  decltype(&EVP_DigestFinal_ex) final = function<decltype(&EVP_DigestFinal_ex)>("EVP_DigestFinal_ex");

 private:
  template <class Pointer>
  static Pointer function(const char* name) {
    static const SharedLibrary library("libcrypto.so.3", "OpenSSL 3", "libssl3");
    return library.function<Pointer>(name);
  }
};

EVP_MD_CTX* context_of(void* context) { return static_cast<EVP_MD_CTX*>(context); }

[[noreturn]] void fail() {
  throw Error(ErrorKind::resource, "SHA digest", "OpenSSL refuses to compute it", "a working libcrypto");
}

}  // namespace

ExpectedDigest digest_of_etag(std::string_view etag) {
  std::string hex(etag);
  for (char& c : hex) {
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return {};
  }
  if (hex.size() == 64) return {DigestKind::sha256, hex};
  if (hex.size() == 40) return {DigestKind::git_blob, hex};
  return {};
}

void Digest::Free::operator()(void* context) const { CryptoLibrary::get().context_free(context_of(context)); }

Digest::Digest(DigestKind kind, uint64_t size) {
  if (kind == DigestKind::none) return;
  const CryptoLibrary& crypto = CryptoLibrary::get();
  context_.reset(crypto.context_new());
  const EVP_MD* algorithm = kind == DigestKind::sha256 ? crypto.sha256() : crypto.sha1();
  if (context_ == nullptr || crypto.init(context_of(context_.get()), algorithm, nullptr) != 1) fail();
  if (kind == DigestKind::git_blob) {
    const std::string head = fmt::format("blob {}", size);
    add(std::as_bytes(std::span(head.c_str(), head.size() + 1)));
  }
}

void Digest::add(std::span<const std::byte> bytes) {
  if (context_ == nullptr) return;
  if (CryptoLibrary::get().update(context_of(context_.get()), bytes.data(), bytes.size()) != 1) fail();
}

std::string Digest::hex() {
  if (context_ == nullptr) return {};
  std::array<unsigned char, EVP_MAX_MD_SIZE> raw{};
  unsigned int length = 0;
  if (CryptoLibrary::get().final(context_of(context_.get()), raw.data(), &length) != 1) fail();
  std::string text;
  for (const unsigned char byte : std::span(raw).first(length)) text += fmt::format("{:02x}", byte);
  return text;
}

}  // namespace keysieve
