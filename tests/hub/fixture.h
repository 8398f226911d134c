#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "core/file_io.h"
#include "keysieve/error.h"
#include "keysieve/hub.h"
#include "support/loopback_server.h"

namespace keysieve::testing {

// A Hub cache of this test's own, and an environment without anything of the user's.
class HubTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / ("keysieve_hub_" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    for (const char* name :
         {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
          "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_DOWNLOAD_TIMEOUT", "KEYSIEVE_DATA", "KEYSIEVE_DATA_MIRROR",
          "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"}) {
      unsetenv(name);
    }
    set("HF_HOME", (folder_ / "hf").string());
  }
  void TearDown() override {
    for (const auto& [name, value] : set_) unsetenv(name.c_str());
    std::filesystem::remove_all(folder_);
  }

  void set(const std::string& name, const std::string& value) {
    set_[name] = value;
    setenv(name.c_str(), value.c_str(), 1);
  }
  static PullOptions quick() {
    PullOptions options;
    options.retry_seconds = 0.01;
    return options;
  }
  // A pull that must fail with all of `parts` in its message.
  static void expect_refused(const std::string& id, ErrorKind kind, const std::vector<std::string>& parts,
                             const PullOptions& options = quick()) {
    try {
      pull(id, options);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
      for (const std::string& part : parts) EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
    }
  }
  std::filesystem::path cache() const { return folder_ / "hf" / "hub"; }

  std::filesystem::path folder_;
  std::map<std::string, std::string> set_;
};

// A megabyte that no compression or repeat makes easy.
inline std::string noise(size_t size, uint64_t seed = 1) {
  std::string bytes(size, '\0');
  for (char& c : bytes) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    c = static_cast<char>(seed >> 56);
  }
  return bytes;
}

}  // namespace keysieve::testing
