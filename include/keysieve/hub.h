#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

// Models, indexers and texts from the network. Nothing else in the library opens a connection.

// Where a transfer stands; calls come about ten times a second, from the thread that pulls.
struct PullProgress {
  std::string file;    // the one being fetched
  uint64_t done = 0;   // bytes of all files, those of earlier runs included
  uint64_t total = 0;  // bytes of all files
};

struct PullOptions {
  std::string revision = "main";     // a branch, a tag or a commit
  std::vector<std::string> include;  // names with * and ?; empty: what a model or an indexer needs
  std::filesystem::path cache;       // a Hub cache; empty: the one the `hf` tool uses
  size_t attempts = 5;               // tries in a row that bring nothing before a pull gives up
  double retry_seconds = 1;          // wait before the second try; doubles with each
  std::function<void(const PullProgress&)> progress;
  const std::atomic<bool>* cancel = nullptr;  // set it, and the pull throws Error{network} soon
};

struct PulledFile {
  std::string name;  // within the repository
  std::filesystem::path path;
  uint64_t bytes = 0;
  bool fetched = false;  // false: it was here
};

struct PullResult {
  std::string id;
  std::string commit;            // empty for data sets
  std::filesystem::path folder;  // of the snapshot
  std::vector<PulledFile> files;
  uint64_t bytes = 0;          // of all files
  uint64_t bytes_fetched = 0;  // that came over the network
};

// Brings the repository `id` ("org/name") of the Hugging Face Hub into the Hub cache, in the layout of the
// Python client (blobs, snapshots, refs, locks), so that each finds what the other fetched. Large files carry
// their SHA-256 and small ones their git hash, and both are checked; a transfer that was cut or killed goes
// on where it stopped. Without `include`: config and tokenizer files, and either the safetensors files (those
// the index names, if there is one) or the only GGUF file.
// The environment rules as for the Python client: HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN,
// HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, and curl's proxies.
// Throws Error{usage} for what is no id or no revision, Error{network} for servers (unreachable, refusing,
// sending other bytes than they announced), Error{resource} for a full disk, Error{file} for the cache.
PullResult pull(std::string_view id, const PullOptions& options = {});

// The names of what pull_data knows: "gsm8k", "wikitext2".
std::vector<std::string_view> data_set_names();
// One of these from its public address into `folder`/NAME (empty: default_data_folder()), checked against the
// SHA-256 of the file this project has measured with. $KEYSIEVE_DATA_MIRROR ("http://host:port") replaces the
// addresses' scheme and host. Throws as pull does.
PullResult pull_data(std::string_view name, const std::filesystem::path& folder = {},
                     const PullOptions& options = {});
// $KEYSIEVE_DATA, else $XDG_CACHE_HOME/keysieve/data, else ~/.cache/keysieve/data.
std::filesystem::path default_data_folder();

enum class PullKind { model, indexer };
// Whether `argument` (as --model or --indexer take it) is the Hub id of something this machine does not have,
// or has in part. Opens no connection.
bool needs_pull(std::string_view argument, PullKind kind);

}  // namespace keysieve
