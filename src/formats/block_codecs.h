#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/matrix_source.h"

namespace keysieve {

// How a GGUF block type maps onto affine groups.
struct BlockCodec {
  AffineFormat format;
  // Decodes `blocks` whole blocks: codes [blocks * block], scales and biases [blocks * block / group].
  void (*decode)(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks);
};

// Null for plain types.
const BlockCodec* find_block_codec(DType dtype);

}  // namespace keysieve
