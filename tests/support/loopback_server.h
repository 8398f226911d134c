#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace keysieve::testing {

struct ServerRequest {
  std::string method;
  std::string path;                            // with its query
  std::map<std::string, std::string> headers;  // names in lower case
  std::optional<uint64_t> from;                // of its Range
};

struct ServerAnswer {
  int status = 200;
  std::vector<std::string> headers = {};  // "Name: value"
  std::string body = {};                  // not sent for HEAD
  std::optional<uint64_t> announce = {};  // another Content-Length than the body's
  std::optional<size_t> cut_after = {};   // closes the connection after so many bytes of the body
  double pause_after_headers = 0;         // seconds
  double pause_after_body = 0;
};

// An HTTP server on 127.0.0.1 that answers as it is told, faults included: one connection a request.
class LoopbackServer {
 public:
  using Handler = std::function<ServerAnswer(const ServerRequest&)>;
  explicit LoopbackServer(Handler handler);
  LoopbackServer(const LoopbackServer&) = delete;
  LoopbackServer& operator=(const LoopbackServer&) = delete;
  ~LoopbackServer();

  std::string address(const std::string& host = "127.0.0.1") const;  // "http://127.0.0.1:PORT"
  std::vector<ServerRequest> requests() const;

 private:
  void serve();
  void answer(int connection);
  void pause(double seconds) const;  // ends early when the server goes

  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  mutable std::mutex mutex_;
  std::vector<ServerRequest> requests_;
  std::vector<std::thread> connections_;
  std::thread thread_;
};

// A Hub with one repository, as the real one speaks: listing, resolve with HEAD and GET, large files by a
// redirect to a storage under another host name, small ones straight. `faults` may replace any answer.
class HubServer {
 public:
  struct File {
    std::string content;
    bool large = false;
  };
  using Fault = std::function<std::optional<ServerAnswer>(const ServerRequest&)>;

  HubServer(std::string id, std::map<std::string, File> files, Fault faults = {});
  // Another repository, before anything is asked for.
  void also_serve(std::string id, std::map<std::string, File> files);

  std::string endpoint() const { return server_.address(); }
  const std::string& commit() const { return commit_; }
  std::vector<ServerRequest> requests() const { return server_.requests(); }
  size_t count(const std::string& method, const std::string& part) const;  // requests whose path holds `part`
  static std::string etag_of(const File& file);
  // The answer to a GET that may ask for a range.
  static ServerAnswer bytes_of(const ServerRequest& request, const std::string& content);

 private:
  using Files = std::map<std::string, File>;
  ServerAnswer answer(const ServerRequest& request) const;
  ServerAnswer of_repository(const std::string& id, const Files& files, const ServerRequest& request) const;
  ServerAnswer of_storage(const ServerRequest& request) const;

  std::map<std::string, Files> repositories_;  // by id
  Fault faults_;
  std::string commit_ = "0123456789abcdef0123456789abcdef01234567";
  LoopbackServer server_;
};

}  // namespace keysieve::testing
