#!/usr/bin/env python3
"""What ./run bench results makes of its files: tables that join an indexer's run and its baselines'. No program is run."""

import unittest
from pathlib import Path

import result_tables
import results


def document(*rows):
    return {"date": "2026-01-02", "machine": "a machine",
            "result": {"kind": "ppl", "rows": [{"mode": mode, "budget": budget} for mode, budget in rows]}}


class ResultsTest(unittest.TestCase):
    def joined(self, **documents):
        files = [(Path(f"results/{name.replace('_', '-')}.json"), value) for name, value in documents.items()]
        return [([(row["mode"], row["budget"]) for row in document["result"]["rows"]], len(places))
                for document, places in result_tables.join_baselines(files)]

    def test_baselines_stand_in_the_table_of_their_run(self):
        self.assertEqual(self.joined(a=document(("dense", 0), ("sparse", 8)), a_baselines=document(("dense", 0), ("oracle", 8)),
                                     b=document(("sparse", 9))),
                         [([("dense", 0), ("sparse", 8), ("oracle", 8)], 2), ([("sparse", 9)], 1)])

    def test_what_was_run_later_stands_in_the_same_table(self):
        self.assertEqual(self.joined(a=document(("sparse", 8)), a_baselines=document(("recent", 8)), a_oracle=document(("oracle", 8))),
                         [([("sparse", 8), ("recent", 8), ("oracle", 8)], 3)])

    def test_baselines_without_their_run_stand_alone(self):
        self.assertEqual(self.joined(a_baselines=document(("oracle", 8)), b=document(("sparse", 8))),
                         [([("oracle", 8)], 1), ([("sparse", 8)], 1)])

    def test_parts_have_names_of_their_own_and_baselines_need_no_indexer(self):
        parts = list(results.parts())
        self.assertEqual(len({part.name for part in parts}), len(parts))
        for part in parts:
            if part.name.endswith("-baselines") and part.arguments[0] == "ppl":
                self.assertFalse(part.uses_indexer)
                self.assertIn("none", part.arguments)


if __name__ == "__main__":
    unittest.main()
