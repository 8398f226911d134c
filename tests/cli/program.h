#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace keysieve::testing {

// What a finished program left behind.
struct Outcome {
  int status = -1;  // of exit, or 128 + the signal that ended it
  std::string out;
  std::string err;  // empty for programs on a terminal: both streams go there
};

// The program under test ($KEYSIEVE_PROGRAM) while it runs. Ended when this goes.
class Program {
 public:
  enum class Streams { pipes, terminal };  // terminal: 100 columns, 30 rows
  explicit Program(const std::vector<std::string>& arguments, Streams streams = Streams::pipes);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

  void write(const std::string& text);  // to its standard input or terminal
  void close_input();
  void signal(int number) const;
  // Reads until its output holds `text` (searched from where the last wait ended); false after `limit`.
  bool wait_for(const std::string& text, std::chrono::seconds limit = std::chrono::seconds(60));
  void wait(std::chrono::milliseconds time);  // reading what comes
  size_t seen() const { return outcome_.out.size(); }
  // Reads to the end; a program still there after `limit` is killed and reported as 128 + SIGKILL.
  Outcome finish(std::chrono::seconds limit = std::chrono::seconds(120));

 private:
  bool pump(std::chrono::milliseconds limit);  // false: both streams are at their end

  pid_t pid_ = -1;
  int input_ = -1;
  int out_ = -1;
  int err_ = -1;
  size_t searched_ = 0;
  Outcome outcome_;
};

// Runs to the end with `input` as standard input.
Outcome run(const std::vector<std::string>& arguments, const std::string& input = "");

}  // namespace keysieve::testing
