// All of module.cu as C++, and the list of what is in it.
#include "tests/native/emulated_gpu/kernels.h"

#include <cstring>
#include <iterator>
#include <tuple>
#include <utility>

#define AWQE_EMULATED_GPU
#include "native/cuda/kernels/module.cu"

namespace awqe::emulated {
namespace {

template <class... Arguments, size_t... kIndex>
std::function<void()> bound(void (*kernel)(Arguments...), void** arguments,
                            std::index_sequence<kIndex...>) {
    const std::tuple<Arguments...> copies(*static_cast<Arguments*>(arguments[kIndex])...);
    return [kernel, copies] { std::apply(kernel, copies); };
}
template <class... Arguments>
std::function<void()> bound(void (*kernel)(Arguments...), void** arguments) {
    return bound(kernel, arguments, std::index_sequence_for<Arguments...>());
}

#define LISTED(name) {#name, [](void** arguments) { return bound(&name, arguments); }},
#define OF_ROWS(rows)                          \
    LISTED(attention_##rows##_f16_d64)         \
    LISTED(attention_##rows##_f16_d128)        \
    LISTED(attention_##rows##_f16_any)         \
    LISTED(attention_##rows##_s8_any)          \
    LISTED(attention_##rows##_f16_any_changed) \
    LISTED(attention_##rows##_s8_any_changed)  \
    LISTED(attention_merge_##rows)             \
    LISTED(norm_##rows)                        \
    LISTED(layer_norm_##rows)                  \
    LISTED(quantize_##rows)                    \
    LISTED(activate_##rows)
#define OF_PRODUCT(bits, group)             \
    LISTED(gemv_u##bits##_g##group##_store) \
    LISTED(gemv_u##bits##_g##group##_add)   \
    LISTED(gemv_u##bits##_g##group##_gate)  \
    LISTED(rows_u##bits##_g##group)         \
    LISTED(gemm_u##bits##_g##group)         \
    LISTED(gemm_warpgroup_u##bits##_g##group)
#define OF_WALKED(bits, group) LISTED(walk_u##bits##_g##group)

const Kernel kKernels[] = {
    LISTED(embed) LISTED(add_positions) LISTED(norm_floats) LISTED(layer_norm_floats) LISTED(add)
        LISTED(cap) LISTED(gather) LISTED(likeliest) LISTED(read_memory) LISTED(route)
            LISTED(add_weighted) LISTED(prepare) LISTED(attention_merge_floats)
                LISTED(attention_prompt_d64) LISTED(attention_prompt_d128)
                    LISTED(attention_prompt_d64_changed) LISTED(attention_prompt_d128_changed)
                        LISTED(attention_tensor_d64) LISTED(attention_tensor_d128) OF_ROWS(one)
                            OF_ROWS(many) AWQE_PRODUCTS(OF_PRODUCT)
                                AWQE_WALKED_PRODUCTS(OF_WALKED)};

}  // namespace

const Kernel* kernel_by_name(const char* name) {
    for (const Kernel& kernel : kKernels) {
        if (std::strcmp(kernel.name, name) == 0) return &kernel;
    }
    return nullptr;
}

const char* kernel_name(size_t index) {
    return index < std::size(kKernels) ? kKernels[index].name : nullptr;
}

}  // namespace awqe::emulated
