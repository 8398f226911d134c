#include "program.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <utility>

namespace keysieve::testing {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void become(const std::vector<std::string>& arguments) {
  const char* program = std::getenv("KEYSIEVE_PROGRAM");
  if (program == nullptr) _exit(127);
  std::vector<char*> list = {const_cast<char*>(program)};
  for (const std::string& argument : arguments) list.push_back(const_cast<char*>(argument.c_str()));
  list.push_back(nullptr);
  execv(program, list.data());
  _exit(127);
}

std::array<int, 2> make_pipe() {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) ADD_FAILURE() << "no pipe";
  return ends;
}

}  // namespace

Program::Program(const std::vector<std::string>& arguments, Streams streams) {
  if (streams == Streams::terminal) {
    winsize size = {};
    size.ws_col = 100;
    size.ws_row = 30;
    int terminal = -1;
    pid_ = forkpty(&terminal, nullptr, nullptr, &size);
    if (pid_ == 0) become(arguments);
    input_ = dup(terminal);
    out_ = terminal;
    return;
  }
  const auto in = make_pipe();
  const auto out = make_pipe();
  const auto err = make_pipe();
  pid_ = fork();
  if (pid_ == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    become(arguments);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  input_ = in[1];
  out_ = out[0];
  err_ = err[0];
}

Program::~Program() {
  close_input();
  if (out_ >= 0) close(out_);
  if (err_ >= 0) close(err_);
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
}

void Program::write(const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(input_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // it reads no more: its business
    done += static_cast<size_t>(count);
  }
}

void Program::close_input() {
  if (input_ >= 0) close(input_);
  input_ = -1;
}

void Program::signal(int number) const { kill(pid_, number); }

bool Program::pump(std::chrono::milliseconds limit) {
  std::array<pollfd, 2> watched{pollfd{out_, POLLIN, 0}, pollfd{err_, POLLIN, 0}};
  if (out_ < 0 && err_ < 0) return false;
  if (poll(watched.data(), watched.size(), static_cast<int>(limit.count())) <= 0) return true;
  const auto take = [](pollfd& entry, int& file, std::string& text) {
    if (file < 0 || entry.revents == 0) return;
    std::array<char, 65536> buffer{};
    const ssize_t count = read(file, buffer.data(), buffer.size());
    if (count > 0) {
      text.append(buffer.data(), static_cast<size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      // A terminal whose program has gone answers EIO instead of end of file.
      close(file);
      file = -1;
    }
  };
  take(watched[0], out_, outcome_.out);
  take(watched[1], err_, outcome_.err);
  return out_ >= 0 || err_ >= 0;
}

bool Program::wait_for(const std::string& text, std::chrono::seconds limit) {
  const auto end = Clock::now() + limit;
  while (true) {
    const size_t found = outcome_.out.find(text, searched_);
    if (found != std::string::npos) {
      searched_ = found + text.size();
      return true;
    }
    if (Clock::now() > end || !pump(std::chrono::milliseconds(100))) return false;
  }
}

void Program::wait(std::chrono::milliseconds time) {
  for (const auto end = Clock::now() + time; Clock::now() < end;) {
    if (!pump(std::chrono::milliseconds(20))) return;
  }
}

Outcome Program::finish(std::chrono::seconds limit) {
  const auto end = Clock::now() + limit;
  while (pump(std::chrono::milliseconds(100))) {
    if (Clock::now() > end) kill(pid_, SIGKILL);
  }
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  outcome_.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return std::move(outcome_);
}

Outcome run(const std::vector<std::string>& arguments, const std::string& input) {
  Program program(arguments);
  program.write(input);
  program.close_input();
  return program.finish();
}

}  // namespace keysieve::testing
