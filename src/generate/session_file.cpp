#include "generate/session_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cerrno>

#include "core/system_reason.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

static_assert(std::endian::native == std::endian::little, "session files hold numbers as they lie in memory");

constexpr std::string_view kMagic = "keysieve";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMostHeader = 1 << 20;  // bytes; a header of 1,000 layers has 10,000

std::string_view name_of(KvType type) {
  return type == KvType::f32 ? "f32" : type == KvType::f16 ? "f16" : "i8";
}
std::string_view name_of(IndexKeyType type) {
  return type == IndexKeyType::f32 ? "f32" : type == IndexKeyType::i8 ? "i8" : "i4";
}

}  // namespace

Json to_json(const SessionHeader& header) {
  return {{"model", header.model},
          {"indexer", header.indexer},
          {"cache", header.cache},
          {"kv_type", header.kv_type},
          {"index_type", header.index_type},
          {"layers", header.layers},
          {"kv_heads", header.kv_heads},
          {"head_dim", header.head_dim},
          {"index_heads", header.index_heads},
          {"index_dim", header.index_dim},
          {"sets", header.sets},
          {"budgets", header.budgets},
          {"positions", header.positions}};
}

SessionHeader parse_session_header(std::string_view text, std::string_view subject) {
  const Json json = parse_json(text, subject);
  if (!json.is_object()) throw Error(ErrorKind::format, subject, "a header that is no object", "an object");
  SessionHeader header;
  const auto read = [&]<class T>(T& to, std::string_view key) { to = json_require<T>(json, key, subject); };
  read(header.model, "model");
  read(header.indexer, "indexer");
  read(header.cache, "cache");
  read(header.kv_type, "kv_type");
  read(header.index_type, "index_type");
  read(header.layers, "layers");
  read(header.kv_heads, "kv_heads");
  read(header.head_dim, "head_dim");
  read(header.index_heads, "index_heads");
  read(header.index_dim, "index_dim");
  read(header.sets, "sets");
  read(header.positions, "positions");
  const auto budgets = json.find("budgets");
  if (budgets == json.end() || !budgets->is_array()) {
    throw Error(ErrorKind::format, subject, "a header without budgets", "a list");
  }
  for (const Json& budget : *budgets) {
    if (!budget.is_number_unsigned())
      throw Error(ErrorKind::format, subject, "a bad budget", "whole numbers");
    header.budgets.push_back(budget.get<size_t>());
  }
  return header;
}

void require_equal(const SessionHeader& file, const SessionHeader& session, std::string_view subject) {
  const auto check = [&](std::string_view what, const auto& found, const auto& expected,
                         std::string_view way_out) {
    if (found == expected) return;
    throw Error(ErrorKind::mismatch, subject, fmt::format("a session with {} {}", what, found),
                fmt::format("{}", expected), way_out);
  };
  check("model", file.model, session.model, "load it with the model it was saved with");
  if (file.indexer != session.indexer) {
    const auto name = [](const std::string& indexer) { return indexer.empty() ? "none" : indexer; };
    check("indexer", name(file.indexer), name(session.indexer), "name the --indexer it was saved with");
  }
  check("cache", file.cache, session.cache,
        file.cache == "fixed" ? "use --cache fixed" : "use --cache full or tiered");
  check("keys and values as", file.kv_type, session.kv_type, "use the --kv it was saved with");
  check("index keys as", file.index_type, session.index_type, "");
  check("layers", file.layers, session.layers, "");
  check("KV heads", file.kv_heads, session.kv_heads, "");
  check("head size", file.head_dim, session.head_dim, "");
  check("index heads", file.index_heads, session.index_heads, "");
  check("index size", file.index_dim, session.index_dim, "");
  check("sets of positions", file.sets, session.sets, "use the --selection it was saved with");
  check("budgets", file.budgets, session.budgets, "use the --budget it was saved with");
}

SessionHeader describe_cache(const KvCache& cache) {
  const CacheShape& shape = cache.shape();
  SessionHeader header;
  header.cache = cache.state_format();
  header.kv_type = name_of(shape.kv_type);
  header.layers = shape.layers;
  header.kv_heads = shape.kv_heads;
  header.head_dim = shape.head_dim;
  header.index_heads = shape.index_heads;
  if (shape.index_heads > 0) {
    header.index_type = name_of(shape.index_type);
    header.index_dim = shape.index_dim;
  }
  header.sets = cache.sets();
  for (size_t layer = 0; layer < shape.layers && !cache.keeps_everything(); ++layer) {
    header.budgets.push_back(cache.budget(layer));
  }
  return header;
}

SessionFileWriter::SessionFileWriter(const std::filesystem::path& path, const SessionHeader& header)
    : file_(path) {
  const std::string text = to_json(header).dump();
  write(std::as_bytes(std::span(kMagic)));
  value(kVersion);
  value(static_cast<uint32_t>(text.size()));
  write(std::as_bytes(std::span(text)));
}

void SessionFileWriter::write(std::span<const std::byte> bytes) {
  checksum_.add(bytes);
  file_.write(bytes);
}

void SessionFileWriter::commit() {
  const uint64_t sum = checksum_.value();
  file_.write(std::as_bytes(std::span(&sum, 1)));
  file_.commit();
}

void SessionFileReader::CloseFile::operator()(std::FILE* file) const { std::fclose(file); }

SessionFileReader::SessionFileReader(const std::filesystem::path& path)
    : subject_(path.string()), file_(std::fopen(path.c_str(), "rbe")) {
  if (!file_) {
    throw Error(ErrorKind::file, subject_, system_reason(errno), "a session file");
  }
  std::string magic(kMagic.size(), '\0');
  if (std::fread(magic.data(), 1, magic.size(), file_.get()) != magic.size() || magic != kMagic) {
    throw Error(ErrorKind::format, subject_, "not a session", "a file made with --save-session");
  }
  checksum_.add(std::as_bytes(std::span(magic)));
  const auto version = value<uint32_t>();
  if (version != kVersion) {
    throw Error(ErrorKind::unsupported, subject_, fmt::format("session version {}", version),
                fmt::format("{}", kVersion), "save it again with this program");
  }
  const auto length = value<uint32_t>();
  if (length > kMostHeader) {
    throw Error(ErrorKind::format, subject_, fmt::format("a header of {} bytes", length),
                fmt::format("at most {}", kMostHeader));
  }
  std::string text(length, '\0');
  read(std::as_writable_bytes(std::span(text)));
  header_ = parse_session_header(text, subject_);
}

SessionFileReader::~SessionFileReader() = default;

void SessionFileReader::read(std::span<std::byte> bytes) {
  if (std::fread(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) {
    if (std::ferror(file_.get()) != 0) {
      throw Error(ErrorKind::file, subject_, "cannot be read: " + system_reason(errno));
    }
    throw Error(ErrorKind::format, subject_, "ends early", "a whole session", "save it again");
  }
  checksum_.add(bytes);
}

void SessionFileReader::finish() {
  const uint64_t expected = checksum_.value();
  if (value<uint64_t>() != expected) {
    throw Error(ErrorKind::format, subject_, "damaged: its checksum differs", "", "save it again");
  }
  if (std::fgetc(file_.get()) != EOF) {
    throw Error(ErrorKind::format, subject_, "bytes after its end", "none", "save it again");
  }
}

}  // namespace keysieve
