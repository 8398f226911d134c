#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "indexer/key_selector.h"
#include "indexer/selection_policy.h"
#include "keysieve/model.h"
#include "keysieve/session.h"
#include "model/sequence_state.h"

namespace keysieve {

// What attention reads: everything, the indexer's choice, or one of the baselines at the same budget.
enum class AttentionMode : uint8_t {
  dense,
  sparse,  // the indexer's choice
  oracle,  // the positions with most of the true attention probability, summed over the heads of the set
  recent,  // sinks and the most recent positions (as StreamingLLM, arXiv 2309.17453)
  random,  // sinks, recent and random others
  // Published rules for what a cache of the budget keeps, the prompt being read densely. They use a fixed
  // cache whatever the options say.
  snap_kv,        // indexer/snap_kv.h
  heavy_hitters,  // H2O, indexer/heavy_hitters.h
  streaming,      // `recent` as a fixed cache: StreamingLLM's, with positions left as they were
  quest,          // pages by bounds on their scores, indexer/quest.h; every key stays and can be read again
};
std::string_view to_string(AttentionMode mode);
AttentionMode parse_attention_mode(std::string_view name);  // throws Error{usage}

// One experiment's model, indexer and budget, from which a sequence of any mode is made.
class EvalSetting {
 public:
  // `sparse` as for Session; without an indexer only dense works, unless a budget is given, which oracle,
  // recent and random can use (4 sinks, 64 recent, per-group unless `sparse` says otherwise). The model must
  // outlive the setting. Throws Error{usage} for a budget that does not hold sinks and recent.
  EvalSetting(const LanguageModel& model, SessionOptions sparse);

  const LanguageModel& language_model() const { return model_; }
  const std::shared_ptr<const Model>& model() const;
  bool can(AttentionMode mode) const;
  void require(AttentionMode mode) const;   // throws Error{usage} saying what the mode lacks
  size_t budget(AttentionMode mode) const;  // 0: dense
  const SelectionPolicy& policy() const { return policy_; }
  CacheKind cache() const { return sparse_.cache; }  // of the indexer's runs; some baselines have their own
  std::string indexer_path() const;                  // empty: no indexer
  // Everything beside model and budget that decides what is read and how it is kept, the indexer's checksum
  // included.
  Json describe() const;
  // The same at another budget. Throws as the constructor.
  EvalSetting with_budget(size_t budget) const;
  // The same at each of them; where there are none, this one.
  std::vector<EvalSetting> at_budgets(std::span<const size_t> budgets) const;

  // A new sequence with room for `context` positions; 0: the model's. Throws as require() and as the
  // cache does.
  SequenceState sequence(AttentionMode mode, size_t context = 0) const;

 private:
  std::shared_ptr<KeySelector> selector(AttentionMode mode) const;

  const LanguageModel& model_;
  SessionOptions sparse_;
  SelectionPolicy policy_;  // budget 0: none known
};

// One way to read a text, of those an evaluation compares.
struct EvalPass {
  EvalSetting setting;
  AttentionMode mode;
};

// The oracle: a native indexer that reduces nothing. Its maps are the identity (with the attention scale) and
// its keys are kept in f32, so each head's softmax over its scores is that head's attention, computed under
// the sparse run's own hidden states.
std::shared_ptr<KeySelector> make_oracle_selector(const Model& model, const SelectionPolicy& policy);

}  // namespace keysieve
