#include "cache/slot_map.h"

#include <gtest/gtest.h>

namespace keysieve {
namespace {

// 65,535 slots are the most that two bytes tell apart from "nowhere".
TEST(SlotMap, KeepsEverySlotWhateverItsWidth) {
  for (const size_t slots : {size_t{1}, size_t{65'535}, size_t{65'536}, size_t{70'000}}) {
    SlotMap map(1000, slots);
    EXPECT_EQ(map.bytes(1000), slots > 65'535 ? 4000u : 2000u);
    EXPECT_EQ(map[0], SlotMap::kNone);
    EXPECT_EQ(map[999], SlotMap::kNone);
    const auto last = static_cast<uint32_t>(slots - 1);
    map.set(0, last);
    map.set(999, 0);
    EXPECT_EQ(map[0], last);
    EXPECT_EQ(map[999], 0u);
    EXPECT_EQ(map[500], SlotMap::kNone);
    map.set(0, SlotMap::kNone);
    EXPECT_EQ(map[0], SlotMap::kNone);
    map.clear();
    EXPECT_EQ(map[999], SlotMap::kNone);
  }
}

}  // namespace
}  // namespace keysieve
