#include "keysieve/session.h"

#include "keysieve/roofline.h"

#include <algorithm>
#include <atomic>
#include <fstream>

#include "core/json.h"
#include "fixture.h"

namespace keysieve {
namespace {

using ::testing::ElementsAreArray;
using testing::expect_error;
using testing::max_difference;
using testing::TinyModel;
using testing::TinyWorld;

std::vector<int32_t> some_prompt(size_t tokens, int32_t seed = 0) {
  std::vector<int32_t> ids(tokens);
  for (size_t i = 0; i < tokens; ++i)
    ids[i] = static_cast<int32_t>((i * 37 + i * i * 11 + seed * 101 + 65) % 256);
  return ids;
}

GenerateOptions for_tokens(size_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_end_tokens = true;
  return options;
}

class SessionTest : public ::testing::Test {
 protected:
  LanguageModel model_ = TinyWorld::get().load();

  SessionOptions sparse(size_t budget, CacheKind cache = CacheKind::full) {
    SessionOptions options;
    options.indexer = LightningIndexer::load(TinyWorld::get().indexer.string(), model_);
    options.budget = budget;
    options.cache = cache;
    return options;
  }
  // What a session of its own says to this prompt.
  GenerateResult fresh(const std::vector<int32_t>& prompt, const GenerateOptions& options,
                       const SessionOptions& session = {}) {
    return Session(model_, session).generate(prompt, options);
  }
};

TEST_F(SessionTest, InfoDescribesTheModel) {
  const ModelInfo& info = model_.info();
  EXPECT_EQ(info.architecture, "llama");
  EXPECT_EQ(info.layers, TinyModel::kLayers);
  EXPECT_EQ(info.kv_heads, TinyModel::kKvHeads);
  EXPECT_EQ(info.vocabulary, TinyModel::kVocabulary);
  EXPECT_EQ(info.context, TinyModel::kContext);
  EXPECT_GT(info.weights_bytes, 0u);
  // Two layers of keys and values for two heads of eight floats: weights that are not quantised keep f32.
  EXPECT_EQ(info.kv_bytes_per_token, 2u * 2 * 2 * 8 * 4);
  EXPECT_EQ(info.threads, 1);
}

TEST_F(SessionTest, GreedyFollowsTheLogits) {
  Session session(model_);
  const std::vector<int32_t> prompt = some_prompt(20);
  const GenerateResult result = session.generate(prompt, for_tokens(10));
  ASSERT_EQ(result.token_ids.size(), 10u);
  EXPECT_EQ(result.stop_reason, StopReason::max_tokens);
  std::vector<int32_t> whole = prompt;
  whole.insert(whole.end(), result.token_ids.begin(), result.token_ids.end());
  session.logits(whole, [&](size_t position, std::span<const float> row) {
    if (position + 1 < prompt.size() || position + 1 >= whole.size()) return;
    const auto best = std::max_element(row.begin(), row.end()) - row.begin();
    EXPECT_EQ(best, whole[position + 1]) << "at " << position;
  });
}

TEST_F(SessionTest, TheTextIsTheTokensAndArrivesInWholeCharacters) {
  Session session(model_);
  std::string streamed;
  const GenerateResult result =
      session.generate(some_prompt(20), for_tokens(60), [&](std::string_view piece) {
        EXPECT_FALSE(piece.empty());
        // Bytes 80 to BF continue a character: no piece starts with one.
        EXPECT_NE(static_cast<unsigned char>(piece.front()) & 0xc0, 0x80);
        streamed += piece;
        return true;
      });
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.text, model_.text().decode(result.token_ids, true));
}

TEST_F(SessionTest, StopsAtEndTokens) {
  // Greedy on random weights says no end token; the first one it does say is made one by sampling long
  // enough.
  GenerateOptions options;
  options.max_tokens = 400;
  options.sampling.temperature = 3;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    options.sampling.seed = seed;
    const GenerateResult result = fresh(some_prompt(10), options);
    if (result.stop_reason != StopReason::end_token) continue;
    EXPECT_TRUE(std::ranges::binary_search(model_.text().end_tokens(), result.token_ids.back()));
    EXPECT_EQ(result.text.find("<|im_end|>"), std::string::npos);
    EXPECT_EQ(to_string(result.stop_reason), "end");
    return;
  }
  FAIL() << "no end token in 8,000 draws at temperature 3";
}

TEST_F(SessionTest, StopStringsEndTheText) {
  const std::string whole = fresh(some_prompt(20), for_tokens(40)).text;
  ASSERT_GT(whole.size(), 12u);
  GenerateOptions options = for_tokens(40);
  options.stop = {whole.substr(5, 4), "never said"};
  std::string streamed;
  Session session(model_);
  const GenerateResult result = session.generate(some_prompt(20), options, [&](std::string_view piece) {
    streamed += piece;
    return true;
  });
  EXPECT_EQ(result.stop_reason, StopReason::stop_string);
  EXPECT_EQ(result.text, whole.substr(0, whole.find(options.stop[0])));
  EXPECT_EQ(streamed, result.text);
}

TEST_F(SessionTest, EqualSeedsGiveEqualTexts) {
  GenerateOptions options = for_tokens(30);
  options.sampling.temperature = 1;
  options.sampling.seed = 5;
  const GenerateResult first = fresh(some_prompt(10), options);
  EXPECT_EQ(fresh(some_prompt(10), options).token_ids, first.token_ids);
  options.sampling.seed = 6;
  EXPECT_NE(fresh(some_prompt(10), options).token_ids, first.token_ids);
}

TEST_F(SessionTest, ReusesWhatTheCacheHoldsOfAPrompt) {
  Session session(model_);
  std::vector<int32_t> prompt = some_prompt(30);
  const GenerateResult first = session.generate(prompt, for_tokens(8));
  EXPECT_EQ(first.reused_tokens, 0u);
  // The next turn of a chat: what was said, then something new.
  prompt.insert(prompt.end(), first.token_ids.begin(), first.token_ids.end());
  const std::vector<int32_t> more = some_prompt(5, 3);
  prompt.insert(prompt.end(), more.begin(), more.end());
  const GenerateResult second = session.generate(prompt, for_tokens(8));
  EXPECT_EQ(second.reused_tokens, 37u);  // the last token drawn was never processed
  EXPECT_EQ(second.statistics.prefill.tokens, 6u);
  EXPECT_EQ(second.token_ids, fresh(prompt, for_tokens(8)).token_ids);
  // Another ending: kept up to where it differs.
  prompt[35] = (prompt[35] + 1) % 256;
  const GenerateResult third = session.generate(prompt, for_tokens(8));
  EXPECT_EQ(third.reused_tokens, 35u);
  EXPECT_EQ(third.token_ids, fresh(prompt, for_tokens(8)).token_ids);
  // The same prompt again: its last token is processed again for its logits.
  EXPECT_EQ(session.generate(prompt, for_tokens(8)).reused_tokens, 42u);
}

TEST_F(SessionTest, ClearForgets) {
  Session session(model_);
  const std::vector<int32_t> prompt = some_prompt(30);
  const GenerateResult first = session.generate(prompt, for_tokens(4));
  EXPECT_EQ(session.length(), 33u);
  EXPECT_GT(session.statistics().memory.kv_hot_bytes, 0u);
  session.clear();
  EXPECT_EQ(session.length(), 0u);
  EXPECT_EQ(session.statistics().prefill.tokens, 0u);
  EXPECT_EQ(session.statistics().memory.kv_hot_bytes, 0u);
  const GenerateResult again = session.generate(prompt, for_tokens(4));
  EXPECT_EQ(again.reused_tokens, 0u);
  EXPECT_EQ(again.token_ids, first.token_ids);
}

TEST_F(SessionTest, CountsWhatDenseAttentionReads) {
  const GenerateResult result = fresh(some_prompt(100), for_tokens(5));
  EXPECT_EQ(result.statistics.prefill.tokens, 100u);
  EXPECT_DOUBLE_EQ(result.statistics.prefill.positions_read, 50.5);  // mean of 1 .. 100
  EXPECT_EQ(result.statistics.decode.tokens, 4u);
  EXPECT_DOUBLE_EQ(result.statistics.decode.positions_read, 102.5);  // mean of 101 .. 104
  EXPECT_EQ(result.statistics.decode.kv_bytes_read, 410 * model_.info().kv_bytes_per_token);
  EXPECT_EQ(result.statistics.kv_bytes_kept, 104 * model_.info().kv_bytes_per_token);
}

TEST_F(SessionTest, CountsMemoryReadsAndMultiplyAdds) {
  using Tiny = TinyModel;
  const GenerateResult result = fresh(some_prompt(100), for_tokens(5));
  const PhaseStatistics& prefill = result.statistics.prefill;
  const PhaseStatistics& decode = result.statistics.decode;
  // q and o; k and v; gate, up and down.
  const uint64_t layer = Tiny::kHidden * (2 * Tiny::kHeads * Tiny::kHeadDim +
                                          2 * Tiny::kKvHeads * Tiny::kHeadDim + 3 * Tiny::kMlp);
  const uint64_t token = Tiny::kLayers * layer;
  const uint64_t head = Tiny::kVocabulary * Tiny::kHidden;
  const uint64_t position = Tiny::kLayers * Tiny::kHeads * 2 * Tiny::kHeadDim;  // scores and weighted values
  EXPECT_EQ(prefill.multiply_adds, 100 * token + head + 5050 * position);       // the head of the last token
  EXPECT_EQ(decode.multiply_adds, 4 * (token + head) + 410 * position);
  const ModelInfo& info = model_.info();
  // A decode step reads the weights once; prefill reads its own 100 rows once however many queries do.
  EXPECT_EQ(decode.memory_bytes_read, 4 * info.weights_bytes + 410 * info.kv_bytes_per_token);
  EXPECT_EQ(prefill.memory_bytes_read, info.weights_bytes + 100 * info.kv_bytes_per_token);
}

TEST_F(SessionTest, SparseReadsFewerBytesThanDenseAndScoresEverything) {
  const GenerateResult dense = fresh(some_prompt(300), for_tokens(5));
  const GenerateResult result = fresh(some_prompt(300), for_tokens(5), sparse(24));
  EXPECT_LT(result.statistics.decode.kv_bytes_read, dense.statistics.decode.kv_bytes_read);
  const uint64_t weights = 4 * model_.info().weights_bytes;
  const uint64_t index =
      result.statistics.decode.memory_bytes_read - weights - result.statistics.decode.kv_bytes_read;
  // 301 to 304 candidates a step, of each of which an index key is read.
  EXPECT_EQ(index, result.statistics.memory.index_bytes / 304 * (301 + 302 + 303 + 304));
}

TEST_F(SessionTest, RooflineIsRatesOverPeaks) {
  PhaseStatistics phase;
  phase.tokens = 50;
  phase.seconds = 0.5;
  phase.memory_bytes_read = 4'000'000'000;
  phase.multiply_adds = 30'000'000'000;
  const MachinePeaks peaks{.multiply_adds_per_second = 240e9, .read_bytes_per_second = 32e9};
  const Roofline line = roofline(phase, peaks);
  EXPECT_DOUBLE_EQ(line.tokens_per_second, 100);
  EXPECT_DOUBLE_EQ(line.bytes_per_second, 8e9);
  EXPECT_DOUBLE_EQ(line.read_share, 0.25);
  EXPECT_DOUBLE_EQ(line.multiply_adds_per_second, 60e9);
  EXPECT_DOUBLE_EQ(line.multiply_add_share, 0.25);
  EXPECT_EQ(roofline(phase, {}).multiply_add_share, 0);  // a family without int8 dot products
  EXPECT_EQ(roofline({}, peaks).bytes_per_second, 0);
}

TEST_F(SessionTest, PeaksOfThisMachineAreMeasured) {
  const MachinePeaks peaks = measure_peaks(model_);
  EXPECT_GT(peaks.read_bytes_per_second, 1e7);
  EXPECT_EQ(peaks.multiply_adds_per_second == 0, model_.info().kernels == "reference");
}

TEST_F(SessionTest, SparseReadsTheBudget) {
  const GenerateResult result = fresh(some_prompt(100), for_tokens(5), sparse(24));
  EXPECT_DOUBLE_EQ(result.statistics.decode.positions_read, 24);
  // The first 24 queries read 1 .. 24, the others 24.
  EXPECT_DOUBLE_EQ(result.statistics.prefill.positions_read, (24 * 25 / 2 + 76 * 24) / 100.0);
  EXPECT_GT(result.statistics.memory.index_bytes, 0u);
}

TEST_F(SessionTest, ABudgetOfEverythingIsDense) {
  const std::vector<int32_t> prompt = some_prompt(60);
  EXPECT_EQ(fresh(prompt, for_tokens(20), sparse(200)).token_ids, fresh(prompt, for_tokens(20)).token_ids);
}

TEST_F(SessionTest, TheIndexersOwnBudgetIsTheDefault) {
  const Session session(model_, sparse(0));
  EXPECT_EQ(session.budget(), 24u);
  EXPECT_EQ(Session(model_).budget(), 0u);
}

TEST_F(SessionTest, TheFixedCacheKeepsTheBudget) {
  Session session(model_, sparse(24, CacheKind::fixed));
  const GenerateResult result = session.generate(some_prompt(100), for_tokens(30));
  // One slot more takes the new row while it is weighed against the others.
  EXPECT_LE(result.statistics.kv_bytes_kept, 25 * model_.info().kv_bytes_per_token);
  EXPECT_EQ(session.length(), 129u);
  // A prompt that changes what was said cannot be reached by going back.
  std::vector<int32_t> other = some_prompt(100);
  other[50] = 1;
  EXPECT_EQ(session.generate(other, for_tokens(3)).reused_tokens, 0u);
}

TEST_F(SessionTest, TheTieredCacheForgetsNothing) {
  const std::filesystem::path folder = TinyWorld::get().folder / "cold";
  std::filesystem::create_directories(folder);
  for (const bool on_disk : {false, true}) {
    SessionOptions options = sparse(24, CacheKind::tiered);
    if (on_disk) options.cold_store = folder;
    Session session(model_, options);
    const std::vector<int32_t> prompt = some_prompt(300);
    const GenerateResult result = session.generate(prompt, for_tokens(30));
    EXPECT_EQ(result.token_ids, fresh(prompt, for_tokens(30), sparse(24)).token_ids);
    const MemoryStatistics& memory = result.statistics.memory;
    // The budget and a chunk of 64 are hot.
    EXPECT_EQ(memory.kv_hot_bytes, (24 + 64) * model_.info().kv_bytes_per_token);
    EXPECT_EQ(memory.kv_cold_bytes, 329 * model_.info().kv_bytes_per_token);
    EXPECT_GT(memory.kv_moved_bytes, 0u);
    // It can go back, since it has everything.
    std::vector<int32_t> other = prompt;
    other[250] = 1;
    const GenerateResult again = session.generate(other, for_tokens(20));
    EXPECT_EQ(again.reused_tokens, 250u);
    EXPECT_EQ(again.token_ids, fresh(other, for_tokens(20), sparse(24)).token_ids);
    session.clear();
    EXPECT_EQ(session.statistics().memory.kv_cold_bytes, 0u);
    EXPECT_TRUE(std::filesystem::is_empty(folder));
  }
  SessionOptions nowhere = sparse(24, CacheKind::tiered);
  nowhere.cold_store = folder / "missing";
  expect_error(ErrorKind::file, {"missing"}, [&] { Session(model_, nowhere); });
}

TEST_F(SessionTest, SelectionsAreRecorded) {
  Session session(model_, sparse(24));
  Session::SelectionRecord record;
  const std::vector<int32_t> ids = some_prompt(50);
  size_t rows = 0;
  EXPECT_TRUE(session.logits(ids, [&](size_t, std::span<const float>) { ++rows; }, &record));
  EXPECT_EQ(rows, 50u);
  ASSERT_EQ(record.size(), TinyModel::kLayers);
  for (const auto& layer : record) {
    ASSERT_EQ(layer.size(), 50u);
    for (size_t query = 0; query < 50; ++query) {
      for (const auto& positions : layer[query]) {
        EXPECT_EQ(positions.size(), std::min<size_t>(query + 1, 24));
        EXPECT_TRUE(std::ranges::is_sorted(positions));
        EXPECT_EQ(positions.back(), query);
      }
      EXPECT_EQ(layer[query].size(), TinyModel::kKvHeads);
    }
  }
}

TEST_F(SessionTest, TheCallbackStops) {
  Session session(model_);
  size_t calls = 0;
  const GenerateResult result =
      session.generate(some_prompt(20), for_tokens(100), [&](std::string_view) { return ++calls < 3; });
  EXPECT_EQ(result.stop_reason, StopReason::interrupted);
  EXPECT_LT(result.token_ids.size(), 20u);
}

TEST_F(SessionTest, CancelStopsAndTheSessionGoesOn) {
  Session session(model_);
  std::atomic<bool> cancel{true};
  GenerateOptions options = for_tokens(10);
  options.cancel = &cancel;
  const GenerateResult stopped = session.generate(some_prompt(20), options);
  EXPECT_EQ(stopped.stop_reason, StopReason::interrupted);
  EXPECT_TRUE(stopped.token_ids.empty());
  cancel = false;
  EXPECT_EQ(session.generate(some_prompt(20), options).token_ids,
            fresh(some_prompt(20), for_tokens(10)).token_ids);
  // In the middle of an answer what was said stays.
  const GenerateResult half = session.generate(some_prompt(20), options, [&](std::string_view) {
    cancel = true;
    return true;
  });
  EXPECT_EQ(half.stop_reason, StopReason::interrupted);
  EXPECT_FALSE(half.token_ids.empty());
  EXPECT_LT(half.token_ids.size(), 10u);
}

TEST_F(SessionTest, StopsWhereTheContextEnds) {
  const GenerateResult result = fresh(some_prompt(TinyModel::kContext - 4), for_tokens(50));
  EXPECT_EQ(result.stop_reason, StopReason::context);
  EXPECT_EQ(result.token_ids.size(), 5u);
}

TEST_F(SessionTest, PromptsThatDoNotFitAreRefusedWithTheNumbers) {
  Session session(model_);
  for (const size_t tokens : {TinyModel::kContext, TinyModel::kContext + 1000}) {
    expect_error(ErrorKind::mismatch, {std::to_string(tokens) + " tokens", "511", "--context"},
                 [&] { session.generate(some_prompt(tokens), {}); });
  }
  expect_error(ErrorKind::mismatch, {"600 tokens"}, [&] { session.prefill(some_prompt(600)); });
  expect_error(ErrorKind::mismatch, {"600", "512"},
               [&] { session.logits(some_prompt(600), [](size_t, std::span<const float>) {}); });
  // The session is as good as before.
  EXPECT_EQ(session.generate(some_prompt(20), for_tokens(3)).token_ids.size(), 3u);
}

TEST_F(SessionTest, BadTokensAreRefused) {
  Session session(model_);
  expect_error(ErrorKind::usage, {"no tokens"}, [&] { session.generate({}, {}); });
  for (const int32_t bad : {-1, static_cast<int32_t>(TinyModel::kVocabulary), 2147483647}) {
    const std::vector<int32_t> ids = {1, bad};
    expect_error(ErrorKind::usage, {std::to_string(bad), "0 to 258"}, [&] { session.generate(ids, {}); });
  }
}

TEST_F(SessionTest, OptionsThatMakeNoSenseAreRefused) {
  SessionOptions options;
  options.budget = 10;
  expect_error(ErrorKind::usage, {"indexer"}, [&] { Session(model_, options); });
  options = {};
  options.cache = CacheKind::fixed;
  expect_error(ErrorKind::usage, {"indexer"}, [&] { Session(model_, options); });
  options.cache = CacheKind::tiered;
  expect_error(ErrorKind::usage, {"indexer"}, [&] { Session(model_, options); });
  expect_error(ErrorKind::usage, {"9", "sinks 2", "recent 8"}, [&] { Session(model_, sparse(9)); });
  options = sparse(20);
  options.query_block = SessionOptions::kMostQueryBlock + 1;
  expect_error(ErrorKind::usage, {"query block", "65", "at most 64"}, [&] { Session(model_, options); });
  LoadOptions load;
  load.kernels = "abacus";
  expect_error(ErrorKind::usage, {"abacus", "reference"}, [&] { (void)TinyWorld::get().load(load); });
}

// --yarn on a plain model is the model whose config.json says the same.
TEST_F(SessionTest, YarnByOptionIsYarnByFile) {
  const std::filesystem::path folder = TinyWorld::get().folder / "stretched";
  std::filesystem::copy(TinyWorld::get().model, folder, std::filesystem::copy_options::recursive);
  std::ifstream in(folder / "config.json");
  Json config = Json::parse(in);
  const auto original = config.at("max_position_embeddings").get<size_t>();
  config["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 3.0}, {"original_max_position_embeddings", original / 2}};
  std::ofstream(folder / "config.json") << config.dump();

  LoadOptions stretch;
  stretch.yarn = 3;
  stretch.yarn_original = original / 2;
  const LanguageModel by_option = TinyWorld::get().load(stretch);
  const LanguageModel by_file = LanguageModel::load(folder.string(), {.threads = 1});
  EXPECT_EQ(by_option.info().context, original / 2 * 3);
  const auto last_logits = [](const LanguageModel& model) {
    Session session(model);
    session.prefill(some_prompt(50));
    return std::vector<float>(session.last_logits().begin(), session.last_logits().end());
  };
  EXPECT_EQ(last_logits(by_option), last_logits(by_file));
  EXPECT_NE(last_logits(by_option), last_logits(model_));
}

TEST_F(SessionTest, AnIndexerServesItsModelOnly) {
  const std::filesystem::path other = TinyWorld::get().folder / "other";
  testing::write_tiny_model(other, 2);
  const LanguageModel stranger = LanguageModel::load(other.string(), {.threads = 1});
  const SessionOptions options = sparse(24);
  expect_error(ErrorKind::mismatch, {"another model"}, [&] { Session(stranger, options); });
}

}  // namespace
}  // namespace keysieve
