// Reading single tensors; see tensors.h.
#include "native/runtime/tensors.h"

#include <cinttypes>
#include <cmath>

#include "native/failure/failure.h"

namespace awqe {
namespace {

const Tensor& need_tensor(const GgufFile& file, const std::string& name) {
    const Tensor* tensor = file.find_tensor(name);
    if (tensor == nullptr) fail(AWQE_FILE_INVALID, "the tensor %s is missing", name.c_str());
    return *tensor;
}

}  // namespace

const Tensor& need_floats(const GgufFile& file, const std::string& name, uint64_t size) {
    const Tensor& tensor = need_tensor(file, name);
    if (tensor.packed || tensor.elements != size) {
        fail(AWQE_FILE_INVALID, "tensor %s is %s[%" PRIu64 "], it must be F32[%" PRIu64 "]",
             name.c_str(), tensor.packed ? "I8" : "F32", tensor.elements, size);
    }
    return tensor;
}

const float* need_vector(const GgufFile& file, const std::string& name, uint64_t size) {
    const Tensor& tensor = need_floats(file, name, size);
    for (uint64_t i = 0; i < size; ++i) {
        if (!std::isfinite(tensor.floats[i])) {
            fail(AWQE_FILE_INVALID,
                 "tensor %s holds a number that is not finite, at index %" PRIu64, name.c_str(), i);
        }
    }
    return tensor.floats;
}

PackedMatrix need_matrix(const GgufFile& file, const std::string& name, uint64_t rows,
                         uint64_t columns) {
    const Tensor& tensor = need_tensor(file, name);
    if (!tensor.packed) {
        fail(AWQE_FILE_INVALID, "tensor %s is F32, it must be a packed matrix", name.c_str());
    }
    if (tensor.matrix.rows != rows || tensor.matrix.columns != columns) {
        fail(AWQE_FILE_INVALID,
             "matrix %s is [%" PRIu64 ", %" PRIu64 "], it must be [%" PRIu64 ", %" PRIu64 "]",
             name.c_str(), tensor.matrix.rows, tensor.matrix.columns, rows, columns);
    }
    return tensor.matrix;
}

Linear need_linear(const GgufFile& file, const std::string& name, uint64_t rows, uint64_t columns) {
    const std::string bias = name + ".bias";
    return {need_matrix(file, name + ".weight", rows, columns),
            file.find_tensor(bias) != nullptr ? need_vector(file, bias, rows) : nullptr};
}

void need_equal_groups(const std::string& layer, const char* first_name, const Linear& first,
                       const char* second_name, const Linear& second) {
    if (first.weight.group_size == second.weight.group_size) return;
    fail(AWQE_FILE_INVALID, "%s%s has group size %u and %s %u, they must be equal", layer.c_str(),
         first_name, first.weight.group_size, second_name, second.weight.group_size);
}

void need_absent(const GgufFile& file, const std::string& name, const char* reason) {
    if (file.find_tensor(name) != nullptr) {
        fail(AWQE_FILE_INVALID, "there is a tensor %s, although %s", name.c_str(), reason);
    }
}

uint64_t packed_bytes(const PackedMatrix& w) {
    return (w.rows + kBlockRows - 1) / kBlockRows * w.block_bytes;
}

}  // namespace awqe
