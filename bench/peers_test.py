#!/usr/bin/env python3
"""The arithmetic of ./run bench peers: repeats, medians, ratios, bars. No program is run."""

import argparse
import unittest

import peers
from peer_programs import Engine, Sample
from peer_report import PLANS, Bar, best_peer, medians, over_peer, table_bars


def sample(prefill, decode):
    return Sample(prefill, decode, 100, 0.1)


class PeersTest(unittest.TestCase):
    def setUp(self):
        self.dense = Engine("keysieve dense", None, False, samples={512: [sample(300, 30)], 16: [sample(9, 26)]})
        self.sparse = Engine("keysieve sparse 512", None, False,
                             samples={512: [sample(280, 40)], 8000: [sample(400, 36)]})
        self.slow = Engine("llama.cpp", None, True, samples={512: [sample(100, 15)], 16: [sample(5, 25)],
                                                            8000: [sample(50, 5)]})
        self.fast = Engine("ik_llama.cpp", None, True,
                           samples={512: [sample(240, 14), sample(200, 20), sample(190, 10)], 16: [sample(8, 20)],
                                    8000: [sample(100, 9)]})
        self.engines = [self.dense, self.sparse, self.slow, self.fast]

    def bars(self, isa="native"):
        return {bar.what: bar for bar in table_bars(PLANS["smollm2-135m"], self.engines, isa)}

    def test_repeats_by_context(self):
        repeats = peers.parse_repeats("3,16000:2,30000:1")
        self.assertEqual([repeats(c) for c in (16, 15999, 16000, 30000, 40000)], [3, 3, 2, 1, 1])
        for wrong in ("", "0", "3,x:1", "16000:2"):
            with self.assertRaises((argparse.ArgumentTypeError, ValueError), msg=wrong):
                peers.parse_repeats(wrong)

    def test_medians_are_each_figures_own(self):
        middle = medians(self.fast, 512)
        self.assertEqual((middle.prefill, middle.decode), (200, 14))
        self.assertIsNone(medians(self.fast, 4096))

    def test_the_better_peer_may_differ_by_figure(self):
        self.assertEqual(best_peer(self.engines, 512, "prefill"), 200)
        self.assertEqual(best_peer(self.engines, 512, "decode"), 15)
        self.assertEqual(over_peer(self.dense, self.engines, 512, "prefill"), 1.5)

    def test_a_peer_without_samples_leaves_no_ratio(self):
        del self.slow.samples[512]
        self.assertIsNone(over_peer(self.dense, self.engines, 512, "prefill"))
        self.assertIsNone(self.bars()["dense prefill at 512 over the better peer"].met)

    def test_bars(self):
        bars = self.bars()
        self.assertTrue(bars["dense prefill at 512 over the better peer"].met)
        self.assertTrue(bars["sparse prefill at 8,000 over the better peer"].met)
        self.assertFalse(bars["decode, empty cache (16 tokens), dense, over the better peer"].met)  # 1.04 of 1.3
        self.assertTrue(bars["sparse decode at 8,000 over the better peer"].met)
        self.assertAlmostEqual(bars["sparse decode at 8,000 over its own at 512"].value, 0.9)
        self.assertEqual(self.bars("avx2")["dense prefill at 512 over the better peer"].bound, 1.2)

    def test_an_upper_bar(self):
        self.assertTrue(Bar("x", 1.5, 1.5, upper=True).met)
        self.assertFalse(Bar("x", 1.6, 1.5, upper=True).met)
        self.assertIn("MISS", Bar("x", 1.6, 1.5, upper=True).row())

    def test_samples_come_back_only_for_the_same_settings(self):
        document = self.fast.document()
        same, other = Engine("ik_llama.cpp", None, True), Engine("ik_llama.cpp", None, True, settings="ubatch 512")
        same.restore(document)
        other.restore(document)
        self.assertEqual(same.samples, self.fast.samples)
        self.assertEqual(other.samples, {})

    def test_samples_of_another_build_do_not_come_back(self):
        self.dense.version = "program 1"
        document = self.dense.document()
        for version, expected in (("program 1", self.dense.samples), ("program 2", {})):
            engine = Engine("keysieve dense", None, False, version=version)
            engine.restore(document)
            self.assertEqual(engine.samples, expected)


if __name__ == "__main__":
    unittest.main()
