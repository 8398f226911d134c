#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/cancel.h"

namespace keysieve {

struct HttpRequest {
  std::string url;
  bool head = false;                      // headers only
  bool follow = true;                     // redirects
  std::vector<std::string> headers = {};  // "Name: value". An Authorization is not sent on to other hosts
  uint64_t from = 0;                      // asks for the bytes from here on
};

struct HttpResponse {
  int status = 0;                              // of the last response; 0: there was none
  std::map<std::string, std::string> headers;  // of the last response, names in lower case
  std::string body;                            // of a refusal, its start; empty for 2xx
  std::string failure;                         // why the transfer did not end as it should; empty: it did
  bool passing = true;                         // whether another try may help with the failure

  bool fine() const { return failure.empty() && status >= 200 && status < 300; }
  std::optional<std::string> header(const std::string& name) const;
  std::optional<uint64_t> number_header(const std::string& name) const;
};

// HTTP by libcurl. One object keeps its connections; use it from one thread.
class HttpClient {
 public:
  // Gives up on a connection after `stall_seconds` without a byte. `cancel` may be null.
  HttpClient(double stall_seconds, const std::atomic<bool>* cancel);

  // The body of a 2xx answer, piece by piece; what `sink` throws comes out of send.
  using Sink = std::function<void(const HttpResponse&, std::span<const std::byte>)>;
  // Throws Error{network} where it was cancelled; every other failure is in the response.
  HttpResponse send(const HttpRequest& request, const Sink& sink);
  // The whole body, at most `limit` bytes of it (more is a failure), into `body`.
  HttpResponse send(const HttpRequest& request, std::string& body, size_t limit);

  bool cancelled() const { return is_cancelled(cancel_); }
  [[noreturn]] static void throw_cancelled();

 private:
  struct Free {
    void operator()(void* handle) const;
  };
  std::unique_ptr<void, Free> handle_;  // CURL
  double stall_seconds_;
  const std::atomic<bool>* cancel_;
};

// How often and after which waits a request is tried again.
struct RetryPolicy {
  size_t attempts = 5;
  double first_wait = 1;  // seconds; doubles with each try, 30 at most
};

// Whether another try may help: a transfer cut short, 408, 429 and 5xx.
bool worth_retrying(const HttpResponse& response);
// Waits before try `next` (2, 3, ...): by the policy, or as long as the answer's Retry-After says (seconds or
// a date, 5 minutes at most). Throws Error{network} where `client` is cancelled meanwhile.
void wait_before_retry(const HttpClient& client, const RetryPolicy& policy, size_t next,
                       const HttpResponse& response);

// Sends until it is fine, or nothing more can be hoped for, or `policy` has no tries left.
HttpResponse send_with_retries(HttpClient& client, const RetryPolicy& policy, const HttpRequest& request,
                               std::string& body, size_t limit);

// "503 Service Unavailable", or the failure: what to say of a response that is not fine.
std::string describe(const HttpResponse& response);

// Without spaces and line breaks around it.
std::string_view trimmed(std::string_view text);

// The name or the address's host, so that an error names the machine and not a signed URL of 2,000
// characters.
std::string host_of(std::string_view url);

}  // namespace keysieve
