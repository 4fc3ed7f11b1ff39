// What each operation means, in plain float64 loops. Shares no code with native/: it works on
// unpacked codes and on doubles, and uses the C library's exp, sin and cos. Owns no tolerance.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace awqe::test::oracle {

struct Value {
    double value;
    double magnitude;  // the sum of the absolute values of what was added
};

// One output of a product of codes. codes: [k]; scales, zero_points: [groups]; x: int8 [k];
// x_scales: [groups].
inline Value product(const uint8_t* codes, const std::vector<double>& scales,
                     const uint8_t* zero_points, const int8_t* x, const float* x_scales, size_t k,
                     size_t group_size) {
    Value sum = {0.0, 0.0};
    for (size_t i = 0; i < k; ++i) {
        const size_t g = i / group_size;
        sum.value += (static_cast<double>(codes[i]) - zero_points[g]) * scales[g] * x[i] *
                     static_cast<double>(x_scales[g]);
    }
    for (size_t g = 0; g * group_size < k; ++g) {
        double dot = 0.0;
        for (size_t i = g * group_size; i < k && i < (g + 1) * group_size; ++i) {
            dot += (static_cast<double>(codes[i]) - zero_points[g]) * x[i];
        }
        sum.magnitude += std::fabs(dot * scales[g] * static_cast<double>(x_scales[g]));
    }
    return sum;
}

inline std::vector<double> rms_norm(const float* x, const float* weight, size_t n, float epsilon) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
    const double root = std::sqrt(sum / static_cast<double>(n) + static_cast<double>(epsilon));
    std::vector<double> y(n);
    for (size_t i = 0; i < n; ++i) y[i] = x[i] / root * weight[i];
    return y;
}

// One query, which is at the last of the positions [0, count). keys, values: double [count,
// head_size]. magnitudes: [head_size] of the sum of weight * |value|. cap: of the scores, 0 for
// none; slope: what a score loses per position back.
inline std::vector<double> attention(const float* query, const std::vector<double>& keys,
                                     const std::vector<double>& values, size_t count,
                                     size_t head_size, std::vector<double>* magnitudes,
                                     double cap = 0.0, double slope = 0.0) {
    std::vector<double> weights(count);
    double largest = -INFINITY;
    for (size_t t = 0; t < count; ++t) {
        double dot = 0.0;
        for (size_t i = 0; i < head_size; ++i) {
            dot += static_cast<double>(query[i]) * keys[t * head_size + i];
        }
        weights[t] = dot / std::sqrt(static_cast<double>(head_size));
        if (cap != 0.0) weights[t] = cap * std::tanh(weights[t] / cap);
        weights[t] -= slope * static_cast<double>(count - 1 - t);
        largest = std::fmax(largest, weights[t]);
    }
    double total = 0.0;
    for (double& w : weights) {
        w = std::exp(w - largest);
        total += w;
    }
    std::vector<double> out(head_size, 0.0);
    magnitudes->assign(head_size, 0.0);
    for (size_t i = 0; i < head_size; ++i) {
        for (size_t t = 0; t < count; ++t) {
            out[i] += weights[t] / total * values[t * head_size + i];
            (*magnitudes)[i] += weights[t] / total * std::fabs(values[t * head_size + i]);
        }
    }
    return out;
}

inline double silu(double x) { return x / (1.0 + std::exp(-x)); }
inline double gelu(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
inline double quick_gelu(double x) { return x / (1.0 + std::exp(-1.702 * x)); }
inline double gelu_tanh(double x) {
    constexpr double kRoot = 0.79788456080286535588;  // of 2 / pi
    return 0.5 * x * (1.0 + std::tanh(kRoot * (x + 0.044715 * x * x * x)));
}
inline double relu(double x) { return x > 0.0 ? x : 0.0; }

inline std::vector<double> layer_norm(const float* x, const float* weight, const float* bias,
                                      size_t n, double epsilon) {
    double mean = 0.0;
    for (size_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]) / static_cast<double>(n);
    double square = 0.0;
    for (size_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const double root = std::sqrt(square / static_cast<double>(n) + epsilon);
    std::vector<double> y(n);
    for (size_t i = 0; i < n; ++i) {
        y[i] = (x[i] - mean) / root * weight[i] + (bias == nullptr ? 0.0 : double{bias[i]});
    }
    return y;
}

}  // namespace awqe::test::oracle
