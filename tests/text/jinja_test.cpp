// The template language: what templates print, how they fail, and that no template hangs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "jinja_cases.h"
#include "keysieve/error.h"
#include "text/chat_template.h"

namespace keysieve {
namespace {

using ::testing::HasSubstr;

nlohmann::ordered_json conversation() {
  return nlohmann::ordered_json::parse(R"([
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"},
    {"role": "user", "content": "Thanks, naïve 🙂"}])");
}

ChatTemplateOptions options(bool tools) {
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  options.now = 1721995200;  // 2024-07-26 12:00 UTC: 26 Jul almost everywhere
  if (tools) {
    options.extra["tools"] = nlohmann::ordered_json::parse(R"([{"type": "function", "function": {
      "name": "get_weather", "description": "Gets \"weather\" <b>&", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "enum": ["Zürich", "a"]}, "n": {"type": "number"}}, "required": ["city"]}}}])");
  }
  return options;
}

std::string render(const std::string& source) {
  return ChatTemplate::from_source(source).render(conversation(), options(true));
}

// The error of a template, "" if it renders.
std::string error_of(const std::string& source, ErrorKind kind) {
  try {
    render(source);
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << source;
    return error.what();
  }
  return "";
}

TEST(Jinja, PrintsWhatJinja2Prints) {
  for (const testing::JinjaCase& test : testing::jinja_cases()) {
    EXPECT_EQ(render(test.source), test.expected) << test.source;
  }
}

TEST(Jinja, RendersTheStylesOfModelFamilies) {
  for (const testing::FamilyCase& test : testing::family_cases()) {
    const auto chat = ChatTemplate::from_source(test.source);
    EXPECT_EQ(chat.render(conversation(), options(false)), test.expected) << test.family;
    ChatTemplateOptions with_tools = options(true);
    with_tools.add_generation_prompt = false;
    EXPECT_EQ(chat.render(conversation(), with_tools), test.expected_with_tools) << test.family;
  }
}

TEST(Jinja, NamesWhatItCannotRunAndTheWayOut) {
  for (const std::string statement :
       {"import 'x' as y", "include 'x'", "extends 'x'", "block b", "do x.append(1)"}) {
    const std::string error = error_of("a\nb{% " + statement + " %}", ErrorKind::unsupported);
    EXPECT_THAT(error, HasSubstr("line 2: the statement {% " + statement.substr(0, statement.find(' '))));
    EXPECT_THAT(error, HasSubstr("--chat-template chatml"));
  }
  EXPECT_THAT(error_of("{{ 'a' | pprint }}", ErrorKind::unsupported), HasSubstr("the filter 'pprint'"));
  EXPECT_THAT(error_of("\n\n{{ 'a' is weird }}", ErrorKind::unsupported),
              HasSubstr("line 3: the test 'weird'"));
  EXPECT_THAT(error_of("{{ lipsum() }}", ErrorKind::unsupported), HasSubstr("'lipsum'"));
  EXPECT_THAT(error_of("{% for x in messages recursive %}{% endfor %}", ErrorKind::unsupported),
              HasSubstr("recursive"));
  EXPECT_THAT(error_of("{{ f(*messages) }}", ErrorKind::unsupported), HasSubstr("* in a call"));
  EXPECT_THAT(error_of("{{ 99999999999999999999 }}", ErrorKind::unsupported), HasSubstr("9999"));
  EXPECT_THAT(error_of("{{ 9223372036854775807 + 1 }}", ErrorKind::unsupported), HasSubstr("64 bits"));
  EXPECT_THAT(error_of("{{ 'x'.encode() }}", ErrorKind::unsupported), HasSubstr("'encode'"));
}

TEST(Jinja, RejectsBadSyntaxWithItsLine) {
  for (const std::string source : {"{{",
                                   "{{ 1",
                                   "{% if %}",
                                   "{% if x %}",
                                   "{% for x %}{% endfor %}",
                                   "{{ 1 + }}",
                                   "{{ 'a }}",
                                   "{# x",
                                   "{% raw %}",
                                   "{% endif %}",
                                   "{{ (1 }}",
                                   "{{ a b }}",
                                   "{% set %}",
                                   "{{ [1, }}",
                                   "{% break %}",
                                   "{{ 1 ? 2 }}",
                                   "{{ '\\x4' }}",
                                   "{% macro m( %}{% endmacro %}",
                                   "{{ x is }}",
                                   "{{ x | }}",
                                   "{% %}"}) {
    EXPECT_THAT(error_of("\n" + source, ErrorKind::format), HasSubstr("line 2")) << source;
  }
}

TEST(Jinja, FailsWherePythonRaises) {
  for (const std::string source :
       {"{{ nope.x }}", "{{ nope + 1 }}", "{{ 1 + 'a' }}", "{{ 1 < 'a' }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}",
        "{{ 1 in 2 }}", "{{ [1] | join(1, 2, 3) }}", "{{ 5 | length }}", "{% for x in 5 %}{% endfor %}",
        "{{ nope | tojson }}", "{{ 'abc'.split('') }}", "{% set a, b = [1] %}", "{% set messages.x = 1 %}",
        "{{ 1[1:2] }}", "{{ 1() }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{{ 'x' % 1 }}",
        "{{ messages[0].content.y.z }}"}) {
    EXPECT_THAT(error_of(source, ErrorKind::format), HasSubstr("line 1")) << source;
  }
}

TEST(Jinja, RaiseExceptionGivesTheTemplatesOwnWords) {
  const std::string error = error_of("{{ raise_exception('Roles must alternate') }}", ErrorKind::mismatch);
  EXPECT_THAT(error, HasSubstr("Roles must alternate"));
}

TEST(Jinja, HostileTemplatesEndQuickly) {
  const auto start = std::chrono::steady_clock::now();
  const std::string nested_for =
      "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}";
  const std::vector<std::string> sources = {
      nested_for,
      "{{ 'a' * 99999999999 }}",
      "{{ [1] * 99999999999 }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
      "{{ range(99999999)|list }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ "
      "ns.x }}",
      "{% set ns = namespace(s='ab') %}{% for i in range(99999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ "
      "ns.s }}",
      "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{{ s.find('b' * 100) }}{% endfor %}",
      "{% set s = 'a' * 9999999 %}{{ s.replace('', s) }}",
      "{{ '%999999d' % 1 }}{% for i in range(99999) %}{{ '%999999d' % 1 }}{% endfor %}",
      std::string(200'000, '('),
      "{{ " + std::string(50'000, '(') + "1" + std::string(50'000, ')') + " }}",
      "{{ " + std::string(50'000, '-') + "1 }}",
      "{{ 1" +
          [] {
            std::string s;
            for (int i = 0; i < 50'000; ++i) s += " + 1";
            return s;
          }() +
          " }}",
      "{{ " +
          [] {
            std::string s;
            for (int i = 0; i < 50'000; ++i) s += "not ";
            return s;
          }() +
          "1 }}",
      [] {
        std::string s;
        for (int i = 0; i < 50'000; ++i) s += "{% if 1 %}";
        return s;
      }(),
      std::string(3 << 20, 'x'),
  };
  for (const std::string& source : sources) {
    try {
      render(source);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("\n")));
    }
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 120.0);  // a few seconds; the rest is room for sanitizers
}

TEST(Jinja, FunctionsStayOutOfContainers) {
  // So that no value can hold itself.
  EXPECT_NE(error_of("{% set ns = namespace() %}{% set ns.me = ns %}", ErrorKind::unsupported), "");
  EXPECT_NE(error_of("{% macro m() %}{% endmacro %}{% set x = [m] %}", ErrorKind::unsupported), "");
  EXPECT_NE(error_of("{% set x = {'a': range} %}", ErrorKind::unsupported), "");
}

TEST(ChatTemplate, PassesOptionsAsVariables) {
  const auto chat = ChatTemplate::from_source(
      "{{ bos_token is defined }} {{ enable_thinking is defined }} {{ tools is none }} {{ "
      "add_generation_prompt }}");
  const std::vector<ChatMessage> messages = {{"user", "Hi"}};
  EXPECT_EQ(chat.render(messages, {}), "False False True True");
  ChatTemplateOptions options;
  options.enable_thinking = false;
  options.bos_token = "";
  options.add_generation_prompt = false;
  EXPECT_EQ(chat.render(messages, options), "True True True False");
}

TEST(ChatTemplate, BuiltinsRender) {
  const std::vector<ChatMessage> messages = {
      {"system", "S"}, {"user", "U"}, {"assistant", "A"}, {"user", "V"}};
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  EXPECT_EQ(
      ChatTemplate::builtin("chatml").render(messages, options),
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
      "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(ChatTemplate::builtin("llama3").render(messages, options),
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_"
            "id|>\n\nU"
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(ChatTemplate::builtin("gemma").render(messages, options),
            "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_"
            "turn>user\nV"
            "<end_of_turn>\n<start_of_turn>model\n");
  EXPECT_EQ(ChatTemplate::builtin("mistral").render(messages, options),
            "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]");
  EXPECT_THROW(ChatTemplate::builtin("nope"), Error);
}

TEST(ChatTemplate, ReadsTheSourceFromAConfig) {
  EXPECT_EQ(ChatTemplate::source_from_config(R"({"chat_template": "x"})", "c"), "x");
  EXPECT_EQ(
      ChatTemplate::source_from_config(
          R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})",
          "c"),
      "d");
  EXPECT_EQ(ChatTemplate::source_from_config("{}", "c"), std::nullopt);
  EXPECT_THROW(ChatTemplate::source_from_config(R"({"chat_template": 3})", "c"), Error);
  EXPECT_THROW(ChatTemplate::source_from_config("{", "c"), Error);
}

TEST(ChatTemplate, TakesInvalidUtf8) {
  const std::vector<ChatMessage> messages = {{"user", "a\xFF"}};
  EXPECT_EQ(ChatTemplate::from_source("\xC3{{ messages[0].content }}").render(messages, {}),
            "\xEF\xBF\xBD"
            "a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace keysieve
