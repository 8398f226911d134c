#include <algorithm>
#include <fstream>
#include <sstream>

#include "fixture.h"
#include "keysieve/session.h"

// Saving a session and loading it: the next tokens are those of a session that was never saved, and no file
// can do more than be refused.

namespace keysieve {
namespace {

using ::testing::ElementsAreArray;
using testing::expect_error;
using testing::TinyWorld;

std::vector<int32_t> some_tokens(size_t count, int32_t seed = 0) {
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>((i * 37 + i * i * 11 + static_cast<size_t>(seed) * 101 + 65) % 256);
  }
  return ids;
}

class SessionFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "state.session";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  SessionOptions sparse(CacheKind cache, size_t budget = 24) const {
    SessionOptions options;
    options.indexer = LightningIndexer::load(TinyWorld::get().indexer.string(), model_);
    options.budget = budget;
    options.cache = cache;
    return options;
  }
  static std::string read(const std::filesystem::path& path) {
    std::ostringstream out;
    out << std::ifstream(path, std::ios::binary).rdbuf();
    return out.str();
  }
  void write(const std::string& content) const { std::ofstream(path_, std::ios::binary) << content; }
  // The refusal leaves an empty session that works.
  void expect_refused(const SessionOptions& options, ErrorKind kind, const std::vector<std::string>& parts) {
    Session session(model_, options);
    session.prefill(some_tokens(30));
    expect_error(kind, parts, [&] { session.load(path_); });
    EXPECT_EQ(session.length(), 0u);
    EXPECT_TRUE(session.tokens().empty());
    EXPECT_TRUE(session.last_logits().empty());
    session.prefill(some_tokens(100));
    EXPECT_EQ(session.length(), 100u);
  }

  LanguageModel model_ = TinyWorld::get().load();
  std::filesystem::path folder_ = TinyWorld::get().folder / ("sessions_" + std::to_string(::getpid()));
  std::filesystem::path path_;
};

GenerateOptions answer() {
  GenerateOptions options;
  options.max_tokens = 40;
  options.ignore_end_tokens = true;
  return options;
}

TEST_F(SessionFile, TheNextTokensAreThoseOfASessionNeverSaved) {
  std::vector<std::pair<std::string, SessionOptions>> kinds = {
      {"dense", {}},
      {"full", sparse(CacheKind::full)},
      {"fixed", sparse(CacheKind::fixed)},
      {"fixed, cut by chunks", sparse(CacheKind::fixed)},
      {"tiered", sparse(CacheKind::tiered)},
      {"tiered, file", sparse(CacheKind::tiered)},
      {"tiered, all hot", sparse(CacheKind::tiered, 400)}};
  kinds[3].second.prune = PruneRule::after_each_chunk;
  kinds[5].second.cold_store = folder_;
  for (const auto& [name, options] : kinds) {
    for (const size_t length : {5, 23, 24, 90, 300}) {
      Session first(model_, options);
      first.prefill(some_tokens(length));
      first.save(path_);
      Session second(model_, options);
      second.prefill(some_tokens(50, 3));
      second.load(path_);
      EXPECT_EQ(second.length(), length);
      EXPECT_THAT(second.tokens(), ElementsAreArray(some_tokens(length)));
      EXPECT_THAT(second.last_logits(), ElementsAreArray(first.last_logits())) << name;
      // At once, and after more of a prompt.
      std::vector<int32_t> ids = some_tokens(length);
      EXPECT_EQ(second.generate(ids, answer()).token_ids, first.generate(ids, answer()).token_ids) << name;
      first.load(path_);
      second.load(path_);
      const std::vector<int32_t> question = some_tokens(21, 5);
      ids.insert(ids.end(), question.begin(), question.end());
      const GenerateResult result = second.generate(ids, answer());
      EXPECT_EQ(result.token_ids, first.generate(ids, answer()).token_ids) << name;
      EXPECT_EQ(result.reused_tokens, length);
      Session never(model_, options);
      never.prefill(some_tokens(length));
      EXPECT_EQ(result.token_ids, never.generate(ids, answer()).token_ids) << name << " " << length;
    }
  }
}

TEST_F(SessionFile, FullAndTieredLoadEachOther) {
  const std::vector<int32_t> ids = some_tokens(300);
  Session full(model_, sparse(CacheKind::full));
  full.prefill(ids);
  full.save(path_);
  Session tiered(model_, sparse(CacheKind::tiered));
  tiered.load(path_);
  tiered.save(folder_ / "again");
  EXPECT_EQ(read(folder_ / "again"), read(path_));
  EXPECT_EQ(tiered.generate(ids, answer()).token_ids, full.generate(ids, answer()).token_ids);
}

TEST_F(SessionFile, AnEmptySessionCanBeSaved) {
  Session session(model_);
  session.save(path_);
  session.prefill(some_tokens(4));
  session.load(path_);
  EXPECT_EQ(session.length(), 0u);
  EXPECT_TRUE(session.last_logits().empty());
}

TEST_F(SessionFile, EachByteAndEachLengthMatters) {
  const SessionOptions options = sparse(CacheKind::fixed);
  Session session(model_, options);
  session.prefill(some_tokens(60));
  session.save(path_);
  const std::string whole = read(path_);
  const auto refused = [&](const std::string& content) {
    write(content);
    try {
      session.load(path_);
    } catch (const Error&) {
      EXPECT_EQ(session.length(), 0u);
      return true;
    }
    return false;
  };
  for (size_t length = 0; length < whole.size(); length += length < 700 ? 1 : 97) {
    ASSERT_TRUE(refused(whole.substr(0, length))) << length << " of " << whole.size() << " bytes";
  }
  ASSERT_TRUE(refused(whole + "x"));
  for (size_t at = 0; at < whole.size(); at += at < 700 ? 1 : 61) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    ASSERT_TRUE(refused(damaged)) << "byte " << at;
  }
  ASSERT_FALSE(refused(whole));
}

TEST_F(SessionFile, RefusesWhatDoesNotBelong) {
  const SessionOptions full = sparse(CacheKind::full);
  Session session(model_, full);
  session.prefill(some_tokens(60));
  session.save(path_);
  expect_refused({}, ErrorKind::mismatch, {"indexer", "none"});
  expect_refused(sparse(CacheKind::fixed), ErrorKind::mismatch, {"cache full", "fixed"});
  SessionOptions small = full;
  small.context = 50;
  Session too_small(model_, small);
  expect_error(ErrorKind::mismatch, {"60 tokens", "50"}, [&] { too_small.load(path_); });

  LoadOptions halves;
  halves.kv = KvPrecision::f16;
  const LanguageModel other_precision = TinyWorld::get().load(halves);
  Session as_halves(other_precision, full);
  expect_error(ErrorKind::mismatch, {"f32", "f16"}, [&] { as_halves.load(path_); });
  const std::filesystem::path stranger = testing::write_tiny_model(folder_ / "stranger", 9);
  const LanguageModel other = LanguageModel::load(stranger.string());
  Session elsewhere(other);
  expect_error(ErrorKind::mismatch, {"model"}, [&] { elsewhere.load(path_); });

  LoadOptions stretched;
  stretched.yarn = 4;
  const LanguageModel longer = TinyWorld::get().load(stretched);
  Session with_other_angles(longer, full);
  expect_error(ErrorKind::mismatch, {"model", "YaRN 4"}, [&] { with_other_angles.load(path_); });

  Session fixed(model_, sparse(CacheKind::fixed));
  fixed.prefill(some_tokens(60));
  fixed.save(path_);
  expect_refused(sparse(CacheKind::fixed, 30), ErrorKind::mismatch, {"budgets", "24", "30"});

  expect_error(ErrorKind::file, {"missing"}, [&] { fixed.load(folder_ / "missing"); });
  expect_error(ErrorKind::file, {}, [&] { fixed.save(folder_ / "no" / "folder"); });
}

std::string with_header(const std::string& header, uint32_t version = 1, std::string magic = "keysieve") {
  const auto length = static_cast<uint32_t>(header.size());
  magic.append(reinterpret_cast<const char*>(&version), 4);
  magic.append(reinterpret_cast<const char*>(&length), 4);
  return magic + header;
}

TEST_F(SessionFile, HostileHeadersAreRefusedBeforeAnythingIsAllocated) {
  Session session(model_);
  session.prefill(some_tokens(10));
  session.save(path_);
  const std::string whole = read(path_);
  uint32_t length = 0;
  std::memcpy(&length, whole.data() + 12, 4);
  const std::string header = whole.substr(16, length);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = header;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return with_header(text.replace(at, from.size(), to));
  };
  const std::string positions = "\"positions\":10";
  write(changed(positions, "\"positions\":18446744073709551615"));
  expect_refused({}, ErrorKind::mismatch, {"18446744073709551615 tokens"});
  write(changed(positions, "\"positions\":-1"));
  expect_refused({}, ErrorKind::format, {});
  write(changed(positions, "\"positions\":\"many\""));
  expect_refused({}, ErrorKind::format, {});
  write(changed("\"layers\":2", "\"layers\":4000000000"));
  expect_refused({}, ErrorKind::mismatch, {"layers", "4000000000"});
  write(changed("\"budgets\":[]", "\"budgets\":7"));
  expect_refused({}, ErrorKind::format, {"budgets"});
  write(with_header("[1, 2]"));
  expect_refused({}, ErrorKind::format, {});
  write(with_header(std::string(3000, '[')));
  expect_refused({}, ErrorKind::format, {});
  write(with_header(header, 2));
  expect_refused({}, ErrorKind::unsupported, {"version 2"});
  write(with_header(header, 1, "keyserve"));
  expect_refused({}, ErrorKind::format, {"not a session"});
  std::string long_header = with_header(header);
  long_header.replace(12, 4, "\xff\xff\xff\x7f");
  write(long_header);
  expect_refused({}, ErrorKind::format, {"header of 2147483647 bytes"});
  // Token ids outside the vocabulary.
  std::string bad_token = whole;
  bad_token.replace(16 + length, 4, "\xff\xff\xff\x7f");
  write(bad_token);
  expect_refused({}, ErrorKind::usage, {"token id"});
}

TEST_F(SessionFile, AFailedSaveLeavesTheOldFile) {
  Session session(model_);
  session.prefill(some_tokens(10));
  session.save(path_);
  const std::string before = read(path_);
  std::filesystem::create_directories(folder_ / "taken");
  expect_error(ErrorKind::file, {"directory"}, [&] { session.save(folder_ / "taken"); });
  EXPECT_EQ(read(path_), before);
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 2u);  // no temporary file is left
}

}  // namespace
}  // namespace keysieve
