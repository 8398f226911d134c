#include "text/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "text/jinja/token_stream.h"

namespace keysieve::jinja {

namespace {

constexpr size_t kLongestTemplate = size_t{1} << 20;  // the Hub's longest chat templates have about 20 KB
constexpr int kMostBlocks = 50;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(lex(source)) {}

  Block run() {
    Block block = parse_block({});
    if (!tokens_.is(TokenType::end)) tokens_.fail_unexpected("the end of the template");
    return block;
  }

 private:
  using Names = std::initializer_list<std::string_view>;

  std::unique_ptr<Statement> statement(StatementKind kind) const {
    auto made = std::make_unique<Statement>();
    made->kind = kind;
    made->line = tokens_.current().line;
    return made;
  }

  void end_tag() { tokens_.expect(TokenType::block_end, "'%}'"); }

  // Statements up to a tag that is one of `ends`; its {% is consumed and its name is current.
  Block parse_block(Names ends) {
    Block block;
    for (;;) {
      if (tokens_.is(TokenType::text)) {
        block.push_back(statement(StatementKind::text));
        block.back()->text = tokens_.take().value;
      } else if (tokens_.is(TokenType::variable_begin)) {
        tokens_.take();
        block.push_back(statement(StatementKind::output));
        block.back()->expression = tokens_.parse_tuple();
        tokens_.expect(TokenType::variable_end, "'}}'");
      } else if (tokens_.is(TokenType::block_begin)) {
        tokens_.take();
        if (!tokens_.is(TokenType::name)) tokens_.fail_unexpected("a statement");
        if (std::find(ends.begin(), ends.end(), tokens_.current().value) != ends.end()) return block;
        block.push_back(parse_statement());
      } else {
        if (ends.size() > 0) tokens_.fail_unexpected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
        return block;
      }
    }
  }

  // The body of a block statement with its end tag, whose name is the last of `ends`.
  Block parse_body(std::string_view end) {
    Block body = parse_nested({end});
    tokens_.take();
    end_tag();
    return body;
  }

  Block parse_nested(Names ends) {
    if (++blocks_ > kMostBlocks) {
      throw Failure{ErrorKind::resource,
                    fmt::format("line {}: blocks nested deeper than 50", tokens_.current().line)};
    }
    Block body = parse_block(ends);
    --blocks_;
    return body;
  }

  std::unique_ptr<Statement> parse_statement() {
    const std::string name = tokens_.current().value;
    if (name == "if") return parse_if();
    if (name == "for") return parse_for();
    if (name == "set") return parse_set();
    if (name == "macro") return parse_macro();
    if (name == "call") return parse_call();
    if (name == "filter") return parse_filter_block();
    if (name == "with") return parse_with();
    if (name == "generation") {
      auto made = statement(StatementKind::scope);
      tokens_.take();
      end_tag();
      made->body = parse_body("endgeneration");
      return made;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) tokens_.fail_here(fmt::format("{{% {} %}} outside of a loop", name));
      auto made = statement(name == "break" ? StatementKind::loop_break : StatementKind::loop_continue);
      tokens_.take();
      end_tag();
      return made;
    }
    constexpr std::array<std::string_view, 9> kKnown = {"import", "from",  "include", "extends",   "block",
                                                        "do",     "trans", "debug",   "autoescape"};
    const std::string tag = fmt::format("line {}: the statement {{% {} %}}", tokens_.current().line, name);
    if (std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end()) fail_unsupported(tag);
    if (name.starts_with("end") || name.starts_with("el")) fail(tag + " ends nothing");
    fail_unsupported(tag);
  }

  std::unique_ptr<Statement> parse_if() {
    auto made = statement(StatementKind::condition);
    for (;;) {
      tokens_.take();  // if, elif
      ExpressionPtr condition = tokens_.parse_tuple(false);
      end_tag();
      made->branches.emplace_back(std::move(condition), parse_nested({"elif", "else", "endif"}));
      if (tokens_.is_name("elif")) continue;
      const bool has_else = tokens_.skip_name("else");
      if (!has_else) break;
      end_tag();
      made->otherwise = parse_nested({"endif"});
      break;
    }
    tokens_.take();
    end_tag();
    return made;
  }

  std::unique_ptr<Statement> parse_for() {
    auto made = statement(StatementKind::loop);
    tokens_.take();
    made->target = parse_target(false);
    if (!tokens_.skip_name("in")) tokens_.fail_unexpected("'in'");
    made->expression = tokens_.parse_tuple(false);
    if (tokens_.skip_name("if")) made->condition = tokens_.parse_expression();
    if (tokens_.is_name("recursive")) fail_unsupported(fmt::format("line {}: a recursive loop", made->line));
    end_tag();
    ++loops_;
    made->body = parse_nested({"else", "endfor"});
    --loops_;
    if (tokens_.skip_name("else")) {
      end_tag();
      made->otherwise = parse_nested({"endfor"});
    }
    tokens_.take();
    end_tag();
    return made;
  }

  Target parse_single_target(bool with_namespace, int depth) {
    if (tokens_.skip_op("(")) {
      if (depth > 8) tokens_.fail_here("a target nested deeper than 8");
      Target inside = parse_target(with_namespace, depth + 1);
      tokens_.expect_op(")");
      return inside;
    }
    Target target;
    target.name = tokens_.expect_name();
    if (with_namespace && tokens_.skip_op(".")) target.attribute = tokens_.expect_name();
    return target;
  }

  Target parse_target(bool with_namespace, int depth = 0) {
    Target first = parse_single_target(with_namespace, depth);
    if (!tokens_.is_op(",")) return first;
    Target tuple;
    tuple.tuple.push_back(std::move(first));
    while (tokens_.skip_op(",")) {
      if (tokens_.is_name("in") || tokens_.is_op("=") || tokens_.is_op(")")) break;
      tuple.tuple.push_back(parse_single_target(with_namespace, depth));
    }
    return tuple;
  }

  std::unique_ptr<Statement> parse_set() {
    auto made = statement(StatementKind::set);
    tokens_.take();
    made->target = parse_target(true);
    if (tokens_.skip_op("=")) {
      made->expression = tokens_.parse_tuple();
      end_tag();
      return made;
    }
    made->kind = StatementKind::set_block;
    while (tokens_.is_op("|")) made->filters.push_back(tokens_.parse_filter(nullptr));
    end_tag();
    made->body = parse_body("endset");
    return made;
  }

  void parse_parameters(Statement& made) {
    tokens_.expect_op("(");
    for (bool first = true; !tokens_.skip_op(")"); first = false) {
      if (!first) {
        tokens_.expect_op(",");
        if (tokens_.skip_op(")")) break;
      }
      std::string name = tokens_.expect_name();
      ExpressionPtr fallback = tokens_.skip_op("=") ? tokens_.parse_expression() : nullptr;
      made.parameters.emplace_back(std::move(name), std::move(fallback));
    }
  }

  // A macro's body starts outside of every loop.
  Block parse_macro_body(std::string_view end) {
    const int loops = loops_;
    loops_ = 0;
    Block body = parse_body(end);
    loops_ = loops;
    return body;
  }

  std::unique_ptr<Statement> parse_macro() {
    auto made = statement(StatementKind::macro);
    tokens_.take();
    if (loops_ > 0 || in_macro_)
      fail_unsupported(fmt::format("line {}: a macro inside a loop or macro", made->line));
    made->text = tokens_.expect_name();
    parse_parameters(*made);
    end_tag();
    in_macro_ = true;
    made->body = parse_macro_body("endmacro");
    in_macro_ = false;
    return made;
  }

  std::unique_ptr<Statement> parse_call() {
    auto made = statement(StatementKind::call_block);
    tokens_.take();
    if (tokens_.is_op("(")) parse_parameters(*made);
    made->expression = tokens_.parse_expression();
    if (made->expression->kind != ExpressionKind::call) tokens_.fail_unexpected("a call");
    end_tag();
    made->body = parse_macro_body("endcall");
    return made;
  }

  std::unique_ptr<Statement> parse_filter_block() {
    auto made = statement(StatementKind::filter_block);
    tokens_.take();
    made->filters.push_back(std::make_unique<Expression>());
    Expression& first = *made->filters[0];
    first.kind = ExpressionKind::filter;
    first.line = made->line;
    first.name = tokens_.expect_name();
    first.operands.push_back(nullptr);
    if (tokens_.is_op("(")) tokens_.parse_arguments(first);
    while (tokens_.is_op("|")) made->filters.push_back(tokens_.parse_filter(nullptr));
    end_tag();
    made->body = parse_body("endfilter");
    return made;
  }

  std::unique_ptr<Statement> parse_with() {
    auto made = statement(StatementKind::with);
    tokens_.take();
    while (!tokens_.is(TokenType::block_end)) {
      if (!made->bindings.empty()) tokens_.expect_op(",");
      Target target = parse_single_target(false, 0);
      tokens_.expect_op("=");
      made->bindings.emplace_back(std::move(target), tokens_.parse_expression());
    }
    end_tag();
    made->body = parse_body("endwith");
    return made;
  }

  TokenStream tokens_;
  int blocks_ = 0;
  int loops_ = 0;
  bool in_macro_ = false;
};

}  // namespace

Block parse(std::string_view source) {
  if (source.size() > kLongestTemplate) throw Failure{ErrorKind::resource, "a template of more than 1 MB"};
  return Parser(source).run();
}

}  // namespace keysieve::jinja
