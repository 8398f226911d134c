#pragma once

// keysieve: learned sparse attention for ordinary language models, on ordinary CPUs. The whole public API:
//
//   keysieve::LanguageModel model = keysieve::LanguageModel::load("smollm2-135m");
//   keysieve::SessionOptions options;
//   options.indexer = keysieve::LightningIndexer::load("auto", model);
//   options.budget = 512;
//   keysieve::Session session(model, options);
//   session.generate(model.text().encode_chat(messages), {}, [](std::string_view piece) {
//     std::cout << piece << std::flush;
//     return true;
//   });
//   session.clear();
//
// Every failure is a keysieve::Error (error.h): one line that says what was found, what was expected and the
// way out. Nothing here prints, aborts or exits. An object may be moved between threads but is not to be used
// from two at once, except that any number of sessions may share one LanguageModel or one LightningIndexer if
// only one of them runs at a time; a BatchedDecoder decodes several of them together.

#include "keysieve/batch.h"
#include "keysieve/error.h"
#include "keysieve/hub.h"
#include "keysieve/indexer.h"
#include "keysieve/inspect.h"
#include "keysieve/model.h"
#include "keysieve/roofline.h"
#include "keysieve/session.h"
#include "keysieve/text_codec.h"
#include "keysieve/version.h"
