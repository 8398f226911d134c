#include "loopback_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <span>
#include <stdexcept>
#include <utility>

#include "core/json.h"
#include "hub/digest.h"

namespace keysieve::testing {
namespace {

bool send_all(int connection, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(connection, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

ServerRequest parse(const std::string& head) {
  ServerRequest request;
  const size_t first = head.find(' ');
  const size_t second = head.find(' ', first + 1);
  request.method = head.substr(0, first);
  request.path = head.substr(first + 1, second - first - 1);
  for (size_t at = head.find("\r\n") + 2; at < head.size();) {
    const size_t end = head.find("\r\n", at);
    const size_t colon = head.find(':', at);
    if (end == at || end == std::string::npos) break;
    request.headers[lower(head.substr(at, colon - at))] = head.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  const std::string range = request.headers.contains("range") ? request.headers["range"] : "";  // bytes=12-
  uint64_t from = 0;
  if (range.starts_with("bytes=") &&
      std::from_chars(range.data() + 6, range.data() + range.size(), from).ec == std::errc())
    request.from = from;
  return request;
}

}  // namespace

LoopbackServer::LoopbackServer(Handler handler) : handler_(std::move(handler)) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (listener_ < 0 || ::bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      ::listen(listener_, 16) != 0 ||
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    throw std::runtime_error("no loopback socket");
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { serve(); });
}

LoopbackServer::~LoopbackServer() {
  stopping_ = true;
  thread_.join();
  for (std::thread& connection : connections_) connection.join();
  ::close(listener_);
}

std::string LoopbackServer::address(const std::string& host) const {
  return fmt::format("http://{}:{}", host, port_);
}

std::vector<ServerRequest> LoopbackServer::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

void LoopbackServer::serve() {
  while (!stopping_) {
    pollfd waiting = {listener_, POLLIN, 0};
    if (::poll(&waiting, 1, 20) <= 0) continue;
    const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    connections_.emplace_back([this, connection] { answer(connection); });
  }
}

void LoopbackServer::pause(double seconds) const {
  for (double waited = 0; waited < seconds && !stopping_; waited += 0.02)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

void LoopbackServer::answer(int connection) {
  std::string head;
  char byte = 0;
  while (!head.ends_with("\r\n\r\n") && ::recv(connection, &byte, 1, 0) == 1) head += byte;
  if (head.ends_with("\r\n\r\n")) {
    const ServerRequest request = parse(head);
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    const ServerAnswer answer = handler_(request);
    std::string text = fmt::format("HTTP/1.1 {} Said\r\nConnection: close\r\nContent-Length: {}\r\n",
                                   answer.status, answer.announce.value_or(answer.body.size()));
    for (const std::string& header : answer.headers) text += header + "\r\n";
    send_all(connection, text + "\r\n");
    pause(answer.pause_after_headers);
    if (request.method != "HEAD")
      send_all(connection, std::string_view(answer.body).substr(0, answer.cut_after.value_or(SIZE_MAX)));
    pause(answer.pause_after_body);
  }
  ::shutdown(connection, SHUT_RDWR);
  ::close(connection);
}

HubServer::HubServer(std::string id, std::map<std::string, File> files, Fault faults)
    : repositories_{{std::move(id), std::move(files)}},
      faults_(std::move(faults)),
      server_([this](const ServerRequest& request) {
        if (faults_) {
          if (auto fault = faults_(request)) return *fault;
        }
        return answer(request);
      }) {}

size_t HubServer::count(const std::string& method, const std::string& part) const {
  const auto all = requests();
  return static_cast<size_t>(std::ranges::count_if(all, [&](const ServerRequest& request) {
    return request.method == method && request.path.find(part) != std::string::npos;
  }));
}

std::string HubServer::etag_of(const File& file) {
  Digest digest(file.large ? DigestKind::sha256 : DigestKind::git_blob, file.content.size());
  digest.add(std::as_bytes(std::span(file.content)));
  return digest.hex();
}

ServerAnswer HubServer::bytes_of(const ServerRequest& request, const std::string& content) {
  if (!request.from) return {.status = 200, .headers = {"Accept-Ranges: bytes"}, .body = content};
  if (*request.from >= content.size()) return {.status = 416};
  return {.status = 206,
          .headers = {fmt::format("Content-Range: bytes {}-{}/{}", *request.from, content.size() - 1,
                                  content.size())},
          .body = content.substr(*request.from)};
}

void HubServer::also_serve(std::string id, std::map<std::string, File> files) {
  repositories_.emplace(std::move(id), std::move(files));
}

ServerAnswer HubServer::answer(const ServerRequest& request) const {
  if (request.path.starts_with("/storage/")) return of_storage(request);
  for (const auto& [id, files] : repositories_) {
    if (request.path.starts_with(fmt::format("/api/models/{}/", id)) ||
        request.path.starts_with(fmt::format("/{}/resolve/{}/", id, commit_)))
      return of_repository(id, files, request);
  }
  return {.status = 404, .headers = {"X-Error-Code: RepoNotFound"}};
}

ServerAnswer HubServer::of_storage(const ServerRequest& request) const {
  for (const auto& [id, files] : repositories_) {
    for (const auto& [name, file] : files) {
      if (request.path == "/storage/" + etag_of(file) + "?signature=x%2Fy")
        return bytes_of(request, file.content);
    }
  }
  return {.status = 403};
}

ServerAnswer HubServer::of_repository(const std::string& id, const Files& files,
                                      const ServerRequest& request) const {
  if (request.path == fmt::format("/api/models/{}/revision/main", id) ||
      request.path == fmt::format("/api/models/{}/revision/{}", id, commit_)) {
    Json siblings = Json::array();
    for (const auto& [name, file] : files) siblings.push_back({{"rfilename", name}});
    return {.headers = {"Content-Type: application/json"},
            .body = Json{{"id", id}, {"sha", commit_}, {"siblings", siblings}}.dump()};
  }
  if (request.path.starts_with("/api/"))
    return {.status = 404, .headers = {"X-Error-Code: RevisionNotFound"}};
  const auto found = files.find(request.path.substr(fmt::format("/{}/resolve/{}/", id, commit_).size()));
  if (found == files.end()) return {.status = 404, .headers = {"X-Error-Code: EntryNotFound"}};
  const File& file = found->second;
  std::vector<std::string> headers = {"X-Repo-Commit: " + commit_};
  if (file.large) {
    headers.push_back(fmt::format("X-Linked-Size: {}", file.content.size()));
    headers.push_back(fmt::format("X-Linked-ETag: \"{}\"", etag_of(file)));
    headers.push_back(fmt::format("ETag: \"storage-{}\"", etag_of(file).substr(0, 8)));
    headers.push_back(
        fmt::format("Location: {}/storage/{}?signature=x%2Fy", server_.address("localhost"), etag_of(file)));
    return {.status = 302, .headers = headers, .body = "Found"};
  }
  ServerAnswer answer = bytes_of(request, file.content);
  headers.push_back(fmt::format("ETag: W/\"{}\"", etag_of(file)));
  answer.headers.insert(answer.headers.end(), headers.begin(), headers.end());
  return answer;
}

}  // namespace keysieve::testing
