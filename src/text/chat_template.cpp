#include "text/chat_template.h"

#include <fmt/format.h>

#include <array>
#include <map>
#include <utility>

#include "core/json.h"
#include "keysieve/error.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"
#include "text/utf8.h"

namespace keysieve {

namespace {

constexpr std::string_view kTemplateWayOut = "use --chat-template chatml";

struct Builtin {
  std::string_view name;
  std::string_view source;
};

// The formats themselves, for models that carry no template or one that cannot be run.
constexpr std::array kBuiltins = {
    Builtin{"chatml",
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"},
    Builtin{"gemma",
            "{{ bos_token }}"
            "{% if messages and messages[0].role == 'system' %}"
            "{% set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}"
            "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
            "{% for message in rest %}"
            "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
            "{{ (system if loop.first else '') + message.content | trim + '<end_of_turn>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"},
    Builtin{"llama3",
            "{{ bos_token }}"
            "{% for message in messages %}"
            "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + "
            "'<|eot_id|>' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% "
            "endif %}"},
    Builtin{"mistral",
            "{{ bos_token }}"
            "{% set ns = namespace(system='') %}"
            "{% for message in messages %}"
            "{% if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}"
            "{% elif message.role == 'user' %}{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}"
            "{% set ns.system = '' %}"
            "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}"
            "{% endfor %}"},
};

[[noreturn]] void raise(const jinja::Failure& failure, std::string_view subject, int line) {
  const std::string found = line > 0 ? fmt::format("line {}: {}", line, failure.found) : failure.found;
  const std::string expected = failure.kind == ErrorKind::unsupported && failure.expected.empty()
                                   ? "what this evaluator of Jinja can run"
                                   : failure.expected;
  throw Error(failure.kind, subject, found, expected, kTemplateWayOut);
}

// What a rendering may spend grows with what is rendered: 64 bytes of intermediate text for each byte of
// input.
jinja::Limits limits_for(size_t input_bytes) {
  jinja::Limits limits;
  limits.steps += input_bytes;
  limits.bytes += uint64_t{64} * input_bytes;
  limits.output += 16 * input_bytes;
  return limits;
}

std::string valid_text(const std::string& text) {
  return is_valid_utf8(text) ? text : replace_invalid_utf8(text);
}

}  // namespace

struct ChatTemplate::Impl {
  std::string source;
  std::string subject;
  jinja::Block block;
};

ChatTemplate::ChatTemplate(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

ChatTemplate ChatTemplate::from_source(std::string_view source, std::string_view subject) {
  auto impl = std::make_shared<Impl>();
  impl->source = source;
  impl->subject = subject;
  try {
    impl->block = jinja::parse(is_valid_utf8(source) ? std::string(source) : replace_invalid_utf8(source));
  } catch (const jinja::Failure& failure) {
    raise(failure, subject, 0);
  }
  return ChatTemplate(std::move(impl));
}

ChatTemplate ChatTemplate::builtin(std::string_view name) {
  for (const Builtin& known : kBuiltins) {
    if (known.name == name) return from_source(known.source, fmt::format("built-in chat template {}", name));
  }
  throw Error(ErrorKind::usage, "chat template", fmt::format("'{}'", name),
              fmt::format("one of {}", fmt::join(builtin_names(), ", ")));
}

std::vector<std::string_view> ChatTemplate::builtin_names() {
  std::vector<std::string_view> names;
  for (const Builtin& known : kBuiltins) names.push_back(known.name);
  return names;
}

std::optional<std::string> ChatTemplate::source_from_config(std::string_view config_json,
                                                            std::string_view subject) {
  const Json config = parse_json(config_json, subject);
  if (!config.is_object() || !config.contains("chat_template")) return std::nullopt;
  const Json& given = config["chat_template"];
  if (given.is_null()) return std::nullopt;
  if (given.is_string()) return given.get<std::string>();
  if (given.is_array()) {
    for (const Json& entry : given) {
      if (entry.is_object() && json_value(entry, "name", std::string(), subject) == "default") {
        return json_require<std::string>(entry, "template", subject);
      }
    }
    return std::nullopt;
  }
  throw Error(ErrorKind::format, subject, "'chat_template' of another type",
              "a string or a list of named templates", kTemplateWayOut);
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 const ChatTemplateOptions& options) const {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return render(list, options);
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages,
                                 const ChatTemplateOptions& options) const {
  using jinja::Value;
  int line = 0;
  try {
    std::map<std::string, Value, std::less<>> variables;
    variables["messages"] = Value::from_json(messages);
    variables["add_generation_prompt"] = options.add_generation_prompt;
    variables["tools"] = Value();
    variables["documents"] = Value();
    if (options.enable_thinking) variables["enable_thinking"] = *options.enable_thinking;
    if (options.bos_token) variables["bos_token"] = valid_text(*options.bos_token);
    if (options.eos_token) variables["eos_token"] = valid_text(*options.eos_token);
    for (const auto& [name, value] : options.extra.items()) variables[name] = Value::from_json(value);
    uint64_t input_bytes = impl_->source.size();
    for (const auto& [name, value] : variables) input_bytes += value.weight();
    jinja::Interpreter interpreter(std::move(variables), options.now.value_or(std::time(nullptr)),
                                   limits_for(input_bytes));
    try {
      return interpreter.run(impl_->block);
    } catch (...) {
      line = interpreter.line();
      throw;
    }
  } catch (const jinja::Failure& failure) {
    raise(failure, impl_->subject, line);
  } catch (const jinja::Raised& raised) {
    throw Error(ErrorKind::mismatch, impl_->subject, raised.message);
  }
}

const std::string& ChatTemplate::source() const { return impl_->source; }

}  // namespace keysieve
