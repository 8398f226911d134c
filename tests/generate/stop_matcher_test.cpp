#include "generate/stop_matcher.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "keysieve/error.h"

namespace keysieve {
namespace {

// Pushes `text` in pieces of `size` bytes and returns everything shown.
std::string feed(StopMatcher& matcher, const std::string& text, size_t size) {
  std::string shown;
  for (size_t at = 0; at < text.size(); at += size) shown += matcher.push(text.substr(at, size));
  return shown + matcher.finish();
}

TEST(StopMatcher, WithoutStopStringsEverythingPassesAtOnce) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("Hello"), "Hello");
  EXPECT_EQ(matcher.finish(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, EndsTheTextWhereverTheBoundariesFall) {
  for (size_t size = 1; size <= 12; ++size) {
    StopMatcher matcher({"STOP"});
    EXPECT_EQ(feed(matcher, "one STO two STOP three", size), "one STO two ") << size;
    EXPECT_TRUE(matcher.stopped());
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStopString) {
  StopMatcher matcher({"\n\nUser:"});
  EXPECT_EQ(matcher.push("Hi.\n"), "Hi.");
  EXPECT_EQ(matcher.push("\nUs"), "");
  EXPECT_EQ(matcher.push("e it."), "\n\nUse it.");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, ShowsWhatWasHeldBackAtTheEnd) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.push("the EN"), "the ");
  EXPECT_EQ(matcher.finish(), "EN");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, TheFirstOfSeveralCounts) {
  for (size_t size = 1; size <= 6; ++size) {
    StopMatcher matcher({"zz", "b", "cde"});
    EXPECT_EQ(feed(matcher, "aacdeb", size), "aa") << size;
  }
}

TEST(StopMatcher, OverlappingBeginningsAreFollowed) {
  for (size_t size = 1; size <= 5; ++size) {
    StopMatcher matcher({"aab"});
    EXPECT_EQ(feed(matcher, "xaaab", size), "xa") << size;
    EXPECT_TRUE(matcher.stopped());
  }
}

TEST(StopMatcher, IgnoresEverythingAfterTheStop) {
  StopMatcher matcher({"."});
  EXPECT_EQ(matcher.push("a.b"), "a");
  EXPECT_EQ(matcher.push("c"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, RefusesAnEmptyStopString) { EXPECT_THROW(StopMatcher({"a", ""}), Error); }

}  // namespace
}  // namespace keysieve
