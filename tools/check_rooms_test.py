#!/usr/bin/env python3
"""check_rooms must catch what it is for: each test plants one fault in a small tree."""

import tempfile
import unittest
from pathlib import Path

import check_rooms


class CheckRoomsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.write("include/keysieve/error.h", "#include <string>\n")
        self.write("include/keysieve/session.h", '#include "keysieve/error.h"\n')
        self.write("src/core/json.h", '#include "keysieve/error.h"\n')
        self.write("src/kernels/matmul.h", '#include "core/json.h"\n')
        self.write("src/model/model.h", '#include "kernels/matmul.h"\n')

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def messages(self):
        return [str(f) for f in check_rooms.all_findings(self.root)]

    def assert_one(self, *parts):
        messages = self.messages()
        self.assertEqual(len(messages), 1, messages)
        for part in parts:
            self.assertIn(part, messages[0])

    def test_clean_tree_has_no_findings(self):
        self.assertEqual(self.messages(), [])

    def test_lower_room_may_not_include_higher(self):
        self.write("src/kernels/bad.cpp", '#include <vector>\n\n#include "model/model.h"\n')
        self.assert_one("src/kernels/bad.cpp:3:", '"model/model.h"', "it may: core, kernels")

    def test_angle_brackets_are_no_way_round(self):
        self.write("src/core/bad.cpp", "#include <kernels/matmul.h>\n")
        self.assert_one("src/core/bad.cpp:1:", "(kernels)")

    def test_relative_path_is_no_way_round(self):
        self.write("src/core/bad.cpp", '#include "../kernels/matmul.h"\n')
        self.assert_one("src/core/bad.cpp:1:", "(kernels)")

    def test_only_high_rooms_see_public_headers(self):
        self.write("src/generate/session.cpp", '#include "keysieve/session.h"\n')
        self.assertEqual(self.messages(), [])
        self.write("src/model/bad.cpp", '#include "keysieve/session.h"\n')
        self.assert_one("src/model/bad.cpp:1:", "(public)")

    def test_public_header_may_not_lean_on_rooms(self):
        self.write("include/keysieve/bad.h", '#include "core/json.h"\n')
        self.assert_one("include/keysieve/bad.h:1:", "a public header")

    def test_example_uses_public_headers_only(self):
        self.write("examples/ask.cpp", '#include "keysieve/session.h"\n#include "model/model.h"\n')
        self.assert_one("examples/ask.cpp:2:", "an example")

    def test_tests_mirror_their_room(self):
        self.write("tests/support/files.h", '#include "core/json.h"\n')
        self.write("tests/kernels/good_test.cpp",
                   '#include <gtest/gtest.h>\n#include "kernels/matmul.h"\n#include "support/files.h"\n')
        self.assertEqual(self.messages(), [])
        self.write("tests/kernels/bad_test.cpp", '#include "model/model.h"\n')
        self.assert_one("tests/kernels/bad_test.cpp:1:", "(model)")

    def test_unknown_room(self):
        self.write("src/utils/misc.h", "")
        self.assert_one("src/utils/misc.h:1:", "no room")

    def test_include_of_nothing(self):
        self.write("src/core/bad.cpp", '#include "core/jsno.h"\n')
        self.assert_one("src/core/bad.cpp:1:", "no file of this repository")

    def test_common_headers_are_named_by_who_uses_them(self):
        self.write("src/core/good.cpp", '#include "core/json.h"\n// std::vector\nstd::string name = "std::vector";\n')
        self.assertEqual(self.messages(), [])  # <string> comes with error.h
        self.write("src/core/bad.cpp", '#include "core/json.h"\n/* no\n */ std::vector<int> v;\n')
        self.assert_one("src/core/bad.cpp:3:", "std::vector", "<vector>")

    def test_long_file(self):
        self.write("src/core/long.cpp", "\n" * 601)
        self.assert_one("src/core/long.cpp", "601 lines")


if __name__ == "__main__":
    unittest.main()
