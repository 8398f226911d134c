// The block layouts of GGUF. Every loop has a fixed trip count and no branch, so that it compiles to vector
// code; loading is then bound by memory, not by unpacking.
#include "formats/block_codecs.h"

#include <cstring>

#include "core/half.h"

namespace keysieve {
namespace {

const uint8_t* bytes_of(const std::byte* source) { return reinterpret_cast<const uint8_t*>(source); }

float half_at(const uint8_t* source) {
  Half value;
  std::memcpy(&value.bits, source, sizeof(value.bits));
  return to_float(value);
}

// 16 bytes: low nibbles are values 0..15, high nibbles 16..31.
void unpack_nibbles_32(uint8_t* codes, const uint8_t* packed) {
  for (size_t i = 0; i < 16; ++i) codes[i] = packed[i] & 0x0fu;
  for (size_t i = 0; i < 16; ++i) codes[16 + i] = static_cast<uint8_t>(packed[i] >> 4);
}

// ORs 16 into codes[i] where bit i of the 32-bit word is set, eight values at a time: the byte is repeated
// into all eight lanes, lane i keeps bit i, and adding 0x7f carries any set bit to the lane's top (0x80 +
// 0x7f = 0xff: no carry leaves a lane).
void add_fifth_bits_32(uint8_t* codes, const uint8_t* word) {
  for (size_t part = 0; part < 4; ++part) {
    uint64_t lanes = 0;
    std::memcpy(&lanes, codes + 8 * part, 8);
    const uint64_t kept = (word[part] * 0x0101010101010101u) & 0x8040201008040201u;
    lanes |= ((kept + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
    std::memcpy(codes + 8 * part, &lanes, 8);
  }
}

// f16 scale, 16 bytes of codes.
void decode_q4_0(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 18) {
    scales[b] = half_at(block);
    biases[b] = -8.0f * scales[b];
    unpack_nibbles_32(codes + 32 * b, block + 2);
  }
}

// f16 scale, f16 minimum, 16 bytes of codes.
void decode_q4_1(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 20) {
    scales[b] = half_at(block);
    biases[b] = half_at(block + 2);
    unpack_nibbles_32(codes + 32 * b, block + 4);
  }
}

// f16 scale, u32 of fifth bits, 16 bytes of low nibbles.
void decode_q5_0(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 22) {
    scales[b] = half_at(block);
    biases[b] = -16.0f * scales[b];
    unpack_nibbles_32(codes + 32 * b, block + 6);
    add_fifth_bits_32(codes + 32 * b, block + 2);
  }
}

// f16 scale, f16 minimum, u32 of fifth bits, 16 bytes of low nibbles.
void decode_q5_1(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 24) {
    scales[b] = half_at(block);
    biases[b] = half_at(block + 2);
    unpack_nibbles_32(codes + 32 * b, block + 8);
    add_fifth_bits_32(codes + 32 * b, block + 4);
  }
}

// f16 scale, 32 signed bytes; code = byte + 128, which is the sign bit flipped.
void decode_q8_0(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 34) {
    scales[b] = half_at(block);
    biases[b] = -128.0f * scales[b];
    for (size_t i = 0; i < 32; ++i) codes[32 * b + i] = block[2 + i] ^ 0x80u;
  }
}

// The head of Q4_K and Q5_K: f16 d, f16 dmin, then 12 bytes of eight 6-bit scales and eight 6-bit minimums.
// Entry j < 4 is the low 6 bits of byte j (scale) and j + 4 (minimum); entry j >= 4 has its low 4 bits in
// byte j + 4 (low nibble scale, high nibble minimum) and its high 2 bits atop bytes j - 4 and j. value =
// d*scale*code - dmin*min.
void decode_k_scales(float* scales, float* biases, const uint8_t* block) {
  const float d = half_at(block);
  const float dmin = half_at(block + 2);
  const uint8_t* packed = block + 4;
  for (size_t j = 0; j < 4; ++j) {
    scales[j] = d * static_cast<float>(packed[j] & 63u);
    biases[j] = -dmin * static_cast<float>(packed[j + 4] & 63u);
    scales[j + 4] = d * static_cast<float>((packed[j + 8] & 15u) | ((packed[j] >> 6) << 4));
    biases[j + 4] = -dmin * static_cast<float>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4));
  }
}

// 128 bytes of codes: each 32 bytes hold 64 values, the low nibbles first, then the high ones.
void decode_q4_k(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 144) {
    decode_k_scales(scales + 8 * b, biases + 8 * b, block);
    for (size_t chunk = 0; chunk < 4; ++chunk) {
      uint8_t* out = codes + 256 * b + 64 * chunk;
      const uint8_t* low = block + 16 + 32 * chunk;
      for (size_t i = 0; i < 32; ++i) out[i] = low[i] & 0x0fu;
      for (size_t i = 0; i < 32; ++i) out[32 + i] = static_cast<uint8_t>(low[i] >> 4);
    }
  }
}

// As Q4_K, with 32 bytes of fifth bits before the codes: bit 2*chunk of byte i belongs to value i of the
// chunk, bit 2*chunk + 1 to value 32 + i.
void decode_q5_k(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 176) {
    decode_k_scales(scales + 8 * b, biases + 8 * b, block);
    const uint8_t* high = block + 16;
    for (size_t chunk = 0; chunk < 4; ++chunk) {
      uint8_t* out = codes + 256 * b + 64 * chunk;
      const uint8_t* low = block + 48 + 32 * chunk;
      for (size_t i = 0; i < 32; ++i) {
        const unsigned pair = high[i] >> (2 * chunk);
        out[i] = static_cast<uint8_t>((low[i] & 0x0fu) | ((pair & 1u) << 4));
        out[32 + i] = static_cast<uint8_t>((low[i] >> 4) | ((pair & 2u) << 3));
      }
    }
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, f16 d. Each half block (128 values) has
// 64 low bytes and 32 high bytes: value 32*p + i takes its pair from bits 2p of high byte i, and its nibble
// from the low (p < 2) or high (p >= 2) half of low byte 32*(p % 2) + i.
void decode_q6_k(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 210) {
    const float d = half_at(block + 208);
    for (size_t group = 0; group < 16; ++group) {
      scales[16 * b + group] = d * static_cast<float>(static_cast<int8_t>(block[192 + group]));
      biases[16 * b + group] = -32.0f * scales[16 * b + group];
    }
    for (size_t half = 0; half < 2; ++half) {
      uint8_t* out = codes + 256 * b + 128 * half;
      const uint8_t* low = block + 64 * half;
      const uint8_t* high = block + 128 + 32 * half;
      for (size_t i = 0; i < 32; ++i) {
        const unsigned pairs = high[i];
        out[i] = static_cast<uint8_t>((low[i] & 0x0fu) | ((pairs & 3u) << 4));
        out[32 + i] = static_cast<uint8_t>((low[32 + i] & 0x0fu) | ((pairs & 12u) << 2));
        out[64 + i] = static_cast<uint8_t>((low[i] >> 4) | (pairs & 48u));
        out[96 + i] = static_cast<uint8_t>((low[32 + i] >> 4) | ((pairs & 192u) >> 2));
      }
    }
  }
}

// 32 bytes of third bits, 64 bytes of low pairs, 12 bytes of sixteen 6-bit scales, f16 d. Each half block
// (128 values) has 32 low bytes: value 32*p + i takes its pair from bits 2p of low byte i, and its third bit
// from bit 4*half + p of high byte i. Scale j has its low 4 bits in the low (j < 8) or high nibble of byte j
// % 8, its high 2 in bits 2*(j / 4) of byte 8 + j % 4.
void decode_q3_k(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 110) {
    const float d = half_at(block + 108);
    const uint8_t* packed = block + 96;
    for (size_t j = 0; j < 16; ++j) {
      const unsigned low = j < 8 ? packed[j] & 15u : packed[j - 8] >> 4;
      const unsigned high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3u;
      scales[16 * b + j] = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      biases[16 * b + j] = -4.0f * scales[16 * b + j];
    }
    for (size_t part = 0; part < 8; ++part) {
      uint8_t* out = codes + 256 * b + 32 * part;
      const uint8_t* low = block + 32 + part / 4 * 32;
      const size_t shift = 2 * (part % 4);
      for (size_t i = 0; i < 32; ++i) {
        out[i] = static_cast<uint8_t>(((low[i] >> shift) & 3u) | ((block[i] >> part) & 1u) << 2);
      }
    }
  }
}

// 16 bytes of indices into kNonlinearCodes, in the order of unpack_nibbles_32.
void look_up_32(uint8_t* codes, const uint8_t* packed) {
  for (size_t i = 0; i < 16; ++i) codes[i] = kNonlinearCodes[packed[i] & 0x0fu];
  for (size_t i = 0; i < 16; ++i) codes[16 + i] = kNonlinearCodes[packed[i] >> 4];
}

// f16 scale, 16 bytes of indices.
void decode_iq4_nl(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 18) {
    scales[b] = half_at(block);
    biases[b] = -128.0f * scales[b];
    look_up_32(codes + 32 * b, block + 2);
  }
}

// f16 d, a word with the high pairs of eight 6-bit scales, 4 bytes with their low nibbles, 128 bytes of
// indices.
void decode_iq4_xs(uint8_t* codes, float* scales, float* biases, const std::byte* source, size_t blocks) {
  const uint8_t* block = bytes_of(source);
  for (size_t b = 0; b < blocks; ++b, block += 136) {
    const float d = half_at(block);
    for (size_t j = 0; j < 8; ++j) {
      const unsigned low = (block[4 + j / 2] >> (4 * (j % 2))) & 15u;
      const unsigned high = (block[2 + j / 4] >> (2 * (j % 4))) & 3u;
      scales[8 * b + j] = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      biases[8 * b + j] = -128.0f * scales[8 * b + j];
      look_up_32(codes + 256 * b + 32 * j, block + 8 + 16 * j);
    }
  }
}

}  // namespace

const BlockCodec* find_block_codec(DType dtype) {
  static constexpr BlockCodec kQ4_0{{.bits = 4, .group = 32, .zero_point = 8}, decode_q4_0};
  static constexpr BlockCodec kQ4_1{{.bits = 4, .group = 32, .zero_point = {}}, decode_q4_1};
  static constexpr BlockCodec kQ5_0{{.bits = 5, .group = 32, .zero_point = 16}, decode_q5_0};
  static constexpr BlockCodec kQ5_1{{.bits = 5, .group = 32, .zero_point = {}}, decode_q5_1};
  static constexpr BlockCodec kQ8_0{{.bits = 8, .group = 32, .zero_point = 128}, decode_q8_0};
  static constexpr BlockCodec kQ4_K{{.bits = 4, .group = 32, .zero_point = {}}, decode_q4_k};
  static constexpr BlockCodec kQ5_K{{.bits = 5, .group = 32, .zero_point = {}}, decode_q5_k};
  static constexpr BlockCodec kQ6_K{{.bits = 6, .group = 16, .zero_point = 32}, decode_q6_k};
  static constexpr BlockCodec kQ3_K{{.bits = 4, .group = 16, .zero_point = 4}, decode_q3_k};
  static constexpr AffineFormat kNonlinear{.bits = 8, .group = 32, .zero_point = 128, .nonlinear = true};
  static constexpr BlockCodec kIq4Nl{kNonlinear, decode_iq4_nl};
  static constexpr BlockCodec kIq4Xs{kNonlinear, decode_iq4_xs};
  switch (dtype) {
    case DType::q4_0:
      return &kQ4_0;
    case DType::q4_1:
      return &kQ4_1;
    case DType::q5_0:
      return &kQ5_0;
    case DType::q5_1:
      return &kQ5_1;
    case DType::q8_0:
      return &kQ8_0;
    case DType::q4_k:
      return &kQ4_K;
    case DType::q5_k:
      return &kQ5_K;
    case DType::q6_k:
      return &kQ6_K;
    case DType::q3_k:
      return &kQ3_K;
    case DType::iq4_nl:
      return &kIq4Nl;
    case DType::iq4_xs:
      return &kIq4Xs;
    default:
      return nullptr;
  }
}

}  // namespace keysieve
