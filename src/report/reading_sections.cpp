#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "keysieve/error.h"
#include "report/fields.h"
#include "report/markup.h"
#include "report/sections.h"

namespace keysieve::report {
namespace {

constexpr size_t kMostTokens = 16384;

// How many KV heads a digit of a reading's strings stands for.
int heads_of(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'z') return digit - 'a' + 10;
  return -1;
}

void check(bool good, const ReportInput& input, std::string_view what) {
  if (good) return;
  throw Error(ErrorKind::format, input.name, fmt::format("a reading with bad \"{}\"", what),
              "what keysieve eval reading printed");
}

void check_reading(const ReportInput& input) {
  const Json& tokens = list(input.result, "tokens");
  const Json& queries = list(input.result, "queries");
  const double heads = number(input.result, "heads");
  check(!tokens.empty() && tokens.size() <= kMostTokens &&
            std::all_of(tokens.begin(), tokens.end(), [](const Json& token) { return token.is_string(); }),
        input, "tokens");
  check(!queries.empty() && std::all_of(queries.begin(), queries.end(),
                                        [&](const Json& query) {
                                          return query.is_number_unsigned() &&
                                                 query.get<uint64_t>() < tokens.size();
                                        }),
        input, "queries");
  check(heads >= 1 && heads <= 35, input, "heads");
  for (const Json& layer : list(input.result, "layers")) {
    const Json& reads = list(layer, "reads");
    check(reads.size() == queries.size(), input, "reads");
    for (const Json& read : reads) {
      check(read.is_string(), input, "reads");
      const auto& digits = read.get_ref<const std::string&>();
      check(digits.size() <= tokens.size() &&
                std::all_of(digits.begin(), digits.end(),
                            [&](char digit) { return heads_of(digit) >= 0 && heads_of(digit) <= heads; }),
            input, "reads");
    }
  }
}

// [tokens]: of all layers, queries and KV heads that could read a position, the share that did.
std::vector<double> shares_of(const Json& reading) {
  const size_t tokens = list(reading, "tokens").size();
  std::vector<double> read(tokens, 0);
  std::vector<double> could(tokens, 0);
  const double heads = number(reading, "heads");
  for (const Json& layer : list(reading, "layers")) {
    for (const Json& digits_of_query : list(layer, "reads")) {
      const auto& digits = digits_of_query.get_ref<const std::string&>();
      for (size_t p = 0; p < digits.size(); ++p) {
        read[p] += heads_of(digits[p]);
        could[p] += heads;
      }
    }
  }
  for (size_t p = 0; p < tokens; ++p) read[p] = could[p] > 0 ? read[p] / could[p] : 0;
  return read;
}

// Only what the script needs, in its own order.
std::string script_data(const Json& reading) {
  Json layers = Json::array();
  for (const Json& layer : list(reading, "layers")) layers.push_back(list(layer, "reads"));
  const Json data = {{"tokens", list(reading, "tokens")},
                     {"queries", list(reading, "queries")},
                     {"heads", number(reading, "heads")},
                     {"layers", layers}};
  return escape_script(data.dump());
}

std::string one_reading(const ReportInput& input) {
  const Json& reading = input.result;
  const Json& tokens = list(reading, "tokens");
  const size_t layers = list(reading, "layers").size();
  const size_t queries = list(reading, "queries").size();
  std::string text_panel;
  const std::vector<double> shares = shares_of(reading);
  for (size_t p = 0; p < tokens.size(); ++p) {
    text_panel += fmt::format("<span data-p=\"{}\" style=\"--share:{:.3f}\">{}</span>", p, shares[p],
                              escape(tokens.at(p).get_ref<const std::string&>()));
  }
  return fmt::format(
      "<figure class=\"reading\"><h3>{}</h3>"
      "<div class=\"controls\"><label>query <input type=\"range\" class=\"query\" min=\"0\" max=\"{}\" "
      "value=\"{}\"></label> <output class=\"query-name\">all queries</output></div>"
      "<div class=\"chart\"><span class=\"side\">layer</span><canvas class=\"reads\" height=\"{}\" "
      "aria-label=\"which positions each layer read\"></canvas>"
      "<div class=\"scale\"><span>position 0</span><span>{}</span></div></div>"
      "<p class=\"under\" aria-live=\"polite\">Point at the picture: the text at that position stands "
      "here.</p>"
      "<figcaption>{}</figcaption><p class=\"text\">{}</p>"
      "<script type=\"application/json\">{}</script></figure>\n",
      escape(fmt::format("{}, {}, budget {} of {} positions", text(reading, "model", "a model"),
                         text(reading, "mode", "sparse"), short_count(number(reading, "budget")),
                         tokens.size())),
      queries, queries, std::clamp<size_t>(layers * 9, 120, 420), tokens.size() - 1,
      escape(fmt::format(
          "One line a layer, the first on top ({} layers); the darker, the more KV heads read the "
          "position. Choose one of the last {} queries with the slider, or all of them (right end). "
          "In the text below, the darker a token, the more often it was read; point at a layer to "
          "see that layer alone.",
          layers, queries)),
      text_panel, script_data(reading));
}

}  // namespace

std::string attention_section(std::span<const ReportInput> inputs) {
  std::string out;
  for (const ReportInput& input : inputs) {
    if (input.kind != "reading") continue;
    LinePlot plot;
    plot.title = "Attention captured per layer";
    plot.x_title = "layer";
    plot.y_title = "share of attention captured";
    plot.x_text = [](double value) { return fmt::format("{:.0f}", value); };
    plot.y_text = [](double value) { return fmt::format("{:.0f}%", 100 * value); };
    const std::string mode = text(input.result, "mode", "sparse");
    Series chosen{mode, style_of(mode), {}};
    Series best{"best possible", "oracle", {}};
    Series recent{"most recent", "recent", {}};
    double layer_number = 0;
    for (const Json& layer : list(input.result, "layers")) {
      chosen.points.push_back({layer_number, number(layer, "captured"), 0, 0});
      best.points.push_back({layer_number, number(layer, "best"), 0, 0});
      recent.points.push_back({layer_number, number(layer, "recent"), 0, 0});
      ++layer_number;
    }
    plot.series = {recent, best, chosen};
    out += figure(
        fmt::format("{}, budget {} of {} positions", text(input.result, "model", "a model"),
                    short_count(number(input.result, "budget")), list(input.result, "tokens").size()),
        draw(plot),
        fmt::format(
            "Of each layer's full attention probability, what lies on the positions read; mean over heads "
            "and the last {} queries.",
            list(input.result, "queries").size()));
  }
  return out;
}

std::string reading_section(std::span<const ReportInput> inputs) {
  std::string out;
  for (const ReportInput& input : inputs) {
    if (input.kind != "reading") continue;
    check_reading(input);
    out += one_reading(input);
  }
  return out;
}

}  // namespace keysieve::report
