#include "eval/gsm8k.h"

#include <algorithm>

#include "fixture.h"

namespace keysieve {
namespace {

using testing::expect_error;

TEST(WordProblemText, TakesTheNumberAnAnswerGives) {
  EXPECT_EQ(extract_answer("2 + 3 = 5\n#### 5"), 5.0);
  EXPECT_EQ(extract_answer("#### 1\n#### $1,234.50."), 1234.5);
  EXPECT_EQ(extract_answer("So 4 dogs. The answer is 12 dogs, not 13."), 12.0);
  EXPECT_EQ(extract_answer("It takes 3 and then 4.5 hours."), 4.5);
  EXPECT_EQ(extract_answer("#### -7"), -7.0);
  EXPECT_EQ(extract_answer("#### -$7"), -7.0);
  EXPECT_EQ(extract_answer("from 5 to 12"), 12.0);
  EXPECT_EQ(extract_answer("#### none, but 3, 4"), 3.0);
  EXPECT_EQ(extract_answer("none"), std::nullopt);
  EXPECT_EQ(extract_answer(""), std::nullopt);
  EXPECT_TRUE(extract_answer(std::string(400, '9')) == std::nullopt ||
              *extract_answer(std::string(400, '9')) > 1e300);
}

TEST(WordProblemText, PromptShowsWorkedExamplesWithoutCalculatorNotes) {
  const std::vector<WordProblem> shots{{"One and one?", "1+1=<<1+1=2>>2.\n#### 2"}};
  EXPECT_EQ(word_problem_prompt(shots, {"Two and two?", "#### 4"}),
            "Question: One and one?\nAnswer: 1+1=2.\n#### 2\n\nQuestion: Two and two?\nAnswer:");
}

TEST(WordProblemText, NamesTheLineThatIsNoProblem) {
  const std::string good = R"({"question": "q", "answer": "#### 3"})";
  EXPECT_EQ(parse_word_problems(good + "\n\n" + good, "f").size(), 2u);
  expect_error(ErrorKind::format, {"f line 2"}, [&] { parse_word_problems(good + "\n{", "f"); });
  expect_error(ErrorKind::format, {"f line 1", "answer"},
               [] { parse_word_problems(R"({"question":"q"})", "f"); });
  expect_error(ErrorKind::format, {"f line 1", "####"},
               [] { parse_word_problems(R"({"question":"q","answer":"3"})", "f"); });
}

class WordProblems : public testing::EvalTest {
 protected:
  static WordProblem problem(int eggs) {
    return {"Ann has " + std::to_string(eggs) + " eggs and eats 2. How many are left?",
            "#### " + std::to_string(eggs - 2)};
  }
};

// What a sequence keeps of the problem before it must not show: each problem is answered as it is alone.
TEST_F(WordProblems, AnswersDoNotDependOnTheProblemsBefore) {
  for (const AttentionMode mode : {AttentionMode::dense, AttentionMode::oracle, AttentionMode::snap_kv}) {
    const EvalSetting setting(model_, sparse(48));
    WordProblemOptions options;
    options.mode = mode;
    options.shots = {problem(9)};
    options.max_tokens = 12;
    double alone = 0;
    for (int eggs = 3; eggs < 7; ++eggs) {
      options.problems = {problem(eggs)};
      alone += run_word_problems(setting, options)->sequence_tokens;
    }
    options.problems = {problem(3), problem(4), problem(5), problem(6)};
    const WordProblemResult together = run_word_problems(setting, options).value();
    EXPECT_EQ(together.total, 4u);
    EXPECT_DOUBLE_EQ(together.sequence_tokens * 4, alone);
    EXPECT_EQ(together.over_budget, mode == AttentionMode::dense ? 0u : 4u);
  }
}

TEST_F(WordProblems, RefusesPromptsLongerThanTheContext) {
  WordProblemOptions options;
  options.shots = std::vector<WordProblem>(20, problem(9));
  options.problems = {problem(3)};
  expect_error(ErrorKind::mismatch, {"gsm8k prompt", "--shots"},
               [&] { run_word_problems(EvalSetting(model_, sparse(48)), options); });
}

}  // namespace
}  // namespace keysieve
