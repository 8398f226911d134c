#include "eval/needle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "eval/needle_prompt.h"
#include "fixture.h"

namespace keysieve {
namespace {

using testing::EvalTest;
using testing::expect_error;
using testing::prose;

class NeedlePrompts : public EvalTest {};

TEST_F(NeedlePrompts, HaveTheAskedLengthAndTheCodeAtTheAskedDepth) {
  const std::string haystack = prose(20000);
  for (const size_t tokens : {400, 1000, 4000}) {
    for (size_t trial = 0; trial < 5; ++trial) {
      const NeedleSpec spec = needle_spec(tokens, trial, 5, haystack.size(), 3);
      const NeedlePrompt prompt = make_needle_prompt(model_.text(), haystack, spec);
      const auto count = static_cast<double>(tokens);
      EXPECT_NEAR(static_cast<double>(prompt.tokens.size()), count, 0.01 * count);
      // Sentences are some 40 bytes; the frame before the prose is about 80.
      EXPECT_NEAR(prompt.depth, spec.depth, 0.02 + 120.0 / count);
      const std::string text = model_.text().decode(prompt.tokens);
      const std::string sentence = "The secret code is " + spec.code + ". ";
      const size_t at = text.find(sentence);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(text.find(spec.code, at + sentence.size()), std::string::npos);
      EXPECT_TRUE(at == 0 || text[at - 1] == ' ' || text[at - 1] == '\n');
      // Control tokens are one token but several bytes of text, so compare what follows the document.
      const std::string after =
          model_.text().decode(std::span(prompt.tokens).subspan(prompt.document_tokens));
      EXPECT_NE(after.find("What is the secret code"), std::string::npos);
      EXPECT_LT(after.size(), 140u);
      std::vector<int32_t> spelled;
      for (size_t i = 0; i < prompt.answer.size(); ++i) {
        if (prompt.is_code[i]) spelled.push_back(prompt.answer[i]);
      }
      EXPECT_EQ(model_.text().decode(spelled), spec.code);
    }
  }
}

TEST_F(NeedlePrompts, EveryFormHidesWhatItAsksFor) {
  const std::string haystack = prose(20000);
  const auto count_of = [](const std::string& text, const std::string& part) {
    size_t count = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
    return count;
  };
  for (const auto [form, codes, sentences] :
       {std::tuple(NeedleForm::words, 1u, 1u), std::tuple(NeedleForm::pairs, 1u, 8u),
        std::tuple(NeedleForm::two, 2u, 2u)}) {
    SCOPED_TRACE(to_string(form));
    for (size_t trial = 0; trial < 6; ++trial) {
      const NeedleSpec spec = needle_spec(2000, trial, 6, haystack.size(), 5, form);
      const NeedlePrompt prompt = make_needle_prompt(model_.text(), haystack, spec);
      EXPECT_NEAR(static_cast<double>(prompt.tokens.size()), 2000, 20);
      EXPECT_NEAR(prompt.depth, spec.depth, 0.1);
      ASSERT_EQ(prompt.codes.size(), codes);
      EXPECT_EQ(prompt.codes[0], spec.code);
      const std::string document =
          model_.text().decode(std::span(prompt.tokens).first(prompt.document_tokens));
      const std::string question =
          model_.text().decode(std::span(prompt.tokens).subspan(prompt.document_tokens));
      std::string spelled, answer = model_.text().decode(prompt.answer);
      for (size_t i = 0; i < prompt.answer.size(); ++i) {
        if (prompt.is_code[i]) spelled += model_.text().decode(std::span(prompt.answer).subspan(i, 1));
      }
      std::string wanted;
      for (const std::string& code : prompt.codes) {
        wanted += code;
        EXPECT_EQ(count_of(document, " " + code + ". "), 1u);
        EXPECT_EQ(count_of(question, code), 0u);
        EXPECT_EQ(count_of(answer, code), 1u);
      }
      EXPECT_EQ(spelled, wanted);
      const std::string told = form == NeedleForm::words   ? "vault in the cellar"
                               : form == NeedleForm::pairs ? "The value of key "
                                                           : " secret code is ";
      EXPECT_EQ(count_of(document, told), sentences);
      if (form == NeedleForm::pairs) {
        const size_t key = question.find("key ") + 4;
        const std::string name = question.substr(key, question.find('?') - key);
        EXPECT_EQ(count_of(document, "The value of key " + name + " is " + spec.code), 1u);
      }
    }
  }
  EXPECT_TRUE(names_codes("It is 1234 and 5678.", std::vector<std::string>{"5678", "1234"}));
  EXPECT_FALSE(names_codes("It is 1234 and 56789.", std::vector<std::string>{"5678", "1234"}));
}

TEST_F(NeedlePrompts, EachOfEightKeysIsAskedForInOneText) {
  const std::string haystack = prose(20000);
  const auto prompt_of = [&](size_t trial) {
    return make_needle_prompt(model_.text(), haystack,
                              needle_spec(1000, trial, 16, haystack.size(), 5, NeedleForm::keys));
  };
  const NeedlePrompt first = prompt_of(0);
  const std::string document = model_.text().decode(std::span(first.tokens).first(first.document_tokens));
  std::vector<std::string> codes;
  for (size_t trial = 0; trial < 8; ++trial) {
    const NeedlePrompt prompt = prompt_of(trial);
    ASSERT_EQ(prompt.document_tokens, first.document_tokens);
    EXPECT_TRUE(std::equal(prompt.tokens.begin(),
                           prompt.tokens.begin() + static_cast<ptrdiff_t>(prompt.document_tokens),
                           first.tokens.begin()));
    EXPECT_NEAR(prompt.depth, (static_cast<double>(trial) + 0.5) / 8, 0.15);
    const std::string question =
        model_.text().decode(std::span(prompt.tokens).subspan(prompt.document_tokens));
    const size_t key = question.find("key ") + 4;
    const std::string name = question.substr(key, question.find('?') - key);
    EXPECT_NE(document.find("The value of key " + name + " is " + prompt.codes[0] + ". "), std::string::npos);
    codes.push_back(prompt.codes[0]);
  }
  std::sort(codes.begin(), codes.end());
  EXPECT_EQ(std::unique(codes.begin(), codes.end()), codes.end());
  EXPECT_NE(prompt_of(8).tokens, first.tokens);
}

TEST_F(NeedlePrompts, TrialsDifferAndRepeatExactly) {
  const NeedleSpec a = needle_spec(1000, 0, 4, 100000, 1);
  const NeedleSpec b = needle_spec(1000, 1, 4, 100000, 1);
  EXPECT_NE(a.start, b.start);
  EXPECT_NE(a.code, b.code);
  EXPECT_DOUBLE_EQ(a.depth, 0.125);
  EXPECT_DOUBLE_EQ(b.depth, 0.375);
  EXPECT_EQ(a.code.size(), 4u);
  EXPECT_EQ(needle_spec(1000, 1, 4, 100000, 1).start, b.start);
}

TEST_F(NeedlePrompts, AreRefusedWithoutEnoughText) {
  expect_error(ErrorKind::mismatch, {"haystack", "3000", "--haystack"},
               [&] { make_needle_prompt(model_.text(), prose(500), {.tokens = 3000}); });
  expect_error(ErrorKind::mismatch, {"needle context", "50 tokens"},
               [&] { make_needle_prompt(model_.text(), prose(500), {.tokens = 50}); });
}

class Needle : public EvalTest {
 protected:
  NeedleOptions options() const {
    NeedleOptions options;
    options.contexts = {400};
    options.trials = 2;
    options.modes = {AttentionMode::dense, AttentionMode::sparse, AttentionMode::recent};
    options.haystacks = {prose(5000)};
    return options;
  }
};

TEST_F(Needle, ReportsEveryModeOnTheSamePrompts) {
  const EvalSetting setting(model_, sparse(48));
  const auto result = run_needle(setting, options());
  ASSERT_TRUE(result);
  ASSERT_EQ(result->rows.size(), 3u);
  ASSERT_EQ(result->trials.size(), 6u);
  for (const NeedleRow& row : result->rows) {
    EXPECT_EQ(row.trials, 2u);
    EXPECT_EQ(row.budget, row.mode == AttentionMode::dense ? 0u : 48u);
    EXPECT_GT(row.prefill_seconds, 0);
    EXPECT_GT(row.code_nll, 0);
    EXPECT_TRUE(row.passed_of_dense) << to_string(row.mode);
    EXPECT_GT(row.peak_rss_bytes, 0u);
    if (row.mode == AttentionMode::dense) {
      EXPECT_GT(row.positions_read, 150);
    } else {
      EXPECT_LE(row.positions_read, 48);
    }
  }
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(result->trials[i].codes, result->trials[i + 2].codes);
}

TEST_F(Needle, SaysNothingOfDenseWithoutIt) {
  const EvalSetting setting(model_, sparse(48));
  NeedleOptions wanted = options();
  wanted.modes = {AttentionMode::sparse};
  const auto result = run_needle(setting, wanted);
  ASSERT_TRUE(result);
  EXPECT_FALSE(result->rows.front().passed_of_dense);
}

TEST_F(Needle, ABudgetThatHoldsEverythingAnswersAsDense) {
  const EvalSetting setting(model_, sparse(512));
  NeedleOptions wanted = options();
  wanted.modes = {AttentionMode::dense, AttentionMode::sparse, AttentionMode::oracle};
  const auto result = run_needle(setting, wanted);
  ASSERT_TRUE(result);
  for (size_t i = 0; i < 2; ++i) {
    for (size_t mode = 1; mode < 3; ++mode) {
      EXPECT_EQ(result->trials[i].answer, result->trials[2 * mode + i].answer);
      EXPECT_EQ(result->trials[i].code_nll, result->trials[2 * mode + i].code_nll);
    }
  }
}

TEST_F(Needle, AskedAfterwardsWithoutForgettingIsTheSame) {
  const EvalSetting setting(model_, sparse(48));
  NeedleOptions wanted = options();
  const auto in_prompt = run_needle(setting, wanted);
  wanted.protocol = NeedleProtocol::after;
  const auto after = run_needle(setting, wanted);
  ASSERT_TRUE(in_prompt && after);
  for (size_t i = 0; i < in_prompt->trials.size(); ++i)
    EXPECT_NEAR(in_prompt->trials[i].code_nll.value(), after->trials[i].code_nll.value(), 1e-3);
}

TEST_F(Needle, QuestionsOfOneTextAreAnsweredAsIfAskedAlone) {
  SessionOptions refined = sparse(48);
  refined.refine = 96;
  const EvalSetting setting(model_, refined);
  for (const NeedleProtocol protocol : {NeedleProtocol::in_prompt, NeedleProtocol::after}) {
    NeedleOptions wanted = options();
    wanted.form = NeedleForm::keys;
    wanted.contexts = {480};  // the eight sentences and the question alone are 431
    wanted.trials = 4;
    wanted.modes = {AttentionMode::dense, AttentionMode::sparse};
    wanted.protocol = protocol;
    const auto together = run_needle(setting, wanted);
    ASSERT_TRUE(together);
    EXPECT_NE(together->trials[0].codes, together->trials[1].codes);
    // The first three are known already, so the last reads the text for itself.
    PartialResults partial("", Json::object());
    for (const char* row : {"480 dense 0", "480 sparse 48"}) {
      for (size_t i = 0; i < 3; ++i) {
        partial.put(fmt::format("{} trial {}", row, i), {{"answer", ""},
                                                         {"passed", false},
                                                         {"strict", false},
                                                         {"code_nll", 1.0},
                                                         {"prefill_seconds", 1.0},
                                                         {"positions_read", 1.0},
                                                         {"peak_rss_bytes", 1u}});
      }
    }
    wanted.partial = &partial;
    const auto alone = run_needle(setting, wanted);
    ASSERT_TRUE(alone);
    for (const size_t last : {3u, 7u}) {
      EXPECT_EQ(alone->trials[last].answer, together->trials[last].answer);
      EXPECT_NEAR(alone->trials[last].code_nll.value(), together->trials[last].code_nll.value(), 1e-3);
      EXPECT_GT(alone->trials[last].tokens_read, 400u);
      EXPECT_LT(together->trials[last].tokens_read, 200u);
    }
  }
}

TEST_F(Needle, RunsOnAFixedCache) {
  SessionOptions fixed = sparse(48);
  fixed.cache = CacheKind::fixed;
  const EvalSetting setting(model_, fixed);
  for (const NeedleProtocol protocol : {NeedleProtocol::in_prompt, NeedleProtocol::after}) {
    NeedleOptions wanted = options();
    wanted.protocol = protocol;
    const auto result = run_needle(setting, wanted);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->trials.size(), 6u);
    // It cannot go back to the end of the prompt, so it says no likelihood rather than a wrong one.
    for (const NeedleRow& row : result->rows)
      EXPECT_EQ(row.code_nll.has_value(), row.mode == AttentionMode::dense) << to_string(row.mode);
  }
}

TEST_F(Needle, CanBeCancelledAndRefusesNonsense) {
  const EvalSetting setting(model_, sparse(48));
  std::atomic<bool> cancel = false;
  NeedleOptions wanted = options();
  wanted.cancel = &cancel;
  wanted.on_progress = [&](size_t done, size_t) { cancel = done == 2; };
  EXPECT_FALSE(run_needle(setting, wanted));
  wanted = options();
  wanted.contexts = {600};
  expect_error(ErrorKind::mismatch, {"600 tokens", "512"}, [&] { run_needle(setting, wanted); });
  wanted = options();
  wanted.modes.clear();
  expect_error(ErrorKind::usage, {"0 modes"}, [&] { run_needle(setting, wanted); });
  const EvalSetting dense(model_, {});
  expect_error(ErrorKind::usage, {"mode sparse", "--indexer"}, [&] { run_needle(dense, options()); });
  wanted = options();
  wanted.modes = {AttentionMode::recent};
  expect_error(ErrorKind::usage, {"mode recent", "--budget"}, [&] { run_needle(dense, wanted); });
}

}  // namespace
}  // namespace keysieve
