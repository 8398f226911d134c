#include "keysieve/batch.h"

#include <array>
#include <random>

#include "fixture.h"

// Sessions decoded side by side get the logits they get alone, bit for bit.

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TinyWorld;

std::vector<int32_t> some_tokens(size_t count, uint32_t seed, int32_t below) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(below));
  return ids;
}

SessionOptions with(const LightningIndexer& indexer, size_t budget, CacheKind cache) {
  SessionOptions options;
  options.indexer = indexer;
  options.budget = budget;
  options.cache = cache;
  return options;
}

// Dense and sparse, long and short, of every cache kind.
std::vector<SessionOptions> mixed_options(const LightningIndexer& indexer, size_t budget) {
  return {{},
          with(indexer, budget, CacheKind::full),
          with(indexer, budget, CacheKind::fixed),
          with(indexer, 2 * budget, CacheKind::tiered),
          {},
          with(indexer, budget, CacheKind::tiered),
          with(indexer, 2 * budget, CacheKind::fixed),
          with(indexer, 2 * budget, CacheKind::full),
          {}};
}

// Sequences of mixed kinds and lengths; sequence i takes part in the steps that `takes_part` says, so batches
// grow and shrink. Every session has a twin that decodes alone.
void expect_parity(const LanguageModel& model, const std::vector<SessionOptions>& kinds, size_t shortest,
                   size_t steps, int32_t below) {
  const auto takes_part = [&](size_t i, size_t step) { return step >= i / 3 && step + 2 * (i % 3) < steps; };
  std::vector<Session> together;
  std::vector<Session> alone;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const std::vector<int32_t> prompt =
        some_tokens(shortest + i * shortest / 2, static_cast<uint32_t>(i), below);
    together.emplace_back(model, kinds[i]).prefill(prompt);
    alone.emplace_back(model, kinds[i]).prefill(prompt);
  }
  BatchedDecoder decoder(model, kinds.size());
  size_t sizes_seen = 0;
  for (size_t step = 0; step < steps; ++step) {
    std::vector<Session*> sessions;
    for (size_t i = 0; i < kinds.size(); ++i) {
      if (takes_part(i, step)) sessions.push_back(&together[i]);
    }
    const std::vector<int32_t> tokens =
        some_tokens(sessions.size(), static_cast<uint32_t>(100 + step), below);
    decoder.step(sessions, tokens);
    sizes_seen |= size_t{1} << sessions.size();
    size_t at = 0;
    for (size_t i = 0; i < kinds.size(); ++i) {
      if (!takes_part(i, step)) continue;
      alone[i].prefill({&tokens[at++], 1});
      ASSERT_TRUE(std::ranges::equal(together[i].last_logits(), alone[i].last_logits()))
          << "sequence " << i << ", step " << step << " of " << sessions.size();
      ASSERT_EQ(together[i].length(), alone[i].length());
    }
  }
  EXPECT_GE(std::popcount(sizes_seen), 3) << "batches of too few sizes";
}

TEST(BatchedDecoder, EqualsDecodingAloneBitForBit) {
  for (const std::string& kernels : kernel_families()) {
    for (const int threads : {1, 3}) {
      const LanguageModel model = TinyWorld::get().load({.threads = threads, .kernels = kernels});
      const LightningIndexer indexer = LightningIndexer::load(TinyWorld::get().indexer.string(), model);
      SCOPED_TRACE(kernels + ", threads " + std::to_string(threads));
      expect_parity(model, mixed_options(indexer, 24), 20, 9, 256);
    }
  }
}

// Llama, Qwen2 with biases, Qwen3 with norms of heads; GGUF types and plain floats.
TEST(BatchedDecoder, GoldenModelsEqualThemselvesAlone) {
  if (!testing::golden_dir()) GTEST_SKIP() << "no golden data";
  size_t models = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(*testing::golden_dir() / "models")) {
    const bool folder = std::filesystem::exists(entry.path() / "config.json");
    if (!folder && entry.path().extension() != ".gguf") continue;
    SCOPED_TRACE(entry.path());
    const LanguageModel model = LanguageModel::load(entry.path().string(), {.threads = 2});
    expect_parity(model, std::vector<SessionOptions>(7), 6, 7, static_cast<int32_t>(model.info().vocabulary));
    ++models;
  }
  EXPECT_GE(models, 9u);
}

TEST(BatchedDecoder, ARealModelEqualsItselfAlone) {
  if (!testing::models_dir()) GTEST_SKIP() << "no models";
  const std::filesystem::path file = *testing::models_dir() / "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf";
  const std::filesystem::path indexer_folder = testing::source_folder() / "indexers/smollm2-135m";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "no " << file;
  const LanguageModel model = LanguageModel::load(file.string(), {.threads = 2, .context = 512});
  const LightningIndexer indexer = LightningIndexer::load(indexer_folder.string(), model);
  expect_parity(model, mixed_options(indexer, 48), 32, 7, 49152);
}

class Answers : public ::testing::Test {
 protected:
  static GenerateOptions sampled(uint64_t seed, size_t max_tokens) {
    GenerateOptions options;
    options.max_tokens = max_tokens;
    options.sampling.temperature = 1;
    options.sampling.seed = seed;
    options.ignore_end_tokens = seed % 2 == 0;
    return options;
  }
  LanguageModel model_ = TinyWorld::get().load({.threads = 2});
  LightningIndexer indexer_ = LightningIndexer::load(TinyWorld::get().indexer.string(), model_);
};

// More answers than places: one joins whenever one has ended.
TEST_F(Answers, AreThoseOfGenerate) {
  const std::vector<SessionOptions> kinds = mixed_options(indexer_, 24);
  BatchedDecoder decoder(model_, 3);
  std::vector<Session> sessions;
  std::vector<std::string> streamed(kinds.size());
  std::vector<GenerateResult> results(kinds.size());
  for (const SessionOptions& kind : kinds) sessions.emplace_back(model_, kind);
  const auto prompt = [](size_t i) { return some_tokens(10 + 17 * i, static_cast<uint32_t>(i), 256); };
  size_t joined = 0;
  size_t ended = 0;
  while (ended < kinds.size()) {
    for (; joined < kinds.size() && decoder.answering() < 3; ++joined) {
      const size_t id = decoder.join(sessions[joined], prompt(joined), sampled(joined, 5 + 7 * (joined % 4)),
                                     [&streamed, at = joined](std::string_view piece) {
                                       streamed[at] += piece;
                                       return true;
                                     });
      ASSERT_EQ(id, joined);
    }
    for (BatchedDecoder::Answer& answer : decoder.advance()) {
      results[answer.id] = std::move(answer.result);
      ++ended;
    }
  }
  EXPECT_EQ(decoder.answering(), 0u);
  for (size_t i = 0; i < kinds.size(); ++i) {
    const GenerateResult alone = Session(model_, kinds[i]).generate(prompt(i), sampled(i, 5 + 7 * (i % 4)));
    EXPECT_EQ(results[i].token_ids, alone.token_ids) << i;
    EXPECT_EQ(results[i].text, alone.text) << i;
    EXPECT_EQ(streamed[i], alone.text) << i;
    EXPECT_EQ(results[i].stop_reason, alone.stop_reason) << i;
    EXPECT_EQ(results[i].statistics.decode.tokens, alone.statistics.decode.tokens) << i;
    EXPECT_EQ(results[i].statistics.decode.kv_bytes_read, alone.statistics.decode.kv_bytes_read) << i;
    EXPECT_EQ(sessions[i].length(), alone.prompt_tokens + alone.statistics.decode.tokens) << i;
    // The weights' bytes are shared: a batch reads less for each than it would alone.
    EXPECT_LE(results[i].statistics.decode.memory_bytes_read, alone.statistics.decode.memory_bytes_read) << i;
  }
}

TEST_F(Answers, EndWhereTheirCallbackOrFlagSaysSo) {
  BatchedDecoder decoder(model_, 3);
  Session refused(model_);
  Session cancelled(model_);
  Session whole(model_);
  const std::vector<int32_t> prompt = some_tokens(30, 1, 256);
  std::atomic<bool> cancel{false};
  GenerateOptions options = sampled(2, 12);
  decoder.join(refused, prompt, options, [](std::string_view) { return false; });
  options.cancel = &cancel;
  decoder.join(cancelled, prompt, options);
  options.cancel = nullptr;
  decoder.join(whole, prompt, options);
  std::vector<GenerateResult> results(3);
  for (size_t steps = 0; decoder.answering() > 0; ++steps) {
    ASSERT_LT(steps, 14u);
    cancel = steps == 5;
    for (BatchedDecoder::Answer& answer : decoder.advance()) results[answer.id] = std::move(answer.result);
  }
  EXPECT_EQ(results[0].stop_reason, StopReason::interrupted);
  EXPECT_EQ(results[1].stop_reason, StopReason::interrupted);
  EXPECT_EQ(results[1].token_ids.size(), 6u);
  EXPECT_EQ(results[2].token_ids.size(), 12u);
  EXPECT_EQ(results[2].token_ids, Session(model_).generate(prompt, options).token_ids);
}

TEST_F(Answers, AThrowingCallbackFreesTheSessions) {
  BatchedDecoder decoder(model_);
  Session session(model_);
  const std::vector<int32_t> prompt = some_tokens(30, 1, 256);
  decoder.join(session, prompt, sampled(2, 40),
               [](std::string_view) -> bool { throw std::runtime_error("no"); });
  EXPECT_THROW(
      {
        while (decoder.answering() > 0) decoder.advance();
      },
      std::runtime_error);
  EXPECT_EQ(decoder.answering(), 0u);
  EXPECT_EQ(session.generate(prompt, sampled(2, 5)).token_ids,
            Session(model_).generate(prompt, sampled(2, 5)).token_ids);
}

TEST_F(Answers, ASessionClearedUnderItsAnswerEndsIt) {
  BatchedDecoder decoder(model_);
  Session session(model_);
  decoder.join(session, some_tokens(9, 1, 256), sampled(2, 40));
  EXPECT_TRUE(decoder.advance().empty());
  session.clear();
  const std::vector<BatchedDecoder::Answer> ended = decoder.advance();
  ASSERT_EQ(ended.size(), 1u);
  EXPECT_EQ(ended[0].result.stop_reason, StopReason::interrupted);
}

TEST_F(Answers, ErrorsLeaveAllSessionsAsTheyWere) {
  EXPECT_NO_THROW(BatchedDecoder(model_, BatchedDecoder::kMaxSequences));
  for (const size_t size : {size_t{0}, BatchedDecoder::kMaxSequences + 1, ~size_t{0}}) {
    expect_error(ErrorKind::usage, {"batch", "1 to 256"}, [&] { BatchedDecoder(model_, size); });
  }
  const LanguageModel other_model = TinyWorld::get().load();
  BatchedDecoder decoder(model_, 2);
  SessionOptions small;
  small.context = 21;
  Session a(model_);
  Session b(model_, small);
  Session other(other_model);
  const std::vector<int32_t> prompt = some_tokens(20, 1, 256);
  for (Session* session : {&a, &b, &other}) session->prefill(prompt);
  const std::vector<float> logits(a.last_logits().begin(), a.last_logits().end());
  const auto step = [&](const std::vector<Session*>& sessions, const std::vector<int32_t>& tokens) {
    return [&, sessions, tokens] { decoder.step(sessions, tokens); };
  };
  expect_error(ErrorKind::usage, {"no sequences"}, step({}, {}));
  expect_error(ErrorKind::usage, {"1 tokens", "2 sequences"}, step({&a, &b}, {1}));
  expect_error(ErrorKind::usage, {"3 sequences", "at most 2"}, step({&a, &b, &a}, {1, 2, 3}));
  expect_error(ErrorKind::usage, {"sequence 1 twice"}, step({&a, &a}, {1, 2}));
  expect_error(ErrorKind::usage, {"null session"}, step({&a, nullptr}, {1, 2}));
  expect_error(ErrorKind::mismatch, {"sequence 1 of another model"}, step({&a, &other}, {1, 2}));
  expect_error(ErrorKind::usage, {"token id", "259"}, step({&a, &b}, {1, 259}));
  EXPECT_EQ(a.length(), 20u);
  EXPECT_TRUE(std::ranges::equal(a.last_logits(), logits));
  decoder.step(std::array{&a, &b}, std::array{1, 2});
  expect_error(ErrorKind::mismatch, {"context", "21"}, step({&a, &b}, {1, 2}));
  EXPECT_EQ(a.length(), 21u);

  expect_error(ErrorKind::mismatch, {"another model"}, [&] { decoder.join(other, prompt); });
  expect_error(ErrorKind::usage, {"no tokens"}, [&] { decoder.join(a, {}); });
  expect_error(ErrorKind::mismatch, {"at most 20"}, [&] { decoder.join(b, some_tokens(21, 1, 256)); });
  EXPECT_EQ(decoder.answering(), 0u);
  decoder.join(a, prompt);
  expect_error(ErrorKind::usage, {"under way"}, [&] { decoder.join(a, prompt); });
  expect_error(ErrorKind::usage, {"under way"}, step({&b, &a}, {1, 2}));
  decoder.join(b, prompt);
  Session third(model_);
  expect_error(ErrorKind::usage, {"2 answers", "at most 2"}, [&] { decoder.join(third, prompt); });
}

}  // namespace
}  // namespace keysieve
