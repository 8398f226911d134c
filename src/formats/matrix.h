#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/matrix_source.h"
#include "formats/hub_folder.h"
#include "formats/tensor_info.h"

namespace keysieve {

// Weights of every supported file as rows of codes or values. The sources point into the files' mappings,
// which must outlive them. All throw Error{unsupported} for a type this build cannot read and Error{mismatch}
// where the tensor is no matrix [rows, columns]; both name file and tensor.

// The affine form of a GGUF block type: q4_0 {4, 32, zero 8}, q4_1 {4, 32}, q5_0 {5, 32, zero 16}, q5_1 {5,
// 32}, q8_0 {8, 32, zero 128}, q3_k {4, 16, zero 4}, q4_k {4, 32}, q5_k {5, 32}, q6_k {6, 16, zero 32},
// iq4_nl and iq4_xs {8, 32, zero 128, nonlinear}; nullopt for plain types.
std::optional<AffineFormat> affine_format(DType dtype);

// A GGUF or safetensors tensor: f32, f16, bf16 or a block type.
std::unique_ptr<MatrixSource> make_matrix(const TensorInfo& tensor);

// MLX: weight u32 [rows, columns * bits / 32], scales and biases [rows, columns / group_size] in f16, bf16 or
// f32.
std::unique_ptr<MatrixSource> make_mlx_matrix(const TensorInfo& weight, const TensorInfo& scales,
                                              const TensorInfo& biases, MlxQuantization quantization);

// `<module>.weight` of a Hub folder, with `.scales` and `.biases` where the module is quantised.
std::unique_ptr<MatrixSource> make_matrix(const HubFolder& folder, std::string_view module);

// A norm or bias: all elements of a plain tensor of any shape as f32 (f64 and wide integers are rounded).
std::vector<float> read_vector(const TensorInfo& tensor);

}  // namespace keysieve
