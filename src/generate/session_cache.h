#pragma once

#include "indexer/selection_policy.h"
#include "keysieve/session.h"
#include "model/sequence_state.h"

namespace keysieve {

// What the options and the indexer's own settings say together. Without an indexer: the budget asked for (0:
// none), 4 sinks, 64 recent, a set for each KV head, as native indexers have it. `layers` of the model.
// Throws Error{usage} for a sparse layer the model does not have.
SelectionPolicy selection_policy(const SessionOptions& options, size_t layers);

// Sets make_cache and max_chunk of `sequence`, whose selector is set, to the cache asked for. `seed_rule`: a
// fixed cache goes by the last query alone unless the options say otherwise.
void choose_cache(SequenceOptions& sequence, const SessionOptions& options, const SelectionPolicy& policy,
                  bool seed_rule);

}  // namespace keysieve
