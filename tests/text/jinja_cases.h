#pragma once

#include <string>
#include <vector>

namespace keysieve::testing {

struct JinjaCase {
  std::string source;
  std::string expected;
};
// Small templates, one corner of the language each; see jinja_test.cpp for the variables they see.
const std::vector<JinjaCase>& jinja_cases();

struct FamilyCase {
  std::string family;
  std::string source;
  std::string expected;             // without tools, add_generation_prompt
  std::string expected_with_tools;  // with a tool, no generation prompt
};
const std::vector<FamilyCase>& family_cases();

}  // namespace keysieve::testing
