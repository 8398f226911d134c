#include "cli/line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

namespace keysieve::cli {
namespace {

constexpr int kHistoryLines = 1000;

std::filesystem::path history_path(std::string_view name) {
  std::filesystem::path folder;
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    folder = state;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".local" / "state";
  } else {
    return {};
  }
  folder /= "keysieve";
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  return failed ? std::filesystem::path() : folder / name;
}

struct EndHistory {
  void operator()(History* history) const { history_end(history); }
};
struct EndEditLine {
  void operator()(EditLine* editor) const { el_end(editor); }
};

}  // namespace

struct LineReader::Impl {
  std::string prompt;
  bool dropped = false;
  std::filesystem::path history_file;
  std::unique_ptr<History, EndHistory> history;
  std::unique_ptr<EditLine, EndEditLine> editor;

  static char* prompt_of(EditLine* editor) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return static_cast<Impl*>(data)->prompt.data();
  }

  // Ctrl-C: the line is dropped, the program goes on.
  static unsigned char drop_line(EditLine* editor, int) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    static_cast<Impl*>(data)->dropped = true;
    return CC_NEWLINE;
  }

  void remember(const std::string& line) const {
    HistEvent event = {};
    ::history(history.get(), &event, H_ENTER, line.c_str());
    if (!history_file.empty()) ::history(history.get(), &event, H_SAVE, history_file.c_str());
  }
};

LineReader::LineReader(std::string_view history) : impl_(std::make_unique<Impl>()) {
  if (isatty(STDIN_FILENO) != 1 || isatty(STDOUT_FILENO) != 1) return;
  impl_->editor.reset(el_init("keysieve", stdin, stdout, stderr));
  if (!impl_->editor) return;
  EditLine* editor = impl_->editor.get();
  impl_->history.reset(history_init());
  impl_->history_file = history_path(history);
  HistEvent event = {};
  ::history(impl_->history.get(), &event, H_SETSIZE, kHistoryLines);
  ::history(impl_->history.get(), &event, H_SETUNIQUE, 1);
  if (!impl_->history_file.empty())
    ::history(impl_->history.get(), &event, H_LOAD, impl_->history_file.c_str());
  el_set(editor, EL_CLIENTDATA, impl_.get());
  el_set(editor, EL_PROMPT, &Impl::prompt_of);
  el_set(editor, EL_EDITOR, "emacs");
  el_set(editor, EL_HIST, ::history, impl_->history.get());
  // libedit restores the terminal when a signal comes and passes it on: Ctrl-C would end the program. While a
  // line is edited it is a key like any other.
  el_set(editor, EL_SIGNAL, 1);
  el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
  // The wide form: the narrow one copies the names and never frees them.
  el_wset(editor, EL_ADDFN, L"keysieve-drop-line", L"Drop the line", &Impl::drop_line);
  el_set(editor, EL_BIND, "^C", "keysieve-drop-line", nullptr);
  el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_source(editor, nullptr);
}

LineReader::LineReader(LineReader&&) noexcept = default;
LineReader& LineReader::operator=(LineReader&&) noexcept = default;
LineReader::~LineReader() = default;

bool LineReader::interactive() const { return impl_->editor != nullptr; }

std::optional<std::string> LineReader::read(std::string_view prompt) {
  if (!impl_->editor) {
    std::string line;
    if (!std::getline(std::cin, line)) return std::nullopt;
    if (line.ends_with('\r')) line.pop_back();
    return line;
  }
  impl_->prompt = prompt;
  impl_->dropped = false;
  int count = 0;
  const char* text = el_gets(impl_->editor.get(), &count);
  if (impl_->dropped) {
    std::fputs("\n", stdout);
    return std::string();
  }
  if (text == nullptr || count <= 0) return std::nullopt;
  std::string line(text, static_cast<size_t>(count));
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  if (line.find_first_not_of(" \t") != std::string::npos) impl_->remember(line);
  return line;
}

}  // namespace keysieve::cli
