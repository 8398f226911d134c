#include "text/tokenizer_json_reader.h"

#include <fmt/format.h>

#include "keysieve/error.h"

namespace keysieve {

namespace {

constexpr size_t kDeepest = 200;

class Reader final : public nlohmann::json_sax<Json> {
 public:
  Reader(TokenizerJson& out, std::string_view subject) : out_(out), subject_(subject) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return number(v, v); }
  bool number_unsigned(number_unsigned_t v) override {
    // Past int64 no id is valid: -1 is refused like any other bad id.
    return number(v, v <= INT64_MAX ? static_cast<int64_t>(v) : -1);
  }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return false; }

  bool string(string_t& v) override {
    if (list_ == List::none) return value(std::move(v));
    if (list_ == List::vocabulary) fail_entry();
    if (list_depth_ == 1) {
      out_.merges.push_back(std::move(v));
      return true;
    }
    if (++pair_strings_ > 2 || v.find(' ') != string_t::npos) fail_entry();
    if (pair_strings_ == 1) {
      out_.merges.push_back(std::move(v));
    } else {
      out_.merges.back().append(1, ' ').append(v);
    }
    return true;
  }

  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }

  bool start_object(std::size_t) override {
    if (list_ != List::none) fail_entry();
    if (inside_model() && key_ == "vocab") return start_list(List::vocabulary);
    return open(Json::object());
  }
  bool end_object() override {
    if (list_ == List::vocabulary) return end_list();
    return close();
  }
  bool start_array(std::size_t) override {
    if (list_ == List::merges && list_depth_ == 1) {
      ++list_depth_;
      pair_strings_ = 0;
      return true;
    }
    if (list_ != List::none) fail_entry();
    if (inside_model() && key_ == "merges") return start_list(List::merges);
    return open(Json::array());
  }
  bool end_array() override {
    if (list_ != List::merges) return close();
    if (list_depth_ == 2) {
      if (pair_strings_ != 2) fail_entry();
      --list_depth_;
      return true;
    }
    return end_list();
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw Error(ErrorKind::format, subject_, fmt::format("bad JSON at byte {}", position), "JSON",
                "get the file again");
  }

 private:
  enum class List { none, vocabulary, merges };

  [[noreturn]] void fail_entry() const {
    if (list_ == List::vocabulary) {
      throw Error(ErrorKind::format, subject_, fmt::format("vocabulary entry '{}'", key_), "an integer id");
    }
    throw Error(ErrorKind::format, subject_, fmt::format("merge {}", out_.merges.size()),
                "\"left right\" or [\"left\", \"right\"]");
  }

  // model.vocab and model.merges: the root and the model are open and nothing else.
  bool inside_model() const { return open_.size() == 2 && in_model_; }

  bool start_list(List list) {
    list_ = list;
    list_depth_ = 1;
    // Given twice, the later one counts, as in any JSON object.
    if (list == List::vocabulary) out_.vocabulary.clear();
    if (list == List::merges) out_.merges.clear();
    return true;
  }
  bool end_list() {
    list_ = List::none;
    return true;
  }

  template <class T>
  bool number(T v, int64_t id) {
    if (list_ == List::none) return value(v);
    if (list_ == List::merges) fail_entry();
    out_.vocabulary.emplace_back(std::move(key_), id);
    return true;
  }

  template <class T>
  bool value(T&& v) {
    if (list_ != List::none) fail_entry();
    place(Json(std::forward<T>(v)));
    return true;
  }

  Json* place(Json v) {
    if (open_.empty()) {
      out_.document = std::move(v);
      return &out_.document;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) return &parent.emplace_back(std::move(v));
    return &(parent[key_] = std::move(v));
  }
  bool open(Json container) {
    if (open_.size() >= kDeepest) throw Error(ErrorKind::format, subject_, "JSON nested deeper than 200");
    if (open_.size() == 1) in_model_ = key_ == "model" && open_.back()->is_object();
    open_.push_back(place(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  TokenizerJson& out_;
  std::string_view subject_;
  std::vector<Json*> open_;
  std::string key_;
  bool in_model_ = false;
  List list_ = List::none;
  int list_depth_ = 0;
  int pair_strings_ = 0;
};

}  // namespace

TokenizerJson read_tokenizer_json(std::string_view json, std::string_view subject) {
  TokenizerJson out;
  Reader reader(out, subject);
  Json::sax_parse(json, &reader);
  if (!out.document.is_object())
    throw Error(ErrorKind::format, subject, "no JSON object", "a tokenizer.json");
  return out;
}

}  // namespace keysieve
