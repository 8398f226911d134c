#include "cli/demo_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/columns.h"
#include "cli/output.h"

namespace keysieve::cli {
namespace {

// The answer that reads most: where a budget can save anything.
const DemoAnswer& longest(const std::vector<DemoAnswer>& answers) {
  return *std::max_element(answers.begin(), answers.end(), [](const DemoAnswer& a, const DemoAnswer& b) {
    return a.dense.prompt_tokens < b.dense.prompt_tokens;
  });
}

std::string positions(double mean) { return human_count(static_cast<uint64_t>(std::llround(mean))); }

double saved_percent(double dense, double sparse) { return dense > 0 ? 100 * (1 - sparse / dense) : 0; }

double ratio(double sparse, double dense) { return dense > 0 ? sparse / dense : 0; }

std::string saved_line(const DemoAnswer& answer) {
  const Statistics& dense = answer.dense.statistics;
  const Statistics& sparse = answer.sparse.statistics;
  const std::string tokens = human_count(answer.dense.prompt_tokens);
  if (sparse.prefill.positions_read >= dense.prefill.positions_read) {
    return fmt::format(
        "\nSaved: nothing, the budget holds all {} tokens; a longer prompt shows the difference.\n", tokens);
  }
  return fmt::format(
      "\nSaved at {} tokens: decode read {} of {} positions a query ({:.0f}% fewer), {} of keys and values "
      "instead "
      "of {}; prefill {} of {} ({:.0f}% fewer).\n",
      tokens, positions(sparse.decode.positions_read), positions(dense.decode.positions_read),
      saved_percent(dense.decode.positions_read, sparse.decode.positions_read),
      human_bytes(sparse.decode.kv_bytes_read), human_bytes(dense.decode.kv_bytes_read),
      positions(sparse.prefill.positions_read), positions(dense.prefill.positions_read),
      saved_percent(dense.prefill.positions_read, sparse.prefill.positions_read));
}

std::string agreement_line(const DemoAnswer& answer) {
  if (answer.equal()) return "the answers are equal";
  return fmt::format("the answers share their first {} of {} tokens", answer.same_leading_tokens(),
                     std::max(answer.dense.token_ids.size(), answer.sparse.token_ids.size()));
}

}  // namespace

size_t DemoAnswer::same_leading_tokens() const {
  const auto [end, unused] = std::mismatch(dense.token_ids.begin(), dense.token_ids.end(),
                                           sparse.token_ids.begin(), sparse.token_ids.end());
  return static_cast<size_t>(end - dense.token_ids.begin());
}

std::string figures(const GenerateResult& result) {
  const PhaseStatistics& prefill = result.statistics.prefill;
  const PhaseStatistics& decode = result.statistics.decode;
  const auto speed = [](std::string_view name, const PhaseStatistics& phase) {
    return fmt::format("{}  {} tok, {:.0f} tok/s", name, human_count(phase.tokens),
                       phase.tokens_per_second());
  };
  std::string text = speed("prefill  ", prefill) + "\n" + speed("decode   ", decode) + "\n";
  text += fmt::format("positions  {} a query in prefill, {} in decode\n", positions(prefill.positions_read),
                      positions(decode.positions_read));
  text += fmt::format("KV read    {} + {}\n", human_bytes(prefill.kv_bytes_read),
                      human_bytes(decode.kv_bytes_read));
  text += fmt::format("KV kept    {}", human_bytes(result.statistics.kv_bytes_kept));
  if (result.statistics.memory.index_bytes > 0) {
    text += fmt::format(", index {}", human_bytes(result.statistics.memory.index_bytes));
  }
  return text;
}

std::string show_answer(const DemoAnswer& answer, const DemoSetting& setting, std::optional<size_t> width) {
  const std::string sparse_title = fmt::format("sparse, budget {}", setting.budget);
  std::string text = fmt::format("\n> {}\n\n", answer.title);
  if (width) {
    text += side_by_side("dense", sparse_title, *width);
    text += side_by_side(answer.dense.text + "\n", answer.sparse.text + "\n", *width);
    text += side_by_side(figures(answer.dense), figures(answer.sparse), *width);
    return text + "= " + agreement_line(answer) + "\n";
  }
  const auto block = [&](std::string_view title, const GenerateResult& result) {
    return fmt::format("[{}]\n{}\n{}\n\n", title, result.text, figures(result));
  };
  return text + block("dense", answer.dense) + block(sparse_title, answer.sparse) + "= " +
         agreement_line(answer) + "\n";
}

std::string show_summary(const std::vector<DemoAnswer>& answers) {
  const DemoAnswer& big = longest(answers);
  const Statistics& dense = big.dense.statistics;
  const Statistics& sparse = big.sparse.statistics;
  std::string text = saved_line(big);
  text += fmt::format("Speed against dense: prefill {:.2f}x, decode {:.2f}x; KV kept {} against {}.\n",
                      ratio(sparse.prefill.tokens_per_second(), dense.prefill.tokens_per_second()),
                      ratio(sparse.decode.tokens_per_second(), dense.decode.tokens_per_second()),
                      human_bytes(sparse.kv_bytes_kept), human_bytes(dense.kv_bytes_kept));
  size_t equal = 0;
  for (const DemoAnswer& answer : answers) equal += answer.equal() ? 1 : 0;
  text += fmt::format("Agreement: {} of {} answers are equal word for word", equal, answers.size());
  for (const DemoAnswer& answer : answers) {
    if (answer.fact.empty()) continue;
    const auto verdict = [&](const GenerateResult& result) {
      return answer.found(result) ? "found" : "MISSED";
    };
    text += fmt::format("; the hidden fact ({}): dense {}, sparse {}", answer.fact, verdict(answer.dense),
                        verdict(answer.sparse));
  }
  return text + ".\n";
}

Json to_json(const DemoAnswer& answer) {
  Json agreement = {{"equal", answer.equal()}, {"same_leading_tokens", answer.same_leading_tokens()}};
  if (!answer.fact.empty()) {
    agreement["fact"] = answer.fact;
    agreement["dense_found"] = answer.found(answer.dense);
    agreement["sparse_found"] = answer.found(answer.sparse);
  }
  const auto side = [](const GenerateResult& result) {
    Json json = to_json(result);
    json["kv_bytes_kept"] = result.statistics.kv_bytes_kept;
    return json;
  };
  return {{"prompt", answer.title},
          {"dense", side(answer.dense)},
          {"sparse", side(answer.sparse)},
          {"agreement", std::move(agreement)}};
}

Json summary_json(const std::vector<DemoAnswer>& answers) {
  const DemoAnswer& big = longest(answers);
  const Statistics& dense = big.dense.statistics;
  const Statistics& sparse = big.sparse.statistics;
  size_t equal = 0;
  for (const DemoAnswer& answer : answers) equal += answer.equal() ? 1 : 0;
  return {
      {"answers", answers.size()},
      {"equal", equal},
      {"longest_prompt_tokens", big.dense.prompt_tokens},
      {"decode_positions_saved_percent",
       saved_percent(dense.decode.positions_read, sparse.decode.positions_read)},
      {"prefill_positions_saved_percent",
       saved_percent(dense.prefill.positions_read, sparse.prefill.positions_read)},
      {"prefill_speed_ratio", ratio(sparse.prefill.tokens_per_second(), dense.prefill.tokens_per_second())},
      {"decode_speed_ratio", ratio(sparse.decode.tokens_per_second(), dense.decode.tokens_per_second())}};
}

Json to_json(const DemoSetting& setting) {
  return {{"model", setting.model},
          {"kernels", setting.kernels},
          {"threads", setting.threads},
          {"indexer", setting.indexer},
          {"budget", setting.budget}};
}

}  // namespace keysieve::cli
