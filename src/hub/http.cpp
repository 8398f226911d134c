#include "hub/http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <thread>

#include "hub/shared_library.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr size_t kRefusalBytes = 4096;     // of a refusal's body: enough for its words
constexpr size_t kHeaderBytes = 64 << 10;  // of one response

// libcurl as far as it is used here, loaded by whoever opens a connection.
class CurlLibrary {
 public:
  static const CurlLibrary& get() {
    static const CurlLibrary library;
    return library;
  }

  decltype(&curl_easy_init) easy_init = function<decltype(&curl_easy_init)>("curl_easy_init");
  decltype(&curl_easy_reset) easy_reset = function<decltype(&curl_easy_reset)>("curl_easy_reset");
  decltype(&curl_easy_setopt) easy_setopt = function<decltype(&curl_easy_setopt)>("curl_easy_setopt");
  decltype(&curl_easy_perform) easy_perform = function<decltype(&curl_easy_perform)>("curl_easy_perform");
  decltype(&curl_easy_getinfo) easy_getinfo = function<decltype(&curl_easy_getinfo)>("curl_easy_getinfo");
  decltype(&curl_easy_strerror) easy_strerror = function<decltype(&curl_easy_strerror)>("curl_easy_strerror");
  decltype(&curl_easy_cleanup) easy_cleanup = function<decltype(&curl_easy_cleanup)>("curl_easy_cleanup");
  decltype(&curl_slist_append) slist_append = function<decltype(&curl_slist_append)>("curl_slist_append");
  decltype(&curl_slist_free_all) slist_free_all =
      function<decltype(&curl_slist_free_all)>("curl_slist_free_all");
  decltype(&curl_getdate) getdate = function<decltype(&curl_getdate)>("curl_getdate");

 private:
  template <class Pointer>
  static Pointer function(const char* name) {
    static const SharedLibrary library("libcurl.so.4", "libcurl 7.85 or later", "libcurl4");
    return library.function<Pointer>(name);
  }
};

CURL* curl_of(void* handle) { return static_cast<CURL*>(handle); }

template <class Value>
void set(CURL* handle, CURLoption option, Value value) {
  const CurlLibrary& curl = CurlLibrary::get();
  if (const CURLcode code = curl.easy_setopt(handle, option, value); code != CURLE_OK) {
    throw Error(ErrorKind::unsupported, "libcurl", curl.easy_strerror(code), "libcurl 7.85 or later");
  }
}

// What curl's callbacks work on. They are called from C, so nothing may be thrown through them: it is kept
// and thrown when curl has returned.
struct Exchange {
  HttpResponse response;
  const HttpClient::Sink* sink = nullptr;
  const HttpClient* client = nullptr;
  size_t header_bytes = 0;
  std::exception_ptr thrown;
};

size_t on_header(char* data, size_t size, size_t count, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  const std::string_view line = trimmed({data, size * count});
  if (line.starts_with("HTTP/")) {  // a new response: after a redirect, or after 100 Continue
    exchange.response.headers.clear();
    exchange.header_bytes = 0;
  }
  exchange.header_bytes += line.size();
  if (exchange.header_bytes > kHeaderBytes) return 0;
  const size_t colon = line.find(':');
  if (colon != std::string_view::npos) {
    std::string name(line.substr(0, colon));
    std::ranges::transform(name, name.begin(), [](unsigned char c) {
      return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    });
    exchange.response.headers[name] = trimmed(line.substr(colon + 1));
  }
  return size * count;
}

// Set before the first byte of a body is handed on, as the sink wants to know what it belongs to.
void read_status(CURL* handle, HttpResponse& response) {
  long status = 0;
  CurlLibrary::get().easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
  response.status = static_cast<int>(status);
}

struct BodyTarget {
  Exchange* exchange;
  CURL* handle;
};

size_t on_body(char* data, size_t size, size_t count, void* user) {
  const auto& target = *static_cast<BodyTarget*>(user);
  HttpResponse& response = target.exchange->response;
  const size_t bytes = size * count;
  read_status(target.handle, response);
  if (response.status < 200 || response.status >= 300) {
    response.body.append(data,
                         std::min(bytes, kRefusalBytes - std::min(kRefusalBytes, response.body.size())));
    return bytes;
  }
  try {
    (*target.exchange->sink)(response, std::as_bytes(std::span(data, bytes)));
  } catch (...) {
    target.exchange->thrown = std::current_exception();
    return CURL_WRITEFUNC_ERROR;
  }
  return bytes;
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<const Exchange*>(user)->client->cancelled() ? 1 : 0;
}

struct FreeList {
  void operator()(curl_slist* list) const { CurlLibrary::get().slist_free_all(list); }
};
using HeaderList = std::unique_ptr<curl_slist, FreeList>;

HeaderList header_list(const std::vector<std::string>& headers) {
  HeaderList list;
  for (const std::string& header : headers) {
    curl_slist* shorter = list.release();
    curl_slist* longer = CurlLibrary::get().slist_append(shorter, header.c_str());
    list.reset(longer != nullptr ? longer : shorter);
    if (longer == nullptr) throw Error(ErrorKind::resource, "HTTP headers", "no memory for them");
  }
  return list;
}

// Failures that another try cannot mend: the name of a protocol, a certificate that is not trusted.
bool passes(CURLcode code) {
  switch (code) {
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_TOO_MANY_REDIRECTS:
    case CURLE_BAD_FUNCTION_ARGUMENT:
      return false;
    default:
      return true;
  }
}

void set_trust(CURL* handle) {
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    set(handle, CURLOPT_CAINFO, value);
    return;
  }
}

}  // namespace

std::optional<std::string> HttpResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  if (found == headers.end()) return std::nullopt;
  return found->second;
}

std::optional<uint64_t> HttpResponse::number_header(const std::string& name) const {
  const auto text = header(name);
  uint64_t value = 0;
  if (!text) return std::nullopt;
  const auto [end, wrong] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (wrong != std::errc() || end != text->data() + text->size()) return std::nullopt;
  return value;
}

void HttpClient::Free::operator()(void* handle) const { CurlLibrary::get().easy_cleanup(curl_of(handle)); }

HttpClient::HttpClient(double stall_seconds, const std::atomic<bool>* cancel)
    : handle_(CurlLibrary::get().easy_init()), stall_seconds_(stall_seconds), cancel_(cancel) {
  if (handle_ == nullptr) throw Error(ErrorKind::resource, "libcurl", "it cannot be set up");
}

void HttpClient::throw_cancelled() {
  throw Error(ErrorKind::network, "pull", "stopped before its end", {},
              "run it again: it goes on where it stopped");
}

HttpResponse HttpClient::send(const HttpRequest& request, const Sink& sink) {
  CURL* handle = curl_of(handle_.get());
  CurlLibrary::get().easy_reset(handle);  // keeps connections
  Exchange exchange;
  exchange.sink = &sink;
  exchange.client = this;
  BodyTarget target{&exchange, handle};
  const HeaderList headers = header_list(request.headers);
  // Whoever is asked by https is not led off to an address anyone on the way can change.
  const char* protocols = request.url.starts_with("https:") ? "https" : "http,https";
  set(handle, CURLOPT_URL, request.url.c_str());
  set(handle, CURLOPT_PROTOCOLS_STR, protocols);
  set(handle, CURLOPT_REDIR_PROTOCOLS_STR, protocols);
  set(handle, CURLOPT_FOLLOWLOCATION, request.follow ? 1L : 0L);
  set(handle, CURLOPT_MAXREDIRS, 10L);
  set(handle, CURLOPT_NOBODY, request.head ? 1L : 0L);
  set(handle, CURLOPT_HTTPHEADER, headers.get());
  set(handle, CURLOPT_USERAGENT, "keysieve");
  set(handle, CURLOPT_NOSIGNAL, 1L);
  set(handle, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(std::ceil(stall_seconds_ * 1000)));
  set(handle, CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(handle, CURLOPT_LOW_SPEED_TIME, std::max(1L, std::lround(stall_seconds_)));
  set(handle, CURLOPT_HEADERFUNCTION, &on_header);
  set(handle, CURLOPT_HEADERDATA, &exchange);
  set(handle, CURLOPT_WRITEFUNCTION, &on_body);
  set(handle, CURLOPT_WRITEDATA, &target);
  set(handle, CURLOPT_NOPROGRESS, 0L);
  set(handle, CURLOPT_XFERINFOFUNCTION, &on_progress);
  set(handle, CURLOPT_XFERINFODATA, &exchange);
  if (request.from > 0) set(handle, CURLOPT_RANGE, fmt::format("{}-", request.from).c_str());
  set_trust(handle);

  const CURLcode code = CurlLibrary::get().easy_perform(handle);
  if (exchange.thrown) std::rethrow_exception(exchange.thrown);
  if (cancelled()) throw_cancelled();
  read_status(handle, exchange.response);
  if (code != CURLE_OK) {
    exchange.response.failure = CurlLibrary::get().easy_strerror(code);
    exchange.response.passing = passes(code);
  }
  return std::move(exchange.response);
}

HttpResponse HttpClient::send(const HttpRequest& request, std::string& body, size_t limit) {
  body.clear();
  return send(request, [&](const HttpResponse&, std::span<const std::byte> bytes) {
    if (body.size() + bytes.size() > limit) {
      throw Error(ErrorKind::network, host_of(request.url),
                  fmt::format("an answer of more than {} bytes", limit), "a short one");
    }
    body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  });
}

bool worth_retrying(const HttpResponse& response) {
  if (!response.failure.empty()) return response.passing;
  return response.status == 408 || response.status == 429 || response.status >= 500;
}

void wait_before_retry(const HttpClient& client, const RetryPolicy& policy, size_t next,
                       const HttpResponse& response) {
  constexpr double kLongest = 30;
  constexpr double kLongestAsked = 300;
  double seconds =
      std::min(kLongest, policy.first_wait * std::exp2(static_cast<double>(std::min<size_t>(next, 12)) - 2));
  if (const auto asked = response.number_header("retry-after")) {
    seconds = std::min(kLongestAsked, static_cast<double>(*asked));
  } else if (const auto date = response.header("retry-after")) {
    const std::time_t then = CurlLibrary::get().getdate(date->c_str(), nullptr);
    if (then >= 0) seconds = std::clamp(std::difftime(then, std::time(nullptr)), 0.0, kLongestAsked);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    if (client.cancelled()) HttpClient::throw_cancelled();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

HttpResponse send_with_retries(HttpClient& client, const RetryPolicy& policy, const HttpRequest& request,
                               std::string& body, size_t limit) {
  for (size_t attempt = 1;; ++attempt) {
    HttpResponse response = client.send(request, body, limit);
    if (response.fine() || attempt >= policy.attempts || !worth_retrying(response)) return response;
    wait_before_retry(client, policy, attempt + 1, response);
  }
}

std::string describe(const HttpResponse& response) {
  if (!response.failure.empty()) return response.failure;
  const auto words = [&]() -> std::string_view {
    switch (response.status) {
      case 401:
        return " Unauthorized";
      case 403:
        return " Forbidden";
      case 404:
        return " Not Found";
      case 416:
        return " Range Not Satisfiable";
      case 429:
        return " Too Many Requests";
      case 500:
        return " Internal Server Error";
      case 502:
        return " Bad Gateway";
      case 503:
        return " Service Unavailable";
      case 504:
        return " Gateway Timeout";
      default:
        return "";
    }
  }();
  return fmt::format("HTTP {}{}", response.status, words);
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string host_of(std::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme == std::string_view::npos) return std::string(url);
  const std::string_view rest = url.substr(scheme + 3);
  return std::string(rest.substr(0, rest.find_first_of("/?#")));
}

}  // namespace keysieve
