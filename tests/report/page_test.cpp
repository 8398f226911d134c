#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/json.h"
#include "report/markup.h"
#include "report/page.h"
#include "report/plot.h"
#include "support/files.h"

namespace keysieve::report {
namespace {

using keysieve::testing::expect_error;
using keysieve::testing::TempFolder;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kHostile = "<script>alert('x')</script>&\"";

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

Json ppl() {
  return {{"kind", "ppl"},
          {"model", kHostile},
          {"perplexity_dense", 12.5},
          {"tokens", 3072},
          {"window", 4096},
          {"windows", 3},
          {"rows",
           {{{"mode", "sparse"},
             {"budget", 128},
             {"perplexity", 13.0},
             {"delta_percent", 4.0},
             {"delta_ci95_percent", {3.0, 5.0}}},
            {{"mode", "sparse"},
             {"budget", 512},
             {"perplexity", 12.6},
             {"delta_percent", 0.8},
             {"delta_ci95_percent", {0.5, 1.1}}},
            {{"mode", kHostile}, {"budget", 128}, {"perplexity", 1e300}, {"delta_percent", 1e300}}}}};
}

Json reading() {
  return {{"kind", "reading"},
          {"model", "tiny"},
          {"mode", "sparse"},
          {"budget", 2},
          {"heads", 2},
          {"queries", {2}},
          {"tokens", {"a", "</script><b>", "c"}},
          {"layers", {{{"captured", 0.5}, {"best", 0.75}, {"recent", 0.25}, {"reads", {"201"}}}}}};
}

class Page : public ::testing::Test {
 protected:
  ReportInput input(const Json& json) {
    return read_report_input(folder_.write("run" + std::to_string(++files_) + ".json", json.dump()));
  }
  std::string page(const std::vector<Json>& results) {
    std::vector<ReportInput> inputs;
    for (const Json& result : results) inputs.push_back(input(result));
    return make_page("title", inputs);
  }

  TempFolder folder_;
  int files_ = 0;
};

TEST_F(Page, EveryMeasuredPointHasAMark) {
  const std::string html = page({ppl()});
  EXPECT_EQ(count(html, "<circle class=\"mark\""), 2u);  // the point at 1e300 is left out
  EXPECT_EQ(count(html, "class=\"interval\""), 2u);
  EXPECT_THAT(html, HasSubstr("+4.00%"));
  EXPECT_THAT(html, HasSubstr("3072 predictions"));
}

TEST_F(Page, ShowsHostileTextAsText) {
  const std::string html = page({ppl(), reading()});
  EXPECT_THAT(html, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(html, Not(HasSubstr("</script><b>")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(&#39;x&#39;)"));
  EXPECT_EQ(count(html, "<script"), 2u);  // the reading's data and the page's own
  EXPECT_EQ(count(html, "http://") + count(html, "https://"), 0u);
}

TEST_F(Page, SaysWhatIsMissing) {
  const std::string html = page({ppl()});
  EXPECT_EQ(count(html, "No results here"), 7u);
  EXPECT_THAT(html, HasSubstr("eval needle makes them"));
}

TEST_F(Page, TakesTheContractsKeysAndDocumentsAroundThem) {
  const Json old = {{"perplexity_dense", 10.0},
                    {"perplexity_sparse", 11.0},
                    {"delta_percent", 10.0},
                    {"delta_ci95_percent", {9.0, 11.0}},
                    {"tokens", 100},
                    {"budget", 256},
                    {"baselines", {{"oracle", {{"perplexity", 10.5}, {"delta_percent", 5.0}}}}}};
  EXPECT_EQ(count(page({old}), "<circle class=\"mark\""), 2u);
  const std::string html = page({{{"command", "keysieve eval <ppl>"}, {"machine", "m"}, {"result", old}}});
  EXPECT_THAT(html, HasSubstr("keysieve eval &lt;ppl&gt;"));
}

TEST_F(Page, NeedleCellsCountTrialsByDepth) {
  Json trials = Json::array();
  for (const double depth : {0.05, 0.1, 0.95})
    trials.push_back({{"context", 4096}, {"mode", "dense"}, {"depth", depth}, {"passed", depth < 0.1}});
  const Json needle = {
      {"rows", {{{"context", 4096}, {"mode", "dense"}, {"budget", 0}, {"passed", 1}, {"trials", 3}}}},
      {"trials", trials}};
  const std::string html = page({needle});
  EXPECT_EQ(count(html, "class=\"cell"), 2u);
  EXPECT_THAT(html, HasSubstr(">1/2</text>"));
  EXPECT_THAT(html, HasSubstr(">0/1</text>"));
}

TEST_F(Page, SaysWhereABudgetDidNotBind) {
  const Json gsm8k = {{"kind", "gsm8k"},  {"accuracy", 0.5}, {"correct", 1},         {"total", 2},
                      {"mode", "sparse"}, {"budget", 4096},  {"budget_binds", false}};
  EXPECT_THAT(page({gsm8k}), HasSubstr("nothing was left out"));
}

TEST_F(Page, DrawsATrainRunWhoseLastLineWasCut) {
  folder_.write(
      "run/metrics.jsonl",
      "{\"step\":1,\"loss\":0.9,\"captured\":0.5}\n{\"step\":2,\"loss\":0.5,\"captured\":0.6}\n"
      "{\"step\":2,\"development\":{\"loss\":0.6,\"captured\":0.55,\"oracle\":0.8}}\n{\"step\":3,\"lo");
  const ReportInput run = read_report_input(folder_.path() / "run");
  EXPECT_EQ(run.kind, "train");
  EXPECT_EQ(run.result.at("steps").size(), 2u);
  const std::string html = make_page("t", std::vector<ReportInput>{run});
  EXPECT_THAT(html, HasSubstr("best possible"));
}

TEST_F(Page, RefusesWhatIsNoResult) {
  expect_error(ErrorKind::format, {"result"}, [&] { input({{"kind", "poem"}}); });
  expect_error(ErrorKind::format, {"result"}, [&] { input(Json::array()); });
  expect_error(ErrorKind::format, {"needle", "rows"}, [&] { input({{"kind", "needle"}, {"rows", {1, 2}}}); });
  expect_error(ErrorKind::file, {"none.json"}, [&] { read_report_input(folder_.path() / "none.json"); });
  folder_.write("empty/metrics.jsonl", "\n");
  expect_error(ErrorKind::format, {"no steps"}, [&] { read_report_input(folder_.path() / "empty"); });
}

TEST_F(Page, RefusesAReadingThatDoesNotFitTogether) {
  const auto refuse = [&](const char* what, const std::function<void(Json&)>& spoil) {
    Json bad = reading();
    spoil(bad);
    expect_error(ErrorKind::format, {what}, [&] { page({bad}); });
  };
  refuse("reads", [](Json& bad) { bad.at("layers").at(0).at("reads").at(0) = "2013"; });
  refuse("reads", [](Json& bad) { bad.at("layers").at(0).at("reads").at(0) = "2?1"; });
  refuse("reads", [](Json& bad) { bad.at("layers").at(0).at("reads") = Json::array(); });
  refuse("queries", [](Json& bad) { bad.at("queries") = {3}; });
  refuse("tokens", [](Json& bad) { bad.at("tokens") = {1, 2, 3}; });
  refuse("heads", [](Json& bad) { bad.at("heads") = 0; });
}

TEST(Plots, PointsOutOfRangeAreLeftOut) {
  LinePlot plot;
  plot.x_text = plot.y_text = short_number;
  plot.logarithmic_x = true;
  plot.series = {{"a", "dense", {{0, 1, 0, 0}, {4, 1e16, 0, 0}}}};
  EXPECT_EQ(draw(plot), "");
  plot.series[0].points.push_back({8, 2, 0, 0});
  const std::string svg = draw(plot);
  EXPECT_EQ(count(svg, "<circle"), 1u);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(Markup, EscapesForContentAttributesAndScripts) {
  EXPECT_EQ(escape("a<b>&\"'\x01"), "a&lt;b&gt;&amp;&quot;&#39;\xef\xbf\xbd");
  EXPECT_EQ(escape_script("</script>&"), "\\u003c/script\\u003e\\u0026");
  EXPECT_EQ(short_count(4096), "4K");
  EXPECT_EQ(short_count(512), "512");
}

}  // namespace
}  // namespace keysieve::report
