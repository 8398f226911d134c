#include "report/page.h"

#include <fmt/format.h>

#include <array>

#include "report/fields.h"
#include "report/markup.h"
#include "report/page_assets.h"
#include "report/sections.h"

namespace keysieve::report {
namespace {

struct Section {
  const char* id;
  const char* heading;
  const char* intro;
  const char* missing;  // which results would fill it
  std::string (*make)(std::span<const ReportInput>);
};

constexpr std::array kSections{
    Section{"quality", "Quality against budget",
            "How much worse the model predicts text when each query may read only so many positions.",
            "eval ppl or eval agreement", quality_section},
    Section{"needles", "Needles in prose",
            "Codes hidden in long texts and asked for at the end: is a single fact still found?",
            "eval needle", needle_section},
    Section{"gsm8k", "Word problems", "Grade-school arithmetic, answered step by step (GSM8K).", "eval gsm8k",
            gsm8k_section},
    Section{"memory", "Memory against context", "What the keys and values of one sequence take.",
            "eval memory", memory_section},
    Section{"speed", "Speed against context", "How fast prompts are read and answers written.",
            "eval latency", speed_section},
    Section{"attention", "Attention captured per layer",
            "How much of what full attention looks at lies on the positions that were read.", "eval reading",
            attention_section},
    Section{"training", "Training", "How the indexer learned.", "the folder of a train run",
            training_section},
    Section{"reading", "What each layer read", "The positions read for a real prompt.", "eval reading",
            reading_section},
};

std::string sources(std::span<const ReportInput> inputs) {
  std::string rows;
  for (const ReportInput& input : inputs) {
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td class=\"free\">{}</td><td>{}</td><td>{}</td></tr>",
                        escape(input.name), escape(input.kind),
                        input.command.empty() ? "not recorded" : "<code>" + escape(input.command) + "</code>",
                        escape(input.machine), escape(input.date));
  }
  return "<div class=\"table\"><table><thead><tr><th>file</th><th>kind</th><th>command</th><th>machine</th>"
         "<th>date</th></tr></thead><tbody>" +
         rows + "</tbody></table></div>";
}

}  // namespace

std::string make_page(const std::string& title, std::span<const ReportInput> inputs) {
  std::string links;
  std::string body;
  for (const Section& section : kSections) {
    const std::string content = section.make(inputs);
    links += fmt::format("<a href=\"#{}\">{}</a>", section.id, section.heading);
    body += fmt::format("<section id=\"{}\"><h2>{}</h2><p class=\"intro\">{}</p>{}</section>\n", section.id,
                        section.heading, section.intro,
                        content.empty() ? fmt::format("<p class=\"none\">No results here: {} makes them.</p>",
                                                      section.missing)
                                        : content);
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; img-src data:\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<link rel=\"icon\" href=\"data:,\"><title>{0}</title><style>{1}</style></head>\n<body>"
      "<header><h1>{0}</h1><p class=\"lead\">Made by keysieve report from {2} {3}. Every figure comes with "
      "its "
      "sample size; hover a mark for its value.</p><nav>{4}<a "
      "href=\"#sources\">Sources</a></nav></header>\n{5}"
      "<section id=\"sources\"><h2>Sources</h2><p class=\"intro\">What this page was made "
      "of.</p>{6}</section>"
      "<script>{7}</script></body></html>\n",
      escape(title), kStyle, inputs.size(), inputs.size() == 1 ? "result" : "results", links, body,
      sources(inputs), kScript);
}

}  // namespace keysieve::report
