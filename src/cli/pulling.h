#pragma once

#include <string>

#include "keysieve/hub.h"

namespace keysieve::cli {

// Fetches what `argument` (of --model or --indexer) names where it is a Hub id of something that is not here,
// with a note and a progress line on standard error. Ctrl-C stops it; the next run goes on. Not to be called
// while an InterruptGuard lives. Throws as pull does.
void fetch_missing(const std::string& argument, PullKind kind);

// "5.31 GB of mlx-community/Qwen3-8B-4bit in 4 min 10 s" or, where all was here, that.
std::string pull_summary(const PullResult& result, double seconds);

}  // namespace keysieve::cli
